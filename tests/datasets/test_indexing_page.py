"""The commands of the page on indexing do what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cover.cli import main

PAGE = Path(__file__).parents[2] / "docs/indexing.md"


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    assert [command[0] for command in commands] == ["sandbox", *["index"] * 6]
    for command in commands:
        assert main([*command, "--workers", "0"]) == 0, capsys.readouterr().err
    assert (tmp_path / "ssv2.json").is_file()
    assert not list((tmp_path / "sandbox/manifests").glob(".*"))
