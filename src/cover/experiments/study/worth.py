"""The worth of each data set to one target: the mixture without it, and the target with it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cover.errors import UserError, nearest
from cover.experiments.study.study_file import WITH, WITHOUT, Pilot, Study, Transfer, other_set

FULL = "videos_images"


def worth_study(study: Study, target: str) -> Study:
    """The study of the worth of each other data set to `target`, at the first size.

    Raises `UserError` if `target` is not one of the targets, or if there is nothing to mix it with.
    """
    if target not in study.targets:
        raise UserError(f'--worth: "{target}" is not one of targets{nearest(target, study.targets)}')
    others = [name for name in (*study.mixture, *study.images) if name != target]
    if not others:
        raise UserError("--worth: give videos or images to mix the target with")
    size = next(iter(study.sizes))
    arms = ["alone", FULL, *(f"{WITHOUT}{name}" for name in others), *(f"{WITH}{name}" for name in others)]
    sizes = {size: replace(study.sizes[size], arms=[])}
    changes: dict[str, Any] = {"targets": [target], "videos": study.mixture, "arms": arms, "sizes": sizes}
    return replace(study, transfer=Transfer(), probes=[], pilot=Pilot(), **changes)


def ranked(comparisons: Sequence[Mapping[str, Any]], word: str) -> list[Mapping[str, Any]]:
    """The comparisons of `WITH` or `WITHOUT` arms, the most useful data set first."""
    rows = [
        row for row in comparisons if row["claim"] == "worth" and word in (_kind(row["ours"]), _kind(row["theirs"]))
    ]
    return sorted(rows, key=lambda row: -row["difference"])


def set_of(row: Mapping[str, Any]) -> str:
    """The data set whose worth a comparison shows."""
    return other_set(row["ours"]) or other_set(row["theirs"])


def _kind(arm: str) -> str:
    return arm.partition(":")[0] + ":" if ":" in arm else ""
