"""`cover overlap`: evaluated samples that are also trained on, found by source id, file contents and pictures.

Source ids alone need no file: rows that are `missing` are compared too. What is found in a train split and in an
evaluation split goes into the list of exclusions (`exclusions.py`), which `cover train` leaves out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import sqrt
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cover.console import print_table, say
from cover.datasets.catalog import Catalog, DatasetSpec, load_catalog
from cover.datasets.exclusions import EXCLUSIONS_FILE, Exclusion, exclusions_path, write_exclusions
from cover.datasets.manifest import Manifest, Row, open_manifest
from cover.datasets.phash import (
    AGREE,
    RADIUS,
    SURE,
    SURE_IMAGE,
    Fingerprint,
    HashIndex,
    HashInput,
    fingerprints,
    of_bytes,
    of_image,
    of_video,
)
from cover.datasets.probe import Stamp, stamps
from cover.errors import UserError
from cover.media.source import Media, is_url
from cover.processes import ProcessPool

EXAMPLES = 5
CHANCE_PAIRS = 200_000  # pairs known to be different on which the false matches are counted
_ALL_SHOWN = 30  # beyond this many pairs of splits, those that share nothing are left out of the table
_YOUTUBE = re.compile(r"[\w-]{11}", re.ASCII)

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """One split of one data set, as it is compared."""

    spec: DatasetSpec
    manifest: Manifest

    @property
    def split(self) -> str:
        return self.manifest.split

    @property
    def title(self) -> str:
        return f"{self.spec.name} {self.split}"

    @property
    def scope(self) -> str:
        """Within what its source ids mean the same: what was prepared is as its originals were."""
        return self.manifest.scope or self.spec.scope

    @cached_property
    def rows(self) -> list[Row]:
        return list(self.manifest.rows())


@dataclass(frozen=True)
class Shared:
    """What two splits have in common: `distinct` ids, contents or pairs; the row numbers on either side, ascending; and
    for each left row one of the right rows that it matches.
    """

    distinct: int
    left: Numbers
    right: Numbers
    partner: Numbers


class MatchKind(Protocol):
    """A way in which rows can be the same."""

    def shared(self, left: int, right: int) -> Shared:
        """What sides number `left` and `right` have in common."""
        ...


def overlap(
    catalog_path: str | Path,
    workers: int,
    names: Sequence[str] | None = None,
    frames: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare all splits of the data sets `names` (default: all) and write the list of exclusions into `out` (default:
    the manifests' folder, where `cover train` reads it).

    Returns `kinds`; `splits`, one dict per split with its rows and how many could be compared by each kind; `pairs`,
    one dict per pair of splits and under each kind `distinct`, `left_rows`, `right_rows` and at most 5 `examples`;
    `excluded`, one dict per train split; `exclusions`, the list's path; `chance`, the false matches by frames measured
    per media (empty without `frames`). `workers` 0 reads in this process. Raises UserError for a catalog that is not
    sound, not indexed, or a folder that cannot be written.
    """
    catalog = load_catalog(catalog_path)
    sides = _sides(catalog, names or list(catalog.specs))
    digests = {side.manifest.path.name: side.manifest.digest() for side in sides}
    folder = _folder(out or exclusions_path(catalog).parent)
    _say_how_many_are_remote(sides)
    kinds: dict[str, MatchKind] = {"source": Codes([[_origin(side, row) for row in side.rows] for side in sides])}
    chance: dict[str, Any] = {}
    with ProcessPool(workers) as pool:
        stamp = stamps(list(dict.fromkeys(row.path for side in sides for row in side.rows)))
        kinds["file"] = Codes(_contents(sides, pool, stamp, folder))
        if frames:
            kinds["frames"], chance = _pictures(sides, pool, stamp, folder)
    results = list(_exclusions(sides, kinds))
    write_exclusions(folder / EXCLUSIONS_FILE, results, digests, list(kinds))
    return {
        "catalog": str(catalog.path),
        "kinds": list(kinds),
        "splits": [_split_facts(number, side, kinds) for number, side in enumerate(sides)],
        "pairs": [_pair(sides, kinds, left, right) for left, right in combinations(range(len(sides)), 2)],
        "excluded": [_excluded(side, results) for side in sides if side.split == "train"],
        "exclusions": str(folder / EXCLUSIONS_FILE),
        "chance": chance,
    }


def _sides(catalog: Catalog, names: Sequence[str]) -> list[Side]:
    sides = []
    for spec in dict.fromkeys(names):
        for split in catalog.spec(spec).splits:
            path = catalog.manifest_path(spec, split)
            if split == "dev" and "dev" not in catalog.spec(spec).annotations and not path.is_file():
                continue  # too few rows to carve one
            sides.append(Side(catalog.spec(spec), open_manifest(path)))
    return sides


