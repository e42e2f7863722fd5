"""Reading annotation files: tables, lists of lines, JSON and class names, without opening a media file."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cover.datasets.catalog import DatasetSpec
from cover.datasets.manifest import ClassList
from cover.errors import UserError, nearest

_PAIR = re.compile(r"(.*[^ \t,])[ \t,]+([^\s,]+)[ \t]*")


@dataclass(frozen=True, slots=True)  # there may be millions
class ListedSample:
    """One listed sample, whether or not its file exists. Times in seconds, as in `manifest.Row`; `label` None: not
    labelled.

    In a data set of several classes a sample, `labels` takes its place: ascending, empty for a sample of no class,
    None: not labelled.
    """

    sample_id: str
    source_id: str
    path: str
    label: int | None
    youtube_start: float | None = None
    youtube_end: float | None = None
    start: float | None = None
    end: float | None = None
    labels: list[int] | None = None


@dataclass(frozen=True)
class Listing:
    """All rows of one split. `classes` is the same for every split of a data set, and says whether a sample has any
    number of them. `warnings`: a line each on what is not among them, or odd.
    """

    classes: ClassList
    rows: list[ListedSample]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """A row of a list with a header. It keeps what was read and no more, for there may be millions."""

    file: str
    number: int
    header: list[str]
    row: list[str]

    @property
    def where(self) -> str:
        """The place of this row, for messages."""
        return place_of(self.file, self.number)

    @property
    def cells(self) -> dict[str, str]:
        """The cells by column name."""
        return dict(zip(self.header, self.row))

    def seconds(self, column: str) -> float | None:
        """The number in a column, None if empty or absent. Raises UserError if it is not a number."""
        return seconds(self.cells.get(column, ""), column, self.where)


def seconds(text: str, column: str, where: str) -> float | None:
    """The number in a cell, None if it is empty. Raises UserError if it is not a number."""
    try:
        result = float(text) if text else None
    except ValueError:
        result = math.nan
    if result is not None and not math.isfinite(result):
        raise UserError(f'{where}: {column} "{text}" is not a number of seconds')
    return result


@dataclass(frozen=True)
class CsvTable:
    """A csv file with a header, and its rows as they are read: `(number, cells)`, as many cells as the header has."""

    file: str
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]


def read_table(file: str, needed: Iterable[str]) -> CsvTable:
    """A csv file with a header. Raises UserError where it cannot be read or a needed column is absent; its rows, where
    one is ragged.
    """
    rows = _numbered_rows(file)
    number, header = next(rows, (1, []))
    if not header:
        raise UserError(f"{file}: empty; the first row names the columns, {', '.join(needed)} among them")
    header = [column.strip() for column in header]
    for column in needed:
        if column not in header:
            hint = (
                "; part the cells by commas"
                if len(header) == 1 and re.search("[;\t|]", header[0])
                else nearest(column, header)
            )
            raise UserError(f'{place_of(file, number)}: no column "{column}" in the header{hint}')
    twice = next((column for place, column in enumerate(header) if column and column in header[:place]), None)
    if twice:
        raise UserError(f'{place_of(file, number)}: two columns "{twice}"; keep one of them')
    return CsvTable(file, header, _whole(file, len(header), rows))


def _whole(file: str, width: int, rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    for number, row in rows:
        if len(row) != width:
            remedy = (
                "quote a cell that holds a comma" if len(row) > width else "a cell is missing, or the row was cut off"
            )
            raise UserError(f"{place_of(file, number)}: {len(row)} cells where the header has {width}; {remedy}")
        yield number, row


def read_records(file: str, needed: Iterable[str]) -> list[CsvRecord]:
    """All rows of a csv file with a header. Raises UserError as `read_table`."""
    table = read_table(file, needed)
    return [CsvRecord(file, number, table.header, row) for number, row in table.rows]


def place_of(file: str, number: int) -> str:
    """How a message names a row of a list."""
    return f"{file}, row {number}"


def read_rows(file: str) -> Iterator[tuple[str, list[str]]]:
    """`(where, cells)` of every row of a csv file that is not blank. Raises UserError where it cannot be read."""
    return ((place_of(file, number), row) for number, row in _numbered_rows(file))


def _numbered_rows(file: str) -> Iterator[tuple[int, list[str]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            yield from ((reader.line_num, row) for row in reader if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from None


def read_json(file: str) -> Any:
    """A JSON file. Raises UserError where it cannot be read."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unreadable(file, error) from None


