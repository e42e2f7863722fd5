"""Probing of media files in worker processes. A file that crashes the decoder does not stop the others."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from cover.media.decode import MediaError, is_picture, probe, probe_deep
from cover.media.source import Media
from cover.processes import ProcessPool

Stamp = tuple[int, int]  # size in bytes, modification time in ns
Stat = Stamp | str  # or the reason why a file has no stamp
ABSENT = "no such file"
CRASHED = "the decoder crashed on it"
STAT_CHUNK = 1024
_CHUNK = 32
_STAT_THREADS = 16  # a stat call waits for the file system, so many threads are useful


@dataclass(frozen=True, slots=True)
class Facts:
    """The result of probing a file. The fields are those of `manifest.Row`."""

    state: str
    why: str = ""
    frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    deep: bool = False
    damage: str = ""


def probe_file(path: str, media: Media, deep: bool = False) -> Facts:
    """Probe one file, with `deep` to its last frame. It raises nothing for a damaged file; `state` has the result.

    A picture among videos is a video of one frame. Only some data sets take it (`stills` in the catalog).
    """
    damage, still = "", media == "image" or is_picture(path)
    kind: Media = "image" if still else "video"
    try:
        if deep:
            result, damage = probe_deep(path, kind)
        else:
            result = probe(path, kind)
    except MediaError as error:
        return Facts("unreadable" if os.path.exists(path) else "missing", str(error), deep=deep)
    measured = (result.frames, result.fps, result.width, result.height, result.codec, deep)
    if not still and result.frames < 2:
        return Facts("too_short", f"{result.frames} decodable frame", *measured)
    return Facts("ok", "", *measured, damage)


def stat_files(paths: Sequence[str]) -> Iterator[list[Stat]]:
    """The stamp of each file in order, or the reason why it has none, in lists of `STAT_CHUNK` files."""
    chunks = (paths[first : first + STAT_CHUNK] for first in range(0, len(paths), STAT_CHUNK))
    with ThreadPoolExecutor(_STAT_THREADS) as threads:
        waiting: deque[Future[list[Stat]]] = deque()
        for chunk in chunks:
            waiting.append(threads.submit(_stat_all, chunk))
            if len(waiting) > 4 * _STAT_THREADS:  # bounds the memory for a million paths
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _stat_all(paths: Sequence[str]) -> list[Stat]:
    return [_stat(path) for path in paths]


def _stat(path: str) -> Stat:
    try:
        result = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character in the name
        return ABSENT
    except OSError as error:
        return error.strerror or str(error)
    return result.st_size, result.st_mtime_ns


def stamps(paths: Sequence[str]) -> dict[str, Stamp]:
    """Path -> stamp of each file that exists."""
    results = (stat for part in stat_files(paths) for stat in part)
    return {path: stat for path, stat in zip(paths, results) if isinstance(stat, tuple)}


class Prober(ProcessPool):
    """A process pool that probes files. `deep`: decode every file to its last frame."""

    def __init__(self, workers: int, deep: bool = False) -> None:
        super().__init__(workers)
        self.deep = deep

    def probe(self, paths: Sequence[str], media: Media) -> Iterator[list[tuple[str, Facts]]]:
        """`(path, facts)` of all files, in chunks, in the order in which they finish."""
        crashed = Facts("unreadable", CRASHED, deep=self.deep)
        work = partial(probe_file, media=media, deep=self.deep)
        yield from self.as_completed(work, paths, _CHUNK, lambda path: crashed)
