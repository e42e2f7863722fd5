"""Execution of a study's runs that are not done yet, in parallel processes.

`runs/NAME` is the folder of a run. `results/NAME.json` is its result. A result counts only for the same recipe, the
same manifests and the same starting weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cover.console import Meter, be_silent, say
from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.evaluation.cached_views import trained_cache
from cover.evaluation.evaluate import evaluate
from cover.evaluation.metrics import Outcomes
from cover.evaluation.protocol import EvaluationTask, find_tasks
from cover.experiments.run_files import RunHistory, read_log, read_result, write_result
from cover.experiments.study.arms import Job
from cover.experiments.study.subsets import MEASURED, SubsetBuilder
from cover.hardware import pick_device
from cover.machine import cores
from cover.model.release import find_release, load_release, steps_saved
from cover.processes import ProcessPool, WorkerLost
from cover.training import checkpoint
from cover.training.recipe import Recipe
from cover.training.resume import has_started
from cover.training.retention import best_step, dev_scores
from cover.training.train import train

# files of a study
RESULTS, REPORT, MARKDOWN, STUDY = "results.json", "report.html", "report.md", "study.yaml"
CURVE_POINTS = 24  # of a learning curve in a result


@dataclass(frozen=True)
class Order:
    """A job in the form in which it is sent to a process.

    `entries`: the catalog entries of its data sets. `measured`: the data sets to evaluate on. `start`: the folder of
    the run with the starting weights; they are those of the checkpoint that is best by `start_best`.
    """

    name: str
    digest: str
    recipe: Recipe
    entries: dict[str, Any]
    measured: tuple[str, ...]
    start: Path | None
    start_best: str = ""


def run_missing(jobs: Sequence[Sequence[Job]], builder: SubsetBuilder, out: Path, workers: int) -> int:
    """Run the jobs that are not done, one list after the other, in `workers` processes. Returns their number.

    Raises `UserError`, with the name of the run, if a run fails.
    """
    out = out.absolute()
    orders = [[order_of(job, builder, out) for job in wave] for wave in jobs]
    missing = find_missing(orders, out)
    total, count = sum(map(len, orders)), sum(map(len, missing))
    left = f", {count} are left, {workers} at a time" if count else ""
    say(f"study: {total - count} of {total} runs are done{left}")
    if not count:
        return 0
    steps = sum(order.recipe.step_count for wave in missing for order in wave)
    with Meter("study", total=total, done=total - count, work=steps) as meter:
        for wave in missing:
            _run_wave(wave, out, workers, meter)
    return count


def find_missing(orders: Sequence[Sequence[Order]], out: Path) -> list[list[Order]]:
    """The runs to do: runs without a result, and runs whose weights such a run needs and which are not there.

    The starting weights of a run come from the lists before its own.
    """
    needed: set[str] = set()
    missing: list[list[Order]] = []
    for wave in reversed(orders):
        own = [
            order for order in wave if not is_done(order, out) or (order.name in needed and not is_trained(order, out))
        ]
        needed |= {order.start.name for order in own if order.start is not None}
        missing.insert(0, own)
    return missing


def is_trained(order: Order, out: Path) -> bool:
    """Whether the folder of a run holds exactly this run, and it is finished."""
    run = run_of(out, order.name)
    stamp = stamp_of(run)
    same = stamp.exists() and stamp.read_text() == order.digest
    return same and max(steps_saved(run), default=0) >= order.recipe.step_count


def stamp_of(run: Path) -> Path:
    """The file with the digest of the job for which a run's folder was created."""
    return run.parent / f".{run.name}.digest"


def order_of(job: Job, builder: SubsetBuilder, out: Path) -> Order:
    """The order of a job."""
    entries = {name: builder.entry(subset) for name, subset in job.subsets.items()}
    start = run_of(out, job.start.name) if job.start is not None else None
    start_best = job.start.recipe.checkpoints.best if job.start is not None else ""
    return Order(job.name, job.digest, job.recipe, entries, tuple(sorted(job.measured)), start, start_best)


def run_of(out: Path, name: str) -> Path:
    """The folder of a run."""
    return out / "runs" / name


def result_path(out: Path, name: str) -> Path:
    """The result file of a run."""
    return out / "results" / f"{name}.json"


def is_done(order: Order, out: Path) -> bool:
    """Whether there is a result of exactly this job on all its data sets."""
    result = read_result(result_path(out, order.name))
    return result is not None and result["digest"] == order.digest and set(order.measured) <= set(result["measured"])


