"""What does a data set's own annotation say, before any file is opened? The rows and class names that adapters hand back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cover.datasets.catalog import DatasetSpec
from cover.datasets.manifest import ClassList
from cover.errors import UserError, nearest


@dataclass(frozen=True)
class Listed:
    """One listed sample, whether or not its file exists. Times in seconds, as in `manifest.Row`; `label` None: not labelled."""

    sample_id: str
    source_id: str
    path: str
    label: int | None
    youtube_start: float | None = None
    youtube_end: float | None = None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Listing:
    """All rows of one split. `classes` is the same for every split of a data set."""

    classes: ClassList
    rows: list[Listed]


@dataclass(frozen=True)
class Record:
    """A row of a list with a header: its cells by column name, and `where` it stands, for messages."""

    where: str
    cells: dict[str, str]

    def seconds(self, column: str) -> float | None:
        """The number in a column, None if empty or absent. Raises UserError if it is not a number."""
        text = self.cells.get(column, "")
        try:
            return float(text) if text else None
        except ValueError:
            raise UserError(f'{self.where}: {column} "{text}" is not a number of seconds') from None


def read_records(file: str, needed: Iterable[str]) -> list[Record]:
    """A csv file with a header. Raises UserError where it cannot be read, a needed column is absent, or a row is ragged."""
    rows = read_rows(file)
    _, header = next(rows, ("", []))
    header = [column.strip() for column in header]
    for column in needed:
        if column not in header:
            raise UserError(f'{file}: no column "{column}" in its header{nearest(column, header)}')
    return [_record(where, header, row) for where, row in rows]


def _record(where: str, header: list[str], row: list[str]) -> Record:
    if len(row) != len(header):
        raise UserError(f"{where}: {len(row)} cells where the header has {len(header)}; quote a cell that holds a comma")
    return Record(where, dict(zip(header, row)))


def read_rows(file: str) -> Iterator[tuple[str, list[str]]]:
    """`(where, cells)` of every row of a csv file that is not blank. Raises UserError where it cannot be read."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines)
            yield from ((f"{file}, row {reader.line_num}", row) for row in reader if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from None


def read_json(file: str) -> Any:
    """A JSON file. Raises UserError where it cannot be read."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unreadable(file, error) from None


def read_lines(file: str) -> list[str]:
    """The lines of a text file that are not blank. Raises UserError where it cannot be read."""
    try:
        return [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None


def _unreadable(file: str, error: Exception) -> UserError:
    return UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}")


def given_classes(spec: DatasetSpec) -> ClassList | None:
    """The names in the file that the catalog's `classes` key names, in its order; None if it names none."""
    return ClassList.of(read_lines(spec.classes), Path(spec.classes).name) if spec.classes else None


def naming_splits(spec: DatasetSpec) -> list[str]:
    """The splits whose labels make the class list where no file does: train alone, so that a name only val knows is an error; every
    split where there is no train."""
    return ["train"] if "train" in spec.annotations else list(spec.annotations)


class Labels:
    """Class name -> label, or a complaint that names the row and the nearest class."""

    def __init__(self, classes: ClassList) -> None:
        self._classes = classes
        self._index = {name: label for label, name in enumerate(classes.names)}

    def of(self, name: str, where: str) -> int:
        """The label of a class name. Raises UserError."""
        if name not in self._index:
            hint = nearest(name, self._index) if len(self._index) <= 20 else _close(name, self._index)
            raise UserError(f'{where}: label "{name}" is not among the {len(self._index)} classes of {self._classes.source}{hint}')
        return self._index[name]

    def at(self, label: int, where: str) -> int:
        """A label given as a number. Raises UserError where there is no such class."""
        if not 0 <= label < len(self._index):
            raise UserError(f"{where}: label {label} is outside the {len(self._index)} classes of {self._classes.source}")
        return label


def _close(name: str, known: Iterable[str]) -> str:
    """`nearest`, without the list of all classes where none is close: it may run to thousands."""
    hint = nearest(name, known)
    return "" if hint.startswith("; known") else hint
