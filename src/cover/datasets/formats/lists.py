"""The formats `list` and `csv`: lists of paths and labels.

`list`: lines `path label`, as for SlowFast, VideoMAE and mmaction2 (`annotations.read_pairs`). Paths are absolute or
relative to the root. Labels are class numbers, or names in sorted order. The catalog's `classes` file has the names for
numbers; without it the numbers are the names. A header line is skipped, with a warning. A folder of frames may have its
number of frames between path and label; this number is ignored. A clip with a name as in Kinetics
(`<YouTube id>_<start>_<end>.mp4`) has its YouTube id as source id.

`csv`: files with a header (docs/csv.md). The column `path` is required. `label` and `class` hold the one class of a
sample, `labels` or `classes` hold any number of classes. `split`, `start` and `end` are optional. The catalog's
`columns` has other names for these columns.

In both, the catalog's `group` may be a pattern that is searched in the listed path; in csv it may be a column too.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cover.datasets.annotations import (
    CsvTable,
    Labels,
    ListedSample,
    Listing,
    classes_from_catalog,
    naming_splits,
    padding_warnings,
    place_of,
    read_pairs,
    read_table,
    seconds,
    stripped,
)
from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import media_of
from cover.datasets.manifest import ClassList
from cover.errors import UserError, nearest

# --- list ---

_WITH_COUNT = re.compile(r"(.+?)[ \t]+[0-9]+")
_KINETICS = re.compile(r"(.{11})_\d{6}_\d{6}")
_HEADER_PATHS = re.compile("(video|image|clip|file)?[ _]?(path|file|name)?s?", re.IGNORECASE)
_HEADER_LABELS = re.compile("(label|class|category|target|action)(es|s)?([ _](id|name|index))?", re.IGNORECASE)


def path_list(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split. Raises UserError for a line without a label or a label outside the class list."""
    given = classes_from_catalog(spec)
    files = {file: _ListFile.scan(file, given) for file in spec.annotations.values()}
    numbers = _numbers({label: where for file in files.values() for label, where in file.distinct.items()}, given)
    if numbers is None:
        classes = given or _named_classes(spec, files)
    else:
        classes = given or _numbered_classes(spec, numbers)
    first = _first_number(numbers, given)
    labels = Labels(classes)
    rows = []
    for where, path, label in files[spec.annotations[split]].pairs():
        number = labels.of(label, where) if numbers is None else labels.at(int(label), where, first)
        group = spec.group.of_path(path, where, spec.name) if spec.group else None
        rows.append(ListedSample(path, _source(path), os.path.normpath(spec.root / path), number, group=group))
    return Listing(classes, rows, (*files[spec.annotations[split]].warnings(), *_from_one(first)))


@dataclass(frozen=True)
class _ListFile:
    """A list. `header`: `(where, text)` of its header line, None without one. `distinct`: label -> its first place."""

    file: str
    known: frozenset[str]
    header: tuple[str, str] | None
    distinct: dict[str, str]

    @classmethod
    def scan(cls, file: str, given: ClassList | None) -> _ListFile:
        """Read a list once. `given`: the classes of the catalog's `classes` file."""
        known = frozenset(given.names if given else ())
        rows = _pairs(file, known)
        where, path, label = next(rows, ("", "", ""))
        distinct: dict[str, str] = {}
        for place, _, other in rows:
            distinct.setdefault(other, place)
        for word, place in {label: where, **distinct}.items():
            if media_of(word):
                raise UserError(f"{place}: no label behind the path; a line is `path label`")
        if _is_header(path, label, distinct):
            return cls(file, known, (where, f"{path} {label}"), distinct)
        return cls(file, known, None, {label: where} | distinct if label else distinct)

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """`(where, path, label)` of every line but the header."""
        return islice(_pairs(self.file, self.known), int(self.header is not None), None)

    def warnings(self) -> Iterator[str]:
        if self.header:
            yield f'{self.header[0]}: "{self.header[1]}" was taken for a header and left out'


def _is_header(path: str, label: str, others: Collection[str]) -> bool:
    """Whether the first line of a list is a header. `others`: the labels of the other lines."""
    if media_of(path) or not others or _is_number(label):
        return False
    named = _HEADER_PATHS.fullmatch(path) and _HEADER_LABELS.fullmatch(label)
    return bool(named) or ("/" not in path and all(map(_is_number, others)))


