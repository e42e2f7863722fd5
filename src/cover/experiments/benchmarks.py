"""The page of accuracies: the published ones of `published.yaml`, and those measured by `cover evaluate --json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cover.errors import UserError
from cover.evaluation.statistics import with_interval
from cover.model.release import trained_on
from cover.yaml_files import read_yaml, resolve

PUBLISHED = Path(__file__).with_name("published.yaml")
NEEDED = ("dataset", "variant", "top1", "views", "n_read", "n_listed", "checkpoint", "frames")
MEASURED = ("model", "data set", "pre-train", "trained on", "views", "top-1 %", "read of listed")

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
    parts = [
        "# Published and measured accuracies",
        "Top-1 in %. `cover report --benchmarks RESULTS` writes this page, with the results of `cover evaluate --json`"
        " in a second table.",
        "## Published",
        "Models are fine-tuned on each set alone, where nothing else is said. Views, those on Kinetics, are clips in"
        " time x crops in space.",
        _published(published),
    ]
    if measured:
        rows = [_measured_row(row, pretrained) for row in measured]
        parts += ["## Measured", "Copies of a data set differ by thousands of clips: compare how many were read."]
        parts.append(_table(MEASURED, rows))
    parts += ["## Transfer of the co-trained model, published", _transfers(published), "## Sources"]
    parts.append("\n".join(f"- {key}: {text}" for key, text in published["sources"].items()))
    return "\n\n".join(parts) + "\n"


def _published(published: Mapping[str, Any]) -> str:
    sets: Mapping[str, str] = published["sets"]
    rows = []
    for model in published["models"]:
        name = ", ".join(filter(None, (model["model"], model.get("finetune"))))
        figures = [f"{model[key]:.1f}" if key in model else "" for key in sets]
        rows.append([name, model["pretrain"], model["views"], *figures, ", ".join(model["source"])])
    return _table(("model", "pre-train", "views", *sets.values(), "source"), rows)


def _measured_row(row: Measured, pretrained: str) -> list[str]:
    folder = Path(row["checkpoint"])
    ends = row.get("top1_interval") or {"low": None, "high": None}
    figure = with_interval(row["top1"], ends["low"], ends["high"]).replace("%", "", 1)
    views, read = f"{row['views']}, {row['frames']} frames", f"{row['n_read']:,} of {row['n_listed']:,}"
    return [folder.name, row["dataset"], pretrained, _trained_on(folder), views, figure, read]


def _trained_on(folder: Path) -> str:
    """The data sets of a checkpoint; empty if it is no longer there."""
    try:
        return ", ".join(trained_on(folder))
    except UserError:
        return ""


def _transfers(published: Mapping[str, Any]) -> str:
    sets: Mapping[str, str] = published["sets"]
    rows = [[sets[row["target"]], row["source"], f"+{row['ahead']:.1f}"] for row in published["transfer"]]
    text = _table(("fine-tuned on", "against a model of", "points ahead"), rows)
    return f"{text}\n\nFrom the blog article. `cover transfer` and `cover study` measure the same on your data sets."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
