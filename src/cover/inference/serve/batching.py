"""Which uploads share a forward pass? Clips and images that wait together become one Pack, before the first of them waits too long."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from cover.console import say
from cover.inference.serve.limits import Batching, late
from cover.model.timesformer import TimeSformer

T = TypeVar("T")
Scores = dict[str, np.ndarray]  # head -> float32 (classes,)
Observe = Callable[[int, int, float], None]  # samples, frames and seconds of a forward pass


@dataclass(eq=False)
class _Part:
    """The views of one file under one plan, uint8 `(V, T, 3, size, size)`. `deadline`: of `time.monotonic`. `alone`: what is done with
    them, where that is not to name them beside others."""

    views: np.ndarray
    deadline: float
    alone: Callable[[np.ndarray], Any] | None = None
    came: float = field(default_factory=time.monotonic)
    result: Future[Any] = field(default_factory=Future)

    @property
    def frames(self) -> int:
        return self.views.shape[0] * self.views.shape[1]


class Batcher:
    """One thread that runs the model on what is put into it, in the order of arrival.

    No more than `HELD_PACKS` Packs of frames wait: `put` blocks until there is room, so the pixels in memory stay bounded.
    """

    HELD_PACKS = 4

    def __init__(self, model: TimeSformer, device: torch.device | str, batching: Batching, observe: Observe) -> None:
        self._model, self._device, self._batching, self._observe = model.to(device).eval(), device, batching, observe
        self._waiting: deque[_Part] = deque()
        self._frames, self._closed = 0, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="cover-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and not self._closed

    def put(self, views: np.ndarray, deadline: float) -> Future[Scores]:
        """`views`: uint8 `(V, T, 3, size, size)` of one file. The future gives every head's probabilities, averaged over the views.

        Raises `Refused` where there is no room until `deadline`; the future raises it where the model comes too late.
        """
        return self._take(_Part(views, deadline)).result

    def put_alone(self, views: np.ndarray, work: Callable[[np.ndarray], T], deadline: float) -> Future[T]:
        """`work(views)` in the thread of the model, when it is their turn: nothing else uses the model meanwhile. Otherwise as `put`."""
        return self._take(_Part(views, deadline, work)).result

    def _take(self, part: _Part) -> _Part:
        with self._changed:
            if not self._changed.wait_for(self._has_room, max(0.0, part.deadline - time.monotonic())) or self._closed:
                raise late()
            self._waiting.append(part)
            self._frames += part.frames
            self._changed.notify_all()
        return part

    def _has_room(self) -> bool:
        return self._closed or self._frames < self.HELD_PACKS * self._batching.frames

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # --- the thread

    def _run(self) -> None:
        while pack := self._next_pack():
            live = [part for part in pack if part.result.set_running_or_notify_cancel()]
            try:
                self._answer(live)
            except Exception as error:  # whatever the device says: these requests fail, the next ones get their turn
                say(f"serve: a forward pass failed: {type(error).__name__}: {error}")
                for part in live:
                    if not part.result.done():
                        part.result.set_exception(error)

    def _next_pack(self) -> list[_Part]:
        """Waits for a first part, then until the Pack is full or that one has waited long enough. Empty when all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            left = self._waiting[0].came + self._batching.wait_s - time.monotonic()
            self._changed.wait_for(lambda: self._waiting[0].alone or self._frames >= self._batching.frames or self._closed, max(0.0, left))
            pack = [self._waiting.popleft()]
            room = 0 if pack[0].alone else self._batching.frames - pack[0].frames
            while self._waiting and not self._waiting[0].alone and self._waiting[0].frames <= room:
                pack.append(self._waiting.popleft())
                room -= pack[-1].frames
            self._frames -= sum(part.frames for part in pack)
            self._changed.notify_all()
            return pack

    def _answer(self, pack: Sequence[_Part]) -> None:
        began = time.monotonic()
        for part in pack:
            if part.deadline < began:
                part.result.set_exception(late())
        pack = sorted((part for part in pack if not part.result.done()), key=lambda part: -part.views.shape[1])  # images last
        if not pack:
            return
        results = [pack[0].alone(pack[0].views)] if pack[0].alone else self._scores(pack)
        for part, result in zip(pack, results, strict=True):
            part.result.set_result(result)
        self._observe(len(pack), sum(part.frames for part in pack), time.monotonic() - began)

    @torch.inference_mode()
    def _scores(self, pack: Sequence[_Part]) -> list[Scores]:
        """One forward pass; `pack` by frames of a clip, images last."""
        counts: dict[int, int] = {}
        for part in pack:
            counts[part.views.shape[1]] = counts.get(part.views.shape[1], 0) + part.views.shape[0]
        pixels = torch.cat([torch.from_numpy(part.views).flatten(0, 1) for part in pack]).to(self._device)
        logits = self._model(self._model.normalize(pixels), tuple((count, frames) for frames, count in counts.items()))
        sizes = [part.views.shape[0] for part in pack]
        shares = {head.name: head.probabilities(logits[head.name]).cpu().split(sizes) for head in self._model.head_list}
        return [{name: _mean(parts[number]) for name, parts in shares.items()} for number in range(len(pack))]


def _mean(scores: Tensor) -> np.ndarray:
    found: np.ndarray = scores.mean(0).numpy()
    return found
