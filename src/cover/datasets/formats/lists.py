"""The formats `list` and `csv`: lists of paths and labels.

`list`: lines `path label` without a header, as for SlowFast, VideoMAE and mmaction2. The label is the text behind the
last space, tab or comma, so a path may contain spaces. Paths are absolute or relative to the root. Labels are class
numbers or names of one word. The catalog's `classes` file has the names for numbers; without it the numbers are the
names, and named classes are in sorted order. A folder of frames may have its number of frames between path and label;
this number is ignored. A clip with a name as in Kinetics (`<YouTube id>_<start>_<end>.mp4`) has its YouTube id as
source id.

`csv`: files with a header (docs/csv.md). The column `path` is required. `label` and `class` hold the one class of a
sample, `labels` or `classes` hold any number of classes. `split`, `start` and `end` are optional.

In both, the catalog's `group` may be a pattern that is searched in the listed path; in csv it may be a column too.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cover.datasets.annotations import (
    CsvTable,
    Labels,
    ListedSample,
    Listing,
    classes_from_catalog,
    naming_splits,
    place_of,
    read_pairs,
    read_table,
    seconds,
)
from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import media_of
from cover.datasets.manifest import ClassList
from cover.errors import UserError, nearest

# --- list ---

_WITH_COUNT = re.compile(r"(.+?)[ \t]+[0-9]+")
_KINETICS = re.compile(r"(.{11})_\d{6}_\d{6}")


def path_list(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split. Raises UserError for a line without a label or a label outside the class list."""
    numbered = all(label.isdecimal() for file in set(spec.annotations.values()) for _, _, label in _pairs(file))
    classes = classes_from_catalog(spec) or (_numbered_classes(spec) if numbered else _named_classes(spec))
    labels = Labels(classes)
    rows = []
    for where, path, label in _pairs(spec.annotations[split]):
        if media_of(label):
            raise UserError(f"{where}: no label behind the path; a line is `path label`")
        number = labels.at(int(label), where) if numbered else labels.of(label, where)
        group = spec.group.of_path(path, where, spec.name) if spec.group else None
        rows.append(ListedSample(path, _source(path), os.path.normpath(spec.root / path), number, group=group))
    return Listing(classes, rows)


def _pairs(file: str) -> Iterator[tuple[str, str, str]]:
    """`read_pairs` without the number of frames behind a folder of frames."""
    for where, path, label in read_pairs(file):
        counted = None if media_of(path) else _WITH_COUNT.fullmatch(path)
        yield where, counted[1] if counted else path, label


def _source(path: str) -> str:
    """The source id of a path: its YouTube id if the name is as in Kinetics, otherwise the path.

    >>> _source("archery/-_a_b_c_d_e_000017_000027.mp4"), _source("archery/1.mp4")
    ('-_a_b_c_d_e', 'archery/1.mp4')
    """
    kinetics = _KINETICS.fullmatch(Path(path).stem)
    return kinetics[1] if kinetics else path


def _numbered_classes(spec: DatasetSpec) -> ClassList:
    """Classes "0", "1", ... up to the highest label of all splits. Raises UserError if a label between is missing."""
    labels = {int(label) for file in spec.annotations.values() for _, _, label in _pairs(file)}
    _check_no_gap(spec, "line", labels)
    return ClassList.of([str(label) for label in range(len(labels))], f"labels of {_files(spec)}")


def _check_no_gap(spec: DatasetSpec, noun: str, labels: Collection[int]) -> None:
    gap = next((label for label in range(len(labels)) if label not in labels), None)
    if gap is not None:
        raise UserError(
            f"{_files(spec)}: no {noun} has the label {gap};"
            " number the labels from 0 without gaps or give `classes: FILE`"
        )


def _named_classes(spec: DatasetSpec) -> ClassList:
    names = {label for split in naming_splits(spec) for _, _, label in _pairs(spec.annotations[split])}
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
    indexed = lists.indexed()
    classes = classes_from_catalog(spec, lists.many) or (_names_by_label(lists) if indexed else _sorted_names(lists))
    labels = Labels(classes)
    return {split: _listing(lists, rows, labels, classes, indexed) for split, rows in lists.splits.items()}


# --- csv: reading the files ---


