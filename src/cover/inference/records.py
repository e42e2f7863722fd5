"""Rows of predictions, one per file, as JSON lines, CSV or text, and the continuation of an earlier run's file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from cover.errors import UserError
from cover.inference.segments import Cue, Segment, srt, vtt
from cover.locks import lock
from cover.media.decode import FileProblem
from cover.safe_text import csv_line, json_text, printable, read_cell

ResultRow = dict[str, Any]
OutputFormat = Literal["pretty", "jsonl", "csv"]
Write = Callable[[ResultRow], str]  # the text of a row, in whole lines
_FIXED = ("file", "media", "start", "end", "partial", "error", "protocol")


@dataclass
class Answer:
    """The row of a file, its problem or None, and its features.

    `features`: for each window start and end in seconds, and float32 `(D,)`. For a whole file, start and end are None.
    `windows`: the windows that become segments: start and length in seconds, and for each head float32 `(classes,)`.
    """

    row: ResultRow
    problem: FileProblem | None = None
    features: list[tuple[float | None, float | None, np.ndarray]] = field(default_factory=list)
    windows: list[tuple[tuple[float, float], list[np.ndarray]]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the file has no prediction."""
        return "error" in self.row

    def fail(self, problem: FileProblem) -> None:
        """Replace the predictions by the reason why there are none."""
        self.row, self.problem, self.features = {"file": problem.path, "error": problem.reason}, problem, []


def problem_in(row: ResultRow) -> FileProblem | None:
    """The problem that a row contains; None if the file has none."""
    if "error" in row:
        return FileProblem(row["file"], "unreadable", row["error"])
    return FileProblem(row["file"], "partial", row["partial"]) if "partial" in row else None


def json_line(row: ResultRow) -> str:
    """The row as JSON, in one line."""
    return json_text(row) + "\n"


def pretty(row: ResultRow) -> str:
    """The row as text for a terminal. It is empty for an unreadable file, for which stderr has a line."""
    if "error" in row:
        return ""
    lines = [printable(row["file"])]
    for head, top in row.get("heads", {}).items():
        for rank, (name, score) in enumerate(top):
            lines.append(printable(f"  {'' if rank else head:<12} {score:6.1%}  {name}"))
    for head, windows in row.get("timeline", {}).items():
        for number, window in enumerate(windows):
            classes = ", ".join(f"{name} {score:.1%}" for name, score in window["top"])
            span = f"{window['start']:8.2f} - {window['end']:8.2f} s"
            lines.append(printable(f"  {'' if number else head:<12} {span}  {classes}"))
    for head, segments in row.get("segments", {}).items():
        for number, each in enumerate(segments):
            text = f"{each['start']:8.2f} - {each['end']:8.2f} s  {each['class']} {each['score']:.1%}"
            lines.append(printable(f"  {'' if number else head:<12} {text}"))
        if not segments:
            lines.append(printable(f"  {head:<12} no segment reaches --segments and --shortest"))
    return "\n".join(lines) + "\n"


class CsvRows:
    """Rows as CSV: one line per file or window, with the `top` classes of each head and their probabilities."""

    def __init__(self, heads: Sequence[str], top: int) -> None:
        self.heads, self.top = list(heads), top

    @property
    def header(self) -> list[str]:
        """Names of the columns."""
        ranks = [f"{head}_{rank}" for head in self.heads for rank in range(1, self.top + 1)]
        return [*_FIXED, *(f"{rank}{ending}" for rank in ranks for ending in ("", "_score"))]

    def __call__(self, row: ResultRow) -> str:
        return "".join(map(csv_line, self._lines(row)))

    def head_line(self) -> str:
        """The line with the names of the columns."""
        return csv_line(self.header)

    def _lines(self, row: ResultRow) -> Iterator[list[object]]:
        protocol = json.dumps(row["protocol"], ensure_ascii=False)
        # Each window is a tuple with the window's entry of every head.
        windows = list(zip(*row["timeline"].values())) if row.get("timeline") else []
        parts = [(heads[0]["start"], heads[0]["end"], [entry["top"] for entry in heads]) for heads in windows]
        whole = (None, None, [row.get("heads", {}).get(head, []) for head in self.heads])
        for start, end, tops in parts or [whole]:
            cells = [cell for top in tops for cell in self._cells(top)]
            yield [row["file"], row.get("media"), start, end, row.get("partial"), row.get("error"), protocol, *cells]

    def _cells(self, top: Sequence[Sequence[object]]) -> list[object]:
        padded = [*top, *[("", "")] * (self.top - len(top))]
        return [cell for pair in padded for cell in pair]


class SegmentCsv(CsvRows):
    """Rows as CSV with one line per segment. A video without any has one line; so has an image for each head."""

    @property
    def header(self) -> list[str]:
        return [*_FIXED, "head", "class", "score", "peak"]

    def _lines(self, row: ResultRow) -> Iterator[list[object]]:
        protocol = json.dumps(row["protocol"], ensure_ascii=False)
        before, behind = [row["file"], row.get("media")], [row.get("partial"), row.get("error"), protocol]
        segments = [(head, each) for head, found in row.get("segments", {}).items() for each in found]
        for head, each in segments:
            times = [each["start"], each["end"]]
            yield [*before, *times, *behind, head, each["class"], each["score"], each["peak"]]
        best = [[head, *top[0], top[0][1]] for head, top in row.get("heads", {}).items()]
        for cells in best if segments or best else [[None] * 4]:
            yield [*before, None, None, *behind, *cells]


