"""Rows of predictions, one per file: written as JSON lines, as CSV or for people, and taken up from an earlier run."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from cover.errors import UserError
from cover.media.decode import FileProblem

ResultRow = dict[str, Any]
OutputFormat = Literal["pretty", "jsonl", "csv"]
Write = Callable[[ResultRow], str]  # a row's text, whole lines
_FIXED = ("file", "media", "start", "end", "partial", "error", "protocol")


@dataclass
class Answer:
    """A file's row, its problem if it has one, and the features of each of its parts: float32 `(D,)` with start and end
    in seconds, None for the whole.
    """

    row: ResultRow
    problem: FileProblem | None = None
    features: list[tuple[float | None, float | None, np.ndarray]] = field(default_factory=list)


def problem_in(row: ResultRow) -> FileProblem | None:
    """What a row says of its file."""
    if "error" in row:
        return FileProblem(row["file"], "unreadable", row["error"])
    return FileProblem(row["file"], "partial", row["partial"]) if "partial" in row else None


def json_line(row: ResultRow) -> str:
    """The row as it is, on one line."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def pretty(row: ResultRow) -> str:
    """For the eye; nothing for a file that could not be read, of which a line on stderr tells."""
    if "error" in row:
        return ""
    lines = [row["file"]]
    for head, top in row.get("heads", {}).items():
        lines += [
            f"  {head if not place else '':<12} {fraction:6.1%}  {name}" for place, (name, fraction) in enumerate(top)
        ]
    for head, stretches in row.get("timeline", {}).items():
        for number, part in enumerate(stretches):
            record = ", ".join(f"{name} {fraction:.1%}" for name, fraction in part["top"])
            lines.append(f"  {head if not number else '':<12} {part['start']:8.2f} - {part['end']:8.2f} s  {record}")
    return "\n".join(lines) + "\n"


