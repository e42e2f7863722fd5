"""How good is a model on a split: every readable sample once, nothing dropped, padded or replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cover.console import Meter, print_table, say
from cover.datasets.catalog import Catalog, DatasetSpec, load_catalog
from cover.datasets.manifest import ClassList, Manifest, Row, open_manifest
from cover.errors import UserError
from cover.evaluation.metrics import MeanAveragePrecision, TopK
from cover.evaluation.protocol import ViewPlan, read_views
from cover.media.clips import Views
from cover.media.decode import Decoder, MediaError, check_decoder
from cover.mixture.loader import START_METHOD, labels_of, one_thread
from cover.model.device import pick_device
from cover.model.timesformer import Head, TimeSformer
from cover.model.weights import find_release, load_release

Variant = Literal["plain", "shuffled", "single"]
VARIANTS: tuple[Variant, ...] = ("plain", "shuffled", "single")
BATCH_FRAMES = 512  # frames of one forward pass, about
SHOWN_NOTES = 20
_SHARES = {
    "top1": "top-1", "top5": "top-5", "mean_class": "mean class", "top1_listed": "top-1 of listed",
    "map": "mAP", "map_listed": "mAP of listed", "hit1": "hit at 1",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One data set to be evaluated: its manifest, how it is looked at, and its head.

    `columns`: int64 `(classes,)`, the place of each of its classes in the head: of a head that several sets share, a set uses its own
    classes alone, so that its number is comparable with that of a head of its own.
    """

    spec: DatasetSpec
    manifest: Manifest
    views: Views
    frames: int
    head: Head
    columns: Tensor
    decoder: Decoder = "pyav"


def find_tasks(
    catalog: Catalog,
    model: TimeSformer,
    frames: int,
    split: str,
    names: Sequence[str] = (),
    views: Views | None = None,
    decoder: Decoder = "pyav",
) -> list[Task]:
    """The data sets that `model` has a head for, or those of `names`. Raises `UserError` where heads and classes do not match."""
    heads = {name: head for head in model.head_list for name in head.datasets}
    tasks = []
    for name in names or [name for name in heads if name in catalog.specs]:
        spec = catalog.spec(name)
        if name not in heads:
            raise UserError(f'the checkpoint has no head "{name}"; its heads: {", ".join(heads)}')
        manifest = open_manifest(catalog.manifest_path(name, split))
        tasks.append(Task(spec, manifest, views or spec.views, frames, heads[name], _columns(heads[name], manifest), decoder))
    if not tasks:
        raise UserError(f"{catalog.path.name} has none of the checkpoint's heads: {', '.join(heads)}")
    return tasks


def _columns(head: Head, manifest: Manifest) -> Tensor:
    """The place of each class of a split in its head. Raises `UserError` where they do not match."""
    ours, file = manifest.classes, manifest.path.name
    if ours.many != (head.loss == "sigmoid"):
        theirs, there = ("any number of classes", "one") if head.loss == "sigmoid" else ("one class", "any number")
        raise UserError(f'head "{head.name}" was trained on samples of {theirs}, but {file} has {there} for each')
    if len(head.datasets) == 1 and ours.names != head.classes:
        digest = ClassList.of(head.classes, "checkpoint").digest
        raise UserError(f'head "{head.name}" was trained on class list {digest}, but {file} has {ours.digest}')
    unknown = [name for name in ours.names if name not in set(head.classes)]
    if unknown:
        raise UserError(f'head "{head.name}" lacks {len(unknown)} classes of {file}, the first: "{unknown[0]}"')
    return torch.tensor(head.places(ours.names))


_Read = tuple[int, list[int], np.ndarray | None, str | None]


