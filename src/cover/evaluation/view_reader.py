"""The readable samples of an evaluation: their views and targets, read by worker processes in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cover.datasets.manifest import Row
from cover.evaluation.protocol import EvaluationTask, ScaledViews, ViewPlan, read_scaled
from cover.media.decode import FileProblem, MediaError
from cover.mixture.loader import from_workers, labels_of, one_thread, reading_processes

BATCH_FRAMES = 512  # approximate frames of one forward pass

# Row number, labels, views or None, problem or None.
ReadSample = tuple[int, list[int], ScaledViews | None, FileProblem | None]


class _EvaluationRows(Dataset[ReadSample]):
    """A map-style data set for the DataLoader. An item is (row number, labels, views or None, problem or None)."""

    def __init__(self, task: EvaluationTask, plan: ViewPlan, rows: np.ndarray) -> None:
        self.task, self.plan, self.rows = task, plan, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> ReadSample:
        number = int(self.rows[place])
        row = self.task.manifest.row(number)
        labels = [int(self.task.relabel[label]) for label in labels_of(row)]
        try:
            views, partial = self._views(row)
        except MediaError as error:
            return number, labels, None, FileProblem(row.path, "unreadable", str(error))
        return number, labels, views, FileProblem(row.path, "partial", partial) if partial else None

    def _views(self, row: Row) -> tuple[ScaledViews, str | None]:
        media, decoder = self.task.manifest.media, self.task.decoder
        return read_scaled(row.source, media, self.plan, row.seconds, row.start or 0.0, decoder)


def batch_size(task: EvaluationTask) -> int:
    """Samples of one forward pass, with all their views."""
    return max(1, BATCH_FRAMES // (task.view_count * task.clip_frames))


def read_batches(task: EvaluationTask, plan: ViewPlan, rows: np.ndarray, workers: int) -> Iterator[list[ReadSample]]:
    """The samples of `rows` (int64) in their order, in batches: row number, labels, views and problem of each.

    The views are None if the file could not be read.
    """
    task.manifest.check_unchanged()
    loader: DataLoader[Any] = DataLoader(
        _EvaluationRows(task, plan, rows),
        batch_size=batch_size(task),
        num_workers=min(workers, len(rows)),
        collate_fn=list,
        multiprocessing_context=reading_processes(min(workers, len(rows))),
        worker_init_fn=one_thread,
    )
    return from_workers(loader)


def batches(
    task: EvaluationTask,
    plan: ViewPlan,
    rows: np.ndarray,
    workers: int,
    problems: list[FileProblem],
    count: Callable[[int], None],
) -> Iterator[tuple[list[int], Tensor, list[ScaledViews]]]:
    """`(row numbers, targets, views)` of the readable rows among `rows` (int64), in batches of B samples.

    `targets`: see `targets_of`. Records of damaged and unreadable files
    are added to `problems`. `count` is called with the number of rows of each batch, readable or not.
    """
    for batch in read_batches(task, plan, rows, workers):
        problems += [problem for *_, problem in batch if problem]
        read = [(number, labels, views) for number, labels, views, _ in batch if views is not None]
        count(len(batch))
        if read:
            numbers, labels, views = zip(*read)
            yield list(numbers), targets_of(labels, task), list(views)


def targets_of(labels: Sequence[list[int]], task: EvaluationTask) -> Tensor:
    """The labels of B samples: int64 `(B,)`. For a multi-label data set uint8 `(B, classes)`, 1 for each class."""
    if not task.manifest.classes.many:
        return torch.tensor([label for (label,) in labels])
    multi_hot = torch.zeros(len(labels), len(task.classes), dtype=torch.uint8)
    for row, own in zip(multi_hot, labels, strict=True):
        row[own] = 1
    return multi_hot