def _say_how_many_are_remote(sides: Sequence[Side]) -> None:
    count = sum(is_url(row.path) for side in sides for row in side.rows)
    if count:
        say(
            f"{count} rows lie behind URLs and are compared by source id alone; for the rest run this where the files are"
        )


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out: {folder}: cannot be written to")
    return folder


# --- the kinds ---


def _origin(side: Side, row: Row) -> str:
    """What makes a source id the same in two data sets. YouTube's are the same everywhere, others within their scope."""
    return row.source_id if _YOUTUBE.fullmatch(row.source_id) else f"{side.scope}\n{row.source_id}"


class Codes:
    """Rows are the same where they have the same key. `keys`: for each side the key of every row, None where it has
    none.
    """

    def __init__(self, keys: Sequence[Sequence[object]]) -> None:
        numbers: dict[object, int] = {None: -1}
        self.codes = [
            np.fromiter((numbers.setdefault(key, len(numbers) - 1) for key in side), np.int64, count=len(side))
            for side in keys
        ]
        self._size = len(numbers) - 1

    def known(self, side: int) -> int:
        """Rows of a side that have a key."""
        return int((self.codes[side] >= 0).sum())

    def shared(self, left: int, right: int) -> Shared:
        partner = self._first_of(right)[self.codes[left]]
        back = self._first_of(left)[self.codes[right]]
        rows = np.flatnonzero(partner >= 0)
        return Shared(len(np.unique(self.codes[left][rows])), rows, np.flatnonzero(back >= 0), partner[rows])

    def _first_of(self, side: int) -> Numbers:
        """For each code the first row that has it, -1 for none; so too at the end, which stands for rows without a key."""
        first = np.full(self._size + 1, -1)
        rows = np.flatnonzero(self.codes[side] >= 0)[::-1]
        first[self.codes[side][rows]] = rows
        return first


class Alike:
    """Rows are the same where their pictures match. `pairs` int64 `(pairs, 2)`: rows numbered through all sides;
    `bounds`: where each side's numbers begin, and the end; `comparable` bool: rows with frames enough to compare.
    """

    def __init__(self, pairs: Numbers, bounds: Numbers, comparable: npt.NDArray[np.bool_]) -> None:
        self.bounds, self.comparable = bounds, comparable
        self.pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        self._side = np.searchsorted(bounds, self.pairs, side="right") - 1

    def known(self, side: int) -> int:
        """Rows of a side that can be compared."""
        return int(self.comparable[self.bounds[side] : self.bounds[side + 1]].sum())

    def shared(self, left: int, right: int) -> Shared:
        first, second = min(left, right), max(left, right)
        pairs = self.pairs[(self._side == (first, second)).all(1)] - self.bounds[[first, second]]
        mine, theirs = pairs.T if left < right else pairs.T[::-1]
        rows, place = np.unique(mine, return_index=True)
        return Shared(len(pairs), rows, np.unique(theirs), theirs[place])


def _contents(sides: Sequence[Side], pool: ProcessPool, stamp: dict[str, Stamp], folder: Path) -> list[list[object]]:
    """A key of every row's bytes. A file whose size no other has equals none: its path will do, and it is not read."""
    portions = [[_bytes_of(row) if row.path in stamp else None for row in side.rows] for side in sides]
    distinct = {portion for side in portions for portion in side if portion}
    sizes = Counter(_size(portion, stamp) for portion in distinct)
    twice = sorted((p for p in distinct if sizes[_size(p, stamp)] > 1), key=str)
    hashes = fingerprints(pool, "hash files", of_bytes, twice, stamp, folder / ".overlap-bytes.arrow")
    unread = set(twice) - hashes.keys()
    return [[None if p is None or p in unread else hashes.get(p, p) for p in side] for side in portions]


def _bytes_of(row: Row) -> HashInput:
    return HashInput(row.path, row.offset, row.length)


def _size(portion: HashInput, stamp: dict[str, Stamp]) -> int:
    return stamp[portion.path][0] if portion.length is None else portion.length


