"""CoVeR: one video transformer co-trained on several video and image data sets at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cover.inference.predictor import Predictor
    from cover.model.cover import CoVeR

__version__ = "0.1.0"
__all__ = ["CoVeR", "Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "CoVeR":  # imported on first use, so that the command line starts without torch
        from cover.model.cover import CoVeR

        return CoVeR
    if name == "Predictor":
        from cover.inference.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # with the names that are imported on first use
