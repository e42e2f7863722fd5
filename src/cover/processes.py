"""A pool of worker processes: a file that crashes or hangs its worker costs that file alone.

Every worker has a pipe of its own and a thread of `concurrent.futures` in front of it. The libraries cost a promise
here: `ProcessPoolExecutor` gives up all of its workers, and what they were doing, when one of them dies, and knows no
time limit. pebble 5.2 replaces a worker that dies over its item, but its workers share one pipe and one lock: when an
idle worker is killed the whole pool ends, and when a worker is killed while it hands over its result (for want of
memory, say) the others wait for the lock without end. The `DataLoader` of training and evaluation (mixture/loader.py,
evaluation/evaluate.py) is not replaced by this pool: it hands tensors over in shared memory, where a pipe copies every
frame twice.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from cover.machine import end_with_parent

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # items for each worker that are handed over before their turn
START_S = 120.0  # a new process may import torch on a machine that is busy
STARTS = 3  # processes that are tried in one worker's place before the pool gives up


class WorkerLost(Exception):
    """A worker died over an item, or took longer than it may (`timed_out`): what it was doing has no result."""

    def __init__(self, reason: str, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


class PoolError(RuntimeError):
    """No worker process can be started."""


class ProcessPool:
    """`workers` processes, each started when it is first needed. With 0 workers, all is done in this process.

    `begin` is called in every new process. `preload` names a module that a server process imports once, so that new
    workers start in milliseconds (not on Windows); without it each worker is a fresh interpreter. Neither forks a
    process that runs threads. Workers ignore Ctrl-C, which is this process's to handle, and end with it, even when it
    is killed. `children`: whether workers start processes of their own. What a worker runs must be importable by name,
    and it raises what the work raises.
    """

    def __init__(
        self,
        workers: int,
        begin: Callable[[], None] | None = None,
        *,
        preload: str | None = None,
        children: bool = False,
    ) -> None:
        self.workers, self.replaced = workers, 0
        self._closing, self._closed = threading.Lock(), False
        new = partial(_Worker, begin, _context(preload), not children)
        self._all = [new() for _ in range(workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(max(1, workers), "cover-pool")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes at once, whatever they are doing."""
        with self._closing:
            self._closed = True
            for worker in self._all:
                worker.end()
        self._threads.shutdown(cancel_futures=True)

    def start(self) -> None:
        """Start all processes now and wait until they are ready. Raises `PoolError` where they do not start."""
        for worker in self._all:
            self._revive(worker, replaced=False)
        for worker in self._all:
            self._wait_ready(worker)

    def call(self, work: Callable[[T], R], item: T, seconds: float | None = None, deadline: float | None = None) -> R:
        """`work(item)` in a worker, from any thread.

        Raises `WorkerLost` where the worker dies or takes more than `seconds`; `queue.Empty` where none is free by
        `deadline` (of `time.monotonic`); `PoolError` where no process can be started.
        """
        if not self.workers:
            return work(item)
        worker = self._idle.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        try:
            for _ in range(STARTS):
                self._wait_ready(worker)
                if worker.send((work, item)):
                    break
                self._revive(worker)  # it died before it had anything to do
            else:
                raise PoolError("worker processes die before they are given anything to do")
            try:
                succeeded, result = worker.receive(seconds)
            except WorkerLost:
                self._revive(worker)
                raise
        finally:
            self._idle.put(worker)
        if not succeeded:
            raise result
        return result

    def map(self, work: Callable[[T], R], items: Iterable[T], lost: Callable[[T], R] | None = None) -> Iterator[R]:
        """`work(item)` of all items in their order, read ahead by `AHEAD` for each worker.

        `lost(item)` stands for the result of an item that ends its worker twice; without it, `WorkerLost` is raised at
        the first time. May be called again while an earlier map is under way.
        """
        if not self.workers:
            yield from map(work, items)
            return
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(self._threads.submit(self._call_twice, work, item, lost))
            if len(waiting) > AHEAD * self.workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def as_completed(
        self, work: Callable[[T], R], items: Sequence[T], chunk: int = 1, lost: Callable[[T], R] | None = None
    ) -> Iterator[list[tuple[T, R]]]:
        """`(item, work(item))` of all items, `chunk` at a time as they are done, in no particular order. `lost` as in
        `map`.
        """
        chunks = deque(items[first : first + chunk] for first in range(0, len(items), chunk))
        if not self.workers:
            yield from (_each(work, part) for part in chunks)
            return
        running: set[Future[list[tuple[T, R]]]] = set()
        while chunks or running:
            while chunks and len(running) < AHEAD * self.workers:
                running.add(self._threads.submit(self._call_chunk, work, chunks.popleft(), lost))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()

    def _call_chunk(
        self, work: Callable[[T], R], items: Sequence[T], lost: Callable[[T], R] | None
    ) -> list[tuple[T, R]]:
        try:
            return self.call(partial(_each, work), items)
        except WorkerLost:
            if lost is None or self._closed:
                raise
        # One at a time, so that the one at fault is known.
        return [(item, self._call_last(work, item, lost)) for item in items]

    def _call_twice(self, work: Callable[[T], R], item: T, lost: Callable[[T], R] | None) -> R:
        try:
            return self.call(work, item)
        except WorkerLost:
            if lost is None or self._closed:
                raise
        # The second time shows whether the item was at fault, or whoever killed its worker.
        return self._call_last(work, item, lost)

    def _call_last(self, work: Callable[[T], R], item: T, lost: Callable[[T], R]) -> R:
        try:
            return self.call(work, item)
        except WorkerLost:
            if self._closed:
                raise
            return lost(item)

    def _wait_ready(self, worker: _Worker) -> None:
        for _ in range(STARTS):
            if worker.is_ready():
                return
            self._revive(worker)
        raise PoolError("worker processes cannot be started")

    def _revive(self, worker: _Worker, replaced: bool = True) -> None:
        """A new process in a worker's place; raises `WorkerLost` where the pool is closed."""
        with self._closing:
            if self._closed:
                raise WorkerLost("the pool is closed")
            self.replaced += replaced and worker.started
            worker.start()


