"""The files of a cache: outputs of the first stages of a network for one split of a data set.

A cache is a folder whose name ends with a digest of everything that determines its values. It has four files:

- `cache.json`: what the digest is made of, for people and for messages.
- `values.bin`: an array (rows of the manifest, views, output of a sample). Parts that were never written take no space.
- `states.bin`: one byte for each row and view, see `DONE` and the other bits.
- `problems.jsonl`: the damage of files, one line for each row and view.

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
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cover.console import say
from cover.errors import UserError
from cover.media.decode import FileProblem

FORMAT = 1  # version of the files
INGREDIENTS, VALUES, STATES, PROBLEMS = "cache.json", "values.bin", "states.bin", "problems.jsonl"
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


@dataclass(frozen=True)
class PrefixFiles:
    """A cache on the disk, for reading and writing.

    `rows`: rows of the manifest. `views`: views of each. `shape`: of the output of one sample, `(T, ...)`. `dtype`:
    `float32` or `float16`. Worker processes open the files themselves.
    """

    folder: Path
    rows: int
    views: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes_each(self) -> int:
        """Bytes of the output of one sample."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefixFiles, (self.folder, self.rows, self.views, self.shape, self.dtype)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, row: int, view: int) -> CachedSample:
        """The sample of a row and view, which must have been written."""
        state = int(self._states[row, view])
        if not state & DONE:
            raise UserError(f"{self.folder}: has no row {row}, view {view}; its files were changed while in use")
        values = np.array(self._values[row, view])
        return CachedSample(values, bool(state & FLIPPED), self._problems.get((row, view)))

    def read_row(self, row: int) -> CachedSample:
        """All views of a row as one sample, `(views, T, ...)`. The problem is that of the first view."""
        if not np.all(self._states[row] & DONE):
            raise UserError(f"{self.folder}: has no row {row}; its files were changed while in use")
        return CachedSample(np.array(self._values[row]), False, self._problems.get((row, 0)))

    def missing(self, entries: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The entries (row, view) of `entries`, int64 `(n, 2)`, that have no values. Unreadable ones are among them."""
        if not self._complete():
            return entries
        states = np.fromfile(self.folder / STATES, np.uint8)
        found = states.reshape(self.rows, self.views)[entries[:, 0], entries[:, 1]]
        return entries[(found & (DONE | UNREADABLE)) != DONE]

    def _complete(self) -> bool:
        """Whether both arrays exist in their full size."""
        paths = {name: self.folder / name for name in self._sizes}
        return all(path.is_file() and path.stat().st_size == self._sizes[name] for name, path in paths.items())

    @property
    def _sizes(self) -> dict[str, int]:
        return {STATES: self.rows * self.views, VALUES: self.rows * self.views * self.bytes_each}

    @cached_property
    def _values(self) -> npt.NDArray[Any]:
        return np.memmap(self.folder / VALUES, self.dtype, "r", shape=(self.rows, self.views, *self.shape))

    @cached_property
    def _states(self) -> npt.NDArray[np.uint8]:
        return np.fromfile(self.folder / STATES, np.uint8).reshape(self.rows, self.views)

    @cached_property
    def _problems(self) -> dict[tuple[int, int], FileProblem]:
        problems: dict[tuple[int, int], FileProblem] = {}
        if (self.folder / PROBLEMS).exists():
            with (self.folder / PROBLEMS).open("rb") as lines:
                for line in lines:
                    try:
                        row, view, problem = json.loads(line)
                    except ValueError:  # a killed run may have written half a line; its row has no state yet
                        continue
                    problems[row, view] = FileProblem(**problem)
        # A file that could be read in the end has no problem any more, or a later line about it.
        states = self._states
        return {
            (row, view): problem
            for (row, view), problem in problems.items()
            if problem.kind != "unreadable" or states[row, view] & UNREADABLE
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

    def prepare(self, ingredients: Mapping[str, Any]) -> None:
        """Create the files where they are absent or damaged. The caller holds the lock. Raises `UserError`."""
        with _writing(self.folder):
            beside = self.folder / f".{INGREDIENTS}"
            facts = {**ingredients, "shape": list(self.shape), "bytes_each": self.bytes_each}
            beside.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            beside.replace(self.folder / INGREDIENTS)
            if not self._complete():
                # No state may be left without its values, so the states become empty first.
                for name, size in self._sizes.items():
                    with (self.folder / name).open("wb") as file:
                        file.truncate(size)

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
        places = entries[:, 0] * self.views + entries[:, 1]
        with _writing(self.folder):
            with (self.folder / VALUES).open("r+b", buffering=0) as file:
                for place, value, skip in zip(places.tolist(), values, unreadable, strict=True):
                    if not skip:
                        _write_at(file.fileno(), value.tobytes(), place * self.bytes_each)
                os.fdatasync(file.fileno())
            noted = [
                json.dumps([row, view, asdict(problem)]) + "\n"
                for (row, view), problem in zip(entries.tolist(), problems, strict=True)
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
    """The folder of the cache with these ingredients, which name its `dataset` and `split`."""
    return parent / f"{ingredients['dataset']}-{ingredients['split']}-{digest_of(ingredients)}"


def other_caches(folder: Path, ingredients: Mapping[str, Any]) -> list[str]:
    """A line for each other cache of the same data set and split: what differs, and its size."""
    lines = []
    pattern = f"{ingredients['dataset']}-{ingredients['split']}-{'[0-9a-f]' * 12}/{INGREDIENTS}"
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
