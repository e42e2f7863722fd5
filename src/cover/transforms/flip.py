"""Horizontal flips, and the labels that they exchange."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def draw_flip(
    rng: np.random.Generator, labels: Sequence[int], allowed: bool, mirror: npt.NDArray[np.int32] | None
) -> tuple[bool, Sequence[int]]:
    """Whether a sample is flipped, with a probability of 0.5 if `allowed`, and its labels after that.

    `mirror`: what `mirror_pairs` returns, or None where flips change no label. A sample with a label that has no
    counterpart is not flipped. The generator advances the same in every case.
    """
    wanted = bool(rng.random() < 0.5)
    if not (wanted and allowed):
        return False, labels
    if mirror is None:
        return True, labels
    mirrored = [int(mirror[label]) for label in labels]
    return (False, labels) if any(label < 0 for label in mirrored) else (True, mirrored)


def apply_flip(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Frames `(..., W)`, mirrored left to right, in memory of their own."""
    return frames[..., ::-1].copy()


def mirror_pairs(names: Sequence[str]) -> npt.NDArray[np.int32]:
    """int32 `(classes,)`: the label of each class after a horizontal flip.

    It is the class whose name is this one's with the words left and right exchanged, the class itself if its name has
    neither, and -1 (never flip) if it has them and no class is its counterpart. "left" as a verb ("something left
    behind") counts as a side, which costs flips and never gives a wrong label. Something-Something-v2 has three pairs,
    the ones that mmaction2 swaps.
    """
    index = {name.lower(): label for label, name in enumerate(names)}
    mirrored = list(range(len(names)))
    for label, name in enumerate(names):
        if _SIDES.search(name):
            mirrored[label] = index.get(_SIDES.sub(_other, name).lower(), -1)
    return np.array(mirrored, np.int32)


def _other(side: re.Match[str]) -> str:
    return "right" if side[0].lower() == "left" else "left"
