"""Annotation files: reading csv tables, lists of lines, JSON and class names. No media file is opened."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import media_of
from cover.datasets.manifest import ClassList
from cover.errors import UserError, nearest

_PAIR = re.compile(r"(.*[^ \t,])[ \t,]+([^\s,]+)[ \t]*")
_MEDIA_PAIR = re.compile(r"(.*\.[A-Za-z0-9]{2,5})[\s,]+(\S.*)")  # a path with an ending, and a label with spaces
_NUMBERS = re.compile(r"-?\d+([ \t,]+-?\d+)*")
_INVISIBLE = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"  # characters without width


def stripped(text: str) -> str:
    """A cell without spaces around it: those of any script, and characters without width."""
    while text != (shorter := text.strip().strip(_INVISIBLE)):
        text = shorter
    return text


def padding_warnings(count: int, first: str) -> Iterator[str]:
    """A warning if there were spaces around the cells of `count` rows. `first`: the place of the first of them."""
    if count:
        yield f"spaces around cells were left out in {count} rows, the first {first}"


@dataclass(frozen=True, slots=True)  # there may be millions
class ListedSample:
    """One sample of an annotation list. Its file may not exist.

    The fields are those of `manifest.Row`. Times are in seconds. `label` is None if a sample is not labelled. A
    multi-label sample has `labels` instead: ascending, empty for no class, None if not labelled. `group` is None if the
    source is the group.
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
    group: str | None = None

    @property
    def group_id(self) -> str:
        """As `manifest.Row.group_id`."""
        return self.source_id if self.group is None else self.group


@dataclass(frozen=True)
class Listing:
    """All listed samples of one split.

    `classes`: the class list, the same for all splits of a data set. `warnings`: lines about files that were left out
    and other oddities. `cover index` shows them.
    """

    classes: ClassList
    rows: list[ListedSample]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """A row of a csv file with a header. It stores only the cells, because there may be millions of rows."""

    file: str
    number: int
    header: list[str]
    row: list[str]

    @property
    def where(self) -> str:
        """File and row number, for messages."""
        return place_of(self.file, self.number)

    @property
    def cells(self) -> dict[str, str]:
        """The cells by column name, without spaces around them."""
        return dict(zip(self.header, map(stripped, self.row)))

    @property
    def is_padded(self) -> bool:
        """Whether there are spaces around a cell."""
        return any(cell != stripped(cell) for cell in self.row)

    def seconds(self, column: str) -> float | None:
        """The seconds in a column, None if the cell is empty or the column absent. Raises UserError for other text."""
        return seconds(self.cells.get(column, ""), column, self.where)


def seconds(text: str, column: str, where: str) -> float | None:
    """The seconds in a cell, None if it is empty. Raises UserError if it is not a finite number."""
    try:
        result = float(text) if text else None
    except ValueError:
        result = math.nan
    if result is not None and not math.isfinite(result):
        raise UserError(f'{where}: {column} "{text}" is not a number of seconds')
    return result


@dataclass(frozen=True)
class CsvTable:
    """A csv file with a header. `rows` yields `(row number, cells)` while the file is read. Rows are full.

    `separator`: what parts the cells.
    """

    file: str
    header: list[str]
    rows: Iterator[tuple[int, list[str]]]
    separator: str = ","


def read_table(
    file: str,
    needed: Iterable[str],
    keys: Mapping[str, str] | None = None,
    names: Mapping[str, str | None] | None = None,
) -> CsvTable:
    """Open a csv file with a header. Its cells are parted by commas, or by semicolons or tabs as in its header.

    `keys`: column -> the catalog's key that names it, for messages. `names`: our name of a column -> the file's, None
    if the file has no such column. Raises UserError if the file cannot be read or lacks a column in `needed`. Iterating
    over its rows raises UserError for a row with too few or too many cells.
    """
    rows, separator = _numbered_rows(file), ","
    number, header = next(rows, (1, []))
    if not header:
        raise UserError(f"{file}: empty; the first row names the columns, {', '.join(needed)} among them")
    if len(header) == 1 and (found := next((mark for mark in ";\t" if mark in header[0]), None)):
        rows, separator = _numbered_rows(file, found), found
        number, header = next(rows, (1, []))
    header = _renamed([stripped(column) for column in header], names or {}, place_of(file, number), keys or {})
    for column in needed:
        if column not in header:
            other_separator = len(header) == 1 and re.search("[;\t|]", header[0])
            hint = "; part the cells by commas" if other_separator else nearest(column, filter(None, header))
            by = f", which {keys[column]} names" if keys and column in keys else ""
            raise UserError(f'{place_of(file, number)}: no column "{column}" in the header{by}{hint}')
    repeated = next((column for place, column in enumerate(header) if column and column in header[:place]), None)
    if repeated:
        raise UserError(f'{place_of(file, number)}: two columns "{repeated}"; keep one of them')
    return CsvTable(file, header, _full_rows(file, len(header), rows, separator), separator)


def _renamed(header: list[str], names: Mapping[str, str | None], where: str, keys: Mapping[str, str]) -> list[str]:
    """The header with our names. A column that has one of them, but is not meant, gets an empty name."""
    for ours, theirs in names.items():
        if theirs is not None and theirs not in header:
            raise UserError(
                f'{where}: no column "{theirs}" in the header, which {keys[ours]} names{nearest(theirs, header)}'
            )
    ours_of = {theirs: ours for ours, theirs in names.items()}
    return [ours_of.get(column, "" if column in names else column) for column in header]


