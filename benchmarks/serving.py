"""Throughput, latency and memory of a server: with each engine, and with and without shared forward passes.

    python benchmarks/serving.py                                # one minute for each server, in turns of 15 s
    python benchmarks/serving.py --seconds 300 --clients 16 --json serving.json
    python benchmarks/serving.py --servers eager onnx-int8

It starts several servers, `cover serve`, for one checkpoint (S/16 at 112, clips of 8 frames, random weights). Clients
send clips and images without a pause to one server at a time, while the others are idle. Times are those of whole
requests on the loopback interface. Memory is that of the server and its processes, as the proportional set size, in
which shared pages count once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _clips import KINDS, make_clip
from _measure import show, where, write

from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

CLASSES, FRAMES, SIZE = 400, 8, 112
ALONE = ["--pack-frames", "1", "--wait-ms", "0"]  # every file in a forward pass of its own
SERVERS = {
    "eager": [],
    "eager, alone": ALONE,
    "onnx": ["--engine", "onnx"],
    "onnx-int8": ["--engine", "onnx-int8"],
    "onnx-int8, alone": ["--engine", "onnx-int8", *ALONE],
}
PIECE_S = 15.0


@dataclass
class Server:
    """A running server and its measurements."""

    process: subprocess.Popen[str]
    port: int
    seconds: float = 0.0
    times: dict[str, list[float]] = field(default_factory=lambda: {"clip": [], "image": []})
    errors: dict[str, int] = field(default_factory=dict)
    megabytes: list[float] = field(default_factory=list)


def make_release(folder: Path) -> Path:
    """S/16 with a head for clips sampled densely, one for segments and one for images."""
    heads = tuple(Head(name, tuple(map(str, range(CLASSES)))) for name in ("kinetics", "ssv2", "imagenet"))
    sampling = {"kinetics": "dense", "ssv2": "segments", "imagenet": "segments"}
    sets = {name: {"sampling": how, "views": "1x1"} for name, how in sampling.items()}
    model = CoVeR(named_config("S/16", size=SIZE, frames=FRAMES), heads)
    save_release(folder, model, {"step": 0, "frames": FRAMES, "datasets": sets})
    return folder


def make_files(folder: Path, count: int) -> dict[str, list[bytes]]:
    """`count` clips of 320 x 240 and as many photographs of 640 x 480."""
    kind = KINDS["320x240 h264"]
    clips = [make_clip(folder / f"{number}.mp4", kind, number).read_bytes() for number in range(count)]
    images = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
        images.append((folder / f"{number}.jpg").read_bytes())
    return {"clip": clips, "image": images}


@contextmanager
def started(release: Path, folder: Path, options: list[str]) -> Iterator[Server]:
    """A `cover serve` of a release on a free port."""
    where_to = ["--port", "0", "--device", "cpu", "--spool", str(folder)]
    command = [sys.executable, "-m", "cover", "serve", str(release), *where_to, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            yield Server(process, int(process.stdout.readline().rpartition(":")[2]))
        finally:
            process.terminate()


# --- load -------------------------------------------------------------------------------------------------------------


def load(server: Server, files: dict[str, list[bytes]], clients: int, seconds: float) -> None:
    """Let `clients` threads send one file after the other: three clips, then three images, and so on."""
    until, lock = time.monotonic() + seconds, threading.Lock()

    def client(number: int) -> None:
        turn = number
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as line:
            while time.monotonic() < until:
                kind = ("clip", "image")[turn // 3 % 2]
                began = time.monotonic()
                status = send(line, files[kind][turn % len(files[kind])])
                with lock:
                    if status == "200":
                        server.times[kind].append(time.monotonic() - began)
                    else:
                        server.errors[status] = server.errors.get(status, 0) + 1
                turn += 1

    began = time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    server.seconds += time.monotonic() - began
    server.megabytes.append(memory(server.process.pid))


def send(line: http.client.HTTPConnection, data: bytes) -> str:
    """The status of a request as text, or the name of the error."""
    try:
        line.request("POST", "/v1/predict", data, {"content-type": "application/octet-stream"})
        response = line.getresponse()
        response.read()
        return str(response.status)
    except (OSError, http.client.HTTPException) as error:
        line.close()
        return type(error).__name__


def memory(pid: int) -> float:
    """The MB of a process and all its descendants."""
    rows = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    parents = dict(zip(map(int, rows[::2]), map(int, rows[1::2]), strict=True))
    family, children = set[int](), {pid}
    while children:
        family |= children
        children = {each for each, parent in parents.items() if parent in children}
    return sum(_proportional_mb(each) for each in family)


def _proportional_mb(pid: int) -> float:
    """The proportional set size of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


# --- the report -------------------------------------------------------------------------------------------------------


def rate_of(server: Server) -> float:
    """The requests that a server answered in a second."""
    return sum(map(len, server.times.values())) / server.seconds


def row(name: str, server: Server, first: Server) -> list[str]:
    """The row of the table of a server: requests per second, also as a multiple of the first server's, and the rest."""
    cells = [name, f"{rate_of(server):.1f}", f"{rate_of(server) / rate_of(first):.2f}"]
    for times in server.times.values():
        cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
        cells.append(" / ".join(f"{1e3 * cuts[percent - 1]:.0f}" for percent in (50, 95, 99)))
    errors = json.dumps(server.errors) if server.errors else "0"
    return [*cells, errors, f"{server.megabytes[0]:.0f} to {server.megabytes[-1]:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="seconds of load for each server")
    parser.add_argument("--clients", type=int, default=8, help="clients at the same time")
    parser.add_argument("--files", type=int, default=3, help="number of clips, and of images")
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=list(SERVERS), metavar="SERVER")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    metadata = where(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        release, files = make_release(folder / "release"), make_files(folder, args.files)
        servers = {name: stack.enter_context(started(release, folder, SERVERS[name])) for name in args.servers}
        for server in servers.values():
            load(server, files, args.clients, min(5.0, args.seconds))  # a warm-up that does not count
            server.seconds, server.errors, server.megabytes = 0.0, {}, []
            server.times = {kind: [] for kind in files}
        pieces = max(1, round(args.seconds / PIECE_S))
        for number in range(pieces):
            for server in list(servers.values())[:: 1 if number % 2 else -1]:
                load(server, files, args.clients, args.seconds / pieces)
    machine = f"{metadata['date']}, {metadata['device']}, {metadata['threads']} threads"
    title = f"{machine}, {args.clients} clients, {args.seconds:g} s each"
    columns = [
        "server",
        "files/s",
        "times the first",
        "clip, p50 / p95 / p99 ms",
        "image",
        "errors",
        "MB, first to last piece",
    ]
    first = next(iter(servers.values()))
    show(title, columns, [row(name, server, first) for name, server in servers.items()])
    facts = {
        name: {key: value for key, value in vars(server).items() if key not in ("process", "port")}
        for name, server in servers.items()
    }
    write({**metadata, "clients": args.clients, "servers": facts}, args.json)


if __name__ == "__main__":
    main()