@dataclass
class _ListedRows:
    """The rows of one split as columns, which take less memory than objects. There may be millions of rows.

    `cells`: for each row, the index of its class cells in `_Lists.known`. `first`: such an index -> number of the first
    row with it, for messages.
    """

    file: str
    paths: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    segments: list[_Segment] = field(default_factory=list)
    cells: array[int] = field(default_factory=lambda: array("l"))
    first: dict[int, int] = field(default_factory=dict)

    def add(self, number: int, path: str, source: str, group: str | None, segment: _Segment, cells: int) -> None:
        self.paths.append(path)
        self.sources.append(source)
        self.groups.append(group)
        self.segments.append(segment)
        self.cells.append(cells)
        self.first.setdefault(cells, number)


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
        files = dict.fromkeys(spec.annotations.values())
        tables = {file: read_table(file, ("path", *keys), keys) for file in files}
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
        if text.strip() == _UNKNOWN:
            return None
        return [word for part in text.split(self.spec.separator) if (word := part.strip())]

    def indexed(self) -> bool:
        """Whether the labels are numbers and not names."""
        labels = {label for cells in range(len(self.known)) for label, _ in self.named(cells)} - {""}
        return bool(labels) and all(map(_is_number, labels))


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
        )

    def cells(self, row: list[str]) -> _Cells:
        label, name = self.classes
        return self.absent if label is None else row[label], "" if name is None else row[name]

    def group_of(self, spec: DatasetSpec, number: int, row: list[str]) -> str | None:
        """The group of a row, None for its source."""
        if self.group is not None:
            return row[self.group] or None
        return spec.group.of_path(row[self.path], place_of(self.file, number), spec.name) if spec.group else None

    def segment(self, number: int, row: list[str]) -> _Segment:
        where = place_of(self.file, number)
        start = None if self.start is None else seconds(row[self.start], "start", where)
        end = None if self.end is None else seconds(row[self.end], "end", where)
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
    for number, row in table.rows:
        targets = all_splits
        if columns.split is not None:
            word = row[columns.split]
            if word not in by_word:
                by_word[word] = [rows for split, rows in splits.items() if word in _SPLIT_NAMES[split]]
            targets = by_word[word]
        if not targets:
            continue
        path = row[columns.path]
        if not path:
            raise UserError(f"{place_of(columns.file, number)}: no path")
        segment = _WHOLE if whole else columns.segment(number, row)
        cells = known.setdefault(columns.cells(row), len(known))
        group = columns.group_of(spec, number, row) if spec.group else None
        for rows in targets:
            rows.add(number, path, row[columns.source] or path, group, segment, cells)
    empty = next((split for split, rows in splits.items() if by_word and not rows.paths), None)
    if empty:
        raise UserError(f'{columns.file}: no row of the split "{empty}" in its column split{nearest(empty, by_word)}')


# --- csv: samples and classes ---


def _listing(lists: _Lists, rows: _ListedRows, labels: Labels, classes: ClassList, indexed: bool) -> Listing:
    places = {cells: place_of(rows.file, number) for cells, number in rows.first.items()}
    class_of = {cells: _class(lists, cells, labels, indexed, where) for cells, where in places.items()}
    root = str(lists.spec.root)
    columns = zip(rows.paths, rows.sources, rows.groups, rows.segments, rows.cells)
    listed = [
        _listed(root, path, source, group, segment, class_of[cells]) for path, source, group, segment, cells in columns
    ]
    return Listing(classes, listed, tuple(_of_no_class(listed)))


def _listed(
    root: str, path: str, source: str, group: str | None, segment: _Segment, classes: int | list[int] | None
) -> ListedSample:
    start, end = segment
    sample = path if segment == _WHOLE else f"{path}#{start or 0:g}-{'' if end is None else f'{end:g}'}"
    label, labels = (None, classes) if isinstance(classes, list) else (classes, None)
    file = os.path.normpath(os.path.join(root, path))
    return ListedSample(sample, source, file, label, start=start, end=end, labels=labels, group=group)


def _class(lists: _Lists, cells: int, labels: Labels, indexed: bool, where: str) -> int | list[int] | None:
    """The label, or the labels of a multi-label set, of rows with these cells. None if they are not known."""
    if lists.many:
        words = lists.words(cells)
        if words is None:
            return None
        return sorted({labels.at(int(word), where) if indexed else labels.of(word, where) for word in words})
    label, name = lists.known[cells]
    if indexed and label:
        return labels.at(int(label), where)
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
