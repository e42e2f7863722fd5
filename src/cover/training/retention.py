"""Retention of checkpoints: the last few, and the best on `dev`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cover.model.release import CHECKPOINTS, steps_saved

BEST = "best"  # a link to the best checkpoint, beside them
MEASURES = ("top1", "map")  # of a data set's results on dev, whichever it has
DevScores = Mapping[str, float]  # data set -> top-1 or mean average precision, 0 to 1


def dev_scores(log: Path) -> dict[int, dict[str, float]]:
    """Step -> the score of every data set on `dev`, from a run's log."""
    results: dict[int, dict[str, float]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = _parsed(line)
        if entry.get("event") == "dev":
            scores = {name: score_of(result) for name, result in entry["datasets"].items()}
            results[int(entry["step"])] = {name: score for name, score in scores.items() if score is not None}
    return results


def score_of(result: Mapping[str, Any]) -> float | None:
    """The figure that a data set's results are compared by."""
    return next((result[key] for key in MEASURES if result.get(key) is not None), None)


def best_step(scores: Mapping[int, DevScores], steps: Sequence[int], by: str) -> int | None:
    """The best of `steps`, None where none of them was evaluated; of equals the earliest.

    `by`: the name of a data set, or `mean_rank`: every data set ranks the steps (equals share their mean rank), and the
    lowest mean of a step's ranks wins. So no data set counts for more because its figures are larger or move more.
    """
    known = {step: scores[step] for step in sorted(steps) if scores.get(step)}
    if by != "mean_rank":
        known = {step: item for step, item in known.items() if by in item}
        return max(known, key=lambda step: (known[step][by], -step), default=None) if by else None
    return min(known, key=lambda step: (mean_rank(known, step), step), default=None)


def mean_rank(scores: Mapping[int, DevScores], step: int) -> float:
    """The mean over data sets of a step's place among all steps, 1 the best."""
    ranks = []
    for name, own in scores[step].items():
        others = [item[name] for item in scores.values() if name in item]
        ranks.append(sum(other > own for other in others) + (1 + sum(other == own for other in others)) / 2)
    return sum(ranks) / len(ranks)


def remove_others(run: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints but the last `keep` and the best."""
    for step in steps_saved(run)[:-keep]:
        if step != best:
            shutil.rmtree(run / CHECKPOINTS / f"step-{step:07d}")


def mark_best(run: Path, step: int | None) -> None:
    """Point the link `checkpoints/best` at the checkpoint of `step`, or take it away."""
    link = run / CHECKPOINTS / BEST
    beside = link.with_name(f".{BEST}")
    beside.unlink(missing_ok=True)
    if step is None:
        link.unlink(missing_ok=True)
        return
    with suppress(OSError):  # a file system without links
        beside.symlink_to(f"step-{step:07d}", target_is_directory=True)
        beside.replace(link)


def _parsed(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
