"""What happens to an upload? It is taken in if there is room, received, decoded, packed with others, and named."""

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
from cover.inference.serve.answers import Answer, Reasons, frames, guesses, windows
from cover.inference.serve.batching import Batcher, Scores
from cover.inference.serve.decoding import Decoders, Job, Pixels
from cover.inference.serve.limits import Batching, Limits, Refused, busy, late
from cover.inference.serve.metrics import Metrics
from cover.inference.serve.uploads import Spool, receive
from cover.model.timesformer import Head, TimeSformer

T = TypeVar("T")
P = ParamSpec("P")
GRACE_S = 5.0  # beyond a request's own deadline, in which an answer that is ready is still written


@dataclass(frozen=True)
class Wish:
    """What a client wants to know: of which heads (none: all), how many classes, in how many parts of a video besides the whole."""

    heads: tuple[str, ...] = ()
    top: int = 5
    windows: int = 0


@dataclass(frozen=True)
class Why:
    """Of which head a client wants to know what its answer rests on, and for which class (None: the likeliest)."""

    head: str
    named: str | None = None


@dataclass(frozen=True)
class _Pending:
    """A decoded file on its way through the model: the scores of its different plans, and of those in each window."""

    pixels: Pixels
    clips: list[Future[Scores]]
    windows: list[list[Future[Scores]]]


