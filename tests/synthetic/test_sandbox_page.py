"""docs/sandbox.md: its commands run, and its table has the settings of the code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from cover.cli import main
from cover.synthetic.content import CLASSES
from cover.synthetic.settings import DIALS, Settings, dials

PAGE = (Path(__file__).parents[2] / "docs/sandbox.md").read_text(encoding="utf-8")
TINY = ["--size", "0.001", "--val", "1", "--workers", "0"]


def table(first: str) -> dict[str, list[str]]:
    """The rows of the table whose first column is headed `first`: the cells by the name in the first one."""
    (body,) = re.findall(rf"^\| {first} \|.*\n\|[-:| ]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in body.splitlines()]
    return {row[0].strip("` "): row[1:] for row in rows}


def test_the_counts_are_those_of_the_code() -> None:
    rows = table("data set")
    assert set(rows) == set(CLASSES)
    for name, (classes, _, counts, _) in rows.items():
        assert int(classes.split()[0]) == len(CLASSES[name]) or name == "moments"
        assert tuple(map(int, counts.split(", "))) == getattr(Settings(), name)


def test_its_commands_write_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        assert main([*shlex.split(line)[1:], *TINY]) == 0
    settings = {path.parent.name: json.loads(path.read_text())["settings"] for path in tmp_path.glob("*/sandbox.json")}
    values = {name: {dial: values[dial] for dial in DIALS} for name, values in settings.items()}
    assert values == {
        "sandbox": dials("medium"),
        "harder": dials("hard"),
        "mine": dials("medium", noise=0.1, occlusion=0.5),
    }
    assert settings["mine"]["seed"] == 1
    assert all(values["val"] == 1 for values in settings.values())
