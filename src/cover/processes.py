"""A pool of worker processes that survives a crash or a hang of one of them.

A file that crashes or hangs its worker costs the result of this file only. Every worker has its own pipe, and a thread
of `concurrent.futures` waits for it.

Two libraries do not keep this promise. When one worker of `ProcessPoolExecutor` dies, the pool ends, and the work of
all workers is lost; it also has no time limit per item. pebble 5.2 replaces a worker that dies during its item, but its
workers share one pipe and one lock. When an idle worker is killed, the whole pool ends. When a worker is killed while
it sends its result (for example because memory is short), the others wait for the lock without end.

Training and evaluation use torch's `DataLoader` instead (mixture/loader.py, evaluation/evaluate.py). It passes tensors
through shared memory; a pipe would copy every frame twice.
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
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Self, TypeVar

from cover.machine import end_with_parent

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # items per worker that are submitted in advance
START_S = 120.0  # seconds for a new process to start: on a busy machine, the import of torch is slow
STARTS = 3  # attempts to start a worker before the pool gives up


class WorkerLost(Exception):
    """A worker died during an item, or exceeded its time limit (`timed_out`). The item has no result."""

    def __init__(self, reason: str, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


class PoolError(RuntimeError):
    """Worker processes cannot be started."""


class ProcessPool:
    """A pool of `workers` processes. With 0 workers, this process does the work itself.

    Each process is started when it is first needed, and calls `begin` once. `preload` names a module that a server
    process imports once; new workers are then forked from the server and start in milliseconds (not on Windows).
    Without `preload`, each worker is a new interpreter. In both cases no process with running threads is forked.
    `children` says whether workers start processes of their own.

    The work must be a function that can be imported by name. An exception that it raises is raised here again. Workers
    ignore Ctrl-C, because this process handles it. They end when this process ends, even if it is killed.
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
        new = partial(_Worker, begin, start_method(preload if workers else None), not children)
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
        """Kill all processes at once, also those that are busy."""
        with self._closing:
            self._closed = True
            for worker in self._all:
                worker.end()
        self._threads.shutdown(cancel_futures=True)

    def start(self) -> None:
        """Start all processes now and wait until they are ready. Raises `PoolError` if they do not start."""
        for worker in self._all:
            self._revive(worker, replaced=False)
        for worker in self._all:
            self._wait_ready(worker)

    def call(self, work: Callable[[T], R], item: T, seconds: float | None = None, deadline: float | None = None) -> R:
        """Return `work(item)` from a worker. Any thread may call this.

        Raises `WorkerLost` if the worker dies or takes more than `seconds`, `queue.Empty` if no worker is free by
        `deadline` (a time of `time.monotonic`), and `PoolError` if no process can be started.
        """
        if not self.workers:
            return work(item)
        worker = self._idle.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        try:
            for _ in range(STARTS):
                self._wait_ready(worker)
                if worker.send((work, item)):
                    break
                self._revive(worker)  # it died while it was idle
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
        """Yield `work(item)` of all items in their order. At most `AHEAD` items per worker are read in advance.

        If an item ends its worker twice, its result is `lost(item)`. Without `lost`, the first time raises
        `WorkerLost`. Several maps may run at the same time.
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
        """Yield lists of `(item, work(item))` as they are done, in any order.

        `chunk` is the number of items that a worker gets at a time. `lost` is that of `map`.
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
        # Repeat the items one by one, to know which of them ends its worker.
        return [(item, self._call_last(work, item, lost)) for item in items]

    def _call_twice(self, work: Callable[[T], R], item: T, lost: Callable[[T], R] | None) -> R:
        try:
            return self.call(work, item)
        except WorkerLost:
            if lost is None or self._closed:
                raise
        # If the item is not at fault and something else killed the worker, the second attempt succeeds.
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
        """Start a new process for a worker. Raises `WorkerLost` if the pool is closed."""
        with self._closing:
            if self._closed:
                raise WorkerLost("the pool is closed")
            self.replaced += replaced and worker.started
            worker.start()


class _Worker:
    """A worker process and the pool's end of its pipe."""

    def __init__(self, begin: Callable[[], None] | None, context: Any, daemon: bool) -> None:
        self._begin, self._context, self._daemon = begin, context, daemon
        self._process: Any = None
        self._pipe: Connection | None = None
        self._ready = False

    @property
    def started(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start a process. An earlier process of this worker is killed."""
        self.end()
        if self._pipe is not None:
            self._pipe.close()
        self._pipe, other_end = self._context.Pipe()
        self._process = self._context.Process(
            target=_serve, args=(other_end, self._begin), name="cover-worker", daemon=self._daemon
        )
        self._ready = False
        self._process.start()
        other_end.close()  # only the process has this end, so that the pipe closes when the process ends

    def is_ready(self) -> bool:
        """Wait for the first message of a new process. False if there is no process, or if it died or is too slow."""
        if not self._ready and self._pipe is not None:
            try:
                self._ready = self.receive(START_S)
            except WorkerLost:
                return False
        return self._ready

    def send(self, job: object) -> bool:
        """Send a job to the process. False if the process has ended."""
        assert self._pipe is not None
        data = pickle.dumps(job)
        try:
            self._pipe.send_bytes(data)
        except OSError:
            self._ready = False
            return False
        return True

    def receive(self, seconds: float | None) -> Any:
        """The next message of the process. Raises `WorkerLost` if it ends, or sends none within `seconds`."""
        assert self._pipe is not None
        try:
            if self._pipe.poll(seconds):
                return pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise WorkerLost("the worker process died") from None
        raise WorkerLost(f"it took longer than {seconds:g} s", timed_out=True)

    def end(self) -> None:
        """Kill the process. This also closes the pipe, and a thread that waits in `receive` continues."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def start_method(preload: str | None) -> BaseContext:
    """How processes are started: as new interpreters, or forked from a server that has imported the module `preload`.

    This starts the server. There is one server in a process; it keeps the module of its first call.
    """
    if preload is None or sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    from multiprocessing.forkserver import ensure_running

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    with _ignored_interrupts():
        ensure_running()
    return context


@contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Processes that are started inside ignore Ctrl-C, also while they import modules."""
    if threading.current_thread() is not threading.main_thread():  # no other thread may change signals
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)


# --- in the worker ----------------------------------------------------------------------------------------------------


def _serve(pipe: Connection, begin: Callable[[], None] | None) -> None:
    """Do the jobs from the pipe until the process is killed or its parent ends."""
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
    """Do a pickled job. Returns `(True, result)` or `(False, exception)`, pickled."""
    try:
        work, item = pickle.loads(job)
        return pickle.dumps((True, work(item)))
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        try:
            return pickle.dumps((False, error))
        except Exception:  # the exception cannot be pickled
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))


def _each(work: Callable[[T], R], items: Sequence[T]) -> list[tuple[T, R]]:
    return [(item, work(item)) for item in items]
