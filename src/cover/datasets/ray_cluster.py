"""Ray clusters: joining or starting one, and probing files with Ray Data.

A running cluster is joined if there is one (RAY_ADDRESS, or `ray start` on this machine). Otherwise Ray runs on this
machine alone, until the work is done. Every node needs this package, and the files under the same paths.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from cover.console import say
from cover.datasets.probe import Facts, Prober
from cover.errors import UserError, install
from cover.media.source import Media

_STORE = 256 << 20  # bytes of shared memory for data between processes; the data are much smaller


class RayCluster:
    """A connection to Ray, from the first `start` to the end of the `with` block.

    `workers`: processes on this machine if there is no cluster. A cluster uses all its cores. `ray`: the module. Raises
    UserError if Ray is not installed.
    """

    def __init__(self, workers: int) -> None:
        self.ray = _import_ray()
        self._workers = max(1, workers)
        self._folder: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def start(self) -> None:
        """Join or start a cluster. The second call does nothing."""
        if self.ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            self.ray.init(address="auto", **quiet)
            say(f"ray: joined a cluster of {len(self.ray.nodes())} nodes")
        except ConnectionError:
            # Without this token Ray writes one to the home folder.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            self._folder = tempfile.mkdtemp(prefix="cover-", dir=_short_folder())
            local: dict[str, Any] = {"address": "local", "num_cpus": self._workers, "include_dashboard": False}
            self.ray.init(**local, object_store_memory=_STORE, _temp_dir=self._folder, **quiet)
        context = self.ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def amount(self, resource: str) -> int:
        """The amount of a resource (CPU or GPU) in the cluster."""
        return int(self.ray.cluster_resources().get(resource, 0))


def reason_of(error: Exception) -> str:
    """The last line of a Ray error. It has the error on the node; the lines before it are the traceback."""
    return str(error).strip().splitlines()[-1]


def _short_folder() -> str:
    """A folder for temporary files with a short path. Socket paths have a length limit, and Ray adds a long part."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 24 or not Path("/tmp").is_dir() else "/tmp"


def _import_ray() -> Any:
    # Ray reads this when it is imported. By default Ray reports usage statistics to its developers.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError(f"--engine ray: ray is not installed: {install('cluster')}") from None
    return ray


_FILES_PER_TASK = 128  # enough to hide the overhead of a task; few enough that a killed run loses little work
_FACTS = [field.name for field in fields(Facts)]
_of_facts = attrgetter(*_FACTS)
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("state", pa.string()),
        ("why", pa.string()),
        ("frames", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("codec", pa.string()),
        ("deep", pa.bool_()),
        ("damage", pa.string()),
    ]
)


class RayProber(RayCluster):
    """A `probe.Prober` on a Ray cluster. Ray starts at the first file to probe.

    Raises UserError if Ray is not installed.
    """

    def __init__(self, workers: int, deep: bool = False) -> None:
        super().__init__(workers)
        self.deep = deep

    def probe(self, paths: Sequence[str], media: Media) -> Iterator[list[tuple[str, Facts]]]:
        """`(path, facts)` of all files, in chunks, in the order in which they finish.

        Raises UserError if the cluster fails, or if a node does not have a file that this machine has.
        """
        if not paths:
            return
        self.start()
        try:
            for batch in self._map(paths, media).iter_batches(batch_size=None, batch_format="pyarrow"):
                rows = batch.to_pylist()
                yield [_checked_here(row["path"], Facts(*(row[name] for name in _FACTS))) for row in rows]
        except self.ray.exceptions.RayError as error:
            reason = reason_of(error)
            raise UserError(
                f"ray: {reason}; every node needs this package; run the command again to go on from here"
            ) from None

    def _map(self, paths: Sequence[str], media: Media) -> Any:
        data, cores = self.ray.data, max(1, self.amount("CPU"))
        blocks = [
            pa.table({"path": pa.array(paths[first : first + _FILES_PER_TASK])})
            for first in range(0, len(paths), _FILES_PER_TASK)
        ]
        pool = data.ActorPoolStrategy(min_size=1, max_size=max(1, min(cores, len(blocks))))
        return data.from_arrow(blocks).map_batches(
            _ProbeWorker,
            fn_args=(media, self.deep),
            batch_size=None,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=1,
        )


class _ProbeWorker:
    """A probing actor of the cluster. It opens files in another process, because a damaged file may crash it."""

    def __init__(self) -> None:
        self._prober = Prober(1)

    def __call__(self, batch: pa.Table, media: Media, deep: bool) -> pa.Table:
        self._prober.deep = deep
        probed = [pair for part in self._prober.probe(batch["path"].to_pylist(), media) for pair in part]
        rows = [{"path": path, **dict(zip(_FACTS, _of_facts(facts)))} for path, facts in probed]
        return pa.Table.from_pylist(rows, _SCHEMA)


def _checked_here(path: str, facts: Facts) -> tuple[str, Facts]:
    if facts.state == "missing" and os.path.exists(path):
        raise UserError(
            f"ray: a node does not see {path}, which is there; mount the data under the same path on every node"
        )
    return path, facts
