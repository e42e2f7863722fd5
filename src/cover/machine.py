"""How much of this machine may be used."""

from __future__ import annotations

import os


def default_workers() -> int:
    """One process per core that this process may run on, at most 16."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, allowed)
