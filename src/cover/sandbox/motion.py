"""How does the object move, and why do neither single frames nor unordered sets of frames tell the motion classes apart?

`sweep` makes the motion-led set. The object goes across the frame once, there and back, or twice, beginning from the left or from the
right: six classes, three mirror pairs. The argument:

1. Every class passes every column for the same share of the clip: the column of a frame picked at random is uniform over the
   width whatever the class, because the sweep begins at a random fraction of a frame's time. So one frame tells nothing.
2. Nor does any average over frames of what single frames say: it is the same integral over the columns for all classes, up to the
   spacing of the frames. A sweep read backwards is the sweep from the other side, frame for frame.
3. Lane, object, background, distractors, and the number of frames are drawn without knowing the class; the camera's shake and the
   noise are stationary and look the same backwards.
4. Nothing else depends on time: no fade, no turning, no change of size. The files of this set hold key frames only, so the codec
   cannot leave a trail of where the object was before.

A frame known to come from one fixed time does tell something, as a place and a time give a direction; that is use of order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cover.sandbox.render import Floats
from cover.sandbox.settings import FPS

SWEEP_FRAMES = (24, 28, 32, 36)
LANE = (0.25, 0.75)


def sweep(rng: np.random.Generator, size: tuple[int, int], course: str, rightwards: bool) -> Floats:
    """The object's centre in pixels, `(frames, 2)` as (y, x), on its way sideways; `size` is (height, width).

    `course`: `once`, `back` (there and back) or `twice`.
    """
    frames = int(rng.choice(SWEEP_FRAMES))
    time = (np.arange(frames) + rng.uniform()) / frames
    come = {"once": time, "twice": 2 * time % 1, "back": 1 - abs(2 * time - 1)}[course]
    columns = size[1] * (come if rightwards else 1 - come)
    return np.stack([np.full(frames, rng.uniform(*LANE) * size[0]), columns], 1).astype(np.float32)


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
