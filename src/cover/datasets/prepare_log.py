"""The prepare log: the finished samples and shards of one split, as lines of JSON.

Lines are appended one by one, so they survive a killed process. The first line names the catalog of the originals. The
other lines are records of samples or of shards. When a split is done, its records are in the order of its rows, so the
same input gives the same file after any number of interruptions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

PrepareOutcome = str  # "prepared", "copied", "partial" (encoded up to a damage) or "failed"


@dataclass(frozen=True)
class PreparedSample:
    """The record of one sample.

    `made_of`: a digest of the original file and the settings. `origin`: the original path. `outcome`, `why`: the result
    and the reason of a failure. `file`: path below the output folder, empty if the sample failed; `bytes`: its size.
    `frames`, `width`, `height`, `codec`: of the file. `last`: time of the last frame in seconds. `again`: the failure
    may be temporary, and every later run tries the sample again.
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
    """The record of one shard.

    `shard`: path below the output folder. `bytes`: its size. `samples`: the tags (`PrepareItem.tag`) of its samples in
    order. `places`: `(offset, length)` of each sample in bytes, None for a failed sample.
    """

    shard: str
    bytes: int
    samples: list[str]
    places: list[tuple[int, int] | None]


class PrepareLog:
    """The records of one split, and their file, which is open for more records.

    An incomplete last line and lines of other versions are dropped. `catalog`: the catalog of the originals, for the
    first line of a new file. `samples`: `made_of` -> record. `shards`: all records of shards. `earlier`: the files and
    shards of earlier runs.
    """

    def __init__(self, path: Path, catalog: str) -> None:
        self.path, self.catalog = path, catalog
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            records, valid_bytes = _parse(file.read())
            file.truncate(valid_bytes)
        samples = (PreparedSample(**record) for record in records if _is_done(record))
        self.samples = {done.made_of: done for done in samples}
        self.shards = [PreparedShard(**record) for record in records if _is_shard(record)]
        self.earlier = {done.file for done in self.samples.values()} | {shard.shard for shard in self.shards}
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        if not valid_bytes:
            self._append(_header(catalog))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def add(self, record: PreparedSample | PreparedShard) -> None:
        """Append a record. When this returns it survives the end of the process. Raises OSError."""
        self._append(_line(record))
        if isinstance(record, PreparedSample):
            self.samples[record.made_of] = record
        else:
            self.shards.append(record)

    def settle(self, samples: Iterable[PreparedSample], shards: Sequence[PreparedShard]) -> None:
        """Replace all records by these, in one step. Raises OSError."""
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
    """The catalog in the first line of a prepare log. None if there is no log, or no such line."""
    try:
        with path.open("rb") as file:
            records, _ = _parse(file.readline())
    except FileNotFoundError:
        return None
    named = records[0].get("catalog") if records else None
    return named if isinstance(named, str) else None


def _header(catalog: str) -> bytes:
    return json.dumps({"catalog": catalog}).encode() + b"\n"


def _line(record: PreparedSample | PreparedShard) -> bytes:
    return json.dumps(asdict(record)).encode() + b"\n"


def _parse(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The records before the first invalid line, and the number of their bytes."""
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
    """Whether a record is a valid `PreparedSample`. Another version of the program may write other keys."""
    kinds = {field.name: _KINDS[str(field.type)] for field in fields(PreparedSample)}
    needed = {"made_of", "origin", "outcome"}
    if not needed <= record.keys() <= kinds.keys():
        return False
    return all(isinstance(value, kinds[key]) for key, value in record.items())


def _is_shard(record: dict[str, Any]) -> bool:
    if record.keys() != {field.name for field in fields(PreparedShard)}:
        return False
    samples, places = record["samples"], record["places"]
    if not (isinstance(record["shard"], str) and isinstance(record["bytes"], int)):
        return False
    if not (isinstance(samples, list) and samples):
        return False
    return isinstance(places, list) and len(places) == len(samples) and all(map(_is_place, places))


def _is_place(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value)
