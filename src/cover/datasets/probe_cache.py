"""The facts about the files of a data set: a table in memory, and a probe cache on disk.

`look_up` fills the table for `cover index`: from the file system, then from manifests and caches of earlier runs, then
by probing the other files.

A probe cache is a file of JSON lines beside the manifests, `.<data set>.found.<who>.jsonl`. It is written after every
few files, so a killed run loses only the files in progress. An entry is valid for one path, size and time of change.
The cache of a run with `--force` has the mark "forced" in its first line and "through" in its last. Without the second
mark, the same command continues the run. A cache is locked while a run writes it. `cover index` without a shard reads
all caches of a data set, and removes them after the manifests are written.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
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
    """The facts about the files `paths`, as columns. Each path is in it once, in the order of `paths`.

    `number`: path -> its index. `size` (bytes) and `mtime_ns`: int64 `(files,)`; the size is -1 if there is no file.
    Columns take much less memory than one object per file.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.number: dict[str, int] = {}
        for path in paths:
            self.number.setdefault(path, len(self.number))
        self.paths = list(self.number)
        count = len(self.paths)
        self.size, self.mtime_ns = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        # The distinct (state, why, codec, deep, damage), and the index of each file's tuple among them, -1 for none.
        self._kinds: list[tuple[str, str, str, bool, str]] = []
        self._place: dict[tuple[str, str, str, bool, str], int] = {}
        self._kind = np.full(count, -1, np.int32)
        self._frames, self._fps = np.zeros(count, np.int32), np.zeros(count)
        self._width, self._height = np.zeros(count, np.int32), np.zeros(count, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def note_stat(self, first: int, stats: Iterable[Stat]) -> None:
        """Store results of `probe.stat_files` for the files from number `first` on.

        A file that exists, but has no stamp, is unreadable.
        """
        for number, stat in enumerate(stats, start=first):
            if isinstance(stat, tuple):
                self.size[number], self.mtime_ns[number] = stat
            elif stat != ABSENT:
                self._put(number, Facts("unreadable", stat))

    def put(self, path: str, facts: Facts) -> None:
        """Store the facts of a file. Deep facts are not replaced by others."""
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
        """The facts of a file, or the state `missing`."""
        number = self.number[path]
        if self._kind[number] < 0:
            return _MISSING
        state, why, codec, deep, damage = self._kinds[self._kind[number]]
        size = int(self._width[number]), int(self._height[number])
        return Facts(state, why, int(self._frames[number]), float(self._fps[number]), *size, codec, deep, damage)

    def stamp(self, path: str) -> Stamp | None:
        """Size in bytes and time of change in ns, None if there is no file."""
        number = self.number[path]
        return None if self.size[number] < 0 else (int(self.size[number]), int(self.mtime_ns[number]))

    def is_current(self, path: str, stamp: tuple[int | None, int | None]) -> bool:
        """Whether a path is in the table and its file still has this stamp."""
        return path in self.number and self.stamp(path) == stamp

    def unknown(self, deep: bool) -> npt.NDArray[np.int64]:
        """int64, ascending: the numbers of existing files without facts, or with `deep` without deep facts."""
        # Index -1, no facts, selects the last element.
        done = np.array([kind[3] or not deep for kind in self._kinds] + [False])
        return np.flatnonzero((self.size >= 0) & ~done[self._kind]).astype(np.int64)

    def numbers(self, paths: Iterable[str]) -> npt.NDArray[np.int64]:
        """int64 `(len(paths),)`, the number of each path."""
        return np.fromiter((self.number[path] for path in paths), np.int64)


# --- the cache on disk ---

_VERSION = 2
_FORCED, _THROUGH = b'"forced"', b'"through"'


@dataclass(frozen=True)
class ProbedFile:
    """An entry of a cache: the facts of a file with this stamp."""

    path: str
    stamp: Stamp
    facts: Facts


def cache_path(folder: Path, name: str, who: str = "all") -> Path:
    """The path of a cache. `who`: a name for each of several jobs that run at the same time."""
    return folder / f".{name}.found.{who}.jsonl"


def caches(folder: Path, name: str) -> list[Path]:
    """The paths of all caches of a data set, sorted."""
    return sorted(folder.glob(f".{name}.found.*.jsonl"))


def read_cache(file: Path, media: Media) -> Iterator[ProbedFile]:
    """The entries of a cache for one kind of media. Incomplete lines, from a killed run, are ignored."""
    with file.open("rb") as lines:
        for line in lines:
            if entry := _parse(line, media):
                yield entry


def _parse(line: bytes, media: Media) -> ProbedFile | None:
    try:
        version, kind, path, size, mtime_ns, facts = json.loads(line)
        return ProbedFile(path, (size, mtime_ns), Facts(*facts)) if (version, kind) == (_VERSION, media) else None
    except (ValueError, TypeError):  # ValueError: not JSON, not UTF-8, or another number of values
        return None


def is_broken_off(file: Path) -> bool:
    """Whether a cache is from a forced run that did not finish."""
    if not file.is_file():
        return False
    with file.open("rb") as lines:
        marks = [line.strip() for line in lines if line.strip() in (_FORCED, _THROUGH)]
    return marks == [_FORCED]


def remove_unused(files: Iterable[Path]) -> None:
    """Remove caches, except those that other runs are writing."""
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
    """A cache to write to. The file is opened at the first entry.

    `forced`: older entries are dropped, unless they are from a forced run that did not finish. Raises UserError, with
    the path, if the file cannot be written, for example on a full disk. Earlier entries stay valid.
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

    def add(self, entries: Iterable[ProbedFile]) -> None:
        """Append entries. When this returns they survive the end of the process."""
        values = ([_VERSION, self._media, item.path, *item.stamp, _values(item.facts)] for item in entries)
        self._append("".join(json.dumps(line) + "\n" for line in values).encode())

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
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if anew else 0)
            self._descriptor = os.open(self.file, flags, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            # The last line of a killed run may be incomplete, so new lines begin with a line feed.
            data = (_FORCED if anew else b"") + b"\n" + data
        while data:
            data = data[os.write(self._descriptor, data) :]


def _values(facts: Facts) -> list[Any]:
    return [getattr(facts, field.name) for field in fields(Facts)]


# --- filling the table ---


class ProbeEngine(Protocol):
    """The interface of `probe.Prober` and `ray_cluster.RayProber`."""

    deep: bool

    def probe(self, paths: Sequence[str], media: Media) -> Iterator[list[tuple[str, Facts]]]:
        """`(path, facts)` of all files, in chunks, in the order in which they finish."""


@dataclass(frozen=True)
class Lookup:
    """The result of `look_up`.

    `table`: facts of all files. `opened`: bool `(files,)`, the files that were probed in this run. `caches`: the caches
    to remove after the manifests are written.
    """

    table: FileTable
    opened: npt.NDArray[np.bool_]
    caches: list[Path]


def look_up(
    catalog: Catalog, spec: DatasetSpec, table: FileTable, engine: ProbeEngine, force: bool, who: str = "all"
) -> Lookup:
    """Fill a table: from the file system, from manifests and caches of earlier runs, and by probing the other files.

    New facts are written to the cache `who` at once. `force`: ignore earlier runs, except the same forced run that did
    not finish. Raises UserError if the cache cannot be written.
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
    """Read facts from the manifests of earlier runs, for files that have not changed since."""
    for file in (catalog.manifest_path(spec.name, split) for split in spec.splits):
        if not file.is_file():
            continue
        manifest = open_manifest(file)
        for row in manifest.rows() if manifest.media == spec.media else ():
            if table.is_current(row.path, (row.size, row.mtime_ns)):
                table.put(row.path, _facts_of_file(row))


def _recall_caches(spec: DatasetSpec, table: FileTable, files: Sequence[Path]) -> None:
    """Read facts from caches, of unfinished runs and of shards. They are newer than the manifests."""
    for cache in files:
        for item in read_cache(cache, spec.media):
            if table.is_current(item.path, item.stamp):
                table.put(item.path, item.facts)


def _facts_of_file(row: Row) -> Facts:
    """The facts of the whole file of a row, also if only the segment of the row is too short."""
    segment_only = row.state == "too_short" and row.frames >= 2
    state, why = ("ok", "") if segment_only else (row.state, row.why)
    return Facts(state, why, row.frames, row.fps, row.width, row.height, row.codec, row.deep, row.damage)


def _probe(spec: DatasetSpec, table: FileTable, todo: Sequence[str], engine: ProbeEngine, cache: ProbeCache) -> None:
    with Meter(f"index {spec.name}", total=len(todo)) as meter:
        for part in engine.probe(todo, spec.media):
            cache.add(_entry(table, path, facts) for path, facts in part)  # first, so that a killed run has them
            for path, facts in part:
                table.put(path, facts)
            meter.advance(len(part))


def _entry(table: FileTable, path: str, facts: Facts) -> ProbedFile:
    stamp = table.stamp(path)
    assert stamp, f"{path} was probed and is not there"
    return ProbedFile(path, stamp, facts)
