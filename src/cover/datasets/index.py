"""`cover index`: writes the manifests of a catalog's data sets, with warnings about oddities."""

from __future__ import annotations

import os
import re
import time
import unicodedata
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
from cover.datasets.catalog import Catalog, DatasetSpec, convention_of, download_roots, load_catalog
from cover.datasets.files import few, is_text, unpack_hint
from cover.datasets.formats import list_splits
from cover.datasets.manifest import SPLITS, STATES, ClassList, Row, write_manifest
from cover.datasets.probe import Facts, Prober
from cover.datasets.probe_cache import FileTable, Lookup, ProbeEngine, cache_path, look_up, manifests, remove_unused
from cover.datasets.splits import CarvedDev, carve_by_hash, carve_dev, group_warnings
from cover.errors import UserError


def warnings_of(
    spec: DatasetSpec, split: str, rows: Sequence[ListedSample], classes: ClassList, present: Set[int]
) -> list[str]:
    """One line for each oddity of a split. `present`: the labels of its usable samples."""
    warnings = [] if spec.root.exists() else [f"the root {spec.root} does not exist"]
    warnings += _repeated(rows)
    unlabelled = sum(row.label is None and row.labels is None for row in rows)
    if unlabelled and split != "test":  # published test splits often have no labels
        warnings.append(f"{unlabelled} of {len(rows)} samples have no label: they are neither trained on nor evaluated")
    empty = [name for label, name in enumerate(classes.names) if label not in present]
    # A dev split is too small for all classes.
    if empty and split != "dev" and any(row.label is not None or row.labels for row in rows):
        warnings.append(f"classes without a usable sample: {few(empty)}")
    return warnings


def _repeated(rows: Sequence[ListedSample]) -> Iterator[str]:
    """Warnings about samples that are listed more than once."""
    known: set[str] = set()
    classes_of: dict[str, set[object]] = {}  # of repeated samples only
    for row in rows:
        if row.sample_id in known:
            classes_of[row.sample_id] = set()
        known.add(row.sample_id)
    if not classes_of:
        return
    for row in rows:
        if row.sample_id in classes_of:
            classes_of[row.sample_id].add(row.label if row.labels is None else tuple(row.labels))
    yield f"listed more than once: {few(list(classes_of))}"
    if contradictory := [sample for sample, classes in classes_of.items() if len(classes) > 1]:
        yield f"listed more than once, with different labels: {few(contradictory)}"


def packed_archives(root: Path) -> list[str]:
    """A warning if files are missing and there are archives or unfinished downloads in the root."""
    hint = unpack_hint(root)
    return [f"files are missing, and {hint}"] if hint else []


@dataclass(frozen=True)
class IndexShard:
    """Shard `number` of `count` of the files. Numbers start at 1, as in job arrays."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> IndexShard:
        """Parse `3/16`. Raises UserError.

        >>> IndexShard.parse("3/16")
        IndexShard(number=3, count=16)
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f'--shard "{text}": expected NUMBER/COUNT, the number from 1 to the count, as in 3/16')
        return cls(int(match[1]), int(match[2]))

    def of(self, paths: Iterable[str]) -> list[str]:
        """The paths of this shard. The shard of a path depends on the path alone, so new files do not move others."""
        return [path for path in paths if zlib.crc32(path.encode()) % self.count == self.number - 1]


_NAMED = 20  # unusable files in a result; the manifest has all of them
_COUNTED = 4096  # rows between two updates of the progress bar
_ABANDONED_AFTER = 3600.0  # seconds; an older temporary file of a manifest is left from a killed run
EngineName = Literal["pool", "ray"]


@dataclass(frozen=True)
class _Plan:
    """The manifests to write for one data set. `rows`: split -> listed samples, with dev already carved out."""

    spec: DatasetSpec
    classes: ClassList
    rows: dict[str, list[ListedSample]]
    left_out: dict[str, tuple[str, ...]]  # split -> warnings of the format and of the splits

    def all_rows(self) -> Iterator[ListedSample]:
        return chain.from_iterable(self.rows.values())


