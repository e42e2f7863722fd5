"""Evaluation of a model on a split, the score file, and the tables of results on the terminal.

Every readable sample is evaluated once. No sample is dropped, padded or replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cover.console import Meter, print_table, say
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.changes import ChangedFiles, changed_files
from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.evaluation.answers import Answers
from cover.evaluation.baselines import baselines, print_baselines, shortfalls
from cover.evaluation.cached_views import cache_views, cached_batches, trained_cache
from cover.evaluation.metrics import MeanAveragePrecision, Outcomes, TopK
from cover.evaluation.protocol import EvaluationTask, ScaledViews, find_tasks
from cover.evaluation.statistics import with_interval
from cover.evaluation.view_reader import batches
from cover.hardware import pick_device
from cover.media.decode import Decoder, FileProblem, check_decoder
from cover.media.sampling import Views
from cover.mixture.prefix_cache import PrefixCache
from cover.model.cover import CoVeR
from cover.model.heads import NOT_FINITE, finite_samples
from cover.model.release import find_release, load_release

Variant = Literal["plain", "shuffled", "reversed", "single"]


_Samples = list[ScaledViews] | np.ndarray  # views, or outputs of the first stages of a network, `(B, V, T, ...)`


def apply_variant(views: ScaledViews, variant: Variant, number: int, seed: int) -> ScaledViews:
    """The views of a variant: the frames in another order, or the middle frame alone.

    `number`: the manifest row of the sample. The shuffled order depends on the seed and the row only, so it is the same
    for every batch size.
    """
    shown = views.shown
    if variant == "single":
        shown = shown[:, shown.shape[1] // 2, None]
    if variant == "reversed":
        shown = shown[:, ::-1].copy()
    if variant == "shuffled":
        ordered = np.tile(np.arange(shown.shape[1]), (len(shown), 1))
        order = np.random.default_rng([seed, number]).permuted(ordered, axis=1)
        shown = np.take_along_axis(shown, order, axis=1)
    return replace(views, shown=shown)


def _of_variant(views: Sequence[ScaledViews], variant: Variant, numbers: list[int], seed: int) -> list[ScaledViews]:
    return [apply_variant(each, variant, number, seed) for each, number in zip(views, numbers, strict=True)]


# --- score file ---

_SCHEMA = pa.schema(
    {
        "dataset": pa.string(),
        "split": pa.string(),
        "variant": pa.string(),
        "row": pa.int64(),
        "sample_id": pa.string(),
        "source_id": pa.string(),
        "label": pa.int32(),
        "labels": pa.list_(pa.int32()),
        "scores": pa.list_(pa.float32()),
        "view_scores": pa.list_(pa.list_(pa.float32())),
    }
)


class ScoreFile:
    """An Arrow file with the scores of every sample and variant, one row each.

    Column `scores`: the mean over the views, in the order of the result's `class_names`. Column `view_scores`: the
    scores of each view, with all crops of the first temporal offset first. With several processes, each writes its own
    file NAME.RANK. With `path` None nothing is written.

    >>> table = pyarrow.ipc.open_file("scores.arrow").read_all()
    """

    def __init__(self, path: Path | None, rank: int = 0, ranks: int = 1) -> None:
        self.path = path if path is None or ranks == 1 else path.with_name(f"{path.name}.{rank}")
        self._writer: Any = None

    def __enter__(self) -> ScoreFile:
        if self.path is not None:
            try:
                self._writer = pa.ipc.new_file(pa.OSFile(str(self.path), "wb"), _SCHEMA)
            except OSError as error:
                raise UserError(f"--scores: {self.path}: cannot be written: {error.strerror or error}") from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def keep(self, task: EvaluationTask, variant: Variant, numbers: list[int], scores: Tensor) -> None:
        """Write samples. `numbers`: their manifest rows. `scores`: float `(B, V, classes)`."""
        rows = [task.manifest.row(number) for number in numbers]
        columns = {
            "dataset": [task.spec.name] * len(rows),
            "split": [task.manifest.split] * len(rows),
            "variant": [variant] * len(rows),
            "row": numbers,
            "sample_id": [row.sample_id for row in rows],
            "source_id": [row.source_id for row in rows],
            "label": [None if row.label is None else int(task.relabel[row.label]) for row in rows],
            "labels": [row.labels for row in rows],
            "scores": scores.mean(1).tolist(),
            "view_scores": scores.tolist(),
        }
        arrays = [pa.array(columns[field.name], field.type) for field in _SCHEMA]
        self._writer.write_batch(pa.record_batch(arrays, schema=_SCHEMA))


# --- tables on the terminal ---

_PERCENTAGES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class": "mean class",
    "top1_listed": "top-1 of listed",
    "ece": "ECE",
    "map": "mAP",
    "map_listed": "mAP of listed",
    "hit1": "hit at 1",
}


def print_results(results: Sequence[dict[str, Any]]) -> None:
    """Print one table row per data set, variant and checkpoint on stdout, and problems with files on stderr."""
    shown = {key: title for key, title in _PERCENTAGES.items() if any(row.get(key) is not None for row in results)}
    several = len({row["checkpoint"] for row in results}) > 1
    protocol = ["read", "listed", "views", "split", "step", "classes"]
    titles = [*["checkpoint"] * several, "data set", "frames", *shown.values(), *protocol]
    print_table(titles, [[*[row["checkpoint"]] * several, *_cells(row, list(shown))] for row in results])
    print_baselines(results)
    for row in results:
        if row["n_notes"] and row["variant"] == "plain":
            say(f"{row['dataset']}: {row['n_notes']} files damaged or unreadable, the first: {row['notes'][0]}")
        if row["n_changed"] and row["variant"] == "plain":
            say(f"warning: {row['changed']}")
        if row["unmapped"] and row["variant"] == "plain":
            lacks = f"head {row['head']} lacks {len(row['unmapped'])} of its classes"
            say(f"{row['dataset']}: {lacks}; their samples are not among the listed")


def _cells(row: dict[str, Any], keys: list[str]) -> list[Any]:
    frames = {"plain": "", "shuffled": " shuffled", "reversed": " reversed", "single": ""}[row["variant"]]
    figures = [_with_interval(row) if key == "top1" else _percent(row.get(key)) for key in keys]
    step = "-" if row["step"] is None else row["step"]  # an imported model has no step
    classes = f"{len(row['class_names'])} of {row['classes']}" if row["unmapped"] else str(row["classes"])
    protocol = [row[key] for key in ("n_read", "n_listed", "views", "split")]
    return [row["dataset"], f"{row['frames']}{frames}", *figures, *protocol, step, f"{classes} ({row['class_digest']})"]


def print_classes(results: Sequence[dict[str, Any]], most: int) -> None:
    """Print the `most` weakest classes of every data set, and its most frequent wrong answers."""
    for row in results:
        if row["variant"] != "plain":
            continue
        counts = zip(row["per_class"], row["class_names"], strict=True)
        known = [(right, total, name) for (right, total), name in counts if total]
        known.sort(key=lambda entry: (_class_accuracy(entry, row), entry[2]))
        titles = ["class", "AP" if row["multi_label"] else "right", "samples read"]
        print(f"\n{row['dataset']} {row['split']}: the weakest of {len(known)} classes")
        print_table(titles, [[entry[2], _percent(_class_accuracy(entry, row)), entry[1]] for entry in known[:most]])
        if confusions := (row.get("confusions") or [])[:most]:
            pairs = [[each["true"], each["predicted"], f"{each['count']} of {each['of']}"] for each in confusions]
            print_table(["true", "predicted", "samples"], pairs)


def _class_accuracy(entry: tuple[float, int, str], row: dict[str, Any]) -> float:
    right, total, _ = entry
    return right if row["multi_label"] else right / total


def _with_interval(row: dict[str, Any]) -> str:
    interval = row.get("top1_interval")
    return with_interval(row["top1"], interval["low"], interval["high"]) if interval else _percent(row.get("top1"))


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"


# --- evaluation of one task ---

SHOWN_NOTES = 20  # problems with files in a result
T = TypeVar("T")
# task, variant, rows, scores (B, V, classes)
ScoreCallback = Callable[[EvaluationTask, Variant, list[int], Tensor], None]


class Ranks(Protocol):
    """The group of processes that evaluate together.

    `rank`: the number of this process. `ranks`: the number of processes. `gather`: the values of all processes.
    """

    @property
    def rank(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    def gather(self, value: T) -> list[T]: ...


class _OneRank:
    rank, ranks = 0, 1

    def gather(self, value: T) -> list[T]:
        return [value]


ONE_RANK: Ranks = _OneRank()


def evaluate(
    model: CoVeR,
    task: EvaluationTask,
    device: torch.device | str,
    workers: int,
    variants: Sequence[Variant] = ("plain",),
    seed: int = 0,
    group: Ranks = ONE_RANK,
    keep: ScoreCallback | None = None,
    prefix: PrefixCache | None = None,
    check: bool = True,
    answers: list[Answers] | None = None,
) -> dict[Variant, dict[str, Any]]:
    """Evaluate all labelled samples of a split. Each file is decoded once for all views and variants.

    Variants: `plain`, the frames in order; `shuffled`, the frames of each clip in a random order; `reversed`, the
    frames backwards; `single`, the middle frame alone, as an image. View scores are averaged after the softmax.

    `seed`: of the shuffled orders. `group`: with R processes each takes every R-th row, and all
    return the result of the whole split. `keep`: called with the scores of every view. `prefix`: the cache of the first
    stages of `model`, which is filled where it lacks a view; variants other than `plain` change pixels and do not use
    it. `check`: raise `UserError` if more than 1 % of the files changed after they were indexed; without it they are
    only counted. `answers`: takes those of `plain`, for a single-label set. Returns for each variant the metrics
    (`TopK` and `Outcomes`, or `MeanAveragePrecision` of a multi-label set) and the protocol. A sample whose scores
    are not finite counts as one that could not be read.
    """
    listed = int(task.evaluated(np.flatnonzero(task.manifest.labelled)).size)
    rows = task.evaluated(task.manifest.usable)[group.rank :: group.ranks]
    changed = reduce(ChangedFiles.joined, group.gather(changed_files(task.manifest, rows)))
    if check and changed.too_many:
        raise UserError(f"{changed}; {task.renew}")
    plan = task.plan(model.backbone.pixels.size)
    cached = cache_views(prefix, model, task, workers) if prefix and tuple(variants) == ("plain",) else None
    stages = prefix.stages if prefix and cached else 0
    metrics = {variant: _SplitMetrics.of(task, listed) for variant in variants}
    problems: list[FileProblem] = []
    not_finite: set[int] = set()  # manifest rows with such scores in any variant
    with Meter(f"evaluate {task.spec.name} {task.manifest.split}", len(rows)) as meter:
        read: Iterator[tuple[list[int], Tensor, _Samples]]
        if cached:
            read = cached_batches(task, rows, cached, problems, meter.advance)
        else:
            read = batches(task, plan, rows, workers, problems, meter.advance)
        for numbers, labels, views in read:
            for variant in variants:
                shown = views if isinstance(views, np.ndarray) else _of_variant(views, variant, numbers, seed)
                scores = _scores(model, shown, task, device, stages)
                good = finite_samples(scores)
                own, scores = [number for number, finite in zip(numbers, good.tolist()) if finite], scores[good]
                not_finite |= set(numbers) - set(own)
                metrics[variant].update(own, scores.mean(1), labels[good])
                if keep is not None:
                    keep(task, variant, own, scores)
    problems += [FileProblem(task.manifest.row(row).path, "unreadable", NOT_FINITE) for row in sorted(not_finite)]
    problems = [problem for part in group.gather(problems) for problem in part]
    complete = {variant: own.gathered(group) for variant, own in metrics.items()}
    if answers is not None and "plain" in complete and (outcomes := complete["plain"].outcomes) is not None:
        split, manifest = task.manifest.split, task.manifest
        answers.append(Answers.of(task.spec.name, split, manifest, task.classes, listed, outcomes))
    return {
        variant: {**own.result(task), **_protocol(task, variant, problems, changed)}
        for variant, own in complete.items()
    }


@dataclass
class _SplitMetrics:
    """The metrics of a split, and the outcomes of its samples if the data set is single-label."""

    metric: TopK | MeanAveragePrecision
    outcomes: Outcomes | None

    @classmethod
    def of(cls, task: EvaluationTask, listed: int) -> _SplitMetrics:
        if task.manifest.classes.many:
            return cls(MeanAveragePrecision(task.manifest.class_counts(), listed), None)
        return cls(TopK(len(task.classes), listed), Outcomes())

    def update(self, numbers: list[int], scores: Tensor, labels: Tensor) -> None:
        self.metric.update(scores, labels)
        if self.outcomes is not None:
            self.outcomes.update(numbers, scores, labels)

    def gathered(self, group: Ranks) -> _SplitMetrics:
        first, *others = group.gather(self)
        for other in others:
            first.metric.merge(other.metric)  # type: ignore[arg-type]
        if first.outcomes is not None:
            first.outcomes.merge([other.outcomes for other in others if other.outcomes is not None])
        return first

    def result(self, task: EvaluationTask) -> dict[str, Any]:
        if self.outcomes is None:
            return self.metric.result()
        sources = task.manifest.sources(self.outcomes.rows)
        return {**self.metric.result(), **self.outcomes.result(sources, task.classes)}


def _protocol(
    task: EvaluationTask, variant: Variant, problems: Sequence[FileProblem], changed: ChangedFiles
) -> dict[str, Any]:
    video, names = task.manifest.media == "video", task.manifest.classes.names
    return {
        "dataset": task.spec.name,
        "split": task.manifest.split,
        "media": task.manifest.media,
        "variant": variant,
        "views": str(task.views) if video else f"1x{task.views.spatial}",
        "frames": task.frames if video and variant != "single" else 1,
        "sampling": str(task.spec.sampling) if video else None,
        "classes": len(names),
        "class_digest": task.manifest.classes.digest,
        "decoder": check_decoder(task.decoder) if video else None,
        "head": task.head.name,
        "head_classes": len(task.head.classes),
        "multi_label": task.manifest.classes.many,
        "unmapped": [name for name in names if name not in set(task.classes)] if task.mapped else None,
        "not_ok": {k: n for k, n in task.manifest.counts().items() if n and k != "ok"},
        "notes": [str(problem) for problem in problems[:SHOWN_NOTES]],
        "n_notes": len(problems),
        "n_changed": changed.changed,
        "changed": f"{changed}; {task.renew}" if changed.changed else "",
    }


@torch.inference_mode()
def _scores(
    model: CoVeR,
    samples: _Samples,
    task: EvaluationTask,
    device: torch.device | str,
    stages: int = 0,
) -> Tensor:
    """The softmax or sigmoid over the task's classes for every view, float32 `(B, V, classes)`, on the CPU.

    `samples`: views, or with `stages` the output of so many stages, `(B, V, T, ...)`.
    """
    if isinstance(samples, np.ndarray):
        x, views, frames = torch.from_numpy(samples).to(device).flatten(0, 2).float(), *samples.shape[1:3]
    else:
        x = torch.cat([each.clips(lambda pixels: model.normalize(pixels.to(device))) for each in samples]).flatten(0, 1)
        views, frames = samples[0].shown.shape
    scores = model(x, ((len(samples) * views, frames),), stages=stages)
    logits = scores[task.head.name]
    return task.head.probabilities(logits[:, task.columns.to(device)]).view(len(samples), views, -1).cpu()


def evaluate_release(
    checkpoint: str | Path,
    catalog: Path,
    split: str,
    names: Sequence[str],
    views: str | None,
    variants: Sequence[Variant],
    device: str,
    workers: int,
    seed: int,
    decoder: Decoder = "pyav",
    other_heads: Mapping[str, str] | None = None,
    scores: Path | None = None,
    group: Ranks = ONE_RANK,
    cache: str | Path | None = None,
    with_baselines: bool = False,
) -> list[dict[str, Any]]:
    """The results of a checkpoint on a split, one dict per data set and variant.

    `names`, `other_heads`: see `find_tasks`. `views`: `TxS` in place of the catalog's views. `scores`: path of the
    `ScoreFile`, None for none. `cache`: the folder of cached outputs of the stages that were frozen in training, empty
    for the usual one, None to compute all (docs/caching.md). `with_baselines`: the `plain` result of a data set also
    has `baselines`, those of `baselines.baselines` on the samples that were read, with `behind`, those that the model
    is not above; only on the first of several processes. The other arguments are those of `evaluate`. Raises
    `UserError`.
    """
    check_decoder(decoder)
    folder = find_release(checkpoint)
    model = load_release(folder)
    where = pick_device(device)
    processes = replace(group, device=where) if isinstance(group, ProcessGroup) else ProcessGroup(where)
    prefix = None if cache is None else trained_cache(model, processes, cache)
    if cache is not None and prefix is None:
        raise UserError(f"--cache: {folder}: was trained without a cache (cache.stages of its recipe); leave it out")
    chosen_views = Views.parse(views) if views else None
    opened = load_catalog(catalog)
    tasks = find_tasks(opened, model, model.frames, split, names, chosen_views, decoder, other_heads)
    model.to(where)
    results = []
    with ScoreFile(scores, group.rank, group.ranks) as file:
        for task in tasks:
            read, wanted = _RowsRead(file.keep if scores else None), _for_media(variants, task)
            by_variant = evaluate(model, task, where, workers, wanted, seed, group, read.keep, prefix)
            more: dict[str, Any] = {"class_names": list(task.classes), "checkpoint": str(folder)}
            more |= {"step": model.metadata.get("step"), "seed": seed, "catalog": str(catalog)}
            rows = np.array([row for part in group.gather(read.rows) for row in part], np.int64)
            if with_baselines and group.rank == 0 and "plain" in by_variant:
                by_variant["plain"]["baselines"] = _compared(opened, task, by_variant["plain"], rows, workers)
            results += [{**result, **more} for result in by_variant.values()]
    return results


class _RowsRead:
    """Collects the manifest rows of the samples that were read, and calls another callback."""

    def __init__(self, then: ScoreCallback | None) -> None:
        self.rows: list[int] = []
        self._then = then

    def keep(self, task: EvaluationTask, variant: Variant, numbers: list[int], scores: Tensor) -> None:
        if variant == "plain":
            self.rows += numbers
        if self._then is not None:
            self._then(task, variant, numbers, scores)


def _compared(
    catalog: Catalog, task: EvaluationTask, result: dict[str, Any], rows: np.ndarray, workers: int
) -> dict[str, Any]:
    """The baselines on the manifest rows `rows`, and in `behind` those that the model is not above."""
    found = baselines(catalog, task.spec.name, task.manifest.split, workers, rows, task.relabel)
    interval = result.get("top1_interval")
    return {**found, "behind": shortfalls(found, result["top1"], interval["low"]) if interval else []}


def _for_media(variants: Sequence[Variant], task: EvaluationTask) -> list[Variant]:
    """The variants for a task. Images have one frame, so only `plain` applies to them."""
    return [variant for variant in variants if variant == "plain" or task.manifest.media == "video"]
