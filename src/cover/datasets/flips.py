"""Which class does a clip belong to once it is mirrored left to right?"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def mirror_pairs(names: Sequence[str]) -> npt.NDArray[np.int32]:
    """int32 `(classes,)`: the label of each class after a horizontal flip.

    It is the class whose name is this one's with the words left and right exchanged, the class itself if its name has neither, and
    -1 (never flip) if it has them and no class is its counterpart. "left" as a verb ("something left behind") is taken for a side,
    which costs flips and never a wrong label.
    Something-Something-v2 has three pairs, the ones that mmaction2 swaps.
    """
    index = {name.lower(): label for label, name in enumerate(names)}
    mirrored = [index.get(_SIDES.sub(_other, name).lower(), -1) if _SIDES.search(name) else label for label, name in enumerate(names)]
    return np.array(mirrored, np.int32)


def _other(side: re.Match[str]) -> str:
    return "right" if side[0].lower() == "left" else "left"
