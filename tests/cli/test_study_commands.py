"""transfer, study: what they refuse and print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Cover = Callable[..., tuple[int, str, str]]


def test_transfer_refuses(trained: Path, refused: Callable[..., str]) -> None:
    target = ["--target", "ssv2", "--epochs", "1"]
    assert '"run": write NAME=CHECKPOINT' in refused("transfer", "--source", "run", *target)
    assert "a is given twice" in refused("transfer", "--source", f"a={trained}", "--source", f"a={trained}", *target)


def test_a_study_that_is_wrong(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "which study?" in refused("study")
    assert "absent.yaml: cannot be read" in refused("study", tmp_path / "absent.yaml")
    assert 'did you mean "targets"' in refused("study", Path("recipes/studies/sandbox.yaml"), "--target", "[a]")
    assert "margin: expected float" in refused("study", Path("recipes/studies/sandbox.yaml"), "--margin", "wide")


def test_study_lists_every_key(cover: Cover) -> None:
    code, out, err = cover("study", "--keys")
    assert (code, err) == (0, "")
    assert "sizes.NAME.epochs: float (required)" in out