class CsvRows:
    """One line per file, or per window: what it is, then for each head its `top` classes, likeliest first, with their
    probabilities.
    """

    def __init__(self, heads: Sequence[str], top: int) -> None:
        self.heads, self.top = list(heads), top

    @property
    def header(self) -> list[str]:
        """Names of the columns."""
        return [
            *_FIXED,
            *(
                f"{head}_{rank}{what}"
                for head in self.heads
                for rank in range(1, self.top + 1)
                for what in ("", "_score")
            ),
        ]

    def __call__(self, row: ResultRow) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(self._lines(row))
        return out.getvalue()

    def head_line(self) -> str:
        """The first line."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow(self.header)
        return out.getvalue()

    def _lines(self, row: ResultRow) -> Iterator[list[object]]:
        record = json.dumps(row["protocol"], ensure_ascii=False)
        stretches = list(zip(*row["timeline"].values())) if row.get("timeline") else []
        parts = [(s[0]["start"], s[0]["end"], [part["top"] for part in s]) for s in stretches] or [
            (None, None, [row.get("heads", {}).get(head, []) for head in self.heads])
        ]
        for start, end, tops in parts:
            cells = [cell for top in tops for cell in self._cells(top)]
            yield [row["file"], row.get("media"), start, end, row.get("partial"), row.get("error"), record, *cells]

    def _cells(self, top: Sequence[Sequence[object]]) -> list[object]:
        padded = [*top, *[("", "")] * (self.top - len(top))]
        return [cell for pair in padded for cell in pair]


def format_of(path: Path, requested: OutputFormat | None) -> OutputFormat:
    """How a file is written: as wished, else by its ending. Raises `UserError`."""
    endings: dict[str, OutputFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
    result = requested or endings.get(path.suffix.lower())
    if result is None or result == "pretty":
        raise UserError(f"--out {path}: name it .jsonl or .csv, or give --format jsonl or csv")
    return result


class RowFile:
    """A file of rows that grows; what an earlier run wrote is kept, but for a last row that is not whole.

    `done`: the names that have their row already; `failed`: how many of those could not be read. Raises `UserError`
    where the file was written under another protocol, is of another kind, or cannot be written.
    """

    def __init__(self, path: Path, format_: OutputFormat, csv_rows: CsvRows, protocol: ResultRow) -> None:
        self.path, self._csv, self._protocol = path, csv_rows if format_ == "csv" else None, protocol
        self._write: Write = csv_rows if format_ == "csv" else json_line
        self.done: set[str] = set()
        self.failed = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            retained = self._take_up(path.read_bytes()) if path.exists() else b""
            # Unbuffered, so that closing does not try again what could not be written.
            self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b", buffering=0)
            self._file.truncate(len(retained))
            self._file.seek(len(retained))
            if self._csv and not retained:
                self._append(self._csv.head_line())
        except OSError as error:
            raise self._unwritten(error) from None

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            if kind is None:  # else the first error says more
                raise self._unwritten(error) from None

    def rows(self) -> dict[str, ResultRow]:
        """The rows of a file of JSON lines, by the names in `done`."""
        with self.path.open("rb") as lines:
            return {key_of(row["file"]): row for row in map(json.loads, lines)}

    def write(self, row: ResultRow) -> None:
        """Append a row: in the hands of the system when this returns. Raises `UserError` where it cannot be."""
        try:
            self._append(self._write(row))
        except OSError as error:
            raise self._unwritten(error, "; the same command goes on from here") from None

    def _append(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[self._file.write(data) :]

    def _unwritten(self, error: OSError, then: str = "") -> UserError:
        return UserError(f"--out {self.path}: cannot be written: {error.strerror or error}{then}")

    def _no_row(self, number: int) -> UserError:
        return UserError(f"--out {self.path}: line {number} is no row of cover predict; give another --out")

    def _take_up(self, data: bytes) -> bytes:
        """The part of an earlier run's file that is whole, its names noted."""
        begins = self._csv.head_line().encode("utf-8", "backslashreplace") if self._csv else b'{"file": '
        if data[: len(begins)] != begins[: len(data)]:
            what = "has other columns than this run (heads, --top)" if self._csv else "holds no rows of cover predict"
            raise UserError(f"--out {self.path}: {what}; give another --out")
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        return self._take_csv(lines) if self._csv else self._take_json(lines)

    def _take_json(self, lines: list[bytes]) -> bytes:
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
                record = _told(row["file"], row["protocol"], "error" in row)
            except (ValueError, KeyError, TypeError):
                if number and number == len(lines) - 1:
                    return b"".join(lines[:number])
                raise self._no_row(number + 1) from None
            self._note(*record)
        return b"".join(lines)

    def _take_csv(self, lines: list[bytes]) -> bytes:
        """Rows are read line by line as they were written: a cell with a line feed in it joins its lines. Of a file
        with windows the last may lack some, so it is taken again.
        """
        whole = self._whole_csv(lines)
        again = whole[-1][0][0] if whole[1:] and whole[-1][0][2] else None  # a window's start
        retained = [one for one in whole[1:] if one[0][0] != again]
        for cells, before, _ in retained:
            try:
                record = _told(cells[0], json.loads(cells[6]), bool(cells[5]))
            except (ValueError, TypeError):
                raise self._no_row(before + 1) from None
            self._note(*record)
        return b"".join(lines[: retained[-1][2] if retained else min(1, len(lines))])

    def _whole_csv(self, lines: list[bytes]) -> list[tuple[list[str], int, int]]:
        """The cells of each row, the lines before it, and those up to and with it. Only the last may lack cells, and is
        left out then.
        """
        assert self._csv
        reader = csv.reader(line.decode("utf-8") for line in lines)
        rows, ended = list[tuple[list[str], int, int]](), 0
        try:
            for cells in reader:
                rows.append((cells, ended, reader.line_num))
                ended = reader.line_num
        except (UnicodeDecodeError, csv.Error):
            raise self._no_row(ended + 1) from None
        short = [number for number, (cells, *_) in enumerate(rows) if len(cells) != len(self._csv.header)]
        if short and short[0] < len(rows) - 1:
            raise self._no_row(rows[short[0]][1] + 1)
        return rows[:-1] if short else rows

    def _note(self, name: str, protocol: ResultRow, failed: bool) -> None:
        for key in sorted(protocol.keys() | self._protocol.keys()):
            if protocol.get(key) != self._protocol.get(key):
                was, now = json.dumps(protocol.get(key)), json.dumps(self._protocol.get(key))
                raise UserError(
                    f"--out {self.path}: was written with {key} {was}, this run has {now}; give another --out"
                )
        self.failed += failed and key_of(name) not in self.done
        self.done.add(key_of(name))


def _told(name: Any, protocol: Any, failed: bool) -> tuple[str, ResultRow, bool]:
    """What a row says of itself, where it is a row at all: else a TypeError."""
    if not isinstance(name, str) or not isinstance(protocol, dict):
        raise TypeError
    return name, protocol, failed


def key_of(name: str) -> str:
    """A file's name as it can be told in text, whatever its bytes."""
    return os.fspath(name).encode("utf-8", "backslashreplace").decode("utf-8")
