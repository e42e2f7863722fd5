"""Evaluation of a model on a split: every readable sample once, nothing dropped, padded or replaced.

Also the score file (Arrow, one row per sample and variant) and the tables of results on the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cover.console import Meter, print_table, say
from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import Row
from cover.errors import UserError
from cover.evaluation.metrics import MeanAveragePrecision, Outcomes, TopK
from cover.evaluation.protocol import EvaluationTask, ViewPlan, find_tasks, read_views
from cover.hardware import pick_device
from cover.media.decode import Decoder, FileProblem, MediaError, check_decoder
from cover.media.sampling import Views
from cover.mixture.loader import START_METHOD, labels_of, one_thread
from cover.model.cover import CoVeR
from cover.model.release import find_release, load_release

Variant = Literal["plain", "shuffled", "reversed", "single"]
BATCH_FRAMES = 512  # frames of one forward pass, about

_ReadSample = tuple[int, list[int], np.ndarray | None, FileProblem | None]


class _EvaluationRows(Dataset[_ReadSample]):
    """Place -> the row's number, its labels, its views, and what was wrong with its file."""

    def __init__(self, task: EvaluationTask, plan: ViewPlan, rows: np.ndarray) -> None:
        self.task, self.plan, self.rows = task, plan, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> _ReadSample:
        number = int(self.rows[place])
        row = self.task.manifest.row(number)
        labels = [int(self.task.relabel[label]) for label in labels_of(row)]
        try:
            clips, partial = self._views(row)
        except MediaError as error:
            return number, labels, None, FileProblem(row.path, "unreadable", str(error))
        return number, labels, clips[0], FileProblem(row.path, "partial", partial) if partial else None

    def _views(self, row: Row) -> tuple[list[np.ndarray], str | None]:
        media, decoder = self.task.manifest.media, self.task.decoder
        return read_views(row.source, media, [self.plan], row.seconds, row.start or 0.0, decoder)


