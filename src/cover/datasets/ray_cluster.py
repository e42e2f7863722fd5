"""On which machines can work be spread? Ray, joined where a cluster runs, else started on this machine for as long as it is needed.

A running cluster is joined (RAY_ADDRESS, or one that `ray start` began on this machine). Every node must have this package, and see the
files under the same paths as this machine.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

from cover.console import say
from cover.errors import UserError, install

_STORE = 256 << 20  # bytes of shared memory for what goes to and fro, of which far less is ever under way


class Cluster:
    """Ray, from the first `start` to the end of the block. Raises UserError where it is not installed.

    `workers`: processes on this machine where there is no cluster; a cluster gives as many as it has cores. `ray` is the module.
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
        """Join or start it; nothing where that is done."""
        if self.ray.is_initialized():
            return
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            self.ray.init(address="auto", **quiet)
            say(f"ray: joined a cluster of {len(self.ray.nodes())} nodes")
        except ConnectionError:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray makes one and keeps it in the home folder
            self._folder = tempfile.mkdtemp(prefix="cover-", dir=_short_folder())
            self.ray.init(
                address="local",
                num_cpus=self._workers,
                include_dashboard=False,
                object_store_memory=_STORE,
                _temp_dir=self._folder,
                **quiet,
            )
        context = self.ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def amount(self, resource: str) -> int:
        """How many it has, of CPU or GPU."""
        return int(self.ray.cluster_resources().get(resource, 0))


def reason_of(error: Exception) -> str:
    """The last line of what Ray says: the error on the node, behind its traceback."""
    return str(error).strip().splitlines()[-1]


def _short_folder() -> str:
    """Where temporary files go; names of sockets must be short, and Ray's are long themselves."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 24 or not Path("/tmp").is_dir() else "/tmp"


def _import_ray() -> Any:
    # Read by Ray when it is imported: it reports on its use to its makers, unless told not to.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError(f"--engine ray: ray is not installed: {install('cluster')}") from None
    return ray
