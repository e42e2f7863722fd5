"""The service behind the routes: an upload is admitted, received, decoded, batched with others and predicted.

Also the metrics of a server.
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
from cover.media.decode import MediaError
from cover.model.heads import Head
from cover.model.text import PROMPT, TextEncoder, texts_of
from cover.serve.batching import Scores
from cover.serve.decoding import DecodedFile, DecodeRequest, Decoders
from cover.serve.middleware import Batching, Limits, Refused, busy, late
from cover.serve.models import ServedModel
from cover.serve.responses import ExplainResponse, PredictResponse, class_scores, frames, segments, windows
from cover.serve.uploads import UploadFolder, receive

T = TypeVar("T")
P = ParamSpec("P")
GRACE_S = 5.0  # seconds after a request's deadline in which a result that is ready is still sent


@dataclass(frozen=True)
class PredictQuery:
    """Parameters of a prediction: the heads, the number of classes, and the number of parts of a video.

    `heads`: empty for those of the model that answer by default.

    `model`: its name, empty for the first one. `classes`: class names to predict in place of the heads, with `prompt`
    as their text, by the text network of the model.
    """

    heads: tuple[str, ...] = ()
    top: int = 5
    windows: int = 0
    model: str = ""
    classes: tuple[str, ...] = ()
    prompt: str = ""


@dataclass(frozen=True)
class ExplainQuery:
    """Parameters of an explanation: the head, the class (None: the most likely class), and the model as above."""

    head: str
    class_name: str | None = None
    model: str = ""


@dataclass(frozen=True)
class _PendingPrediction:
    """A decoded file whose scores the model computes: for each different plan, and for each plan in each window."""

    pixels: DecodedFile
    clips: list[Future[Scores]]
    windows: list[list[Future[Scores]]]


@dataclass(frozen=True)
class _PendingTyped:
    """A decoded file whose scores for typed class names the model computes: of the whole file, then of each window."""

    pixels: DecodedFile
    result: Future[list[Prediction]]


@dataclass(frozen=True)
class _ExplainedClass:
    """The prediction of a head and the heat of a class, float32 `(T, h, w)`."""

    prediction: Prediction
    class_name: str
    heat: np.ndarray


@dataclass(frozen=True)
class _PendingExplanation:
    """A decoded file that waits for its explanation. `view` is its middle view, uint8 `(T, 3, size, size)`.

    `pixels` has no other views any more.
    """

    pixels: DecodedFile
    view: np.ndarray
    result: Future[_ExplainedClass]


class Service:
    """The models of a server with their decoding processes. Its coroutines run on one event loop."""

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits,
        batching: Batching,
        workers: int,
        uploads: UploadFolder,
        name: str = "",
        encoder: TextEncoder | None = None,
        others: Sequence[tuple[str, Predictor, TextEncoder | None]] = (),
    ) -> None:
        """`name`: of the checkpoint. `encoder`: its text network. `others`: more models, with their names.

        Raises `UserError` if a model has nothing to predict, or if the views of a head are not known.
        """
        self.limits, self.uploads = limits, uploads
        self.metrics, self.draining, self.under_way, self.explaining = Metrics(), False, 0, 0
        self.models: dict[str, ServedModel] = {}
        for each, its_predictor, its_encoder in ((name, predictor, encoder), *others):
            self.models[each] = ServedModel(each, its_predictor, batching, self.metrics.forward, its_encoder)
        self._decoders = Decoders(workers, limits)
        self._threads = ThreadPoolExecutor(workers, "cover-decode")
        # Files with typed class names that are decoded or wait for the model, so that their pixels have a limit too.
        self._typed_files = asyncio.Semaphore(workers)
        # a thread of its own, so that the pictures of one file do not wait until other files are decoded
        self._painters = ThreadPoolExecutor(1, "cover-pictures")
        self.metrics.watch("cover_predictions_under_way", "Requests in progress", lambda: self.under_way)
        self.metrics.watch(
            "cover_decoders_replaced", "Decoding processes that were killed or died", lambda: self._decoders.replaced
        )

    def close(self) -> None:
        """End the threads and processes and remove the upload folder. Call it when all requests are answered."""
        self._decoders.close()
        for model in self.models.values():
            model.batcher.close()
        self._threads.shutdown(cancel_futures=True)
        self._painters.shutdown(cancel_futures=True)
        self.uploads.close()

    @property
    def first(self) -> ServedModel:
        """The model of requests that name none."""
        return next(iter(self.models.values()))

    def model(self, name: str) -> ServedModel:
        """The model of this name, the first one for an empty name. Raises `Refused` if there is none."""
        if name and name not in self.models:
            raise Refused(422, f'the server has no model "{name}"{nearest(name, self.models)}')
        return self.models[name] if name else self.first

    @property
    def ready(self) -> bool:
        """Whether the service accepts requests."""
        return not self.draining and all(model.batcher.alive for model in self.models.values())

    def check(self, query: PredictQuery | ExplainQuery) -> None:
        """Raise `Refused` for an unknown model, head or class, or too many explanations at the same time.

        The message does not suggest a similar class: a head may have tens of thousands, and the search would block the
        event loop.
        """
        model = self.model(query.model)
        for name in (query.head,) if isinstance(query, ExplainQuery) else query.heads:
            if name not in model.heads:
                raise Refused(422, f'the checkpoint has no head "{name}"{nearest(name, model.heads)}')
        if isinstance(query, PredictQuery):
            _check_typed(model, query)
            return
        if query.class_name is not None and query.class_name not in model.classes[query.head]:
            raise Refused(422, f'the head "{query.head}" has no class "{query.class_name}"; GET /v1/model lists them')
        self._check_room_to_explain()

    def _check_room_to_explain(self) -> None:
        if self.explaining >= self.limits.explanations:
            raise busy(f"{self.explaining} explanations are under way already; try again in a moment")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request as in progress during the block. Raises `Refused` if too many requests are in progress."""
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
            raise Refused(503, f"the upload cannot be stored: {error.strerror}") from error
        self.metrics.stage("upload", time.monotonic() - began)

    async def predict(self, path: Path, query: PredictQuery) -> PredictResponse:
        """Predict the classes of a file. Raises `Refused`.

        If the coroutine is cancelled, the parts of its work that have not begun are dropped.
        """
        return await self._in_time(partial(self._predict, path, query))

    async def explain(self, path: Path, query: ExplainQuery) -> ExplainResponse:
        """Explain a head's prediction for a file. Raises `Refused`.

        If the coroutine is cancelled, the model stops before its next layer.
        """
        # Again after the upload, during which other requests may have begun. A slow upload does not count.
        self._check_room_to_explain()
        self.explaining += 1
        try:
            return await self._in_time(partial(self._explain, path, query))
        finally:
            self.explaining -= 1

    async def _in_time(self, work: Callable[[float, threading.Event], Coroutine[Any, Any, T]]) -> T:
        """The result of `work(deadline, given_up)`; `deadline` is a time of `time.monotonic`. Raises `Refused`."""
        given_up = threading.Event()
        deadline_s = self.limits.deadline_s
        try:
            return await asyncio.wait_for(work(time.monotonic() + deadline_s, given_up), deadline_s + GRACE_S)
        except TimeoutError:
            raise late() from None
        finally:
            given_up.set()
            for model in self.models.values():
                model.batcher.drop_given_up()

    async def _predict(
        self, path: Path, query: PredictQuery, deadline: float, given_up: threading.Event
    ) -> PredictResponse:
        model = self.model(query.model)
        if query.classes:
            return await self._predict_typed(model, path, query, deadline, given_up)
        names = query.heads or model.default_heads
        request = DecodeRequest(str(path), tuple(model.plans[name] for name in names), query.windows)
        decoding = self._in_thread(self._request_scores, model, request, deadline, given_up)
        pending = await self._timed("decode", decoding)
        decoded = time.monotonic()
        clips, parts = await _all(pending.clips), [await _all(window) for window in pending.windows]
        self.metrics.stage("model", time.monotonic() - decoded)
        pixels = pending.pixels
        results = [_predictions(model, names, pixels, scores) for scores in (clips, *parts)]
        return _response(pixels, results, query.top)

    async def _predict_typed(
        self, model: ServedModel, path: Path, query: PredictQuery, deadline: float, given_up: threading.Event
    ) -> PredictResponse:
        assert model.typed, "checked before"
        request = DecodeRequest(str(path), (model.typed.plan,), query.windows)
        async with self._typed_files:
            decoding = self._in_thread(self._request_typed, model, request, query, deadline, given_up)
            pending = await self._timed("decode", decoding)
            predictions = await self._timed("model", asyncio.wrap_future(pending.result))
        return _response(pending.pixels, [[each] for each in predictions], query.top)

    async def _explain(
        self, path: Path, query: ExplainQuery, deadline: float, given_up: threading.Event
    ) -> ExplainResponse:
        model = self.model(query.model)
        plan = model.plans[query.head]
        request = DecodeRequest(str(path), (plan, replace(plan, views=ONE_VIEW)))
        decoding = self._in_thread(self._request_explanation, model, request, query, deadline, given_up)
        pending = await self._timed("decode", decoding)
        explanation = await self._timed("explain", asyncio.wrap_future(pending.result))
        pixels, view, name = pending.pixels, pending.view, explanation.class_name
        draw = partial(frames, view, explanation.heat, frame_times(plan, len(view), pixels.seconds))
        pictures = await asyncio.get_running_loop().run_in_executor(self._painters, draw)
        prediction = explanation.prediction
        probability = float(prediction.scores[prediction.classes.index(name)])
        seconds = round(pixels.seconds, 3)
        return ExplainResponse(pixels.media, seconds, query.head, name, probability, pictures, pixels.damage)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args, **kwargs))

    async def _timed(self, stage: str, work: Awaitable[T]) -> T:
        began = time.monotonic()
        result = await work
        self.metrics.stage(stage, time.monotonic() - began)
        return result

    def _request_scores(
        self, model: ServedModel, request: DecodeRequest, deadline: float, given_up: threading.Event
    ) -> _PendingPrediction:
        """Decode a file and pass its clips to the model. Runs in a thread, because it waits for both."""
        pixels = self._pixels(request, deadline, given_up)
        put = partial(model.batcher.put, deadline=deadline, given_up=given_up)
        clips = [put(views) for views in pixels.clips]
        return _PendingPrediction(pixels, clips, [[put(views) for views in window] for window in pixels.windows])

    def _request_typed(
        self,
        model: ServedModel,
        request: DecodeRequest,
        query: PredictQuery,
        deadline: float,
        given_up: threading.Event,
    ) -> _PendingTyped:
        """Decode a file and pass it to the model with class names. Runs in a thread, because it waits."""
        assert model.typed, "checked before"
        pixels = self._pixels(request, deadline, given_up)
        check = partial(_check_needed, deadline, given_up)
        clips = [pixels.clips[0], *(window[0] for window in pixels.windows)]
        work = partial(model.typed.scores, query.classes, query.prompt, clips, check)
        return _PendingTyped(pixels, model.batcher.put_alone(work, deadline, given_up))

    def _request_explanation(
        self,
        model: ServedModel,
        request: DecodeRequest,
        query: ExplainQuery,
        deadline: float,
        given_up: threading.Event,
    ) -> _PendingExplanation:
        """Decode a file and pass it to the model for an explanation. Runs in a thread, because it waits.

        After the prediction, only the pixels of the middle view stay in memory.
        """
        pixels = self._pixels(request, deadline, given_up)
        clips, (view,) = (pixels.clips[index] for index in pixels.place)
        pixels.clips.clear()
        check = partial(_check_needed, deadline, given_up)
        work = partial(_explain, model.predictor, model.heads[query.head], query.class_name, [clips], view, check)
        return _PendingExplanation(pixels, view, model.batcher.put_alone(work, deadline, given_up))

    def _pixels(self, request: DecodeRequest, deadline: float, given_up: threading.Event) -> DecodedFile:
        _check_needed(deadline, given_up)
        pixels = self._decoders(request, deadline)
        _check_needed(deadline, given_up)
        return pixels


