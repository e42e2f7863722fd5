"""What is known of each file of a data set, while it is indexed? Arrays with a place per file: about 150 bytes, whatever was found."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from cover.datasets.probing import ABSENT, Facts, Stamp, Stat

_MISSING = Facts("missing", "no such file")


class Ledger:
    """The files `paths`, each once, in their order; `number` gives a path's place.

    `size` (bytes) and `mtime_ns` are int64 `(files,)`, the size -1 where there is no file.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self.number: dict[str, int] = {}
        for path in paths:
            self.number.setdefault(path, len(self.number))
        self.paths = list(self.number)
        count = len(self.paths)
        self.size, self.mtime_ns = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        self._kinds: list[tuple[str, str, str, bool]] = []  # what many files have in common: state, why, codec, deep
        self._place: dict[tuple[str, str, str, bool], int] = {}
        self._kind = np.full(count, -1, np.int32)
        self._frames, self._fps = np.zeros(count, np.int32), np.zeros(count)
        self._width, self._height = np.zeros(count, np.int32), np.zeros(count, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def note_stat(self, first: int, found: Iterable[Stat]) -> None:
        """What `probing.stat_files` found of the files from number `first` on. A file that is there and out of reach is unreadable."""
        for number, stat in enumerate(found, start=first):
            if isinstance(stat, tuple):
                self.size[number], self.mtime_ns[number] = stat
            elif stat != ABSENT:
                self._put(number, Facts("unreadable", stat))

    def put(self, path: str, facts: Facts) -> None:
        """Facts of a listed file; what was found by decoding all of it is not given up for less."""
        number = self.number[path]
        if facts.deep or not self._deep(number):
            self._put(number, facts)

    def _put(self, number: int, facts: Facts) -> None:
        kind = (facts.state, facts.why, facts.codec, facts.deep)
        if kind not in self._place:
            self._place[kind] = len(self._kinds)
            self._kinds.append(kind)
        self._kind[number] = self._place[kind]
        self._frames[number], self._fps[number] = facts.frames, facts.fps
        self._width[number], self._height[number] = facts.width, facts.height

    def _deep(self, number: int) -> bool:
        kind = self._kind[number]
        return bool(kind >= 0 and self._kinds[kind][3])

    def facts(self, path: str) -> Facts:
        """What is known of a file; of one that is not there, that it is missing."""
        number = self.number[path]
        if self._kind[number] < 0:
            return _MISSING
        state, why, codec, deep = self._kinds[self._kind[number]]
        size = int(self._width[number]), int(self._height[number])
        return Facts(state, why, int(self._frames[number]), float(self._fps[number]), *size, codec, deep)

    def stamp(self, path: str) -> Stamp | None:
        """Size in bytes and time of change; None where there is no file."""
        number = self.number[path]
        return None if self.size[number] < 0 else (int(self.size[number]), int(self.mtime_ns[number]))

    def is_current(self, path: str, stamp: tuple[int | None, int | None]) -> bool:
        """Whether a listed file is there and still what it was when it had this stamp."""
        return path in self.number and self.stamp(path) == stamp

    def unknown(self, deep: bool) -> npt.NDArray[np.int64]:
        """int64 numbers, ascending, of the files that are there and not probed yet, or with `deep` not to their last frame."""
        done = np.array([kind[3] or not deep for kind in self._kinds] + [False])  # the last one is for kind -1: nothing known
        return np.flatnonzero((self.size >= 0) & ~done[self._kind]).astype(np.int64)

    def numbers(self, paths: Iterable[str]) -> npt.NDArray[np.int64]:
        """int64, the number of each path."""
        return np.fromiter((self.number[path] for path in paths), np.int64)
