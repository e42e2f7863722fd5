"""The page on studies: its file is a study, and its commands and code do what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cover import config
from cover.cli import main
from cover.experiments.study.study_file import ARMS, Study

PAGE = (Path(__file__).parents[3] / "docs/studies.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def test_the_blocks_in_their_order(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sandbox").symlink_to(sandbox.parent)
    assert [kind for kind, _ in BLOCKS] == ["sh", "yaml", "sh", "python", "sh", "sh", "sh"]
    for kind, text in BLOCKS:
        if kind == "yaml":
            Path("small.yaml").write_text(text, encoding="utf-8")
        elif kind == "python":
            capfd.readouterr()
            exec(text, {})
            lines = capfd.readouterr().out.splitlines()
            assert len(lines) == 6
            assert lines[0].startswith("videos_images against alone on kinetics ")
        else:
            for line in text.splitlines():
                name, *words = shlex.split(line)
                assert name == "cover"
                if words[0] in ("sandbox", "index"):
                    continue  # they are there, and shared by all tests
                assert main(words) == 0, capfd.readouterr().err
    assert {path.name for path in Path("studies/small").iterdir()} >= set(re.findall(r"\| `([a-z]+\.\w+)` \|", PAGE))


def test_every_arm_and_every_indented_part_is_a_study_s(tmp_path: Path) -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(ARMS)
    value = next(text for kind, text in BLOCKS if kind == "yaml")
    for part in re.findall(r"(?:^    .*\n)+", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL), re.MULTILINE):
        text = "\n".join(line.removeprefix("    ") for line in part.splitlines())
        key = text.split(":", maxsplit=1)[0]
        retained = re.sub(rf"^{key}:.*\n(?:  .*\n)*", "", value, flags=re.MULTILINE)
        (tmp_path / "study.yaml").write_text(retained + text, encoding="utf-8")
        assert getattr(config.load(Study, tmp_path / "study.yaml"), key)
