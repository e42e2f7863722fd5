"""Whatever the groups, a wanted packet comes with all that it may refer to, and little else."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cover.media.selective import frames_at, runs_for

# packets, of which lead their key frame
GROUPS = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 3)), min_size=1, max_size=8)


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, set[int]]:
    stamps: list[int] = []
    key: list[bool] = []
    for packets, leading in draw(GROUPS):
        start, lead = len(stamps), min(leading, packets - 1) if stamps else 0
        order = [lead, *range(lead), *range(lead + 1, packets)]  # the key frame first, those shown before it next
        stamps += [start + place for place in order]
        key += [number == 0 for number in range(packets)]
    wanted = draw(st.sets(st.integers(0, len(stamps) - 1), min_size=1))
    return np.array(stamps), np.array(key), wanted


@given(streams())
def test_runs(stream: tuple[np.ndarray, np.ndarray, set[int]]) -> None:
    stamps, key, wanted = stream
    runs = runs_for(stamps, key, wanted)
    keys = np.flatnonzero(key)
    assert all(run.first in keys for run in runs)
    assert all(one.stop <= other.first for one, other in pairwise(runs))
    assert all(run.stop - 1 in wanted for run in runs)  # nothing is decoded behind the last that is wanted
    for place in wanted:
        (run,) = [run for run in runs if run.first <= place < run.stop]
        group = keys[keys <= place][-1]
        if stamps[place] < stamps[group] and group > 0:
            group = keys[keys < group][-1]
        assert run.first <= group


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.lists(st.floats(-1, 60), min_size=1, max_size=20))
def test_frames_at(steps: list[int], times: list[float]) -> None:
    seconds = np.cumsum(steps) / 25
    for time, result in zip(times, frames_at(seconds, times, 1e-3), strict=True):
        begun = [number for number, start in enumerate(seconds) if start - 1e-3 <= time]
        assert result == (begun[-1] if begun else 0)
