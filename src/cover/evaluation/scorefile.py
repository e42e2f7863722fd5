"""Which scores did each sample get, view by view? An Arrow file, one row for each sample and variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from cover.errors import UserError
from cover.evaluation.reading import Variant
from cover.evaluation.tasks import Task

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
    """Written as the samples come. `scores`: the mean over the views, in the order of the result's `class_names`; `view_scores`: each
    view's, temporal offsets first, then crops. Of several processes each writes its own, NAME.RANK beside NAME. Opens nothing for `path`
    None.

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

    def keep(self, task: Task, variant: Variant, numbers: list[int], scores: Tensor) -> None:
        """Add samples: their manifest rows, and scores float `(B, V, classes)`."""
        rows = [task.manifest.row(number) for number in numbers]
        columns = {
            "dataset": [task.spec.name] * len(rows), "split": [task.manifest.split] * len(rows), "variant": [variant] * len(rows),
            "row": numbers, "sample_id": [row.sample_id for row in rows], "source_id": [row.source_id for row in rows],
            "label": [None if row.label is None else int(task.relabel[row.label]) for row in rows],
            "labels": [row.labels for row in rows], "scores": scores.mean(1).tolist(), "view_scores": scores.tolist(),
        }  # fmt: skip
        self._writer.write_batch(pa.record_batch([pa.array(columns[field.name], field.type) for field in _SCHEMA], schema=_SCHEMA))
