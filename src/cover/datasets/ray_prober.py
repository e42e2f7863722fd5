"""What is in each of these files, where a cluster can look? Ray Data maps the probe over the paths and hands results back as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

import pyarrow as pa

from cover.datasets.manifest import Media
from cover.datasets.probing import Facts, Prober
from cover.datasets.ray_cluster import Cluster, reason_of
from cover.errors import UserError

_BLOCK = 128  # files of a task: enough to hide what a task costs, few enough that a killed run loses little
_FACTS = [field.name for field in fields(Facts)]
_of_facts = attrgetter(*_FACTS)
_SCHEMA = pa.schema(
    [
        ("path", pa.string()), ("state", pa.string()), ("why", pa.string()), ("frames", pa.int64()), ("fps", pa.float64()),
        ("width", pa.int64()), ("height", pa.int64()), ("codec", pa.string()), ("deep", pa.bool_()), ("damage", pa.string()),
    ]
)  # fmt: skip


class RayProber(Cluster):
    """A `probing.Prober` over a cluster. Raises UserError where Ray is not installed; it is started for the first file to probe."""

    def __init__(self, workers: int, deep: bool = False) -> None:
        super().__init__(workers)
        self.deep = deep

    def probe(self, paths: Sequence[str], media: Media) -> Iterator[list[tuple[str, Facts]]]:
        """`(path, facts)` of all files, in chunks as they are done, in no particular order. Raises UserError where the cluster fails,
        or a node does not see a file that this machine sees."""
        if not paths:
            return
        self.start()
        try:
            for batch in self._map(paths, media).iter_batches(batch_size=None, batch_format="pyarrow"):
                yield [_seen_here(values["path"], Facts(*(values[name] for name in _FACTS))) for values in batch.to_pylist()]
        except self.ray.exceptions.RayError as error:
            reason = reason_of(error)
            raise UserError(f"ray: {reason}; every node needs this package; run the command again to go on from here") from None

    def _map(self, paths: Sequence[str], media: Media) -> Any:
        data, cores = self.ray.data, max(1, self.amount("CPU"))
        blocks = [pa.table({"path": pa.array(paths[first : first + _BLOCK])}) for first in range(0, len(paths), _BLOCK)]
        crew = data.ActorPoolStrategy(min_size=1, max_size=max(1, min(cores, len(blocks))))
        return data.from_arrow(blocks).map_batches(
            _Node, fn_args=(media, self.deep), batch_size=None, batch_format="pyarrow", compute=crew, num_cpus=1
        )


class _Node:
    """One probing process of the cluster. The files are opened in a process of its own, which a broken one may end."""

    def __init__(self) -> None:
        self._prober = Prober(1)

    def __call__(self, batch: pa.Table, media: Media, deep: bool) -> pa.Table:
        self._prober.deep = deep
        found = [pair for part in self._prober.probe(batch["path"].to_pylist(), media) for pair in part]
        return pa.Table.from_pylist([{"path": path, **dict(zip(_FACTS, _of_facts(facts)))} for path, facts in found], _SCHEMA)


def _seen_here(path: str, facts: Facts) -> tuple[str, Facts]:
    if facts.state == "missing" and os.path.exists(path):
        raise UserError(f"ray: a node does not see {path}, which is there; mount the data under the same path on every node")
    return path, facts
