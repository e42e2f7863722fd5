"""The commands of the page on serving do what it says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.serve.middleware import Limits
from cover.serve.server import KEEP_ALIVE_S

pytest.importorskip(
    "uvicorn", reason="the extra `serve` is not installed: pip install -c constraints.txt -e '.[serve]'"
)
PAGE = Path(__file__).parents[2] / "docs/serving.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    heads = (Head("ssv2", ("up", "down")), Head("imagenet", tuple("abcdefg")))
    sets = {"ssv2": {"sampling": "segments", "views": "1x3"}, "imagenet": {"sampling": "whole", "views": "1x1"}}
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), heads)
    for head in heads:
        model.zero_head(head.name)
    save_release(tmp_path / "runs" / "cotrain", model, {"step": 1, "frames": 2, "datasets": sets})
    Image.new("RGB", (60, 40)).save(tmp_path / "photo.jpg")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return tmp_path


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("openssl")), reason="the page's commands need curl and openssl"
)
def test_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    text = PAGE.read_text(encoding="utf-8").replace("8000", port)
    (start,), (clip, photo, timeline), (make_key,) = (
        block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    )
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    command = [sys.executable, "-m", *shlex.split(start), "--spool", str(folder), "--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as server:
        try:
            assert server.stdout
            assert server.stdout.readline() == f"http://127.0.0.1:{port}\n"
            assert {head: len(item) for head, item in typed(clip)["heads"].items()} == {"ssv2": 2, "imagenet": 3}
            assert list(typed(photo)["heads"]) == ["imagenet"]
            assert [part["end"] for part in typed(timeline)["timeline"]] == [0.5, 1, 1.5, 2]
            assert executed(code) == "{'ssv2': 'up', 'imagenet': 'a'}\n"
            for route in re.findall(r"GET (/\S*)`", text):
                done = subprocess.run(
                    ["curl", "-sf", f"http://127.0.0.1:{port}{route}"], capture_output=True, check=False
                )
                assert (done.returncode, bool(done.stdout)) == (0, True), route
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
    subprocess.run(make_key, shell=True, check=True)
    assert len((folder / "key").read_text().strip()) == 48


def test_limits_without_an_option() -> None:
    text, limits = PAGE.read_text(encoding="utf-8"), Limits()
    assert f"| explanations under way, of those | {limits.explanations} | 429 |" in text
    assert f"| connections at once | {limits.connections} | 503 |" in text
    assert f"| first line and headers of a request | {limits.head >> 10} KiB | 400 |" in text
    assert f"| a connection between two requests | {KEEP_ALIVE_S} s | closed |" in text


def typed(command: str) -> dict[str, object]:
    done = subprocess.run([*shlex.split(command), "-sS"], capture_output=True, text=True, check=True)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def executed(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    return out.getvalue()
