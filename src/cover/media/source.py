"""Where do the bytes of a sample lie? In a file of their own, in a stretch of a shard, or in either of them behind a URL.

URLs (`s3://`, `gs://`, `hf://`, `https://`, ...) go through fsspec, with whatever package it wants for the protocol.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cover.media.results import MediaError

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Part:
    """`length` bytes from `offset` on of a file or URL `path`: one member of a shard. Its name in messages is that of the shard."""

    path: str
    offset: int
    length: int

    def __fspath__(self) -> str:
        return self.path


Source = AnyPath | Part


def is_url(path: AnyPath) -> bool:
    """Whether a path is behind a protocol, as in `s3://bucket/name`."""
    return "://" in os.fspath(path)


def is_plain(source: Source) -> bool:
    """Whether it is a local file or folder of its own, which libraries can open by name."""
    return not isinstance(source, Part) and not is_url(source)


def check_source(source: Source) -> None:
    """Raises MediaError for what no library should be asked to open. What is behind a URL is not asked for."""
    if is_url(source):
        return
    try:
        found = os.stat(source)
    except OSError as error:
        raise MediaError(error.strerror or "cannot be opened") from error
    except ValueError as error:  # a null byte in the name
        raise MediaError("not a valid file name") from error
    if not stat.S_ISREG(found.st_mode):
        raise MediaError("not a file")
    if found.st_size == 0:
        raise MediaError("empty file")


def read_source(source: Source) -> bytes:
    """All bytes of a source. Raises MediaError."""
    expected: type[Exception] = Exception if is_url(source) else OSError  # each store of fsspec has exceptions of its own
    try:
        return read_bytes(source)
    except expected as error:
        raise MediaError(f"cannot be read: {getattr(error, 'strerror', None) or error or type(error).__name__}") from error


def read_bytes(source: Source) -> bytes:
    """All bytes of a source. Raises OSError, also where a part is not whole; a store may raise others."""
    path = os.fspath(source)
    if isinstance(source, Part):
        data = _read(path, source.offset, source.offset + source.length)
        if len(data) != source.length:
            raise OSError(f"the shard ends {source.length - len(data)} bytes too early")
        return data
    return _read(path, 0, None)


def _read(path: str, start: int, end: int | None) -> bytes:
    if is_url(path):
        system, name = _system(path.partition("://")[0]), path
        found: bytes = system.cat_file(name, start=start, end=end)
        return found
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
