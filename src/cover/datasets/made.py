"""What has been made so far, and of what? Lines of JSON, appended one by one, that outlive a killed process.

Two kinds of lines: a sample's, with what became of it, and a shard's, with the samples in it. When a split is done they stand in the
order of its rows, so that the same input gives the same file however often the work was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

Outcome = str  # "prepared", "copied", "partial" (up to a damage) or "failed"


@dataclass(frozen=True)
class Done:
    """What became of a sample. `made_of` names its origin as it was, and the settings; `file` is relative to the output folder, with
    its size in bytes, empty where it failed; `last` is the last frame's time in seconds."""

    made_of: str
    origin: str
    outcome: Outcome
    why: str = ""
    file: str = ""
    bytes: int = 0
    frames: int = 0
    last: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""


@dataclass(frozen=True)
class Shard:
    """A shard of `bytes`: which samples, in order, and the offset and length of each; None of one that failed."""

    shard: str
    bytes: int
    samples: list[str]
    places: list[tuple[int, int] | None]


class Made:
    """The records of one split, and their file open for more. A last line that was cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            records, sound = _sound(file.read())
            file.truncate(sound)
        self.samples = {record["made_of"]: Done(**record) for record in records if "made_of" in record}
        self.shards = [Shard(**record) for record in records if "shard" in record]
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def add(self, record: Done | Shard) -> None:
        """Append a record; it is in the system's hands when this returns. Raises OSError."""
        line = _line(record)
        while line:
            line = line[os.write(self._descriptor, line) :]
        if isinstance(record, Done):
            self.samples[record.made_of] = record
        else:
            self.shards.append(record)

    def settle(self, samples: Iterable[Done], shards: Sequence[Shard]) -> None:
        """Replace all records by these, at once. Raises OSError."""
        beside = self.path.with_name(f".{self.path.name}")
        with beside.open("wb") as file:
            file.writelines(map(_line, samples))
            file.writelines(map(_line, shards))
        beside.replace(self.path)


def _line(record: Done | Shard) -> bytes:
    return json.dumps(asdict(record)).encode() + b"\n"


def _sound(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records up to the first that is not whole, and how many bytes they take."""
    records, place = [], 0
    for line in data.splitlines(keepends=True):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(record, dict):
            break
        records.append(record)
        place += len(line)
    return records, place