def _pairs(file: str, known: frozenset[str]) -> Iterator[tuple[str, str, str]]:
    """`read_pairs` without the number of frames behind a folder of frames."""
    for where, path, label in read_pairs(file, known):
        counted = None if media_of(path) else _WITH_COUNT.fullmatch(path)
        yield where, counted[1] if counted else path, label


def _numbers(distinct: Mapping[str, str], given: ClassList | None) -> set[int] | None:
    """The labels as numbers, None if they are names. `distinct`: label -> its first place.

    Raises UserError if most of them are numbers and some are not, unless all are names that the catalog gives.
    """
    odd = [label for label in distinct if not _is_number(label)]
    if not odd:
        return {int(label) for label in distinct} if distinct else None
    negative = all(_is_number(label.removeprefix("-")) for label in odd)
    enough = len(distinct) - len(odd) >= len(odd) + (not negative)
    if not enough or (given and set(given.names).issuperset(distinct)):
        return None
    remedy = "leave samples without a class out, or give them an empty cell of a csv file" if negative else "correct it"
    raise UserError(
        f'{distinct[odd[0]]}: label "{odd[0]}" is no class number, as {len(distinct) - len(odd)} others are; {remedy}'
    )


def _first_number(numbers: Collection[int] | None, given: ClassList | None) -> int:
    """The number of the first class: 1 if the class names are given and the labels go from 1 to their count, else 0."""
    if not numbers or given is None:
        return 0
    return int((min(numbers), max(numbers)) == (1, len(given.names)))


def _from_one(first: int) -> list[str]:
    return ["the labels are numbered from 1: label 1 is the first name of the class list"] if first else []


def _source(path: str) -> str:
    """The source id of a path: its YouTube id if the name is as in Kinetics, otherwise the path.

    >>> _source("archery/-_a_b_c_d_e_000017_000027.mp4"), _source("archery/1.mp4")
    ('-_a_b_c_d_e', 'archery/1.mp4')
    """
    kinetics = _KINETICS.fullmatch(Path(path).stem)
    return kinetics[1] if kinetics else path


def _numbered_classes(spec: DatasetSpec, numbers: Collection[int]) -> ClassList:
    """Classes "0", "1", ... up to the highest label of all splits. Raises UserError if a label between is missing."""
    if not numbers:
        raise UserError(f"{_files(spec)}: no line has a label; give the class names by `classes: FILE`")
    _check_no_gap(spec, "line", numbers)
    return ClassList.of([str(label) for label in range(len(numbers))], f"labels of {_files(spec)}")


def _check_no_gap(spec: DatasetSpec, noun: str, labels: Collection[int]) -> None:
    gap = next((label for label in range(len(labels)) if label not in labels), None)
    if gap is not None:
        raise UserError(
            f"{_files(spec)}: no {noun} has the label {gap};"
            " number the labels from 0 without gaps or give `classes: FILE`"
        )


def _named_classes(spec: DatasetSpec, files: Mapping[str, _ListFile]) -> ClassList:
    names = {label for split in naming_splits(spec) for label in files[spec.annotations[split]].distinct}
    return ClassList.of(sorted(names), f"sorted labels of {_files(spec)}")


def _files(spec: DatasetSpec) -> str:
    return ", ".join(dict.fromkeys(Path(file).name for file in spec.annotations.values()))


# --- csv ---

_SPLIT_NAMES = {
    "train": {"train", "training"},
    "dev": {"dev"},
    "val": {"val", "valid", "validate", "validation"},
    "test": {"test", "testing"},
}
_ONE, _MANY = ("label", "class"), ("labels", "classes")  # columns for one class, or for any number of classes
_UNKNOWN = "?"  # cell of a multi-label sample whose classes are not known
_WHOLE = (None, None)  # segment of a whole file

_Segment = tuple[float | None, float | None]
_Cells = tuple[str, str]  # the cells `label` and `class` of a row, or the multi-label cell and an empty one


