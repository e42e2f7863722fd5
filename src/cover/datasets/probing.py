"""What is in each of these files? Processes that open every file once, and go on where a file crashes the decoder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

from cover.datasets.crew import Crew
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


class Prober(Crew):
    """A `Crew` that probes files."""

    def probe(self, paths: Sequence[str], media: Media) -> Iterator[list[tuple[str, Facts]]]:
        """`(path, facts)` of all files, in chunks as they are done, in no particular order."""
        yield from self.run(partial(examine, media=media), paths, _CHUNK, Facts("unreadable", "the decoder crashed on it"))
