"""Two commands never write into one folder, and a crash leaves no lock behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cover.cli import main
from cover.errors import UserError
from cover.locks import LOCK, alone_in

HOLD = "from pathlib import Path; import sys; from cover.locks import alone_in\nwith alone_in(Path(sys.argv[1])): {}"
PRINT_AND_WAIT = "print('held', flush=True); input()"


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has locked `folder`."""
    command = [sys.executable, "-c", HOLD.format(PRINT_AND_WAIT), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.kill()


def test_a_locked_folder_is_refused_with_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with held(folder) as other, pytest.raises(UserError) as refused, alone_in(folder, "--out"):
        pass
    assert str(refused.value).startswith(f"--out: {folder}: another command is writing there (process {other.pid} on ")
    with alone_in(folder), alone_in(tmp_path / "new/../new/out"):  # a command and the run that is a part of it
        assert str(os.getpid()) in (folder / LOCK).read_text(encoding="utf-8")


def test_a_crash_ends_the_lock(tmp_path: Path) -> None:
    with held(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with alone_in(tmp_path):
            pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"out: .*/file: cannot be written"), alone_in(tmp_path / "file"):
        pass


@pytest.fixture
def recipe(make_set: Callable[..., Path], tmp_path: Path) -> Path:
    catalog = make_set({f"{number}.png": ("left", "right")[number % 2] for number in range(4)})
    path = tmp_path / "recipe.yaml"
    text = f"data: {{sets: [mine], catalog: {catalog}}}\nout: {tmp_path / 'run'}\nsteps: 2\nbatch: 2\nworkers: 0\n"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_command_writes_into_a_locked_folder(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    catalog, run = str(tmp_path / "catalog.yaml"), tmp_path / "run"
    assert main(["train", str(recipe)]) == 0
    rows = (run / "log.jsonl").read_bytes()
    commands = {
        run: ["train", str(recipe), "--resume"],
        tmp_path / "other": ["train", str(recipe), "--out", str(tmp_path / "other")],
        tmp_path / "head": ["add", str(run), "--data", "mine", "--catalog", catalog, "--out", str(tmp_path / "head")],
        tmp_path / "fast": ["prepare", catalog, "--out", str(tmp_path / "fast")],
        tmp_path / "demo": ["demo", "--out", str(tmp_path / "demo"), "--scale", "0.01"],
        tmp_path / "sandbox": ["sandbox", str(tmp_path / "sandbox"), "--size", "0.01"],
        run / "folds": ["evaluate", str(run), "--folds", "2", "--catalog", catalog],
    }
    for folder, command in commands.items():
        with held(folder):
            assert main(command) == 2, command
        assert f"{folder}: another command is writing there" in capfd.readouterr().err
    assert (run / "log.jsonl").read_bytes() == rows
