"""Uploads: a private folder with file names of the server's own, and the reading of request bodies into it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cover.serve.middleware import Refused

PREFIX = "cover-serve-"
LOCK = "lock"
YOUNG_S = 60.0  # seconds; a newer folder without a lock may belong to a server that is starting
FIELD = "file"  # of a form
MOST_PARTS, LONGEST_HEADERS = 64, 16 * 1024  # of a form: number of parts, bytes of the headers of all parts
LONGEST_BOUNDARY = 70  # bytes (RFC 2046, section 5.1.1)
RAW_TYPES = ("video/", "image/", "application/octet-stream")


class UploadFolder:
    """The upload folder of one server. It also removes the folders of servers that were killed."""

    def __init__(self, parent: Path | None = None) -> None:
        base = Path(parent or tempfile.gettempdir())
        _remove_stale(base)
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # only the owner can read it
        self._lock = _lock(self.folder / LOCK)

    def close(self) -> None:
        """Remove the folder and all files in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A new path for an upload. A file at this path is removed at the end of the block."""
        path = self.folder / secrets.token_hex(16)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> IO[bytes]:
    """Open and lock a file. Raises OSError if another process has the lock. The lock ends with the process."""
    file = path.open("wb")
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _remove_stale(base: Path) -> None:
    for folder in base.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ImportError):
            if _is_stale(folder):
                shutil.rmtree(folder)


def _is_stale(folder: Path) -> bool:
    """Whether the server of an upload folder of this user has ended. Raises OSError if it has not."""
    status = folder.lstat()
    if status.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
        return False
    if not (folder / LOCK).exists():
        return time.time() - status.st_mtime > YOUNG_S
    _lock(folder / LOCK).close()
    return True


# --- request bodies ---------------------------------------------------------------------------------------------------


async def receive(chunks: AsyncIterator[bytes], content_type: str, path: Path) -> None:
    """Write the file in a request body to `path`: the whole body, or the part `file` of a form.

    Raises `Refused` for a body of another type, and OSError if the disk is full.
    """
    kind, options = _parsed(content_type)
    with path.open("xb") as out:
        if kind == "multipart/form-data":
            await _receive_form(chunks, options.get(b"boundary", b""), out)
        elif kind.startswith(RAW_TYPES):
            async for chunk in chunks:
                out.write(chunk)
        else:
            form = f"a form with a part `{FIELD}` (multipart/form-data)"
            raise Refused(415, f"send {form}, or the file itself as video/*, image/* or {RAW_TYPES[-1]}")


def _parsed(content_type: str) -> tuple[str, dict[bytes, bytes]]:
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(content_type)
    return kind.decode("latin-1").lower(), options


async def _receive_form(chunks: AsyncIterator[bytes], boundary: bytes, out: IO[bytes]) -> None:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    if not boundary:
        raise Refused(400, "the form has no boundary")
    if len(boundary) > LONGEST_BOUNDARY:
        raise Refused(400, f"the form's boundary has more than {LONGEST_BOUNDARY} bytes")
    form = _Form(out)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        async for chunk in chunks:
            # In a thread: the parser takes some microseconds for each byte that may begin a boundary, and a body of
            # such bytes must not hold up the requests of others.
            await asyncio.to_thread(parser.write, chunk)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, f"the form is damaged: {error}") from None
    if not form.complete:
        raise Refused(400, "the form is cut off")
    if not form.found:
        raise Refused(422, f"the form has no part `{FIELD}`")


class _Form:
    """Handler of the events of a form's parser. It writes the part `file`. Other parts and file names are ignored.

    Every part costs time, however small it is, so a form may have `MOST_PARTS` parts with `LONGEST_HEADERS` bytes of
    headers.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self.out, self.found, self.complete = out, False, False
        self._parts = self._header_bytes = 0
        self._header, self._value, self._wanted = b"", b"", False

    def callbacks(self) -> dict[str, Any]:
        """The handlers by name, for MultipartParser."""
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

    def on_part_begin(self) -> None:
        self._wanted = False
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise Refused(400, f"the form has more than {MOST_PARTS} parts; send the part `{FIELD}` alone")

    def on_header_begin(self) -> None:
        self._header = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._count(end - start)

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count(end - start)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > LONGEST_HEADERS:
            raise Refused(400, f"the headers of the form's parts have more than {LONGEST_HEADERS // 1024} KiB")

    def on_header_end(self) -> None:
        from python_multipart.multipart import parse_options_header

        if self._header.lower() != b"content-disposition":
            return
        if parse_options_header(self._value)[1].get(b"name") != FIELD.encode():
            return
        if self.found:
            raise Refused(422, f"the form has several parts `{FIELD}`; send one file at a time")
        self._wanted = self.found = True

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self.out.write(data[start:end])

    def on_end(self) -> None:
        self.complete = True
