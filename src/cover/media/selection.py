"""Which packets must be decoded to see the frames at given times? Groups of pictures that hold none of them are left out.

Packets are given in decoding order. A *group* is a key frame and what follows it up to the next one. A frame that is shown before
its group's key frame (an open group) may also refer to the group before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Run:
    """Packets `first` to `stop` - 1 are decoded one after the other; then the decoder is emptied."""

    first: int
    stop: int


def frames_at(seconds: npt.NDArray[np.float64], times: Sequence[float], tolerance: float) -> npt.NDArray[np.int64]:
    """Which frame is shown at each time: the last that starts no later (within `tolerance`), the first before it.

    `seconds`: when each frame starts, ascending.
    """
    return np.maximum(np.searchsorted(seconds - tolerance, times, side="right") - 1, 0)


def runs_for(stamps: npt.NDArray[np.int64], key: npt.NDArray[np.bool_], wanted: Iterable[int]) -> list[Run]:
    """The runs that show the `wanted` packets (places in decoding order), in order and without overlap.

    `stamps`: presentation times, one for each packet, in ticks; `key`: which packets are key frames, the first among them.
    """
    keys = np.flatnonzero(key)
    runs: list[Run] = []
    for place in sorted(wanted):
        group = int(np.searchsorted(keys, place, side="right")) - 1
        if group > 0 and stamps[place] < stamps[keys[group]]:
            group -= 1
        first = int(keys[group])
        while runs and first < runs[-1].stop:
            first = min(first, runs.pop().first)
        runs.append(Run(first, place + 1))
    return runs
