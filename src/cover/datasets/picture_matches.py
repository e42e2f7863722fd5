"""Matches of splits by pictures, and how near different clips of a data set come to each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cover.datasets.manifest import Row
from cover.datasets.matching import Numbers, Shared, Side, origin
from cover.datasets.phash import Fingerprint, HashIndex, HashInput, fingerprints, of_image, of_video
from cover.datasets.probe import Stamp
from cover.media.source import Media
from cover.processes import ProcessPool

CHANCE_PAIRS = 200_000  # pairs of different clips of a data set on which false matches are counted
# As many matches of a data set may be false, as a fraction of its matches or as a number.
FALSE_FRACTION, LEAST_FALSE = 0.1, 0.5
_AT_ONCE = 1 << 14  # pairs of which the bits are counted at once


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


@dataclass(frozen=True)
class PictureResults:
    """The matches by pictures: those that count, those that may be chance, and `chance` as in `overlap`."""

    sure: FrameMatches
    doubtful: FrameMatches
    chance: list[dict[str, Any]]


def match_pictures(sides: Sequence[Side], pool: ProcessPool, stamp: dict[str, Stamp], folder: Path) -> PictureResults:
    """The matches by pictures, of videos with videos and of images with images."""
    bounds = np.cumsum([0, *(len(side.rows) for side in sides)])
    sure, doubtful = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.int64)]
    comparable, chance = np.zeros(bounds[-1], bool), list[dict[str, Any]]()
    works: dict[Media, Callable[[HashInput], Fingerprint | None]] = {"video": of_video, "image": of_image}
    for media, work in works.items():
        shown = [
            _ComparedRow(int(bounds[number]) + place, number, side.spec.name, row, origin(side, row))
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
    return PictureResults(first, second, chance)


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
