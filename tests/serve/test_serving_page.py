"""The commands of the page on serving do what it says."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from commands import Command
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.model.text import TextConfig, TextNetwork, save_text
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
    for name in ("cotrain", "first", "second"):
        save_release(tmp_path / "runs" / name, model, {"step": 1, "frames": 2, "datasets": sets})
    save_release(tmp_path / "runs" / "clip", CoVeR(model.config), {"step": 0, "frames": 2})
    words = ["<pad>", "<unk>", "archery", "bowling"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.save(str(tmp_path / "words.json"))
    text = TextConfig("clip", 16, 1, 2, 24, len(words), 16, 12, 16, True, "gelu_quick", 1e-5)
    save_text(tmp_path / "runs" / "clip", TextNetwork(text), tmp_path / "words.json")
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
    (start,), (clip, photo, timeline), (compare,), (classes,), (make_key,) = (
        block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    )
    # One server for the whole page: its first command, with the models of its second and one with a text network.
    common = shlex.split(start)[3:]
    assert shlex.split(compare)[-len(common) :] == common
    start = shlex.join([*shlex.split(start)[:3], *shlex.split(compare)[2 : -len(common)], "runs/clip", *common])
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    name, *words = shlex.split(start)
    assert name == "cover"
    with Command(*words, "--spool", folder, "--workers", "1") as server:
        try:
            assert server.stdout.readline() == f"http://127.0.0.1:{port}\n"
            assert {head: len(item) for head, item in typed(clip)["heads"].items()} == {"ssv2": 2, "imagenet": 3}
            assert list(typed(photo)["heads"]) == ["imagenet"]
            assert [part["end"] for part in typed(timeline)["timeline"]] == [0.5, 1, 1.5, 2]
            assert executed(code) == "{'ssv2': 'up', 'imagenet': 'a'}\n"
            assert list(typed(classes)["heads"]) == ["classes"]
            done = subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}/v1/models"], capture_output=True, check=True)
            assert [each["name"] for each in json.loads(done.stdout)] == ["cotrain", "first", "second", "clip"]
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
    assert f"| predictions under way ({limits.explanations} of them explanations) |" in text
    assert f"{limits.connections} connections at once, a head above {limits.head >> 10} KiB" in text
    assert f"A silent connection is closed after {KEEP_ALIVE_S} s." in text


def typed(command: str) -> dict[str, object]:
    done = subprocess.run([*shlex.split(command), "-sS"], capture_output=True, text=True, check=True)
    result: dict[str, object] = json.loads(done.stdout)
    return result


def executed(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    return out.getvalue()
