"""`cover index`: manifests of a catalog's data sets, with warnings about what is odd in them."""

from __future__ import annotations

import hashlib
import os
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from cover.console import Meter, print_table, say
from cover.datasets.annotations import ListedSample
from cover.datasets.catalog import Catalog, DatasetSpec, load_catalog
from cover.datasets.files import few, is_text, unpack_hint
from cover.datasets.formats import list_splits
from cover.datasets.manifest import SPLITS, STATES, ClassList, Row, write_manifest
from cover.datasets.probe import Facts, Prober
from cover.datasets.probe_cache import FileTable, Lookup, ProbeEngine, cache_path, look_up, manifests, remove_unused
from cover.errors import UserError


def warnings_of(
    spec: DatasetSpec, split: str, rows: Sequence[ListedSample], classes: ClassList, present: Set[int]
) -> list[str]:
    """One line for each oddity of a split. `present`: the labels of its usable samples."""
    results = [] if spec.root.exists() else [f"the root {spec.root} does not exist"]
    results += _repeated(rows)
    unlabelled = sum(row.label is None and row.labels is None for row in rows)
    if unlabelled and split != "test":  # of a test split that is usual
        results.append(f"{unlabelled} of {len(rows)} samples have no label: they are neither trained on nor evaluated")
    empty = [name for label, name in enumerate(classes.names) if label not in present]
    # a dev part is too small to hold every class
    if empty and split != "dev" and any(row.label is not None or row.labels for row in rows):
        results.append(f"classes without a usable sample: {few(empty)}")
    return results


def _repeated(rows: Sequence[ListedSample]) -> Iterator[str]:
    visited: set[str] = set()
    classes_of: dict[str, set[object]] = {}
    for row in rows:
        if row.sample_id in visited:
            classes_of[row.sample_id] = set()
        visited.add(row.sample_id)
    if not classes_of:
        return
    for row in rows:
        if row.sample_id in classes_of:
            classes_of[row.sample_id].add(row.label if row.labels is None else tuple(row.labels))
    yield f"listed more than once: {few(list(classes_of))}"
    if torn := [sample for sample, classes in classes_of.items() if len(classes) > 1]:
        yield f"listed more than once, with different labels: {few(torn)}"


def packed_archives(root: Path) -> list[str]:
    """One line where archives or unfinished downloads lie in a root some of whose files are missing."""
    hint = unpack_hint(root)
    return [f"files are missing, and {hint}"] if hint else []


@dataclass(frozen=True)
class IndexShard:
    """Share `number` of `count`, counted from 1 as job arrays do."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> IndexShard:
        """Reads `3/16`. Raises UserError.

        >>> Share.parse("3/16")
        Share(number=3, count=16)
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f'--shard "{text}": expected NUMBER/COUNT, the number from 1 to the count, as in 3/16')
        return cls(int(match[1]), int(match[2]))

    def of(self, paths: Iterable[str]) -> list[str]:
        """Those of the paths that are in this share. Files that come or go move no other file."""
        return [path for path in paths if zlib.crc32(path.encode()) % self.count == self.number - 1]


_DEV_SALT = "cover dev split"  # changing it would move rows between train and dev
_ENOUGH_FOR_DEV = 20
_NAMED = 20  # unusable files named in a result; the manifest has them all
_COUNTED = 4096  # rows between two movements of a progress bar
_LEFT_BEHIND = 3600.0  # seconds after which a half-written manifest is that of a run that was killed
EngineName = Literal["pool", "ray"]


@dataclass(frozen=True)
class _Plan:
    """What is to be written for one data set: rows by split, dev carved out already."""

    spec: DatasetSpec
    classes: ClassList
    rows: dict[str, list[ListedSample]]
    left_out: dict[str, tuple[str, ...]]  # the adapter's own remarks

    def all_rows(self) -> Iterator[ListedSample]:
        return chain.from_iterable(self.rows.values())