def _full_rows(
    file: str, width: int, rows: Iterable[tuple[int, list[str]]], separator: str
) -> Iterator[tuple[int, list[str]]]:
    mark = {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
    too_many, too_few = f"quote a cell that holds a {mark}", "a cell is missing, or the row was cut off"
    for number, row in rows:
        if len(row) != width:
            remedy = too_many if len(row) > width else too_few
            raise UserError(f"{place_of(file, number)}: {len(row)} cells where the header has {width}; {remedy}")
        yield number, row


def read_records(file: str, needed: Iterable[str]) -> list[CsvRecord]:
    """All rows of a csv file with a header. Raises UserError as `read_table` does."""
    table = read_table(file, needed)
    return [CsvRecord(file, number, table.header, row) for number, row in table.rows]


def place_of(file: str, number: int) -> str:
    """The name of a row in messages."""
    return f"{file}, row {number}"


def read_rows(file: str) -> Iterator[tuple[str, list[str]]]:
    """`(where, cells)` of every row of a csv file without a header. Blank rows are left out. Raises UserError."""
    return ((place_of(file, number), row) for number, row in _numbered_rows(file))


def _numbered_rows(file: str, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, delimiter=separator)
            yield from ((reader.line_num, row) for row in reader if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from None


def read_json(file: str) -> Any:
    """The content of a JSON file. Raises UserError if it cannot be read or is not JSON."""
    try:
        return json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unreadable(file, error) from None


def read_lines(file: str) -> list[str]:
    """The lines of a text file, stripped, without blank lines. Raises UserError if it cannot be read."""
    return [text.strip() for _, text in read_numbered(file)]


def read_numbered(file: str) -> Iterator[tuple[str, str]]:
    """`(where, line)` of every line of a text file. Blank lines are left out. Raises UserError."""
    try:
        # Unlike str.splitlines, iterating over a file does not split a name at U+2028.
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{file}, row {number}", line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None


def read_pairs(file: str, known: Container[str] = ()) -> Iterator[tuple[str, str, str]]:
    """`(where, path, label)` of every line `path label`. Raises UserError for another line.

    Both may contain spaces. A tab parts them. In a line without one the label is the longest end of it that is in
    `known`, else what follows a file's ending, else the text behind the last space or comma.
    """
    for where, line in read_numbered(file):
        pair = _pair(line, known)
        if not pair:
            raise UserError(f"{where}: expected `path label`, the label behind a space or a tab")
        yield where, *pair


def _pair(line: str, known: Container[str]) -> tuple[str, str] | None:
    path, _, label = (stripped(part) for part in line.rpartition("\t"))
    behind_tab = _MEDIA_PAIR.fullmatch(label)  # then the tab is in the path
    if path and label and not _NUMBERS.fullmatch(label) and not (behind_tab and media_of(f"x{behind_tab[1]}")):
        return path, label
    line = stripped(line)
    for gap in re.finditer(r"[ \t,]+", line):  # the first gap has the longest label behind it
        if gap.start() and line[gap.end() :] in known:
            return line[: gap.start()], line[gap.end() :]
    media = _MEDIA_PAIR.fullmatch(line)
    if media and re.search(r"\s", media[2]) and not _NUMBERS.fullmatch(media[2]) and media_of(media[1]):
        return media[1], stripped(media[2])
    pair = _PAIR.fullmatch(line)
    return (pair[1], stripped(pair[2])) if pair else None


def _unreadable(file: str, error: Exception) -> UserError:
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(file)
    if isinstance(error, json.JSONDecodeError):
        return UserError(
            f"{place_of(file, error.lineno)}: not JSON ({error.msg}, column {error.colno}); fetch the file whole"
        )
    return UserError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}")


def _not_utf8(file: str) -> UserError:
    """An error with the row number. Python's own message counts bytes from the start of a buffer."""
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
    """The class list from the catalog's `classes` file, in its order. None if the entry has no such key.

    `many`: whether the data set is multi-label.
    """
    return ClassList.of(_names_in(spec.classes), Path(spec.classes).name, many) if spec.classes else None


def _names_in(file: str) -> list[str]:
    """Class names, one per line. Raises UserError for an empty file or a repeated name."""
    names: dict[str, None] = {}
    for where, line in read_numbered(file):
        if (name := stripped(line)) in names:
            raise UserError(f'{where}: the class "{name}" is listed twice; class names must differ')
        names[name] = None
    if not names:
        raise UserError(f"{file}: no class in it; write one name per line, in label order")
    return list(names)


def naming_splits(spec: DatasetSpec) -> list[str]:
    """The splits that define the class list if no file does: train alone, or all splits if there is no train.

    A class name that is only in val is then an error.
    """
    return ["train"] if "train" in spec.annotations else list(spec.annotations)


class Labels:
    """The map from class names to labels. Its errors name the row and the nearest class."""

    def __init__(self, classes: ClassList) -> None:
        self._classes = classes
        self._index = {name: label for label, name in enumerate(classes.names)}

    def of(self, name: str, where: str) -> int:
        """The label of a class name. Raises UserError for an unknown name."""
        if name not in self._index:
            hint = nearest(name, self._index) if len(self._index) <= 20 else _nearest_class(name, self._index)
            raise UserError(
                f'{where}: label "{name}" is not among the {len(self._index)} classes of {self._classes.source}{hint}'
            )
        return self._index[name]

    def at(self, label: int, where: str, first: int = 0) -> int:
        """A label given as a number, where `first` is that of the first class. Raises UserError if it has no class."""
        label -= first
        if not 0 <= label < len(self._index):
            raise UserError(
                f"{where}: label {label + first} is outside the {len(self._index)} classes of {self._classes.source}"
            )
        return label


def _nearest_class(name: str, known: Iterable[str]) -> str:
    """The hint of `nearest`, but no list of all classes: there may be thousands."""
    hint = nearest(name, known)
    return "" if hint.startswith("; known") else hint