def csv_list(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split.

    Raises UserError for an invalid list, a label outside the class list, or labels with gaps.
    """
    return csv_multi_label(spec)[split]


def csv_multi_label(spec: DatasetSpec) -> dict[str, Listing]:
    """Split -> listing, for all splits. Every file is read once, also if it serves several splits."""
    lists = _Lists.read(spec)
    given = classes_from_catalog(spec, lists.many)
    numbers = lists.numbers(given)
    classes = given or (_sorted_names(lists) if numbers is None else _names_by_label(lists))
    first = None if numbers is None else _first_number(numbers, given)
    labels = Labels(classes)
    return {split: _listing(lists, rows, labels, classes, first) for split, rows in lists.splits.items()}


# --- csv: reading the files ---


@dataclass
class _ListedRows:
    """The rows of one split as columns, which take less memory than objects. There may be millions of rows.

    `cells`: for each row, the index of its class cells in `_Lists.known`. `first`: such an index -> number of the first
    row with it, for messages. `padded`: the numbers of the first rows with spaces around a cell, and their count.
    """

    file: str
    paths: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    segments: list[_Segment] = field(default_factory=list)
    cells: array[int] = field(default_factory=lambda: array("l"))
    first: dict[int, int] = field(default_factory=dict)
    padded: int = 0
    first_padded: int = 0

    def add(self, number: int, path: str, source: str, group: str | None, segment: _Segment, cells: int) -> None:
        self.paths.append(path)
        self.sources.append(source)
        self.groups.append(group)
        self.segments.append(segment)
        self.cells.append(cells)
        self.first.setdefault(cells, number)

    def note_padded(self, number: int) -> None:
        """Count a row with spaces around a cell."""
        self.padded += 1
        self.first_padded = self.first_padded or number

    def warnings(self) -> Iterator[str]:
        return padding_warnings(self.padded, place_of(self.file, self.first_padded))


@dataclass(frozen=True)
class _Lists:
    """All splits of a csv data set. `many`: whether it is multi-label. `known`: the distinct class cells.

    Labels are parsed once per distinct cell, not once per row.
    """

    spec: DatasetSpec
    many: bool
    splits: dict[str, _ListedRows]
    known: list[_Cells]

    @classmethod
    def read(cls, spec: DatasetSpec) -> _Lists:
        named = {spec.source: "source", spec.group.column if spec.group else None: "group"}
        keys = {column: f"{spec.name}.{key}" for column, key in named.items() if column}
        keys |= {column: f"{spec.name}.columns.{column}" for column in spec.columns}
        needed = dict.fromkeys(("path", *keys))
        mapped = any(column in spec.columns for column in (*_ONE, *_MANY))  # then no other column holds classes
        names = {**(dict.fromkeys((*_ONE, *_MANY)) if mapped else {}), **spec.columns}
        files = dict.fromkeys(spec.annotations.values())
        tables = {file: read_table(file, needed, keys, names) for file in files}
        many = _many(spec, tables.values())
        splits = {split: _ListedRows(file) for split, file in spec.annotations.items()}
        known: dict[_Cells, int] = {}
        for file, table in tables.items():
            of_file = {split: rows for split, rows in splits.items() if rows.file == file}
            _read(spec, _Columns.of(spec, table, many), table, of_file, known)
        return cls(spec, many, splits, list(known))

    def named(self, cells: int) -> list[tuple[str, str]]:
        """`(label, name)` of each class in some cells. The label is empty if there is only a column `class`."""
        label, name = self.known[cells]
        if self.many:
            return [(word, word) for word in self.words(cells) or ()]
        return [(label, name or label)] if label or name else []

    def words(self, cells: int) -> list[str] | None:
        """The classes in a multi-label cell, None if they are not known."""
        text = self.known[cells][0]
        if text == _UNKNOWN:
            return None
        return [word for part in text.split(self.spec.separator) if (word := stripped(part))]

    def numbers(self, given: ClassList | None) -> set[int] | None:
        """The labels as numbers, None if they are names. `given`: the classes of the catalog's `classes` file."""
        distinct: dict[str, str] = {}
        for rows in self.splits.values():
            for cells, number in rows.first.items():
                for label, _ in self.named(cells):
                    distinct.setdefault(label, place_of(rows.file, number))
        distinct.pop("", None)
        return _numbers(distinct, given)


def _many(spec: DatasetSpec, tables: Iterable[CsvTable]) -> bool:
    """Whether the data set is multi-label, by its columns. Raises UserError for columns of both kinds."""
    columns = {column for table in tables for column in table.header}
    present = [column for column in (*_MANY, *_ONE) if column in columns]
    if columns.intersection(_MANY) and len(present) > 1:
        raise UserError(
            f'{_files(spec)}: has a column "{present[0]}" and a column "{present[1]}";'
            " keep label where a sample has one class, labels where it has any number"
        )
    return not columns.isdisjoint(_MANY)


@dataclass(frozen=True)
class _Columns:
    """The positions of the columns in the rows of a file, None for absent columns. `classes`: those of `_Cells`."""

    file: str
    path: int
    source: int
    group: int | None
    split: int | None
    start: int | None
    end: int | None
    classes: tuple[int | None, int | None]
    absent: str  # the class cell of a file without a class column
    decimals: tuple[str, str]  # the decimal mark of its numbers, and a point
    many: bool  # whether a cell holds any number of classes, which may have spaces around them

    @classmethod
    def of(cls, spec: DatasetSpec, table: CsvTable, many: bool) -> _Columns:
        place = {column: number for number, column in enumerate(table.header)}
        one, many_of = (place.get("label"), place.get("class")), (place.get("labels", place.get("classes")), None)
        return cls(
            table.file,
            place["path"],
            place[spec.source or "path"],
            place[spec.group.column] if spec.group and spec.group.column else None,
            place.get("split"),
            place.get("start"),
            place.get("end"),
            many_of if many else one,
            _UNKNOWN if many else "",
            (".", ".") if table.separator == "," else (",", "."),
            many,
        )

    def cells(self, row: list[str]) -> _Cells:
        label, name = self.classes
        return self.absent if label is None else row[label], "" if name is None else row[name]

    def group_of(self, spec: DatasetSpec, number: int, row: list[str]) -> str | None:
        """The group of a row, None for its source."""
        if self.group is not None:
            return stripped(row[self.group]) or None
        return (
            spec.group.of_path(stripped(row[self.path]), place_of(self.file, number), spec.name) if spec.group else None
        )

    def segment(self, number: int, row: list[str]) -> _Segment:
        where = place_of(self.file, number)
        start, end = (
            None if column is None else seconds(stripped(row[column]).replace(*self.decimals), name, where)
            for column, name in ((self.start, "start"), (self.end, "end"))
        )
        if (start or 0) < 0 or (end is not None and end <= (start or 0)):
            raise UserError(f"{where}: start and end must be seconds inside the file, the start before the end")
        return start, end


def _read(
    spec: DatasetSpec,
    columns: _Columns,
    table: CsvTable,
    splits: Mapping[str, _ListedRows],
    known: dict[_Cells, int],
) -> None:
    """Add the rows of a file to its splits. The column `split`, if there is one, chooses the split of each row."""
    all_splits, whole = list(splits.values()), columns.start is None and columns.end is None
    by_word: dict[str, list[_ListedRows]] = {}  # word in the column `split` -> the splits that it names
    of_cells: dict[_Cells, tuple[int, bool]] = {}  # cells as they stand -> index in `known`, whether they have spaces
    for number, row in table.rows:
        targets = all_splits
        if columns.split is not None:
            word = stripped(row[columns.split]).lower()
            if word not in by_word:
                by_word[word] = [rows for split, rows in splits.items() if word in _SPLIT_NAMES[split]]
            targets = by_word[word]
        if not targets:
            continue
        path = _path(spec, row[columns.path])
        if not path:
            raise UserError(f"{place_of(columns.file, number)}: no path")
        segment = _WHOLE if whole else columns.segment(number, row)
        raw = columns.cells(row)
        if raw not in of_cells:
            clean = (stripped(raw[0]), stripped(raw[1]))
            of_cells[raw] = known.setdefault(clean, len(known)), clean != raw and not columns.many
        cells, padded = of_cells[raw]
        padded = padded or path != row[columns.path]
        group = columns.group_of(spec, number, row) if spec.group else None
        source = path if columns.source == columns.path else stripped(row[columns.source]) or path
        for rows in targets:
            rows.add(number, path, source, group, segment, cells)
            if padded:
                rows.note_padded(number)
    empty = next((split for split, rows in splits.items() if by_word and not rows.paths), None)
    if empty:
        raise UserError(f'{columns.file}: no row of the split "{empty}" in its column split{nearest(empty, by_word)}')


def _path(spec: DatasetSpec, cell: str) -> str:
    """A path without spaces around it, unless a file has this very name."""
    path = stripped(cell)
    return cell if path != cell and os.path.exists(os.path.join(spec.root, cell)) else path


# --- csv: samples and classes ---


def _listing(lists: _Lists, rows: _ListedRows, labels: Labels, classes: ClassList, first: int | None) -> Listing:
    """`first`: the number of the first class, None if labels are names."""
    places = {cells: place_of(rows.file, number) for cells, number in rows.first.items()}
    class_of = {cells: _class(lists, cells, labels, first, where) for cells, where in places.items()}
    root = str(lists.spec.root)
    columns = zip(rows.paths, rows.sources, rows.groups, rows.segments, rows.cells)
    listed = [
        _listed(root, path, source, group, segment, class_of[cells]) for path, source, group, segment, cells in columns
    ]
    return Listing(classes, listed, (*_of_no_class(listed), *rows.warnings(), *_from_one(first or 0)))


def _listed(
    root: str, path: str, source: str, group: str | None, segment: _Segment, classes: int | list[int] | None
) -> ListedSample:
    start, end = segment
    sample = path if segment == _WHOLE else f"{path}#{start or 0:g}-{'' if end is None else f'{end:g}'}"
    label, labels = (None, classes) if isinstance(classes, list) else (classes, None)
    file = os.path.normpath(os.path.join(root, path))
    return ListedSample(sample, source, file, label, start=start, end=end, labels=labels, group=group)


def _class(lists: _Lists, cells: int, labels: Labels, first: int | None, where: str) -> int | list[int] | None:
    """The label, or the labels of a multi-label set, of rows with these cells. None if they are not known.

    `first`: the number of the first class, None if labels are names.
    """
    if lists.many:
        words = lists.words(cells)
        if words is None:
            return None
        return sorted(
            {labels.of(word, where) if first is None else labels.at(int(word), where, first) for word in words}
        )
    label, name = lists.known[cells]
    if first is not None and label:
        return labels.at(int(label), where, first)
    return labels.of(name or label, where) if name or label else None


def _of_no_class(rows: Sequence[ListedSample]) -> Iterator[str]:
    """A warning about samples without a class, because an empty cell may be a mistake."""
    if count := sum(row.labels == [] for row in rows):
        total = f"{count} of {len(rows)} samples"
        yield f"{total} have no class, which counts; where the classes are not known, write {_UNKNOWN}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _sorted_names(lists: _Lists) -> ClassList:
    splits = naming_splits(lists.spec)
    names = {name for split in splits for cells in lists.splits[split].first for _, name in lists.named(cells)}
    file = lists.splits[splits[0]].file
    if not names:
        raise UserError(f"{file}: no class in any row; it needs a column label or class, or labels for several")
    several = next((name for name in sorted(names) if not lists.many and _is_several(name, names)), None)
    if several:
        raise UserError(f'{file}: "{several}" is several classes; call the column labels, and part them with |')
    named = ", ".join(dict.fromkeys(Path(lists.splits[split].file).name for split in splits))
    return ClassList.of(sorted(names), f"sorted classes of {named}", lists.many)


def _is_several(name: str, names: set[str]) -> bool:
    return any(mark in name and {part.strip() for part in name.split(mark)} <= names for mark in ";|")


def _names_by_label(lists: _Lists) -> ClassList:
    """Class names in the order of their labels, which must be 0, 1, 2, ... over all splits together."""
    name_of: dict[int, str] = {}
    for rows in lists.splits.values():
        for cells, number in rows.first.items():
            for label, name in lists.named(cells):
                if label and name_of.setdefault(int(label), name) != name:
                    before = f'"{name_of[int(label)]}" before'
                    raise UserError(f'{place_of(rows.file, number)}: label {label} is "{name}" here and {before}')
    _check_no_gap(lists.spec, "row", name_of)
    names = [name_of[label] for label in range(len(name_of))]
    return ClassList.of(names, f"labels of {_files(lists.spec)}", lists.many)