def _run_wave(orders: Sequence[Order], out: Path, workers: int, meter: Meter) -> None:
    if workers == 1:
        for order in orders:
            run_order(order, out)
            meter.advance(note=order.name, work=order.recipe.step_count)
        return
    # The number of threads does not grow for a list with fewer runs: too many threads wait for each other.
    threads = max(1, cores() // workers)
    run = partial(run_order, out=out)
    try:
        # An error ends the pool and all runs in it. They continue from their checkpoints in the next call.
        with ProcessPool(workers, partial(_begin_worker, threads), preload=__name__, children=True) as pool:
            for ((order, _),) in pool.as_completed(run, orders):
                meter.advance(note=order.name, work=order.recipe.step_count)
    except WorkerLost:
        raise UserError(
            "a process was killed, perhaps because memory is short; the same command continues, with fewer --jobs"
        ) from None


def _begin_worker(threads: int) -> None:
    be_silent()
    torch.set_num_threads(threads)


def run_order(order: Order, out: Path) -> None:
    """Train one run or resume it, and write its result. Raises `UserError` with the name of the run."""
    try:
        run = _train(order, out)
        _measure(order, run, out)
    except UserError as error:
        raise UserError(f"{order.name}: {error}") from None


def _train(order: Order, out: Path) -> Path:
    run, catalog = run_of(out, order.name), out / "catalogs" / f"{order.name}.yaml"
    catalog.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(order.entries, sort_keys=False, default_flow_style=None, width=1000)
    catalog.write_text(text, encoding="utf-8")
    recipe = replace(order.recipe, out=str(run), data=replace(order.recipe.data, catalog=str(catalog)))
    if order.start is not None:
        recipe = replace(recipe, start=replace(recipe.start, checkpoint=str(best_of(order.start, order.start_best))))
    _drop_another(run, order)
    return train(recipe, resume=has_started(run))


def _drop_another(run: Path, order: Order) -> None:
    """Rename the folder of another run of the same name, from before a change of the study or of its data."""
    stamp = stamp_of(run)
    if run.exists() and (not stamp.exists() or stamp.read_text() != order.digest):
        old = run.with_name(f"{run.name}.old")
        number = 1
        while old.exists():
            number += 1
            old = run.with_name(f"{run.name}.old{number}")
        run.rename(old)
        say(f"{order.name}: was begun as another run; that one is now {old}")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(order.digest)


def best_of(run: Path, by: str) -> Path:
    """The checkpoint that is best on `dev`, or the last one without `dev`. `by`: as `checkpoints.best` of a recipe."""
    step = best_step(dev_scores(run / "log.jsonl"), steps_saved(run), by)
    return find_release(run) if step is None else checkpoint.folder_of(run, step)


def _measure(order: Order, run: Path, out: Path) -> None:
    folder = best_of(run, order.recipe.checkpoints.best)
    model = load_release(folder)
    device = pick_device(order.recipe.device)
    model.to(device)
    catalog = load_catalog(out / "catalogs" / f"{order.name}.yaml")
    prefix = trained_cache(model, ProcessGroup(device), order.recipe.cache.folder)
    measured = {}
    # Without names, all data sets would be measured; a source of transfers is measured on none.
    tasks = find_tasks(catalog, model, model.frames, MEASURED, list(order.measured)) if order.measured else []
    for task in tasks:
        predictions = _ArmPredictions()
        result = evaluate(model, task, device, 0, keep=predictions.add, prefix=prefix)["plain"]
        measured[task.spec.name] = {**result, **predictions.items(task)}
    log = read_log(run / "log.jsonl")
    result = {
        "name": order.name,
        "digest": order.digest,
        "step": model.metadata["step"],
        "steps": order.recipe.step_count,
        "seed": order.recipe.seed,
        "lr": order.recipe.optimizer.lr,
        "sets": order.recipe.data.sets,
        "batch": order.recipe.batch,
        "seen": log.last().get("seen", {}),
        "rate_realised": log.last().get("rate_realised"),
        "seconds": log.last().get("seconds"),
        "dev": _dev(run, model.metadata["step"]),
        "curves": {name: _curve(log, name) for name in order.recipe.data.sets},
        "measured": measured,
    }
    write_result(result, result_path(out, order.name))


class _ArmPredictions:
    """The predictions on all samples of a data set."""

    def __init__(self) -> None:
        self._outcomes = Outcomes()

    def add(self, task: EvaluationTask, variant: str, numbers: list[int], scores: torch.Tensor) -> None:
        labels = task.relabel[task.manifest.labels[numbers]]
        self._outcomes.update(numbers, scores.mean(1), torch.from_numpy(np.asarray(labels, np.int64)))

    def items(self, task: EvaluationTask) -> dict[str, Any]:
        """Ids, sources, labels and predictions of the samples, in the order of the manifest."""
        self._outcomes.merge([])
        manifest = open_manifest(task.manifest.path)
        rows = [manifest.row(int(number)) for number in self._outcomes.rows]
        return {
            "ids": [row.sample_id for row in rows],
            "sources": [row.group_id for row in rows],
            "labels": self._outcomes.labels.tolist(),
            "predicted": self._outcomes.predicted.tolist(),
            "class_names": list(task.classes),
        }


def _dev(run: Path, step: int) -> dict[str, float]:
    """The top-1 of each data set on `dev` at the checkpoint of `step`."""
    for line in read_log(run / "log.jsonl").dev:
        if line.get("step") == step:
            return {name: result["top1"] for name, result in line["datasets"].items() if result.get("top1") is not None}
    return {}


def _curve(log: RunHistory, name: str) -> dict[str, list[list[float]]]:
    """Loss and accuracy in training, and accuracy on `dev`, over the training samples of the data set so far."""
    train = [(line.get("seen", {}).get(name), line.get("top1", {}).get(name)) for line in log.train]
    known = [(x, y) for x, y in train if x is not None and y is not None]
    return {"loss": _thinned(log.losses(name)), "train": _thinned(known), "dev": _thinned(log.dev_top1(name))}


def _thinned(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    """At most `CURVE_POINTS` points, each the mean of neighbouring points."""
    if not points:
        return []
    parts = np.array_split(np.asarray(points, np.float64), min(CURVE_POINTS, len(points)))
    return [[float(part[-1, 0]), round(float(part[:, 1].mean()), 4)] for part in parts]
