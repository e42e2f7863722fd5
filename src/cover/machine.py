"""How much of this machine may be used, and that nothing of a command stays on it."""

from __future__ import annotations

import multiprocessing
import os
import threading


def default_workers() -> int:
    """One process per core that this process may run on, at most 16."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, allowed)


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
