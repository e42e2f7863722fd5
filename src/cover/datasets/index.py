"""Which listed samples can be read, and what is in them? Every file is probed once and the answer kept in manifests.

A later run probes only files whose size or modification time changed, that appeared, or that an interrupted run had not reached.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from cover.console import Meter, print_table, say
from cover.datasets.adapters import list_splits
from cover.datasets.catalog import Catalog, DatasetSpec, load_catalog
from cover.datasets.files import is_text
from cover.datasets.listing import Listed
from cover.datasets.manifest import SPLITS, STATES, ClassList, Row, write_manifest
from cover.datasets.probe_cache import Engine, FileTable, Lookup, cache_path, look_up, manifests, remove_unused
from cover.datasets.probing import Facts, Prober
from cover.datasets.remarks import packed, remarks
from cover.datasets.shares import Share
from cover.errors import UserError

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
    rows: dict[str, list[Listed]]
    left_out: dict[str, tuple[str, ...]]  # the adapter's own remarks

    def all_rows(self) -> Iterator[Listed]:
        return chain.from_iterable(self.rows.values())


@dataclass(frozen=True)
class How:
    """How files are probed: by `workers` processes (0: in this one), or by a Ray cluster; `force`: all anew; `deep`: every video is
    decoded to its last frame."""

    workers: int
    force: bool = False
    deep: bool = False
    engine: EngineName = "pool"

    def prober(self) -> AbstractContextManager[Engine]:
        """To be entered. Raises UserError where Ray is wanted and not installed."""
        if self.engine == "pool":
            return Prober(self.workers, self.deep)
        from cover.datasets.ray_prober import RayProber

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

    Returns one dict per data set and split: `dataset`, `split`, `listed`, `ok`, `missing`, `unreadable`, `too_short`, `partial` (of
    the ok ones, those damaged inside, which only `deep` finds), `hours` (of ok videos), `classes`, `class_digest`, `probed` (files
    opened in this run), `manifest`, `unusable`, the first 20 rows that are not ok or partial as `{path, state, why}`, and `remarks`,
    lines on what is odd and not wrong. Raises UserError for a catalog or a list that is not sound, before any file is opened.
    """
    how = How(workers, force, deep, engine)
    catalog, plans = _plans(catalog_path, names)
    with how.prober() as prober:
        return [result for plan in plans for result in _index_one(catalog, plan, prober, force)]