def _predictions(
    model: ServedModel, names: Sequence[str], pixels: DecodedFile, scores: Sequence[Scores]
) -> list[Prediction]:
    return [
        Prediction(name, model.heads[name].classes, scores[index][name])
        for name, index in zip(names, pixels.place, strict=True)
    ]


def _response(pixels: DecodedFile, results: Sequence[Sequence[Prediction]], top: int) -> PredictResponse:
    """The response from the predictions of the whole file, then of each of its parts."""
    (whole, *parts), seconds = results, pixels.seconds
    return PredictResponse(
        pixels.media,
        round(seconds, 3),
        class_scores(whole, top),
        windows([class_scores(part, top) for part in parts], seconds),
        segments(parts, seconds),
        pixels.damage,
    )


def _check_typed(model: ServedModel, query: PredictQuery) -> None:
    """Raise `Refused` for typed class names that the model cannot take, or if it needs some."""
    if not query.classes:
        if query.prompt:
            raise Refused(422, "prompt: goes with classes")
        if not model.heads:
            raise Refused(422, "the model has no head: name the classes, as in classes=archery&classes=bowling")
        return
    if model.typed is None:
        raise Refused(422, f'the model "{model.name}" has no text network, so it knows only the classes of its heads')
    if query.heads:
        raise Refused(422, "head: cannot go with classes")
    if len(set(query.classes)) < len(query.classes) or not all(name.strip() for name in query.classes):
        raise Refused(422, "classes: give names, each once")
    try:
        texts_of(query.classes, query.prompt or PROMPT)
    except UserError as error:
        raise Refused(422, str(error)) from None


