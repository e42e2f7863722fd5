"""How much of this machine may be used, and that nothing of a command stays on it."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time


def default_workers() -> int:
    """One process per core that this process may run on, at most 16."""
    return min(16, cores())


def cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Called in a worker process: it ends when the command that started it dies, even one that is killed.

    Python leaves the workers of a killed process waiting for ever, each holding the others' pipes open.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def end_with_launcher() -> None:
    """Called in a process that a launcher such as torchrun started: it ends, within a second, when the launcher dies.

    Ranks whose torchrun was killed would wait for each other, and hold their devices, until a time limit.
    """
    threading.Thread(target=_watch_and_end, args=(os.getppid(),), daemon=True).start()


def _watch_and_end(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


def reuse_memory() -> bool:
    """Make the C library keep freed memory for the next tensors; whether it could (glibc alone).

    By default it gives large blocks back to the system at once and asks for them anew, and the system hands out every
    page of them empty: on a CPU a tenth to a sixth of a forward pass (docs/performance.md). The process stays as large
    as it ever was.
    """
    import ctypes

    most_mapped, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and bool(mallopt(most_mapped, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