class _Rows(Dataset[_Read]):
    """Place -> the row's number, its labels, its views, and what was wrong with its file."""

    def __init__(self, task: Task, plan: ViewPlan, rows: np.ndarray) -> None:
        self.task, self.plan, self.rows = task, plan, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> _Read:
        number = int(self.rows[place])
        row = self.task.manifest.row(number)
        labels = list(labels_of(row))
        try:
            clips, partial = self._views(row)
        except MediaError as error:
            return number, labels, None, f"{row.path}: unreadable: {error}"
        return number, labels, clips[0], f"{row.path}: partial: {partial}" if partial else None

    def _views(self, row: Row) -> tuple[list[np.ndarray], str | None]:
        media, decoder = self.task.manifest.media, self.task.decoder
        return read_views(row.source, media, [self.plan], row.seconds, row.start or 0.0, decoder)


def evaluate(
    model: TimeSformer, task: Task, device: torch.device | str, workers: int, variants: Sequence[Variant] = ("plain",), seed: int = 0
) -> dict[Variant, dict[str, Any]]:
    """Every labelled sample of a split through the model, each file opened and decoded once for all views and variants.

    `plain`: the frames in order. `shuffled`: the frames of every clip in a random order of its own. `single`: the middle frame
    alone, as an image. The scores of the views are averaged after the softmax. Returns for each variant the metrics of
    `metrics.TopK`, or `metrics.MeanAveragePrecision` of a multi-label set, together with the protocol.
    """
    listed = int(task.manifest.labelled.sum())
    plan = ViewPlan(task.spec.sampling, task.views, task.frames, model.config.size)
    counters = {variant: _counter(task.manifest, listed) for variant in variants}
    notes: list[str] = []
    with Meter(f"evaluate {task.spec.name} {task.manifest.split}", listed) as meter:
        meter.advance(listed - len(task.manifest.usable))
        for numbers, truth, clips in _batches(task, plan, workers, notes, meter.advance):
            for variant in variants:
                counters[variant].update(_scores(model, _varied(clips, variant, numbers, seed), task, device), truth)
    return {variant: {**counters[variant].result(), **_protocol(task, variant, notes)} for variant in variants}


def _counter(manifest: Manifest, listed: int) -> TopK | MeanAveragePrecision:
    if manifest.classes.many:
        return MeanAveragePrecision(manifest.class_counts(), listed)
    return TopK(len(manifest.classes.names), listed)


def _protocol(task: Task, variant: Variant, notes: list[str]) -> dict[str, Any]:
    video = task.manifest.media == "video"
    return {
        "dataset": task.spec.name, "split": task.manifest.split, "media": task.manifest.media, "variant": variant,
        "views": str(task.views) if video else f"1x{task.views.spatial}", "frames": task.frames if video and variant != "single" else 1,
        "sampling": str(task.spec.sampling) if video else None, "classes": len(task.manifest.classes.names),
        "class_digest": task.manifest.classes.digest, "decoder": check_decoder(task.decoder) if video else None,
        "head": task.head.name, "head_classes": len(task.head.classes), "multi_label": task.manifest.classes.many,
        "not_ok": {k: n for k, n in task.manifest.counts().items() if n and k != "ok"},
        "notes": notes[:SHOWN_NOTES], "n_notes": len(notes),
    }  # fmt: skip