def batches(
    task: EvaluationTask,
    plan: ViewPlan,
    rows: np.ndarray,
    workers: int,
    problems: list[FileProblem],
    count: Callable[[int], None],
) -> Iterator[tuple[list[int], Tensor, np.ndarray]]:
    """Row numbers, `truth` and clips uint8 `(B, V, T, 3, H, W)` of those of `rows` (int64) that can be read.

    `problems` gets a record of each file that is damaged or cannot be read; `count` is told how many rows have been
    seen.
    """
    task.manifest.check_unchanged()
    frames_each = plan.views.temporal * plan.views.spatial * (plan.frames if task.manifest.media == "video" else 1)
    loader = DataLoader(
        _EvaluationRows(task, plan, rows),
        batch_size=max(1, BATCH_FRAMES // frames_each),
        num_workers=min(workers, len(rows)),
        collate_fn=list,
        multiprocessing_context=START_METHOD if workers and len(rows) else None,
        worker_init_fn=one_thread,
    )
    for batch in loader:
        problems += [problem for *_, problem in batch if problem]
        read = [(number, labels, clips) for number, labels, clips, _ in batch if clips is not None]
        count(len(batch))
        if read:
            numbers, labels, clips = zip(*read)
            yield list(numbers), targets_of(labels, task), np.stack(clips)


def targets_of(labels: Sequence[list[int]], task: EvaluationTask) -> Tensor:
    """The labels of B samples: int64 `(B,)`, or of a multi-label set uint8 `(B, classes)`, 1 where a sample has the
    class.
    """
    if not task.manifest.classes.many:
        return torch.tensor([label for (label,) in labels])
    multi_hot = torch.zeros(len(labels), len(task.classes), dtype=torch.uint8)
    for row, own in zip(multi_hot, labels, strict=True):
        row[own] = 1
    return multi_hot


def apply_variant(clips: np.ndarray, variant: Variant, numbers: list[int], seed: int) -> np.ndarray:
    """The clips `(B, V, T, 3, H, W)` as a variant shows them. `numbers`: the samples' rows, which alone with the seed
    decide their shuffled orders.
    """
    if variant == "single":
        return clips[:, :, clips.shape[2] // 2, None]
    if variant == "reversed":
        return np.ascontiguousarray(clips[:, :, ::-1])
    if variant == "shuffled":
        ordered = np.tile(np.arange(clips.shape[2]), (clips.shape[1], 1))
        orders = np.stack([np.random.default_rng([seed, number]).permuted(ordered, axis=1) for number in numbers])
        return np.take_along_axis(clips, orders[..., None, None, None], axis=2)
    return clips


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
    """Written as the samples come. `scores`: the mean over the views, in the order of the result's `class_names`;
    `view_scores`: each view's, temporal offsets first, then crops. Of several processes each writes its own, NAME.RANK
    beside NAME. Opens nothing for `path` None.

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
        """Add samples: their manifest rows, and scores float `(B, V, classes)`."""
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
        self._writer.write_batch(
            pa.record_batch([pa.array(columns[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA)
        )


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
    """A row for each data set, variant and checkpoint on stdout; what was wrong with files on stderr."""
    shown = {key: title for key, title in _PERCENTAGES.items() if any(row.get(key) is not None for row in results)}
    several = len({row["checkpoint"] for row in results}) > 1
    titles = [
        *["checkpoint"] * several,
        "data set",
        "frames",
        *shown.values(),
        "read",
        "listed",
        "views",
        "split",
        "step",
        "classes",
    ]
    print_table(titles, [[*[row["checkpoint"]] * several, *_cells(row, list(shown))] for row in results])
    for row in results:
        if row["n_notes"] and row["variant"] == "plain":
            say(f"{row['dataset']}: {row['n_notes']} files damaged or unreadable, the first: {row['notes'][0]}")
        if row["unmapped"] and row["variant"] == "plain":
            say(
                f"{row['dataset']}: head {row['head']} lacks {len(row['unmapped'])} of its classes; their samples are not among the listed"
            )


def _cells(row: dict[str, Any], keys: list[str]) -> list[Any]:
    frames = {"plain": "", "shuffled": " shuffled", "reversed": " reversed", "single": ""}[row["variant"]]
    shares = [_with_interval(row) if key == "top1" else _percent(row.get(key)) for key in keys]
    step = "-" if row["step"] is None else row["step"]  # of a model that was not trained here
    classes = f"{len(row['class_names'])} of {row['classes']}" if row["unmapped"] else str(row["classes"])
    return [
        row["dataset"],
        f"{row['frames']}{frames}",
        *shares,
        row["n_read"],
        row["n_listed"],
        row["views"],
        row["split"],
        step,
        f"{classes} ({row['class_digest']})",
    ]


def print_classes(results: Sequence[dict[str, Any]], most: int) -> None:
    """Of every data set its `most` weakest classes, and its commonest wrong answers."""
    for row in results:
        if row["variant"] != "plain":
            continue
        known = [
            (right, total, name)
            for (right, total), name in zip(row["per_class"], row["class_names"], strict=True)
            if total
        ]
        known.sort(key=lambda entry: (_class_cells(entry, row), entry[2]))
        titles = ["class", "AP" if row["multi_label"] else "right", "samples read"]
        print(f"\n{row['dataset']} {row['split']}: the weakest of {len(known)} classes")
        print_table(
            titles,
            [[name, _percent(_class_cells((right, total, name), row)), total] for right, total, name in known[:most]],
        )
        if row.get("confusions"):
            pairs = [
                [pair["true"], pair["predicted"], f"{pair['count']} of {pair['of']}"]
                for pair in row["confusions"][:most]
            ]
            print_table(["true", "predicted", "samples"], pairs)


def _class_cells(entry: tuple[float, int, str], row: dict[str, Any]) -> float:
    right, total, _ = entry
    return right if row["multi_label"] else right / total


def _with_interval(row: dict[str, Any]) -> str:
    interval = row.get("top1_interval")
    return _percent(row.get("top1")) + (f" ({interval['low']:.1%} to {interval['high']:.1%})" if interval else "")


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.1%}"


SHOWN_NOTES = 20
T = TypeVar("T")
# task, variant, rows, scores (B, V, classes)
ScoreCallback = Callable[[EvaluationTask, Variant, list[int], Tensor], None]


class Ranks(Protocol):
    """The processes that evaluate together: this one's place, how many there are, and how all get what each has."""

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
) -> dict[Variant, dict[str, Any]]:
    """Every labelled sample of a split through the model, each file opened and decoded once for all views and variants.

    `plain`: the frames in order. `shuffled`: the frames of every clip in a random order of its own. `reversed`:
    backwards. `single`: the middle frame alone, as an image. The scores of the views are averaged after the softmax.
    Several processes take every so many rows each, and all return the whole result. `keep` is given the scores of every
    view. Returns for each variant the metrics of `metrics.TopK` and `metrics.Outcomes`, or of
    `metrics.MeanAveragePrecision` of a multi-label set, together with the protocol.
    """
    listed = int(task.those(np.flatnonzero(task.manifest.labelled)).size)
    rows = task.those(task.manifest.usable)[group.rank :: group.ranks]
    plan = ViewPlan(task.spec.sampling, task.views, task.frames, model.backbone.pixels.size)
    visited = {variant: _SplitMetrics.of(task, listed) for variant in variants}
    problems: list[FileProblem] = []
    with Meter(f"evaluate {task.spec.name} {task.manifest.split}", len(rows)) as meter:
        for numbers, labels, clips in batches(task, plan, rows, workers, problems, meter.advance):
            for variant in variants:
                scores = _scores(model, apply_variant(clips, variant, numbers, seed), task, device)
                visited[variant].update(numbers, scores.mean(1), labels)
                if keep is not None:
                    keep(task, variant, numbers, scores)
    problems = [problem for part in group.gather(problems) for problem in part]
    return {
        variant: {**own.gathered(group).result(task, seed), **_protocol(task, variant, problems)}
        for variant, own in visited.items()
    }


@dataclass
class _SplitMetrics:
    """What has been seen of a split: the metrics, and of single-label sets the outcomes of its samples."""

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

    def result(self, task: EvaluationTask, seed: int) -> dict[str, Any]:
        more = (
            self.outcomes.result(task.manifest.sources(self.outcomes.rows), task.classes, seed)
            if self.outcomes is not None
            else {}
        )
        return {**self.metric.result(), **more}


def _protocol(task: EvaluationTask, variant: Variant, problems: Sequence[FileProblem]) -> dict[str, Any]:
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
    }


