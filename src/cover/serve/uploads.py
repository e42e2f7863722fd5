"""Uploads: received into a private folder, under names of the server's own, and removed whatever happens."""

from __future__ import annotations

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
YOUNG_S = 60.0  # a folder without a lock may belong to a server that is just starting
FIELD = "file"
RAW_TYPES = ("video/", "image/", "application/octet-stream")


class UploadFolder:
    """The folder of one server. Those of servers that were killed are removed when another starts."""

    def __init__(self, parent: Path | None = None) -> None:
        base = Path(parent or tempfile.gettempdir())
        _remove_stale(base)
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # for the owner's eyes alone
        self._lock = _locked(self.folder / LOCK)

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A new place for an upload; what lies there at the end is removed."""
        path = self.folder / secrets.token_hex(16)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path) -> IO[bytes]:
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
    """Whether the server of a folder of ours is gone: its lock died with it. Raises OSError where it is held."""
    result = folder.lstat()
    if result.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
        return False
    if not (folder / LOCK).exists():
        return time.time() - result.st_mtime > YOUNG_S
    _locked(folder / LOCK).close()
    return True


# --- what comes in


async def receive(chunks: AsyncIterator[bytes], content_type: str, path: Path) -> None:
    """Write the file in a request body to `path`: the whole body, or the part `file` of a form. Raises `Refused`."""
    kind, options = _parsed(content_type)
    with path.open("xb") as out:
        if kind == "multipart/form-data":
            await _receive_form(chunks, options.get(b"boundary", b""), out)
        elif kind.startswith(RAW_TYPES):
            async for chunk in chunks:
                out.write(chunk)
        else:
            raise Refused(
                415,
                f"send a form with a part `{FIELD}` (multipart/form-data), or the file itself as video/*, image/* or {RAW_TYPES[-1]}",
            )


def _parsed(content_type: str) -> tuple[str, dict[bytes, bytes]]:
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(content_type)
    return kind.decode("latin-1").lower(), options


async def _receive_form(chunks: AsyncIterator[bytes], boundary: bytes, out: IO[bytes]) -> None:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    if not boundary:
        raise Refused(400, "the form has no boundary")
    form = _Form(out)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        async for chunk in chunks:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, f"the form is damaged: {error}") from None
    if not form.complete:
        raise Refused(400, "the form is cut off")
    if not form.found:
        raise Refused(422, f"the form has no part `{FIELD}`")


class _Form:
    """Takes the events of a form's parser; of all parts only the one `file` is kept. The name it claims for its file is
    not looked at.
    """

    def __init__(self, out: IO[bytes]) -> None:
        self.out, self.found, self.complete = out, False, False
        self._header, self._value, self._wanted = b"", b"", False

    def callbacks(self) -> dict[str, Any]:
        """As MultipartParser wants them."""
        names = (
            "on_part_begin",
            "on_header_begin",
            "on_header_field",
            "on_header_value",
            "on_header_end",
            "on_part_data",
            "on_end",
        )
        return {name: getattr(self, name) for name in names}

    def on_part_begin(self) -> None:
        self._wanted = False

    def on_header_begin(self) -> None:
        self._header = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

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
