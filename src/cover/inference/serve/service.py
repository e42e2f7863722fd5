"""What happens to an upload? It is taken in if there is room, received, decoded, packed with others, and named."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cover.errors import UserError, nearest
from cover.inference.predictor import Prediction, Predictor
from cover.inference.serve.answers import Answer, guesses, windows
from cover.inference.serve.batching import Batcher, Scores
from cover.inference.serve.decoding import Decoders, Job, Pixels
from cover.inference.serve.limits import Batching, Limits, Refused, busy, late
from cover.inference.serve.metrics import Metrics
from cover.inference.serve.uploads import Spool, receive

GRACE_S = 5.0  # beyond a request's own deadline, in which an answer that is ready is still written


@dataclass(frozen=True)
class Wish:
    """What a client wants to know: of which heads (none: all), how many classes, in how many parts of a video besides the whole."""

    heads: tuple[str, ...] = ()
    top: int = 5
    windows: int = 0


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

    def check(self, wish: Wish) -> None:
        """Raises `Refused` for a head that the checkpoint does not have."""
        for name in wish.heads:
            if name not in self.heads:
                raise Refused(422, f'the checkpoint has no head "{name}"{nearest(name, self.heads)}')

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
        given_up = threading.Event()
        try:
            return await asyncio.wait_for(self._named(path, wish, given_up), self.limits.deadline_s + GRACE_S)
        except TimeoutError:
            raise late() from None
        finally:
            given_up.set()

    async def _named(self, path: Path, wish: Wish, given_up: threading.Event) -> Answer:
        names, began = wish.heads or tuple(self.heads), time.monotonic()
        job = Job(str(path), tuple(self.plans[name] for name in names), wish.windows)
        loop = asyncio.get_running_loop()
        pending = await loop.run_in_executor(self._threads, self._decoded, job, began + self.limits.deadline_s, given_up)
        decoded = time.monotonic()
        self.metrics.stage("decode", decoded - began)
        clips, parts = await _all(pending.clips), [await _all(window) for window in pending.windows]
        self.metrics.stage("model", time.monotonic() - decoded)
        pixels = pending.pixels
        whole, *rest = [guesses(self._predictions(names, pixels, scores), wish.top) for scores in (clips, *parts)]
        return Answer(pixels.media, round(pixels.seconds, 3), whole, windows(rest, pixels.seconds), pixels.damage)

    def _decoded(self, job: Job, deadline: float, given_up: threading.Event) -> _Pending:
        """In a thread of its own: it waits for a decoding process, and for room in front of the model."""
        if given_up.is_set():
            raise late()
        pixels = self._decoders(job, deadline)
        if given_up.is_set():
            raise late()
        clips = [self._batcher.put(views, deadline) for views in pixels.clips]
        return _Pending(pixels, clips, [[self._batcher.put(views, deadline) for views in window] for window in pixels.windows])

    def _predictions(self, names: Sequence[str], pixels: Pixels, scores: Sequence[Scores]) -> list[Prediction]:
        return [Prediction(name, self.heads[name].classes, scores[place][name]) for name, place in zip(names, pixels.place, strict=True)]


async def _all(futures: Sequence[Future[Scores]]) -> list[Scores]:
    return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
