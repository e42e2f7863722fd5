"""Batch prediction over a cluster: Ray Data maps the predictor over the list of files; rows come back in the list's
order.
"""

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

_BLOCK = 64  # files of a task; a killed run loses those under way


def answers_by_ray(
    checkpoint: str, request: PredictRequest, files: Sequence[str], workers: int | None, device: str
) -> Iterator[Answer]:
    """One answer per file, without features, in their order. The model is loaded once by every process, on `device`:
    "auto" is a GPU each where the cluster has any. Raises UserError where Ray is not installed, the cluster fails, or a
    file's row does not come.
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
                f"ray: {reason_of(error)}; every node needs this package, the checkpoint and the files; with --out the same command goes on"
            ) from None


def _in_order(data: Any, files: Sequence[str]) -> Iterator[Answer]:
    expected = iter(files)
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        for text in batch["row"].to_pylist():
            row = json.loads(text)
            if row["file"] != next(expected, None):
                raise UserError(f"ray: a row of {row['file']} came out of its turn")
            yield Answer(row, problem_in(row))
    if (left := next(expected, None)) is not None:
        raise UserError(f"ray: no row of {left} came; with --out the same command goes on from there")


def _map(cluster: RayCluster, place: str, name: str, request: PredictRequest, files: Sequence[str], device: str) -> Any:
    data, gpus = cluster.ray.data, 0 if device == "cpu" else cluster.amount("GPU")
    data.DataContext.get_current().execution_options.preserve_order = True
    # As JSON: names need not be valid text, which Arrow's strings are.
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
    """One predicting process of the cluster. Files are opened in a process of its own, which a broken one may end."""

    def __init__(self, place: str, name: str, request: PredictRequest, device: str) -> None:
        import torch

        torch.set_num_threads(1)  # Ray gives a core to each
        self._answerer = Answerer(Predictor.load(place, device), request, name)
        self._pool = reading_pool(1)

    def __call__(self, batch: pa.Table) -> pa.Table:
        files = [json.loads(text) for text in batch["file"].to_pylist()]
        answers = self._answerer.answers(files, self._pool)
        return pa.table({"row": pa.array([json.dumps(answer.row) for answer in answers])})
