"""What is in the files of a data set? Asked of the file system, then of what earlier runs found, and of the files only for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cover.console import Meter
from cover.datasets.catalog import Catalog, DatasetSpec
from cover.datasets.journal import Found, Journal, is_broken_off, journal_path, journals, read_journal
from cover.datasets.ledger import Ledger
from cover.datasets.manifest import Media, Row, open_manifest
from cover.datasets.probing import Facts, stat_files


class Engine(Protocol):
    """What probes files: `probing.Prober`, or one of its kind for a cluster."""

    deep: bool

    def probe(self, paths: Sequence[str], media: Media) -> Iterator[list[tuple[str, Facts]]]:
        """`(path, facts)` of all files, some at a time as they are done, in no particular order."""


@dataclass(frozen=True)
class Finding:
    """What is known of the files, which of them were `opened` for it in this run (bool, by number), and the journals that are used up
    once the manifests hold it all."""

    ledger: Ledger
    opened: npt.NDArray[np.bool_]
    journals: list[Path]


def find(catalog: Catalog, spec: DatasetSpec, ledger: Ledger, engine: Engine, force: bool, who: str = "all") -> Finding:
    """Fill a ledger. What is found goes into the journal `who` at once; `force` believes no earlier run but the same one, broken off."""
    own = journal_path(manifests(catalog), spec.name, who)
    earlier = journals(manifests(catalog), spec.name)
    _stat(spec, ledger)
    if not force:
        _recall_manifests(catalog, spec, ledger)
        _recall_journals(spec, ledger, earlier)
    elif is_broken_off(own):
        _recall_journals(spec, ledger, [own])
    todo = ledger.unknown(engine.deep)
    with Journal(own, spec.media, forced=force) as journal:
        _probe(spec, ledger, [ledger.paths[number] for number in todo], engine, journal)
    opened = np.zeros(len(ledger), bool)
    opened[todo] = True
    return Finding(ledger, opened, list(dict.fromkeys([*earlier, own])))


def manifests(catalog: Catalog) -> Path:
    """The folder of a catalog's manifests and journals."""
    return catalog.path.parent / "manifests"


def _stat(spec: DatasetSpec, ledger: Ledger) -> None:
    with Meter(f"look for files of {spec.name}", len(ledger)) as meter:
        for found in stat_files(ledger.paths):
            ledger.note_stat(meter.done, found)
            meter.advance(len(found))


def _recall_manifests(catalog: Catalog, spec: DatasetSpec, ledger: Ledger) -> None:
    """What earlier runs found of files that have not changed since."""
    for file in (catalog.manifest_path(spec.name, split) for split in spec.splits):
        if not file.is_file():
            continue
        manifest = open_manifest(file)
        for row in manifest.rows() if manifest.media == spec.media else ():
            if ledger.is_current(row.path, (row.size, row.mtime_ns)):
                ledger.put(row.path, _of_file(row))


def _recall_journals(spec: DatasetSpec, ledger: Ledger, found: Sequence[Path]) -> None:
    """The same of runs that were broken off, or probed a share: younger than the manifests."""
    for journal in found:
        for item in read_journal(journal, spec.media):
            if ledger.is_current(item.path, item.stamp):
                ledger.put(item.path, item.facts)


def _of_file(row: Row) -> Facts:
    """What a row says of its whole file, whatever became of the row's segment."""
    segment_only = row.state == "too_short" and row.frames >= 2
    state, why = ("ok", row.why.partition("; ")[2]) if segment_only else (row.state, row.why)
    return Facts(state, why, row.frames, row.fps, row.width, row.height, row.codec, row.deep)


def _probe(spec: DatasetSpec, ledger: Ledger, todo: Sequence[str], engine: Engine, journal: Journal) -> None:
    with Meter(f"index {spec.name}", total=len(todo)) as meter:
        for part in engine.probe(todo, spec.media):
            journal.add(_entry(ledger, path, facts) for path, facts in part)
            for path, facts in part:
                ledger.put(path, facts)
            meter.advance(len(part))


def _entry(ledger: Ledger, path: str, facts: Facts) -> Found:
    stamp = ledger.stamp(path)
    assert stamp, f"{path} was probed and is not there"
    return Found(path, stamp, facts)
