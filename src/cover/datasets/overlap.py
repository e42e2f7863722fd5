"""`cover overlap`: matches between splits, by source id, by file content and by pictures.

Source ids need no files, so rows with the state `missing` are compared too. Train rows that match a row of an
evaluation split go into the list of exclusions (`exclusions.py`), and `cover train` leaves them out.
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

from cover.console import print_table, say, tell
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

EXAMPLES = 5  # examples of matches per pair of splits
CHANCE_PAIRS = 200_000  # pairs of different clips on which false matches are counted
_ALL_SHOWN = 30  # with more pairs of splits, the table leaves out pairs without a match
_YOUTUBE = re.compile(r"[\w-]{11}", re.ASCII)

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Side:
    """One split of one data set, with its rows."""

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
        """The namespace of its source ids. Prepared data have that of their originals."""
        return self.manifest.scope or self.spec.scope

    @cached_property
    def rows(self) -> list[Row]:
        return list(self.manifest.rows())


@dataclass(frozen=True)
class Shared:
    """The matches between two splits.

    `distinct`: number of different ids, contents or pairs. `left`, `right`: int64, ascending, the matching rows of each
    side. `partner`: int64 `(len(left),)`, one matching right row for each left row.
    """

    distinct: int
    left: Numbers
    right: Numbers
    partner: Numbers


class MatchKind(Protocol):
    """One kind of match between rows."""

    def shared(self, left: int, right: int) -> Shared:
        """The matches between the sides number `left` and `right`."""
        ...


def overlap(
    catalog_path: str | Path,
    workers: int,
    names: Sequence[str] | None = None,
    frames: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare all splits of the data sets `names` (default: all) and write the list of exclusions.

    `workers`: processes that read files, 0 to read in this process. `frames`: compare pictures too. `out`: the folder
    for the list (default: the folder of the manifests, where `cover train` reads it). Returns a dict with

    - `kinds`: the kinds of match;
    - `splits`: one dict per split, with its rows and the number of comparable rows for each kind;
    - `pairs`: one dict per pair of splits. For each kind: `distinct`, `left_rows`, `right_rows`, up to 5 `examples`;
    - `excluded`: one dict per train split; `exclusions`: path of the list; `catalog`: path of the catalog;
    - `chance`: the measured rate of false matches by pictures, for each kind of media (empty without `frames`).

    Raises UserError for an invalid catalog, a missing manifest, or a folder that cannot be written.
    """
    catalog = load_catalog(catalog_path)
    sides = _sides(catalog, names or list(catalog.specs))
    digests = {side.manifest.path.name: side.manifest.digest() for side in sides}
    folder = _folder(out or exclusions_path(catalog).parent)
    _say_how_many_are_remote(sides)
    kinds: dict[str, MatchKind] = {"source": KeyMatches([[_origin(side, row) for row in side.rows] for side in sides])}
    chance: dict[str, Any] = {}
    with ProcessPool(workers) as pool:
        stamp = stamps(list(dict.fromkeys(row.path for side in sides for row in side.rows)))
        kinds["file"] = KeyMatches(_content_keys(sides, pool, stamp, folder))
        if frames:
            kinds["frames"], chance = _frame_matches(sides, pool, stamp, folder)
    exclusions = list(_exclusions(sides, kinds))
    write_exclusions(folder / EXCLUSIONS_FILE, exclusions, digests, list(kinds))
    return {
        "catalog": str(catalog.path),
        "kinds": list(kinds),
        "splits": [_split_facts(number, side, kinds) for number, side in enumerate(sides)],
        "pairs": [_pair(sides, kinds, left, right) for left, right in combinations(range(len(sides)), 2)],
        "excluded": [_excluded(side, exclusions) for side in sides if side.split == "train"],
        "exclusions": str(folder / EXCLUSIONS_FILE),
        "chance": chance,
    }


def _sides(catalog: Catalog, names: Sequence[str]) -> list[Side]:
    sides = []
    for spec in dict.fromkeys(names):
        for split in catalog.spec(spec).splits:
            path = catalog.manifest_path(spec, split)
            if split == "dev" and "dev" not in catalog.spec(spec).annotations and not path.is_file():
                continue  # too few rows for a dev split
            sides.append(Side(catalog.spec(spec), open_manifest(path)))
    return sides


def _say_how_many_are_remote(sides: Sequence[Side]) -> None:
    count = sum(is_url(row.path) for side in sides for row in side.rows)
    if count:
        say(f"{count} rows have URLs and are compared by source id alone; for the rest run this where the files are")


