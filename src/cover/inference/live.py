"""Predictions for a video while it plays, `cover predict --live`.

A network of clips looks at a sliding window, the last seconds of the video. A stream network (MoViNet) reads every
frame once and remembers what it needs of those before.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch

from cover.console import flushed, say
from cover.errors import UserError
from cover.evaluation.protocol import HINT_SLACK, ViewPlan, views_of_stamped_frames
from cover.inference.in_memory import frames_of
from cover.inference.predictor import Predictions, Predictor, ViewOutputs
from cover.inference.records import ResultRow, json_line
from cover.inference.views import SHORTEST, FileViews, ViewRequest, Windows
from cover.media.live import LiveSource
from cover.media.source import TOLERANCE, MediaError
from cover.model.backbones.movinet import MoViNet, StreamState
from cover.safe_text import printable
from cover.transforms.crop import view_crops

MOST_HELD = 512  # frames of a window in memory; a longer window holds every n-th frame
MOST_REPEATS = 8  # times that a stream network reads the same frame, where a video has a lower frame rate
LINE = 110  # columns of the line on a terminal


def live_predictions(
    predictor: Predictor,
    frames: Iterable[tuple[float, Any]],
    plans: Mapping[str, ViewPlan],
    stride: float,
    window: float | None,
) -> Iterator[Predictions]:
    """As `Predictor.live`, with the views of each head."""
    views = list(dict.fromkeys(plans.values()))
    seconds = {
        each: window or max(predictor.window(head) for head, plan in plans.items() if plan == each) for each in views
    }
    request = ViewRequest(tuple(views), windows=Windows(max(seconds.values()), stride))
    streams = isinstance(predictor.model.backbone, MoViNet) and predictor.model.backbone.config.stream
    kind: Callable[[Predictor, ViewPlan, float], _Reader] = _Streams if streams else _SlidingWindow
    readers = [kind(predictor, plan, seconds[plan]) for plan in views]

    def at(end: float) -> Predictions:
        outputs = [reader.outputs(end) for reader in readers]
        start = max(0.0, min(reader.start(end) for reader in readers))
        span = (start, end - start)
        return predictor.by_head(outputs, request, dict(plans), FileViews("", "video", [span], [], []), span)

    for end in _steps(_checked(frames, predictor.model.backbone.pixels.size), readers, stride):
        yield at(end)


def _checked(frames: Iterable[tuple[float, Any]], size: int) -> Iterator[tuple[float, np.ndarray]]:
    """The frames as uint8 `(H, W, 3)` of one size, not much larger than the network needs. Raises `UserError`."""
    before, shape = -math.inf, None
    for number, (seconds, media) in enumerate(frames):
        if not before <= seconds < math.inf:
            raise UserError(f"frame {number}: its time is {seconds}, and that of the frame before it is {before}")
        frame = frames_of(media)
        shape = shape or frame.shape
        if frame.shape != shape or len(frame) != 1:
            raise UserError(f"frame {number}: pixels {frame.shape[1:]}, and the first frame has {shape[1:]}")
        before = seconds
        if min(frame.shape[1:3]) > 2 * HINT_SLACK * size:  # as files are decoded: at about the size that is needed
            step = min(frame.shape[1:3]) // (HINT_SLACK * size)
            frame = np.ascontiguousarray(frame[:, ::step, ::step])
        yield seconds, frame[0]


def _steps(frames: Iterator[tuple[float, np.ndarray]], readers: Sequence[_Reader], stride: float) -> Iterator[float]:
    """The end of every prediction, at multiples of `stride` and at the end. Each reader has the frames before it.

    Steps that no frame separates, after a gap, are one step.
    """
    origin = last = done = gap = 0.0
    number = -1
    for number, (stamp, frame) in enumerate(frames):
        origin = origin if number else stamp
        seconds = stamp - origin
        due = math.floor((seconds + TOLERANCE) / stride) * stride
        if number and due > done:
            for reader in readers:
                reader.read_until(due)
            yield due
            done = due
        for reader in readers:
            reader.add(seconds, frame)
        gap, last = (seconds - last or gap) if number else 0.0, seconds
    end = max(last + gap, SHORTEST)
    if number >= 0 and (end - done > SHORTEST or not done):
        for reader in readers:
            reader.read_until(end)
        yield end


class _Reader(Protocol):
    """What looks at the frames of a video for one plan. Times are in seconds from the first frame."""

    def add(self, stamp: float, frame: np.ndarray) -> None: ...
    def read_until(self, end: float) -> None: ...
    def start(self, end: float) -> float: ...
    def outputs(self, end: float) -> ViewOutputs: ...


class _SlidingWindow:
    """The frames of the last `seconds`, from which clips are taken as from a video of that length."""

    def __init__(self, predictor: Predictor, plan: ViewPlan, seconds: float) -> None:
        self._predictor, self._plan, self._seconds = predictor, plan, seconds
        self._stamps, self._frames = deque[float](), deque[np.ndarray]()

    def add(self, stamp: float, frame: np.ndarray) -> None:
        if self._stamps and stamp - self._stamps[-1] < self._seconds / MOST_HELD:
            return
        self._stamps.append(stamp)
        self._frames.append(frame)

    def read_until(self, end: float) -> None:
        """Forget the frames before the window that ends at `end`. The one that is shown as it begins stays."""
        while len(self._stamps) > 1 and self._stamps[1] <= self.start(end) + TOLERANCE:
            self._stamps.popleft()
            self._frames.popleft()

    def start(self, end: float) -> float:
        return max(0.0, end - self._seconds)

    def outputs(self, end: float) -> ViewOutputs:
        window = (self.start(end), end - self.start(end))
        return self._predictor.run([views_of_stamped_frames(self._frames, self._stamps, self._plan, window)])[0]


@dataclass
class _Stream:
    """One run of a stream network: the time of its first frame, its state, and the features after the last frame."""

    start: float
    state: StreamState | None = None
    features: torch.Tensor | None = None

    @property
    def count(self) -> int:
        return self.state.count if self.state else 0


class _Streams:
    """A stream network that reads the frames of a video at its own rate, one at a time.

    Its averages are over all frames that it has read, so it begins anew after as many as a clip of its training has.
    A second stream begins in the middle of the first and follows it. So a prediction rests on half of a clip or more.
    """

    def __init__(self, predictor: Predictor, plan: ViewPlan, seconds: float) -> None:
        self._predictor, self._plan = predictor, plan
        self._interval = seconds / plan.frames
        self._shown: np.ndarray | None = None
        self._tick = 0  # the number of the next frame that the network reads
        self._streams = [_Stream(0.0)]

    def add(self, stamp: float, frame: np.ndarray) -> None:
        self.read_until(stamp)
        self._shown = frame

    def read_until(self, end: float) -> None:
        """Read the frame that is shown, at all times of the network's own rate before `end`."""
        ticks = math.ceil((end - TOLERANCE) / self._interval) - self._tick
        if self._shown is None or ticks <= 0:
            return
        crops = np.stack(view_crops(self._shown[None], self._plan.size, self._plan.views.spatial))
        pixels = self._predictor.model.normalize(torch.from_numpy(crops).to(self._predictor.device))  # (S, 1, 3, h, w)
        for _ in range(min(ticks, MOST_REPEATS)):
            self._read(pixels)
            self._tick += 1
        self._tick += max(0, ticks - MOST_REPEATS)

    def _read(self, pixels: torch.Tensor) -> None:
        now, length = self._tick * self._interval, self._plan.frames
        if self._streams[0].count >= length:
            self._streams = self._streams[1:] or [_Stream(now)]
        if len(self._streams) == 1 and self._streams[0].count >= max(1, length // 2):
            self._streams.append(_Stream(now))
        backbone = cast(MoViNet, self._predictor.model.backbone)
        for stream in self._streams:
            stream.features, stream.state = backbone.stream(pixels, stream.state)

    def start(self, end: float) -> float:
        return self._streams[0].start

    @torch.inference_mode()
    def outputs(self, end: float) -> ViewOutputs:
        features = self._streams[0].features
        assert features is not None, "a frame was added before"
        model = self._predictor.model
        logits = model.forward_head(features)
        scores = {head.name: head.probabilities(logits[head.name]).mean(0).cpu().numpy() for head in model.head_list}
        return ViewOutputs(scores, features.float().mean(0).cpu().numpy())


# --- the command ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LiveRequest:
    """A prediction of the `top` most likely classes of `heads` (None: the default ones) every `stride` seconds.

    `window`: seconds of video that it rests on; None for the usual length of the training clips of each head, at most
    10 s.
    """

    top: int = 5
    heads: tuple[str, ...] | None = None
    stride: float = 1.0
    window: float | None = None


def predict_live(predictor: Predictor, source: str, request: LiveRequest, format_: Literal["pretty", "jsonl"]) -> int:
    """Print the predictions for a live source until it ends or Ctrl-C. Returns 1 if it broke or cannot be opened."""
    plans, stdout = predictor.plans(request.heads), sys.stdout
    steps, worst = 0, 0.0
    with LiveSource(source, HINT_SLACK * predictor.model.backbone.pixels.size) as playing:
        try:
            for result in live_predictions(predictor, playing, plans, request.stride, request.window):
                lag = playing.lag(result.end or 0.0)
                steps, worst = steps + 1, max(worst, lag)
                row = _row(result, request.top, lag, playing.dropped)
                with flushed(stdout):
                    stdout.write(json_line(row) if format_ == "jsonl" else _line(row, stdout.isatty()))
        except KeyboardInterrupt:
            pass
        except MediaError as error:
            playing.problem = str(error)
        if steps and format_ == "pretty" and stdout.isatty():
            stdout.write("\n")
        if playing.problem:
            say(f"{source}: {playing.problem}")
        if playing.frames:
            dropped = f"{playing.dropped} of {playing.frames} frames dropped"
            say(f"{source}: {steps} predictions, {dropped}, at most {worst:.2f} s behind")
    return 1 if playing.problem else 0


def _row(result: Predictions, top: int, lag: float, dropped: int) -> ResultRow:
    heads = {name: [[label, round(p, 6)] for label, p in each.top(top)] for name, each in result.items()}
    span = {"start": round(result.start or 0.0, 3), "end": round(result.end or 0.0, 3)}
    return {**span, "heads": heads, "lag": round(lag, 3), "dropped": dropped}


def _line(row: ResultRow, terminal: bool) -> str:
    """A row as one line. On a terminal it is written over the line before."""
    several = len(row["heads"]) > 1
    tops = [
        f"{name}: " * several + ", ".join(f"{label} {p:.0%}" for label, p in top) for name, top in row["heads"].items()
    ]
    dropped = f", {row['dropped']} dropped" if row["dropped"] else ""
    facts = f"  ({row['lag']:.2f} s behind{dropped})"
    text = printable(f"{row['end']:8.2f} s  {'  '.join(tops)}")
    if not terminal:
        return f"{text}{facts}\n"
    room = LINE - len(facts)
    return f"\r\x1b[2K{text if len(text) <= room else text[: room - 1] + '…'}{facts}"
