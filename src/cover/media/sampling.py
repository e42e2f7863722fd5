"""Clip sampling: the times of the frames of training clips and of evaluation views."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cover.errors import UserError, nearest

SamplingKind = Literal["dense", "segments", "whole"]
KINDS: tuple[SamplingKind, ...] = ("dense", "segments", "whole")
MOST_VIEWS = 1000  # all views of a file are in memory at once
DENSE_INTERVAL_S = 32 / 30  # seconds; TimeSformer (section 4) takes every 32nd frame, here of a video of 30 fps
# The latest time is this many seconds before the end of the sample. A decoder also takes a frame that starts up to 1 ms
# (`source.TOLERANCE`) after the requested time. At the very end of a segment this would be a frame behind the segment.
END = 2e-3


@dataclass(frozen=True)
class Sampling:
    """The rule that chooses the T frames of a clip from a video.

    `dense`: T frames, `interval` seconds apart, from a random start (Kinetics in the TimeSformer paper).
    `segments`: the video is divided into T equal parts, and one frame is taken from each part at a random time of its
    own (TSN, section 3.1).
    `whole`: as `segments`, but with the same offset in every part, so the frames are evenly spaced.
    """

    kind: SamplingKind
    interval: float = DENSE_INTERVAL_S

    @staticmethod
    def parse(text: str) -> Sampling:
        """Parse `dense`, `dense@0.25` (seconds between frames), `segments` or `whole`. Raises `UserError`."""
        kind, _, interval = str(text).partition("@")
        if kind not in KINDS:
            raise UserError(f'unknown clip sampling "{text}"{nearest(kind, KINDS)}')
        if not interval:
            return Sampling(kind)
        if kind != "dense" or not re.fullmatch(r"\d*\.?\d+", interval) or float(interval) <= 0:
            raise UserError(f'clip sampling "{text}": an interval in seconds goes with dense only, as in dense@0.25')
        return Sampling("dense", float(interval))

    def __str__(self) -> str:
        return f"dense@{self.interval:.4g}" if self.kind == "dense" else self.kind


@dataclass(frozen=True)
class Views:
    """Evaluation views, written `TxS`: T clips at equal temporal offsets x S crops along the long side."""

    temporal: int
    spatial: int

    @staticmethod
    def parse(text: str) -> Views:
        """Parse `TxS`, such as `1x3`, with T x S at most `MOST_VIEWS`. Raises `UserError`."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(text))
        if not match:
            raise UserError(f'views "{text}": write TEMPORALxSPATIAL, as in 1x3')
        # The length is checked first: int() of a very long number takes long, or raises ValueError.
        if len(match[0]) > len("1000x1000") or int(match[1]) * int(match[2]) > MOST_VIEWS:
            raise UserError(f'views "{match[0][:24]}": at most {MOST_VIEWS} views in all')
        return Views(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"


def train_times(sampling: Sampling, frames: int, duration: float, rng: np.random.Generator) -> np.ndarray:
    """The random times of the frames of one training clip.

    `duration`: length of the video in seconds. Returns float64 `(frames,)`, ascending, in seconds from the start of the
    video. If the video is shorter than a dense clip, the last times are equal and repeat the last frame.
    """
    if sampling.kind == "dense":
        # The start is uniform over all positions at which the clip fits into the video.
        start = rng.uniform(0, _dense_slack(sampling, frames, duration))
        return _inside(start + sampling.interval * np.arange(frames), duration)
    # The offset is a fraction of a part: one per part for `segments`, one for all parts for `whole`.
    offset = rng.uniform(size=frames if sampling.kind == "segments" else 1)
    return _inside((np.arange(frames) + offset) * (duration / frames), duration)


def view_times(sampling: Sampling, frames: int, duration: float, temporal: int) -> np.ndarray:
    """The fixed times of the frames of all temporal views, float64 `(temporal, frames)`, in seconds.

    `duration`: length of the video in seconds. Dense clips start at equal steps over the video; one view is the middle
    clip (TimeSformer, section 4). For `segments` and `whole`, view number v takes every part at the same fraction
    (v + 0.5) / `temporal` of its length. If the video is shorter than a dense clip, the last times are equal and repeat
    the last frame.
    """
    offsets = (np.arange(temporal) + 0.5)[:, None] / temporal  # (temporal, 1), between 0 and 1
    if sampling.kind == "dense":
        starts = offsets * _dense_slack(sampling, frames, duration)
        return _inside(starts + sampling.interval * np.arange(frames), duration)
    return _inside((np.arange(frames) + offsets) * (duration / frames), duration)


def _inside(times: np.ndarray, duration: float) -> np.ndarray:
    """The times, limited to the last frame of a video of `duration` seconds."""
    return np.minimum(times, max(0.0, duration - END))


def _dense_slack(sampling: Sampling, frames: int, duration: float) -> float:
    """The latest start of a dense clip inside the video, in seconds. 0 if the video is shorter than the clip."""
    return max(0.0, duration - sampling.interval * (frames - 1))
