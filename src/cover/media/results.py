"""What does reading a file give: its measures, its frames, or the reason why it gives nothing?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_PIXELS = 100_000_000


class MediaError(Exception):
    """A file that cannot be used. `str(error)` is a short reason without the file's name."""


@dataclass(frozen=True)
class Probe:
    """What a file holds. Width and height are pixels as displayed: after rotation and pixel aspect.

    `fps` is frames per second on average, `duration` in seconds (the last frame's own time on screen included), `start`
    the first frame's time stamp in seconds. An image has one frame, and fps, duration and start of 0.
    """

    frames: int
    fps: float
    width: int
    height: int
    codec: str
    duration: float
    start: float


@dataclass(frozen=True)
class Decoded:
    """`pictures` uint8 (M, H, W, 3) RGB, each there once; `shown` int64 (N,), which of them answers each of the N wanted times;
    `partial` says what cut the file short, None if nothing did."""

    pictures: np.ndarray
    shown: np.ndarray
    partial: str | None

    @property
    def frames(self) -> np.ndarray:
        """uint8 (N, H, W, 3), one per wanted time."""
        if np.array_equal(self.shown, np.arange(len(self.pictures))):
            return self.pictures
        return self.pictures[self.shown]


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises MediaError for more pixels than anyone means to hold."""
    if width * height > max_pixels:
        raise MediaError(f"{width}x{height} pixels, more than {max_pixels} allowed")
