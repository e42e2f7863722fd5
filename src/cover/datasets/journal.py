"""What had been found when a run ended early, or by jobs that each probed a share? Files of JSON lines, each line whole by itself.

A journal lies beside the manifests as `.<data set>.found.<who>.jsonl` and grows by a write per few files, so that a killed run loses only
those it had in hand. A fact holds for a path of a size and time of change: a journal of another list, or of files that changed since,
says nothing. `cover index` without a share reads all of them and removes them once the manifests stand.
"""

from __future__ import annotations

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


class Journal:
    """A journal that is written to, opened at the first entry; with `anew` what it held is dropped.

    Raises UserError, naming the file, where it cannot be written, as on a full disk; what was written before stays.
    """

    def __init__(self, file: Path, media: Media, anew: bool = False) -> None:
        self.file, self._media, self._anew = file, media, anew
        self._descriptor: int | None = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def add(self, found: Iterable[Found]) -> None:
        """Append entries: in the hands of the system when this returns."""
        lines = "".join(json.dumps([_VERSION, self._media, item.path, *item.stamp, _values(item.facts)]) + "\n" for item in found)
        try:
            self._write(lines.encode())
        except OSError as error:
            raise UserError(f"{self.file}: cannot be written: {error.strerror}; run the command again to go on from here") from None

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if self._anew else 0), 0o666)
            data = b"\n" + data  # what a killed run left may end in the middle of a line
        while data:
            data = data[os.write(self._descriptor, data) :]


def _values(facts: Facts) -> list[Any]:
    return [facts.state, facts.why, facts.frames, facts.fps, facts.width, facts.height, facts.codec, facts.deep]
