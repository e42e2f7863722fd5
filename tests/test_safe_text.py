"""Names from others neither reach a terminal as commands nor a spreadsheet as formulas."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cover.cli import main
from cover.console import Meter, print_table, say, tell
from cover.model.backbones.conv3d import Conv3dConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.safe_text import csv_line, json_text, printable, read_cell

# The class names of a release that somebody else made.
HOSTILE = (
    "\x1b[31mred\x1b[0m",
    '"><img src=x onerror=alert(1)>',
    "%s{0}",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1+1",
    "'=1+1",
    "comma, semi; tab\t",
    "emoji \U0001f600 ünïcode",
    "new\nline",
    "\u202egnp.exe",
    "\x9b31mC1",
    "\u2028separator",
    "[bold]markup[/bold]",
)
PLAIN = ("emoji \U0001f600 ünïcode", "خط", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "a/b\\c", "it's = fine")


def unsafe(text: str) -> list[str]:
    """The characters of printed text, apart from line feeds, that a terminal would obey."""
    return [letter for letter in text if letter != "\n" and not (letter.isprintable() or letter == "\u200d")]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_one_printable_line(text: str) -> None:
    assert not unsafe(printable(text))
    assert "\n" not in printable(text)


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_do_not_change(text: str) -> None:
    assert printable(text) == text
    assert csv_line([text]) == csv_line([read_cell(text)])
    assert next(csv.reader([csv_line([text])])) == [text]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_texts_come_back_from_json_and_csv(text: str) -> None:
    assert json.loads(json_text({"name": text})) == {"name": text}
    assert not unsafe(json_text(text).replace("\u200c", "").replace("\u200d", "")) or not text.isprintable()
    (cells,) = csv.reader(io.StringIO(csv_line([text, 3]), newline=""))
    assert cells[0].lstrip()[:1] not in ("=", "+", "-", "@")
    assert read_cell(cells[0]) == text


def test_numbers_of_a_csv_do_not_change() -> None:
    assert csv_line([-1.5, None, 0, "-1.5"]) == "-1.5,,0,'-1.5\n"


def test_everything_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    name = "".join(HOSTILE)
    say(name)
    tell(name)
    print_table([name, "b"], [[name, name]], title=name)
    with Meter(name, 1) as meter:
        meter.advance(note=name)
    captured = capsys.readouterr()
    assert not unsafe(captured.out + captured.err)
    assert captured.err == printable(name) + "\n"
    assert main(["predict", f"no{name}", "x.mp4"]) == 2
    captured = capsys.readouterr()
    assert not unsafe(captured.err)
    assert len(captured.err.splitlines()) == 1


@pytest.fixture
def release(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sets = {"=set\x1b[2J": {"sampling": "segments", "views": "1x1"}}
    model = CoVeR(Conv3dConfig(size=16, frames=4, channels=(4, 8)), (Head("=evil", HOSTILE, serves=tuple(sets)),))
    save_release(tmp_path / "release", model, {"frames": 4, "datasets": sets})
    return tmp_path / "release"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "=photo\x1b[31m\n.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("form", ["pretty", "jsonl", "csv"])
def test_predict(release: Path, picture: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    arguments = ["predict", str(release), str(picture), f"{picture}.mp4", "--top", str(len(HOSTILE)), "--format", form]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert not unsafe(captured.err)
    if form != "csv":
        assert not unsafe(captured.out)
        assert len(captured.out.splitlines()) == (2 if form == "jsonl" else 1 + len(HOSTILE))
    if form == "jsonl":
        row: dict[str, Any] = json.loads(captured.out.splitlines()[0])
        assert row["file"] == str(picture)
        assert {name for name, _ in row["heads"]["=evil"]} == set(HOSTILE)


def test_the_rows_of_a_csv_and_their_continuation(release: Path, picture: Path, tmp_path: Path) -> None:
    out, features = tmp_path / "rows.csv", tmp_path / "features.npy"
    arguments = ["predict", str(release), picture.name, "--top", str(len(HOSTILE)), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main(arguments) == 0
        assert main([*arguments[:-2], "--embed", str(features)]) == 0
        before = out.read_bytes()
        assert main(arguments) == 0  # the file has its row already
    assert out.read_bytes() == before
    for path in (out, features.with_suffix(".csv")):
        with path.open(encoding="utf-8", newline="") as file:
            header, row = csv.reader(file)
        assert not [cell for cell in (*header, *row) if cell.lstrip()[:1] in ("=", "+", "-", "@")]
        assert read_cell(row[0]) == picture.name
        if path == out:
            assert set(HOSTILE) <= set(map(read_cell, row))
