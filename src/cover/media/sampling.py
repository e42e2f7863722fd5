"""Which instants of a video make a clip: sampling for training, views for evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cover.errors import UserError, nearest

SamplingKind = Literal["dense", "segments", "whole"]
KINDS: tuple[SamplingKind, ...] = ("dense", "segments", "whole")
MOST_VIEWS = 1000  # of a file: all of them are in memory at once
DENSE_INTERVAL_S = 32 / 30  # TimeSformer reads one frame in 32 of a 30 fps video (8 frames, paper section 4)
# Seconds before the end that no instant comes after. A decoder takes a frame that starts within 1 ms after an instant:
# here it is the last frame of the video, or of the stretch of a longer one, and not what follows.
END = 2e-3


@dataclass(frozen=True)
class Sampling:
    """How a clip of T frames is taken from a video.

    `dense`: T frames `interval` seconds apart, from a random start. `segments`: one frame from each of T equal parts,
    at an instant of its own (TSN). `whole`: T frames evenly over the whole video, shifted together.
    """

    kind: SamplingKind
    interval: float = DENSE_INTERVAL_S

    @staticmethod
    def parse(text: str) -> Sampling:
        """`dense`, `dense@0.25` (seconds between frames), `segments` or `whole`. Raises `UserError`."""
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
    """Evaluation views, written `TxS`: T equal temporal offsets by S crops along the long side."""

    temporal: int
    spatial: int

    @staticmethod
    def parse(text: str) -> Views:
        """`1x3` and the like, at most `MOST_VIEWS` in all. Raises `UserError`."""
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(text))
        if not match:
            raise UserError(f'views "{text}": write TEMPORALxSPATIAL, as in 1x3')
        if len(match[0]) > len("1000x1000") or int(match[1]) * int(match[2]) > MOST_VIEWS:
            raise UserError(f'views "{match[0][:24]}": at most {MOST_VIEWS} views in all')
        return Views(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.temporal}x{self.spatial}"


def train_times(sampling: Sampling, frames: int, duration: float, rng: np.random.Generator) -> np.ndarray:
    """Random instants of one training clip.

    `duration` in seconds. Returns float64 `(frames,)`, seconds from the start of the video. In a video shorter than a
    dense clip the last frame is repeated.
    """
    if sampling.kind == "dense":
        return _inside(
            rng.uniform(0, _dense_slack(sampling, frames, duration)) + sampling.interval * np.arange(frames), duration
        )
    shift = rng.uniform(size=frames if sampling.kind == "segments" else 1)
    return _inside((np.arange(frames) + shift) * (duration / frames), duration)


def view_times(sampling: Sampling, frames: int, duration: float, temporal: int) -> np.ndarray:
    """The fixed instants of every temporal view, float64 `(temporal, frames)`, in seconds.

    Dense clips start at `temporal` equal steps over the video (one view: the middle, as in TimeSformer section 4); in
    the other two kinds every part is read at the same fraction of its length. In a video shorter than a dense clip the
    last frame is repeated.
    """
    offsets = (np.arange(temporal) + 0.5)[:, None] / temporal
    if sampling.kind == "dense":
        return _inside(
            offsets * _dense_slack(sampling, frames, duration) + sampling.interval * np.arange(frames), duration
        )
    return _inside((np.arange(frames) + offsets) * (duration / frames), duration)


def _inside(times: np.ndarray, duration: float) -> np.ndarray:
    """The instants, those past the end at the last frame."""
    return np.minimum(times, max(0.0, duration - END))


def _dense_slack(sampling: Sampling, frames: int, duration: float) -> float:
    """Seconds by which a dense clip can be moved inside the video."""
    return max(0.0, duration - sampling.interval * (frames - 1))
