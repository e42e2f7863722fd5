"""Standard streams that are closed, full or no longer read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cover.cli import main
from cover.model.release import steps_saved
from cover.streams import standard_streams

COVER = [sys.executable, "-m", "cover"]
LONG, SHORT = [*COVER, "train", "--keys"], [*COVER, "--help"]  # with torch, and without


def shell(redirected: str, command: list[str] = LONG) -> subprocess.CompletedProcess[str]:
    """A command whose streams a shell redirects."""
    line = ["bash", "-c", f'set -o pipefail; "$@" {redirected}', "bash", *command]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_a_full_stdout_is_one_line() -> None:
    for command in (LONG, SHORT):
        ended = shell(">/dev/full", command)
        assert ended.returncode == 2
        assert "stdout: cannot be written: No space left on device" in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_a_reader_that_ends_is_no_error() -> None:
    ended = shell("| head -1", SHORT)
    assert ended.stderr == ""
    assert ended.stdout.count("\n") == 1
    reader, writer = os.pipe()
    os.close(reader)
    unread = subprocess.run(LONG, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    assert (unread.returncode, unread.stderr) == (141, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_a_closed_stream_is_not_missed(closed: str) -> None:
    ended = shell(closed, SHORT)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "" if ">&- " in closed or closed == ">&-" else ended.stdout.count("\n") > 20


def test_a_file_does_not_take_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "from cover.streams import standard_streams\nimport os, sys\nwith standard_streams():\n"
        f"    file = open({str(tmp_path / 'log')!r}, 'w')\n    print('a result')\n    os.write(1, b'from a library')\n"
        "    file.write(str(file.fileno()))\n"
    )
    assert shell(">&-", [sys.executable, "-c", code]).returncode == 0
    assert (tmp_path / "log").read_text() not in ("1", "")
    assert "library" not in (tmp_path / "log").read_text()


def test_training_goes_on_without_its_messages(
    make_set: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = make_set({f"{number}.png": ("left", "right")[number % 2] for number in range(4)})
    recipe = tmp_path / "recipe.yaml"
    text = f"data: {{sets: [mine], catalog: {catalog}}}\nout: {tmp_path / 'run'}\nsteps: 2\nbatch: 2\nworkers: 0\n"
    recipe.write_text(text, encoding="utf-8")
    reader, writer = os.pipe()
    os.close(reader)  # as in `cover train … 2>&1 | head -1`
    for name, place in (("full", "/dev/full"), ("unread", writer)):
        with open(place, "w") as stderr, monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", stderr)
            assert main(["train", str(recipe), "--out", str(tmp_path / name)]) == 0
            with standard_streams():
                sys.stderr.flush()  # nothing is left that could fail when the process ends
        assert steps_saved(tmp_path / name)
