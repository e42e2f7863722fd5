"""Retention of checkpoints: a run keeps the last few, and the best on `dev`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cover.model.release import CHECKPOINTS, steps_saved

BEST = "best"  # name of the link to the best checkpoint, in the folder of checkpoints
MEASURES = ("top1", "map")  # keys of the results on dev, in order of preference
DevScores = Mapping[str, float]  # data set -> top-1 or mean average precision, 0 to 1


def dev_scores(log: Path) -> dict[int, dict[str, float]]:
    """Step -> the score of every data set on `dev`, from the log of a run."""
    by_step: dict[int, dict[str, float]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        entry = parse_line(line)
        if entry.get("event") == "dev":
            scores = {name: score_of(result) for name, result in entry["datasets"].items()}
            by_step[int(entry["step"])] = {name: score for name, score in scores.items() if score is not None}
    return by_step


def score_of(result: Mapping[str, Any]) -> float | None:
    """The score of a data set's results, 0 to 1: top-1 or mean average precision; None if they have neither."""
    return next((result[key] for key in MEASURES if result.get(key) is not None), None)


def best_step(scores: Mapping[int, DevScores], steps: Sequence[int], by: str) -> int | None:
    """The best of `steps`, the earliest of equals; None if none of them was evaluated.

    `by`: the name of a data set, `mean_rank`, or empty for no best step. With `mean_rank`, every data set ranks the
    steps (equal scores share their mean rank), and the step with the lowest mean rank is the best. So a data set with
    larger or more variable scores does not count more.
    """
    evaluated = {step: scores[step] for step in sorted(steps) if scores.get(step)}
    if by != "mean_rank":
        evaluated = {step: item for step, item in evaluated.items() if by in item}
        return max(evaluated, key=lambda step: (evaluated[step][by], -step), default=None) if by else None
    return min(evaluated, key=lambda step: (mean_rank(evaluated, step), step), default=None)


def mean_rank(scores: Mapping[int, DevScores], step: int) -> float:
    """The mean over data sets of the rank of a step among all steps; the best rank is 1."""
    ranks = []
    for name, own in scores[step].items():
        others = [item[name] for item in scores.values() if name in item]
        ranks.append(sum(other > own for other in others) + (1 + sum(other == own for other in others)) / 2)
    return sum(ranks) / len(ranks)


def remove_others(run: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints except the last `keep` and the best."""
    for step in steps_saved(run)[:-keep]:
        if step != best:
            shutil.rmtree(run / CHECKPOINTS / f"step-{step:07d}")


def mark_best(run: Path, step: int | None) -> None:
    """Point the link `checkpoints/best` at the checkpoint of `step`; remove the link if `step` is None."""
    link = run / CHECKPOINTS / BEST
    beside = link.with_name(f".{BEST}")
    beside.unlink(missing_ok=True)
    if step is None:
        link.unlink(missing_ok=True)
        return
    with suppress(OSError):  # some file systems have no links
        beside.symlink_to(f"step-{step:07d}", target_is_directory=True)
        beside.replace(link)  # atomic, so the link exists at every moment


def parse_line(line: str) -> dict[str, Any]:
    """The object on a line of the log; empty for a truncated line."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
