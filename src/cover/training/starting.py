"""Which settings of a recipe does a released network ask for?"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cover.errors import UserError
from cover.model.presets import PRESETS
from cover.model.weights import WEIGHTS, find_release, read_config
from cover.training.recipe import Model


def model_like(checkpoint: str | Path) -> tuple[Model, int]:
    """The model settings under which a run can start from a checkpoint, and the frames of its clips.

    Raises `UserError` where there is none, or its network has the size of no preset.
    """
    folder = find_release(checkpoint)
    config = read_config(folder)
    told = config["model"]
    shape = told["width"], told["depth"], told["attention_heads"]
    name = next((name for name, sizes in PRESETS.items() if sizes == shape), None)
    if name is None:
        raise UserError(f"{folder}: width, depth and heads {shape} are those of no preset, so no recipe can ask for them")
    preset = f"{name}/{told['patch']}"
    kept = {key: told[key] for key in ("size", "attention", "time", "image_temporal", "layer_scale") if key in told}
    return Model(preset=preset, **kept), int(config["about"].get("frames", told["frames"]))


def weights_digest(checkpoint: str | Path) -> str:
    """12 hex digits over the weights of a checkpoint. Raises `UserError` where there is none."""
    with (find_release(checkpoint) / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def trained_on(checkpoint: str | Path) -> list[str]:
    """The data sets whose training a checkpoint remembers."""
    return list(read_config(find_release(checkpoint))["about"].get("datasets", {}))
