"""Which listed samples can be read, and what is in them? Every file is probed once and the answer kept in manifests.

A later run probes only files whose size or modification time changed, that appeared, or that an interrupted run had not reached.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from cover.console import Meter, print_table, say
from cover.datasets.adapters import list_split
from cover.datasets.catalog import Catalog, DatasetSpec, load_catalog
from cover.datasets.listing import Listed, Listing
from cover.datasets.manifest import SPLITS, STATES, ClassList, Row, open_manifest, write_manifest
from cover.datasets.probing import Facts, Prober, Stamp, stamps
from cover.datasets.remarks import remarks
from cover.errors import UserError

_DEV_SALT = "cover dev split"  # changing it would move rows between train and dev
_ENOUGH_FOR_DEV = 20
_NAMED = 20  # unusable files named in a result; the manifest has them all


@dataclass(frozen=True)
class _Plan:
    """What is to be written for one data set: rows by split, dev carved out already."""

    spec: DatasetSpec
    classes: ClassList
    rows: dict[str, list[Listed]]
    left_out: dict[str, tuple[str, ...]]  # the adapter's own remarks


def index(catalog_path: str | Path, workers: int, names: Sequence[str] | None = None, force: bool = False) -> list[dict[str, Any]]:
    """Probe the files of the data sets `names` (default: all) and write their manifests.

    Returns one dict per data set and split: `dataset`, `split`, `listed`, `ok`, `missing`, `unreadable`, `too_short`, `hours` (of ok
    videos), `classes`, `class_digest`, `probed` (files opened in this run), `manifest`, `unusable`, the first 20 rows that are
    not ok as `{path, state, why}`, and `remarks`, lines on what is odd and not wrong. `workers` 0 probes in this process; `force`
    probes all anew. Raises UserError for a catalog or a list that is not sound, before any file is opened.
    """
    catalog = load_catalog(catalog_path)
    plans = [_plan(catalog.spec(name)) for name in (names or catalog.specs)]
    _check_writable(catalog)
    with Prober(workers) as prober:
        return [result for plan in plans for result in _index_one(catalog, plan, prober, force)]


def print_index(results: Sequence[dict[str, Any]]) -> None:
    """The results of `index` as a table on stdout, and on stderr the files that cannot be used."""
    columns = ["data set", "split", "listed", *STATES, "hours", "classes"]
    print_table(
        [column.replace("_", " ") for column in columns],
        [[_cell(result, column) for column in ["dataset", *columns[1:]]] for result in results],
    )
    for result in results:
        for remark in result["remarks"]:
            say(f"{result['dataset']} {result['split']}: {remark}")
        for row in result["unusable"]:
            say(f"{result['dataset']} {result['split']}: {row['state'].replace('_', ' ')}: {row['path']}: {row['why']}")
        unnamed = result["listed"] - result["ok"] - len(result["unusable"])
        if unnamed:
            say(f"{result['dataset']} {result['split']}: and {unnamed} more that cannot be used, all in {result['manifest']}")


def _cell(result: dict[str, Any], column: str) -> str:
    return f"{result[column]:.2f}" if column == "hours" else str(result[column])


# ---------------------------------------------------------------------------------------------------------------- rows by split


def _plan(spec: DatasetSpec) -> _Plan:
    listings: dict[str, Listing] = {split: list_split(spec, split) for split in spec.annotations}
    classes = next(iter(listings.values())).classes
    assert all(listing.classes == classes for listing in listings.values()), f"{spec.name}: class lists differ between splits"
    rows = {split: listing.rows for split, listing in listings.items()}
    for row in chain.from_iterable(rows.values()):
        if not _is_text(row.path):
            raise UserError(f"{spec.name}: {row.path!a}: the file's name is not valid UTF-8; rename the file")
    if "dev" in spec.splits and "dev" not in rows:
        rows["train"], dev = carve_dev(rows["train"], spec.dev)
        rows |= {"dev": dev} if dev else {}
    left_out = {split: listing.remarks for split, listing in listings.items()}
    return _Plan(spec, classes, {split: rows[split] for split in SPLITS if split in rows}, left_out)


def _is_text(path: str) -> bool:
    """Whether a path can be written into a manifest."""
    return path.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in path)


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


def _index_one(catalog: Catalog, plan: _Plan, prober: Prober, force: bool) -> list[dict[str, Any]]:
    spec, partial = plan.spec, _partial_path(catalog, plan.spec)
    paths = list(dict.fromkeys(row.path for rows in plan.rows.values() for row in rows))
    stamp = stamps(paths)
    known = {} if force else _known(catalog, spec, stamp)
    todo = [path for path in paths if path in stamp and path not in known]
    try:
        with Meter(f"index {spec.name}", total=len(todo)) as meter:
            for found in prober.probe(todo, spec.media):
                known.update(found)
                meter.advance(len(found))
    except BaseException:
        done = (row for rows in plan.rows.values() for row in rows if row.path in known)
        write_manifest(partial, spec.name, "partial", spec.media, plan.classes, _rows(done, known, stamp))
        raise
    results = [_write(catalog, plan, split, known, stamp, frozenset(todo)) for split in plan.rows]
    if "dev" in spec.splits and "dev" not in plan.rows:
        catalog.manifest_path(spec.name, "dev").unlink(missing_ok=True)  # of a catalog that carved more
    partial.unlink(missing_ok=True)
    return results


def _known(catalog: Catalog, spec: DatasetSpec, stamp: dict[str, Stamp]) -> dict[str, Facts]:
    """What earlier runs found of files that have not changed since."""
    known = {}
    for file in [*(catalog.manifest_path(spec.name, split) for split in spec.splits), _partial_path(catalog, spec)]:
        if not file.is_file():
            continue
        manifest = open_manifest(file)
        if manifest.media != spec.media:
            continue
        for row in manifest.rows():
            if stamp.get(row.path) == (row.size, row.mtime_ns):
                known[row.path] = _facts_of_file(row)
    return known


def _facts_of_file(row: Row) -> Facts:
    """What a row says of its whole file, whatever became of the row's segment."""
    segment_only = row.state == "too_short" and row.frames >= 2
    state, why = ("ok", "") if segment_only else (row.state, row.why)
    return Facts(state, why, row.frames, row.fps, row.width, row.height, row.codec)


