"""One checkpoint as a service: an upload is admitted, received, decoded, packed with others and predicted. With
metrics.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from cover.errors import UserError, nearest
from cover.inference.explain import ONE_VIEW, frame_times, heat_of
from cover.inference.predictor import Prediction, Predictor
from cover.model.heads import Head
from cover.serve.batching import Batcher, Scores
from cover.serve.decoding import DecodedFile, DecodeRequest, Decoders
from cover.serve.middleware import Batching, Limits, Refused, busy, late
from cover.serve.responses import ExplainResponse, PredictResponse, class_scores, frames, windows
from cover.serve.uploads import UploadFolder, receive

T = TypeVar("T")
P = ParamSpec("P")
GRACE_S = 5.0  # beyond a request's own deadline, in which an answer that is ready is still written


@dataclass(frozen=True)
class PredictQuery:
    """What a client wants to know: of which heads (none: all), how many classes, in how many parts of a video besides
    the whole.
    """

    heads: tuple[str, ...] = ()
    top: int = 5
    windows: int = 0


@dataclass(frozen=True)
class ExplainQuery:
    """Of which head a client wants to know what its answer rests on, and for which class (None: the likeliest)."""

    head: str
    named: str | None = None


@dataclass(frozen=True)
class _Pending:
    """A decoded file on its way through the model: the scores of its different plans, and of those in each window."""

    pixels: DecodedFile
    clips: list[Future[Scores]]
    windows: list[list[Future[Scores]]]


@dataclass(frozen=True)
class _Found:
    """`heat`: float32 `(T, h, w)`, for the class `named`."""

    prediction: Prediction
    named: str
    heat: np.ndarray


@dataclass(frozen=True)
class _Asked:
    """A file on its way to be explained. `view`: the middle one, uint8 `(T, 3, size, size)`; `pixels` has no others."""

    pixels: DecodedFile
    view: np.ndarray
    found: Future[_Found]


class Service:
    """One checkpoint, its decoding processes and its model thread. Its own tasks live on one event loop."""

    def __init__(
        self, predictor: Predictor, limits: Limits, batching: Batching, workers: int, uploads: UploadFolder
    ) -> None:
        """Raises `UserError` where the checkpoint has no heads, or does not say how one of them looks at a video."""
        self.predictor, self.limits, self.uploads = predictor, limits, uploads
        self.heads = {head.name: head for head in predictor.model.head_list}
        if not self.heads:
            raise UserError(
                "the checkpoint has no head, so there is nothing to predict; train one with start.checkpoint"
            )
        self.plans = {name: predictor.plan(name) for name in self.heads}
        self.classes = {name: frozenset(head.classes) for name, head in self.heads.items()}
        self.metrics, self.draining, self.under_way, self.explaining = Metrics(), False, 0, 0
        self._decoders = Decoders(workers, limits)
        self._threads = ThreadPoolExecutor(workers, "cover-decode")
        # or the pictures of one file would wait for the decoding of others
        self._painters = ThreadPoolExecutor(1, "cover-pictures")
        self._batcher = Batcher(predictor.model, predictor.device, batching, self.metrics.forward)
        self.metrics.watch("cover_predictions_under_way", "Taken in and not answered yet", lambda: self.under_way)
        self.metrics.watch(
            "cover_decoders_replaced", "Decoding processes that were killed or died", lambda: self._decoders.replaced
        )

    def close(self) -> None:
        """End threads, processes and the folder of uploads; what was taken in should be answered by now."""
        self._decoders.close()
        self._batcher.close()
        self._threads.shutdown(cancel_futures=True)
        self._painters.shutdown(cancel_futures=True)
        self.uploads.close()

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return not self.draining and self._batcher.alive

    def check(self, query: PredictQuery | ExplainQuery) -> None:
        """Raises `Refused` for a head that the checkpoint does not have, a class that the head does not, an explanation
        too many.

        It runs on the event loop, so no near miss is looked for among classes: there may be tens of thousands.
        """
        for name in (query.head,) if isinstance(query, ExplainQuery) else query.heads:
            if name not in self.heads:
                raise Refused(422, f'the checkpoint has no head "{name}"{nearest(name, self.heads)}')
        if isinstance(query, PredictQuery):
            return
        if query.named is not None and query.named not in self.classes[query.head]:
            raise Refused(422, f'the head "{query.head}" has no class "{query.named}"; GET /v1/model lists them')
        self._check_room_to_explain()

    def _check_room_to_explain(self) -> None:
        if self.explaining >= self.limits.explanations:
            raise busy(f"{self.explaining} explanations are under way already; try again in a moment")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among those under way. Raises `Refused` where there is none."""
        if self.draining:
            raise Refused(503, "the server is about to stop", {"retry-after": "5"})
        if self.under_way >= self.limits.queue:
            raise busy(f"{self.under_way} predictions are under way already; try again in a moment")
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def receive(self, chunks: AsyncIterator[bytes], content_type: str, path: Path) -> None:
        """Write the file in a request's body to `path`. Raises `Refused`."""
        began = time.monotonic()
        try:
            await receive(chunks, content_type, path)
        except OSError as error:
            raise Refused(503, f"the upload cannot be kept: {error.strerror}") from error
        self.metrics.stage("upload", time.monotonic() - began)

    async def predict(self, path: Path, query: PredictQuery) -> PredictResponse:
        """What is seen in a file. Raises `Refused`. When it is cancelled, what has not begun of its work never does."""
        return await self._in_time(partial(self._named, path, query))

    async def explain(self, path: Path, query: ExplainQuery) -> ExplainResponse:
        """What a head's answer rests on. Raises `Refused`. Cancelled as `predict` is, and then ends before the model's
        next layer.
        """
        # once more, since others may have come during the upload; a slow one keeps nobody's place
        self._check_room_to_explain()
        self.explaining += 1
        try:
            return await self._in_time(partial(self._reasons, path, query))
        finally:
            self.explaining -= 1

    async def _in_time(self, work: Callable[[float, threading.Event], Coroutine[Any, Any, T]]) -> T:
        """`work(deadline, given_up)`, the deadline of `time.monotonic`."""
        given_up = threading.Event()
        try:
            return await asyncio.wait_for(
                work(time.monotonic() + self.limits.deadline_s, given_up), self.limits.deadline_s + GRACE_S
            )
        except TimeoutError:
            raise late() from None
        finally:
            given_up.set()
            self._batcher.drop_given_up()

    async def _named(
        self, path: Path, query: PredictQuery, deadline: float, given_up: threading.Event
    ) -> PredictResponse:
        names = query.heads or tuple(self.heads)
        request = DecodeRequest(str(path), tuple(self.plans[name] for name in names), query.windows)
        pending = await self._timed("decode", self._in_thread(self._decoded, request, deadline, given_up))
        decoded = time.monotonic()
        clips, parts = await _all(pending.clips), [await _all(window) for window in pending.windows]
        self.metrics.stage("model", time.monotonic() - decoded)
        pixels = pending.pixels
        whole, *rest = [class_scores(self._predictions(names, pixels, scores), query.top) for scores in (clips, *parts)]
        return PredictResponse(
            pixels.media, round(pixels.seconds, 3), whole, windows(rest, pixels.seconds), pixels.damage
        )

    async def _reasons(
        self, path: Path, query: ExplainQuery, deadline: float, given_up: threading.Event
    ) -> ExplainResponse:
        plan = self.plans[query.head]
        request = DecodeRequest(str(path), (plan, replace(plan, views=ONE_VIEW)))
        requested = await self._timed("decode", self._in_thread(self._asked_why, request, query, deadline, given_up))
        result = await self._timed("explain", asyncio.wrap_future(requested.found))
        pixels, view = requested.pixels, requested.view
        draw = partial(frames, view, result.heat, frame_times(plan, len(view), pixels.seconds))
        record = await asyncio.get_running_loop().run_in_executor(self._painters, draw)
        probability = result.prediction.scores[result.prediction.classes.index(result.named)]
        return ExplainResponse(
            pixels.media, round(pixels.seconds, 3), query.head, result.named, float(probability), record, pixels.damage
        )

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments, **named))

    async def _timed(self, stage: str, work: Awaitable[T]) -> T:
        began = time.monotonic()
        result = await work
        self.metrics.stage(stage, time.monotonic() - began)
        return result

    def _decoded(self, request: DecodeRequest, deadline: float, given_up: threading.Event) -> _Pending:
        """In a thread of its own: it waits for a decoding process, and for room in front of the model."""
        pixels = self._pixels(request, deadline, given_up)
        put = partial(self._batcher.put, deadline=deadline, given_up=given_up)
        clips = [put(views) for views in pixels.clips]
        return _Pending(pixels, clips, [[put(views) for views in window] for window in pixels.windows])

    def _asked_why(
        self, request: DecodeRequest, query: ExplainQuery, deadline: float, given_up: threading.Event
    ) -> _Asked:
        """In such a thread as well. Of the pixels, those of the middle view alone outlast the naming."""
        pixels = self._pixels(request, deadline, given_up)
        own, (view,) = (pixels.clips[place] for place in pixels.place)
        pixels.clips.clear()
        wanted = partial(_check_wanted, deadline, given_up)
        work = partial(_named_and_explained, self.predictor, self.heads[query.head], query.named, [own], view, wanted)
        return _Asked(pixels, view, self._batcher.put_alone(work, deadline, given_up))

    def _pixels(self, request: DecodeRequest, deadline: float, given_up: threading.Event) -> DecodedFile:
        _check_wanted(deadline, given_up)
        pixels = self._decoders(request, deadline)
        _check_wanted(deadline, given_up)
        return pixels

    def _predictions(self, names: Sequence[str], pixels: DecodedFile, scores: Sequence[Scores]) -> list[Prediction]:
        return [
            Prediction(name, self.heads[name].classes, scores[place][name])
            for name, place in zip(names, pixels.place, strict=True)
        ]


