"""The commands and the code of the page on explaining do what it says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cover.cli import main
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

PAGE = (Path(__file__).parents[2] / "docs/explaining.md").read_text(encoding="utf-8")


def make_run(folder: Path) -> None:
    """What training would leave, but for what it learned."""
    heads = (Head("kinetics", ("left", "right")), Head("imagenet", ("cat", "dog", "cup")))
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), heads)
    sets = {"kinetics": {"sampling": "dense@0.1", "views": "1x3"}, "imagenet": {"sampling": "whole", "views": "1x1"}}
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
    assert [command[0] for command in commands] == ["sandbox", "train", "explain", "explain", "explain"]
    assert main([*commands[0], "--workers", "0"]) == 0
    for folder, name in (("kinetics_like", "clip.mp4"), ("imagenet_like", "photo.JPEG")):
        val = Path("sandbox", folder, "val")
        shutil.copy(next(val.rglob(f"*{Path(name).suffix}")), val / name)
    capsys.readouterr()
    for command in commands[2:]:
        assert main(command) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == ["next: cover serve run --page"] * 3
    assert sorted(said.out.splitlines()) == sorted(
        map(str, [*Path("explained/clip.mp4").iterdir(), *Path("right").iterdir(), *Path("photo").iterdir()])
    )
    assert sorted(path.name for path in Path("explained/clip.mp4").iterdir()) == [
        "explanation.json",
        "imagenet.mp4",
        "imagenet.png",
        "kinetics.mp4",
        "kinetics.png",
    ]
    record = {
        name: json.loads(Path(name, "explanation.json").read_text())
        for name in ("explained/clip.mp4", "right", "photo")
    }
    assert record["right"]["heads"]["kinetics"]["class"] == "right"
    assert (list(record["photo"]["heads"]), record["photo"]["method"]) == (["imagenet"], "rollout")
    shutil.copy("sandbox/kinetics_like/val/clip.mp4", "clip.mp4")
    names: dict[str, object] = {}
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, names)
    (result,) = names["found"]  # type: ignore[misc]
    np.testing.assert_allclose(result.heat, record["explained/clip.mp4"]["heads"]["kinetics"]["heat"], atol=2e-6)
