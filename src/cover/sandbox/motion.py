"""How does the object move, and why do neither single frames nor unordered sets of frames tell the motion classes apart?

`travel` makes the motion-led set. The object goes a short way at an even speed in one of eight directions, in a frame without edges: what
leaves on one side comes in on the other. The argument:

1. The start is drawn evenly over such a frame, so the place in any frame is even over it whatever the direction: one frame tells nothing,
   exactly.
2. A way read backwards is a way of the opposite direction, frame for frame. So unordered frames can at best tell the four axes from each
   other, and only by comparing places across frames. What single frames say, averaged over the frames, has the same mean for all axes; the
   way is shorter than the object, which leaves such an average next to nothing of the axis.
3. Object, background, distractors, speed and the number of frames are drawn without knowing the class; the camera's shake and the noise are
   stationary and look the same backwards.
4. Nothing else depends on time: no fade, no turning, no change of size. The files of this set hold key frames only, so the codec
   cannot leave a trail of where the object was before.

Between two of eight frames the object moves by less than one bar of its pattern, so the direction shows in a patch and its next frame.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cover.sandbox.render import Floats
from cover.sandbox.settings import FPS

TRAVEL_FRAMES = (24, 28, 32, 36)
TRAVEL = (0.3, 0.5)  # of the frame's height, from the first frame to the last

Direction = tuple[int, int]  # rows down, columns to the right: each -1, 0 or 1


def travel(rng: np.random.Generator, size: tuple[int, int], direction: Direction) -> Floats:
    """The object's centre in pixels, `(frames, 2)` as (y, x), on a straight way through a frame without edges; `size` is (height, width).

    Only the place modulo `size` means anything.
    """
    share = np.linspace(0, 1, int(rng.choice(TRAVEL_FRAMES)))[:, None]
    way = np.array(direction) / np.hypot(*direction) * rng.uniform(*TRAVEL) * size[0]
    return (rng.uniform(0, 1, 2) * size + share * way).astype(np.float32)


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