def _pictures(
    sides: Sequence[Side], pool: ProcessPool, stamp: dict[str, Stamp], folder: Path
) -> tuple[Alike, dict[str, Any]]:
    """Rows with matching pictures, videos among videos and images among images, and how often that is chance."""
    bounds = np.cumsum([0, *(len(side.rows) for side in sides)])
    pairs, comparable = [np.empty((0, 2), np.int64)], np.zeros(bounds[-1], bool)
    chance: dict[str, Any] = {}
    works: dict[Media, Callable[[HashInput], Fingerprint | None]] = {"video": of_video, "image": of_image}
    for media, work in works.items():
        shown = [
            _Shown(int(bounds[number]) + place, number, row, _origin(side, row))
            for number, side in enumerate(sides)
            if side.manifest.media == media
            for place, row in enumerate(side.rows)
            if row.state == "ok"
        ]
        hashes = fingerprints(
            pool,
            f"{media} frames",
            work,
            [item.portion for item in shown],
            stamp,
            folder / f".overlap-{media}-frames.arrow",
        )
        shown = [item for item in shown if hashes.get(item.portion)]
        if shown:
            numbers = np.array([item.number for item in shown])
            gallery = HashIndex(
                [hashes[item.portion] for item in shown], np.array([item.side for item in shown]), media == "video"
            )
            comparable[numbers[gallery.comparable]] = True
            pairs.append(numbers[gallery.pairs()])
            chance[media] = _chance(gallery, shown)
    return Alike(np.concatenate(pairs), bounds, comparable), chance


@dataclass(frozen=True)
class _Shown:
    """A row whose pictures are compared: its number through all sides, its side, itself and its origin."""

    number: int
    side: int
    row: Row
    origin: str
    portion: HashInput = field(init=False)

    def __post_init__(self) -> None:
        times = (self.row.start or 0.0, self.row.seconds) if self.row.fps else ()
        object.__setattr__(self, "portion", HashInput(self.row.path, self.row.offset, self.row.length, *times))

    @property
    def file(self) -> str:
        """The file, or the stretch of a shard."""
        return self.row.path if self.row.offset is None else f"{self.row.path}:{self.row.offset}"


def _chance(gallery: HashIndex, shown: Sequence[_Shown]) -> dict[str, Any]:
    """How often the rule takes two different clips for one, on at most 200,000 pairs known to be different.

    They are drawn within a split, where nothing is looked for, and have other labels, other source ids and other files.
    `upper` is the 95 % bound (Wilson). `expected` is what that many chance matches would come to over all pairs that
    were compared.
    """
    side = np.array([item.side for item in shown])
    label = np.array([-1 if item.row.label is None else item.row.label for item in shown])
    source, file = (
        (np.unique(texts, return_inverse=True)[1]) for texts in ([i.origin for i in shown], [i.file for i in shown])
    )
    a, b = _drawn_pairs(side, np.flatnonzero(gallery.comparable & (label >= 0)))
    different = (label[a] != label[b]) & (source[a] != source[b]) & (file[a] != file[b])
    pairs = np.stack([a, b], axis=1)[different]
    wrong = sum(int(gallery.matches(part).sum()) for part in np.array_split(pairs, 16)) if len(pairs) else 0
    sizes = np.bincount(side[gallery.comparable])
    compared = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
    rate = wrong / len(pairs) if len(pairs) else None
    upper = _upper(wrong, len(pairs)) if len(pairs) else None
    expected = None if rate is None else rate * compared
    return {
        "pairs": len(pairs),
        "matched": wrong,
        "rate": rate,
        "upper": upper,
        "compared": compared,
        "expected": expected,
    }


