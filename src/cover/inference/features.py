"""Where do features go? Into an array for NumPy with a list of names beside it, or into an Arrow file that holds both."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np

from cover.errors import UserError
from cover.inference.rows import Answer

Part = tuple[str, float | None, float | None, np.ndarray | None, str | None]  # file, start, end, features, error


class FeatureFile:
    """`features.npy` with `features.csv`, or `features.arrow`: one row per file, or per window, in the order of the input.

    A file that could not be read has its row too: NaN in the array, null in Arrow, with the reason. Both are written beside and renamed
    when they are whole. `width`: D of the features. Raises `UserError` for another ending, or where they cannot be written.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width
        kinds: dict[str, type[_Npy] | type[_Arrow]] = {".npy": _Npy, ".arrow": _Arrow}
        if path.suffix not in kinds:
            raise UserError(f"--embed {path}: name it .npy or .arrow")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._kind: _Kind = kinds[path.suffix](path, width)
        except OSError as error:
            raise UserError(f"--embed {path}: cannot be written: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._kind.close(whole=kind is None)

    def write(self, answer: Answer) -> None:
        """Append the rows of a file."""
        file, reason = answer.row["file"], answer.row.get("error") or answer.row.get("partial")
        for start, end, vector in answer.features:
            self._kind.add((file, start, end, vector, reason))
        if not answer.features:
            self._kind.add((file, None, None, None, reason))


class _Kind(Protocol):
    def add(self, part: Part) -> None: ...

    def close(self, whole: bool) -> None: ...


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


class _Npy:
    """The header leaves room for any number of rows, which is written when it is known."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._list, self._width, self._count = path, path.with_suffix(".csv"), width, 0
        self._array: IO[bytes] = _beside(path).open("wb")
        self._names: IO[str] = _beside(self._list).open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self._csv = csv.writer(self._names, lineterminator="\n")
        self._csv.writerow(["file", "start", "end", "problem"])
        self._head()

    def _head(self) -> None:
        about = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self._width)}
        np.lib.format.write_array_header_1_0(self._array, about)

    def add(self, part: Part) -> None:
        file, start, end, vector, reason = part
        self._array.write(np.asarray(np.full(self._width, np.nan) if vector is None else vector, "<f4").tobytes())
        self._csv.writerow([file, start, end, reason])
        self._count += 1

    def close(self, whole: bool) -> None:
        self._array.seek(0)
        self._head()
        for file, path in ((self._array, self._path), (self._names, self._list)):
            file.close()
            os.replace(_beside(path), path) if whole else _beside(path).unlink(missing_ok=True)


class _Arrow:
    _BATCH = 256  # rows

    def __init__(self, path: Path, width: int) -> None:
        import pyarrow as pa

        vector = pa.list_(pa.float32(), width)
        columns = [("file", pa.string()), ("start", pa.float64()), ("end", pa.float64()), ("features", vector), ("problem", pa.string())]
        self._path, self._schema, self._held = path, pa.schema(columns), list[dict[str, Any]]()
        self._writer = pa.ipc.new_file(str(_beside(path)), self._schema)

    def add(self, part: Part) -> None:
        file, *rest = part
        named = file.encode("utf-8", "backslashreplace").decode("utf-8")
        self._held.append(dict(zip(self._schema.names, (named, *rest))))
        if len(self._held) == self._BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        self._writer.write_batch(pa.RecordBatch.from_pylist(self._held, self._schema))
        self._held = []

    def close(self, whole: bool) -> None:
        self._flush()
        self._writer.close()
        os.replace(_beside(self._path), self._path) if whole else _beside(self._path).unlink(missing_ok=True)