def _batches(
    task: Task, plan: ViewPlan, workers: int, notes: list[str], count: Callable[[int], None]
) -> Iterator[tuple[list[int], Tensor, np.ndarray]]:
    """Row numbers, `_truth` and clips uint8 `(B, V, T, 3, H, W)` of the samples that could be read."""
    rows = _Rows(task, plan, task.manifest.usable)
    frames_each = plan.views.temporal * plan.views.spatial * (plan.frames if task.manifest.media == "video" else 1)
    loader = DataLoader(
        rows,
        batch_size=max(1, BATCH_FRAMES // frames_each),
        num_workers=min(workers, len(rows)),
        collate_fn=list,
        multiprocessing_context=START_METHOD if workers and len(rows) else None,
        worker_init_fn=one_thread,
    )
    for batch in loader:
        notes += [note for *_, note in batch if note]
        read = [(number, labels, clips) for number, labels, clips, _ in batch if clips is not None]
        count(len(batch))
        if read:
            numbers, labels, clips = zip(*read)
            yield list(numbers), _truth(labels, task.manifest.classes), np.stack(clips)


def _truth(labels: Sequence[list[int]], classes: ClassList) -> Tensor:
    """The labels of B samples: int64 `(B,)`, or of a multi-label set uint8 `(B, classes)`, 1 where a sample has the class."""
    if not classes.many:
        return torch.tensor([label for (label,) in labels])
    hot = torch.zeros(len(labels), len(classes.names), dtype=torch.uint8)
    for row, own in zip(hot, labels, strict=True):
        row[own] = 1
    return hot


def _varied(clips: np.ndarray, variant: Variant, numbers: list[int], seed: int) -> np.ndarray:
    """`numbers`: the samples' places in the split, which alone with the seed decide their shuffled orders."""
    if variant == "single":
        return clips[:, :, clips.shape[2] // 2, None]
    if variant == "shuffled":
        ordered = np.tile(np.arange(clips.shape[2]), (clips.shape[1], 1))
        orders = np.stack([np.random.default_rng([seed, number]).permuted(ordered, axis=1) for number in numbers])
        return np.take_along_axis(clips, orders[..., None, None, None], axis=2)
    return clips


@torch.inference_mode()
def _scores(model: TimeSformer, clips: np.ndarray, task: Task, device: torch.device | str) -> Tensor:
    """Softmax or sigmoid of the task's classes averaged over the views, float `(B, classes)`, on the CPU."""
    samples, views, frames = clips.shape[:3]
    pixels = torch.from_numpy(clips).to(device).flatten(0, 2)
    logits = model(model.normalize(pixels), ((samples * views, frames),))[task.head.name]
    return task.head.probabilities(logits[:, task.columns.to(device)]).view(samples, views, -1).mean(1).cpu()


def evaluate_release(
    checkpoint: Path, catalog: Path, split: str, names: Sequence[str], views: str | None, variants: Sequence[Variant],
    device: str, workers: int, seed: int, decoder: Decoder = "pyav",
) -> list[dict[str, Any]]:  # fmt: skip
    """The results of a checkpoint on a split, one per data set and variant. Raises `UserError`."""
    check_decoder(decoder)
    folder = find_release(checkpoint)
    model, about = load_release(folder)
    tasks = find_tasks(load_catalog(catalog), model, about["frames"], split, names, Views.parse(views) if views else None, decoder)
    where = pick_device(device)
    model.to(where)
    results = []
    for task in tasks:
        for found in evaluate(model, task, where, workers, _for_media(variants, task), seed).values():
            results.append({**found, "checkpoint": str(folder), "step": about["step"], "seed": seed})
    return results


def _for_media(variants: Sequence[Variant], task: Task) -> list[Variant]:
    """An image has one frame: only `plain` says anything of it."""
    return [variant for variant in variants if variant == "plain" or task.manifest.media == "video"]


def print_results(results: Sequence[dict[str, Any]]) -> None:
    """The numbers with their protocol, as a table on stdout."""
    shown = {key: title for key, title in _SHARES.items() if any(key in row for row in results)}
    columns = ("data set", "frames", *shown.values(), "read", "listed", "views", "split", "step", "classes")
    rows = []
    for row in results:
        shares = [_percent(row.get(key)) for key in shown]
        classes = f"{row['classes']} ({row['class_digest']})"
        frames = {"plain": str(row["frames"]), "shuffled": f"{row['frames']} shuffled", "single": "1"}[row["variant"]]
        rows.append((row["dataset"], frames, *shares, row["n_read"], row["n_listed"], row["views"], row["split"], row["step"], classes))
    print_table(columns, rows)
    for row in results:
        if row["n_notes"] and row["variant"] == "plain":
            say(f"{row['dataset']}: {row['n_notes']} files damaged or unreadable, the first: {row['notes'][0]}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
