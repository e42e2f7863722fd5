"""The splits that `cover overlap` compares, and their matches by a key: a source id or the content of a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cover.datasets.catalog import DatasetSpec
from cover.datasets.manifest import Manifest, Row
from cover.datasets.phash import HashInput, fingerprints, of_bytes
from cover.datasets.probe import Stamp
from cover.processes import ProcessPool

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


def origin(side: Side, row: Row) -> str:
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


def content_keys(sides: Sequence[Side], pool: ProcessPool, stamp: dict[str, Stamp], folder: Path) -> list[list[object]]:
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
