"""Batching of uploads: clips and images that wait together share one forward pass, before the first of them waits too
long.
"""

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
from cover.model.cover import CoVeR
from cover.serve.middleware import Batching, Refused, late

T = TypeVar("T")
Scores = dict[str, np.ndarray]  # head -> float32 (classes,)
Observe = Callable[[int, int, float], None]  # samples, frames and seconds of a forward pass


@dataclass(eq=False)
class _ModelTask:
    """Something for the model. `deadline`: of `time.monotonic`. `given_up`: set when nobody waits for the result any
    more.
    """

    deadline: float
    given_up: threading.Event
    result: Future[Any] = field(default_factory=Future, kw_only=True)

    def begins(self) -> bool:
        """Whether it is still wanted, and from now on cannot be cancelled. What comes too late is refused."""
        if self.given_up.is_set():
            self.result.cancel()
        if not self.result.set_running_or_notify_cancel():
            return False
        if late_by_now := self.deadline < time.monotonic():
            self.result.set_exception(late())
        return not late_by_now


@dataclass(eq=False)
class _ViewsTask(_ModelTask):
    """The views of one file under one plan, uint8 `(V, T, 3, size, size)`, to be named beside others."""

    views: np.ndarray
    came: float = field(default_factory=time.monotonic)

    @property
    def frames(self) -> int:
        return self.views.shape[0] * self.views.shape[1]


@dataclass(eq=False)
class _ExclusiveTask(_ModelTask):
    """What wants the model to itself."""

    work: Callable[[], Any]


class Batcher:
    """One thread that runs the model on what is put into it, in the order of arrival; but what wants the model alone
    comes between Packs, one at a time, so that long work does not keep the short waiting.

    No more than `HELD_PACKS` Packs of frames wait: `put` blocks until there is room, so the pixels in memory stay
    bounded.
    """

    HELD_PACKS = 4

    def __init__(self, model: CoVeR, device: torch.device | str, batching: Batching, observe: Observe) -> None:
        self._model, self._device, self._batching, self._observe = model.to(device).eval(), device, batching, observe
        self._waiting: deque[_ViewsTask] = deque()
        self._alone: deque[_ExclusiveTask] = deque()
        self._frames, self._closed, self._pack_was_last = 0, False, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="cover-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can answer."""
        return self._thread.is_alive() and not self._closed

    def put(self, views: np.ndarray, deadline: float, given_up: threading.Event | None = None) -> Future[Scores]:
        """`views`: uint8 `(V, T, 3, size, size)` of one file. The future gives every head's probabilities, averaged
        over the views.

        Raises `Refused` where there is no room until `deadline`, or the result is given up before; the future raises it
        where the model comes too late. Whoever sets `given_up` calls `drop_given_up`.
        """
        part = _ViewsTask(deadline, given_up or threading.Event(), views)
        with self._changed:
            left = max(0.0, deadline - time.monotonic())
            value = self._changed.wait_for(lambda: self._closed or part.given_up.is_set() or self._has_room(), left)
            if not value or self._closed or part.given_up.is_set():
                raise late()
            self._waiting.append(part)
            self._frames += part.frames
            self._changed.notify_all()
        return part.result

    def put_alone(self, work: Callable[[], T], deadline: float, given_up: threading.Event | None = None) -> Future[T]:
        """`work()` in the thread of the model, when it is its turn: nothing else uses the model meanwhile. It may raise
        `Refused`.

        Never blocks: how many of these wait, and what they hold, is bounded by whoever puts them. Otherwise as `put`.
        """
        alone = _ExclusiveTask(deadline, given_up or threading.Event(), work)
        with self._changed:
            if self._closed or alone.given_up.is_set():
                raise late()
            self._alone.append(alone)
            self._changed.notify_all()
        return alone.result

    def drop_given_up(self) -> None:
        """Forget what nobody waits for any more, with its pixels; and end the wait of those in `put` who are given up."""
        with self._changed:
            for task in (*self._waiting, *self._alone):
                if task.given_up.is_set():
                    task.result.cancel()
            self._waiting = deque(part for part in self._waiting if not part.given_up.is_set())
            self._alone = deque(alone for alone in self._alone if not alone.given_up.is_set())
            self._frames = sum(part.frames for part in self._waiting)
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._frames < self.HELD_PACKS * self._batching.frames

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # --- the thread

    def _run(self) -> None:
        while turn := self._next_turn():
            live = [task for task in turn if task.begins()]
            try:
                self._answer(live)
            except Exception as error:  # whatever the device says: these requests fail, the next ones get their turn
                if not isinstance(error, Refused):
                    say(f"serve: a forward pass failed: {type(error).__name__}: {error}")
                for task in live:
                    if not task.result.done():
                        task.result.set_exception(error)

    def _next_turn(self) -> Sequence[_ModelTask]:
        """Waits for the next Pack, or for one that wants the model alone. Empty when all is done."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._alone or self._closed)
                if self._alone and (self._pack_was_last or not self._waiting):
                    self._pack_was_last = False
                    return [self._alone.popleft()]
                if pack := self._next_pack():
                    self._pack_was_last = True
                    return pack
                if self._closed and not self._alone:
                    return []

    def _next_pack(self) -> list[_ViewsTask]:
        """Waits until the Pack is full or its first part has waited long enough. Empty where none waits, or none does
        any more.
        """
        left = self._waiting[0].came + self._batching.wait_s - time.monotonic() if self._waiting else 0.0
        self._changed.wait_for(
            lambda: not self._waiting or self._frames >= self._batching.frames or self._closed, max(0.0, left)
        )
        pack: list[_ViewsTask] = []
        room = self._batching.frames
        while self._waiting and (not pack or self._waiting[0].frames <= room):
            pack.append(self._waiting.popleft())
            room -= pack[-1].frames
        self._frames -= sum(part.frames for part in pack)
        self._changed.notify_all()
        return pack

    def _answer(self, turn: Sequence[_ModelTask]) -> None:
        began = time.monotonic()
        # images last
        pack = sorted((task for task in turn if isinstance(task, _ViewsTask)), key=lambda part: -part.views.shape[1])
        for task in turn:
            if isinstance(task, _ExclusiveTask):
                task.result.set_result(task.work())
        if not pack:
            return
        for part, scores in zip(pack, self._scores(pack), strict=True):
            part.result.set_result(scores)
        self._observe(len(pack), sum(part.frames for part in pack), time.monotonic() - began)

    @torch.inference_mode()
    def _scores(self, pack: Sequence[_ViewsTask]) -> list[Scores]:
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
    result: np.ndarray = scores.mean(0).numpy()
    return result