@dataclass(frozen=True)
class ProbeOptions:
    """How files are probed: by `workers` processes (0: in this one), or by a Ray cluster; `force`: all anew; `deep`:
    every video is decoded to its last frame.
    """

    workers: int
    force: bool = False
    deep: bool = False
    engine: EngineName = "pool"

    def prober(self) -> AbstractContextManager[ProbeEngine]:
        """To be entered. Raises UserError where Ray is wanted and not installed."""
        if self.engine == "pool":
            return Prober(self.workers, self.deep)
        from cover.datasets.ray_cluster import RayProber

        return RayProber(self.workers, self.deep)


def index(
    catalog_path: str | Path,
    workers: int,
    names: Sequence[str] | None = None,
    force: bool = False,
    deep: bool = False,
    engine: EngineName = "pool",
) -> list[dict[str, Any]]:
    """Probe the files of the data sets `names` (default: all), as `How` says, and write their manifests.

    Returns one dict per data set and split: `dataset`, `split`, `listed`, `ok`, `missing`, `unreadable`, `too_short`,
    `partial` (of the ok ones, those damaged inside, which only `deep` finds), `hours` (of ok videos), `classes`,
    `class_digest`, `probed` (files opened in this run), `manifest`, `unusable`, the first 20 rows that are not ok or
    partial as `{path, state, why}`, and `warnings`, lines on what is odd and not wrong. Raises UserError for a catalog
    or a list that is not sound, before any file is opened.
    """
    how = ProbeOptions(workers, force, deep, engine)
    catalog, plans = _plans(catalog_path, names)
    with how.prober() as prober:
        return [result for plan in plans for result in _index_one(catalog, plan, prober, force)]


