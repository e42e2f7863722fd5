"""The pilot of a study: short runs that choose its epochs before the first run of the study itself.

A study of models that have not learned says nothing about co-training, and neither does one whose seeds differ more
than the effects that it looks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cover.console import say
from cover.evaluation.statistics import in_common
from cover.experiments.run_files import read_result
from cover.experiments.study.arms import Grid
from cover.experiments.study.comparisons import ArmResults, results_by_arm
from cover.experiments.study.runner import result_path, run_missing
from cover.experiments.study.study_file import Pilot, Size, Study, Transfer
from cover.experiments.study.subsets import SubsetBuilder

TRIVIAL = ("prior", "thumbnail", "motion")  # methods that know nothing of other images


def run_pilot(
    study: Study, builder: SubsetBuilder, workers: int, trivial: Sequence[Mapping[str, Any]]
) -> tuple[Study, dict[str, Any] | None]:
    """Run what is missing of a pilot. Returns the study with the chosen epochs, and the rows of the pilot.

    `trivial`: the rows of `trivial.trivial_methods`. Without a pilot, returns the study as it is, and None. If no
    number of epochs passes, the last one is chosen, and `passed` is False.
    """
    if not study.pilot.epochs:
        return study, None
    first, size = next(iter(study.sizes.items()))
    best = {
        row["dataset"]: max(row[name]["top1"] for name in TRIVIAL if name in row)
        for row in trivial
        if row["size"] == first
    }
    rows: list[dict[str, Any]] = []
    chosen, passed = study.pilot.epochs[-1], False
    for epochs in study.pilot.epochs:
        tried = _rows(pilot_study(study, size, epochs), builder, workers, best, epochs)
        rows += tried
        if all(row["above"] and row["spread"] <= study.pilot.spread for row in tried):
            chosen, passed = epochs, True
            break
    say(f"pilot: {chosen:g} epochs, {'which pass' if passed else 'the most that were tried; none passes'}")
    factor = chosen / size.epochs
    sizes = {name: replace(each, epochs=each.epochs * factor) for name, each in study.sizes.items()}
    return replace(study, sizes=sizes, pilot=Pilot()), {"epochs": chosen, "passed": passed, "rows": rows}


def pilot_study(study: Study, size: Size, epochs: float) -> Study:
    """The runs of a pilot with one number of epochs, as a study of its own."""
    fullest = [arm for arm in ("videos_images", "videos") if arm in study.arms][:1]
    arms = study.pilot.arms or [arm for arm in ("alone", *fullest) if arm in study.arms]
    sizes = {f"pilot{epochs:g}": replace(size, epochs=epochs, arms=[])}
    changes: dict[str, Any] = {"arms": arms, "sizes": sizes, "seeds": study.pilot.seeds}
    return replace(study, pilot=Pilot(), look=False, transfer=Transfer(), probes=[], **changes)


def _rows(
    study: Study, builder: SubsetBuilder, workers: int, best: Mapping[str, float], epochs: float
) -> list[dict[str, Any]]:
    """A row for each arm and target: accuracies, and the spread of the difference from the first arm over seeds."""
    grid = Grid(study, builder)
    out = Path(study.out)
    run_missing(list(grid.waves()), builder, out, workers)
    results = {name: read_result(result_path(out, name)) or {} for name in grid.jobs}
    arms = results_by_arm(grid.measurements, results, "arm")
    rows = []
    for (arm, target, size, origin), value in arms.items():
        first = arms[study.arms[0], target, size, origin]
        by_seed = value.right.mean(1)
        rows.append(
            {
                "epochs": epochs,
                "arm": arm,
                "target": target,
                "origin": origin,
                "by_seed": by_seed.tolist(),
                "trivial": best.get(target),
                "above": bool(by_seed.min() > best.get(target, 0.0)),
                "spread": _spread(value, first),
            }
        )
    return rows


def _spread(ours: ArmResults, theirs: ArmResults) -> float:
    """The standard deviation over seeds of the difference of two arms, or of one arm's accuracy."""
    if ours is theirs:
        return float(np.std(ours.right.mean(1), ddof=1))
    mine, others = in_common(ours.ids, theirs.ids)
    return float(np.std(ours.right[:, mine].mean(1) - theirs.right[:, others].mean(1), ddof=1))
