"""CoVeR: one video transformer co-trained on several video and image data sets at once.

>>> cover.fit("clips/", "runs/mine").predictor()("new.mp4").top(3)
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cover.containers import allowed_cores, cores_are_shared, cpu_quota

# torch starts a thread for each core of the machine, also where a container may use fewer. The threads of an operation
# spin while they wait for each other; beside other work on the machine, that takes the core from the thread that they
# wait for, so they spin for a short time only, and for a shorter one if there is such work now (docs/performance.md).
# torch reads both variables when it is imported.
if "torch" not in sys.modules:
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "100" if cores_are_shared() else "1000"
    # What Apple's GPU lacks is computed on the CPU; torch says so in one line for each operation.
    if sys.platform == "darwin":
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    if cpu_quota() is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed_cores()))

if TYPE_CHECKING:
    from cover.api import (
        Data,
        Fitted,
        Mixture,
        PackDataset,
        Recipe,
        evaluate,
        fit,
        index,
        sample_losses,
        train,
        write_run_report,
    )
    from cover.inference.predictor import Predictor
    from cover.model.cover import CoVeR

__version__ = "0.1.0"
__all__ = [
    "CoVeR",
    "Data",
    "Fitted",
    "Mixture",
    "PackDataset",
    "Predictor",
    "Recipe",
    "__version__",
    "evaluate",
    "fit",
    "index",
    "sample_losses",
    "train",
    "write_run_report",
]
_ELSEWHERE = {"CoVeR": "cover.model.cover", "Predictor": "cover.inference.predictor"}  # all others are in `cover.api`


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # imported on first use, so that the command line starts without torch
    return getattr(import_module(_ELSEWHERE.get(name, "cover.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
