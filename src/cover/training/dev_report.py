"""The last results of a run on `dev` beside the baselines, as lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cover.console import write_json
from cover.datasets.catalog import load_catalog
from cover.evaluation.baselines import TITLES, advice, baselines, figures, shortfalls
from cover.evaluation.statistics import with_interval
from cover.training.checkpoint import LOG
from cover.training.recipe import Recipe
from cover.training.retention import parse_line

BASELINES = "baselines.json"


def dev_report(run: Path, recipe: Recipe, workers: int) -> list[str]:
    """One line for each single-label data set that the run was evaluated on, with its top-1 and the baselines on `dev`.

    Another line follows for a model that is not above them. `workers`: processes that read files, 0 for none. There are
    no lines if the run was not evaluated on `dev`. The baselines are kept in the run folder, in `baselines.json`.
    """
    step, results = _last_dev(run / LOG)
    known = {name: result for name, result in results.items() if result.get("top1_interval")}
    if not known:
        return []
    catalog, lines, kept = load_catalog(recipe.data.catalog), list[str](), dict[str, Any]()
    for name, result in known.items():
        found = baselines(catalog, name, "dev", workers)
        interval = result["top1_interval"]
        accuracy = f"top-1 {with_interval(result['top1'], interval['low'], interval['high'])}"
        beside = [f"{title} {text}" for title, text in zip(TITLES.values(), figures(found)) if text != "-"]
        why_not = f"; {found['why_not']}" if found["why_not"] else ""
        lines.append(f"{name} dev: {accuracy} of {result['n_read']:,} samples; {', '.join(beside)}{why_not}")
        behind = shortfalls(found, result["top1"], interval["low"])
        kept[name] = {**found, "behind": behind}
        if behind:
            lines.append(f"  {advice(name, behind, catalog.path, step)}")
    write_json(kept, run / BASELINES)
    return lines


def _last_dev(log: Path) -> tuple[int, Mapping[str, Any]]:
    """The step and the results of the last evaluation on `dev` in a log; no results if there is none."""
    step, results = 0, dict[str, Any]()
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = parse_line(line)
        if entry.get("event") == "dev":
            step, results = int(entry["step"]), entry["datasets"]
    return step, results
