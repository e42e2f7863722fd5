"""What is known of the files of a data set: a table in memory, and the probe cache on disk that outlives a killed run.

`look_up` fills the table for `cover index`: from the file system, then from manifests and caches of earlier runs, and
by opening the rest.

A probe cache is a file of JSON lines, each line whole by itself, beside the manifests: `.<data set>.found.<who>.jsonl`.
It grows by a write per few files, so that a killed run loses only those it had in hand. A fact holds for a path of a
size and time of change: a cache of another list, or of files that changed since, says nothing. A run that trusts no
earlier one (`--force`) says so in its cache's first line, and when it is through in its last: until then the same
command goes on from it. A cache that is being written is locked. `cover index` without a shard reads all of them and
removes them once the manifests stand.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cover.console import Meter
from cover.datasets.catalog import Catalog, DatasetSpec
from cover.datasets.manifest import Row, open_manifest
from cover.datasets.probe import ABSENT, Facts, Stamp, Stat, stat_files
from cover.errors import UserError
from cover.media.source import Media

_MISSING = Facts("missing", "no such file")


class FileTable:
    """The files `paths`, each once, in their order; `number` gives a path's place.

    `size` (bytes) and `mtime_ns` are int64 `(files,)`, the size -1 where there is no file.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.number: dict[str, int] = {}
        for path in paths:
            self.number.setdefault(path, len(self.number))
        self.paths = list(self.number)
        count = len(self.paths)
        self.size, self.mtime_ns = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        # what many files have in common: state, why, codec, deep, damage
        self._kinds: list[tuple[str, str, str, bool, str]] = []
        self._place: dict[tuple[str, str, str, bool, str], int] = {}
        self._kind = np.full(count, -1, np.int32)
        self._frames, self._fps = np.zeros(count, np.int32), np.zeros(count)
        self._width, self._height = np.zeros(count, np.int32), np.zeros(count, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def note_stat(self, first: int, results: Iterable[Stat]) -> None:
        """What `probe.stat_files` found of the files from number `first` on. A file that is there and out of reach is
        unreadable.
        """
        for number, stat in enumerate(results, start=first):
            if isinstance(stat, tuple):
                self.size[number], self.mtime_ns[number] = stat
            elif stat != ABSENT:
                self._put(number, Facts("unreadable", stat))

    def put(self, path: str, facts: Facts) -> None:
        """Facts of a listed file; what was found by decoding all of it is not given up for less."""
        number = self.number[path]
        if facts.deep or not self._deep(number):
            self._put(number, facts)

    def _put(self, number: int, facts: Facts) -> None:
        kind = (facts.state, facts.why, facts.codec, facts.deep, facts.damage)
        if kind not in self._place:
            self._place[kind] = len(self._kinds)
            self._kinds.append(kind)
        self._kind[number] = self._place[kind]
        self._frames[number], self._fps[number] = facts.frames, facts.fps
        self._width[number], self._height[number] = facts.width, facts.height

    def _deep(self, number: int) -> bool:
        kind = self._kind[number]
        return bool(kind >= 0 and self._kinds[kind][3])

    def facts(self, path: str) -> Facts:
        """What is known of a file; of one that is not there, that it is missing."""
        number = self.number[path]
        if self._kind[number] < 0:
            return _MISSING
        state, why, codec, deep, damage = self._kinds[self._kind[number]]
        size = int(self._width[number]), int(self._height[number])
        return Facts(state, why, int(self._frames[number]), float(self._fps[number]), *size, codec, deep, damage)

    def stamp(self, path: str) -> Stamp | None:
        """Size in bytes and time of change; None where there is no file."""
        number = self.number[path]
        return None if self.size[number] < 0 else (int(self.size[number]), int(self.mtime_ns[number]))

    def is_current(self, path: str, stamp: tuple[int | None, int | None]) -> bool:
        """Whether a listed file is there and still what it was when it had this stamp."""
        return path in self.number and self.stamp(path) == stamp

    def unknown(self, deep: bool) -> npt.NDArray[np.int64]:
        """int64 numbers, ascending, of the files that are there and not probed yet, or with `deep` not to their last
        frame.
        """
        # the last one is for kind -1: nothing known
        done = np.array([kind[3] or not deep for kind in self._kinds] + [False])
        return np.flatnonzero((self.size >= 0) & ~done[self._kind]).astype(np.int64)

    def numbers(self, paths: Iterable[str]) -> npt.NDArray[np.int64]:
        """int64, the number of each path."""
        return np.fromiter((self.number[path] for path in paths), np.int64)


# --- the cache on disk ---

_VERSION = 2
_FORCED, _THROUGH = b'"forced"', b'"through"'


@dataclass(frozen=True)
class ProbedFile:
    """What a probe found of one file as it was then."""

    path: str
    stamp: Stamp
    facts: Facts


def cache_path(folder: Path, name: str, who: str = "all") -> Path:
    """Where the cache of a data set is kept; `who` tells jobs apart that run side by side."""
    return folder / f".{name}.found.{who}.jsonl"


def caches(folder: Path, name: str) -> list[Path]:
    """All caches of a data set, sorted by name."""
    return sorted(folder.glob(f".{name}.found.*.jsonl"))


def read_cache(file: Path, media: Media) -> Iterator[ProbedFile]:
    """What a cache holds of a kind of media. Lines that are not whole (a run was killed, a machine went down) are
    passed over.
    """
    with file.open("rb") as lines:
        for line in lines:
            result = _parse(line, media)
            if result:
                yield result


def _parse(line: bytes, media: Media) -> ProbedFile | None:
    try:
        version, kind, path, size, mtime_ns, facts = json.loads(line)
        return ProbedFile(path, (size, mtime_ns), Facts(*facts)) if (version, kind) == (_VERSION, media) else None
    except (ValueError, TypeError):  # ValueError: not JSON, not UTF-8, or another number of values
        return None


def is_broken_off(file: Path) -> bool:
    """Whether a cache is that of a run that believed no earlier one and did not come to its end."""
    if not file.is_file():
        return False
    with file.open("rb") as lines:
        marks = [line.strip() for line in lines if line.strip() in (_FORCED, _THROUGH)]
    return marks == [_FORCED]


def remove_unused(files: Iterable[Path]) -> None:
    """Remove caches, but for those that other runs are writing."""
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


class ProbeCache:
    """A cache that is written to, opened at the first entry. Of a `forced` run: what it held is dropped, unless that
    was broken off.

    Raises UserError, naming the file, where it cannot be written, as on a full disk; what was written before stays.
    """

    def __init__(self, file: Path, media: Media, forced: bool = False) -> None:
        self.file, self._media, self._forced = file, media, forced
        self._descriptor: int | None = None

    def __enter__(self) -> ProbeCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._descriptor is not None:
            if self._forced and kind is None:
                self._append(_THROUGH + b"\n")
            os.close(self._descriptor)
            self._descriptor = None

    def add(self, results: Iterable[ProbedFile]) -> None:
        """Append entries: in the hands of the system when this returns."""
        lines = "".join(
            json.dumps([_VERSION, self._media, item.path, *item.stamp, _values(item.facts)]) + "\n" for item in results
        )
        self._append(lines.encode())

    def _append(self, data: bytes) -> None:
        try:
            self._write(data)
        except OSError as error:
            raise UserError(
                f"{self.file}: cannot be written: {error.strerror}; run the command again to go on from here"
            ) from None

    def _write(self, data: bytes) -> None:
        if self._descriptor is None:
            anew = self._forced and not is_broken_off(self.file)
            self._descriptor = os.open(
                self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if anew else 0), 0o666
            )
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            # What a killed run left may end in the middle of a line.
            data = (_FORCED if anew else b"") + b"\n" + data
        while data:
            data = data[os.write(self._descriptor, data) :]


