"""Batching of uploads: clips and images that wait at the same time share one forward pass."""

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
from cover.inference.predictor import Predictor
from cover.model.heads import NOT_FINITE
from cover.serve.middleware import Batching, Refused, late

T = TypeVar("T")
Scores = dict[str, np.ndarray]  # head -> float32 (classes,)
Observe = Callable[[int, int, float], None]  # samples, frames and seconds of a forward pass


@dataclass(eq=False)
class _ModelTask:
    """Work for the model. `deadline` is a time of `time.monotonic`. `given_up` is set when nobody needs the result."""

    deadline: float
    given_up: threading.Event
    result: Future[Any] = field(default_factory=Future, kw_only=True)

    def begins(self) -> bool:
        """Start the task, which then cannot be cancelled any more. False if it is cancelled or too late."""
        if self.given_up.is_set():
            self.result.cancel()
        if not self.result.set_running_or_notify_cancel():
            return False
        too_late = self.deadline < time.monotonic()
        if too_late:
            self.result.set_exception(late())
        return not too_late


@dataclass(eq=False)
class _ViewsTask(_ModelTask):
    """The views of one file under one plan, uint8 `(V, T, 3, size, size)`. They share a forward pass with others."""

    views: np.ndarray
    arrived: float = field(default_factory=time.monotonic)

    @property
    def frames(self) -> int:
        return self.views.shape[0] * self.views.shape[1]


@dataclass(eq=False)
class _ExclusiveTask(_ModelTask):
    """Work during which nothing else may use the model."""

    work: Callable[[], Any]


class Batcher:
    """One thread that runs the model on tasks in the order of their arrival.

    Exclusive tasks run between Packs, one after each Pack, so that long tasks do not delay short ones much.

    At most `HELD_PACKS` Packs of frames wait. `put` blocks until there is room, so that the pixels in memory have a
    limit.
    """

    HELD_PACKS = 4

    def __init__(self, predictor: Predictor, batching: Batching, observe: Observe) -> None:
        self._predictor, self._batching, self._observe = predictor, batching, observe
        self._waiting: deque[_ViewsTask] = deque()
        self._alone: deque[_ExclusiveTask] = deque()
        self._frames, self._closed, self._pack_was_last = 0, False, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="cover-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread can run tasks."""
        return self._thread.is_alive() and not self._closed

    def put(self, views: np.ndarray, deadline: float, given_up: threading.Event | None = None) -> Future[Scores]:
        """Add the views of one file, uint8 `(V, T, 3, size, size)`.

        The future returns every head's probabilities, averaged over the views. Raises `Refused` if there is no room
        until `deadline`, or if `given_up` is set before. The future raises `Refused` if the task starts too late, or if
        the probabilities are not finite. Code that sets `given_up` must call `drop_given_up` afterwards.
        """
        task = _ViewsTask(deadline, given_up or threading.Event(), views)
        with self._changed:
            left = max(0.0, deadline - time.monotonic())
            in_time = self._changed.wait_for(lambda: self._closed or task.given_up.is_set() or self._has_room(), left)
            if not in_time or self._closed or task.given_up.is_set():
                raise late()
            self._waiting.append(task)
            self._frames += task.frames
            self._changed.notify_all()
        return task.result

    def put_alone(self, work: Callable[[], T], deadline: float, given_up: threading.Event | None = None) -> Future[T]:
        """Add `work`, which runs in the thread of the model while nothing else uses the model. It may raise `Refused`.

        This does not block. The caller must limit how many such tasks wait. Otherwise like `put`.
        """
        task = _ExclusiveTask(deadline, given_up or threading.Event(), work)
        with self._changed:
            if self._closed or task.given_up.is_set():
                raise late()
            self._alone.append(task)
            self._changed.notify_all()
        return task.result

    def drop_given_up(self) -> None:
        """Remove the tasks whose `given_up` is set, with their pixels, and end the wait in `put` for such tasks."""
        with self._changed:
            for task in (*self._waiting, *self._alone):
                if task.given_up.is_set():
                    task.result.cancel()
            self._waiting = deque(task for task in self._waiting if not task.given_up.is_set())
            self._alone = deque(task for task in self._alone if not task.given_up.is_set())
            self._frames = sum(task.frames for task in self._waiting)
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._frames < self.HELD_PACKS * self._batching.frames

    def close(self) -> None:
        """Run the tasks that wait, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    # --- in the thread ---

    def _run(self) -> None:
        while tasks := self._next_tasks():
            started = [task for task in tasks if task.begins()]
            try:
                self._answer(started)
            except Exception as error:  # any error, also of the device: these tasks fail, and the next ones run
                if not isinstance(error, Refused):
                    say(f"serve: a forward pass failed: {type(error).__name__}: {error}")
                for task in started:
                    if not task.result.done():
                        task.result.set_exception(error)

    def _next_tasks(self) -> Sequence[_ModelTask]:
        """Wait for the tasks of the next Pack, or for one exclusive task. Empty if the thread must end."""
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
        """Wait until a Pack is full or its first task has waited long enough. Empty if no task waits (any more)."""
        left = self._waiting[0].arrived + self._batching.wait_s - time.monotonic() if self._waiting else 0.0
        self._changed.wait_for(
            lambda: not self._waiting or self._frames >= self._batching.frames or self._closed, max(0.0, left)
        )
        pack: list[_ViewsTask] = []
        room = self._batching.frames
        while self._waiting and (not pack or self._waiting[0].frames <= room):
            pack.append(self._waiting.popleft())
            room -= pack[-1].frames
        self._frames -= sum(task.frames for task in pack)
        self._changed.notify_all()
        return pack

    def _answer(self, tasks: Sequence[_ModelTask]) -> None:
        began = time.monotonic()
        # A Pack has its longest clips first and images last.
        pack = sorted((task for task in tasks if isinstance(task, _ViewsTask)), key=lambda task: -task.views.shape[1])
        for task in tasks:
            if isinstance(task, _ExclusiveTask):
                task.result.set_result(task.work())
        if not pack:
            return
        for views_task, scores in zip(pack, self._scores(pack), strict=True):
            if all(np.isfinite(of_head).all() for of_head in scores.values()):
                views_task.result.set_result(scores)
            else:
                views_task.result.set_exception(Refused(422, f"no prediction of the file: {NOT_FINITE}"))
        self._observe(len(pack), sum(task.frames for task in pack), time.monotonic() - began)

    @torch.inference_mode()
    def _scores(self, pack: Sequence[_ViewsTask]) -> list[Scores]:
        """The scores of every task from one forward pass. `pack` is sorted by the frames of a clip, images last."""
        counts: dict[int, int] = {}  # frames of a clip -> number of clips
        for task in pack:
            counts[task.views.shape[1]] = counts.get(task.views.shape[1], 0) + task.views.shape[0]
        pixels = torch.cat([torch.from_numpy(task.views).flatten(0, 1) for task in pack])
        groups, model = tuple((count, frames) for frames, count in counts.items()), self._predictor.model
        logits = model.forward_head(self._predictor.pack_features(pixels, groups))
        sizes = [task.views.shape[0] for task in pack]
        # head -> for each task, float32 (views, classes)
        scores = {head.name: head.probabilities(logits[head.name]).cpu().split(sizes) for head in model.head_list}
        return [{name: _mean(of_head[number]) for name, of_head in scores.items()} for number in range(len(pack))]


def _mean(scores: Tensor) -> np.ndarray:
    result: np.ndarray = scores.mean(0).numpy()
    return result
