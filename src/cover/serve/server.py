"""The server process, `cover serve`: loads a checkpoint, listens on a port, and shuts down in order."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cover.console import say
from cover.errors import UserError, install
from cover.processes import start_method
from cover.serve.middleware import App, Batching, Limits

if TYPE_CHECKING:
    from cover.inference.engines import Engine
    from cover.serve.service import Service

INSTALL = install("serve")
KEEP_ALIVE_S = 5
SHORTEST_KEY = 16


@dataclass(frozen=True)
class ServerOptions:
    """Address of a server, whether it has the web page, the file of its key, and the folder for uploads.

    If `spool` is None, uploads are in the system's temporary folder. `frames`: sites that may show the page in a frame.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    page: bool = False
    key_file: Path | None = None
    spool: Path | None = None
    frames: tuple[str, ...] = ()


def serve(
    checkpoints: Sequence[str | Path],
    options: ServerOptions,
    limits: Limits,
    batching: Batching,
    workers: int,
    device: str,
    engine: Engine = "eager",
    calibration: Sequence[str] = (),
) -> None:
    """Serve until SIGTERM or SIGINT. Prints the address when the server is ready.

    `checkpoints`: the models; requests that name none get the first.

    `calibration`: files on which a new engine is compared with `eager`; without any, on moving textures. At the end it
    answers all open requests and removes its temporary files.

    Raises `UserError` if the checkpoint cannot be served, if the address is not available, or if a package is missing.
    """
    check_extra()
    check_frames(options)
    key = read_key(options.key_file)
    start_method("cover.serve.decoding")  # at the same time as this process imports torch
    from cover.hardware import pick_device
    from cover.inference.predictor import Predictor
    from cover.inference.views import ViewRequest
    from cover.model.release import find_release
    from cover.model.text import TextEncoder, has_text
    from cover.serve.service import Service
    from cover.serve.uploads import UploadFolder

    models = []
    for name, checkpoint in zip(model_names(checkpoints), checkpoints, strict=True):
        folder = find_release(checkpoint)
        predictor = Predictor.load(folder, pick_device(device), engine)
        heads = [head.name for head in predictor.model.head_list]  # requests may name any
        plans = tuple(dict.fromkeys(predictor.plans(heads).values()))
        if predictor.graphs and plans:
            from cover.inference.engines import CALIBRATION_CLIPS, prepare_engine

            prepare_engine(predictor, ViewRequest(plans), calibration[:CALIBRATION_CLIPS], textures=True)
        models.append((name, predictor, TextEncoder(folder) if has_text(folder) else None))
    with _exit_on_sigterm():
        try:
            uploads = UploadFolder(options.spool)
        except OSError as error:
            raise UserError(f"--spool {options.spool}: cannot create a folder here: {error.strerror}") from None
        try:
            (name, predictor, encoder), *others = models
            service = Service(predictor, limits, batching, workers, uploads, name, encoder, others)
        except BaseException:
            uploads.close()
            raise
        with closing(service):
            asyncio.run(_listen(service, options, key))


def model_names(checkpoints: Sequence[str | Path]) -> list[str]:
    """A name for each checkpoint: of a folder its own name without the path, else the Hub id.

    Folders of the same name get as many of the folders above as tell them apart. Raises `UserError` if a checkpoint is
    given twice.

    >>> model_names(["runs/a/release", "runs/b/release"])
    ['a/release', 'b/release']
    """
    paths = [Path(each).absolute().parts if Path(each).exists() else (str(each),) for each in checkpoints]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UserError(f"{checkpoints[number]}: is given twice")
    names = [path[-1] for path in paths]
    for depth in range(2, max(map(len, paths), default=0) + 1):
        if len(set(names)) == len(names):
            break
        names = ["/".join(path[-depth:]) if names.count(name) > 1 else name for path, name in zip(paths, names)]
    return names


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that a server that is still starting removes its files too."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_extra() -> None:
    """Raise `UserError` if a package of the extra `serve` is missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"cover serve needs {error.name}: {INSTALL}") from None


def check_frames(options: ServerOptions) -> None:
    """Raise `UserError` if `frames` has something else than a site, or if there is no page to show."""
    if options.frames and not options.page:
        raise UserError("--frame: goes with --page")
    for site in options.frames:
        if not re.fullmatch(r"https?://[\w.-]+(:\d+)?", site, re.ASCII):
            raise UserError(f"--frame {site}: write the address of a site, as in https://huggingface.co")


def read_key(file: Path | None) -> str | None:
    """The key in a file, or None without a file. Raises `UserError` if the key is not usable."""
    if file is None:
        return None
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII"
        raise UserError(f"--key-file {file}: cannot be read: {reason}") from None
    if len(key) < SHORTEST_KEY or not key.isprintable() or " " in key:
        rule = f"a key is one word of at least {SHORTEST_KEY} characters"
        raise UserError(f"--key-file {file}: {rule}; `openssl rand -hex 24` makes one")
    return key


def uvicorn_config(app: App, limits: Limits, host: str, port: int) -> Any:
    """uvicorn's configuration. It limits connections, the size of a request's head, idle connections and the shutdown.

    uvicorn has no time limit for the head of a request. A reverse proxy in front of the server has one
    (docs/serving.md).
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

    config = uvicorn_config(
        make_app(service, options.page, key, options.frames), service.limits, options.host, options.port
    )
    try:
        sockets = [config.bind_socket()]
    except SystemExit:
        raise UserError(f"--host {options.host} --port {options.port}: cannot listen on this address") from None
    await _server(service, config, options).serve(sockets)


def _server(service: Service, config: Any, options: ServerOptions) -> Any:
    import uvicorn

    class DrainingServer(uvicorn.Server):
        """A server that drains: after the first signal it only answers open requests, after the second it stops."""

        until = float("inf")

        async def startup(self, sockets: Any = None) -> None:
            """Listen, and print the address."""
            await super().startup(sockets)
            _announce(sockets[0].getsockname(), options)

        def handle_exit(self, sig: int, frame: Any) -> None:
            """Handle SIGINT and SIGTERM."""
            if service.draining:
                self.should_exit = self.force_exit = True
                return
            service.draining = True
            self.until = time.monotonic() + service.limits.deadline_s + service.limits.upload_s
            name, count = signal.Signals(sig).name, service.under_way
            say(f"serve: {name}: answering the {count} under way, then stopping (again: stop now)")

        async def on_tick(self, counter: int) -> bool:
            """Whether to stop; uvicorn calls this ten times a second."""
            drained = service.draining and (not service.under_way or time.monotonic() > self.until)
            return await super().on_tick(counter) or drained

    return DrainingServer(config)


def _announce(address: tuple[Any, ...], options: ServerOptions) -> None:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    url = f"http://{host}:{address[1]}"
    print(url, flush=True)
    key = f' -H "Authorization: Bearer $(cat {json.dumps(str(options.key_file))})"' if options.key_file else ""
    say(f"the page is at {url}/" if options.page else "add --page for a web page that takes uploads")
    say(f"next: curl{key} -F file=@clip.mp4 '{url}/v1/predict?top=3'")
