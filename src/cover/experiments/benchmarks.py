"""The article's tables, with the published rows of `published.yaml` and rows measured by `cover evaluate --json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cover.errors import UserError
from cover.evaluation.statistics import with_interval
from cover.model.release import trained_on
from cover.yaml_files import read_yaml, resolve

PUBLISHED = Path(__file__).with_name("published.yaml")
NEEDED = ("dataset", "variant", "top1", "views", "n_read", "n_listed", "checkpoint", "frames")
COLUMNS = ("model", "pre-train", "fine-tune", "views", "top-1 %", "source, or read of listed")

Measured = Mapping[str, Any]  # a row of `cover evaluate --json`


def read_measured(paths: Iterable[Path]) -> list[Measured]:
    """The plain results with a top-1 in files of `cover evaluate --json`. Raises `UserError`, which names the file."""
    rows: list[Measured] = []
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from None
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise UserError(f"{path}: no list of results; write it with cover evaluate --json")
        for number, row in enumerate(content):
            missing = [key for key in NEEDED if key not in row and not (key == "top1" and "map" in row)]
            if missing:
                raise UserError(f"{path}: result {number} has no {missing[0]}; write it with cover evaluate --json")
            if row["variant"] == "plain" and row.get("top1") is not None:
                rows.append(row)
    return rows


def benchmark_page(measured: Sequence[Measured], pretrained: str = "") -> str:
    """The tables as Markdown. `pretrained`: the column pre-train of measured rows."""
    published = resolve(read_yaml(PUBLISHED))
    of_set: dict[str, list[Measured]] = {}
    for row in measured:
        of_set.setdefault(_set_of(row["dataset"], published["sets"]), []).append(row)
    parts = [
        "# Published and measured accuracies",
        "Made by `cover report --benchmarks`: the published figures, each with its source, and in bold what was"
        " measured here, from the given files of `cover evaluate --json`. Views are clips in time x crops in space, of"
        " published rows those on Kinetics. Copies of a data set differ by thousands of clips, so a measured row says"
        " how many were read.",
    ]
    for key, each in published["sets"].items():
        rows = [_published_row(model, key) for model in published["models"] if key in model]
        parts.append(_table(f"## {each['title']}", rows + _measured_rows(of_set.pop(key, []), pretrained)))
    if of_set:
        others = [row for rows in of_set.values() for row in rows]
        parts.append(_table("## Other data sets", _measured_rows(others, pretrained, with_set=True)))
    parts.append(_transfers(published))
    parts.append("## Sources")
    parts.append("\n".join(f"- {key}: {text}" for key, text in published["sources"].items()))
    return "\n\n".join(parts) + "\n"


def _set_of(name: str, sets: Mapping[str, Any]) -> str:
    """The key of a published data set; the name itself for others."""
    return next((key for key, each in sets.items() if re.fullmatch(each["pattern"], name.lower())), f" {name}")


def _published_row(model: Mapping[str, Any], key: str) -> list[str]:
    finetune = model.get("finetune", "that set alone")
    figures = [model["views"] or "-", f"{model[key]:.1f}", ", ".join(model["source"])]
    return [model["model"], model["pretrain"], finetune, *figures]


def _measured_rows(rows: Iterable[Measured], pretrained: str, with_set: bool = False) -> list[list[str]]:
    lines = []
    for row in rows:
        folder = Path(row["checkpoint"])
        name = f"**{folder.name}**" + (f", {row['dataset']}" if with_set else "")
        ends = row.get("top1_interval") or {"low": None, "high": None}
        figure = with_interval(row["top1"], ends["low"], ends["high"]).replace("%", "", 1)
        read = f"measured, {row['n_read']:,} of {row['n_listed']:,}"
        lines.append([name, pretrained, _trained_on(folder), f"{row['views']}, {row['frames']} frames", figure, read])
    return lines


def _trained_on(folder: Path) -> str:
    """The data sets of a checkpoint; empty if it is no longer there."""
    try:
        return ", ".join(trained_on(folder))
    except UserError:
        return ""


def _transfers(published: Mapping[str, Any]) -> str:
    titles = {key: each["title"] for key, each in published["sets"].items()}
    rows = [[titles[row["target"]], row["source"], f"+{row['ahead']:.1f}"] for row in published["transfer"]]
    columns = ("fine-tuned on", "against a model of", "points ahead")
    text = _table("## Transfer of the co-trained model, published", rows, columns)
    return f"{text}\n\nFrom the blog article. `cover transfer` and `cover study` measure the same on your data sets."


def _table(title: str, rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in lines)])