@dataclass(frozen=True)
class ProbeOptions:
    """How files are probed.

    `workers`: processes, 0 for this process. `force`: probe all files again. `deep`: decode every video to its last
    frame. `engine`: worker processes of this machine, or a Ray cluster.
    """

    workers: int
    force: bool = False
    deep: bool = False
    engine: EngineName = "pool"

    def prober(self) -> AbstractContextManager[ProbeEngine]:
        """The probe engine, as a context manager. Raises UserError if Ray is requested but not installed."""
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
    update: bool = False,
) -> list[dict[str, Any]]:
    """Probe the files of the data sets `names` (default: all) and write their manifests.

    Data sets on the Hub are downloaded first, with `update` in their newest version. `workers`, `force`, `deep`,
    `engine`: see `ProbeOptions`. Returns one dict per data set and split:

    - `dataset`, `split`, `manifest` (path), `classes` (number), `class_digest`;
    - `listed`, and the rows in each state: `ok`, `missing`, `unreadable`, `too_short`;
    - `partial`: ok rows with damage inside the file, which only `deep` detects;
    - `hours` of ok videos, and `probed`, the files opened in this run;
    - `unusable`: the first 20 rows that are partial or not ok, as `{path, state, why}`;
    - `warnings`: lines about oddities that are not errors.

    Raises UserError for an invalid catalog or list, before any file is opened.
    """
    options = ProbeOptions(workers, force, deep, engine)
    download_roots(catalog_path, names, update)
    catalog, plans = _plans(catalog_path, names)
    with options.prober() as prober:
        return [result for plan in plans for result in _index_one(catalog, plan, prober, force)]