def _values(facts: Facts) -> list[Any]:
    return [
        facts.state,
        facts.why,
        facts.frames,
        facts.fps,
        facts.width,
        facts.height,
        facts.codec,
        facts.deep,
        facts.damage,
    ]


# --- filling the table ---


class ProbeEngine(Protocol):
    """What probes files: `probe.Prober`, or one of its kind for a cluster."""

    deep: bool

    def probe(self, paths: Sequence[str], media: Media) -> Iterator[list[tuple[str, Facts]]]:
        """`(path, facts)` of all files, some at a time as they are done, in no particular order."""


@dataclass(frozen=True)
class Lookup:
    """What is known of the files, which of them were `opened` in this run (bool, by number), and the caches that are
    not needed any more once the manifests hold it all.
    """

    table: FileTable
    opened: npt.NDArray[np.bool_]
    caches: list[Path]


def look_up(
    catalog: Catalog, spec: DatasetSpec, table: FileTable, engine: ProbeEngine, force: bool, who: str = "all"
) -> Lookup:
    """Fill a table: from the file system, from what earlier runs found, and by probing the rest.

    What is probed goes into the cache `who` at once. `force` trusts no earlier run but the same one, broken off.
    """
    own = cache_path(manifests(catalog), spec.name, who)
    earlier = caches(manifests(catalog), spec.name)
    _stat(spec, table)
    if not force:
        _recall_manifests(catalog, spec, table)
        _recall_caches(spec, table, earlier)
    elif is_broken_off(own):
        _recall_caches(spec, table, [own])
    todo = table.unknown(engine.deep)
    with ProbeCache(own, spec.media, forced=force) as cache:
        _probe(spec, table, [table.paths[number] for number in todo], engine, cache)
    opened = np.zeros(len(table), bool)
    opened[todo] = True
    return Lookup(table, opened, list(dict.fromkeys([*earlier, own])))