def read_lines(file: str) -> list[str]:
    """The lines of a text file that are not blank, without the blanks around them. Raises UserError where it cannot be
    read.
    """
    return [text.strip() for _, text in read_numbered(file)]


def read_numbered(file: str) -> Iterator[tuple[str, str]]:
    """`(where, line)` of every line of a text file that is not blank. Raises UserError where it cannot be read."""
    try:
        # unlike str.splitlines, this does not break at U+2028 inside a name
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}, row {number}", line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None


def read_pairs(file: str) -> Iterator[tuple[str, str, str]]:
    """`(where, path, label)` of every line `path label`: the label is what is behind the last space, tab or comma.
    Raises UserError.
    """
    for where, line in read_numbered(file):
        pair = _PAIR.fullmatch(line)
        if not pair:
            raise UserError(f"{where}: expected `path label`, the label behind a space")
        yield where, pair[1], pair[2]


def _unreadable(file: str, error: Exception) -> UserError:
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(file)
    if isinstance(error, json.JSONDecodeError):
        return UserError(
            f"{place_of(file, error.lineno)}: not JSON ({error.msg}, column {error.colno}); fetch the file whole"
        )
    return UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}")


def _not_utf8(file: str) -> UserError:
    """Names the row: Python's own message counts from the start of a buffer."""
    data = Path(file).read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        return UserError(
            f"{file}, row {row}: not UTF-8 (byte 0x{data[error.start]:02x} at {error.start}); save the file as UTF-8"
        )
    return UserError(f"{file}: changed while it was read")


def classes_from_catalog(spec: DatasetSpec, many: bool = False) -> ClassList | None:
    """The names in the file that the catalog's `classes` key names, in its order; None if it names none. `many`:
    several a sample.
    """
    return ClassList.of(_names_in(spec.classes), Path(spec.classes).name, many) if spec.classes else None


def _names_in(file: str) -> list[str]:
    """Class names, one a line. Raises UserError where there is none, or one stands there twice."""
    names: dict[str, None] = {}
    for where, line in read_numbered(file):
        if (name := line.strip()) in names:
            raise UserError(f'{where}: the class "{name}" is listed twice; class names must differ')
        names[name] = None
    if not names:
        raise UserError(f"{file}: no class in it; write one name per line, in label order")
    return list(names)


def naming_splits(spec: DatasetSpec) -> list[str]:
    """The splits whose labels make the class list where no file does: train alone, so that a name only val knows is an
    error; every split where there is no train.
    """
    return ["train"] if "train" in spec.annotations else list(spec.annotations)


class Labels:
    """Class name -> label, or a complaint that names the row and the nearest class."""

    def __init__(self, classes: ClassList) -> None:
        self._classes = classes
        self._index = {name: label for label, name in enumerate(classes.names)}

    def of(self, name: str, where: str) -> int:
        """The label of a class name. Raises UserError."""
        if name not in self._index:
            hint = nearest(name, self._index) if len(self._index) <= 20 else _nearest_class(name, self._index)
            raise UserError(
                f'{where}: label "{name}" is not among the {len(self._index)} classes of {self._classes.source}{hint}'
            )
        return self._index[name]

    def at(self, label: int, where: str) -> int:
        """A label given as a number. Raises UserError where there is no such class."""
        if not 0 <= label < len(self._index):
            raise UserError(
                f"{where}: label {label} is outside the {len(self._index)} classes of {self._classes.source}"
            )
        return label


def _nearest_class(name: str, known: Iterable[str]) -> str:
    """`nearest`, without the list of all classes where none is close: it may run to thousands."""
    hint = nearest(name, known)
    return "" if hint.startswith("; known") else hint
