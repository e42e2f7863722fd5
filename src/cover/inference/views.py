"""Reading of files for the model: they are opened, measured, decoded and cropped in worker processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cover.datasets.files import media_of
from cover.datasets.probe import CRASHED
from cover.errors import UserError
from cover.evaluation.protocol import ViewPlan, read_windows
from cover.machine import reuse_memory
from cover.media.decode import Decoder, FileProblem, MediaError, probe
from cover.processes import ProcessPool

if TYPE_CHECKING:
    from cover.media.source import Media

CHUNK_FRAMES = 256  # approximate number of frames that are decoded at a time; large pictures take 300 MB
SHORTEST = 0.01  # seconds; of a window or a stride
# Seconds of a window for a head whose clips are parts of a whole video: where the length of the training videos is not
# known, at least, and at most.
WINDOW_S, SHORTEST_WINDOW_S, LONGEST_WINDOW_S = 4.0, 0.1, 10.0

TimeSpan = tuple[float, float]  # start and length in seconds
Clips = list[np.ndarray]  # for each plan uint8 (views, T, 3, size, size)


@dataclass(frozen=True)
class Windows:
    """Windows of `seconds`, which start every `stride` seconds.

    Raises `UserError` if one of the two is shorter than a hundredth of a second.
    """

    seconds: float
    stride: float

    def __post_init__(self) -> None:
        for name, value in (("window", self.seconds), ("stride", self.stride)):
            if not (math.isfinite(value) and value >= SHORTEST):
                raise UserError(f"--{name}: expected seconds, {SHORTEST:g} or more, got {value:g}")

    def spans(self, duration: float) -> list[TimeSpan]:
        """The windows of a video of `duration` seconds.

        The last window ends with the video, so its step may be shorter. A video shorter than a window is one window.
        """
        if duration <= self.seconds:
            return [(0.0, duration)]
        last = duration - self.seconds
        starts = [number * self.stride for number in range(math.floor(last / self.stride + 1e-9) + 1)]
        if last - starts[-1] > SHORTEST:
            starts.append(last)
        return [(start, self.seconds) for start in starts]


def window_of(plan: ViewPlan, seconds: float = WINDOW_S) -> float:
    """The seconds of video that a clip of a head spans, which its windows have if nobody says otherwise.

    `seconds`: the usual length of the videos that the head was trained on.
    """
    if plan.sampling.kind == "dense":
        return plan.frames * plan.sampling.interval
    return min(max(seconds, SHORTEST_WINDOW_S), LONGEST_WINDOW_S)


@dataclass(frozen=True)
class ViewRequest:
    """The views that are read of every file: one set for each plan, of the whole file or of each of its windows."""

    plans: tuple[ViewPlan, ...]
    decoder: Decoder = "pyav"
    windows: Windows | None = None

    @property
    def chunk(self) -> int:
        """The number of windows that are decoded at a time."""
        return max(1, CHUNK_FRAMES // sum(plan.frames * plan.views.temporal for plan in self.plans))


@dataclass
class FileViews:
    """The views of a file, or of some of its windows.

    `media`: None if the file could not be read. `spans` and `clips`: one entry for a whole file, or one for each
    window. `rest`: windows that are not read yet. `problem`: what is wrong with the file; None if nothing is.
    """

    file: str
    media: Media | None
    spans: list[TimeSpan]
    clips: list[Clips]
    rest: list[TimeSpan]
    problem: FileProblem | None = None

    @property
    def partial(self) -> str | None:
        """Why the file could not be read to its end; None if it could."""
        return self.problem.reason if self.problem and self.problem.kind == "partial" else None


def kind_of(path: str) -> Media:
    """Whether a file is a video or an image, by its ending. An unknown ending is an image if the file opens as one."""
    media = media_of(path)
    if media is None:
        try:
            probe(path, "image")
            return "image"
        except MediaError:
            return "video"
    return media


def read_file(path: str, request: ViewRequest) -> FileViews:
    """The views of a whole file, or of its first windows. Raises `MediaError`."""
    media = kind_of(path)
    if media == "image":
        clips, _ = read_windows(path, media, request.plans, [(0.0, 0.0)])
        return FileViews(path, media, [(0.0, 0.0)], clips, [])
    record = probe(path, media)
    # The same length as in a manifest, also for a video whose frame rate changes.
    seconds = record.frames / record.fps if record.fps else 0.0
    spans = request.windows.spans(seconds) if request.windows else [(0.0, seconds)]
    return _read_spans(path, spans, request)


def _read_spans(path: str, spans: list[TimeSpan], request: ViewRequest) -> FileViews:
    now, rest = spans[: request.chunk], spans[request.chunk :]
    clips, partial = read_windows(path, "video", request.plans, now, request.decoder)
    return FileViews(path, "video", now, clips, rest, FileProblem(path, "partial", partial) if partial else None)


def reading_pool(workers: int) -> ProcessPool:
    """A pool of processes for `read_files`."""
    return ProcessPool(workers, _begin_reading, preload=__name__)


def _begin_reading() -> None:
    import torch

    torch.set_num_threads(1)  # the processes share the cores
    reuse_memory()


def read_files(files: Iterable[str], request: ViewRequest, pool: ProcessPool) -> Iterator[FileViews]:
    """Yield the views of all files in their order, one `FileViews` for each chunk of windows.

    A file that cannot be read, or that crashes its process, has a `FileViews` with its problem.
    """
    for first in pool.map(partial(_try_file, request=request), files, _crashed):
        yield first
        chunks = [(first.file, first.rest[at : at + request.chunk]) for at in range(0, len(first.rest), request.chunk)]
        left = len(first.rest)  # windows that are not read yet
        for more in pool.map(partial(_try_spans, request=request), chunks, lambda chunk: _crashed(chunk[0])):
            left -= request.chunk
            more.rest = first.rest[len(first.rest) - left :] if left > 0 and more.clips else []
            yield more
            if not more.clips:
                break


def _try_file(path: str, request: ViewRequest) -> FileViews:
    try:
        return read_file(path, request)
    except MediaError as error:
        return _unreadable(path, str(error))


def _try_spans(chunk: tuple[str, list[TimeSpan]], request: ViewRequest) -> FileViews:
    try:
        return _read_spans(*chunk, request)
    except MediaError as error:
        return _unreadable(chunk[0], str(error))


def _crashed(path: str) -> FileViews:
    return _unreadable(path, CRASHED)


def _unreadable(path: str, reason: str) -> FileViews:
    return FileViews(path, None, [], [], [], FileProblem(path, "unreadable", reason))
