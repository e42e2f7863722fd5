"""Processor cores, the end of child processes, and memory allocation on this machine."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time

from cover.containers import allowed_cores


def default_workers() -> int:
    """The default number of worker processes: one per core that this process may use, at most 16."""
    return min(16, cores())


def cores() -> int:
    """The number of cores that this process may use, by its affinity and the limit of its container."""
    return allowed_cores()


def end_with_parent() -> None:
    """End this worker process when its parent process ends, even if the parent is killed.

    Without this, the workers of a killed process wait without end: each keeps the pipes of the others open.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def end_with_launcher() -> None:
    """End this process within a second after its launcher, such as torchrun, ends.

    Without this, the ranks of a killed torchrun wait for each other and occupy their devices until a time limit.
    """
    threading.Thread(target=_watch_and_end, args=(os.getppid(),), daemon=True).start()


def _watch_and_end(launcher: int) -> None:
    while os.getppid() == launcher:  # the system gives the process another parent when the launcher ends
        time.sleep(1)
    os._exit(1)


def reuse_memory() -> bool:
    """Make the C library reuse freed memory for the next tensors. Returns whether it does; only glibc can.

    By default glibc returns large blocks to the system at once. For the next block, the system must clear every page
    again. On a CPU this takes a tenth to a sixth of a forward pass (docs/performance.md). With reuse, the process does
    not become smaller before it ends.
    """
    import ctypes

    most_mapped, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(most_mapped, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
