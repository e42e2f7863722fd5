"""How does the object move, and why does no single frame and no unordered set of frames tell the motion classes apart?

`cross_twice` makes the motion-led set. A clip has two halves of n frames each, the background and the object the same in both. In
one half the object crosses the frame from side to side, in the other from top to bottom. The class is which half comes first, and
the sense of either crossing. The argument:

1. A crossing visits n places: out of sight beyond one edge, then evenly spaced from that edge to the other, then out of sight
   again. Read backwards it visits the very same places, so the sense of a crossing is only in the order of its frames.
2. The lane (the height of a sideways crossing, the column of an upright one), the object, the background, the distractors and the
   number of frames are drawn without knowing the class.
3. The camera's shake is drawn for each half on its own, from a stationary process that looks the same backwards, and the noise of
   every frame on its own. So neither reversing a half nor swapping the halves changes the joint distribution of the *set* of
   frames: all eight classes give one and the same distribution of sets, and a frame picked uniformly from a clip tells nothing.
4. Nothing else depends on time: no fade, no turning, no change of size. The files of this set hold key frames only, so the codec
   cannot leave a trail of where the object was before.

n is odd. Frames taken at the centres of 2, 4, 8 ... equal parts of the clip then never fall on the border of two frames, where
rounding would shift all of them to the later side; a regular sampling keeps the symmetry of point 1. As a half begins and ends
out of sight, the middle frame of a clip is empty whatever the class. (A frame known to come from another fixed time does tell
something, as a place and a time give a direction; that is use of order.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cover.sandbox.render import Floats
from cover.sandbox.settings import FPS

CROSSING_FRAMES = (13, 15, 17)
LANE = (0.3, 0.7)


def cross_twice(
    rng: np.random.Generator, size: tuple[int, int], margin: Floats, sideways_first: bool, rightwards: bool, downwards: bool
) -> Floats:
    """The object's centre in pixels, `(2n, 2)` as (y, x). `size`: (height, width); `margin` `(2,)`: so far beyond an edge it is hidden."""
    frames = int(rng.choice(CROSSING_FRAMES))
    lanes = rng.uniform(*LANE, 2) * size
    sideways = np.stack([np.full(frames, lanes[0]), _crossing(frames, size[1], margin[1], rightwards)], 1)
    upright = np.stack([_crossing(frames, size[0], margin[0], downwards), np.full(frames, lanes[1])], 1)
    halves = [sideways, upright] if sideways_first else [upright, sideways]
    return np.concatenate(halves).astype(np.float32)


def _crossing(frames: int, side: int, margin: float, forwards: bool) -> NDArray[np.float64]:
    places = np.concatenate([[-margin], np.linspace(0, side, frames - 2), [side + margin]])
    return places if forwards else places[::-1]


def wander(rng: np.random.Generator, size: tuple[int, int], reach: Floats, frames: int) -> Floats:
    """A smooth random way that stays in the frame: the centre in pixels, `(frames, 2)` as (y, x)."""
    times = np.arange(frames)[:, None] / FPS
    swing = rng.uniform(0.1, 0.5, 2)
    middle = rng.uniform(swing, 1 - swing)
    inside = middle + swing * np.sin(2 * np.pi * (rng.uniform(0.15, 0.5, 2) * times + rng.uniform(0, 1, 2)))
    return _within(inside, size, 0.7 * reach)


def rise_or_fall(rng: np.random.Generator, size: tuple[int, int], reach: Floats, frames: int, rising: bool) -> Floats:
    """A steady way up or down with a sideways drift that knows no side: the centre in pixels, `(frames, 2)` as (y, x)."""
    share = np.linspace(0, 1, frames)[:, None]
    first, last = rng.uniform([0.0, 0.8], [0.2, 1.0])
    columns = rng.uniform(0.2, 0.8, 2)
    inside = np.concatenate([first + (last - first) * share, columns[0] + (columns[1] - columns[0]) * share], 1)
    return _within(inside[::-1] if rising else inside, size, 0.5 * reach)


def _within(inside: NDArray[np.float64], size: tuple[int, int], border: Floats) -> Floats:
    """Shares of the frame in [0, 1] as pixels at least `border` `(2,)` from its edges."""
    return (border + inside * (np.array(size) - 2 * border)).astype(np.float32)
