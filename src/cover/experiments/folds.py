"""Folds of a recipe: K runs of one recipe, each without one fold of a data set, and the accuracy over all folds.

cover evaluate runs/mine --catalog catalog.yaml --folds 5
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from cover import config
from cover.console import print_table, say
from cover.datasets.catalog import Catalog, DatasetSpec, load_catalog
from cover.datasets.exclusions import excluded_rows
from cover.datasets.manifest import ClassList, Row, open_manifest, write_manifest
from cover.datasets.prepare import prepared_entry
from cover.datasets.splits import folds
from cover.distributed import ProcessGroup, started_by_torchrun
from cover.errors import UserError
from cover.evaluation.answers import Answers
from cover.evaluation.baselines import fold_baselines, print_baselines, shortfalls
from cover.evaluation.cached_views import trained_cache
from cover.evaluation.evaluate import evaluate
from cover.evaluation.metrics import Outcomes
from cover.evaluation.protocol import EvaluationTask, find_tasks
from cover.evaluation.statistics import proportion, with_interval
from cover.experiments.run_files import read_result, write_result
from cover.hardware import pick_device
from cover.locks import alone_in
from cover.media.decode import Decoder
from cover.media.sampling import Views
from cover.mixture.rates import Data
from cover.model.release import find_release, load_release, trained_on, weights_digest
from cover.training.recipe import RECIPE, Recipe
from cover.training.resume import has_started
from cover.training.train import train
from cover.yaml_files import Dumper

MEASURED = "val"  # name of the split with the test rows of a fold
PROTOCOL = ("media", "views", "frames", "sampling", "classes", "class_digest", "head", "multi_label")


@dataclass(frozen=True)
class FoldRequest:
    """Into how many folds the data sets `names` are divided.

    `seed`: of the division. `views`, `decoder`: as for `cover evaluate`.
    `baselines`: whether trivial methods are measured on the same folds.
    """

    names: tuple[str, ...]
    count: int
    seed: int = 0
    views: str | None = None
    decoder: Decoder = "pyav"
    device: str = "auto"
    workers: int = 0
    baselines: bool = True


@dataclass(frozen=True)
class DividedSet:
    """A data set with all its splits joined, and its folds.

    `rows`: the labelled rows, each sample id once. `folds`: the train rows and the test rows of each fold. Rows that
    cannot be read are among them, so that they are counted.
    """

    spec: DatasetSpec
    classes: ClassList
    rows: list[Row]
    folds: list[tuple[list[Row], list[Row]]]


# --- rows -------------------------------------------------------------------------------------------------------------


def divide(catalog: Catalog, request: FoldRequest, exclusions: bool) -> list[DividedSet]:
    """The folds of the data sets. `exclusions`: whether the rows that `cover overlap` lists are left out.

    Raises `UserError`, with the name of the data set, if it cannot be divided.
    """
    return [_divide(catalog, name, request, exclusions) for name in request.names]


def _divide(catalog: Catalog, name: str, request: FoldRequest, exclusions: bool) -> DividedSet:
    rows, classes = joined_rows(catalog, name, exclusions)
    if classes.many:
        raise UserError(f"{name}: folds need one class for each sample, and its samples have any number")
    usable = [row for row in rows if row.state == "ok"]
    try:
        parts = folds(usable, request.count, request.seed, classes.names)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    place = {row.group_id: fold for fold, (_, test) in enumerate(parts) for row in test}
    # A row that cannot be read goes with its group, or into the first fold if nothing of its group can be read.
    fold_of = [place.get(row.group_id, 0) for row in rows]
    divided = [
        (
            [row for row, own in zip(rows, fold_of, strict=True) if own != fold],
            [row for row, own in zip(rows, fold_of, strict=True) if own == fold],
        )
        for fold in range(request.count)
    ]
    return DividedSet(catalog.spec(name), classes, rows, divided)


def joined_rows(catalog: Catalog, name: str, exclusions: bool) -> tuple[list[Row], ClassList]:
    """The labelled rows of all splits of a data set, each sample id once, and the classes.

    Raises `UserError` if it is not indexed.
    """
    spec, rows = catalog.spec(name), dict[str, Row]()
    paths = {split: catalog.manifest_path(name, split) for split in spec.splits}
    manifests = {
        split: catalog.manifest(name, split)
        for split, path in paths.items()
        if split in spec.annotations or path.is_file()
    }
    for split, manifest in manifests.items():
        left_out = _excluded(catalog, name) if exclusions and split == "train" else set()
        for number, row in enumerate(manifest.rows()):
            if number not in left_out and (row.label is not None or row.labels is not None):
                rows.setdefault(row.sample_id, row)
    return list(rows.values()), next(iter(manifests.values())).classes


def _excluded(catalog: Catalog, name: str) -> set[int]:
    excluded = excluded_rows(catalog, [name])
    return set(excluded[name].tolist()) if excluded else set()


# --- catalogs ---------------------------------------------------------------------------------------------------------


def write_catalog(
    folder: Path, catalog: Catalog, own: Mapping[str, tuple[DividedSet, Mapping[str, list[Row]]]], data: Data
) -> Path:
    """Write a catalog with manifests of row subsets into `folder`; returns its path.

    `own`: data set -> its division, and the rows of each split. The other data sets of `data.sets` are taken from
    `catalog` as they are. Files that have the same content already stay as they are. Raises `UserError` if they have
    another, or if they cannot be written.
    """
    try:
        return _write_catalog(folder, catalog, own, data)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _write_catalog(
    folder: Path, catalog: Catalog, own: Mapping[str, tuple[DividedSet, Mapping[str, list[Row]]]], data: Data
) -> Path:
    entries = {
        name: _write_set(folder / "data", divided.spec, divided.classes, splits)
        for name, (divided, splits) in own.items()
    }
    for name in data.sets:
        if name not in own:
            entries[name] = _other_set(folder / "data", catalog, catalog.spec(name), data.exclusions == "use")
    path = folder / "catalog.yaml"
    text = yaml.dump(entries, Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise _other_rows(folder)
    beside = path.with_name(".catalog.yaml")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
    return path


def _other_set(folder: Path, catalog: Catalog, spec: DatasetSpec, exclusions: bool) -> dict[str, Any]:
    """The entry of a data set that is not divided. It has no rows of `cover overlap` in train, because the list of
    exclusions stays beside the original manifests.
    """
    paths = {split: catalog.manifest_path(spec.name, split) for split in spec.splits}
    paths = {split: path for split, path in paths.items() if path.is_file()}
    entry = prepared_entry(spec, {split: str(path.absolute()) for split, path in paths.items()})
    left_out = _excluded(catalog, spec.name) if exclusions and "train" in paths else set()
    if left_out:
        manifest = catalog.manifest(spec.name, "train")
        rows = [row for number, row in enumerate(manifest.rows()) if number not in left_out]
        entry["annotations"] |= _write_set(folder, spec, manifest.classes, {"train": rows})["annotations"]
    return entry


def _write_set(folder: Path, spec: DatasetSpec, classes: ClassList, splits: Mapping[str, list[Row]]) -> dict[str, Any]:
    """Write the manifests of a data set; returns its catalog entry."""
    paths = {}
    for split, rows in splits.items():
        path = folder / f"{spec.name}-{split}.arrow"
        new = path.with_suffix(".new")
        write_manifest(new, spec.name, split, spec.media, classes, rows)
        if path.is_file() and open_manifest(path).digest() != open_manifest(new).digest():
            new.unlink()
            raise _other_rows(folder.parent)
        new.replace(path)
        paths[split] = str(path.absolute())
    return prepared_entry(spec, paths)


def _other_rows(folder: Path) -> UserError:
    return UserError(
        f"{folder}: was begun with other rows or another catalog entry (cover index); remove it to begin anew"
    )


# --- runs -------------------------------------------------------------------------------------------------------------


def all_rows(folder: Path, catalog: Catalog, divided: DividedSet) -> Catalog:
    """A catalog in `folder` whose `train` split has all rows of a divided data set. Raises `UserError`."""
    name = divided.spec.name
    own = {name: (divided, {"train": divided.rows})}
    return load_catalog(write_catalog(folder, catalog, own, Data([name], str(catalog.path))))


def with_baselines(result: dict[str, Any], whole: Catalog, divided: DividedSet, request: FoldRequest) -> dict[str, Any]:
    """The result of `pooled` with `baselines`, what trivial methods reach over the same folds, if they are requested.

    `whole`: as `all_rows` returns. `baselines` has also `behind`, those that the model is not above.
    """
    if not request.baselines:
        return result
    manifest = open_manifest(whole.manifest_path(divided.spec.name, "train"))
    numbers = {row.sample_id: number for number, row in enumerate(manifest.rows())}
    folds = [np.array([numbers[row.sample_id] for row in test], np.int64) for _, test in divided.folds]
    found = fold_baselines(manifest, folds, request.workers)
    behind = shortfalls(found, result["top1"], result["top1_interval"]["low"])
    return {**result, "baselines": {**found, "behind": behind}}


def fold_folder(out: Path, request: FoldRequest, fold: int) -> Path:
    """The folder of a fold below `out`. `fold`: 0 to `count` - 1."""
    seed = f"-s{request.seed}" if request.seed else ""
    return out / f"fold{fold + 1}of{request.count}{seed}"


def run_folds(
    recipe: Recipe, catalog: Catalog, divided: Sequence[DividedSet], request: FoldRequest, out: Path
) -> dict[str, dict[str, Any]]:
    """Train `recipe` once for each fold without its test rows, and measure the test rows.

    The runs are in folders below `out`. Finished folds are not repeated, and an interrupted one is resumed. Returns for
    each data set what `with_baselines` returns. Raises `UserError`.
    """
    with alone_in(out):
        results = [_run_fold(recipe, catalog, divided, request, out, fold) for fold in range(request.count)]
    return {
        each.spec.name: with_baselines(
            pooled([own[each.spec.name] for own in results], request),
            all_rows(out / "all" / each.spec.name, catalog, each),
            each,
            request,
        )
        for each in divided
    }


def _run_fold(
    recipe: Recipe, catalog: Catalog, divided: Sequence[DividedSet], request: FoldRequest, out: Path, fold: int
) -> dict[str, dict[str, Any]]:
    folder = fold_folder(out, request, fold)
    own = {each.spec.name: (each, {"train": each.folds[fold][0], MEASURED: each.folds[fold][1]}) for each in divided}
    path = write_catalog(folder, catalog, own, recipe.data)
    say(f"fold {fold + 1} of {request.count}: {folder}")
    run = folder / "run"
    own_recipe = replace(recipe, out=str(run), data=replace(recipe.data, catalog=str(path)))
    train(own_recipe, resume=has_started(run))
    return measure_fold(load_catalog(path), run, request, folder / "results.json")


def measure_fold(
    catalog: Catalog,
    run: Path,
    request: FoldRequest,
    path: Path,
    cache: Path | None = None,
    temperature: float | None = None,
) -> dict[str, dict[str, Any]]:
    """The results of a fold, data set -> result. They are stored in `path` and reused for the same weights and views.

    Each has the protocol and `answers`: the test samples with their group, their class and the predicted class. The
    predicted class is None if two classes share the highest score, which is its `confidence`. `cache`: the folder of
    the cached outputs that the run was trained from, None to compute all outputs. `temperature`: divides the logits.
    """
    stamp: dict[str, Any] = {
        "weights": weights_digest(run),
        "views": request.views,
        "decoder": request.decoder,
        "answers": "with confidence",
    }
    if temperature is not None:
        stamp["temperature"] = temperature
    stored = read_result(path)
    if stored is None or stored["stamp"] != stamp:
        model, device = load_release(find_release(run)), pick_device(request.device)
        model.to(device)
        views = Views.parse(request.views) if request.views else None
        tasks = find_tasks(catalog, model, model.frames, MEASURED, request.names, views, request.decoder)
        if temperature is not None:
            for name in {task.head.name for task in tasks}:
                model.divide_logits(name, temperature)
        stored = {"stamp": stamp, "sets": {}}
        for task in tasks:
            predictions = _Predictions()
            prefix = None if cache is None else trained_cache(model, ProcessGroup(device), cache)
            result = evaluate(model, task, device, request.workers, keep=predictions.add, prefix=prefix)["plain"]
            stored["sets"][task.spec.name] = {**result, "answers": predictions.answers(task)}
        write_result(stored, path)
    sets: dict[str, dict[str, Any]] = stored["sets"]
    return sets


class _Predictions:
    """The predictions on the test rows of a fold."""

    def __init__(self) -> None:
        self._outcomes = Outcomes()

    def add(self, task: EvaluationTask, variant: str, numbers: list[int], scores: torch.Tensor) -> None:
        labels = torch.from_numpy(np.asarray(task.relabel[task.manifest.labels[numbers]], np.int64))
        self._outcomes.update(numbers, scores.mean(1), labels)

    def answers(self, task: EvaluationTask) -> list[dict[str, Any]]:
        """One dict for each sample, in the order of the manifest."""
        self._outcomes.merge([])
        return list(self._answers(task))

    def _answers(self, task: EvaluationTask) -> Iterator[dict[str, Any]]:
        names = task.classes
        found = self._outcomes
        columns = (found.rows, found.labels, found.predicted, found.confidence)
        for number, label, predicted, score in zip(*(column.tolist() for column in columns), strict=True):
            row = task.manifest.row(number)
            answer = names[predicted] if predicted >= 0 else None
            yield {
                "sample_id": row.sample_id,
                "group": row.group_id,
                "class": names[label],
                "predicted": answer,
                "confidence": round(score, 6),
            }


# --- results ----------------------------------------------------------------------------------------------------------


def pooled(results: Sequence[Mapping[str, Any]], request: FoldRequest) -> dict[str, Any]:
    """The results of a data set over all folds.

    `top1` is the fraction of right answers over the test samples of all folds, with `top1_interval` over
    groups. `top1_listed` counts samples that were not read as wrong. `by_fold`: the figures of each fold. `answers`:
    every sample with its fold, as in `measure_fold`.
    """
    answers = [{"fold": fold, **answer} for fold, own in enumerate(results, start=1) for answer in own["answers"]]
    right = [answer["predicted"] == answer["class"] for answer in answers]
    groups = [answer["group"] for answer in answers]
    if not right:
        raise UserError(f"{results[0]['dataset']}: none of its test samples could be read")
    interval, listed = asdict(proportion(right, groups)), sum(own["n_listed"] for own in results)
    by_fold = [
        {"fold": fold, "top1": own["top1"], "n_read": own["n_read"], "n_listed": own["n_listed"]}
        for fold, own in enumerate(results, start=1)
    ]
    return {
        "dataset": results[0]["dataset"],
        "folds": request.count,
        "seed": request.seed,
        "step": results[0].get("step"),
        "top1": sum(right) / len(right),
        "top1_interval": {"low": interval["low"], "high": interval["high"], "groups": len(set(groups))},
        "top1_listed": sum(right) / listed,
        "n_read": len(right),
        "n_listed": listed,
        **{key: results[0][key] for key in PROTOCOL},
        "by_fold": by_fold,
        "answers": answers,
    }


def fold_answers(result: Mapping[str, Any], whole: Catalog) -> Answers:
    """The answers of `pooled` with their rows in `whole`, as `all_rows` returns it."""
    manifest = whole.manifest(result["dataset"], "train")
    rows = {row.sample_id: number for number, row in enumerate(manifest.rows())}
    place = {name: number for number, name in enumerate(manifest.classes.names)}
    answers = sorted(result["answers"], key=lambda answer: rows[answer["sample_id"]])
    return Answers(
        result["dataset"],
        f"{result['folds']} folds",
        str(manifest.path),
        manifest.digest(),
        list(manifest.classes.names),
        result["n_listed"],
        [rows[answer["sample_id"]] for answer in answers],
        [place[answer["class"]] for answer in answers],
        [place.get(answer["predicted"], -1) for answer in answers],
        [answer["confidence"] for answer in answers],
    )


def print_folds(results: Sequence[dict[str, Any]]) -> None:
    """Print one table row for each data set on stdout, and the baselines below."""
    columns = ["data set", "folds", "top-1", "by fold", "read", "listed", "groups", "views", "classes"]
    print_table(columns, [_cells(row) for row in results])
    print_baselines(results)


def _cells(row: Mapping[str, Any]) -> list[str]:
    interval = row["top1_interval"]
    by_fold = " ".join("-" if own["top1"] is None else f"{100 * own['top1']:.1f}" for own in row["by_fold"])
    counts = [str(row[key]) for key in ("n_read", "n_listed")]
    groups, classes = str(interval["groups"]), f"{row['classes']} ({row['class_digest']})"
    return [
        row["dataset"],
        str(row["folds"]),
        with_interval(row["top1"], interval["low"], interval["high"]),
        by_fold,
        *counts,
        groups,
        row["views"],
        classes,
    ]


# --- folds of a run that is there -------------------------------------------------------------------------------------


def folds_of_run(run: Path, catalog_path: Path, request: FoldRequest) -> list[dict[str, Any]]:
    """Train the recipe of a run once more for each fold, and return the results of its data sets.

    The runs are in `RUN/folds`. Without names in `request`, the only data set of the run is divided. Raises
    `UserError`.
    """
    if started_by_torchrun():
        raise UserError("torchrun: --folds trains in one process; leave torchrun out")
    if not has_started(run):
        raise UserError(f"--folds: {run} is no run folder with a {RECIPE}, and folds repeat the training of a run")
    recipe = config.load(Recipe, run / RECIPE)
    sets = recipe.data.sets
    if not request.names and len(sets) > 1:
        raise UserError(f"--folds: {run} trains {', '.join(sets)}; name the data sets to divide")
    request = replace(request, names=request.names or tuple(sets))
    for name in request.names:
        if name not in sets:
            raise UserError(f"--folds: {run} does not train {name}; it trains {', '.join(sets)}")
    catalog = load_catalog(catalog_path)
    check_start(recipe, request)
    divided = divide(catalog, request, recipe.data.exclusions == "use")
    recipe = replace(recipe, device=request.device, workers=request.workers)
    results = run_folds(recipe, catalog, divided, request, run / "folds")
    origin = {"checkpoint": str(run), "catalog": str(catalog_path), "split": f"{request.count} folds"}
    return [{**origin, **result} for result in results.values()]


def check_start(recipe: Recipe, request: FoldRequest) -> None:
    """Raises `UserError` if the starting weights were trained on a data set whose folds are measured."""
    if not recipe.start.checkpoint:
        return
    for name in request.names:
        if name in trained_on(recipe.start.checkpoint):
            raise UserError(
                f"--folds: start.checkpoint {recipe.start.checkpoint} was trained on {name},"
                " so it has seen the samples that the folds measure"
            )
