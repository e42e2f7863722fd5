"""The server process, `cover serve`: it loads a checkpoint, listens on a port, and stops when what it took in is
answered.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cover.console import say
from cover.errors import UserError, install
from cover.processes import begin_preloading
from cover.serve.middleware import App, Batching, Limits

if TYPE_CHECKING:
    from cover.serve.service import Service

INSTALL = install("serve")
KEEP_ALIVE_S = 5
SHORTEST_KEY = 16


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens, what it shows, and where uploads lie meanwhile (None: the system's folder for such
    files).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    page: bool = False
    key_file: Path | None = None
    spool: Path | None = None


def serve(
    checkpoint: Path, options: ServerOptions, limits: Limits, batching: Batching, workers: int, device: str
) -> None:
    """Serve until SIGTERM or SIGINT; then what was taken in is answered, and nothing is left behind. Prints the address
    when it is ready.

    Raises `UserError` for a checkpoint that cannot be served, an address that cannot be had, and a missing extra.
    """
    check_extra()
    key = read_key(options.key_file)
    begin_preloading("cover.serve.decoding")  # while this process imports torch as well
    from cover.hardware import pick_device
    from cover.inference.predictor import Predictor
    from cover.serve.service import Service
    from cover.serve.uploads import UploadFolder

    predictor = Predictor.load(checkpoint, pick_device(device))
    with _ending_in_order():
        try:
            uploads = UploadFolder(options.spool)
        except OSError as error:
            raise UserError(f"--spool {options.spool}: no folder can be made here: {error.strerror}") from None
        try:
            service = Service(predictor, limits, batching, workers, uploads)
        except BaseException:
            uploads.close()
            raise
        with closing(service):
            asyncio.run(_listen(service, options, key))


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """SIGTERM ends a start as an exception does: nothing is left behind."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_extra() -> None:
    """Raises `UserError` where a package is missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"cover serve needs {error.name}: {INSTALL}") from None


def read_key(file: Path | None) -> str | None:
    """The key in a file. Raises `UserError`."""
    if file is None:
        return None
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--key-file {file}: cannot be read: {getattr(error, 'strerror', None) or 'not ASCII'}"
        ) from None
    if len(key) < SHORTEST_KEY or not key.isprintable() or " " in key:
        raise UserError(
            f"--key-file {file}: a key is one word of at least {SHORTEST_KEY} characters; `openssl rand -hex 24` makes one"
        )
    return key


def uvicorn_config(app: App, limits: Limits, host: str, port: int) -> Any:
    """What uvicorn bounds, before a request gets to the application: connections, the head of a request, idle
    connections, the stop.

    It has no time limit for the head of a request: a proxy in front of the server has (docs/serving.md).
    """
    import uvicorn

    return uvicorn.Config(
        app,
        host,
        port,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=limits.head,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(limits.deadline_s),
        backlog=limits.connections,
    )


async def _listen(service: Service, options: ServerOptions, key: str | None) -> None:
    from cover.serve.app import make_app

    config = uvicorn_config(make_app(service, options.page, key), service.limits, options.host, options.port)
    try:
        sockets = [config.bind_socket()]
    except SystemExit:
        raise UserError(f"--host {options.host} --port {options.port}: cannot be listened on") from None
    await _server(service, config, options).serve(sockets)


def _server(service: Service, config: Any, options: ServerOptions) -> Any:
    import uvicorn

    class DrainingServer(uvicorn.Server):
        """The first signal lets what was taken in be answered while nothing more is; the second stops at once."""

        until = float("inf")

        async def startup(self, sockets: Any = None) -> None:
            """Listen, and say so."""
            await super().startup(sockets)
            _announce(sockets[0].getsockname(), options)

        def handle_exit(self, sig: int, frame: Any) -> None:
            """On SIGINT and SIGTERM."""
            if service.draining:
                self.should_exit = self.force_exit = True
                return
            service.draining, self.until = True, time.monotonic() + service.limits.deadline_s + service.limits.upload_s
            say(
                f"serve: {signal.Signals(sig).name}: answering the {service.under_way} under way, then stopping (once more: stop now)"
            )

        async def on_tick(self, counter: int) -> bool:
            """Ten times a second: whether to stop."""
            drained = service.draining and (not service.under_way or time.monotonic() > self.until)
            return await super().on_tick(counter) or drained

    return DrainingServer(config)


def _announce(address: tuple[Any, ...], options: ServerOptions) -> None:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    url = f"http://{host}:{address[1]}"
    print(url, flush=True)
    key = f' -H "Authorization: Bearer $(cat {json.dumps(str(options.key_file))})"' if options.key_file else ""
    say(f"the page is at {url}/" if options.page else "a page to drop files on comes with --page")
    say(f"next: curl{key} -F file=@clip.mp4 '{url}/v1/predict?top=3'")
