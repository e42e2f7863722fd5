"""Summary of a study: one JSON object with every figure and its protocol, from which the report is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from cover import __version__
from cover.experiments.run_files import read_result
from cover.experiments.study.arms import Grid, Measurement
from cover.experiments.study.comparisons import ArmResults, Key, RunResults, compare, results_by_arm
from cover.experiments.study.runner import result_path
from cover.experiments.study.study_file import ARMS, Study
from cover.synthetic.generate import RECORD

PROTOCOL = ("split", "views", "frames", "sampling", "classes", "class_digest", "n_read", "n_listed", "decoder", "media")
RUN = ("name", "step", "steps", "seed", "lr", "sets", "seconds", "digest")


def summarise(study: Study, grid: Grid, out: Path, planned: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of a finished study as plain data.

    `generated`: whether the catalog is a sandbox's. `arms`, `transfers`, `probes` and `origins`: one row for each
    accuracy, with its interval over seeds and sources and its protocol. `comparisons`: as of `comparisons.compare`.
    `curves`: one seed's learning curves. `per_class`: gains class by class. `planned`: the differences expected to be
    detectable, computed before anything was run.
    """
    results = {name: result for name in grid.jobs if (result := read_result(result_path(out, name))) is not None}
    assert len(results) == len(grid.jobs), "a study is summed up when all of it has been run"
    measurements = grid.measurements
    by_kind = {kind: results_by_arm(measurements, results, kind) for kind in ("arm", "transfer", "probe", "origin")}
    return {
        "cover": __version__,
        "study": asdict(study),
        "arms_mean": ARMS,
        "generated": (Path(study.catalog).parent / RECORD).is_file(),
        "arms": _rows(study, by_kind["arm"], results),
        "transfers": _rows(study, by_kind["transfer"], results),
        "probes": _rows(study, by_kind["probe"], results),
        "origins": _rows(study, by_kind["origin"], results),
        "comparisons": compare(study, by_kind["arm"], by_kind["transfer"]),
        "planned": list(planned),
        "per_class": _per_class(by_kind["arm"], results),
        "curves": _curves(measurements, results),
        "rates": _rates(measurements, results),
        "runs": [{key: result[key] for key in RUN} for result in results.values()],
    }


def _rows(study: Study, arms: Mapping[Key, ArmResults], results: RunResults) -> list[dict[str, Any]]:
    rows = []
    for (arm, dataset, size, origin), value in arms.items():
        of = [results[job] for job in value.jobs]
        protocol = of[0]["measured"][dataset]
        gap = _gap(of, dataset)
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
                "n_read": _counted(of, dataset, "n_read"),
                "n_listed": _counted(of, dataset, "n_listed"),
                "checkpoint_steps": sorted({each["step"] for each in of}),
                "steps": of[0]["steps"],
                "seen": of[0]["seen"].get(dataset),
                "gap": gap,
                "lrs": sorted({each["lr"] for each in of}),
                "runs": list(value.jobs),
            }
        )
    return rows


def _split(study: Study, dataset: str, origin: str) -> str:
    """The split that is measured. Transfers have no origin and no folds."""
    return f"{study.folds[dataset]} folds" if dataset in study.folds and origin else study.split


def _counted(of: Sequence[Mapping[str, Any]], dataset: str, key: str) -> int:
    """The sum over the folds of one seed."""
    seed = of[0]["seed"]
    return sum(each["measured"][dataset][key] for each in of if each["seed"] == seed)


def _gap(of: Sequence[Mapping[str, Any]], dataset: str) -> dict[str, float] | None:
    """Accuracy in training (augmented clips, last part of the run) and on `dev`, means over runs."""
    pairs = [
        (each["curves"][dataset]["train"][-1][1], each["dev"][dataset])
        for each in of
        if each["curves"].get(dataset, {}).get("train") and dataset in each["dev"]
    ]
    return {"train": fmean(train for train, _ in pairs), "dev": fmean(dev for _, dev in pairs)} if pairs else None


def _per_class(arms: Mapping[Key, ArmResults], results: RunResults) -> list[dict[str, Any]]:
    """For every mixture: the gain of each class's accuracy over the target alone, mean over seeds."""
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
    first = min(each.seed for each in measurements)
    return [
        {
            "arm": each.arm,
            "target": each.target,
            "size": each.size,
            "origin": each.origin,
            **results[each.job]["curves"][each.dataset],
        }
        for each in measurements
        if each.kind == "arm"
        and each.seed == first
        and not each.fold
        and each.lr == measurements[0].lr
        and each.dataset in results[each.job]["curves"]
    ]


def _rates(measurements: Sequence[Measurement], results: RunResults) -> list[dict[str, Any]]:
    """Samples and rates of every mixture of the first seed."""
    first, listed, rows = min(each.seed for each in measurements), set(), []
    for each in measurements:
        result = results[each.job]
        wanted = each.kind == "arm" and each.seed == first and not each.fold and each.lr == measurements[0].lr
        if wanted and len(result["sets"]) > 1 and each.job not in listed:
            listed.add(each.job)
            rows.append(
                {
                    "arm": each.arm,
                    "target": each.target,
                    "size": each.size,
                    "origin": each.origin,
                    "run": each.job,
                    "steps": result["steps"],
                    "batch": result["batch"],
                    "seen": result["seen"],
                    "rates": result["rate_realised"],
                }
            )
    return rows
