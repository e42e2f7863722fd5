"""How are the decoding processes started? From one that has imported what they need, so that a killed one is replaced in milliseconds."""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

PRELOADED = "cover.inference.serve.decoding"


def process_context() -> Any:
    """multiprocessing's, by which processes are started: off a server of forks, or anew where there is none (Windows)."""
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload([PRELOADED])
    return context


def begin_importing() -> None:
    """Let the server of forks import torch while this process does."""
    process_context()
    if sys.platform != "win32":
        from multiprocessing.forkserver import ensure_running

        ensure_running()
