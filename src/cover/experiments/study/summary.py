"""Summary of a study: one JSON object with every number and its protocol. The report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cover import __version__
from cover.evaluation.statistics import LEVEL
from cover.experiments.run_files import read_result
from cover.experiments.study.arms import Grid, Measurement
from cover.experiments.study.comparisons import ArmResults, Key, RunResults, compare, pool, results_by_arm
from cover.experiments.study.runner import result_path
from cover.experiments.study.study_file import ARMS, Study
from cover.synthetic.generate import RECORD

PROTOCOL = ("split", "views", "frames", "sampling", "classes", "class_digest", "n_read", "n_listed", "decoder", "media")
KINDS = {"arm": "arms", "transfer": "transfers", "probe": "probes", "origin": "origins"}  # kind -> key of its rows
RUN = ("name", "step", "steps", "seed", "lr", "sets", "seconds", "digest")


def summarise(
    study: Study,
    grid: Grid,
    out: Path,
    planned: Sequence[Mapping[str, Any]],
    trivial: Sequence[Mapping[str, Any]] = (),
    pilot: Mapping[str, Any] | None = None,
    look: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All numbers of a finished study, as JSON values.

    `generated`: whether the catalog is that of a sandbox. `arms`, `transfers`, `probes` and `origins`: one row for each
    accuracy, with its interval over seeds and sources and its protocol. `comparisons`: the rows of
    `comparisons.compare`. `curves`: the learning curves of one seed. `per_class`: the gain of each class. `planned`:
    the expected detectable differences. `pooled`: mean differences over the targets. `trivial`, `pilot`: the rows of
    `trivial.trivial_methods` and of `pilot.run_pilot`. `look`: the look at half of the seeds
    (`run_study`), with the level of the comparisons; None for `LEVEL`.
    """
    results = results_of(grid, out)
    measurements = grid.measurements
    by_kind = {kind: results_by_arm(measurements, results, kind) for kind in KINDS}
    level = look["level"] if look else LEVEL
    comparisons = compare(study, by_kind["arm"], by_kind["transfer"], level)
    return {
        "cover": __version__,
        "study": asdict(study),
        "arms_mean": ARMS,
        "generated": (Path(study.catalog).parent / RECORD).is_file(),
        "arms": _rows(study, by_kind["arm"], results),
        "transfers": _rows(study, by_kind["transfer"], results),
        "probes": _rows(study, by_kind["probe"], results),
        "origins": _rows(study, by_kind["origin"], results),
        "comparisons": comparisons,
        "pooled": pool(comparisons, study.margin, level),
        "pilot": pilot,
        "look": None if look is None else dict(look),
        "planned": list(planned),
        "trivial": list(trivial),
        "per_class": _per_class(by_kind["arm"], results),
        "curves": _curves(measurements, results),
        "rates": _rates(measurements, results),
        "runs": [{key: result[key] for key in RUN} for result in results.values()],
    }


def results_of(grid: Grid, out: Path) -> dict[str, dict[str, Any]]:
    """Job -> its result. All runs must be finished."""
    results = {name: result for name in grid.jobs if (result := read_result(result_path(out, name))) is not None}
    assert len(results) == len(grid.jobs), "all runs of the study must be finished"
    return results


def _rows(study: Study, arms: Mapping[Key, ArmResults], results: RunResults) -> list[dict[str, Any]]:
    rows = []
    for (arm, dataset, size, origin), value in arms.items():
        runs = [results[job] for job in value.jobs]
        protocol = runs[0]["measured"][dataset]
        rows.append(
            {
                "arm": arm,
                "dataset": dataset,
                "size": size,
                "origin": origin,
                **value.estimate(),
                "chance": 1 / protocol["classes"],
                **{key: protocol[key] for key in PROTOCOL},
                "split": _split(study, dataset, origin),
                "n_read": _counted(runs, dataset, "n_read"),
                "n_listed": _counted(runs, dataset, "n_listed"),
                "checkpoint_steps": sorted({run["step"] for run in runs}),
                "steps": runs[0]["steps"],
                "seen": runs[0]["seen"].get(dataset),
                "gap": _gap(runs, dataset),
                "lrs": sorted({run["lr"] for run in runs}),
                "runs": list(value.jobs),
            }
        )
    return rows


def _split(study: Study, dataset: str, origin: str) -> str:
    """The split that is measured, or the folds. Transfers have no origin, and folds if `transfer.folds` says so."""
    folds = study.folds.get(dataset, 0) if origin else study.transfer_folds(dataset)
    return f"{folds} folds" if folds else study.split


def _counted(runs: Sequence[Mapping[str, Any]], dataset: str, key: str) -> int:
    """The sum over the folds of the first seed."""
    seed = runs[0]["seed"]
    return sum(run["measured"][dataset][key] for run in runs if run["seed"] == seed)


def _gap(runs: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float] | None:
    """Mean accuracy over runs, in training (augmented clips, at the end of the run) and on `dev`."""
    pairs = [
        (run["curves"][dataset]["train"][-1][1], run["dev"][dataset])
        for run in runs
        if run["curves"].get(dataset, {}).get("train") and dataset in run["dev"]
    ]
    return {"train": fmean(train for train, _ in pairs), "dev": fmean(dev for _, dev in pairs)} if pairs else None


def _per_class(arms: Mapping[Key, ArmResults], results: RunResults) -> list[dict[str, Any]]:
    """For every mixture, the gain of each class's accuracy over the target alone, as a mean over seeds."""
    rows = []
    for (arm, target, size, origin), ours in arms.items():
        theirs = arms.get(("alone", target, size, origin))
        if arm not in ("videos", "videos_images") or theirs is None:
            continue
        label_of: dict[str, int] = {}
        for job in ours.jobs:
            part = results[job]["measured"][target]
            label_of.update(zip(part["ids"], part["labels"]))
        labels = np.array([label_of[key] for key in ours.ids])
        gain = ours.right.mean(0) - theirs.right.mean(0)
        names = results[ours.jobs[0]]["measured"][target]["class_names"]
        rows.append(
            {
                "arm": arm,
                "target": target,
                "size": size,
                "origin": origin,
                "classes": {
                    name: {"gain": float(gain[labels == number].mean()), "items": int((labels == number).sum())}
                    for number, name in enumerate(names)
                    if (labels == number).any()
                },
            }
        )
    return rows


def _curves(measurements: Sequence[Measurement], results: RunResults) -> list[dict[str, Any]]:
    """The learning curves of the first seed, fold and learning rate."""
    return [
        {**_place(each), **results[each.job]["curves"][each.dataset]}
        for each in _examples(measurements)
        if each.dataset in results[each.job]["curves"]
    ]


def _rates(measurements: Sequence[Measurement], results: RunResults) -> list[dict[str, Any]]:
    """The samples and the rates of every mixture, with the first seed."""
    rows: dict[str, dict[str, Any]] = {}  # by job, because several targets may share one
    for each in _examples(measurements):
        result = results[each.job]
        if len(result["sets"]) > 1 and each.job not in rows:
            values = {"steps": result["steps"], "batch": result["batch"], "seen": result["seen"]}
            rows[each.job] = {**_place(each), "run": each.job, **values, "rates": result["rate_realised"]}
    return list(rows.values())


def _examples(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One measurement of every arm: with the first seed, fold and learning rate."""
    first, lr = min(each.seed for each in measurements), measurements[0].lr
    return [
        each for each in measurements if each.kind == "arm" and each.seed == first and not each.fold and each.lr == lr
    ]


def _place(each: Measurement) -> dict[str, str]:
    return {"arm": each.arm, "target": each.target, "size": each.size, "origin": each.origin}