def index_share(
    catalog_path: str | Path, shard: IndexShard, how: ProbeOptions, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Probe one share of the files and leave what was found beside the manifests, for the `index` that follows all
    shares.

    Returns one dict per data set: `dataset`, `shard`, `files` (of this share), `probed`, the states as in `index`, and
    `probe_cache`.
    """
    catalog, plans = _plans(catalog_path, names)
    with how.prober() as prober:
        return [_probe_share(catalog, plan, shard, prober, how.force) for plan in plans]


def _probe_share(catalog: Catalog, plan: _Plan, shard: IndexShard, prober: ProbeEngine, force: bool) -> dict[str, Any]:
    name, who = plan.spec.name, f"{shard.number}-of-{shard.count}"
    table = FileTable(shard.of(row.path for row in plan.all_rows()))
    result = look_up(catalog, plan.spec, table, prober, force, who)
    states, partial = Counter[str](), 0
    for facts in map(table.facts, table.paths):
        states[facts.state] += 1
        partial += _is_partial(facts)
    return {
        "dataset": name,
        "shard": f"{shard.number}/{shard.count}",
        "files": len(table),
        "probed": int(result.opened.sum()),
        **{state: states[state] for state in STATES},
        "partial": partial,
        "probe_cache": str(cache_path(manifests(catalog), name, who)),
    }


def _plans(catalog_path: str | Path, names: Sequence[str] | None) -> tuple[Catalog, list[_Plan]]:
    catalog = load_catalog(catalog_path)
    specs = [catalog.spec(name) for name in (names or catalog.specs)]
    with Meter("read lists", total=len(specs)) as meter:
        plans = []
        for spec in specs:
            plans.append(_plan(spec))
            meter.advance()
    _check_writable(catalog)
    return catalog, plans


def print_index(results: Sequence[dict[str, Any]]) -> None:
    """The results of `index` as a table on stdout, and on stderr the files that cannot be used."""
    columns = ["dataset", "split", "listed", *STATES, *_partial_column(results), "hours", "classes"]
    _print(columns, results)
    for result in results:
        where = f"{result['dataset']} {result['split']}"
        for remark in result["remarks"]:
            say(f"{where}: {remark}")
        for row in result["unusable"]:
            say(f"{where}: {row['state'].replace('_', ' ')}: {row['path']}: {row['why']}")
        unnamed = unusable(result) - len(result["unusable"])
        if unnamed:
            say(f"{where}: and {unnamed} more that cannot be used, all in {result['manifest']}")


def print_share(results: Sequence[dict[str, Any]]) -> None:
    """The results of `index_share` as a table on stdout."""
    _print(["dataset", "shard", "files", "probed", *STATES, *_partial_column(results)], results)


def unusable(result: dict[str, Any]) -> int:
    """How many rows of a result of `index` cannot be used, or not to their end."""
    return int(result["listed"] - result["ok"] + result["partial"])


def _partial_column(results: Sequence[dict[str, Any]]) -> list[str]:
    return ["partial"] if any(result["partial"] for result in results) else []


def _print(columns: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
    titles = ["data set" if column == "dataset" else column.replace("_", " ") for column in columns]
    print_table(titles, [[_cell(result, column) for column in columns] for result in results])


def _cell(result: dict[str, Any], column: str) -> str:
    return f"{result[column]:.2f}" if column == "hours" else str(result[column])


# --- rows ---


def _plan(spec: DatasetSpec) -> _Plan:
    listings = list_splits(spec)
    classes = next(iter(listings.values())).classes
    assert all(listing.classes == classes for listing in listings.values()), (
        f"{spec.name}: class lists differ between splits"
    )
    rows = {split: listing.rows for split, listing in listings.items()}
    for row in chain.from_iterable(rows.values()):
        if not is_text(row.path):
            raise UserError(f"{spec.name}: {row.path!a}: the file's name is not valid UTF-8; rename the file")
    if "dev" in spec.splits and "dev" not in rows:
        rows["train"], dev = carve_dev(rows["train"], spec.dev)
        rows |= {"dev": dev} if dev else {}
    left_out = {split: listing.warnings for split, listing in listings.items()}
    return _Plan(spec, classes, {split: rows[split] for split in SPLITS if split in rows}, left_out)


def carve_dev(rows: Sequence[ListedSample], fraction: float) -> tuple[list[ListedSample], list[ListedSample]]:
    """Part rows into train and dev by source id, so that no source is in both.

    A source is in dev if its hash says so, whatever else is listed: adding rows moves none. From 20 rows on dev gets at
    least one source; train always keeps one.
    """
    place = {source: _place(source) for source in {row.source_id for row in rows}}
    chosen = {source for source in place if place[source] < fraction}
    if not chosen and len(place) > 1 and len(rows) >= _ENOUGH_FOR_DEV:
        chosen = {min(place, key=lambda source: place[source])}
    if len(chosen) == len(place):
        chosen.discard(max(place, key=lambda source: place[source]))
    return [row for row in rows if row.source_id not in chosen], [row for row in rows if row.source_id in chosen]


def _place(source: str) -> float:
    """A number in [0, 1) that depends on the source id alone."""
    return int.from_bytes(hashlib.sha256(f"{_DEV_SALT}\n{source}".encode()).digest()[:6]) / 2**48


# --- probe an ---


def _index_one(catalog: Catalog, plan: _Plan, prober: ProbeEngine, force: bool) -> list[dict[str, Any]]:
    spec = plan.spec
    result = look_up(catalog, spec, FileTable(row.path for row in plan.all_rows()), prober, force)
    results = [_write(catalog, plan, split, result) for split in plan.rows]
    if "dev" in spec.splits and "dev" not in plan.rows:
        catalog.manifest_path(spec.name, "dev").unlink(missing_ok=True)  # of a catalog that carved more
    remove_unused(result.caches)
    for file in _left_behind(catalog, spec):
        file.unlink(missing_ok=True)
    return results


def _left_behind(catalog: Catalog, spec: DatasetSpec) -> list[Path]:
    """What runs left that were killed while they wrote a manifest. A younger file may be that of a run beside this one."""
    paths = (catalog.manifest_path(spec.name, split) for split in spec.splits)
    files = (file for path in paths for file in path.parent.glob(f".{path.name}.*"))
    return [file for file in files if file.stat().st_mtime < time.time() - _LEFT_BEHIND]


def _write(catalog: Catalog, plan: _Plan, split: str, results: Lookup) -> dict[str, Any]:
    """Write one manifest and say what is in it, in the words of `index`."""
    spec, listed = plan.spec, plan.rows[split]
    path, tally = catalog.manifest_path(spec.name, split), _RowCounts()
    try:
        with Meter(f"write {path.name}", total=len(listed)) as meter:
            write_manifest(
                path, spec.name, split, spec.media, plan.classes, tally.count(_rows(listed, results.table), meter)
            )
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; run the command again to go on from here"
        ) from None
    numbers = results.table.numbers(row.path for row in listed)
    return {
        "dataset": spec.name,
        "split": split,
        "listed": len(listed),
        **{state: tally.states[state] for state in STATES},
        "partial": tally.partial,
        "hours": tally.seconds / 3600,
        "classes": len(plan.classes.names),
        "class_digest": plan.classes.digest,
        "probed": len(set(numbers[results.opened[numbers]].tolist())),
        "manifest": str(path),
        "unusable": tally.unusable,
        "remarks": [
            *plan.left_out.get(split, ()),
            *warnings_of(spec, split, listed, plan.classes, tally.present),
            *(packed_archives(spec.root) if tally.states["missing"] else ()),
        ],
    }


_LISTED, _FACTS = ([field.name for field in fields(kind)] for kind in (ListedSample, Facts))
_of_listed, _of_facts = attrgetter(*_LISTED), attrgetter(*_FACTS)


def _rows(listed: Iterable[ListedSample], table: FileTable) -> Iterator[Row]:
    for item in listed:
        facts = _of_segment(item, table.facts(item.path))
        size, mtime_ns = table.stamp(item.path) or (None, None)
        values = dict(zip(_LISTED, _of_listed(item))) | dict(zip(_FACTS, _of_facts(facts)))
        yield Row(**values, offset=None, length=None, size=size, mtime_ns=mtime_ns)


def _of_segment(item: ListedSample, facts: Facts) -> Facts:
    """A good file's segment is itself too short where fewer than 2 of the file's frames lie in it."""
    present = _seconds(item, facts) * facts.fps
    # a time may be off by half a frame
    if (item.start is None and item.end is None) or facts.state != "ok" or present > 1.5:
        return facts
    why = f"{max(0, round(present))} frames in the segment"
    return replace(facts, state="too_short", why=why)


def _is_partial(facts: Facts | Row) -> bool:
    """Whether a file can be used up to some damage."""
    return facts.state == "ok" and bool(facts.damage)


def _unusable(row: Row) -> dict[str, str]:
    """A row that is not whole, for the report. A segment behind a damage is too short because of it."""
    if row.state == "ok":
        return {"path": row.path, "state": "partial", "why": row.damage}
    why = f"{row.why}; partial: {row.damage}" if row.damage else row.why
    return {"path": row.path, "state": row.state, "why": why}


def _seconds(row: ListedSample | Row, facts: Facts | Row) -> float:
    """How long a sample is: 0 for an image."""
    whole = facts.frames / facts.fps if facts.fps else 0.0
    return min(whole, whole if row.end is None else row.end) - (row.start or 0.0)


class _RowCounts:
    """Counts rows on their way into a manifest."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.present: set[int] = set()  # labels of usable rows
        self.seconds = 0.0
        self.partial = 0
        self.unusable: list[dict[str, str]] = []

    def count(self, rows: Iterable[Row], meter: Meter) -> Iterator[Row]:
        for number, row in enumerate(rows, start=1):
            self._count(row)
            yield row
            if number % _COUNTED == 0:
                meter.advance(_COUNTED)
        meter.advance(meter.total - meter.done)

    def _count(self, row: Row) -> None:
        self.states[row.state] += 1
        if row.state == "ok":
            self.partial += _is_partial(row)
            self.seconds += _seconds(row, row)
            self.present.update(row.labels or () if row.label is None else (row.label,))
        if (row.why or row.damage) and len(self.unusable) < _NAMED:
            self.unusable.append(_unusable(row))


def _check_writable(catalog: Catalog) -> None:
    folder = manifests(catalog)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: manifests go beside the catalog, and this cannot be made: {error.strerror}"
        ) from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: manifests go beside the catalog, and this cannot be written to")
