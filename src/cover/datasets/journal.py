"""What had been found when a run ended early, or by jobs that each probed a share? Files of JSON lines, each line whole by itself.

A run that believes no earlier one (`--force`) says so in its journal's first line and when it is through in its last: until then the same
command goes on from it. A journal that is being written is locked.

A journal lies beside the manifests as `.<data set>.found.<who>.jsonl` and grows by a write per few files, so that a killed run loses only
those it had in hand. A fact holds for a path of a size and time of change: a journal of another list, or of files that changed since,
says nothing. `cover index` without a share reads all of them and removes them once the manifests stand.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cover.datasets.manifest import Media
from cover.datasets.probing import Facts, Stamp
from cover.errors import UserError

_VERSION = 1
_FORCED, _THROUGH = b'"forced"', b'"through"'


@dataclass(frozen=True)
class Found:
    """What a probe found of one file as it was then."""

    path: str
    stamp: Stamp
    facts: Facts


def journal_path(folder: Path, name: str, who: str = "all") -> Path:
    """Where the journal of a data set is kept; `who` tells jobs apart that run side by side."""
    return folder / f".{name}.found.{who}.jsonl"


def journals(folder: Path, name: str) -> list[Path]:
    """All journals of a data set, sorted by name."""
    return sorted(folder.glob(f".{name}.found.*.jsonl"))


def read_journal(file: Path, media: Media) -> Iterator[Found]:
    """What a journal holds of a kind of media. Lines that are not whole (a run was killed, a machine went down) are passed over."""
    with file.open("rb") as lines:
        for line in lines:
            found = _parse(line, media)
            if found:
                yield found


def _parse(line: bytes, media: Media) -> Found | None:
    try:
        version, kind, path, size, mtime_ns, facts = json.loads(line)
        return Found(path, (size, mtime_ns), Facts(*facts)) if (version, kind) == (_VERSION, media) else None
    except (ValueError, TypeError):  # ValueError: not JSON, not UTF-8, or another number of values
        return None


def is_broken_off(file: Path) -> bool:
    """Whether a journal is that of a run that believed no earlier one and did not come to its end."""
    if not file.is_file():
        return False
    with file.open("rb") as lines:
        marks = [line.strip() for line in lines if line.strip() in (_FORCED, _THROUGH)]
    return marks == [_FORCED]


def remove_unused(files: Iterable[Path]) -> None:
    """Remove journals, but for those that other runs are writing."""
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


class Journal:
    """A journal that is written to, opened at the first entry. Of a `forced` run: what it held is dropped, unless that was broken off.

    Raises UserError, naming the file, where it cannot be written, as on a full disk; what was written before stays.
    """

    def __init__(self, file: Path, media: Media, forced: bool = False) -> None:
        self.file, self._media, self._forced = file, media, forced
        self._descriptor: int | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._descriptor is not None:
            if self._forced and kind is None:
                self._append(_THROUGH + b"\n")
            os.close(self._descriptor)
            self._descriptor = None

    def add(self, found: Iterable[Found]) -> None:
        """Append entries: in the hands of the system when this returns."""
        lines = "".join(json.dumps([_VERSION, self._media, item.path, *item.stamp, _values(item.facts)]) + "\n" for item in found)
        self._append(lines.encode())

    def _append(self, data: bytes) -> None:
        try:
            self._write(data)
        except OSError as error:
            raise UserError(f"{self.file}: cannot be written: {error.strerror}; run the command again to go on from here") from None

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            anew = self._forced and not is_broken_off(self.file)
            self._descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if anew else 0), 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            # What a killed run left may end in the middle of a line.
            data = (_FORCED if anew else b"") + b"\n" + data
        while data:
            data = data[os.write(self._descriptor, data) :]


def _values(facts: Facts) -> list[Any]:
    return [facts.state, facts.why, facts.frames, facts.fps, facts.width, facts.height, facts.codec, facts.deep]