class _Worker:
    """A process, started by `start`, and this end of its pipe."""

    def __init__(self, begin: Callable[[], None] | None, context: Any, daemon: bool) -> None:
        self._begin, self._context, self._daemon = begin, context, daemon
        self._process: Any = None
        self._pipe: Connection | None = None
        self._ready = False

    @property
    def started(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """In place of the one before."""
        self.end()
        if self._pipe is not None:
            self._pipe.close()
        self._pipe, far = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(far, self._begin), name="cover-worker", daemon=self._daemon
        )
        self._ready = False
        self._process.start()
        far.close()  # so that the pipe ends with the process

    def is_ready(self) -> bool:
        """Waits for the first message of a new process. False where there is none, or it died or does not start in
        time.
        """
        if not self._ready and self._pipe is not None:
            try:
                self._ready = self.receive(START_S)
            except WorkerLost:
                return False
        return self._ready

    def send(self, job: object) -> bool:
        """False where the process is gone."""
        assert self._pipe is not None
        data = pickle.dumps(job)
        try:
            self._pipe.send_bytes(data)
        except OSError:
            self._ready = False
            return False
        return True

    def receive(self, seconds: float | None) -> Any:
        """Raises `WorkerLost`."""
        assert self._pipe is not None
        try:
            if self._pipe.poll(seconds):
                return pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise WorkerLost("the worker process died") from None
        raise WorkerLost(f"it took longer than {seconds:g} s", timed_out=True)

    def end(self) -> None:
        """Kill the process; the pipe then ends for whoever waits for it."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def _context(preload: str | None) -> Any:
    if preload is None or sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


def begin_preloading(module: str) -> None:
    """Let the server process of a pool with this `preload` import the module while this process does other things."""
    if sys.platform != "win32":
        from multiprocessing.forkserver import ensure_running

        _context(module)
        ensure_running()


# --- in the worker


def _serve(pipe: Connection, begin: Callable[[], None] | None) -> None:
    """Runs until the process is killed or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if begin is not None:
        begin()
    pipe.send_bytes(pickle.dumps(True))
    while True:
        try:
            job = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(_answer(job))


def _answer(job: bytes) -> bytes:
    """`(True, result)` or `(False, exception)`, pickled."""
    try:
        work, item = pickle.loads(job)
        return pickle.dumps((True, work(item)))
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        try:
            return pickle.dumps((False, error))
        except Exception:  # the exception holds something that cannot be sent
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))


def _each(work: Callable[[T], R], items: Sequence[T]) -> list[tuple[T, R]]:
    return [(item, work(item)) for item in items]
