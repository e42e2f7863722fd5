"""Ten thousand hostile requests: no crash, no answer that is not documented, no file, process or connection left
behind.

HOSTILE=N sends N of them. Those that schemathesis makes up from the OpenAPI document take part where its command is on
the PATH.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import pickle
import random
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

pytest.importorskip(
    "uvicorn", reason="the extra `serve` is not installed: pip install -c constraints.txt -e '.[serve]'"
)
pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
COUNT, CLIENTS = int(os.environ.get("HOSTILE", "10000")), 12
ROUTES = (
    "/",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/model",
    "/openapi.json",
    "/../../etc/passwd",
    "/v1/predict",
    "/v1/explain",
)
METHODS = ("POST", "GET", "PUT", "DELETE", "TRACE", "X")
QUERIES = (
    "",
    "",
    "?top=2&timeline=2",
    "?top=-1",
    "?timeline=9999",
    "?head=%00",
    "?head=x&head=y",
    "?head=mine",
    "?head=mine&class=x",
    "?head=mine&class=z",
    "?" + "x" * 3000,
)
DOCUMENTED = {200, 400, 404, 405, 408, 413, 415, 422, 429, 503}


@dataclass
class Running:
    """A server of its own process, and where its uploads lie."""

    process: subprocess.Popen[str]
    port: int
    spool: Path

    def processes(self) -> set[int]:
        rows = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
        parents = dict(zip(map(int, rows[::2]), map(int, rows[1::2])))
        result, more = set[int](), {self.process.pid}
        while more:
            result |= more
            more = {pid for pid, parent in parents.items() if parent in more}
        return result

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def uploads(self) -> list[Path]:
        return [path for path in self.spool.glob("*/*") if path.name != "lock"]

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as line:
            line.request(method, path, body, headers)
            response = line.getresponse()
            return response.status, response.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("hostile")
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("mine", ("x", "y")),)
    )
    torch.nn.init.normal_(model.heads["mine"].weight)
    save_release(
        folder / "release", model, {"step": 1, "frames": 2, "datasets": {"mine": {"sampling": "whole", "views": "1x1"}}}
    )
    (folder / "spool").mkdir()
    command = [
        sys.executable,
        "-m",
        "cover",
        "serve",
        str(folder / "release"),
        "--port",
        "0",
        "--page",
        "--workers",
        "2",
    ]
    command += ["--spool", str(folder / "spool"), "--max-mb", "1", "--upload-seconds", "2", "--decode-seconds", "2"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout
        try:
            yield Running(process, int(process.stdout.readline().rpartition(":")[2]), folder / "spool")
        finally:
            process.terminate()
    assert process.returncode == 0
    assert [line for line in (folder / "log").read_text().splitlines() if "bug" in line or "Traceback" in line] == []


def photo() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of as few bytes as there can be for so many pixels, all of them black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(min(width * height // 8, 8_000_000)), 9))
        + chunk(b"IEND", b"")
    )


def bodies() -> list[bytes]:
    good = photo()
    starts = (
        b"\xff\xd8\xff",
        b"\0\0\0\x18ftypmp42",
        b"\x1aE\xdf\xa3",
        b"RIFF\0\0\0\0AVI LIST",
        b"GIF89a",
        b"OggS",
        b"FLV\x01",
        b"II*\0",
        b"G" * 600,
    )
    lists = (
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<?xml?><svg/>",
        b"%!PS\n",
        b"v=0\r\n",
    )
    return [
        good,
        b"",
        good[:40],
        bomb(100_000, 100_000),
        bomb(7_000, 7_000),
        pickle.dumps([1]),
        b"PK\3\4",
        bytes(2 << 20),
        *(start + random.Random(number).randbytes(3000) for number, start in enumerate(starts)),
        *lists,
    ]


def wrapped(rng: random.Random, body: bytes) -> tuple[bytes, dict[str, str]]:
    """A body under some type, or in a form under some name."""
    name = rng.choice(["file", "file", "other", "../file", ""])
    filename = rng.choice(["a.mp4", "../../../etc/passwd", "\0", "x" * 3000, '"; name="file'])
    part = f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'.encode()
    if rng.random() < 0.5:
        return part + body + rng.choice([b"\r\n--b--\r\n", b"\r\n--b", b""]), {
            "content-type": "multipart/form-data; boundary=b"
        }
    kind = rng.choice(
        [
            "video/mp4",
            "image/png",
            "application/octet-stream",
            "text/html",
            "application/json",
            "multipart/form-data",
            "",
        ]
    )
    return body, {"content-type": kind}


def hostile_request(server: Running, number: int, results: list[bytes]) -> str:
    """One of them: what came of it, in a word."""
    rng = random.Random(number)
    method, path = (
        ("POST", rng.choice(["/v1/predict", "/v1/explain"]))
        if rng.random() < 0.7
        else (rng.choice(METHODS), rng.choice(ROUTES))
    )
    path += rng.choice(QUERIES)
    body, headers = wrapped(rng, rng.choice(results))
    with contextlib.suppress(ConnectionError):
        if rng.random() < 0.15:
            return abandoned(server, rng, path, body)
        status, text = server.ask(method, path, body, headers)
        assert status in DOCUMENTED, (number, status, text[:200])
        if status >= 400:
            assert list(json.loads(text)) == ["error"], (number, text[:200])
        return str(status)
    return "ended"  # a body that is too large may not be read to its end


def abandoned(server: Running, rng: random.Random, path: str, body: bytes) -> str:
    """A request that is not finished, or is none."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        if rng.random() < 0.3:
            line.sendall(rng.randbytes(200))
            return "rubbish"
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: video/mp4\r\ncontent-length: {len(body) + 5}\r\n\r\n"
        ).encode()
        line.sendall((head + body)[: rng.randrange(1, len(head) + len(body) + 1)])
        return "left"


def check_nothing_is_left(server: Running, processes: int, files: int) -> None:
    until = time.monotonic() + 30
    while server.uploads() or len(server.processes()) > processes or server.open_files() > files + 4:
        assert time.monotonic() < until, (server.uploads(), server.processes(), server.open_files(), files)
        time.sleep(0.2)
    assert server.process.poll() is None
    assert server.ask("POST", "/v1/predict", photo(), {"content-type": "image/png"})[0] == 200


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_the_list(server: Running) -> None:
    result = bodies()
    server.ask("POST", "/v1/predict", photo(), {"content-type": "image/png"})
    processes, files = len(server.processes()), server.open_files()
    with ThreadPoolExecutor(CLIENTS) as crowd:
        answers = Counter(crowd.map(lambda number: hostile_request(server, number, result), range(COUNT)))
    print(dict(answers))
    assert answers.total() == COUNT
    assert {"200", "415", "422", "413", "left", "rubbish"} <= set(answers)
    check_nothing_is_left(server, processes, files)


@pytest.mark.skipif(
    not shutil.which("schemathesis"),
    reason="schemathesis is not on the PATH: pip install schemathesis, in a place of its own",
)
def test_what_schemathesis_makes_up(server: Running, tmp_path: Path) -> None:
    processes, files = len(server.processes()), server.open_files()
    command = [
        "schemathesis",
        "run",
        f"http://127.0.0.1:{server.port}/openapi.json",
        "--checks",
        "not_a_server_error,status_code_conformance",
    ]
    command += [
        "--max-examples",
        str(max(10, COUNT // 10)),
        "--max-failures",
        "20",
        "--request-timeout",
        "60",
        "--no-color",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-8000:]
    check_nothing_is_left(server, processes, files)
