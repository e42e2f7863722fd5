"""The settings of a recipe that a release asks for."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cover.errors import UserError
from cover.model.backbones import Options
from cover.model.release import WEIGHTS, find_release, read_config


def model_like(checkpoint: str | Path) -> tuple[Options, int]:
    """The model options under which a run can start from a checkpoint, and the frames of its clips.

    Raises `UserError` where there is none, or no options ask for its network.
    """
    folder = find_release(checkpoint)
    release = read_config(folder)
    try:
        return release.backbone.options(), release.frames
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def weights_digest(checkpoint: str | Path) -> str:
    """12 hex digits over the weights of a checkpoint. Raises `UserError` where there is none."""
    with (find_release(checkpoint) / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def trained_on(checkpoint: str | Path) -> list[str]:
    """The data sets whose training a checkpoint remembers."""
    return list(read_config(find_release(checkpoint)).datasets)