def segment_entry(segment: Segment, name: str) -> ResultRow:
    """A segment as plain JSON values, with the name of its class."""
    start, end = round(segment.start, 3), round(segment.end, 3)
    return {"start": start, "end": end, "class": name, "score": round(segment.score, 6), "peak": round(segment.peak, 6)}


def subtitles_of(path: Path) -> Callable[[Sequence[Cue]], str] | None:
    """The function that writes the subtitles of a file, by its ending; None for any other file."""
    return {".srt": srt, ".vtt": vtt}.get(path.suffix.lower())


def write_subtitles(path: Path, row: ResultRow) -> int:
    """Write the segments of a row as subtitles, as a whole file at once; returns their number. Raises `UserError`."""
    form, heads = subtitles_of(path), row.get("segments", {})
    assert form is not None, "the ending was checked"
    cues = [
        (each["start"], each["end"], f"{head}: " * (len(heads) > 1) + f"{each['class']} {each['score']:.0%}")
        for head, segments in heads.items()
        for each in segments
    ]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(form(cues), encoding="utf-8", errors="backslashreplace")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written: {error.strerror or error}") from None
    return len(cues)


def format_of(path: Path, requested: OutputFormat | None) -> OutputFormat:
    """The format of a file: the requested one, else that of its ending. Raises `UserError` if there is none."""
    endings: dict[str, OutputFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
    format_ = requested or endings.get(path.suffix.lower())
    if format_ is None or format_ == "pretty":
        raise UserError(f"--out {path}: name it .jsonl, .csv, .srt or .vtt, or give --format jsonl or csv")
    return format_


class RowFile:
    """A file of rows, which continues that of an earlier run. An incomplete last row is removed.

    `done`: the names of the files that have a row already. `failed`: the number of these that could not be read.

    Raises `UserError` if the file was written with another protocol, is not a file of rows, or cannot be written.
    """

    def __init__(self, path: Path, format_: OutputFormat, csv_rows: CsvRows, protocol: ResultRow) -> None:
        self.path, self._csv, self._protocol = path, csv_rows if format_ == "csv" else None, protocol
        self._write: Write = csv_rows if format_ == "csv" else json_line
        self.done: set[str] = set()
        self.failed = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer, because closing would try to write a failed write again.
            path.touch()
            self._file: IO[bytes] = path.open("r+b", buffering=0)
            lock(self._file, f"--out {path}")
            retained = self._read_rows(path.read_bytes())
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
        """Append a row, without a buffer. Raises `UserError` if it cannot be written."""
        try:
            self._append(self._write(row))
        except OSError as error:
            raise self._unwritten(error, "; the same command continues from here") from None

    def _append(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[self._file.write(data) :]

    def _unwritten(self, error: OSError, then: str = "") -> UserError:
        return UserError(f"--out {self.path}: cannot be written: {error.strerror or error}{then}")

    def _no_row(self, number: int) -> UserError:
        return UserError(f"--out {self.path}: line {number} is no row of cover predict; give another --out")

    def _read_rows(self, data: bytes) -> bytes:
        """Read the rows of an earlier run. Returns the part of `data` with complete rows."""
        begins = self._csv.head_line().encode("utf-8", "backslashreplace") if self._csv else b'{"file": '
        if data[: len(begins)] != begins[: len(data)]:
            what = "has other columns than this run (heads, --top)" if self._csv else "holds no rows of cover predict"
            raise UserError(f"--out {self.path}: {what}; give another --out")
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        return self._read_csv(lines) if self._csv else self._read_json(lines)

    def _read_json(self, lines: list[bytes]) -> bytes:
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
                record = _checked(row["file"], row["protocol"], "error" in row)
            except (ValueError, KeyError, TypeError):
                if number and number == len(lines) - 1:
                    return b"".join(lines[:number])
                raise self._no_row(number + 1) from None
            self._note(*record)
        return b"".join(lines)

    def _read_csv(self, lines: list[bytes]) -> bytes:
        """Read the rows of a CSV file. A cell may contain a line feed, so a row may have several lines.

        If the last file has windows, some of them may be missing. All rows of this file are dropped then, and it is
        predicted again.
        """
        complete = self._complete_csv(lines)
        last = complete[-1][0] if complete[1:] else None
        repeated = last[0] if last and last[2] else None  # column 2 is the start of a window
        retained = [row for row in complete[1:] if row[0][0] != repeated]
        for cells, before, _ in retained:
            try:
                record = _checked(read_cell(cells[0]), json.loads(cells[6]), bool(cells[5]))
            except (ValueError, TypeError):
                raise self._no_row(before + 1) from None
            self._note(*record)
        return b"".join(lines[: retained[-1][2] if retained else min(1, len(lines))])

    def _complete_csv(self, lines: list[bytes]) -> list[tuple[list[str], int, int]]:
        """For each complete row its cells, the number of lines before it, and the number of lines to its end.

        Only the last row may be incomplete; it is left out.
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


def _checked(name: Any, protocol: Any, failed: bool) -> tuple[str, ResultRow, bool]:
    """The three values, if they have the types of a row's values. Raises TypeError if not."""
    if not isinstance(name, str) or not isinstance(protocol, dict):
        raise TypeError
    return name, protocol, failed


def key_of(name: str) -> str:
    """The name of a file as valid text. Bytes that are not valid UTF-8 become backslash escapes."""
    return os.fspath(name).encode("utf-8", "backslashreplace").decode("utf-8")