def _drawn_pairs(side: Numbers, usable: Numbers) -> tuple[Numbers, Numbers]:
    """Distinct pairs of items of one side, always the same: all of them where they are few."""
    sides = [usable[side[usable] == number] for number in np.unique(side[usable])]
    pools = [items for items in sides if len(items) > 1]
    total, rng = sum(len(items) * (len(items) - 1) // 2 for items in pools), np.random.default_rng(0)
    results = [np.empty((0, 2), np.int64)]
    for items in pools:
        if total <= CHANCE_PAIRS:
            results.append(items[np.stack(np.triu_indices(len(items), 1), axis=1)])
            continue
        count = int(CHANCE_PAIRS * (len(items) * (len(items) - 1) // 2) / total)
        drawn = np.sort(rng.integers(len(items), size=(count, 2)), axis=1)
        results.append(items[np.unique(drawn[drawn[:, 0] < drawn[:, 1]], axis=0)])
    a, b = np.concatenate(results).T
    return a, b


def _upper(matched: int, pairs: int) -> float:
    """The one-sided 95 % bound of a rate (Wilson's score interval)."""
    z, share = 1.645, matched / pairs
    return (share + z * z / (2 * pairs) + z * sqrt(share * (1 - share) / pairs + z * z / (4 * pairs * pairs))) / (
        1 + z * z / pairs
    )


# --- what is told ---


def _split_facts(number: int, side: Side, kinds: dict[str, Any]) -> dict[str, Any]:
    comparable = {kind: how.known(number) for kind, how in kinds.items()}
    return {"dataset": side.spec.name, "split": side.split, "rows": len(side.rows), "comparable": comparable}


def _pair(sides: Sequence[Side], kinds: dict[str, MatchKind], left: int, right: int) -> dict[str, Any]:
    named = {
        name: {"dataset": side.spec.name, "split": side.split}
        for name, side in (("left", sides[left]), ("right", sides[right]))
    }
    return {
        **named,
        **{kind: _counts(how.shared(left, right), sides[left].rows, sides[right].rows) for kind, how in kinds.items()},
    }


def _counts(shared: Shared, left: Sequence[Row], right: Sequence[Row]) -> dict[str, Any]:
    pairs = zip(shared.left[:EXAMPLES].tolist(), shared.partner[:EXAMPLES].tolist())
    examples = [{"left": _summary(left[mine]), "right": _summary(right[theirs])} for mine, theirs in pairs]
    return {
        "distinct": shared.distinct,
        "left_rows": len(shared.left),
        "right_rows": len(shared.right),
        "examples": examples,
    }


def _summary(row: Row) -> dict[str, Any]:
    times = None if row.youtube_start is None else [row.youtube_start, row.youtube_end]
    return {"sample_id": row.sample_id, "source_id": row.source_id, "youtube_times": times, "path": row.path}


def _exclusions(sides: Sequence[Side], kinds: dict[str, MatchKind]) -> Iterator[Exclusion]:
    """Every train row that matches a val or test row of any data set or a dev row of another: once for each split and
    kind. A set's own dev rows are parted from train by source id when they are indexed.
    """
    for mine, train in enumerate(sides):
        for theirs, present in enumerate(sides):
            own_dev = present.split == "dev" and present.spec.name == train.spec.name
            if train.split != "train" or present.split == "train" or own_dev:
                continue
            for kind, how in kinds.items():
                shared = how.shared(mine, theirs)
                for row, partner in zip(shared.left.tolist(), shared.partner.tolist()):
                    sample, matched = train.rows[row].sample_id, present.rows[partner].sample_id
                    yield Exclusion(train.spec.name, row, sample, kind, present.spec.name, present.split, matched)


def _excluded(side: Side, results: Sequence[Exclusion]) -> dict[str, Any]:
    mine = [item for item in results if item.dataset == side.spec.name]
    by_kind: dict[str, set[int]] = {}
    for item in mine:
        by_kind.setdefault(item.reason, set()).add(item.row)
    counts = {kind: len(rows) for kind, rows in by_kind.items()}
    return {
        "dataset": side.spec.name,
        "train_rows": len(side.rows),
        "excluded": len({item.row for item in mine}),
        "by": counts,
    }


_TITLES = {"source": "source ids", "file": "files", "frames": "frames"}


def print_overlap(results: dict[str, Any]) -> None:
    """The results of `overlap` as tables on stdout: rows as left / right."""
    kinds, pairs = results["kinds"], results["pairs"]
    shown = [pair for pair in pairs if len(pairs) <= _ALL_SHOWN or any(pair[kind]["distinct"] for kind in kinds)]
    columns = ["split", "against", *(title for kind in kinds for title in (_TITLES[kind], "rows"))]
    print_table(columns, [_line(pair, kinds) for pair in shown])
    if len(shown) < len(pairs):
        print(f"{len(pairs) - len(shown)} other pairs of splits share nothing")
    if results["excluded"]:
        print()
        columns = ["data set", "train rows", "excluded", *(f"by {_TITLES[kind]}" for kind in kinds)]
        print_table(columns, [_excluded_line(row, kinds) for row in results["excluded"]])
    for media, chance in results["chance"].items():
        print(_chance_line(media, chance))
    say(f"exclusions: {results['exclusions']}")


def _line(pair: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    cells = [f"{pair[side]['dataset']} {pair[side]['split']}" for side in ("left", "right")]
    for kind in kinds:
        counts = pair[kind]
        cells += [
            f"{counts['distinct']:,}",
            f"{counts['left_rows']:,} / {counts['right_rows']:,}" if counts["distinct"] else "",
        ]
    return cells


def _excluded_line(row: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    return [
        row["dataset"],
        f"{row['train_rows']:,}",
        f"{row['excluded']:,}",
        *(f"{row['by'].get(kind, 0):,}" for kind in kinds),
    ]


def _chance_line(media: str, chance: dict[str, Any]) -> str:
    rule = (
        f"{AGREE} frames within {RADIUS} of 64 bits, one within {SURE}"
        if media == "video"
        else f"within {SURE_IMAGE} of 64 bits"
    )
    if not chance["pairs"]:
        return f"{media} frames match {rule}; false matches: not measured, no two {media}s of a split have other labels and sources"
    measured = f"{chance['matched']:,} of {chance['pairs']:,} pairs known to be different match ({chance['rate']:.2g}"
    bounds = f"under {chance['upper']:.2g} at 95 %)"
    return f"{media} frames match {rule}; {measured}, {bounds}: {chance['expected']:.2g} of {chance['compared']:,} compared pairs by chance"
