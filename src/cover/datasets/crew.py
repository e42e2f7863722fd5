"""How is one function applied to very many files? By processes kept until the end, which go on where a file crashes one of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, Self, TypeVar

from cover.machine import end_with_parent

T = TypeVar("T")
R = TypeVar("R")


class Crew:
    """A pool of `workers` processes, started at the first item; with 0 workers everything is done in this process."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def run(self, work: Callable[[T], R], items: Sequence[T], chunk: int, crashed: R) -> Iterator[list[tuple[T, R]]]:
        """`(item, work(item))` of all items, `chunk` at a time as they are done, in no particular order.

        `crashed` stands for the result of an item that ends its process. `work` must be importable by its name.
        """
        chunks = [items[first : first + chunk] for first in range(0, len(items), chunk)]
        if not self._workers:
            yield from (_do(work, part) for part in chunks)
            return
        chunks.reverse()
        running: dict[Future[list[tuple[T, R]]], Sequence[T]] = {}
        while chunks or running:
            try:
                while chunks and len(running) < 2 * self._workers:
                    future = self._submit(work, chunks[-1])
                    running[future] = chunks.pop()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    del running[future]
            except BrokenProcessPool:
                self.__exit__()
                for part in running.values():
                    yield from self._one_by_one(work, part, crashed)
                running = {}

    def _submit(self, work: Callable[[T], R], items: Sequence[T]) -> Future[list[tuple[T, R]]]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"), initializer=_begin)
        return self._pool.submit(_do, work, items)

    def _one_by_one(self, work: Callable[[T], R], items: Sequence[T], crashed: R) -> Iterator[list[tuple[T, R]]]:
        """After a crash: one item at a time, so that the one at fault is known."""
        for item in items:
            try:
                yield self._submit(work, [item]).result()
            except BrokenProcessPool:
                self.__exit__()
                yield [(item, crashed)]


def _do(work: Callable[[Any], Any], items: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(item, work(item)) for item in items]


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the parent's
    end_with_parent()
