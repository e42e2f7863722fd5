"""The limits of a container on processor time and memory, from the control groups of Linux (versions 1 and 2), and
whether other processes need the cores.

It imports nothing heavy: `cover` reads both before torch is imported, which then starts its threads.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LOAD = Path("/proc/loadavg")  # three averages, running/all tasks of the machine, the last process id
NO_LIMIT = 1 << 60  # bytes; version 1 writes a number near 2^63 where there is no limit


def cpu_quota(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> float | None:
    """The number of cores that this process may use at the same time, None without a limit.

    Limits of the groups above count too. A process may be moved while it runs, which is not seen.
    """
    quotas = [_cores(folder) for folder in _folders(groups, own, "cpu")]
    return min((quota for quota in quotas if quota), default=None)


def memory_limit(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int | None:
    """The bytes of memory that the processes of this container may use together, None without a limit."""
    limits = [_number(folder / name) for folder in _folders(groups, own, "memory") for name in _MEMORY]
    return min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)


_MEMORY = ("memory.max", "memory.limit_in_bytes")  # of version 2 and of version 1


def allowed_cores(groups: Path = GROUPS, own: Path = OWN_GROUPS) -> int:
    """The number of whole cores that this process may use, at least 1."""
    present = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(groups, own)
    return present if quota is None else max(1, min(present, int(quota)))


def cores_are_shared(load: Path = LOAD) -> bool:
    """Whether other processes now need some of the cores that this process would use. False where Linux does not say.

    A process counts if it runs at all of three moments, two milliseconds apart, so a short task does not.
    """
    others = []
    for moment in range(3):
        time.sleep(0.002 * bool(moment))
        try:
            running, _ = load.read_text().split()[3].split("/")
        except (OSError, ValueError, IndexError):
            return False
        others.append(int(running) - 1)
    return min(others) + allowed_cores() > (os.cpu_count() or 1)


def physical_memory() -> int:
    """The bytes of memory that this process can have: of the machine, or of its container if that has a limit."""
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    return present if limit is None else min(present, limit)


def _cores(folder: Path) -> float | None:
    """The quota in a folder of a group."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # ValueError: "max", no limit
        pass
    limit, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return limit / period_us if limit and period_us and limit > 0 else None


def _folders(groups: Path, own: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of the groups above it."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has one tree for all controllers, version 1 a tree for each.
        root = groups if not controllers else groups / controllers
        root = root if root.is_dir() else groups / controller
        place = root / path.strip("/")
        # In a container the path may be that of the host, which is not mounted; its own group is then the root.
        yield from (folder for folder in (place, *place.parents) if folder.is_relative_to(root) and folder.is_dir())


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
