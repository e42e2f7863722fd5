"""Batch prediction on a Ray cluster: Ray Data maps the predictor over the list of files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from cover.datasets.ray_cluster import RayCluster, reason_of
from cover.errors import UserError
from cover.inference.predict import Answerer, PredictRequest
from cover.inference.predictor import Predictor
from cover.inference.records import Answer, problem_in
from cover.inference.views import reading_pool
from cover.machine import default_workers

_BLOCK = 64  # files in a task; a run that is killed loses the tasks in progress


def answers_by_ray(
    checkpoint: str, request: PredictRequest, files: Sequence[str], workers: int | None, device: str
) -> Iterator[Answer]:
    """Yield one answer per file, without features, in the order of `files`.

    Every worker process loads the model once, on `device`. "auto" is one GPU per process if the cluster has GPUs, else
    the CPU.

    Raises `UserError` if Ray is not installed, if the cluster fails, or if the row of a file is missing.
    """
    if not files:
        return
    place = str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint
    with RayCluster(default_workers() if workers is None else workers) as cluster:
        cluster.start()
        try:
            yield from _in_order(_map(cluster, place, checkpoint, request, files, device), files)
        except cluster.ray.exceptions.RayError as error:
            raise UserError(
                f"ray: {reason_of(error)}; every node needs this package, the checkpoint and the files;"
                " with --out, the same command continues"
            ) from None


def _in_order(data: Any, files: Sequence[str]) -> Iterator[Answer]:
    expected = iter(files)
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        for text in batch["row"].to_pylist():
            row = json.loads(text)
            if row["file"] != next(expected, None):
                raise UserError(f"ray: the row of {row['file']} is out of order")
            yield Answer(row, problem_in(row))
    if (left := next(expected, None)) is not None:
        raise UserError(f"ray: no row of {left} arrived; with --out, the same command continues from there")


def _map(cluster: RayCluster, place: str, name: str, request: PredictRequest, files: Sequence[str], device: str) -> Any:
    data, gpus = cluster.ray.data, 0 if device == "cpu" else cluster.amount("GPU")
    data.DataContext.get_current().execution_options.preserve_order = True
    # As JSON, because a file name may hold bytes that are not valid text, which Arrow's strings must be.
    blocks = [
        pa.table({"file": pa.array(map(json.dumps, files[first : first + _BLOCK]))})
        for first in range(0, len(files), _BLOCK)
    ]
    most = max(1, min(gpus or cluster.amount("CPU"), len(blocks)))
    return data.from_arrow(blocks).map_batches(
        _PredictWorker,
        fn_constructor_args=(place, name, request, device),
        batch_size=None,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )


class _PredictWorker:
    """A worker process of the cluster. It reads files in another process, because a damaged file may crash it."""

    def __init__(self, place: str, name: str, request: PredictRequest, device: str) -> None:
        import torch

        torch.set_num_threads(1)  # Ray gives each worker one core
        predictor = Predictor.load(place, device, "eager", request.classes, request.prompt)
        self._answerer = Answerer(predictor, request, name)
        self._pool = reading_pool(1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        files = [json.loads(text) for text in batch["file"].to_pylist()]
        answers = self._answerer.answers(files, self._pool)
        return pa.table({"row": pa.array([json.dumps(answer.row) for answer in answers])})
