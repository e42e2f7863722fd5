"""How does a study get run? What is missing of it, in processes side by side; what is done is kept.

A run's folder holds its recipe, its catalog and its log, and `results/NAME.json` what was measured on it. A result counts as done where
it is of the same recipe, the same manifests and the same starting weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cover.console import Meter, be_silent, say, write_json
from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.errors import UserError
from cover.evaluation.evaluate import evaluate
from cover.evaluation.outcomes import Outcomes
from cover.evaluation.tasks import Task, find_tasks
from cover.machine import cores
from cover.model.device import pick_device
from cover.model.weights import find_release, load_release, steps_saved
from cover.processes import ProcessPool, WorkerLost
from cover.studies.grid.cells import Job
from cover.studies.grid.derive import MEASURED, Deriver
from cover.studies.runlog import read_log
from cover.training import checkpoint
from cover.training.folder import is_begun
from cover.training.keeping import best_step, dev_scores
from cover.training.recipe import Recipe
from cover.training.train import train

CURVE_POINTS = 24


@dataclass(frozen=True)
class Order:
    """A job as it is sent to a process: everything by value. `entries`: the catalog of its data sets; `start`: the run it starts from, at
    the checkpoint that is best by `start_best`."""

    name: str
    digest: str
    recipe: Recipe
    entries: dict[str, Any]
    measured: tuple[str, ...]
    start: Path | None
    start_best: str = ""


def run_missing(jobs: Sequence[Sequence[Job]], deriver: Deriver, out: Path, workers: int) -> int:
    """Run what is not done of `jobs`, list after list, `workers` processes side by side; returns how many were run.

    Raises `UserError` of a run that cannot go on, naming it.
    """
    out = out.absolute()
    orders = [[order_of(job, deriver, out) for job in wave] for wave in jobs]
    missing = find_missing(orders, out)
    total, count = sum(map(len, orders)), sum(map(len, missing))
    say(f"study: {total - count} of {total} runs are done" + (f", {count} to go, {workers} at once" if count else ""))
    if not count:
        return 0
    steps = sum(order.recipe.steps for wave in missing for order in wave)
    with Meter("study", total=total, done=total - count, work=steps) as meter:
        for wave in missing:
            _run_wave(wave, out, workers, meter)
    return count


def find_missing(orders: Sequence[Sequence[Order]], out: Path) -> list[list[Order]]:
    """Of lists of runs, each list starting from the ones before, those to be run: without a result, or needed by one that is to be run
    while its weights are not there."""
    needed: set[str] = set()
    missing: list[list[Order]] = []
    for wave in reversed(orders):
        own = [order for order in wave if not is_done(order, out) or (order.name in needed and not is_trained(order, out))]
        needed |= {order.start.name for order in own if order.start is not None}
        missing.insert(0, own)
    return missing


def is_trained(order: Order, out: Path) -> bool:
    """Whether the folder of a run holds this very run, to its end."""
    run = run_of(out, order.name)
    stamp = stamp_of(run)
    return stamp.exists() and stamp.read_text() == order.digest and max(steps_saved(run), default=0) >= order.recipe.steps


def stamp_of(run: Path) -> Path:
    """Where the digest of what a run's folder was begun as stands."""
    return run.parent / f".{run.name}.digest"


def order_of(job: Job, deriver: Deriver, out: Path) -> Order:
    """What a process needs of a job."""
    entries = {name: deriver.entry(part) for name, part in job.parts.items()}
    start = run_of(out, job.start.name) if job.start is not None else None
    start_best = job.start.recipe.checkpoints.best if job.start is not None else ""
    return Order(job.name, job.digest, job.recipe, entries, tuple(sorted(job.measured)), start, start_best)


def run_of(out: Path, name: str) -> Path:
    """The folder of a run."""
    return out / "runs" / name


def result_path(out: Path, name: str) -> Path:
    """Where the result of a run is."""
    return out / "results" / f"{name}.json"


def is_done(order: Order, out: Path) -> bool:
    """Whether a result is there, of this very job and on all the data sets that are asked for."""
    found = read_result(out, order.name)
    return found is not None and found["digest"] == order.digest and set(order.measured) <= set(found["measured"])


def read_result(out: Path, name: str) -> dict[str, Any] | None:
    """The result of a run as it was written; None where there is none."""
    path = result_path(out, name)
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, and it is made again") from None
    return found