def _folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {folder}: cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out: {folder}: cannot be written to")
    return folder


# --- kinds of match ---


def _origin(side: Side, row: Row) -> str:
    """The source id with its namespace. YouTube ids are valid everywhere, other ids only within their scope."""
    return row.source_id if _YOUTUBE.fullmatch(row.source_id) else f"{side.scope}\n{row.source_id}"


class KeyMatches:
    """Rows match if their keys are equal. `keys`: for each side the key of every row, None for no key.

    `codes`: for each side, int64 `(rows,)`, a number for each distinct key, -1 for no key.
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
        # For each left row a matching right row, and the other way round; -1 for none.
        partner = self._first_of(right)[self.codes[left]]
        back = self._first_of(left)[self.codes[right]]
        rows = np.flatnonzero(partner >= 0)
        return Shared(len(np.unique(self.codes[left][rows])), rows, np.flatnonzero(back >= 0), partner[rows])

    def _first_of(self, side: int) -> Numbers:
        """int64: for each code the first row with it, -1 for none. The last element is for code -1, no key."""
        first = np.full(self._size + 1, -1)
        rows = np.flatnonzero(self.codes[side] >= 0)[::-1]
        first[self.codes[side][rows]] = rows
        return first


class FrameMatches:
    """Rows match if their pictures match.

    Rows are numbered over all sides together. `pairs`: int64 `(pairs, 2)`, matching rows. `bounds`: int64, the first
    number of each side, and the number of all rows. `comparable`: bool `(all rows,)`, rows with enough frames.
    """

    def __init__(self, pairs: Numbers, bounds: Numbers, comparable: npt.NDArray[np.bool_]) -> None:
        self.bounds, self.comparable = bounds, comparable
        self.pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        self._side = np.searchsorted(bounds, self.pairs, side="right") - 1

    def known(self, side: int) -> int:
        """Rows of a side that can be compared."""
        return int(self.comparable[self.bounds[side] : self.bounds[side + 1]].sum())

    def shared(self, left: int, right: int) -> Shared:
        first, second = min(left, right), max(left, right)  # `pairs` has the lower number first
        pairs = self.pairs[(self._side == (first, second)).all(1)] - self.bounds[[first, second]]
        mine, theirs = pairs.T if left < right else pairs.T[::-1]
        rows, place = np.unique(mine, return_index=True)
        return Shared(len(pairs), rows, np.unique(theirs), theirs[place])


def _content_keys(
    sides: Sequence[Side], pool: ProcessPool, stamp: dict[str, Stamp], folder: Path
) -> list[list[object]]:
    """A key for the content of every row. A file with a unique size is not read: its path is its key."""
    parts = [[_bytes_of(row) if row.path in stamp else None for row in side.rows] for side in sides]
    distinct = {hash_input for side in parts for hash_input in side if hash_input}
    sizes = Counter(_size(hash_input, stamp) for hash_input in distinct)
    twice = sorted((p for p in distinct if sizes[_size(p, stamp)] > 1), key=str)
    hashes = fingerprints(pool, "hash files", of_bytes, twice, stamp, folder / ".overlap-bytes.arrow")
    unread = set(twice) - hashes.keys()
    return [[None if p is None or p in unread else hashes.get(p, p) for p in side] for side in parts]


def _bytes_of(row: Row) -> HashInput:
    return HashInput(row.path, row.offset, row.length)


def _size(hash_input: HashInput, stamp: dict[str, Stamp]) -> int:
    return stamp[hash_input.path][0] if hash_input.length is None else hash_input.length


def _frame_matches(
    sides: Sequence[Side], pool: ProcessPool, stamp: dict[str, Stamp], folder: Path
) -> tuple[FrameMatches, dict[str, Any]]:
    """The matches by pictures (videos with videos, images with images), and the false matches per kind of media."""
    bounds = np.cumsum([0, *(len(side.rows) for side in sides)])
    pairs, comparable = [np.empty((0, 2), np.int64)], np.zeros(bounds[-1], bool)
    chance: dict[str, Any] = {}
    works: dict[Media, Callable[[HashInput], Fingerprint | None]] = {"video": of_video, "image": of_image}
    for media, work in works.items():
        shown = [
            _ComparedRow(int(bounds[number]) + place, number, row, _origin(side, row))
            for number, side in enumerate(sides)
            if side.manifest.media == media
            for place, row in enumerate(side.rows)
            if row.state == "ok"
        ]
        cache = folder / f".overlap-{media}-frames.arrow"
        hashes = fingerprints(pool, f"{media} frames", work, [item.hash_input for item in shown], stamp, cache)
        shown = [item for item in shown if hashes.get(item.hash_input)]
        if shown:
            numbers, side = np.array([item.number for item in shown]), np.array([item.side for item in shown])
            index = HashIndex([hashes[item.hash_input] for item in shown], side, media == "video")
            comparable[numbers[index.comparable]] = True
            pairs.append(numbers[index.pairs()])
            chance[media] = _false_matches(index, shown)
    return FrameMatches(np.concatenate(pairs), bounds, comparable), chance


@dataclass(frozen=True)
class _ComparedRow:
    """A row for comparing pictures. `number`: counted over all sides. `side`: index of its side."""

    number: int
    side: int
    row: Row
    origin: str
    hash_input: HashInput = field(init=False)

    def __post_init__(self) -> None:
        times = (self.row.start or 0.0, self.row.seconds) if self.row.fps else ()
        object.__setattr__(self, "hash_input", HashInput(self.row.path, self.row.offset, self.row.length, *times))

    @property
    def file(self) -> str:
        """A key of the file or the byte range."""
        return self.row.path if self.row.offset is None else f"{self.row.path}:{self.row.offset}"


def _false_matches(index: HashIndex, shown: Sequence[_ComparedRow]) -> dict[str, Any]:
    """The rate of false matches, measured on up to `CHANCE_PAIRS` pairs of different clips.

    The pairs are sampled within a split, and differ in label, source id and file. `upper`: 95 % bound of the rate
    (Wilson). `expected`: expected number of false matches in all compared pairs.
    """
    side = np.array([item.side for item in shown])
    label = np.array([-1 if item.row.label is None else item.row.label for item in shown])
    source = np.unique([item.origin for item in shown], return_inverse=True)[1]
    file = np.unique([item.file for item in shown], return_inverse=True)[1]
    a, b = _sample_pairs(side, np.flatnonzero(index.comparable & (label >= 0)))
    different = (label[a] != label[b]) & (source[a] != source[b]) & (file[a] != file[b])
    pairs = np.stack([a, b], axis=1)[different]
    wrong = sum(int(index.matches(part).sum()) for part in np.array_split(pairs, 16)) if len(pairs) else 0
    sizes = np.bincount(side[index.comparable])
    # Pairs of two different sides: (n^2 - sum of n_side^2) / 2.
    compared = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
    rate = wrong / len(pairs) if len(pairs) else None
    upper = _upper(wrong, len(pairs)) if len(pairs) else None
    expected = None if rate is None else rate * compared
    counts = {"pairs": len(pairs), "matched": wrong, "rate": rate, "upper": upper}
    return counts | {"compared": compared, "expected": expected}


def _sample_pairs(side: Numbers, usable: Numbers) -> tuple[Numbers, Numbers]:
    """Distinct pairs of items of one side, all of them or a sample of about `CHANCE_PAIRS`. The seed is fixed."""
    sides = [usable[side[usable] == number] for number in np.unique(side[usable])]
    pools = [items for items in sides if len(items) > 1]
    total, rng = sum(len(items) * (len(items) - 1) // 2 for items in pools), np.random.default_rng(0)
    chosen = [np.empty((0, 2), np.int64)]
    for items in pools:
        if total <= CHANCE_PAIRS:
            chosen.append(items[np.stack(np.triu_indices(len(items), 1), axis=1)])
            continue
        count = int(CHANCE_PAIRS * (len(items) * (len(items) - 1) // 2) / total)
        drawn = np.sort(rng.integers(len(items), size=(count, 2)), axis=1)
        chosen.append(items[np.unique(drawn[drawn[:, 0] < drawn[:, 1]], axis=0)])
    a, b = np.concatenate(chosen).T
    return a, b


def _upper(matched: int, pairs: int) -> float:
    """The one-sided 95 % bound of a rate (Wilson's score interval)."""
    z, rate = 1.645, matched / pairs
    half = z * sqrt(rate * (1 - rate) / pairs + z * z / (4 * pairs * pairs))
    return (rate + z * z / (2 * pairs) + half) / (1 + z * z / pairs)


# --- results ---


def _split_facts(number: int, side: Side, kinds: dict[str, Any]) -> dict[str, Any]:
    comparable = {kind: matches.known(number) for kind, matches in kinds.items()}
    return {"dataset": side.spec.name, "split": side.split, "rows": len(side.rows), "comparable": comparable}


def _pair(sides: Sequence[Side], kinds: dict[str, MatchKind], left: int, right: int) -> dict[str, Any]:
    named = (("left", sides[left]), ("right", sides[right]))
    result: dict[str, Any] = {name: {"dataset": side.spec.name, "split": side.split} for name, side in named}
    for kind, matches in kinds.items():
        result[kind] = _counts(matches.shared(left, right), sides[left].rows, sides[right].rows)
    return result


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
    """Train rows that match an evaluated row, once per split and kind.

    Evaluated rows are the val and test rows of all data sets and the dev rows of other data sets. A data set's own dev
    rows have other groups than its train rows, and by default other source ids, because indexing divides them so.
    """
    for left, train in enumerate(sides):
        for right, other in enumerate(sides):
            own_dev = other.split == "dev" and other.spec.name == train.spec.name
            if train.split != "train" or other.split == "train" or own_dev:
                continue
            for kind, matches in kinds.items():
                shared = matches.shared(left, right)
                for row, partner in zip(shared.left.tolist(), shared.partner.tolist()):
                    sample, matched = train.rows[row].sample_id, other.rows[partner].sample_id
                    yield Exclusion(train.spec.name, row, sample, kind, other.spec.name, other.split, matched)


def _excluded(side: Side, exclusions: Sequence[Exclusion]) -> dict[str, Any]:
    own = [item for item in exclusions if item.dataset == side.spec.name]
    by_kind: dict[str, set[int]] = {}
    for item in own:
        by_kind.setdefault(item.reason, set()).add(item.row)
    counts = {kind: len(rows) for kind, rows in by_kind.items()}
    excluded = len({item.row for item in own})
    return {"dataset": side.spec.name, "train_rows": len(side.rows), "excluded": excluded, "by": counts}


_TITLES = {"source": "source ids", "file": "files", "frames": "frames"}


def print_overlap(results: dict[str, Any]) -> None:
    """Print the results of `overlap` as tables on stdout. Numbers of rows are `left / right`."""
    kinds, pairs = results["kinds"], results["pairs"]
    shown = [pair for pair in pairs if len(pairs) <= _ALL_SHOWN or any(pair[kind]["distinct"] for kind in kinds)]
    columns = ["split", "against", *(title for kind in kinds for title in (_TITLES[kind], "rows"))]
    print_table(columns, [_cells(pair, kinds) for pair in shown])
    if len(shown) < len(pairs):
        print(f"{len(pairs) - len(shown)} other pairs of splits share nothing")
    if results["excluded"]:
        print()
        columns = ["data set", "train rows", "excluded", *(f"by {_TITLES[kind]}" for kind in kinds)]
        print_table(columns, [_excluded_line(row, kinds) for row in results["excluded"]])
    for media, chance in results["chance"].items():
        tell(_chance_line(media, chance))
    say(f"exclusions: {results['exclusions']}")


def _cells(pair: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    cells = [f"{pair[side]['dataset']} {pair[side]['split']}" for side in ("left", "right")]
    for counts in (pair[kind] for kind in kinds):
        rows = f"{counts['left_rows']:,} / {counts['right_rows']:,}" if counts["distinct"] else ""
        cells += [f"{counts['distinct']:,}", rows]
    return cells


def _excluded_line(row: dict[str, Any], kinds: Sequence[str]) -> list[str]:
    numbers = [row["train_rows"], row["excluded"], *(row["by"].get(kind, 0) for kind in kinds)]
    return [row["dataset"], *(f"{number:,}" for number in numbers)]


def _chance_line(media: str, chance: dict[str, Any]) -> str:
    video_rule = f"{AGREE} frames within {RADIUS} of 64 bits, one within {SURE}"
    rule = video_rule if media == "video" else f"within {SURE_IMAGE} of 64 bits"
    if not chance["pairs"]:
        why = f"no two {media}s of a split have other labels and sources"
        return f"{media} frames match {rule}; false matches: not measured, {why}"
    measured = f"{chance['matched']:,} of {chance['pairs']:,} pairs known to be different match ({chance['rate']:.2g}"
    bound = f"under {chance['upper']:.2g} at 95 %)"
    total = f"{chance['expected']:.2g} of {chance['compared']:,} compared pairs by chance"
    return f"{media} frames match {rule}; {measured}, {bound}: {total}"
