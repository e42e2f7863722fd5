"""`cover serve` as it is typed: it says where it listens, answers what it took in before it stops, and leaves nothing
behind.
"""

from __future__ import annotations

import http.client
import json
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from commands import Command
from PIL import Image

from cover.cli import main
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.serve.uploads import UploadFolder

pytest.importorskip(
    "uvicorn", reason="the extra `serve` is not installed: pip install -c constraints.txt -e '.[serve]'"
)
Start = Callable[..., tuple[Command, int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release and an image."""
    folder = tmp_path_factory.mktemp("serve")
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("mine", ("x", "y")),)
    )
    model.zero_head("mine")
    save_release(
        folder / "release", model, {"step": 1, "frames": 2, "datasets": {"mine": {"sampling": "whole", "views": "1x1"}}}
    )
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(folder / "photo.png")
    (folder / "spool").mkdir()
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts a server on a free port: start("--page") -> its process and port. It is over when the test is."""
    running: list[Command] = []

    def started(*options: str) -> tuple[Command, int]:
        places = ["--port", "0", "--workers", "1", "--spool", folder / "spool"]
        server = Command("serve", folder / "release", *places, *options)
        running.append(server)
        return server, int(server.stdout.readline().strip().removeprefix("http://127.0.0.1:"))

    yield started
    for server in running:
        server.kill()
        server.communicate()


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, object]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, {"content-type": "image/png"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def members(server: Command) -> set[int]:
    """The processes of a server: itself and all that descend from it."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    parents = dict(zip(map(int, rows[::2]), map(int, rows[1::2])))
    result, more = set[int](), {server.pid}
    while more:
        result |= more
        more = {pid for pid, parent in parents.items() if parent in more}
    return result


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked at in /proc")
def test_what_was_taken_in_is_answered_before_the_server_stops(start: Start, folder: Path) -> None:
    server, port = start()
    processes, photo = members(server), (folder / "photo.png").read_bytes()
    assert len(processes) >= 3
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        head = (
            f"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {len(photo)}\r\n\r\n"
        )
        line.sendall(head.encode() + photo[:50])
        wait_until(lambda: len(list((folder / "spool").glob("*/*"))) == 2)
        server.terminate()
        wait_until(lambda: ask(port, "GET", "/readyz")[0] == 503)
        assert ask(port, "POST", "/v1/predict", photo) == (503, {"error": "the server is about to stop"})
        assert ask(port, "GET", "/healthz")[0] == 200
        line.sendall(photo[50:])
        assert line.recv(4096).startswith(b"HTTP/1.1 200")
    _, err = server.communicate(timeout=15)
    assert server.returncode == 0
    assert "Traceback" not in err
    assert err.splitlines()[1].startswith("next: curl -F file=@clip.mp4 ")
    wait_until(lambda: not any(map(alive, processes)))
    assert not list((folder / "spool").iterdir())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked at in /proc")
def test_a_server_that_is_killed_leaves_no_process_and_its_uploads_to_the_next(start: Start, folder: Path) -> None:
    server, _ = start()
    processes = members(server)
    (left,) = (folder / "spool").iterdir()
    server.kill()
    wait_until(lambda: not any(map(alive, processes)))
    assert left.exists()
    UploadFolder(folder / "spool").close()
    assert not left.exists()


def test_an_answer_comes_through_a_key(start: Start, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef\n")
    server, port = start("--key-file", str(tmp_path / "key"), "--page")
    assert ask(port, "POST", "/v1/predict", (folder / "photo.png").read_bytes())[0] == 401
    with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
        record = {"authorization": "Bearer 0123456789abcdef", "content-type": "image/png"}
        connection.request("POST", "/v1/predict?top=1", (folder / "photo.png").read_bytes(), record)
        answer = json.loads(connection.getresponse().read())
    assert answer["heads"] == {"mine": [{"name": "x", "probability": 0.5}]}
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=15)
    assert server.returncode == 0


# --- what is refused


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Types `cover serve`, which must be refused in one line; returns it."""

    def typed(*arguments: object) -> str:
        code = main(["serve", *map(str, arguments)])
        out, err = capfd.readouterr()
        assert (code, out) == (2, ""), err
        (line,) = err.splitlines()
        return line

    return typed


def test_a_checkpoint_that_cannot_be_served(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    assert "nowhere: does not exist" in refused(tmp_path / "nowhere")
    shutil.copytree(folder / "release", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").write_bytes(pickle.dumps({"weights": np.zeros(3)}))
    assert "model.safetensors: cannot be read" in refused(tmp_path / "pickled")
    save_release(
        tmp_path / "headless",
        CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16)),
        {"datasets": {}},
    )
    assert "has no head" in refused(tmp_path / "headless", "--spool", tmp_path)


def test_a_place_that_cannot_be_had(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    release = folder / "release"
    with closing(socket.create_server(("127.0.0.1", 0))) as chosen:
        line = refused(release, "--port", chosen.getsockname()[1], "--spool", tmp_path, "--workers", 1)
        assert "cannot listen on" in line
    assert not list(tmp_path.iterdir())
    assert "cannot create a folder here" in refused(release, "--spool", tmp_path / "nowhere")
    assert "cannot be read" in refused(release, "--key-file", tmp_path / "nowhere")
    (tmp_path / "key").write_text("short")
    assert "at least 16 characters" in refused(release, "--key-file", tmp_path / "key")


def test_without_the_extra(refused: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    line = refused(folder / "release")
    assert line.endswith("cover serve needs fastapi: pip install -c constraints.txt -e '.[serve]'")