def _run_wave(orders: Sequence[Order], out: Path, workers: int, meter: Meter) -> None:
    if workers == 1:
        for order in orders:
            run_order(order, out)
            meter.advance(note=order.name, work=order.recipe.steps)
        return
    threads = max(1, cores() // workers)  # a wave of fewer runs too: threads that wait for each other are slow beside other work
    run = partial(run_order, out=out)
    try:
        # A run under way has checkpoints of its own: nothing is lost where an error ends the pool, and the runs with it.
        with ProcessPool(workers, partial(_begin_worker, threads), children=True) as pool:
            for ((order, _),) in pool.as_completed(run, orders):
                meter.advance(note=order.name, work=order.recipe.steps)
    except WorkerLost:
        raise UserError("a process was killed, for want of memory perhaps; the same command goes on, with fewer --jobs") from None


def _begin_worker(threads: int) -> None:
    be_silent()
    torch.set_num_threads(threads)


def run_order(order: Order, out: Path) -> None:
    """Train, or go on with, one run, and write what is measured on it. Raises `UserError` that names the run."""
    try:
        run = _train(order, out)
        _measure(order, run, out)
    except UserError as error:
        raise UserError(f"{order.name}: {error}") from None


def _train(order: Order, out: Path) -> Path:
    run, catalog = run_of(out, order.name), out / "catalogs" / f"{order.name}.yaml"
    catalog.parent.mkdir(parents=True, exist_ok=True)
    catalog.write_text(yaml.safe_dump(order.entries, sort_keys=False, default_flow_style=None, width=1000), encoding="utf-8")
    recipe = replace(order.recipe, out=str(run), data=replace(order.recipe.data, catalog=str(catalog)))
    if order.start is not None:
        recipe = replace(recipe, start=replace(recipe.start, checkpoint=str(best_of(order.start, order.start_best))))
    _drop_another(run, order)
    return train(recipe, resume=is_begun(run))


def _drop_another(run: Path, order: Order) -> None:
    """A folder that was begun as another run, before the study or its data were changed, is put aside."""
    stamp = stamp_of(run)
    if run.exists() and (not stamp.exists() or stamp.read_text() != order.digest):
        aside = run.with_name(f"{run.name}.old")
        number = 1
        while aside.exists():
            number += 1
            aside = run.with_name(f"{run.name}.old{number}")
        run.rename(aside)
        say(f"{order.name}: was begun as another run; that one is now {aside}")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(order.digest)


def best_of(run: Path, by: str) -> Path:
    """The checkpoint that is best on `dev` (`by` as `checkpoints.best`); the last one where there was nothing to choose on."""
    step = best_step(dev_scores(run / "log.jsonl"), steps_saved(run), by)
    return find_release(run) if step is None else checkpoint.folder_of(run, step)


def _measure(order: Order, run: Path, out: Path) -> None:
    folder = best_of(run, order.recipe.checkpoints.best)
    model, about = load_release(folder)
    device = pick_device(order.recipe.device)
    model.to(device)
    catalog = load_catalog(out / "catalogs" / f"{order.name}.yaml")
    measured = {}
    for task in find_tasks(catalog, model, about["frames"], MEASURED, list(order.measured)):
        keeper = _Keeper()
        found = evaluate(model, task, device, 0, keep=keeper.keep)["plain"]
        measured[task.spec.name] = {**found, **keeper.items(task)}
    log = read_log(run / "log.jsonl")
    seen = log.last().get("seen", {})
    result = {
        "name": order.name, "digest": order.digest, "step": about["step"], "steps": order.recipe.steps, "seed": order.recipe.seed,
        "lr": order.recipe.optimizer.lr, "sets": order.recipe.data.sets, "batch": order.recipe.batch, "seen": seen,
        "rate_realised": log.last().get("rate_realised"), "seconds": log.last().get("seconds"), "dev": _dev(run, about["step"]),
        "curves": {name: _curve(log, name) for name in order.recipe.data.sets}, "measured": measured,
    }  # fmt: skip
    path = result_path(out, order.name)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    write_json(result, beside)
    beside.replace(path)


class _Keeper:
    """What was predicted of every sample."""

    def __init__(self) -> None:
        self._outcomes = Outcomes()

    def keep(self, task: Task, variant: str, numbers: list[int], scores: torch.Tensor) -> None:
        labels = task.relabel[task.manifest.labels[numbers]]
        self._outcomes.update(numbers, scores.mean(1), torch.from_numpy(np.asarray(labels, np.int64)))

    def items(self, task: Task) -> dict[str, Any]:
        """Ids, sources, labels and predictions, in the order of the manifest."""
        self._outcomes.merge([])
        manifest = open_manifest(task.manifest.path)
        rows = [manifest.row(int(number)) for number in self._outcomes.rows]
        return {
            "ids": [row.sample_id for row in rows], "sources": [row.source_id for row in rows],
            "labels": self._outcomes.labels.tolist(), "predicted": self._outcomes.predicted.tolist(), "class_names": list(task.classes),
        }  # fmt: skip


def _dev(run: Path, step: int) -> dict[str, float]:
    """top-1 on `dev` of every data set at the checkpoint that was measured."""
    for line in read_log(run / "log.jsonl").dev:
        if line.get("step") == step:
            return {name: found["top1"] for name, found in line["datasets"].items() if found.get("top1") is not None}
    return {}


def _curve(log: Any, name: str) -> dict[str, list[list[float]]]:
    """Of one data set, by samples of it seen: loss and accuracy in training, accuracy on `dev`."""
    train = [(line.get("seen", {}).get(name), line.get("top1", {}).get(name)) for line in log.train]
    known = [(x, y) for x, y in train if x is not None and y is not None]
    return {"loss": _thinned(log.losses(name)), "train": _thinned(known), "dev": _thinned(log.dev_top1(name))}


def _thinned(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """At most `CURVE_POINTS` means of neighbours."""
    if not points:
        return []
    parts = np.array_split(np.asarray(points, np.float64), min(CURVE_POINTS, len(points)))
    return [[float(part[-1, 0]), round(float(part[:, 1].mean()), 4)] for part in parts]
