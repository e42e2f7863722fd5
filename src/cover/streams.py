"""The standard streams of a command. A stream that is closed, full or no longer read does not end the work.

Lines on stderr that cannot be written are dropped. Results that stdout cannot take end the command with one line.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from cover.errors import UserError


class _Stream:
    """A text stream whose errors go to `on_error`."""

    def __init__(self, stream: IO[str], on_error: Callable[[IO[str], OSError], None]) -> None:
        self._stream, self._on_error = stream, on_error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._on_error(self._stream, error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._on_error(self._stream, error)


def _drop(stream: IO[str], error: OSError) -> None:
    """What was to be written is lost. The next line is tried again, because a disk may have room again."""
    with suppress(OSError, ValueError):
        _forget(stream)


def _report(stream: IO[str], error: OSError) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or else the flush at the end fails again
    if isinstance(error, BrokenPipeError):
        raise error
    raise UserError(f"stdout: cannot be written: {error.strerror or error}") from None


def _forget(stream: IO[str]) -> None:
    """Empty the buffer of a stream that cannot be written, or else its lines would be written with a later one."""
    saved = os.dup(stream.fileno())
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
        stream.flush()
    finally:
        os.dup2(saved, stream.fileno())
        os.close(saved)
        os.close(null)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Replace stdout and stderr during the block.

    In it, a write to stdout raises `UserError` if stdout cannot be written, as on a full disk, and `BrokenPipeError` if
    its reader has ended. A write to stderr never fails. Closed streams are as if they were `/dev/null`: a file that is
    opened later does not take their place.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    before = sys.stdout, sys.stderr
    out, err = (stream or open(os.devnull, "w", encoding="utf-8") for stream in before)  # noqa: SIM115
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are not valid text
    sys.stdout, sys.stderr = _Stream(out, _report), _Stream(err, _drop)
    try:
        yield
    finally:
        with suppress(UserError, BrokenPipeError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
