"""How are files read ahead by several processes, and come back in their order? A few at a time, and past a file that crashes one."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from cover.datasets.crew import Crew
from cover.machine import end_with_parent, reuse_memory

T = TypeVar("T")
R = TypeVar("R")


class Readers(Crew):
    """A `Crew` whose results come back in the order of the items."""

    def map(self, work: Callable[[T], R], items: Iterable[T], crashed: Callable[[T], R]) -> Iterator[R]:
        """`work(item)` of all items in their order, read ahead by two for each process. `crashed(item)` stands for the result of one that
        ends its process. `work` must be importable by its name. May be called anew while an earlier map is under way."""
        if not self._workers:
            yield from map(work, items)
            return
        waiting: deque[tuple[T, Future[R], ProcessPoolExecutor]] = deque()
        for item in items:
            waiting.append((item, *self._ahead(work, item)))
            if len(waiting) > 2 * self._workers:
                yield self._result(work, crashed, *waiting.popleft())
        while waiting:
            yield self._result(work, crashed, *waiting.popleft())

    def _ahead(self, work: Callable[[T], R], item: T) -> tuple[Future[R], ProcessPoolExecutor]:
        for _ in range(2):  # a pool that has broken since is replaced
            if self._pool is None:
                self._pool = _pool(self._workers)
            try:
                return self._pool.submit(work, item), self._pool
            except BrokenProcessPool:
                self.__exit__()
        raise RuntimeError("reading processes cannot be started")

    def _result(self, work: Callable[[T], R], crashed: Callable[[T], R], item: T, future: Future[R], pool: ProcessPoolExecutor) -> R:
        try:
            return future.result()
        except BrokenProcessPool:
            if self._pool is pool:
                self.__exit__()
        with _pool(1) as alone:  # where only the one at fault can crash
            try:
                return alone.submit(work, item).result()
            except BrokenProcessPool:
                return crashed(item)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin)


def _begin(*_: Any) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the parent's
    end_with_parent()
    torch.set_num_threads(1)  # the processes share the cores
    reuse_memory()
