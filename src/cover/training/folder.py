"""Where does a run begin: in a new folder, or at the last whole checkpoint of an old one?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cover import config
from cover.errors import UserError
from cover.model.release import CHECKPOINTS, steps_saved
from cover.training import checkpoint
from cover.training.finite import FILE as NONFINITE
from cover.training.recipe import Recipe

RECIPE = "recipe.yaml"
# How a run is computed, what is kept of it and where its figures go is no part of what it computes; nor is what is done in an emergency.
FREE = ("device", "workers", "accumulation", "log", "checkpoints", "distributed", "nonfinite")


def is_begun(run: Path) -> bool:
    """Whether there is something to go on with."""
    return (run / RECIPE).is_file()


def first_step(run: Path, recipe: Recipe, resume: bool) -> int:
    """The step to begin with: 0, or with `resume` that of the last checkpoint that is whole; damaged ones after it are set aside.

    Raises `UserError` on a folder that holds a run already, on one that holds none to resume, and on another recipe than it was begun with.
    """
    if not resume:
        if steps_saved(run) or (run / checkpoint.LOG).exists():
            raise UserError(f"{run} already holds a run: go on with --resume, or choose another folder with --out")
        return 0
    if not is_begun(run):
        raise UserError(f"{run}: no run to resume; leave --resume out to begin one")
    for key, was, now in differences(config.load(Recipe, run / RECIPE), recipe):
        raise UserError(f"{run} was begun with {key} {was}, not {now}; a run is resumed with the recipe it was begun with")
    return checkpoint.last_whole(run)


def prepare_folder(run: Path, recipe: Recipe, first: int, resume: bool) -> None:
    """Write the recipe of a new run; cut what an old one logged beyond `first`. Raises `UserError` where nothing can be written, or no
    checkpoint could be."""
    try:
        (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run / CHECKPOINTS):
            pass
        if not resume:
            (run / RECIPE).write_text(config.dump(recipe), encoding="utf-8")
            return
        checkpoint.cut_log(run, first or -1)
        checkpoint.cut_lines(run / NONFINITE, first)
    except OSError as error:
        raise UserError(f"out: {run}: cannot be written: {error.strerror}") from None


def differences(before: Recipe, after: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two recipes differ in what they compute, with both values."""
    free = {name: getattr(before, name) for name in FREE}
    return _differences(before, replace(after, **free, data=replace(after.data, unreadable=before.data.unreadable)), "")


def _differences(before: Any, after: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if not hasattr(before, "__dataclass_fields__"):
        if before != after:
            yield key, before, after
        return
    for name in before.__dataclass_fields__:
        yield from _differences(getattr(before, name), getattr(after, name), f"{key}.{name}" if key else name)
