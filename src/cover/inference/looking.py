"""Which clips of a file does the model see? What a reading process does: open, measure, decode, crop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cover.datasets.files import media_of
from cover.errors import UserError
from cover.evaluation.protocol import ViewPlan, read_windows
from cover.inference.readers import Readers
from cover.media.decode import Decoder, MediaError, probe

if TYPE_CHECKING:
    from cover.datasets.manifest import Media

CHUNK_FRAMES = 256  # decoded at a time, about: of large pictures 300 MB
SHORTEST = 0.01  # seconds

Span = tuple[float, float]  # start and length in seconds
Clips = list[np.ndarray]  # for each plan uint8 (views, T, 3, size, size)
CRASHED = "the decoder crashed on it"


@dataclass(frozen=True)
class Windows:
    """Stretches of `seconds`, one every `stride` seconds. Raises `UserError` where they are shorter than a hundredth of a second."""

    seconds: float
    stride: float

    def __post_init__(self) -> None:
        for name, value in (("window", self.seconds), ("stride", self.stride)):
            if not (math.isfinite(value) and value >= SHORTEST):
                raise UserError(f"--{name}: expected seconds, {SHORTEST:g} or more, got {value:g}")

    def spans(self, duration: float) -> list[Span]:
        """The windows of a video of `duration` seconds. The last ends with the video, moved back where the steps do not fit; a video
        shorter than one window is one window."""
        if duration <= self.seconds:
            return [(0.0, duration)]
        last = duration - self.seconds
        starts = [number * self.stride for number in range(math.floor(last / self.stride + 1e-9) + 1)]
        if last - starts[-1] > SHORTEST:
            starts.append(last)
        return [(start, self.seconds) for start in starts]


@dataclass(frozen=True)
class Gaze:
    """How every file is looked at: one set of views per plan, of the whole file or of its windows."""

    plans: tuple[ViewPlan, ...]
    decoder: Decoder = "pyav"
    windows: Windows | None = None

    @property
    def chunk(self) -> int:
        """How many windows are decoded at a time."""
        return max(1, CHUNK_FRAMES // sum(plan.frames * plan.views.temporal for plan in self.plans))


@dataclass
class Look:
    """What was read of a file, or of some more of its windows.

    `spans` and `clips`: one entry for the whole of an image or video, or for each window. `rest`: windows that are still to be read.
    `partial`: what damaged the file; `error`: why nothing could be read.
    """

    file: str
    media: Media | None
    spans: list[Span]
    clips: list[Clips]
    rest: list[Span]
    partial: str | None = None
    error: str | None = None


def kind_of(path: str) -> Media:
    """Whether a file is a video or an image, by its ending; of an unknown ending, by whether it opens as an image."""
    media = media_of(path)
    if media is None:
        try:
            probe(path, "image")
            return "image"
        except MediaError:
            return "video"
    return media


def look(path: str, gaze: Gaze) -> Look:
    """The whole file, or its first windows. Raises `MediaError`."""
    media = kind_of(path)
    if media == "image":
        clips, _ = read_windows(path, media, gaze.plans, [(0.0, 0.0)])
        return Look(path, media, [(0.0, 0.0)], clips, [])
    found = probe(path, media)
    seconds = found.frames / found.fps if found.fps else 0.0  # a manifest's own measure, also where the rate changes
    spans = gaze.windows.spans(seconds) if gaze.windows else [(0.0, seconds)]
    return _look_at(path, spans, gaze)


def _look_at(path: str, spans: list[Span], gaze: Gaze) -> Look:
    now, rest = spans[: gaze.chunk], spans[gaze.chunk :]
    clips, damage = read_windows(path, "video", gaze.plans, now, gaze.decoder)
    return Look(path, "video", now, clips, rest, damage)


def looks(files: Iterable[str], gaze: Gaze, readers: Readers) -> Iterator[Look]:
    """The looks at all files in their order, as many for each as its windows need. A file that cannot be read has one with its error."""
    for first in readers.map(partial(_try_look, gaze=gaze), files, _crashed):
        yield first
        chunks = [(first.file, first.rest[at : at + gaze.chunk]) for at in range(0, len(first.rest), gaze.chunk)]
        left = len(first.rest)
        for more in readers.map(partial(_try_more, gaze=gaze), chunks, lambda chunk: _crashed(chunk[0])):
            left -= gaze.chunk
            more.rest = first.rest[len(first.rest) - left :] if left > 0 and more.error is None else []
            yield more
            if more.error is not None:
                break


def _try_look(path: str, gaze: Gaze) -> Look:
    try:
        return look(path, gaze)
    except MediaError as error:
        return Look(path, None, [], [], [], error=str(error))


def _try_more(chunk: tuple[str, list[Span]], gaze: Gaze) -> Look:
    try:
        return _look_at(*chunk, gaze)
    except MediaError as error:
        return Look(chunk[0], None, [], [], [], error=str(error))


def _crashed(path: str) -> Look:
    return Look(path, None, [], [], [], error=CRASHED)
