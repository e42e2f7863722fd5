"""The page of accuracies, published and measured."""

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


def test_measured_rows_have_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROW, {**ROW, "variant": "shuffled", "top1": 0.1}, {**ROW, "dataset": "ssv2", "top1": None, "map": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps([*rows, {**ROW, "dataset": "tennis7"}]), encoding="utf-8")
    assert main(["report", "--benchmarks", str(tmp_path / "results.json"), "--pretrain", "ImageNet-21k"]) == 0
    kinetics, tennis = table(capsys.readouterr().out, "Measured")
    assert kinetics == ["mine", "kinetics400", "ImageNet-21k", "", "1x3, 8 frames", kinetics[5], "18,903 of 19,877"]
    assert "81.2" in kinetics[5]
    assert tennis[:2] == ["mine", "tennis7"]


def test_published_figures_are_in_the_column_of_their_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--benchmarks"]) == 0
    page = capsys.readouterr().out
    assert "## Measured" not in page
    rows = table(page, "Published")
    one_model, for_each = (row[2:8] for row in rows if row[0].startswith("CoVeR"))
    assert one_model == ["1x3", "87.2", "", "", "70.9", "46.1"]
    assert for_each == ["1x3", "", "87.9", "79.8", "", ""]
    listed = {line[2:].partition(":")[0] for line in page.partition("## Sources")[2].splitlines() if line}
    assert {source for row in rows for source in row[8].split(", ")} <= listed


def test_the_page_in_the_documentation_is_what_the_command_writes(tmp_path: Path) -> None:
    assert main(["report", "--benchmarks", "--out", str(tmp_path / "page.md")]) == 0
    kept = Path(__file__).parents[2] / "docs/benchmarks.md"
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["{}", "[1]", "[{}]", "no json"])
def test_a_file_of_something_else_is_named(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.json").write_text(content, encoding="utf-8")
    assert main(["report", "--benchmarks", str(tmp_path / "wrong.json")]) == 2
    assert "wrong.json" in capsys.readouterr().err
