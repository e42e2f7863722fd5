"""Files of features: an array for NumPy with a list of names beside it, or an Arrow file that holds both."""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np

from cover.errors import UserError
from cover.inference.records import Answer

FeatureRow = tuple[str, float | None, float | None, np.ndarray | None, str | None]  # file, start, end, features, error

_LIST = ["file", "start", "end", "problem"]  # columns beside an array


def list_beside(path: Path) -> Path | None:
    """Where the names of an array go; None for Arrow, which holds them itself."""
    return path.with_suffix(".csv") if path.suffix == ".npy" else None


class FeatureFile:
    """`features.npy` with `features.csv`, or `features.arrow`: one row per file, or per window, in the order of the
    input.

    A file that could not be read has its row too: NaN in the array, null in Arrow, with the reason. Both are written
    beside and renamed when they are whole. `width`: D of the features. Raises `UserError` for another ending, where the
    list would replace a file of another kind, or where they cannot be written.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        kinds: dict[str, type[_Npy] | type[_Arrow]] = {".npy": _Npy, ".arrow": _Arrow}
        if path.suffix not in kinds:
            raise UserError(f"--embed {path}: name it .npy or .arrow")
        names = list_beside(path)
        self._paths = [path, names] if names else [path]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if names:
                _check_list(path, names)
            self._kind: _FeatureWriter = kinds[path.suffix](path, width)
        except OSError as error:
            self._drop()
            raise self._unwritten(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._kind.close()
            if kind is None:
                for path in self._paths:
                    os.replace(_beside(path), path)
        except OSError as error:
            if kind is None:  # else the first error says more
                raise self._unwritten(error) from None
        finally:
            self._drop()

    def write(self, answer: Answer) -> None:
        """Append the rows of a file."""
        file, reason = answer.row["file"], answer.problem.reason if answer.problem else None
        try:
            for start, end, vector in answer.features:
                self._kind.add((file, start, end, vector, reason))
            if not answer.features:
                self._kind.add((file, None, None, None, reason))
        except OSError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> UserError:
        return UserError(f"--embed {self.path}: cannot be written: {error.strerror or error}")

    def _drop(self) -> None:
        for path in self._paths:
            with suppress(OSError):
                _beside(path).unlink(missing_ok=True)


def _check_list(path: Path, names: Path) -> None:
    begins = (",".join(_LIST) + "\n").encode()
    if not names.exists():
        return
    with names.open("rb") as file:
        if file.read(len(begins)) != begins:
            raise UserError(f"--embed {path}: {names} is no list of features and would be replaced; give another name")


class _FeatureWriter(Protocol):
    def add(self, part: FeatureRow) -> None: ...

    def close(self) -> None: ...


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


class _Npy:
    """The header leaves room for any number of rows, which is written when it is known."""

    def __init__(self, path: Path, width: int) -> None:
        self._width, self._count = width, 0
        self._array: IO[bytes] = _beside(path).open("wb")
        self._names: IO[str] = _beside(path.with_suffix(".csv")).open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        )
        self._csv = csv.writer(self._names, lineterminator="\n")
        self._csv.writerow(_LIST)
        self._head()

    def _head(self) -> None:
        metadata = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._width)}
        np.lib.format.write_array_header_1_0(self._array, metadata)

    def add(self, part: FeatureRow) -> None:
        file, start, end, vector, reason = part
        self._array.write(np.asarray(np.full(self._width, np.nan) if vector is None else vector, "<f4").tobytes())
        self._csv.writerow([file, start, end, reason])
        self._count += 1

    def close(self) -> None:
        with self._array, self._names:
            self._array.seek(0)
            self._head()


class _Arrow:
    _BATCH = 256  # rows

    def __init__(self, path: Path, width: int) -> None:
        import pyarrow as pa

        vector = pa.list_(pa.float32(), width)
        columns = [
            ("file", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("features", vector),
            ("problem", pa.string()),
        ]
        self._schema, self._held = pa.schema(columns), list[dict[str, Any]]()
        self._writer = pa.ipc.new_file(str(_beside(path)), self._schema)

    def add(self, part: FeatureRow) -> None:
        file, *rest = part
        named = file.encode("utf-8", "backslashreplace").decode("utf-8")
        self._held.append(dict(zip(self._schema.names, (named, *rest))))
        if len(self._held) == self._BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_batch(pa.RecordBatch.from_pylist(self._held, self._schema))
        self._held = []

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._writer.close()
