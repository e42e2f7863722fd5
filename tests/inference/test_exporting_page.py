"""The commands and the code of the page on exporting do what it says, and what the code prints is what `cover predict`
predicts.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cover.cli import main
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

PAGE = (Path(__file__).parents[2] / "docs/exporting.md").read_text(encoding="utf-8")
ALONE = '\nassert not {"torch", "cover"} & set(sys.modules)\n'


def make_run(folder: Path, *heads: Head, time: str = "rotary") -> None:
    """What training would leave, but for what it learned."""
    model = CoVeR(TimeSformerConfig(width=32, depth=1, attention_heads=2, patch=8, size=24, frames=4, time=time), heads)  # type: ignore[arg-type]
    ways = {"kinetics": "dense@0.3", "moments": "whole"}
    sets = {head.name: {"sampling": ways.get(head.name, "segments"), "views": "1x3"} for head in heads}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    save_release(folder, model, {"step": 1, "frames": 4, "datasets": sets})


def test_page(
    tmp_path: Path, sandbox: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    classes = tuple(f"class {number}" for number in range(8))
    make_run(Path("run"), *(Head(name, classes) for name in ("kinetics", "moments", "imagenet")))
    make_run(Path("imported"), Head("kinetics400", classes), time="additive")
    commands = [
        shlex.split(line)[1:]
        for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
        for line in block.splitlines()
    ]
    assert [command[:4:3] for command in commands] == [
        ["export", way] for way in ("onnx", "onnx", "onnx", "torch", "transformers")
    ]
    for command in commands:
        assert main(command) == 0, capfd.readouterr().err
    example, program = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 40
    Path("example.py").write_text(example + ALONE, encoding="utf-8")
    for clip in sorted((sandbox.parent / "kinetics_like/val").glob("*.mp4"))[:2]:
        lines = [line.split("\t") for line in run("example.py", "model.onnx", str(clip)).splitlines()]
        capfd.readouterr()
        assert main(["predict", "run", str(clip), "--views", "1x1", "--json", "-", "--workers", "0"]) == 0
        (row,) = json.loads(capfd.readouterr().out)
        for head, top in row["heads"].items():
            ours = [(name, float(share)) for of, name, share in lines if of == head]
            assert [name for name, _ in ours] == [name for name, _ in top]
            assert [share for _, share in ours] == pytest.approx([share for _, share in top], abs=1e-2)
        assert len({share for top in row["heads"].values() for _, share in top}) >= 10  # no two heads say the same
    names: dict[str, object] = {}
    exec(program, names)
    assert names["probabilities"]["kinetics"].shape == (2, 8)  # type: ignore[index]


def test_the_program_on_files_without_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare stream, whose frames have none, and a file without a picture end it with a line; some frames without are
    left out.
    """
    monkeypatch.chdir(tmp_path)
    make_run(Path("run"), Head("moments", ("a", "b")))
    assert main(["export", "run", "--format", "onnx", "--out", "model.onnx"]) == 0
    example, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    Path("example.py").write_text(example, encoding="utf-8")
    write_video("bare.h264")
    write_sound("sound.wav")
    for name in ("bare.h264", "sound.wav"):
        done = subprocess.run(
            [sys.executable, "example.py", "model.onnx", name], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{name}: has no frame with a time\n")
    write_video("clip.mp4")
    lost = example.replace("container.decode(stream)", "[*container.decode(stream), SimpleNamespace(pts=None)]")
    assert lost != example
    Path("lost.py").write_text(f"from types import SimpleNamespace\n{lost}", encoding="utf-8")
    assert run("lost.py", "model.onnx", "clip.mp4") == run("example.py", "model.onnx", "clip.mp4")


def write_video(name: str) -> None:
    with av.open(name, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = 64, 48
        for pixels in np.random.default_rng(0).integers(0, 256, (6, 48, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_sound(name: str) -> None:
    with wave.open(name, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
