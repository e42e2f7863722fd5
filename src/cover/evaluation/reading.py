"""The clips of a split: every readable sample once, in any number of processes, and the files that could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cover.datasets.manifest import Row
from cover.evaluation.protocol import ViewPlan, read_views
from cover.evaluation.tasks import Task
from cover.media.decode import FileProblem, MediaError
from cover.mixture.loader import START_METHOD, labels_of, one_thread

Variant = Literal["plain", "shuffled", "reversed", "single"]
BATCH_FRAMES = 512  # frames of one forward pass, about

_Read = tuple[int, list[int], np.ndarray | None, FileProblem | None]


class _Rows(Dataset[_Read]):
    """Place -> the row's number, its labels, its views, and what was wrong with its file."""

    def __init__(self, task: Task, plan: ViewPlan, rows: np.ndarray) -> None:
        self.task, self.plan, self.rows = task, plan, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> _Read:
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
    task: Task, plan: ViewPlan, rows: np.ndarray, workers: int, problems: list[FileProblem], count: Callable[[int], None]
) -> Iterator[tuple[list[int], Tensor, np.ndarray]]:
    """Row numbers, `truth` and clips uint8 `(B, V, T, 3, H, W)` of those of `rows` (int64) that can be read.

    `problems` gets a record of each file that is damaged or cannot be read; `count` is told how many rows have been seen.
    """
    task.manifest.check_unchanged()
    frames_each = plan.views.temporal * plan.views.spatial * (plan.frames if task.manifest.media == "video" else 1)
    loader = DataLoader(
        _Rows(task, plan, rows),
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
            yield list(numbers), truth(labels, task), np.stack(clips)


def truth(labels: Sequence[list[int]], task: Task) -> Tensor:
    """The labels of B samples: int64 `(B,)`, or of a multi-label set uint8 `(B, classes)`, 1 where a sample has the class."""
    if not task.manifest.classes.many:
        return torch.tensor([label for (label,) in labels])
    hot = torch.zeros(len(labels), len(task.classes), dtype=torch.uint8)
    for row, own in zip(hot, labels, strict=True):
        row[own] = 1
    return hot


def varied(clips: np.ndarray, variant: Variant, numbers: list[int], seed: int) -> np.ndarray:
    """The clips `(B, V, T, 3, H, W)` as a variant shows them. `numbers`: the samples' rows, which alone with the seed decide their
    shuffled orders."""
    if variant == "single":
        return clips[:, :, clips.shape[2] // 2, None]
    if variant == "reversed":
        return np.ascontiguousarray(clips[:, :, ::-1])
    if variant == "shuffled":
        ordered = np.tile(np.arange(clips.shape[2]), (clips.shape[1], 1))
        orders = np.stack([np.random.default_rng([seed, number]).permuted(ordered, axis=1) for number in numbers])
        return np.take_along_axis(clips, orders[..., None, None, None], axis=2)
    return clips
