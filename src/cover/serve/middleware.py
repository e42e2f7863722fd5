"""Limits of requests, and the ASGI middleware that enforces them.

The middleware checks the key, limits the size and the time of a body, and answers every error in the same form.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from cover.console import say

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The limits of a server. Sizes are in bytes, times in seconds.

    `body`: size of a request's body, on every route.
    `upload_s`: time for a body to arrive.
    `seconds`, `pixels`: length of a video, size of a picture.
    `decode_s`, `memory`: time and memory to decode one file. A process that takes longer is killed.
    `deadline_s`: time from the last byte of an upload to its answer.
    `queue`: predictions in progress at the same time.
    `explanations`: explanations in progress at the same time. Each uses the model alone, for as long as several
    predictions.
    `connections`: open connections. `head`: size of a request's first line and headers. uvicorn enforces these two.
    """

    body: int = 64 * MEGABYTE
    upload_s: float = 30.0
    seconds: float = 600.0
    pixels: int = 64_000_000
    decode_s: float = 10.0
    memory: int = 2048 * MEGABYTE
    deadline_s: float = 30.0
    queue: int = 64
    explanations: int = 2
    connections: int = 512
    head: int = 16 * 1024


@dataclass(frozen=True)
class Batching:
    """Batching of files in forward passes.

    `frames`: the largest number of frames in a forward pass. `wait_s`: seconds that the first file of a Pack waits for
    others.
    """

    frames: int = 64
    wait_s: float = 0.005


class Refused(Exception):
    """A request without a prediction: an HTTP status, and the reason in one line."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})

    def __reduce__(self) -> tuple[type[Refused], tuple[int, str, dict[str, str]]]:
        return Refused, (self.status, self.text, self.headers)  # decoding processes send it pickled


def busy(text: str) -> Refused:
    """The error of a server with too many requests. The client may try again after a second."""
    return Refused(429, text, {"retry-after": "1"})


def late() -> Refused:
    """The error of a server that cannot answer in time."""
    return Refused(503, "the server is too busy to answer in time; try again later", {"retry-after": "5"})


# --- middleware -------------------------------------------------------------------------------------------------------

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answered = Callable[[str, int, float], None]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

BUG = "the server failed; its log says why"
OPEN = frozenset(["/", "/healthz", "/readyz", "/openapi.json"])  # routes that need no key
# After a refusal the server reads this much more of the body: a client that is still sending would not read the answer.
LINGER_BYTES, LINGER_S = MEGABYTE, 1.0


class LimitsMiddleware:
    """ASGI middleware that applies the limits to every route. A bug in a route gives a line in the log and status 500.

    `answered(route, status, seconds)` is called after each request. A route that is not in `routes` is "other" there.
    """

    def __init__(
        self, app: App, limits: Limits, answered: Answered, routes: frozenset[str], key: str | None = None
    ) -> None:
        self._app, self._limits, self._answered, self._routes = app, limits, answered, routes
        self._key = key.encode() if key else None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one request, or pass on any other ASGI event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, exchange = time.monotonic(), _Exchange(scope, receive, send, self._limits)
        try:
            self._check(scope, exchange)
            await self._app(scope, exchange.receive, exchange.send)
        except Refused as refused:
            await exchange.refuse(refused)
        except Exception as error:
            say(f"serve: bug in {scope['method']} {scope['path']!r}: {_where(error)}")
            await exchange.refuse(Refused(500, BUG))
        route = scope["path"] if scope["path"] in self._routes else "other"
        self._answered(route, exchange.status or 499, time.monotonic() - began)  # 499: the client has disconnected

    def _check(self, scope: MutableMapping[str, Any], exchange: _Exchange) -> None:
        if self._key and scope["path"] not in OPEN and not hmac.compare_digest(_key_of(exchange.headers), self._key):
            raise Refused(401, "send the key as `Authorization: Bearer KEY`", {"www-authenticate": "Bearer"})
        if exchange.length > self._limits.body:
            raise exchange.too_large()


class _Exchange:
    """The messages of one request and its response.

    The size and the time of the body are limited. If the response starts before the end of the body, the connection is
    closed.
    """

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, limits: Limits) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status = 0
        length = self.headers.get(b"content-length", b"0")
        self.length = int(length) if length.isdigit() else 0
        self._receive, self._send, self._limits = receive, send, limits
        self._received, self._until = 0, time.monotonic() + limits.upload_s
        self._ended = not self.length and b"transfer-encoding" not in self.headers

    def too_large(self) -> Refused:
        """The error of a body that is too large."""
        return Refused(413, f"the body is larger than {self._limits.body / MEGABYTE:g} MB")

    async def receive(self) -> Message:
        """The next message: a part of the body and, after its end, any message. Raises `Refused`."""
        if self._ended:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self._limits.upload_s:g} s") from None
        self._received += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._received > self._limits.body:
            raise self.too_large()
        return message

    async def send(self, message: Message) -> None:
        """Send a message. A response before the end of the body closes the connection."""
        if message["type"] == "http.response.start":
            await self._linger()
            self.status = message["status"]
            if not self._ended:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await self._send(message)

    async def _linger(self) -> None:
        """Read and ignore the rest of the body, up to a limit."""
        stop, until = self._received + LINGER_BYTES, time.monotonic() + LINGER_S
        try:
            while not self._ended and self._received < stop:
                message = await asyncio.wait_for(self._receive(), max(0.0, until - time.monotonic()))
                self._received += len(message.get("body", b""))
                self._ended = not message.get("more_body", False)
        except TimeoutError:
            return

    async def refuse(self, refused: Refused) -> None:
        """Send the error as one line of JSON, unless a response has begun."""
        if self.status:
            return
        body = json.dumps({"error": refused.text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in refused.headers.items()]
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})


def _key_of(headers: dict[bytes, bytes]) -> bytes:
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else b""


def _where(error: BaseException) -> str:
    """The error and the line of code that raised it, in one line."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {str(error)!r} ({last.filename}:{last.lineno})"
