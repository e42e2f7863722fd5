"""Locks on output folders and files, so that two commands never write into one at the same time.

The operating system ends a lock when its process ends, also if the process is killed.
"""

from __future__ import annotations

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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The lock is on a file that is open for writing, because network file systems cannot lock folders.
        file = (folder / LOCK).open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{key}: {folder}: cannot be made or written to: {error.strerror}") from None
    with file:
        if lock(file, f"{key}: {folder}"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {os.uname().nodename}: {shlex.join(['cover', *sys.argv[1:]])}\n")
            file.flush()
        _held.add(place)
        try:
            yield
        finally:
            _held.discard(place)


def lock(file: IO[Any], what: str) -> bool:
    """Lock a file that is open for writing until it is closed. False on a file system without locks.

    `what`: the output that it protects, for messages. Raises `UserError` if another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        by = f" ({owner})" if (owner := _owner(file)) else ""
        raise UserError(f"{what}: another command is writing there{by}; wait for it, or choose another place") from None
    except OSError as error:
        say(f"{what}: cannot be locked ({error.strerror}): make sure that no other command writes there")
        return False
    return True


def _owner(file: IO[Any]) -> str:
    """The process that locked a folder; empty for the lock of another file."""
    if not file.name.endswith(LOCK):
        return ""
    file.seek(0)
    return str(file.readline()).strip()
