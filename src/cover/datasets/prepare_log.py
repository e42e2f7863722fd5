"""The log of `cover prepare`: what has been made so far, and of what. Lines of JSON, appended one by one, that outlive
a killed process.

The first line names the catalog of the originals. Then there are two kinds: a sample's, with what became of it, and a
shard's, with the samples in it. When a split is done they stand in the order of its rows, so that the same input gives
the same file however often the work was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

PrepareOutcome = str  # "prepared", "copied", "partial" (up to a damage) or "failed"


@dataclass(frozen=True)
class PreparedSample:
    """What became of a sample. `made_of` names its origin as it was, and the settings; `file` is relative to the output
    folder, with its size in bytes, empty where it failed; `last` is the last frame's time in seconds. `again`: what
    went wrong may be of the moment, and is tried by every later run.
    """

    made_of: str
    origin: str
    outcome: PrepareOutcome
    why: str = ""
    file: str = ""
    bytes: int = 0
    frames: int = 0
    last: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    again: bool = False


@dataclass(frozen=True)
class PreparedShard:
    """A shard of `bytes`: which samples, in order, and the offset and length of each; None of one that failed."""

    shard: str
    bytes: int
    samples: list[str]
    places: list[tuple[int, int] | None]


class PrepareLog:
    """The records of one split, and their file open for more. A last line that was cut off is dropped, and what is no
    record.

    `catalog`: that of the originals, which a new file begins with.
    """

    def __init__(self, path: Path, catalog: str) -> None:
        self.path, self.catalog = path, catalog
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            records, sound = _sound(file.read())
            file.truncate(sound)
        samples = (PreparedSample(**record) for record in records if _is_done(record))
        self.samples = {done.made_of: done for done in samples}
        self.shards = [PreparedShard(**record) for record in records if _is_shard(record)]
        self.earlier = {done.file for done in self.samples.values()} | {shard.shard for shard in self.shards}
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        if not sound:
            self._append(_header(catalog))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def add(self, record: PreparedSample | PreparedShard) -> None:
        """Append a record; it is in the system's hands when this returns. Raises OSError."""
        self._append(_line(record))
        if isinstance(record, PreparedSample):
            self.samples[record.made_of] = record
        else:
            self.shards.append(record)

    def settle(self, samples: Iterable[PreparedSample], shards: Sequence[PreparedShard]) -> None:
        """Replace all records by these, at once. Raises OSError."""
        beside = self.path.with_name(f".{self.path.name}")
        with beside.open("wb") as file:
            file.write(_header(self.catalog))
            file.writelines(map(_line, samples))
            file.writelines(map(_line, shards))
        beside.replace(self.path)

    def _append(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]


def catalog_of(path: Path) -> str | None:
    """The catalog whose data a list of what was made is about; None where there is no list, or it does not say."""
    try:
        with path.open("rb") as file:
            records, _ = _sound(file.readline())
    except FileNotFoundError:
        return None
    named = records[0].get("catalog") if records else None
    return named if isinstance(named, str) else None


def _header(catalog: str) -> bytes:
    return json.dumps({"catalog": catalog}).encode() + b"\n"


def _line(record: PreparedSample | PreparedShard) -> bytes:
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


_KINDS: dict[str, Any] = {"str": str, "PrepareOutcome": str, "int": int, "float": (int, float), "bool": bool}


def _is_done(record: dict[str, Any]) -> bool:
    """Whether a record is a sample's. One that another version of the program wrote may have other keys."""
    kinds = {field.name: _KINDS[str(field.type)] for field in fields(PreparedSample)}
    needed = {"made_of", "origin", "outcome"}
    return needed <= record.keys() <= kinds.keys() and all(
        isinstance(value, kinds[key]) for key, value in record.items()
    )


def _is_shard(record: dict[str, Any]) -> bool:
    if record.keys() != {field.name for field in fields(PreparedShard)}:
        return False
    samples, places = record["samples"], record["places"]
    if not (
        isinstance(record["shard"], str) and isinstance(record["bytes"], int) and isinstance(samples, list) and samples
    ):
        return False
    return isinstance(places, list) and len(places) == len(samples) and all(map(_is_place, places))


def _is_place(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value)
    )
