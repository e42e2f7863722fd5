"""Does a run that goes on draw from the rows that it was begun with?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from cover.console import say
from cover.datasets.manifest import Manifest, open_manifest
from cover.errors import UserError
from cover.mixture.mixture import Mixture
from cover.training.checkpoint import LOG


def count_exclusions(run: Path, first: int, mixture: Mixture) -> dict[str, Any] | None:
    """For each data set `rows`, how many usable train rows are left out, and their `digest`; None without a list of exclusions. Said on
    the terminal. Raises `UserError` where a run that goes on was begun with other rows left out: its draws would not be the same."""
    listed = all(each.manifest.without is not None for each in mixture.datasets)
    now = {each.name: _left_out(each.manifest) for each in mixture.datasets} if listed else None
    if first and _that_bind(_begun_with(run)) != _that_bind(now):
        raise UserError(f"{run} was begun with other training rows left out (cover overlap); begin another run with --out")
    if now:
        counts = ", ".join(f"{name} {left_out['rows']}" for name, left_out in now.items())
        say(f"training rows left out, being in evaluation splits too: {counts}")
    if mixture.data.exclusions == "ignore":
        say("data.exclusions is ignore: training rows may be in evaluation splits too")
    return now


def check_same_rows(run: Path, about: dict[str, Any]) -> None:
    """Raises `UserError` where a run that goes on was begun with other rows in a manifest: its draws would not be the same."""
    before = _started_as(run).get("datasets", {})
    for name, now in about["datasets"].items():
        if before.get(name, {}).get("draws_digest", now["draws_digest"]) != now["draws_digest"]:
            raise UserError(f"{run} was begun with other rows of {name} (cover index has found others since); begin another run with --out")


def _left_out(manifest: Manifest) -> dict[str, Any]:
    rows = np.setdiff1d(open_manifest(manifest.path).usable, manifest.usable)
    return {"rows": len(rows), "digest": hashlib.sha256(rows.tobytes()).hexdigest()[:12]}


def _begun_with(run: Path) -> dict[str, Any] | None:
    """The exclusions that the log of a run begins with."""
    return _started_as(run).get("exclusions")


def _started_as(run: Path) -> dict[str, Any]:
    """The line that the log of a run begins with."""
    with (run / LOG).open(encoding="utf-8") as lines:
        start: dict[str, Any] = json.loads(next(lines, "{}"))
    return start


def _that_bind(exclusions: dict[str, Any] | None) -> dict[str, Any]:
    """Without the data sets that nothing is left out of: for them a list that finds nothing is as good as none."""
    return {name: left_out for name, left_out in (exclusions or {}).items() if left_out["rows"]}