def manifests(catalog: Catalog) -> Path:
    """The folder of a catalog's manifests and probe caches."""
    return catalog.path.parent / "manifests"


def _stat(spec: DatasetSpec, table: FileTable) -> None:
    with Meter(f"look for files of {spec.name}", len(table)) as meter:
        for item in stat_files(table.paths):
            table.note_stat(meter.done, item)
            meter.advance(len(item))


def _recall_manifests(catalog: Catalog, spec: DatasetSpec, table: FileTable) -> None:
    """What earlier runs found of files that have not changed since."""
    for file in (catalog.manifest_path(spec.name, split) for split in spec.splits):
        if not file.is_file():
            continue
        manifest = open_manifest(file)
        for row in manifest.rows() if manifest.media == spec.media else ():
            if table.is_current(row.path, (row.size, row.mtime_ns)):
                table.put(row.path, _of_file(row))


def _recall_caches(spec: DatasetSpec, table: FileTable, results: Sequence[Path]) -> None:
    """What runs found that were broken off or probed a shard: younger than the manifests."""
    for cache in results:
        for item in read_cache(cache, spec.media):
            if table.is_current(item.path, item.stamp):
                table.put(item.path, item.facts)


def _of_file(row: Row) -> Facts:
    """What a row says of its whole file, whatever became of the row's segment."""
    segment_only = row.state == "too_short" and row.frames >= 2
    state, why = ("ok", "") if segment_only else (row.state, row.why)
    return Facts(state, why, row.frames, row.fps, row.width, row.height, row.codec, row.deep, row.damage)


def _probe(spec: DatasetSpec, table: FileTable, todo: Sequence[str], engine: ProbeEngine, cache: ProbeCache) -> None:
    with Meter(f"index {spec.name}", total=len(todo)) as meter:
        for part in engine.probe(todo, spec.media):
            cache.add(_entry(table, path, facts) for path, facts in part)
            for path, facts in part:
                table.put(path, facts)
            meter.advance(len(part))


def _entry(table: FileTable, path: str, facts: Facts) -> ProbedFile:
    stamp = table.stamp(path)
    assert stamp, f"{path} was probed and is not there"
    return ProbedFile(path, stamp, facts)