def index_share(catalog_path: str | Path, share: Share, how: How, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Probe one share of the files and leave what was found beside the manifests, for the `index` that follows all shares.

    Returns one dict per data set: `dataset`, `shard`, `files` (of this share), `probed`, the states as in `index`, and `probe_cache`.
    """
    catalog, plans = _plans(catalog_path, names)
    with how.prober() as prober:
        return [_probe_share(catalog, plan, share, prober, how.force) for plan in plans]


def _probe_share(catalog: Catalog, plan: _Plan, share: Share, prober: Engine, force: bool) -> dict[str, Any]:
    name, who = plan.spec.name, f"{share.number}-of-{share.count}"
    table = FileTable(share.of(row.path for row in plan.all_rows()))
    found = look_up(catalog, plan.spec, table, prober, force, who)
    states, partial = Counter[str](), 0
    for facts in map(table.facts, table.paths):
        states[facts.state] += 1
        partial += _is_partial(facts)
    return {
        "dataset": name, "shard": f"{share.number}/{share.count}", "files": len(table), "probed": int(found.opened.sum()),
        **{state: states[state] for state in STATES}, "partial": partial, "probe_cache": str(cache_path(manifests(catalog), name, who)),
    }  # fmt: skip


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


# ---------------------------------------------------------------------------------------------------------------- rows by split


def _plan(spec: DatasetSpec) -> _Plan:
    listings = list_splits(spec)
    classes = next(iter(listings.values())).classes
    assert all(listing.classes == classes for listing in listings.values()), f"{spec.name}: class lists differ between splits"
    rows = {split: listing.rows for split, listing in listings.items()}
    for row in chain.from_iterable(rows.values()):
        if not is_text(row.path):
            raise UserError(f"{spec.name}: {row.path!a}: the file's name is not valid UTF-8; rename the file")
    if "dev" in spec.splits and "dev" not in rows:
        rows["train"], dev = carve_dev(rows["train"], spec.dev)
        rows |= {"dev": dev} if dev else {}
    left_out = {split: listing.remarks for split, listing in listings.items()}
    return _Plan(spec, classes, {split: rows[split] for split in SPLITS if split in rows}, left_out)


def carve_dev(rows: Sequence[Listed], fraction: float) -> tuple[list[Listed], list[Listed]]:
    """Part rows into train and dev by source id, so that no source is in both.

    A source is in dev if its hash says so, whatever else is listed: adding rows moves none. From 20 rows on dev gets at least one
    source; train always keeps one.
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


# ------------------------------------------------------------------------------------------------------------- probe and write


def _index_one(catalog: Catalog, plan: _Plan, prober: Engine, force: bool) -> list[dict[str, Any]]:
    spec = plan.spec
    found = look_up(catalog, spec, FileTable(row.path for row in plan.all_rows()), prober, force)
    results = [_write(catalog, plan, split, found) for split in plan.rows]
    if "dev" in spec.splits and "dev" not in plan.rows:
        catalog.manifest_path(spec.name, "dev").unlink(missing_ok=True)  # of a catalog that carved more
    remove_unused(found.caches)
    for file in _left_behind(catalog, spec):
        file.unlink(missing_ok=True)
    return results


def _left_behind(catalog: Catalog, spec: DatasetSpec) -> list[Path]:
    """What runs left that were killed while they wrote a manifest. A younger file may be that of a run beside this one."""
    paths = (catalog.manifest_path(spec.name, split) for split in spec.splits)
    files = (file for path in paths for file in path.parent.glob(f".{path.name}.*"))
    return [file for file in files if file.stat().st_mtime < time.time() - _LEFT_BEHIND]


def _write(catalog: Catalog, plan: _Plan, split: str, found: Lookup) -> dict[str, Any]:
    """Write one manifest and say what is in it, in the words of `index`."""
    spec, listed = plan.spec, plan.rows[split]
    path, tally = catalog.manifest_path(spec.name, split), _Tally()
    try:
        with Meter(f"write {path.name}", total=len(listed)) as meter:
            write_manifest(path, spec.name, split, spec.media, plan.classes, tally.count(_rows(listed, found.table), meter))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; run the command again to go on from here") from None
    numbers = found.table.numbers(row.path for row in listed)
    return {
        "dataset": spec.name, "split": split, "listed": len(listed), **{state: tally.states[state] for state in STATES},
        "partial": tally.partial, "hours": tally.seconds / 3600, "classes": len(plan.classes.names),
        "class_digest": plan.classes.digest, "probed": len(set(numbers[found.opened[numbers]].tolist())), "manifest": str(path),
        "unusable": tally.unusable,
        "remarks": [
            *plan.left_out.get(split, ()), *remarks(spec, split, listed, plan.classes, tally.held),
            *(packed(spec.root) if tally.states["missing"] else ()),
        ],
    }  # fmt: skip


_LISTED, _FACTS = ([field.name for field in fields(kind)] for kind in (Listed, Facts))
_of_listed, _of_facts = attrgetter(*_LISTED), attrgetter(*_FACTS)


def _rows(listed: Iterable[Listed], table: FileTable) -> Iterator[Row]:
    for item in listed:
        facts = _of_segment(item, table.facts(item.path))
        size, mtime_ns = table.stamp(item.path) or (None, None)
        values = dict(zip(_LISTED, _of_listed(item))) | dict(zip(_FACTS, _of_facts(facts)))
        yield Row(**values, offset=None, length=None, size=size, mtime_ns=mtime_ns)


def _of_segment(item: Listed, facts: Facts) -> Facts:
    """A good file's segment is itself too short where fewer than 2 of the file's frames lie in it."""
    held = _seconds(item, facts) * facts.fps
    if (item.start is None and item.end is None) or facts.state != "ok" or held > 1.5:  # a time may be off by half a frame
        return facts
    why = f"{max(0, round(held))} frames in the segment"
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


def _seconds(row: Listed | Row, facts: Facts | Row) -> float:
    """How long a sample is: 0 for an image."""
    whole = facts.frames / facts.fps if facts.fps else 0.0
    return min(whole, whole if row.end is None else row.end) - (row.start or 0.0)


class _Tally:
    """Counts rows on their way into a manifest."""

    def __init__(self) -> None:
        self.states: Counter[str] = Counter()
        self.held: set[int] = set()  # labels of usable rows
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
            self.held.update(row.labels or () if row.label is None else (row.label,))
        if (row.why or row.damage) and len(self.unusable) < _NAMED:
            self.unusable.append(_unusable(row))


def _check_writable(catalog: Catalog) -> None:
    folder = manifests(catalog)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: manifests go beside the catalog, and this cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: manifests go beside the catalog, and this cannot be written to")
