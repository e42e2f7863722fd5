"""Where the bytes of a sample lie, and what reading them gives: measures, frames or a problem.

A sample is a file of its own, a stretch of a shard, or either of them behind a URL. URLs (`s3://`, `gs://`, `hf://`,
`https://`, ...) go through fsspec, with whatever package it wants for the protocol.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

Media = Literal["video", "image"]
AnyPath = str | os.PathLike[str]
MAX_PIXELS = 100_000_000
# Containers round time stamps to their tick, often a whole millisecond: a frame may be stamped this much late. In
# seconds.
TOLERANCE = 1e-3


class MediaError(Exception):
    """What is wrong with a file. `str(error)` is a short reason without the file's name.

    `errno`: the system's error number where the system refused a call, None where the file itself is at fault.
    """

    def __init__(self, reason: str, errno: int | None = None) -> None:
        super().__init__(reason)
        self.errno = errno


@dataclass(frozen=True)
class FileProblem:
    """A file that could not be read, or not to its end, as reports and logs carry it.

    `kind`: "unreadable" where nothing of it can be used, "partial" where what lies before a damage can. `dataset`: the
    data set that it was read for, empty outside a mixture. As text it is one line: `DATASET: PATH: KIND: REASON`.
    """

    path: str
    kind: Literal["unreadable", "partial"]
    reason: str
    dataset: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.dataset, self.path, self.kind, self.reason) if part)


@dataclass(frozen=True)
class Probe:
    """What a file holds. Width and height are pixels as displayed: after rotation and pixel aspect.

    `fps` is frames per second on average, `duration` in seconds (the last frame's own time on screen included), `start`
    the first frame's time stamp in seconds. An image has one frame, and fps, duration and start of 0.
    """

    frames: int
    fps: float
    width: int
    height: int
    codec: str
    duration: float
    start: float


@dataclass(frozen=True)
class Decoded:
    """`pictures` uint8 (M, H, W, 3) RGB, each there once; `shown` int64 (N,), which of them answers each of the N
    wanted times; `damage` is what cut the file short, None if nothing did, and `partial` its reason.
    """

    pictures: np.ndarray
    shown: np.ndarray
    damage: MediaError | None

    @property
    def partial(self) -> str | None:
        """Why the file was not read to its end."""
        return None if self.damage is None else str(self.damage)

    @property
    def frames(self) -> np.ndarray:
        """uint8 (N, H, W, 3), one per wanted time."""
        if np.array_equal(self.shown, np.arange(len(self.pictures))):
            return self.pictures
        return self.pictures[self.shown]


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises MediaError for more pixels than anyone means to hold."""
    if width * height > max_pixels:
        raise MediaError(f"{width}x{height} pixels, more than {max_pixels} allowed")


# --- bytes


@dataclass(frozen=True)
class ByteRange:
    """`length` bytes from `offset` on of a file or URL `path`: one member of a shard. Its name in messages is that of
    the shard.
    """

    path: str
    offset: int
    length: int

    def __fspath__(self) -> str:
        return self.path


Source = AnyPath | ByteRange


def is_url(path: AnyPath) -> bool:
    """Whether a path is behind a protocol, as in `s3://bucket/name`."""
    return "://" in os.fspath(path)


def is_plain(source: Source) -> bool:
    """Whether it is a local file or folder of its own, which libraries can open by name."""
    return not isinstance(source, ByteRange) and not is_url(source)


def check_source(source: Source) -> None:
    """Raises MediaError for what no library should be asked to open. What is behind a URL is not asked for."""
    if is_url(source):
        return
    try:
        result = os.stat(source)
    except OSError as error:
        raise MediaError(error.strerror or "cannot be opened", error.errno) from error
    except ValueError as error:  # a null byte in the name
        raise MediaError("not a valid file name") from error
    if not stat.S_ISREG(result.st_mode):
        raise MediaError("not a file")
    if result.st_size == 0:
        raise MediaError("empty file")


def read_source(source: Source) -> bytes:
    """All bytes of a source. Raises MediaError."""
    # each store of fsspec has exceptions of its own
    expected: type[Exception] = Exception if is_url(source) else OSError
    try:
        return read_bytes(source)
    except expected as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise MediaError(f"cannot be read: {reason}", getattr(error, "errno", None)) from error


def read_bytes(source: Source) -> bytes:
    """All bytes of a source. Raises OSError, also where a part is not whole; a store may raise others."""
    path = os.fspath(source)
    if isinstance(source, ByteRange):
        data = _read(path, source.offset, source.offset + source.length)
        if len(data) != source.length:
            raise OSError(f"the shard ends {source.length - len(data)} bytes too early")
        return data
    return _read(path, 0, None)


def _read(path: str, start: int, end: int | None) -> bytes:
    if is_url(path):
        system, name = _system(path.partition("://")[0]), path
        result: bytes = system.cat_file(name, start=start, end=end)
        return result
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if end is None else end - start)


@lru_cache(maxsize=8)
def _system(protocol: str) -> Any:
    """One client for each protocol and process: it keeps its connections."""
    import fsspec

    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise OSError(f"{protocol}:// needs another package: {error}") from None
    except ValueError as error:
        raise OSError(str(error)) from None
