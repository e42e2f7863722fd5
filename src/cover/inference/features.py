"""Files of features: a NumPy array with a list of file names beside it, or an Arrow file with both."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np

from cover.errors import UserError
from cover.inference.records import Answer
from cover.safe_text import csv_line

FeatureRow = tuple[str, float | None, float | None, np.ndarray | None, str | None]  # file, start, end, features, error

_LIST = ["file", "start", "end", "problem"]  # columns of the list beside an array


def list_beside(path: Path) -> Path | None:
    """The path of the list beside an array. None for an Arrow file, which contains the names."""
    return path.with_suffix(".csv") if path.suffix == ".npy" else None


class FeatureFile:
    """A writer of `features.npy` with `features.csv`, or of `features.arrow`.

    There is one row for each file, or for each window, in the order of the input. A file that could not be read also
    has a row, with NaN in an array or null in Arrow, and the reason. `width` is D, the length of a feature vector. The
    files get temporary names and are renamed at the end.

    Raises `UserError` if the ending is not known, if the list would replace a file that is not such a list, or if a
    file cannot be written.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        writers: dict[str, type[_Npy] | type[_Arrow]] = {".npy": _Npy, ".arrow": _Arrow}
        if path.suffix not in writers:
            raise UserError(f"--embed {path}: name it .npy or .arrow")
        names = list_beside(path)
        self._paths = [path, names] if names else [path]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if names:
                _check_list(path, names)
            self._writer: _FeatureWriter = writers[path.suffix](path, width)
        except OSError as error:
            self._drop()
            raise self._unwritten(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._writer.close()
            if kind is None:
                for path in self._paths:
                    os.replace(_temporary(path), path)
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
                self._writer.add((file, start, end, vector, reason))
            if not answer.features:
                self._writer.add((file, None, None, None, reason))
        except OSError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> UserError:
        return UserError(f"--embed {self.path}: cannot be written: {error.strerror or error}")

    def _drop(self) -> None:
        for path in self._paths:
            with suppress(OSError):
                _temporary(path).unlink(missing_ok=True)


def _check_list(path: Path, names: Path) -> None:
    """Raise `UserError` if `names` exists and is not a list of features."""
    begins = (",".join(_LIST) + "\n").encode()
    if not names.exists():
        return
    with names.open("rb") as file:
        if file.read(len(begins)) != begins:
            raise UserError(f"--embed {path}: {names} is no list of features; give another name to keep this file")


class _FeatureWriter(Protocol):
    """The writer of one file format."""

    def add(self, part: FeatureRow) -> None: ...

    def close(self) -> None: ...


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


class _Npy:
    """The array and its list. The number of rows is written into the array's header at the end."""

    def __init__(self, path: Path, width: int) -> None:
        self._width, self._count = width, 0
        self._array: IO[bytes] = _temporary(path).open("wb")
        names = _temporary(path.with_suffix(".csv"))
        self._names: IO[str] = names.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self._names.write(csv_line(_LIST))
        self._write_header()

    def _write_header(self) -> None:
        # NumPy pads the header, so its length does not depend on the number of rows.
        fields = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._width)}
        np.lib.format.write_array_header_1_0(self._array, fields)

    def add(self, part: FeatureRow) -> None:
        file, start, end, vector, reason = part
        self._array.write(np.asarray(np.full(self._width, np.nan) if vector is None else vector, "<f4").tobytes())
        self._names.write(csv_line([file, start, end, reason]))
        self._count += 1

    def close(self) -> None:
        with self._array, self._names:
            self._array.seek(0)
            self._write_header()


class _Arrow:
    """The Arrow file."""

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
        self._schema, self._rows = pa.schema(columns), list[dict[str, Any]]()
        self._writer = pa.ipc.new_file(str(_temporary(path)), self._schema)

    def add(self, part: FeatureRow) -> None:
        file, *rest = part
        name = file.encode("utf-8", "backslashreplace").decode("utf-8")
        self._rows.append(dict(zip(self._schema.names, (name, *rest))))
        if len(self._rows) == self._BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, self._schema))
        self._rows = []

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._writer.close()
