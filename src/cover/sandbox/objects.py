"""What do the objects look like? Twelve patterns, each cut out along a random outline.

The pattern is the category: a vision transformer that starts from random weights learns patterns, which show inside a patch or two,
within minutes on a CPU; outlines of the same size it does not. All patterns look alike in a mirror. Coordinates are in units of half the
object's side, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float32]
Inside = NDArray[np.bool_]

HOLLOW = "frame"
PLAIN = "plate"


def stripes(x: Grid, bars: float, shift: float) -> Inside:
    """Bars across x, `bars` of them on half the object."""
    return (x * bars / 2 + shift) % 1 < 0.5


def dots(x: Grid, y: Grid, bars: float, shift: float) -> Inside:
    """Spots on a square lattice."""
    return np.hypot((x * bars / 2 + shift) % 1 - 0.5, (y * bars / 2 + shift) % 1 - 0.5) < 0.3


Pattern = Callable[[Grid, Grid, float, float], Inside]
# name: which of the two inks a point has, from its place, the bars on half the object, and a shift in [0, 1)
PATTERNS: dict[str, Pattern] = {
    "blinds": lambda x, y, bars, shift: stripes(y, bars, shift),
    "fence": lambda x, y, bars, shift: stripes(x, bars, shift),
    "chessboard": lambda x, y, bars, shift: stripes(x, bars, shift) ^ stripes(y, bars, shift),
    "domino": dots,
    "target": lambda x, y, bars, shift: np.hypot(x, y) * 1.5 % 1 < 0.5,
    "pinwheel": lambda x, y, bars, shift: (np.arctan2(y, x) * 3 / np.pi + shift) % 1 < 0.5,
    PLAIN: lambda x, y, bars, shift: np.ones_like(x, dtype=bool),
    "eye": lambda x, y, bars, shift: np.hypot(x, y) < 0.45,
    "window": lambda x, y, bars, shift: np.minimum(abs(x), abs(y)) < 0.25,
    "flag": lambda x, y, bars, shift: y < 0,
    "book": lambda x, y, bars, shift: x < 0,
    HOLLOW: lambda x, y, bars, shift: np.ones_like(x, dtype=bool),
}
OBJECTS = tuple(PATTERNS)
ONE_INK = frozenset([PLAIN, HOLLOW])

# A measure of distance from the centre: the outline of size 1 is where it is 1.
OUTLINES: tuple[Callable[[Grid, Grid], Any], ...] = (
    np.hypot,
    lambda x, y: np.maximum(abs(x), abs(y)) / np.float32(0.88),
    lambda x, y: (abs(x) + abs(y)) / np.float32(1.25),
)
HOLE = 0.58


def cover_of(name: str, outline: int, x: Grid, y: Grid) -> Inside:
    """Where the object is: within its outline, and for the hollow one outside its hole."""
    distance = OUTLINES[outline](x, y)
    return (distance < 1) & ((distance > HOLE) if name == HOLLOW else True)
