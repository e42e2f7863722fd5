"""The commands and the code of the page on exporting do what it says, and what the code prints is what `cover predict` predicts."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cover.cli import main
from cover.model.timesformer import Head, ModelConfig, TimeSformer
from cover.model.weights import save_release

PAGE = (Path(__file__).parents[2] / "docs/exporting.md").read_text(encoding="utf-8")
ALONE = '\nassert not {"torch", "cover"} & set(sys.modules)\n'


def make_run(folder: Path, *heads: Head, time: str = "rotary") -> None:
    """What training would leave, but for what it learned."""
    model = TimeSformer(ModelConfig(width=32, depth=1, attention_heads=2, patch=8, size=24, frames=4, time=time), heads)  # type: ignore[arg-type]
    ways = {"kinetics": "dense@0.3", "moments": "whole"}
    sets = {head.name: {"sampling": ways.get(head.name, "segments"), "views": "1x3"} for head in heads}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    save_release(folder, model, {"step": 1, "frames": 4, "datasets": sets})


def test_page(tmp_path: Path, sandbox: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    classes = tuple(f"class {number}" for number in range(8))
    make_run(Path("run"), *(Head(name, classes) for name in ("kinetics", "moments", "imagenet")))
    make_run(Path("imported"), Head("kinetics400", classes), time="additive")
    commands = [shlex.split(line)[1:] for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert [command[:4:3] for command in commands] == [["export", way] for way in ("onnx", "onnx", "onnx", "torch", "transformers")]
    for command in commands:
        assert main(command) == 0, capfd.readouterr().err
    example, program = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 40
    Path("example.py").write_text(example + ALONE, encoding="utf-8")
    for clip in sorted((sandbox.parent / "kinetics_like/val").glob("*.mp4"))[:2]:
        told = [line.split("\t") for line in run("example.py", "model.onnx", str(clip)).splitlines()]
        capfd.readouterr()
        assert main(["predict", "run", str(clip), "--views", "1x1", "--json", "-", "--workers", "0"]) == 0
        (row,) = json.loads(capfd.readouterr().out)
        for head, top in row["heads"].items():
            ours = [(name, float(share)) for of, name, share in told if of == head]
            assert [name for name, _ in ours] == [name for name, _ in top]
            assert [share for _, share in ours] == pytest.approx([share for _, share in top], abs=1e-2)
        assert len({share for top in row["heads"].values() for _, share in top}) >= 10  # no two heads say the same
    names: dict[str, object] = {}
    exec(program, names)
    assert names["probabilities"]["kinetics"].shape == (2, 8)  # type: ignore[index]


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
