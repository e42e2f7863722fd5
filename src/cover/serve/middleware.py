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
    `ignored`: what is read and ignored of a body after an answer that comes before its end, in the time that is left of
    `upload_s`. If the connection was closed before, a client that is still sending would get a reset and no answer.
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
    ignored: int = 1024 * MEGABYTE
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
        if not exchange.framed:
            raise Refused(400, "the length of the body is given twice; send Content-Length or Transfer-Encoding")
        if exchange.length > self._limits.body:
            raise exchange.too_large()


class _Exchange:
    """The messages of one request and its response.

    The size and the time of the body are limited. If the response starts before the end of the body, the rest of the
    body is read and ignored after it, and the connection is closed.

    `framed`: whether the end of the body is certain. With two headers about it, a proxy in front of the server may take
    a part of the body for the next request (RFC 9112, section 6.1).
    """

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, limits: Limits) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status = 0
        self.framed = not {b"content-length", b"transfer-encoding"} <= self.headers.keys()
        length = self.headers.get(b"content-length", b"0")
        self.length = int(length) if length.isdigit() else 0
        self._receive, self._send, self._limits = receive, send, limits
        self._received, self._until = 0, time.monotonic() + limits.upload_s
        self._ended = not self.length and b"transfer-encoding" not in self.headers
        self._early = False  # whether the response began before the end of the body

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
        """Send a message. A response before the end of the body closes the connection, after the rest of the body."""
        if message["type"] == "http.response.start":
            self.status, self._early = message["status"], not self._ended
            if self._early:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        elif self._early and not message.get("more_body", False):
            # uvicorn closes the connection when it has the last part of the response, so that is sent after the body.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _linger(self) -> None:
        """Read and ignore the rest of the body, up to `Limits.ignored` and the time that the body has."""
        if self._waits:
            return
        stop = self._received + self._limits.ignored
        try:
            while not self._ended and self._received < stop:
                message = await asyncio.wait_for(self._receive(), max(0.0, self._until - time.monotonic()))
                self._received += len(message.get("body", b""))
                self._ended = not message.get("more_body", False)
        except TimeoutError:
            return

    @property
    def _waits(self) -> bool:
        """Whether the client waits with its body for leave to send it, which reading the body would give."""
        return not self._received and b"100-continue" in self.headers.get(b"expect", b"").lower()

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
