"""Fixtures that type commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cover.cli import main

Cover = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cover(capfd: pytest.CaptureFixture[str]) -> Cover:
    """Types a command: cover("train", "recipe.yaml") -> exit code, stdout, stderr."""

    def typed(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return typed


@pytest.fixture
def refused(cover: Cover) -> Callable[..., str]:
    """Types a command that must be refused in one line; returns that line."""

    def typed(*arguments: object) -> str:
        code, out, err = cover(*arguments)
        assert (code, out) == (2, ""), err
        (line,) = err.splitlines()
        assert line.startswith("cover")
        return line

    return typed


@pytest.fixture
def recipe(tmp_path: Path, sandbox: Path) -> Path:
    """A recipe of two steps that writes into a folder with a space in its name."""
    file = tmp_path / "recipe.yaml"
    data = f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 2}}"
    file.write_text(f"{data}\nout: {tmp_path / 'a run'}\nsteps: 2\nbatch: 4\nworkers: 0\n")
    return file
