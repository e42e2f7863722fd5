"""The start of a run: in a new folder, or from the last complete checkpoint of an earlier start.

A resumed run must have the same recipe and the same manifest rows, or else its draws would be others.
"""

from __future__ import annotations

import hashlib
import os
import shlex
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
from cover.training.optim import learning_rate
from cover.training.recipe import RECIPE, Recipe
from cover.training.retention import parse_line

# The fields of a recipe that may change on a resume, because they do not change the results of a run.
CHANGEABLE = (
    "out",
    "default_head",
    "device",
    "workers",
    "accumulation",
    "log",
    "log_every",
    "evaluate_every",
    "save_every",
    "checkpoints",
    "distributed",
    "nonfinite",
)


def has_started(run: Path) -> bool:
    """Whether the folder has a run that can be resumed."""
    return (run / RECIPE).is_file()


def begun_with(run: Path) -> Recipe:
    """The recipe of a run that has started, with its number of steps."""
    return config.load(Recipe, run / RECIPE)


def first_step(run: Path, recipe: Recipe, resume: bool) -> int:
    """The number of steps done: 0, or with `resume` the step of the last complete checkpoint.

    Damaged checkpoints after it are renamed. Raises `UserError` if a new run finds an old run in its folder, if there
    is no run to resume, or if the recipe would have computed other results in the steps that are done.
    """
    if not resume:
        if steps_saved(run) or (run / checkpoint.LOG).exists():
            raise UserError(f"{run} already holds a run: go on with --resume, or choose another folder with --out")
        return 0
    if not has_started(run):
        raise UserError(f"{run}: no run to resume; leave --resume out to begin one")
    before = begun_with(run)
    for key, was, now in differences(before, recipe):
        raise UserError(
            f"{run} was begun with {key} {was}, not {now}; a run is resumed with the recipe it was begun with"
        )
    first = checkpoint.last_whole(run)
    _check_steps(run, before, recipe, first)
    if first:
        _start_line(run)  # a log that is not sound is reported before its later lines are deleted
    if first == recipe.step_count:
        say(f"{run} has all its {first} steps already; {more_steps(run)}")
    return first


def _check_steps(run: Path, before: Recipe, after: Recipe, first: int) -> None:
    """Raises `UserError` for another number of steps, unless the `first` steps have the same learning rates with it."""
    was, now = before.step_count, after.step_count
    rates = ([learning_rate(after.optimizer, step, steps) for step in range(first)] for steps in (was, now))
    if was == now or (now >= first and next(rates) == next(rates)):
        return
    raise UserError(
        f"{run} was begun with steps {was}, not {now}, which would change learning rates of the {first} steps that are"
        f" done; {more_steps(run)}"
    )


def more_steps(run: Path) -> str:
    """How the weights of a run are trained further than its last step."""
    command = shlex.join(["cover", "train", "RECIPE", "--start.checkpoint", str(run), "--out", "NEW", "--steps", "N"])
    return f"to train its weights further, begin another run from them: {command}"


def prepare_folder(run: Path, recipe: Recipe, first: int, resume: bool) -> None:
    """Write the recipe of a new run, or delete the lines after step `first` from the logs of an old run.

    Raises `UserError` if the folder or its folder of checkpoints cannot be written.
    """
    try:
        (run / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run / CHECKPOINTS):
            pass
        if not resume:
            write_recipe(run, recipe)
            return
        checkpoint.cut_log(run, first or -1)  # -1 deletes the line `start` too, which has step 0 and is written again
        checkpoint.cut_lines(run / NONFINITE_FILE, first)
    except OSError as error:
        raise UserError(f"out: {run}: cannot be written: {error.strerror}") from None


def write_recipe(run: Path, recipe: Recipe) -> None:
    """Write the recipe into the folder of its run. Raises `UserError` if the folder cannot be written."""
    beside = run / f".{RECIPE}"
    try:
        beside.write_text(config.dump(recipe), encoding="utf-8")
        beside.replace(run / RECIPE)
    except OSError as error:
        raise UserError(f"out: {run}: cannot be written: {error.strerror}") from None


def differences(before: Recipe, after: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two recipes would compute different results, with both values.

    The catalog may be at another place: `check_same_data` compares what it says. The number of steps is left out
    (`_check_steps`).
    """
    free = {name: getattr(before, name) for name in CHANGEABLE}
    free |= {
        "steps": before.steps,
        "data": replace(after.data, unreadable=before.data.unreadable, catalog=before.data.catalog),
        "cache": replace(after.cache, folder=before.cache.folder),
    }
    if _same_path(before.start.checkpoint, after.start.checkpoint):
        free["start"] = replace(after.start, checkpoint=before.start.checkpoint)
    return _differences(before, replace(after, **free), "")


def _same_path(one: str, other: str) -> bool:
    return bool(one and other) and os.path.realpath(one) == os.path.realpath(other)


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


def check_same_data(run: Path, metadata: dict[str, Any], reading: dict[str, Any]) -> None:
    """Raises `UserError` if a resumed run was begun with other rows, or if the catalog's entries were others.

    `metadata`: of the release. `reading`: data set -> `SampleReader.settings_of`. A run of an earlier version has no
    `reading` in its log.
    """
    start = _start_line(run)
    before, read_before = start.get("datasets", {}), start.get("reading", {})
    for name, now in metadata["datasets"].items():
        if before.get(name, {}).get("draws_digest", now.get("draws_digest")) != now.get("draws_digest"):
            raise UserError(
                f"{run} was begun with other rows of {name} (its manifest has changed since);"
                " begin another run with --out"
            )
    for name, settings in reading.items():
        for key, value in read_before.get(name, settings).items():
            if settings.get(key) != value:
                raise UserError(
                    f"{run} was begun with {key} {value} of {name}, not {settings.get(key)}, which follows from the"
                    " catalog; put it back, or begin another run with --out"
                )


def _exclusions_of(manifest: Manifest) -> dict[str, Any]:
    rows = np.setdiff1d(open_manifest(manifest.path).usable, manifest.usable)
    return {"rows": len(rows), "digest": hashlib.sha256(rows.tobytes()).hexdigest()[:12]}


def _first_exclusions(run: Path) -> dict[str, Any] | None:
    """The exclusions at the start of a run."""
    return _start_line(run).get("exclusions")


def _start_line(run: Path) -> dict[str, Any]:
    """The first line of the log of a run. Raises `UserError` if the log is missing or begins with something else."""
    log = run / checkpoint.LOG
    try:
        with log.open(encoding="utf-8") as lines:
            start = parse_line(next(lines, ""))
        problem = "" if start.get("event") == "start" else "does not begin with the line of its start"
    except (OSError, UnicodeDecodeError) as error:
        start, problem = {}, f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if problem:
        raise UserError(
            f"{log}: {problem}, so nothing says which data the run was begun with; put the file back, or begin another"
            f" run from its weights (--start.checkpoint {run})"
        )
    return start


def _binding(exclusions: dict[str, Any] | None) -> dict[str, Any]:
    """The exclusions without the data sets that lose no rows: an empty list has the same effect as no list."""
    return {name: left_out for name, left_out in (exclusions or {}).items() if left_out["rows"]}
