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
from cover.datasets.manifest import Manifest, Row
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
CHANCE_PAIRS = 200_000  # pairs of different clips of a data set on which false matches are counted
# As many matches of a data set may be false, as a fraction of its matches or as a number.
FALSE_FRACTION, LEAST_FALSE = 0.1, 0.5
_AT_ONCE = 1 << 14  # pairs of which the bits are counted at once
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

    def known(self, side: int) -> int:
        """The rows of a side that can be compared."""
        ...

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
    - `excluded`: one dict per train split, with the reason if no row is excluded; `exclusions`: path of the list;
      `catalog`: path of the catalog;
    - `chance`: for each data set, how near its different clips come (see `_of_set`), empty without `frames`;
    - `doubtful`: one dict per train split with rows that match an evaluated row by pictures, but no nearer than
      different clips of the set come: `rows`, up to 5 `examples`. These rows are not excluded.

    Raises UserError for an invalid catalog, a missing manifest, or a folder that cannot be written.
    """
    catalog = load_catalog(catalog_path)
    sides = _sides(catalog, names or list(catalog.specs))
    digests = {side.manifest.path.name: side.manifest.digest() for side in sides}
    folder = _folder(out or exclusions_path(catalog).parent)
    _say_how_many_are_remote(sides)
    kinds: dict[str, MatchKind] = {"source": KeyMatches([[_origin(side, row) for row in side.rows] for side in sides])}
    doubtful, chance = None, []
    with ProcessPool(workers) as pool:
        stamp = stamps(list(dict.fromkeys(row.path for side in sides for row in side.rows)))
        kinds["file"] = KeyMatches(_content_keys(sides, pool, stamp, folder))
        if frames:
            found = _frame_matches(sides, pool, stamp, folder)
            kinds["frames"], doubtful, chance = found.sure, found.doubtful, found.chance
    exclusions = list(_exclusions(sides, kinds))
    unsure = _doubtful(sides, doubtful, exclusions) if doubtful else []
    write_exclusions(folder / EXCLUSIONS_FILE, exclusions, digests, list(kinds))
    return {
        "catalog": str(catalog.path),
        "kinds": list(kinds),
        "splits": [_split_facts(number, side, kinds) for number, side in enumerate(sides)],
        "pairs": [_pair(sides, kinds, left, right) for left, right in combinations(range(len(sides)), 2)],
        "excluded": [
            _excluded(number, sides, kinds, exclusions) for number, side in enumerate(sides) if side.split == "train"
        ],
        "exclusions": str(folder / EXCLUSIONS_FILE),
        "chance": chance,
        "doubtful": unsure,
    }


def _sides(catalog: Catalog, names: Sequence[str]) -> list[Side]:
    sides = []
    for spec in dict.fromkeys(names):
        for split in catalog.spec(spec).splits:
            path = catalog.manifest_path(spec, split)
            if split == "dev" and "dev" not in catalog.spec(spec).annotations and not path.is_file():
                continue  # too few rows for a dev split
            sides.append(Side(catalog.spec(spec), catalog.manifest(spec, split)))
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


@dataclass(frozen=True)
class _FrameResults:
    """The matches by pictures: those that count, those that may be chance, and `chance` as in `overlap`."""

    sure: FrameMatches
    doubtful: FrameMatches
    chance: list[dict[str, Any]]


def _frame_matches(sides: Sequence[Side], pool: ProcessPool, stamp: dict[str, Stamp], folder: Path) -> _FrameResults:
    """The matches by pictures, of videos with videos and of images with images."""
    bounds = np.cumsum([0, *(len(side.rows) for side in sides)])
    sure, doubtful = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.int64)]
    comparable, chance = np.zeros(bounds[-1], bool), list[dict[str, Any]]()
    works: dict[Media, Callable[[HashInput], Fingerprint | None]] = {"video": of_video, "image": of_image}
    for media, work in works.items():
        shown = [
            _ComparedRow(int(bounds[number]) + place, number, side.spec.name, row, _origin(side, row))
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
            pairs = index.pairs()
            bits = _bits(index, pairs)
            own = [_of_set(name, index, shown, pairs, bits) for name in dict.fromkeys(item.dataset for item in shown)]
            limits = {each["dataset"]: np.inf if each["limit"] is None else each["limit"] for each in own}
            of_items = np.array([limits[item.dataset] for item in shown])
            counts = bits <= of_items[pairs].min(1)
            sure.append(numbers[pairs[counts]])
            doubtful.append(numbers[pairs[~counts]])
            chance += [{"media": media, **each} for each in own]
    first, second = (FrameMatches(np.concatenate(each), bounds, comparable) for each in (sure, doubtful))
    return _FrameResults(first, second, chance)


def _bits(index: HashIndex, pairs: Numbers) -> npt.NDArray[np.float64]:
    """`HashIndex.bits` of many pairs, in blocks."""
    blocks = [index.bits(pairs[first : first + _AT_ONCE]) for first in range(0, len(pairs), _AT_ONCE)]
    return np.concatenate([np.empty(0), *blocks])


@dataclass(frozen=True)
class _ComparedRow:
    """A row for comparing pictures. `number`: counted over all sides. `side`: index of its side."""

    number: int
    side: int
    dataset: str
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


def _of_set(
    name: str, index: HashIndex, shown: Sequence[_ComparedRow], pairs: Numbers, bits: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """How near different clips (or images) of a data set come, and the `limit` of bits that follows for its matches.

    `pairs`, `bits`: the matches of all sets. Up to `CHANCE_PAIRS` pairs of the set are measured, of different source
    ids and files. Pairs of different classes (`pairs` of the result, of which `matched` match) are known to be
    different. Clips before one camera match by their background, and clips of one class are still nearer to each other.
    So a match counts only if it has at most half of the bits at which pairs of different classes would make more than
    `FALSE_FRACTION` of the set's matches, and more than `LEAST_FALSE`. `limit`: null if there are no such bits.

    `rate`, `upper`: of pairs of different classes that match within the limit, and its 95 % bound (Wilson). `compared`:
    pairs of rows of different splits in the set (of a set with one split: with other sets). `expected`: false matches
    expected among them. `same_class`, `same_class_matched`: the same counts of pairs of one class and different groups,
    which may be copies.
    """
    mine = np.array([item.dataset == name for item in shown])
    side, group, source, file, label = _codes(shown)
    a, b = _sample_pairs(np.flatnonzero(index.comparable & mine & (label >= 0)))
    different = (source[a] != source[b]) & (file[a] != file[b])
    measured = np.stack([a, b], axis=1)
    other_class = measured[different & (label[a] != label[b])]
    same_class = measured[different & (label[a] == label[b]) & (group[a] != group[b])]
    near, same = (np.sort(each[np.isfinite(each)]) for each in (_bits(index, other_class), _bits(index, same_class)))
    inside, compared = _compared(side[index.comparable], mine[index.comparable])
    own = mine[pairs].all(1) if inside else mine[pairs].any(1)
    limit = _limit(near, np.sort(bits[own]), compared / max(1, len(other_class)))
    wrong = int((near <= limit).sum())
    rate = wrong / len(other_class) if len(other_class) else None
    return {
        "dataset": name,
        "pairs": len(other_class),
        "matched": len(near),
        "limit": None if np.isinf(limit) else float(limit),
        "rate": rate,
        "upper": _upper(wrong, len(other_class)) if len(other_class) else None,
        "compared": compared,
        "expected": None if rate is None else rate * compared,
        "same_class": len(same_class),
        "same_class_matched": int((same <= limit).sum()),
    }


def _codes(shown: Sequence[_ComparedRow]) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """int64 `(items,)` each: the side, a number for each group, source and file, and the label (-1 for none)."""
    side = np.array([item.side for item in shown])
    groups = [f"{item.dataset}\n{item.row.group_id}" for item in shown]
    codes = [np.unique(keys, return_inverse=True)[1] for keys in (groups, *_keys(shown))]
    label = np.array([-1 if item.row.label is None else item.row.label for item in shown])
    return side, codes[0], codes[1], codes[2], label


def _keys(shown: Sequence[_ComparedRow]) -> tuple[list[str], list[str]]:
    return [item.origin for item in shown], [item.file for item in shown]


def _compared(side: Numbers, mine: npt.NDArray[np.bool_]) -> tuple[bool, int]:
    """Whether the set has several splits, and the number of pairs of rows that are compared for it."""
    sizes, total = np.bincount(side[mine]), int((~mine).sum())
    own = (int(sizes.sum()) ** 2 - int((sizes**2).sum())) // 2
    return bool(own), own or int(mine.sum()) * total


def _limit(near: npt.NDArray[np.float64], matches: npt.NDArray[np.float64], factor: float) -> float:
    """Half of the least bits at which matches are too often false; infinite if they never are.

    `near`: ascending, the bits of the pairs of different classes that match. `matches`: ascending, the bits of the
    matches. `factor`: compared pairs for each pair of different classes.
    """
    false = factor * np.arange(1, len(near) + 1)
    found = np.searchsorted(matches, near, side="right")
    often = np.flatnonzero(false > np.maximum(LEAST_FALSE, FALSE_FRACTION * found))
    if not len(often):
        return np.inf
    least = float(near[often[0]])
    return least / 2 if least else -1.0  # different clips with equal frames: no match of this set counts


def _sample_pairs(items: Numbers) -> tuple[Numbers, Numbers]:
    """Distinct pairs of items, all of them or a sample of about `CHANCE_PAIRS`. The seed is fixed."""
    if len(items) * (len(items) - 1) // 2 <= CHANCE_PAIRS:
        one, other = np.triu_indices(len(items), 1)
        return items[one], items[other]
    drawn = np.sort(np.random.default_rng(0).integers(len(items), size=(CHANCE_PAIRS, 2)), axis=1)
    distinct = np.unique(drawn[drawn[:, 0] < drawn[:, 1]], axis=0)
    return items[distinct[:, 0]], items[distinct[:, 1]]


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
        for right in _evaluated(sides, left):
            other = sides[right]
            for kind, matches in kinds.items():
                shared = matches.shared(left, right)
                for row, partner in zip(shared.left.tolist(), shared.partner.tolist()):
                    sample, matched = train.rows[row].sample_id, other.rows[partner].sample_id
                    yield Exclusion(train.spec.name, row, sample, kind, other.spec.name, other.split, matched)


def _evaluated(sides: Sequence[Side], train: int) -> list[int]:
    """The sides whose rows exclude rows of the side number `train`. None if that is no train split."""
    own = sides[train].spec.name
    if sides[train].split != "train":
        return []
    return [
        number
        for number, side in enumerate(sides)
        if side.split != "train" and not (side.split == "dev" and side.spec.name == own)
    ]


def _doubtful(sides: Sequence[Side], matches: FrameMatches, exclusions: Sequence[Exclusion]) -> list[dict[str, Any]]:
    """The result `doubtful` of `overlap`. Rows that are excluded for another reason are left out."""
    excluded = {(item.dataset, item.row) for item in exclusions}
    results = []
    for left, train in enumerate(sides):
        partner: dict[int, dict[str, Any]] = {}
        for right in _evaluated(sides, left):
            shared, other = matches.shared(left, right), sides[right]
            for row, matched in zip(shared.left.tolist(), shared.partner.tolist()):
                if (train.spec.name, row) not in excluded and row not in partner:
                    place = {"dataset": other.spec.name, "split": other.split, **_summary(other.rows[matched])}
                    partner[row] = {"left": _summary(train.rows[row]), "right": place}
        if partner:
            examples = [partner[row] for row in sorted(partner)[:EXAMPLES]]
            results.append({"dataset": train.spec.name, "rows": len(partner), "examples": examples})
    return results


def _excluded(
    number: int, sides: Sequence[Side], kinds: dict[str, MatchKind], exclusions: Sequence[Exclusion]
) -> dict[str, Any]:
    side = sides[number]
    own = [item for item in exclusions if item.dataset == side.spec.name]
    by_kind: dict[str, set[int]] = {}
    for item in own:
        by_kind.setdefault(item.reason, set()).add(item.row)
    counts = {kind: len(rows) for kind, rows in by_kind.items()}
    excluded = len({item.row for item in own})
    why = "" if excluded else _why_none(number, sides, kinds)
    return {"dataset": side.spec.name, "train_rows": len(side.rows), "excluded": excluded, "by": counts, "why": why}


def _why_none(number: int, sides: Sequence[Side], kinds: dict[str, MatchKind]) -> str:
    """Why no row of a train split is excluded."""
    side, evaluated = sides[number], _evaluated(sides, number)
    if not side.rows:
        return "it has no rows"
    if not any(sides[other].rows for other in evaluated):
        return "there is no val or test split, and no dev split of another set"
    reasons = []
    unknown = {kind: len(side.rows) - matches.known(number) for kind, matches in kinds.items()}
    if unknown["file"] == len(side.rows):
        reasons.append("its files are not here, so only source ids were compared")
    elif unknown["file"]:
        reasons.append(f"{unknown['file']:,} rows without a file here have only their source id compared")
    for other, theirs in enumerate(sides):
        if other not in evaluated and other != number:
            rows = np.unique(np.concatenate([matches.shared(number, other).left for matches in kinds.values()]))
            if len(rows):
                kept = "which has other groups" if theirs.split == "dev" else "which is not evaluated"
                reasons.append(f"{len(rows):,} rows match {theirs.title}, {kept}")
    names = " or ".join(_TITLES[kind] for kind in kinds)
    pictures = "" if "frames" in kinds else "; pictures were not compared (--frames)"
    return "; ".join([f"no row of an evaluated split has the same {names}{pictures}", *reasons])


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
        for row in results["excluded"]:
            if row["why"]:
                tell(f"{row['dataset']}: none excluded: {row['why']}")
    for media in dict.fromkeys(chance["media"] for chance in results["chance"]):
        tell(f"{media} frames match {_rule(media)}")
    for chance in results["chance"]:
        tell(_chance_line(chance))
    for row in results["doubtful"]:
        tell(_doubtful_line(row))
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


def _rule(media: str) -> str:
    video_rule = f"{AGREE} frames within {RADIUS} of 64 bits, one within {SURE}"
    return video_rule if media == "video" else f"within {SURE_IMAGE} of 64 bits"


def _chance_line(chance: dict[str, Any]) -> str:
    """How often different clips of a data set match, in one line."""
    name, noun = chance["dataset"], f"{chance['media']}s"
    if not chance["pairs"]:
        return f"{name}: false matches: not measured, no two {noun} have other labels and sources"
    different = f"{chance['pairs']:,} pairs of different classes"
    measured = f"{chance['matched']:,} of {different} match"
    if chance["limit"] is not None:
        most = f"at most {chance['limit']:.1f} bits on average" if chance["limit"] >= 0 else "no bits, so none"
        measured += f", so {noun} of this set count as copies with {most}"
    bound = f"{chance['expected']:.2g} (under {chance['upper'] * chance['compared']:.2g} at 95 %)"
    total = f"{bound} of {chance['compared']:,} compared pairs match by chance"
    same = f"{chance['same_class_matched']:,} of {chance['same_class']:,} pairs of one class and other groups match"
    return f"{name}: {measured}; {total}; {same}, which copies do too"


def _doubtful_line(row: dict[str, Any]) -> str:
    example = row["examples"][0]
    pair = f"{example['left']['sample_id']} and {example['right']['dataset']} {example['right']['sample_id']}"
    return (
        f"{row['dataset']}: {row['rows']:,} train rows look like evaluated rows, but no more than different rows of the"
        f" set do: not excluded, look at them (--json has examples), such as {pair}"
    )