class Service:
    """One checkpoint, its decoding processes and its model thread. Its own tasks live on one event loop."""

    def __init__(self, predictor: Predictor, limits: Limits, batching: Batching, workers: int, spool: Spool) -> None:
        """Raises `UserError` where the checkpoint has no heads, or does not say how one of them looks at a video."""
        self.predictor, self.limits, self.spool = predictor, limits, spool
        self.heads = {head.name: head for head in predictor.model.head_list}
        if not self.heads:
            raise UserError("the checkpoint has no head, so there is nothing to predict; train one with start.checkpoint")
        self.plans = {name: predictor.plan(name) for name in self.heads}
        self.metrics, self.draining, self.under_way = Metrics(), False, 0
        self._decoders = Decoders(workers, limits)
        self._threads = ThreadPoolExecutor(workers, "cover-decode")
        self._batcher = Batcher(predictor.model, predictor.device, batching, self.metrics.forward)
        self.metrics.watch("cover_predictions_under_way", "Taken in and not answered yet", lambda: self.under_way)
        self.metrics.watch("cover_decoders_replaced", "Decoding processes that were killed or died", lambda: self._decoders.replaced)

    def close(self) -> None:
        """End threads, processes and the folder of uploads; what was taken in should be answered by now."""
        self._decoders.close()
        self._batcher.close()
        self._threads.shutdown(cancel_futures=True)
        self.spool.close()

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return not self.draining and self._batcher.alive

    def check(self, wish: Wish | Why) -> None:
        """Raises `Refused` for a head that the checkpoint does not have, or a class that the head does not."""
        for name in (wish.head,) if isinstance(wish, Why) else wish.heads:
            if name not in self.heads:
                raise Refused(422, f'the checkpoint has no head "{name}"{nearest(name, self.heads)}')
        if isinstance(wish, Why) and wish.named is not None and wish.named not in (classes := self.heads[wish.head].classes):
            raise Refused(422, f'the head "{wish.head}" has no class "{wish.named}"{nearest(wish.named, classes)}')

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

    async def predict(self, path: Path, wish: Wish) -> Answer:
        """What is seen in a file. Raises `Refused`. When it is cancelled, what has not begun of its work never does."""
        return await self._in_time(partial(self._named, path, wish))

    async def explain(self, path: Path, wish: Why) -> Reasons:
        """What a head's answer rests on. Raises `Refused`. Cancelled as `predict` is."""
        return await self._in_time(partial(self._reasons, path, wish))

    async def _in_time(self, work: Callable[[float, threading.Event], Coroutine[Any, Any, T]]) -> T:
        """`work(deadline, given_up)`, the deadline of `time.monotonic`."""
        given_up = threading.Event()
        try:
            return await asyncio.wait_for(work(time.monotonic() + self.limits.deadline_s, given_up), self.limits.deadline_s + GRACE_S)
        except TimeoutError:
            raise late() from None
        finally:
            given_up.set()

    async def _named(self, path: Path, wish: Wish, deadline: float, given_up: threading.Event) -> Answer:
        names = wish.heads or tuple(self.heads)
        job = Job(str(path), tuple(self.plans[name] for name in names), wish.windows)
        pending = await self._timed("decode", self._in_thread(self._decoded, job, deadline, given_up))
        decoded = time.monotonic()
        clips, parts = await _all(pending.clips), [await _all(window) for window in pending.windows]
        self.metrics.stage("model", time.monotonic() - decoded)
        pixels = pending.pixels
        whole, *rest = [guesses(self._predictions(names, pixels, scores), wish.top) for scores in (clips, *parts)]
        return Answer(pixels.media, round(pixels.seconds, 3), whole, windows(rest, pixels.seconds), pixels.damage)

    async def _reasons(self, path: Path, wish: Why, deadline: float, given_up: threading.Event) -> Reasons:
        """Named first, by all the head's views, since that says which class is to be explained."""
        head, plan = self.heads[wish.head], self.plans[wish.head]
        job = Job(str(path), (plan, replace(plan, views=ONE_VIEW)))
        pixels = await self._timed("decode", self._in_thread(self._pixels, job, deadline, given_up))
        own, (view,) = (pixels.clips[place] for place in pixels.place)
        (scores,) = await self._timed("model", _all([await self._in_thread(self._batcher.put, own, deadline)]))
        prediction = Prediction(head.name, head.classes, scores[head.name])
        named = wish.named or prediction.top(1)[0][0]
        work = partial(_heat, self.predictor.model, head, named)
        heat = await self._timed("explain", asyncio.wrap_future(await self._in_thread(self._batcher.put_alone, view, work, deadline)))
        told = await self._in_thread(frames, view, heat, frame_times(plan, len(view), pixels.seconds))
        probability = float(prediction.scores[head.classes.index(named)])
        return Reasons(pixels.media, round(pixels.seconds, 3), head.name, named, probability, told, pixels.damage)

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments, **named))

    async def _timed(self, stage: str, work: Awaitable[T]) -> T:
        began = time.monotonic()
        result = await work
        self.metrics.stage(stage, time.monotonic() - began)
        return result

    def _decoded(self, job: Job, deadline: float, given_up: threading.Event) -> _Pending:
        """In a thread of its own: it waits for a decoding process, and for room in front of the model."""
        pixels = self._pixels(job, deadline, given_up)
        clips = [self._batcher.put(views, deadline) for views in pixels.clips]
        return _Pending(pixels, clips, [[self._batcher.put(views, deadline) for views in window] for window in pixels.windows])

    def _pixels(self, job: Job, deadline: float, given_up: threading.Event) -> Pixels:
        if given_up.is_set():
            raise late()
        pixels = self._decoders(job, deadline)
        if given_up.is_set():
            raise late()
        return pixels

    def _predictions(self, names: Sequence[str], pixels: Pixels, scores: Sequence[Scores]) -> list[Prediction]:
        return [Prediction(name, self.heads[name].classes, scores[place][name]) for name, place in zip(names, pixels.place, strict=True)]


def _heat(model: TimeSformer, head: Head, named: str, views: np.ndarray) -> np.ndarray:
    """float32 `(T, h, w)`. `views`: uint8 `(T, 3, size, size)`."""
    found: np.ndarray = heat_of(model, views, head, named).heat.numpy()
    return found


async def _all(futures: Sequence[Future[Scores]]) -> list[Scores]:
    return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
