"""The start of a run: in a new folder, or from the last complete checkpoint of an earlier start.

A resumed run must have the same recipe and the same manifest rows, or else its draws would be others.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cover import config
from cover.console import say
from cover.datasets.manifest import Manifest, open_manifest
from cover.errors import UserError
from cover.mixture.mixture import Mixture
from cover.model.release import CHECKPOINTS, steps_saved
from cover.training import checkpoint
from cover.training.guards import NONFINITE_FILE
from cover.training.recipe import Recipe

RECIPE = "recipe.yaml"
# The fields of a recipe that may change on a resume, because they do not change the results of a run.
CHANGEABLE = ("device", "workers", "accumulation", "log", "checkpoints", "distributed", "nonfinite")


def has_started(run: Path) -> bool:
    """Whether the folder has a run that can be resumed."""
    return (run / RECIPE).is_file()


def begun_with(run: Path) -> Recipe:
    """The recipe of a run that has started, with its number of steps."""
    return config.load(Recipe, run / RECIPE)


def first_step(run: Path, recipe: Recipe, resume: bool) -> int:
    """The number of steps done: 0, or with `resume` the step of the last complete checkpoint.

    Damaged checkpoints after it are renamed. Raises `UserError` if a new run finds an old run in its folder, if there
    is no run to resume, or if the recipe differs from the one that the run was begun with.
    """
    if not resume:
        if steps_saved(run) or (run / checkpoint.LOG).exists():
            raise UserError(f"{run} already holds a run: go on with --resume, or choose another folder with --out")
        return 0
    if not has_started(run):
        raise UserError(f"{run}: no run to resume; leave --resume out to begin one")
    for key, was, now in differences(begun_with(run), recipe):
        raise UserError(
            f"{run} was begun with {key} {was}, not {now}; a run is resumed with the recipe it was begun with"
        )
    return checkpoint.last_whole(run)


def prepare_folder(run: Path, recipe: Recipe, first: int, resume: bool) -> None:
    """Write the recipe of a new run, or delete the lines after step `first` from the logs of an old run.

    Raises `UserError` if the folder or its folder of checkpoints cannot be written.
    """
    try:
        (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run / CHECKPOINTS):
            pass
        if not resume:
            (run / RECIPE).write_text(config.dump(recipe), encoding="utf-8")
            return
        checkpoint.cut_log(run, first or -1)  # -1 deletes the line `start` too, which has step 0 and is written again
        checkpoint.cut_lines(run / NONFINITE_FILE, first)
    except OSError as error:
        raise UserError(f"out: {run}: cannot be written: {error.strerror}") from None


def differences(before: Recipe, after: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two recipes would compute different results, with both values."""
    free = {name: getattr(before, name) for name in CHANGEABLE}
    free |= {
        "data": replace(after.data, unreadable=before.data.unreadable),
        "cache": replace(after.cache, folder=before.cache.folder),
    }
    return _differences(before, replace(after, **free), "")


def _differences(before: Any, after: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if not hasattr(before, "__dataclass_fields__"):
        if before != after:
            yield key, before, after
        return
    for name in before.__dataclass_fields__:
        yield from _differences(getattr(before, name), getattr(after, name), f"{key}.{name}" if key else name)


# --- the same rows ----------------------------------------------------------------------------------------------------


def count_exclusions(run: Path, first: int, mixture: Mixture) -> dict[str, Any] | None:
    """The excluded train rows of each data set: their number `rows` and their `digest`; None without exclusions.

    The numbers are printed. Raises `UserError` if a resumed run was begun with other exclusions, because its draws
    would be others.
    """
    listed = all(each.manifest.without is not None for each in mixture.datasets)
    now = {each.name: _exclusions_of(each.manifest) for each in mixture.datasets} if listed else None
    if first and _binding(_first_exclusions(run)) != _binding(now):
        raise UserError(
            f"{run} was begun with other training rows left out (cover overlap); begin another run with --out"
        )
    if now:
        counts = ", ".join(f"{name} {left_out['rows']}" for name, left_out in now.items())
        say(f"training rows left out, being in evaluation splits too: {counts}")
    if mixture.data.exclusions == "ignore":
        say("data.exclusions is ignore: training rows may be in evaluation splits too")
    return now


def check_same_rows(run: Path, metadata: dict[str, Any]) -> None:
    """Raises `UserError` if a resumed run was begun with other rows in a manifest: its draws would be others."""
    before = _start_line(run).get("datasets", {})
    for name, now in metadata["datasets"].items():
        if before.get(name, {}).get("draws_digest", now["draws_digest"]) != now["draws_digest"]:
            raise UserError(
                f"{run} was begun with other rows of {name} (its manifest has changed since);"
                " begin another run with --out"
            )


def _exclusions_of(manifest: Manifest) -> dict[str, Any]:
    rows = np.setdiff1d(open_manifest(manifest.path).usable, manifest.usable)
    return {"rows": len(rows), "digest": hashlib.sha256(rows.tobytes()).hexdigest()[:12]}


def _first_exclusions(run: Path) -> dict[str, Any] | None:
    """The exclusions at the start of a run."""
    return _start_line(run).get("exclusions")


def _start_line(run: Path) -> dict[str, Any]:
    """The first line of the log of a run."""
    with (run / checkpoint.LOG).open(encoding="utf-8") as lines:
        start: dict[str, Any] = json.loads(next(lines, "{}"))
    return start


def _binding(exclusions: dict[str, Any] | None) -> dict[str, Any]:
    """The exclusions without the data sets that lose no rows: an empty list has the same effect as no list."""
    return {name: left_out for name, left_out in (exclusions or {}).items() if left_out["rows"]}