def _check_needed(deadline: float, given_up: threading.Event) -> None:
    if given_up.is_set() or time.monotonic() > deadline:
        raise late()


def _explain(
    predictor: Predictor,
    head: Head,
    class_name: str | None,
    clips: list[np.ndarray],
    view: np.ndarray,
    check: Callable[[], None],
) -> _ExplainedClass:
    """Predict with all views of a head, then explain the class `class_name` (None: the most likely one) in one view.

    `clips` holds one array with all views. It is removed from the list, so that its memory is free after the
    prediction. `view`: uint8 `(T, 3, size, size)`. `check` is called before every layer and may raise. Raises `Refused`
    if the outputs are not finite.
    """
    try:
        output = predictor.run([clips.pop()])[0].checked()
        prediction = Prediction(head.name, head.classes, output.scores[head.name])
        class_name = class_name or prediction.top(1)[0][0]
        heat = heat_of(predictor.model, view, head, class_name, check=check).heat.numpy()
    except MediaError as error:
        raise Refused(422, f"no explanation of the file: {error}") from None
    return _ExplainedClass(prediction, class_name, heat)


async def _all(futures: Sequence[Future[Scores]]) -> list[Scores]:
    return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))


# --- metrics ----------------------------------------------------------------------------------------------------------


class Metrics:
    """Counters and histograms of one server, for the route `/metrics`."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        counts = (1, 2, 4, 8, 16, 32, 64, 128, 256)
        histogram = partial(Histogram, registry=self.registry)
        self._requests = Counter("cover_requests", "Requests answered", ["route", "status"], registry=self.registry)
        self._seconds = histogram("cover_request_seconds", "From request to answer", ["route"], buckets=seconds)
        self._stage = histogram("cover_stage_seconds", "Stages of a prediction", ["stage"], buckets=seconds)
        self._forward = histogram("cover_forward_seconds", "Time of a forward pass", buckets=seconds)
        self._samples = histogram("cover_pack_samples", "Files and plans in a forward pass", buckets=counts)
        self._frames = histogram("cover_pack_frames", "Frames in a forward pass", buckets=counts)
        self._gauge = Gauge

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is `value()` at the time of a request to `/metrics`."""
        self._gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        """Count the time of a stage (`upload`, `decode`, `model`, `explain`) for one file, with its waiting time."""
        self._stage.labels(name).observe(seconds)

    def forward(self, samples: int, frames: int, seconds: float) -> None:
        """Count a forward pass."""
        self._samples.observe(samples)
        self._frames.observe(frames)
        self._forward.observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The body and the content type of `/metrics`."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self.registry), CONTENT_TYPE_LATEST