def _write(
    catalog: Catalog, plan: _Plan, split: str, known: dict[str, Facts], stamp: dict[str, Stamp], opened: frozenset[str]
) -> dict[str, Any]:
    """Write one manifest and say what is in it, in the words of `index`."""
    spec, listed = plan.spec, plan.rows[split]
    path, tally = catalog.manifest_path(spec.name, split), _Tally()
    write_manifest(path, spec.name, split, spec.media, plan.classes, tally.count(_rows(listed, known, stamp)))
    return {
        "dataset": spec.name, "split": split, "listed": len(listed), **{state: tally.states[state] for state in STATES},
        "hours": tally.seconds / 3600, "classes": len(plan.classes.names), "class_digest": plan.classes.digest,
        "probed": len({row.path for row in listed} & opened), "manifest": str(path), "unusable": tally.unusable,
        "remarks": [*plan.left_out.get(split, ()), *remarks(spec, split, listed, plan.classes, tally.held)],
    }  # fmt: skip


def _rows(listed: Iterable[Listed], known: dict[str, Facts], stamp: dict[str, Stamp]) -> Iterator[Row]:
    for item in listed:
        facts = _of_segment(item, known.get(item.path, Facts("missing", "no such file")))
        size, mtime_ns = stamp.get(item.path, (None, None))
        yield Row(**vars(item), **vars(facts), offset=None, length=None, size=size, mtime_ns=mtime_ns)


def _of_segment(item: Listed, facts: Facts) -> Facts:
    """A good file's segment is itself too short where fewer than 2 of the file's frames lie in it."""
    held = _seconds(item, facts) * facts.fps
    if (item.start is None and item.end is None) or facts.state != "ok" or held > 1.5:  # a time may be off by half a frame
        return facts
    return replace(facts, state="too_short", why=f"{max(0, round(held))} frames in the segment")


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
        self.unusable: list[dict[str, str]] = []

    def count(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            self.states[row.state] += 1
            if row.state == "ok":
                self.seconds += _seconds(row, row)
                if row.label is not None:
                    self.held.add(row.label)
            elif len(self.unusable) < _NAMED:
                self.unusable.append({"path": row.path, "state": row.state, "why": row.why})
            yield row


def _partial_path(catalog: Catalog, spec: DatasetSpec) -> Path:
    """Where an interrupted run leaves what it found."""
    return catalog.path.parent / "manifests" / f".{spec.name}.partial.arrow"


def _check_writable(catalog: Catalog) -> None:
    folder = catalog.path.parent / "manifests"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: manifests go beside the catalog, and this cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: manifests go beside the catalog, and this cannot be written to")
