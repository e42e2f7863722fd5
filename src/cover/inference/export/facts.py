"""What has to be known of an exported graph to use it? One JSON object that travels inside its file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cover import __version__
from cover.datasets.manifest import class_digest
from cover.inference.export.choice import Choice
from cover.inference.export.traced import INPUT
from cover.inference.predictor import Predictor
from cover.model.heads import Head
from cover.model.release import WEIGHTS

KEY = "cover"  # of the metadata of an ONNX model


def facts(choice: Choice, frames: int, precision: str) -> dict[str, Any]:
    """Input, pixels, checkpoint, and for each head its classes, its loss and how it looks at a video. Plain JSON.

    `precision`: of the weights of the matrix products, `float32` or `int8`.
    """
    pixels, predictor = choice.model.backbone.pixels, Predictor(choice.model)
    return {
        "cover": __version__, "step": choice.model.metadata.get("step"), "weights_sha256": _digest(choice.folder / WEIGHTS),
        "precision": precision,
        "input": INPUT, "frames": frames, "size": pixels.size, "colour": "RGB",
        "resize": {
            "short_side": pixels.size, "filter": f"{pixels.interpolation}, antialiased",
            "crop": "squares along the long side, of one the middle",
        },
        "normalisation": {"where": "inside the graph", "mean": list(pixels.mean), "std": list(pixels.std)},
        "heads": {head.name: _head(head, predictor) for head in choice.heads},
    }  # fmt: skip


def text_of(facts: dict[str, Any]) -> str:
    """As it stands in a file."""
    return json.dumps(facts, ensure_ascii=False)


def _head(head: Head, predictor: Predictor) -> dict[str, Any]:
    plan = predictor.plan(head.name)
    dense = plan.sampling.kind == "dense"
    return {
        "classes": list(head.classes), "class_digest": class_digest(head.classes), "loss": head.loss,
        "output": f"probabilities: the {head.loss} is inside the graph", "sampling": plan.sampling.kind,
        "interval": plan.sampling.interval if dense else None, "views": str(plan.views),
    }  # fmt: skip


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