def _check_wanted(deadline: float, given_up: threading.Event) -> None:
    if given_up.is_set() or time.monotonic() > deadline:
        raise late()


def _named_and_explained(
    predictor: Predictor,
    head: Head,
    named: str | None,
    clips: list[np.ndarray],
    view: np.ndarray,
    check: Callable[[], None],
) -> _Found:
    """Named first, by all the head's views `clips`, since that says which class is to be explained; they are taken off
    their list.

    `view`: uint8 `(T, 3, size, size)`. What `check` raises before a layer ends it.
    """
    (visited,) = predictor.run([clips.pop()])
    prediction = Prediction(head.name, head.classes, visited.scores[head.name])
    named = named or prediction.top(1)[0][0]
    return _Found(prediction, named, heat_of(predictor.model, view, head, named, check=check).heat.numpy())


async def _all(futures: Sequence[Future[Scores]]) -> list[Scores]:
    return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))


# --- metrics


class Metrics:
    """Counters and histograms of one server; `render` is what `/metrics` answers."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        slow = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self._requests = Counter("cover_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self._seconds = Histogram(
            "cover_request_seconds",
            "From a request's head to its answer",
            ["route"],
            buckets=slow,
            registry=self.registry,
        )
        self._stage = Histogram(
            "cover_stage_seconds", "Of a prediction", ["stage"], buckets=slow, registry=self.registry
        )
        self._forward = Histogram("cover_forward_seconds", "Of a forward pass", buckets=slow, registry=self.registry)
        counts = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        self._files = Histogram(
            "cover_pack_samples", "Files and plans that share a forward pass", buckets=counts, registry=self.registry
        )
        self._frames = Histogram(
            "cover_pack_frames", "Frames of a forward pass", buckets=counts, registry=self.registry
        )
        self._gauge = Gauge

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        self._gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """One request more."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """How long `upload`, `decode` and `model` or `explain` took for one file, waiting included."""
        self._stage.labels(name).observe(seconds)

    def forward(self, samples: int, frames: int, seconds: float) -> None:
        """One forward pass more."""
        self._files.observe(samples)
        self._frames.observe(frames)
        self._forward.observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The text and its content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
