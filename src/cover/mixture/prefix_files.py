"""The files of a cache: outputs of the first stages of a network for samples of one data set.

A cache is a folder whose name ends with a digest of everything that determines its values, but not of the manifest: all
splits, folds and subsets of a data set share it. Each sample has a slot, which is found by a hash of what the sample is
read from. The folder has five files:

- `cache.json`: what the digest is made of, for people and for messages.
- `keys.bin`: the hash of each slot, uint64. New samples are added at the end.
- `values.bin`: an array (slots, views, output of a sample). Parts that were never written take no space.
- `states.bin`: one byte for each slot and view, see `DONE` and the other bits.
- `problems.jsonl`: the damage of files, one line for each slot and view.

Values are on the disk before their state says that they are. So a killed run leaves only values that can be used, and
the next one computes the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cover.console import say
from cover.errors import UserError
from cover.media.decode import FileProblem

FORMAT = 2  # version of the files
INGREDIENTS, KEYS, VALUES, STATES, PROBLEMS = "cache.json", "keys.bin", "values.bin", "states.bin", "problems.jsonl"
KEY_BYTES = 8
# Bits of a state. An unreadable sample is done too: its values are zero and it has weight 0.
DONE, FLIPPED, UNREADABLE = 1, 2, 4


@dataclass(frozen=True)
class CachedSample:
    """One row and view. `values`: of the stored dtype, `(T, ...)`. `flipped`: whether the sample was flipped."""

    values: npt.NDArray[Any]
    flipped: bool
    problem: FileProblem | None

    @property
    def readable(self) -> bool:
        """Whether the file could be read."""
        return self.problem is None or self.problem.kind != "unreadable"


@dataclass(frozen=True, eq=False)
class PrefixFiles:
    """A cache on the disk, for reading and writing the samples of a manifest.

    `keys`: uint64 `(rows,)`, `Manifest.content_keys`. `views`: views of each row. `shape`: of the output of one sample,
    `(T, ...)`. `dtype`: `float32` or `float16`. Worker processes open the files themselves.
    """

    folder: Path
    keys: npt.NDArray[np.uint64] = field(repr=False)
    views: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes_each(self) -> int:
        """Bytes of the output of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefixFiles, (self.folder, self.keys, self.views, self.shape, self.dtype)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, row: int, view: int) -> CachedSample:
        """The sample of a row and view, which must have been written."""
        slot = int(self._slots[row])
        state = 0 if slot < 0 else int(self._states[slot, view])
        if not state & DONE:
            raise UserError(f"{self.folder}: has no row {row}, view {view}; its files were changed while in use")
        values = np.array(self._values[slot, view])
        return CachedSample(values, bool(state & FLIPPED), self._problems.get((slot, view)))

    def read_row(self, row: int) -> CachedSample:
        """All views of a row as one sample, `(views, T, ...)`. The problem is that of the first view."""
        slot = int(self._slots[row])
        if slot < 0 or not np.all(self._states[slot] & DONE):
            raise UserError(f"{self.folder}: has no row {row}; its files were changed while in use")
        return CachedSample(np.array(self._values[slot]), False, self._problems.get((slot, 0)))

    def missing(self, entries: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The entries (row, view) of `entries`, int64 `(n, 2)`, that have no values. Unreadable ones are among them."""
        count = self._whole_slots()
        if not count:
            return entries
        slots = self._find(self._stored_keys(count))[entries[:, 0]]
        states = np.fromfile(self.folder / STATES, np.uint8, count * self.views).reshape(count, self.views)
        found = np.where(slots < 0, 0, states[slots, entries[:, 1]])
        return entries[(found & (DONE | UNREADABLE)) != DONE]

    def _find(self, stored: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """int64 `(rows,)`: the slot of each row among the keys `stored`, -1 if it has none."""
        if not len(stored):
            return np.full(len(self.keys), -1, np.int64)
        order = np.argsort(stored, kind="stable")
        places = np.minimum(np.searchsorted(stored[order], self.keys), len(stored) - 1)
        slots = order[places]
        return np.where(stored[slots] == self.keys, slots, -1)

    def _stored_keys(self, count: int) -> npt.NDArray[np.uint64]:
        return np.fromfile(self.folder / KEYS, np.uint64, count)

    def _whole_slots(self) -> int:
        """The number of slots that all three arrays have. A killed run may have made one of them longer."""
        sizes = {name: _size(self.folder / name) for name in self._bytes_of_slot}
        return min(sizes[name] // each for name, each in self._bytes_of_slot.items())

    @property
    def _bytes_of_slot(self) -> dict[str, int]:
        return {VALUES: self.views * self.bytes_each, STATES: self.views, KEYS: KEY_BYTES}

    # What is read from the files stays until `prepare` adds slots. Slots and values of other processes do not move.

    @cached_property
    def _slots(self) -> npt.NDArray[np.int64]:
        return self._find(self._stored_keys(self._whole_slots()))

    @cached_property
    def _values(self) -> npt.NDArray[Any]:
        return np.memmap(self.folder / VALUES, self.dtype, "r", shape=(self._whole_slots(), self.views, *self.shape))

    @cached_property
    def _states(self) -> npt.NDArray[np.uint8]:
        count = self._whole_slots()
        return np.fromfile(self.folder / STATES, np.uint8, count * self.views).reshape(count, self.views)

    @cached_property
    def _problems(self) -> dict[tuple[int, int], FileProblem]:
        problems: dict[tuple[int, int], FileProblem] = {}
        if (self.folder / PROBLEMS).exists():
            with (self.folder / PROBLEMS).open("rb") as lines:
                for line in lines:
                    try:
                        slot, view, problem = json.loads(line)
                    except ValueError:  # a killed run may have written half a line; its slot has no state yet
                        continue
                    problems[slot, view] = FileProblem(**problem)
        # A file that could be read in the end has no problem any more, or a later line about it.
        states = self._states
        return {
            (slot, view): problem
            for (slot, view), problem in problems.items()
            if slot < len(states) and (problem.kind != "unreadable" or states[slot, view] & UNREADABLE)
        }

    # --- writing ------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A context in which no other process fills this cache. It waits for one that does.

        Raises `UserError` if the folder cannot be written.
        """
        with _writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("w")
        with file:
            with _writing(self.folder):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    say(f"cache: waiting for another process that fills {self.folder}")
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def prepare(self, ingredients: Mapping[str, Any], rows: npt.NDArray[np.int64]) -> None:
        """Give the rows (int64) slots where they have none, and mend arrays of different lengths.

        The caller holds the lock. Raises `UserError`.
        """
        with _writing(self.folder):
            beside = self.folder / f".{INGREDIENTS}"
            facts = {**ingredients, "shape": list(self.shape), "bytes_each": self.bytes_each}
            beside.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            beside.replace(self.folder / INGREDIENTS)
            count = self._whole_slots()
            stored = self._stored_keys(count) if count else np.zeros(0, np.uint64)
            new = np.unique(self.keys[rows[self._find(stored)[rows] < 0]])
            # No state may be left without its values, so the states lose what the values lack first. New slots are
            # zero bytes in the arrays, and exist as soon as they have keys.
            for name, slots in (
                (STATES, count),
                (VALUES, count),
                (VALUES, count + len(new)),
                (STATES, count + len(new)),
            ):
                with (self.folder / name).open("ab") as file:
                    file.truncate(slots * self._bytes_of_slot[name])
            with (self.folder / KEYS).open("ab") as file:
                file.truncate(count * KEY_BYTES)
                file.write(new.tobytes())
        self.forget()

    def forget(self) -> None:
        """Read the files anew at the next use, because a process has added slots or values."""
        for name in ("_slots", "_values", "_states", "_problems"):
            self.__dict__.pop(name, None)

    def write(
        self,
        entries: npt.NDArray[np.int64],
        values: npt.NDArray[Any],
        flipped: Sequence[bool],
        problems: Sequence[FileProblem | None],
    ) -> None:
        """Write the samples of `entries`, int64 `(n, 2)`: first their values, then their states.

        `values`: of the stored dtype, `(n, T, ...)`. Raises `UserError` if the disk is full or cannot be written.
        """
        assert values.dtype == self.dtype
        assert values.shape == (len(entries), *self.shape)
        unreadable = [problem is not None and problem.kind == "unreadable" for problem in problems]
        slots = self._slots[entries[:, 0]]
        assert np.all(slots >= 0), "rows without a slot"
        places = slots * self.views + entries[:, 1]
        with _writing(self.folder):
            with (self.folder / VALUES).open("r+b", buffering=0) as file:
                for place, value, skip in zip(places.tolist(), values, unreadable, strict=True):
                    if not skip:
                        _write_at(file.fileno(), value.tobytes(), place * self.bytes_each)
                os.fdatasync(file.fileno())
            noted = [
                json.dumps([slot, view, asdict(problem)]) + "\n"
                for slot, view, problem in zip(slots.tolist(), entries[:, 1].tolist(), problems, strict=True)
                if problem
            ]
            if noted:
                with (self.folder / PROBLEMS).open("ab") as lines:
                    # An interrupted run may have left half a line.
                    lines.write(("\n" + "".join(noted)).encode())
            with (self.folder / STATES).open("r+b", buffering=0) as file:
                for place, flip, skip in zip(places.tolist(), flipped, unreadable, strict=True):
                    _write_at(file.fileno(), bytes([DONE | FLIPPED * flip | UNREADABLE * skip]), place)


# --- the folder -------------------------------------------------------------------------------------------------------


def digest_of(ingredients: Mapping[str, Any]) -> str:
    """12 hex digits of a hash of plain JSON values."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:12]


def folder_of(parent: Path, ingredients: Mapping[str, Any]) -> Path:
    """The folder of the cache with these ingredients, which name its `dataset` and the `purpose` of its views."""
    return parent / f"{ingredients['dataset']}-{ingredients['purpose']}-{digest_of(ingredients)}"


def other_caches(folder: Path, ingredients: Mapping[str, Any]) -> list[str]:
    """A line for each other cache of the same data set and purpose: what differs, and its size."""
    lines = []
    pattern = f"{ingredients['dataset']}-{ingredients['purpose']}-{'[0-9a-f]' * 12}/{INGREDIENTS}"
    for path in sorted(folder.parent.glob(pattern)):
        if path.parent == folder:
            continue
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            size = (path.parent / VALUES).stat().st_blocks * 512
        except (OSError, ValueError):  # another process removes or writes it
            continue
        differing = ", ".join(key for key, value in ingredients.items() if theirs.get(key) != value)
        lines.append(f"{path.parent} is not used: it was made with other {differing}; it takes {gigabytes(size)}")
    return lines


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises `UserError` if the disk of `folder` has no room for `needed` more bytes. `what`: what needs them."""
    free = shutil.disk_usage(_existing(folder)).free
    if needed > free:
        raise UserError(
            f"cache.folder: {what} needs {gigabytes(needed)}, and {_existing(folder)} has {gigabytes(free)} free;"
            " choose another folder, fewer cache.views, or cache.dtype float16"
        )


def gigabytes(size: float) -> str:
    """Bytes as text in GB or MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest folder above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _size(path: Path) -> int:
    """The bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.is_file() else 0


def _write_at(file: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`. A full disk may accept a part of it before the error."""
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, offset)
        view, offset = view[count:], offset + count


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns an error of the file system into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cache.folder: {folder}: cannot be written: {error.strerror or error}; what is written stays usable"
        ) from None
