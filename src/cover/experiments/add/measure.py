"""What did the new head cost the old ones, and what did it gain from the release? Differences on the same samples, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cover.errors import UserError
from cover.evaluation.statistics import Estimate, difference, holm, share, verdict
from cover.model.weights import read_config, read_weights
from cover.experiments.add.known import SPLITS, Known
from cover.experiments.add.paired import Gauge, Measured
from cover.training.recipe import Recipe

MARGIN = 0.02  # a loss of top-1 below which a head counts as not worse
IDLE = ("dropout", "head_dropout")  # settings that an evaluated network does not use
BACKBONE = ""


def measure_old(before: Gauge, known: Known, splits: Mapping[str, str | None]) -> dict[str, Measured | str]:
    """Old data set -> what its head gets right of it, or why that cannot be told."""
    found: dict[str, Measured | str] = {}
    for name in known.owners:
        split = splits.get(name)
        if split is None:
            missing = f"not in {before.catalog.path.name}" if name not in before.catalog.specs else f"no sample in {', '.join(SPLITS)}"
            found[name] = missing
            continue
        try:
            found[name] = before.measure(name, split)
        except UserError as error:  # another class list than the head's, which is no reason not to train
            found[name] = str(error)
    return found


def compare_old(old: Mapping[str, Measured | str], release: Path, after: Gauge, known: Known, recipe: Recipe) -> list[dict[str, Any]]:
    """For every old data set what its head had before, what it has after, and the difference on the same samples. A head that is the same
    to the bit, on a backbone that is, is not measured again."""
    same = unchanged(release, after.release)
    rows: list[dict[str, Any]] = []
    for name, measured in old.items():
        head = known.owners[name].name
        row = {"dataset": name, "head": head, "trained": name in recipe.data.sets, "unchanged": {head, BACKBONE} <= same}
        if isinstance(measured, str):
            rows.append({**row, "why_not": measured})
            continue
        now = measured if row["unchanged"] else after.measure(name, measured.protocol["split"])
        rows.append({**row, **_paired(measured, now, recipe.seed)})
    _judge(rows)
    return rows


def _paired(before: Measured, after: Measured, seed: int) -> dict[str, Any]:
    theirs, ours, sources = _on_both(before, after)
    return {
        **after.protocol, "measure": after.measure, "before": asdict(share(theirs, sources, seed)),
        "after": asdict(share(ours, sources, seed)), "difference": asdict(difference(ours, theirs, sources, seed)),
    }  # fmt: skip


def _on_both(first: Measured, second: Measured) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each gets right of the samples that both have read, and where these come from."""
    both = np.intersect1d(first.rows, second.rows)
    mine, theirs = (np.isin(each.rows, both) for each in (first, second))
    return first.right[mine], second.right[theirs], first.sources[mine]


def _judge(rows: list[dict[str, Any]]) -> None:
    """A verdict for each difference, corrected for their number."""
    measured = {row["dataset"]: row for row in rows if "difference" in row}
    for name, p in holm({name: row["difference"]["p"] for name, row in measured.items()}).items():
        measured[name]["verdict"] = verdict(Estimate(**measured[name]["difference"]), p, MARGIN)


def unchanged(before: Path, after: Path) -> set[str]:
    """The heads whose tensors are the same in both releases, to the bit; `BACKBONE` among them where all the rest of the network is, and
    where it is used in the same way."""
    theirs, ours = read_weights(before), read_weights(after)
    parts = {BACKBONE: _function(before) == _function(after)}
    for name, value in theirs.items():
        part = name.split(".")[1] if name.startswith("heads.") else BACKBONE
        parts[part] = parts.get(part, True) and name in ours and torch.equal(ours[name], value)
    return {part for part, same in parts.items() if same}


def _function(release: Path) -> tuple[dict[str, Any], Any]:
    """The settings beside the tensors that decide what a release computes of a clip, and how many frames that has."""
    config = read_config(release)
    return {key: value for key, value in config["model"].items() if key not in IDLE}, config["about"].get("frames")


def accuracy(measured: Measured, seed: int) -> dict[str, Any]:
    """A measurement with its interval, under its protocol."""
    return {**measured.protocol, "measure": measured.measure, **asdict(share(measured.right, measured.sources, seed))}


def gain_over(ours: Measured, theirs: Measured, seed: int) -> dict[str, Any]:
    """`alone`: their accuracy; `difference`: ours minus theirs; `verdict`."""
    mine, alone, sources = _on_both(ours, theirs)
    gain = difference(mine, alone, sources, seed)
    assert gain.p is not None
    return {"alone": asdict(share(alone, sources, seed)), "difference": asdict(gain), "verdict": verdict(gain, gain.p, MARGIN)}
