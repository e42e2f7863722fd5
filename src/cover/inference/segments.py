"""Segments of a video: from the scores of its windows to the stretches of time in which a class is seen.

A segment begins where a class reaches one probability and ends where it falls below a lower one, so a score that swings
around a single threshold does not cut it into pieces. Also segments as subtitles.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cover.errors import UserError

LEAVE = 0.6  # the lower threshold, as a fraction of the upper one, where none is given


@dataclass(frozen=True)
class SegmentRule:
    """How windows become segments.

    `enter`: the probability that a window of every segment reaches. `leave`: the windows around it belong to the
    segment while they reach this one. `gap`: segments of a class that are at most so many seconds apart become one.
    `shortest`: shorter segments are left out, in seconds. Raises `UserError`.
    """

    enter: float = 0.5
    leave: float = 0.5 * LEAVE
    gap: float = 0.0
    shortest: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.enter <= 1:
            raise UserError(f"--segments: expected a probability above 0, at most 1, got {self.enter:g}")
        if not 0 < self.leave <= self.enter:
            raise UserError(f"--leave: expected a probability above 0, at most {self.enter:g}, got {self.leave:g}")
        for name, value in (("gap", self.gap), ("shortest", self.shortest)):
            if not 0 <= value < math.inf:
                raise UserError(f"--{name}: expected seconds, 0 or more, got {value:g}")


@dataclass(frozen=True)
class Segment:
    """A stretch of a video in which the class number `label` of a head is seen, in seconds.

    `score`, `peak`: the mean and the largest probability of its windows.
    """

    start: float
    end: float
    label: int
    score: float
    peak: float


def cells_of(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The stretch of the video that each window stands for, from the ascending windows `(start, length)`.

    Windows may overlap; their stretches follow each other without a gap. Two neighbours meet in the middle between
    their centres, and the first and the last window reach to the ends of the video.
    """
    centres = [start + length / 2 for start, length in spans]
    borders = [(one + other) / 2 for one, other in pairwise(centres)]
    begin, end = spans[0][0], sum(spans[-1])
    return list(zip([begin, *borders], [*borders, end]))


def find_segments(spans: Sequence[tuple[float, float]], scores: np.ndarray, rule: SegmentRule) -> list[Segment]:
    """The segments of one head, by their start; segments of one class do not overlap.

    `spans`: the windows `(start, length)` in seconds, ascending. `scores`: float `(windows, classes)`.
    """
    if not spans:
        return []
    cells = cells_of(spans)
    segments = [
        segment
        for label in np.flatnonzero((scores >= rule.enter).any(0)).tolist()
        for segment in _of_class(cells, scores[:, label], label, rule)
    ]
    return sorted(segments, key=lambda each: (each.start, -each.score))


def _of_class(cells: list[tuple[float, float]], scores: np.ndarray, label: int, rule: SegmentRule) -> list[Segment]:
    runs: list[tuple[int, int]] = []  # the first window and the one after the last
    for first, stop in _runs(scores >= rule.leave):
        if scores[first:stop].max() < rule.enter:
            continue
        if runs and cells[first][0] - cells[runs[-1][1] - 1][1] <= rule.gap:
            first = runs.pop()[0]  # noqa: PLW2901
        runs.append((first, stop))
    segments = [
        Segment(
            cells[first][0],
            cells[stop - 1][1],
            label,
            float(scores[first:stop].mean()),
            float(scores[first:stop].max()),
        )
        for first, stop in runs
    ]
    return [each for each in segments if each.end - each.start >= rule.shortest]


def _runs(inside: np.ndarray) -> list[tuple[int, int]]:
    """The runs of true values: the index of the first, and the one after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], inside.astype(np.int8), [0]]))).tolist()
    return list(zip(edges[::2], edges[1::2]))


# --- subtitles --------------------------------------------------------------------------------------------------------

Cue = tuple[float, float, str]  # start and end in seconds, text
_LINE_BREAKS = re.compile(r"\s+")


def srt(cues: Sequence[Cue]) -> str:
    """Cues as SubRip. Players take text in angle or curly brackets for commands, so these become other brackets."""
    brackets = str.maketrans("<>{}", "‹›()")
    return _subtitles("", cues, ",", lambda text: text.translate(brackets), numbered=True)


def vtt(cues: Sequence[Cue]) -> str:
    """Cues as WebVTT, in which `&`, `<` and `>` are escaped."""
    escapes = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return _subtitles("WEBVTT\n\n", cues, ".", lambda text: text.translate(escapes), numbered=False)


def _subtitles(head: str, cues: Sequence[Cue], point: str, escape: Callable[[str], str], numbered: bool) -> str:
    blocks = []
    for number, (start, end, text) in enumerate(sorted(cues), start=1):
        first, last = round(start * 1000), round(end * 1000)
        times = f"{_clock(first, point)} --> {_clock(max(last, first + 1), point)}"
        line = escape(_LINE_BREAKS.sub(" ", text).strip()) or "-"
        blocks.append(f"{number}\n" * numbered + f"{times}\n{line}\n")
    return head + "\n".join(blocks)


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"
