"""Sources of media (files, byte ranges of shards, URLs), and the records that reading them returns.

fsspec reads URLs (`s3://`, `gs://`, `hf://`, `https://`, ...). It needs another package for some protocols.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from traceback import walk_tb
from types import FrameType
from typing import Any, Literal

import numpy as np

Media = Literal["video", "image"]
AnyPath = str | os.PathLike[str]
# Endings of files with one picture. A gif is not among them, because it may be a video.
PICTURES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif"),
        *(".tiff", ".ppm", ".pgm", ".jp2", ".avif", ".heic", ".heif"),
    )
)
MAX_PIXELS = 100_000_000
# Seconds that the time stamp of a frame may be late. Containers round time stamps to their tick, often a millisecond.
TOLERANCE = 1e-3


class MediaError(Exception):
    """A file cannot be read. `str(error)` is a short reason without the name of the file.

    `errno`: the error number of a failed system call. None if the content of the file is the reason.
    """

    def __init__(self, reason: str, errno: int | None = None) -> None:
        super().__init__(reason)
        self.errno = errno


# Packages that decode media. What they raise is due to the file that they read.
_DECODERS = frozenset({"av", "PIL", "pillow_heif", "pi_heif", "pillow_avif", "pillow_jxl", "torchcodec"})


@contextmanager
def decoder_errors(kind: str) -> Iterator[None]:
    """Turn any exception that a decoder's own code raises inside the block into a MediaError `KIND: REASON`.

    So one odd file never ends the work on others. An exception of any other code keeps its traceback, as does a lack of
    memory.
    """
    try:
        yield
    except (MediaError, MemoryError):
        raise
    except Exception as error:
        if _raised_in(error) not in _DECODERS:
            raise
        name = "" if isinstance(error, OSError | SyntaxError) else type(error).__name__
        reason = ": ".join(filter(None, (kind, name, str(error).strip())))
        raise MediaError(reason, getattr(error, "errno", None)) from error


def _raised_in(error: BaseException) -> str:
    """The package whose code raised an exception: this one or a decoder, whichever has the innermost frame."""
    packages = [_package(frame) for frame, _ in walk_tb(error.__traceback__)]
    return next((package for package in reversed(packages) if package == "cover" or package in _DECODERS), "")


def _package(frame: FrameType) -> str:
    """The package of a frame. Compiled modules have no name there, but a relative file name, as `av/frame.py`."""
    name = frame.f_globals.get("__name__") or frame.f_code.co_filename.replace("/", ".")
    return str(name).partition(".")[0]


@dataclass(frozen=True)
class FileProblem:
    """The record of a damaged file in reports and logs.

    `kind`: "unreadable" if no frame can be used, "partial" if the frames before the damage can be used. `dataset`: the
    data set that the file belongs to, empty outside a mixture. `str()` gives one line, `DATASET: PATH: KIND: REASON`.
    """

    path: str
    kind: Literal["unreadable", "partial"]
    reason: str
    dataset: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.dataset, self.path, self.kind, self.reason) if part)


@dataclass(frozen=True)
class Probe:
    """The properties of a media file.

    `frames`: number of frames. `fps`: mean frames per second. `width`, `height`: pixels as displayed, after rotation
    and pixel aspect. `duration`: seconds, with the display time of the last frame. `start`: time stamp of the first
    frame in seconds. An image has 1 frame, and its `fps`, `duration` and `start` are 0.
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
    """The result of decoding a file at N times.

    `pictures`: uint8 `(M, H, W, 3)` RGB, the M different frames. `shown`: int64 `(N,)`, index into `pictures` of the
    frame at each time. `damage`: the damage that ended the file early, None without any.
    """

    pictures: np.ndarray
    shown: np.ndarray
    damage: MediaError | None

    @property
    def partial(self) -> str | None:
        """The reason of the damage, None without any."""
        return None if self.damage is None else str(self.damage)

    @property
    def frames(self) -> np.ndarray:
        """uint8 `(N, H, W, 3)` RGB, the frame at each of the N times."""
        if np.array_equal(self.shown, np.arange(len(self.pictures))):
            return self.pictures  # no copy
        return self.pictures[self.shown]


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises MediaError if a frame has more than `max_pixels` pixels, which would take too much memory."""
    if width * height > max_pixels:
        raise MediaError(f"{width}x{height} pixels, more than {max_pixels} allowed")


# --- transparency ---

BACKGROUND = 255  # white: the colour behind transparent parts of images and videos, as FFmpeg has it for GIF


def over_background(rgba: np.ndarray) -> np.ndarray:
    """uint8 `(H, W, 4)` with alpha, not premultiplied -> uint8 `(H, W, 3)` over `BACKGROUND`."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = rgba[..., :3] * alpha + BACKGROUND * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


# --- bytes ---


@dataclass(frozen=True)
class ByteRange:
    """One member of a shard: `length` bytes of the file or URL `path`, from byte `offset` on.

    Messages name the shard.
    """

    path: str
    offset: int
    length: int

    def __fspath__(self) -> str:
        return self.path


Source = AnyPath | ByteRange


def is_url(path: AnyPath) -> bool:
    """Whether a path has a protocol, such as `s3://bucket/name`."""
    return "://" in os.fspath(path)


def is_plain(source: Source) -> bool:
    """Whether a source is a whole local file or folder, which libraries can open by name."""
    return not isinstance(source, ByteRange) and not is_url(source)


def check_source(source: Source) -> None:
    """Raises MediaError if a local source is not a regular file with content. URLs are not checked."""
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
    """All bytes of a source. Raises MediaError if they cannot be read."""
    # each fsspec store has its own exceptions
    expected: type[Exception] = Exception if is_url(source) else OSError
    try:
        return read_bytes(source)
    except expected as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise MediaError(f"cannot be read: {reason}", getattr(error, "errno", None)) from error


def read_bytes(source: Source) -> bytes:
    """All bytes of a source. Raises OSError, also if a shard is too short. A URL store may raise other exceptions."""
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
    """The fsspec client of a protocol. Each process has one, which reuses its connections."""
    import fsspec

    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise OSError(f"{protocol}:// needs another package: {error}") from None
    except ValueError as error:
        raise OSError(str(error)) from None
