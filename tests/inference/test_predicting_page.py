"""The commands and the code of the page on predicting do what it says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from glob import glob
from pathlib import Path

import numpy as np
import pytest
import torch

from cover.cli import main
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

PAGE = (Path(__file__).parents[2] / "docs/predicting.md").read_text(encoding="utf-8")


def make_run(folder: Path) -> None:
    """What training would leave, but for what it learned."""
    heads = (Head("kinetics", ("left", "right")), Head("imagenet", ("cat", "dog", "cup")))
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), heads)
    sets = {head.name: {"sampling": "dense@0.1", "views": "1x3"} for head in heads}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    save_release(folder, model, {"step": 1, "frames": 4, "datasets": sets})


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    commands = [
        shlex.split(line)[1:]
        for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
        for line in block.splitlines()
    ]
    assert [command[0] for command in commands] == ["sandbox", "train", *["predict"] * 10]
    for command in commands:
        if "clip.mp4" in command and not Path("clip.mp4").exists():
            shutil.copy(sorted(glob("sandbox/kinetics_like/val/*.mp4"))[0], "clip.mp4")
        if command[0] != "train":  # the run is there
            words = [name for word in command for name in (sorted(glob(word)) or [word])]
            assert main([*words, *["--workers", "0"]]) == 0, capsys.readouterr().err
    capsys.readouterr()
    rows = [json.loads(line) for line in Path("timeline.jsonl").read_text().splitlines()]
    assert all(len(row["timeline"]["kinetics"]) > 2 for row in rows)
    assert len(np.load("features.npy")) == len(Path("features.csv").read_text().splitlines()) - 1 > 0
    assert "-->" in Path("clip.srt").read_text()
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, names)
