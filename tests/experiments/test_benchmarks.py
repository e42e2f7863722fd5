"""The article's tables, with published and measured rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cover.cli import main

ROW = {
    "dataset": "kinetics400",
    "variant": "plain",
    "top1": 0.8123,
    "top1_interval": {"low": 0.80, "high": 0.82},
    "views": "1x3",
    "frames": 8,
    "n_read": 18_903,
    "n_listed": 19_877,
    "checkpoint": "runs/mine",
}


def table(page: str, title: str) -> list[list[str]]:
    """The rows of the table under a heading."""
    part = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_measured_rows_stand_below_the_published_ones_of_their_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ROW, {**ROW, "variant": "shuffled", "top1": 0.1}, {**ROW, "dataset": "ssv2", "top1": None, "map": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps([*rows, {**ROW, "dataset": "tennis7"}]), encoding="utf-8")
    assert main(["report", "--benchmarks", str(tmp_path / "results.json"), "--pretrain", "ImageNet-21k"]) == 0
    page = capsys.readouterr().out
    kinetics = {row[0]: row for row in table(page, "Kinetics-400")}
    assert kinetics["CoVeR"][4] == "87.2"
    assert kinetics["**mine**"][1] == "ImageNet-21k"
    assert "81.2" in kinetics["**mine**"][4]
    assert "18,903 of 19,877" in kinetics["**mine**"][5]
    assert [row[0] for row in table(page, "Kinetics-400")][-1] == "**mine**"
    assert not any("mine" in row[0] for row in table(page, "Something-Something V2"))
    assert table(page, "Other data sets")[0][0] == "**mine**, tennis7"


def test_every_source_of_a_published_row_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--benchmarks"]) == 0
    page = capsys.readouterr().out
    listed = {line[2:].partition(":")[0] for line in page.partition("## Sources")[2].splitlines() if line}
    for title in ("Kinetics-400", "Kinetics-600", "Kinetics-700", "Something-Something V2", "Moments in Time"):
        assert {source for row in table(page, title) for source in row[5].split(", ")} <= listed


def test_the_page_in_the_documentation_is_what_the_command_writes(tmp_path: Path) -> None:
    assert main(["report", "--benchmarks", "--out", str(tmp_path / "page.md")]) == 0
    kept = Path(__file__).parents[2] / "docs/benchmarks.md"
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["{}", "[1]", "[{}]", "no json"])
def test_a_file_of_something_else_is_named(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.json").write_text(content, encoding="utf-8")
    assert main(["report", "--benchmarks", str(tmp_path / "wrong.json")]) == 2
    assert "wrong.json" in capsys.readouterr().err
