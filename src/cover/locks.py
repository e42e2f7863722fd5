"""Locks on output folders and files, so that two commands never write into one at the same time.

The operating system ends a lock when its process ends, also if the process is killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cover.console import say
from cover.errors import UserError

LOCK = ".lock"  # the name of the lock file in a locked folder; it is not removed
_held: set[str] = set()  # the real paths that this process has locked


@contextmanager
def alone_in(folder: Path, key: str = "out") -> Iterator[None]:
    """Create a folder if it does not exist, and lock it during the block. A nested lock on it has no effect.

    `key`: the option or field that names the folder, for messages. Raises `UserError` if another process has locked it,
    or if the folder cannot be written. On a file system without locks, that is said and the block runs.
    """
    place = os.path.realpath(folder)
    if place in _held:
        yield
        return
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
        file = _locked(folder / LOCK, f"{key}: {folder}")
    except OSError as error:
        raise UserError(f"{key}: {folder}: cannot be written: {error.strerror}") from None
    with file:
        _held.add(place)
        try:
            yield
        except UserError:
            _remove_if_empty(folder, is_new)
            raise
        finally:
            _held.discard(place)


def _remove_if_empty(folder: Path, is_new: bool) -> None:
    """Remove a folder that was made for this command, if the command was refused before it wrote anything."""
    if is_new and [path.name for path in folder.iterdir()] == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()


def _locked(path: Path, what: str) -> IO[str]:
    """An open lock file that is locked, with this process in it as its owner."""
    file = path.open(encoding="utf-8", errors="replace")
    try:
        locked = lock(file, what)
    except OSError:  # network file systems lock only files that are open for writing
        file.close()
        file = path.open("r+", encoding="utf-8", errors="replace")
        locked = lock(file, what)
    if locked:
        owner = shlex.join(["cover", *sys.argv[1:]])
        path.write_text(f"process {os.getpid()} on {os.uname().nodename}: {owner}\n", encoding="utf-8")
    return file


def lock(file: IO[Any], what: str) -> bool:
    """Lock a file until it is closed. False on a file system without locks.

    `what`: the output that it protects, for messages. Raises `UserError` if another process has locked it, and OSError
    if the file system locks only files that are open for writing.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        by = f" ({owner})" if (owner := _owner(file)) else ""
        file.close()
        raise UserError(f"{what}: another command is writing there{by}; wait for it, or choose another place") from None
    except OSError as error:
        if error.errno == errno.EBADF:
            raise
        say(f"{what}: cannot be locked ({error.strerror}): make sure that no other command writes there")
        return False
    return True


def _owner(file: IO[Any]) -> str:
    """The process that locked a folder; empty for the lock of another file."""
    return str(file.readline()).strip() if file.name.endswith(LOCK) else ""


def wait_and_lock(file: IO[Any]) -> None:
    """Lock a file until it is closed; wait while another process has locked it. No effect without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise
