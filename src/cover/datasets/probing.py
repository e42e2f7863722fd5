"""What is in each of these files? Processes that open every file once, and go on where a file crashes the decoder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Literal

from cover.machine import end_with_parent
from cover.media.decode import MediaError, probe

Media = Literal["video", "image"]
Stamp = tuple[int, int]  # size in bytes, modification time in ns
_CHUNK = 32
_STAT_THREADS = 16  # a stat waits on the file system, not on this process


@dataclass(frozen=True)
class Facts:
    """What a probe found: the fields of `manifest.Row` of the same names."""

    state: str
    why: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""


_Found = list[tuple[str, Facts]]


def examine(path: str, media: Media) -> Facts:
    """Probe one file. Never raises for a bad one: that is its state."""
    try:
        found = probe(path, media)
    except MediaError as error:
        return Facts("unreadable" if os.path.exists(path) else "missing", str(error))
    few = media == "video" and found.frames < 2
    return Facts(
        "too_short" if few else "ok", f"{found.frames} decodable frame" if few else "",
        found.frames, found.fps, found.width, found.height, found.codec,
    )  # fmt: skip


def stamps(paths: Sequence[str]) -> dict[str, Stamp]:
    """Size and modification time of each file; those that do not exist are left out."""
    chunks = [paths[first : first + 1024] for first in range(0, len(paths), 1024)]
    with ThreadPoolExecutor(_STAT_THREADS) as threads:
        return {path: stamp for part in threads.map(_stamps, chunks) for path, stamp in part}


def _stamps(paths: Sequence[str]) -> list[tuple[str, Stamp]]:
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):  # ValueError: a null character in a listed name
            continue
        found.append((path, (status.st_size, status.st_mtime_ns)))
    return found


class Prober:
    """A pool of `workers` processes, started at the first file and kept until the end; 0 workers probe in this process."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def probe(self, paths: Sequence[str], media: Media) -> Iterator[_Found]:
        """`(path, facts)` of all files, in chunks as they are done, in no particular order."""
        chunks = [paths[first : first + _CHUNK] for first in range(0, len(paths), _CHUNK)]
        if not self._workers:
            yield from (_examine_all(chunk, media) for chunk in chunks)
            return
        chunks.reverse()
        running: dict[Future[_Found], Sequence[str]] = {}
        while chunks or running:
            try:
                while chunks and len(running) < 2 * self._workers:
                    future = self._submit(chunks[-1], media)
                    running[future] = chunks.pop()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                    del running[future]
            except BrokenProcessPool:
                self.__exit__()
                for chunk in running.values():
                    yield from self._one_by_one(chunk, media)
                running = {}

    def _submit(self, paths: Sequence[str], media: Media) -> Future[_Found]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"), initializer=_begin)
        return self._pool.submit(_examine_all, paths, media)

    def _one_by_one(self, paths: Sequence[str], media: Media) -> Iterator[_Found]:
        """After a crash: one file at a time, so that the one at fault is known."""
        for path in paths:
            try:
                yield self._submit([path], media).result()
            except BrokenProcessPool:
                self.__exit__()
                yield [(path, Facts("unreadable", "the decoder crashed on it"))]


def _examine_all(paths: Sequence[str], media: Media) -> _Found:
    return [(path, examine(path, media)) for path in paths]


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the parent's
    end_with_parent()
