"""The command line as a whole: help, exit codes, unknown arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cover import __version__

Cover = Callable[..., tuple[int, str, str]]
WORDS = (
    "sandbox",
    "index",
    "overlap",
    "labels",
    "prepare",
    "fit",
    "train",
    "add",
    "plan",
    "describe",
    "starts",
    "evaluate",
    "report",
    "transfer",
    "study",
    "predict",
    "filter",
    "explain",
    "serve",
    "import-weights",
    "export",
    "push",
    "pull",
    "doctor",
    "demo",
)


@pytest.mark.parametrize("command", WORDS)
def test_help_shows_an_example(cover: Cover, command: str) -> None:
    code, out, err = cover(command, "--help")
    assert (code, err) == (0, "")
    assert f"example:\n  cover {command} " in out


def test_help_lists_every_command_and_train_every_key(cover: Cover) -> None:
    code, out, _ = cover("--help")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "] == list(WORDS)
    assert cover("--version") == (0, f"cover {__version__}\n", "")
    code, out, err = cover("train", "--keys")
    assert (code, err) == (0, "")
    assert any(
        line.startswith("optimizer.lr: float = 0.001") and "peak learning rate" in line for line in out.splitlines()
    )


def test_no_command_is_the_help_and_a_wrong_one_is_named(cover: Cover, refused: Callable[..., str]) -> None:
    assert cover() == cover("--help")
    assert 'trian; did you mean "train"?' in refused("trian")
    assert "did you mean" not in refused("xyz")


def test_a_wrong_option_is_answered_with_the_right_one(refused: Callable[..., str]) -> None:
    assert '--ot; did you mean "--out"?' in refused("fit", "clips", "--ot", "runs/mine")
    assert '--foldz=3; did you mean "--folds"?' in refused("fit", "clips", "--foldz=3")
    assert "did you mean" not in refused("fit", "clips", "--colour-of-the-sky", "blue")


@pytest.mark.parametrize("command", WORDS)
def test_an_unknown_argument(refused: Callable[..., str], command: str, tmp_path: Path) -> None:
    needed = {
        "sandbox": [tmp_path],
        "predict": ["a", "b"],
        "explain": ["a", "b"],
        "filter": ["a", "b", "--out", "c"],
        "doctor": [],
        "starts": [],
        "demo": [],
        "import-weights": ["a", "--out", "b"],
        "prepare": ["a", "--out", "b"],
        "add": ["a", "--data", "b"],
        "transfer": ["--source", "a=b", "--target", "c", "--epochs", "1"],
        "export": ["a", "--format", "transformers", "--out", "b"],
    }
    line = refused(command, *needed.get(command, ["a"]), "--colour-of-the-sky", "blue")
    assert command in ("train", "add", "plan", "study") or "--colour-of-the-sky" in line


def test_no_traceback_from_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cover", "evaluate", str(tmp_path / "nowhere")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"cover evaluate: {tmp_path / 'nowhere'}: does not exist; give a run folder, a checkpoint or a release"
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\na: 2\n", 2), ("a:\n\tb: 1\n", 2), ("- a\n", 1), ("a: &a [*a]\n", 1), ("a: [\n", 2)],
    ids=repr,
)
@pytest.mark.parametrize("command", ["train", "index", "study"])
def test_a_recipe_a_catalog_and_a_study_are_read_alike(
    refused: Callable[..., str], tmp_path: Path, command: str, text: str, line: int
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert f"{tmp_path / 'mine.yaml'}: line {line}" in refused(command, tmp_path / "mine.yaml")


def test_an_interruption_is_one_line_and_its_exit_code(cover: Cover, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cover.config.load", interrupt)
    assert cover("train", "mine.yaml") == (130, "", "cover train: interrupted\n")
