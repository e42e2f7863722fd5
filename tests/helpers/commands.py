"""Commands in processes of their own, forked from a server process that has imported torch and the package.

A new interpreter imports them for some seconds of a core before it does anything; a fork starts in milliseconds. All
else is as with `python -m MODULE`: arguments, environment, folder, output, signals, exit code and the end of the
interpreter. A test of imports, of thread settings or of another PYTHONPATH needs `subprocess`.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import IO, Self

PRELOADED = (
    "torch._dynamo",  # optimizers import it
    "torch.distributed.checkpoint.state_dict",
    "cover.cli",
    "cover.evaluation.cached_views",
    "cover.experiments.study.runner",
    "cover.inference.predict",
    "cover.training.train",
)
MOST_BYTES = 1 << 20  # of a request
FDS = 3  # stdout, stderr, and where the server writes the exit code


class Command:
    """`python -m MODULE ARGUMENTS`, started. A part of `subprocess.Popen`, with text pipes for stdout and stderr."""

    def __init__(
        self,
        *arguments: object,
        module: str = "cover",
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int | None = None,
        file_bytes: int | None = None,
        start_new_session: bool = False,
    ) -> None:
        """`stdout`: a file descriptor in place of a pipe. `file_bytes`: a limit on the size of the files it writes."""
        self.args = [str(argument) for argument in arguments]
        self.returncode: int | None = None
        pipes = [os.pipe() for _ in range(FDS)]
        out, err, self._status = (reading for reading, _ in pipes)
        theirs = [writing for _, writing in pipes]
        request = {
            "module": module,
            "arguments": self.args,
            "environment": dict(os.environ if env is None else env),
            "folder": str(cwd or Path.cwd()),
            "file_bytes": file_bytes,
            "session": start_new_session,
        }
        self.pid = _server().start(request, [theirs[0] if stdout is None else stdout, *theirs[1:]])
        for fd in theirs:
            os.close(fd)
        self.stdout: IO[str] = os.fdopen(out, encoding="utf-8")
        self.stderr: IO[str] = os.fdopen(err, encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, as soon as it has ended. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(os.read(self._status, 16))
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code if it has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it writes, once all that write there have closed the pipes."""
        texts = {}

        def read(stream: IO[str]) -> None:
            texts[stream] = stream.read()

        threads = [threading.Thread(target=read, args=(stream,), daemon=True) for stream in (self.stdout, self.stderr)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return texts[self.stdout], texts[self.stderr]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


def run(*arguments: object, timeout: float | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. `options` are those of `Command`."""
    command = Command(*arguments, **options)  # type: ignore[arg-type]
    out, err = command.communicate(timeout)
    return subprocess.CompletedProcess(command.args, command.wait(), out, err)


class _Server:
    """This process's end of the server."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_BYTES)
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,  # as of a command: its streams get another target, and keep their kind
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        theirs.close()
        atexit.register(self.end)

    def start(self, request: Mapping[str, object], fds: list[int]) -> int:
        """Fork a command. Returns its process id."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
        if not (pid := self._socket.recv(16)):
            raise RuntimeError(f"the server of commands has ended: {self._process.communicate()[1].decode()}")
        return int(pid)

    def end(self) -> None:
        self._socket.close()
        self._process.kill()
        self._process.wait()


@cache
def _server() -> _Server:
    return _Server()


# --- in the server ----------------------------------------------------------------------------------------------------


def serve(connection: socket.socket) -> dict[str, object]:
    """Fork a process for each request until the connection closes. Returns, in the forked process, its request."""
    for module in PRELOADED:
        importlib.import_module(module)
    gc.freeze()  # a collection in a fork would copy the memory of all that is imported
    waking, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, _note)
    running: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        for source in (connection, waking):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if waking in ready:
                waking.recv(4096)
                _report(running)
            if connection in ready:
                data, fds, *_ = socket.recv_fds(connection, MOST_BYTES, FDS)
                if not data:
                    os._exit(0)
                *streams, status = fds
                if (pid := os.fork()) == 0:
                    break
                connection.send(str(pid).encode())
                running[pid] = status
                for stream in streams:
                    os.close(stream)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in (connection, waking, woken):
        each.close()
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    for fd in (*fds, *running.values()):
        os.close(fd)
    return json.loads(data)


def _note(number: int, frame: FrameType | None) -> None:
    """A signal that has a handler wakes the selector."""


def _report(running: dict[int, int]) -> None:
    """Write the exit codes of processes that have ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        fd = running.pop(pid)
        os.write(fd, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(fd)


def begin(request: dict[str, object]) -> None:
    """Become the process that a request asks for."""
    if request["session"]:
        os.setsid()
    if request["file_bytes"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], resource.RLIM_INFINITY))  # type: ignore[arg-type]
    os.chdir(str(request["folder"]))
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    sys.path[0] = str(request["folder"])
    sys.argv = [str(request["module"]), *request["arguments"]]  # type: ignore[misc]
    try:
        runpy.run_module(str(request["module"]), run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    else:
        code = 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # what is left of the end of an interpreter is to free its memory, for a tenth of a second and more


if __name__ == "__main__":
    begin(serve(socket.socket(fileno=int(sys.argv[1]))))