def index_share(
    catalog_path: str | Path, shard: IndexShard, options: ProbeOptions, names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Probe one shard of the files and write the results to a probe cache. `index` reads the caches of all shards.

    Returns one dict per data set: `dataset`, `shard`, `files` (of this shard), `probed`, the states and `partial` as in
    `index`, and `probe_cache` (path). Raises UserError as `index`.
    """
    download_roots(catalog_path, names)
    catalog, plans = _plans(catalog_path, names)
    with options.prober() as prober:
        return [_probe_share(catalog, plan, shard, prober, options.force) for plan in plans]


def _probe_share(catalog: Catalog, plan: _Plan, shard: IndexShard, prober: ProbeEngine, force: bool) -> dict[str, Any]:
    name, who = plan.spec.name, f"{shard.number}-of-{shard.count}"
    table = FileTable(shard.of(row.path for row in plan.all_rows()))
    lookup = look_up(catalog, plan.spec, table, prober, force, who)
    states, partial = Counter[str](), 0
    for facts in map(table.facts, table.paths):
        states[facts.state] += 1
        partial += _is_partial(facts)
    return {
        "dataset": name,
        "shard": f"{shard.number}/{shard.count}",
        "files": len(table),
        "probed": int(lookup.opened.sum()),
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
    """Print the results of `index`: a table on stdout, warnings and unusable files on stderr."""
    columns = ["dataset", "split", "listed", *STATES, *_partial_column(results), "hours", "classes"]
    _print(columns, results)
    for result in results:
        where = f"{result['dataset']} {result['split']}"
        for warning in result["warnings"]:
            say(f"{where}: {warning}")
        for row in result["unusable"]:
            say(f"{where}: {row['state'].replace('_', ' ')}: {row['path']}: {row['why']}")
        unnamed = unusable(result) - len(result["unusable"])
        if unnamed:
            say(f"{where}: and {unnamed} more that cannot be used, all in {result['manifest']}")


def print_share(results: Sequence[dict[str, Any]]) -> None:
    """Print the results of `index_share` as a table on stdout."""
    _print(["dataset", "shard", "files", "probed", *STATES, *_partial_column(results)], results)


def unusable(result: dict[str, Any]) -> int:
    """The number of rows in a result of `index` that cannot be used, or only up to a damage."""
    return int(result["listed"] - result["ok"] + result["partial"])


def _partial_column(results: Sequence[dict[str, Any]]) -> list[str]:
    return ["partial"] if any(result["partial"] for result in results) else []


def _print(columns: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
    titles = ["data set" if column == "dataset" else column.replace("_", " ") for column in columns]
    print_table(titles, [[_cell(result, column) for column in columns] for result in results])


def _cell(result: dict[str, Any], column: str) -> str:
    return f"{result[column]:.2f}" if column == "hours" else str(result[column])


# --- plans: the listed samples of each split ---


def _plan(spec: DatasetSpec) -> _Plan:
    listings = list_splits(spec)
    classes = next(iter(listings.values())).classes
    same = all(listing.classes == classes for listing in listings.values())
    assert same, f"{spec.name}: class lists differ between splits"
    rows = {split: listing.rows for split, listing in listings.items()}
    for row in chain.from_iterable(rows.values()):
        if not is_text(row.path):
            raise UserError(f"{spec.name}: {row.path!a}: the file's name is not valid UTF-8; rename the file")
    left_out = {split: listing.warnings for split, listing in listings.items()}
    left_out[next(iter(rows))] += (*group_warnings(rows), *_similar(classes))
    if "dev" in spec.splits and "dev" not in rows:
        carved = _carve(spec, classes, rows["train"])
        rows |= {"train": carved.train} | ({"dev": carved.dev} if carved.dev else {})
        shown = "dev" if carved.dev else "train"
        left_out[shown] = (*left_out.get(shown, ()), *carved.warnings)
    return _Plan(spec, classes, {split: rows[split] for split in SPLITS if split in rows}, left_out)


def _similar(classes: ClassList) -> Iterator[str]:
    """A warning about classes that are most likely one: their names differ only in case, spaces or Unicode form."""
    alike: dict[str, list[str]] = {}
    for name in classes.names:
        alike.setdefault("".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    groups = [" and ".join(f'"{name}"' for name in names) for names in alike.values() if len(names) > 1]
    if groups:
        yield f"classes whose names differ only in case, spaces or Unicode form: {few(groups)}"


def _carve(spec: DatasetSpec, classes: ClassList, rows: Sequence[ListedSample]) -> CarvedDev[ListedSample]:
    """Train and dev. In published sets a hash decides, so that dev has the same samples in every copy of the set."""
    if convention_of(spec.format).stratified:
        return carve_dev(rows, spec.dev, classes.names)
    return carve_by_hash(rows, spec.dev)


# --- probing and writing ---


def _index_one(catalog: Catalog, plan: _Plan, prober: ProbeEngine, force: bool) -> list[dict[str, Any]]:
    spec = plan.spec
    lookup = look_up(catalog, spec, FileTable(row.path for row in plan.all_rows()), prober, force)
    results = [_write(catalog, plan, split, lookup) for split in plan.rows]
    if "dev" in spec.splits and "dev" not in plan.rows:
        catalog.manifest_path(spec.name, "dev").unlink(missing_ok=True)  # an earlier catalog carved a dev split
    remove_unused(lookup.caches)
    for file in _abandoned(catalog, spec):
        file.unlink(missing_ok=True)
    return results


def _abandoned(catalog: Catalog, spec: DatasetSpec) -> list[Path]:
    """Temporary files of manifests from killed runs. A newer file may belong to a run that is still writing."""
    paths = (catalog.manifest_path(spec.name, split) for split in spec.splits)
    files = (file for path in paths for file in path.parent.glob(f".{path.name}.*"))
    return [file for file in files if file.stat().st_mtime < time.time() - _ABANDONED_AFTER]


def _write(catalog: Catalog, plan: _Plan, split: str, lookup: Lookup) -> dict[str, Any]:
    """Write one manifest. Returns its dict for `index`."""
    spec, listed = plan.spec, plan.rows[split]
    path, counts = catalog.manifest_path(spec.name, split), _RowCounts()
    try:
        with Meter(f"write {path.name}", total=len(listed)) as meter:
            rows = counts.count(_rows(spec, listed, lookup.table), meter)
            write_manifest(path, spec.name, split, spec.media, plan.classes, _below(spec.root, rows), _base(spec))
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror or error}; run the command again to go on from here"
        ) from None
    numbers = lookup.table.numbers(row.path for row in listed)
    return {
        "dataset": spec.name,
        "split": split,
        "listed": len(listed),
        **{state: counts.states[state] for state in STATES},
        "partial": counts.partial,
        "hours": counts.seconds / 3600,
        "classes": len(plan.classes.names),
        "class_digest": plan.classes.digest,
        "probed": len(set(numbers[lookup.opened[numbers]].tolist())),
        "manifest": str(path),
        "unusable": counts.unusable,
        "warnings": [
            *plan.left_out.get(split, ()),
            *warnings_of(spec, split, listed, plan.classes, counts.present),
            *(packed_archives(spec.root) if counts.states["missing"] else ()),
        ],
    }


_LISTED, _FACTS = ([field.name for field in fields(kind)] for kind in (ListedSample, Facts))
_of_listed, _of_facts = attrgetter(*_LISTED), attrgetter(*_FACTS)


def _rows(spec: DatasetSpec, listed: Iterable[ListedSample], table: FileTable) -> Iterator[Row]:
    for item in listed:
        facts = _of_segment(item, _of_picture(spec, table.facts(item.path)))
        size, mtime_ns = table.stamp(item.path) or (None, None)
        values = dict(zip(_LISTED, _of_listed(item))) | dict(zip(_FACTS, _of_facts(facts)))
        yield Row(**values, offset=None, length=None, size=size, mtime_ns=mtime_ns)


def _below(root: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows with paths relative to the root. Files elsewhere have absolute paths."""
    above = f"{root}{os.sep}"
    for row in rows:
        yield replace(row, path=row.path.removeprefix(above))


def _base(spec: DatasetSpec) -> str:
    """The root of a data set as a manifest names it: relative to the folder of manifests if the catalog's is relative.

    So a catalog can be moved or copied together with its files.
    """
    return spec.given_root if os.path.isabs(spec.given_root) else f"../{spec.given_root}"


def _of_picture(spec: DatasetSpec, facts: Facts) -> Facts:
    """The facts of a file. A picture among videos is too short, unless the catalog says `stills`."""
    if spec.media == "image" or spec.stills or facts.state != "ok" or facts.fps:
        return facts
    return replace(
        facts, state="too_short", why="a picture; stills: true in the catalog takes it as a clip of one frame"
    )


def _of_segment(item: ListedSample, facts: Facts) -> Facts:
    """The facts of a sample. It is too short if its segment has fewer than 2 frames of a usable file."""
    frames = _seconds(item, facts) * facts.fps
    # Times in annotations may be off by half a frame.
    if (item.start is None and item.end is None) or facts.state != "ok" or frames > 1.5:
        return facts
    why = f"{max(0, round(frames))} frames in the segment"
    return replace(facts, state="too_short", why=why)


def _is_partial(facts: Facts | Row) -> bool:
    """Whether a file can be used up to a damage."""
    return facts.state == "ok" and bool(facts.damage)


def _unusable(row: Row) -> dict[str, str]:
    """The entry of a row in `unusable`. A segment behind a damage is too short because of the damage."""
    if row.state == "ok":
        return {"path": row.path, "state": "partial", "why": row.damage}
    why = f"{row.why}; partial: {row.damage}" if row.damage else row.why
    return {"path": row.path, "state": row.state, "why": why}


def _seconds(row: ListedSample | Row, facts: Facts | Row) -> float:
    """The duration of a sample in seconds, 0 for an image."""
    whole = facts.frames / facts.fps if facts.fps else 0.0
    return min(whole, whole if row.end is None else row.end) - (row.start or 0.0)


class _RowCounts:
    """Counts of the rows of a manifest, collected while the rows are written."""

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
