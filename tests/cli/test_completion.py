"""`cover --print-completion bash`: bash completes commands, options, choices and keys of a recipe from its script."""

from __future__ import annotations

import builtins
import subprocess
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

Cover = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    from cover.cli import main

    file = tmp_path_factory.mktemp("completion") / "cover.bash"
    with file.open("w") as output, redirect_stdout(output), pytest.raises(SystemExit) as end:
        main(["--print-completion", "bash"])
    assert end.value.code == 0
    return file


def completed(script: Path, *words: str, folder: Path | None = None) -> set[str]:
    """What bash offers for the last of the words."""
    ask = (
        f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        "$(complete -p cover | grep -o '_shtab[a-z_]*' | head -n 1); printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", ask, "bash", *words], capture_output=True, text=True, check=True, timeout=20, cwd=folder
    )
    return {word.strip() for word in done.stdout.splitlines()}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["cover", "ev"], ["evaluate"]),
        (["cover", "train", "--optimizer.head"], ["--optimizer.head_lr"]),
        (["cover", "export", "--for"], ["--format"]),
        (["cover", "export", "--format", "t"], ["torch", "transformers"]),
        (["cover", "evaluate", "--shuf"], ["--shuffle-frames"]),
    ],
    ids=" ".join,
)
def test_bash_completes(script: Path, words: list[str], wanted: list[str]) -> None:
    assert sorted(completed(script, *words)) == wanted


def test_bash_completes_files(script: Path, tmp_path: Path) -> None:
    (tmp_path / "cotrain.yaml").touch()
    assert completed(script, "cover", "train", "cotr", folder=tmp_path) == {"cotrain.yaml"}


def test_without_shtab_the_line_says_what_to_install(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "shtab":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "pip install -c constraints.txt -e '.[completion]'" in refused("--print-completion", "bash")