@torch.inference_mode()
def _scores(model: CoVeR, clips: np.ndarray, task: EvaluationTask, device: torch.device | str) -> Tensor:
    """Softmax or sigmoid of the task's classes for every view, float `(B, V, classes)`, on the CPU."""
    samples, views, frames = clips.shape[:3]
    pixels = torch.from_numpy(clips).to(device).flatten(0, 2)
    logits = model(model.normalize(pixels), ((samples * views, frames),))[task.head.name]
    return task.head.probabilities(logits[:, task.columns.to(device)]).view(samples, views, -1).cpu()


def evaluate_release(
    checkpoint: Path,
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
) -> list[dict[str, Any]]:
    """The results of a checkpoint on a split, one per data set and variant.

    `other_heads`: as of `find_tasks`. `scores`: where the scores of every view and sample go (`scorefile`). Raises
    `UserError`.
    """
    check_decoder(decoder)
    folder = find_release(checkpoint)
    model = load_release(folder)
    seen_as = Views.parse(views) if views else None
    tasks = find_tasks(load_catalog(catalog), model, model.frames, split, names, seen_as, decoder, other_heads)
    where = pick_device(device)
    model.to(where)
    results = []
    with ScoreFile(scores, group.rank, group.ranks) as retained:
        for task in tasks:
            result = evaluate(
                model, task, where, workers, _for_media(variants, task), seed, group, retained.keep if scores else None
            )
            more = {
                "class_names": list(task.classes),
                "checkpoint": str(folder),
                "step": model.metadata.get("step"),
                "seed": seed,
            }
            results += [{**one, **more} for one in result.values()]
    return results


def _for_media(variants: Sequence[Variant], task: EvaluationTask) -> list[Variant]:
    """An image has one frame: only `plain` says anything of it."""
    return [variant for variant in variants if variant == "plain" or task.manifest.media == "video"]
