"""Lists of `path label` lines, as SlowFast, VideoMAE and mmaction2 train from.

The label is what stands behind the last space, tab or comma of a line, so paths may hold spaces; they are absolute or
relative to the root. There is no header. Labels are numbers, of which the catalog's `classes` file (one name per line)
gives the names, or names of one word. Without that file numbered classes are called by their numbers, and named ones
are in sorted order. Where the path is that of a folder of frames, their number may stand between it and the label, and
is not used: the folder is read. A clip that is called as Kinetics' are (`<YouTube id>_<start>_<end>.mp4`) has its
YouTube id as source.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

_WITH_COUNT = re.compile(r"(.+?)[ \t]+[0-9]+")
_KINETICS = re.compile(r"(.{11})_\d{6}_\d{6}")


def path_list(spec: DatasetSpec, split: str) -> Listing:
    """The rows of one split. Raises UserError for a line without a label or a label outside the class list."""
    numbered = all(label.isdecimal() for file in set(spec.annotations.values()) for _, _, label in _pairs(file))
    classes = classes_from_catalog(spec) or (_counted(spec) if numbered else _sorted_names(spec))
    labels = Labels(classes)
    rows = []
    for where, path, label in _pairs(spec.annotations[split]):
        if media_of(label):
            raise UserError(f"{where}: no label behind the path; a line is `path label`")
        number = labels.at(int(label), where) if numbered else labels.of(label, where)
        rows.append(ListedSample(path, _source(path), os.path.normpath(spec.root / path), number))
    return Listing(classes, rows)


def _pairs(file: str) -> Iterator[tuple[str, str, str]]:
    """As `read_pairs`, without numbers of frames."""
    for where, path, label in read_pairs(file):
        counted = None if media_of(path) else _WITH_COUNT.fullmatch(path)
        yield where, counted[1] if counted else path, label


def _source(path: str) -> str:
    """
    >>> _source("archery/-_a_b_c_d_e_000017_000027.mp4"), _source("archery/1.mp4")
    ('-_a_b_c_d_e', 'archery/1.mp4')
    """
    kinetics = _KINETICS.fullmatch(Path(path).stem)
    return kinetics[1] if kinetics else path


def _counted(spec: DatasetSpec) -> ClassList:
    """Numbers for names, as many as the highest label of all splits asks for. Raises UserError where one is absent."""
    of_split = {split: {int(label) for _, _, label in _pairs(file)} for split, file in spec.annotations.items()}
    present = set().union(*of_split.values())
    gap = next((label for label in range(len(present)) if label not in present), None)
    if gap is not None:
        raise UserError(
            f"{_files(spec)}: no line has the label {gap}; number the labels from 0 without gaps or give `classes: FILE`"
        )
    return ClassList.of([str(label) for label in range(len(present))], f"labels of {_files(spec)}")


def _sorted_names(spec: DatasetSpec) -> ClassList:
    names = {label for split in naming_splits(spec) for _, _, label in _pairs(spec.annotations[split])}
    return ClassList.of(sorted(names), f"sorted labels of {_files(spec)}")


def _files(spec: DatasetSpec) -> str:
    return ", ".join(dict.fromkeys(Path(file).name for file in spec.annotations.values()))


_SPLIT_NAMES = {
    "train": {"train", "training"},
    "dev": {"dev"},
    "val": {"val", "valid", "validate", "validation"},
    "test": {"test", "testing"},
}
_ONE, _MANY = ("label", "class"), ("labels", "classes")  # columns that hold one class of a sample, or any number
_UNKNOWN = "?"
_WHOLE = (None, None)

_Segment = tuple[float | None, float | None]
_Cells = tuple[str, str]  # what a row says of its class: `label` and `class`, or the cell of many classes and nothing


def csv_list(spec: DatasetSpec, split: str) -> Listing:
    """The rows of one split. Raises UserError for a list that cannot be read, a label outside the class list or labels
    with gaps.
    """
    return csv_multi_label(spec)[split]


def csv_multi_label(spec: DatasetSpec) -> dict[str, Listing]:
    """The rows of all splits, as `csv_list`: every file is read once, however many splits it serves."""
    lists = _Lists.read(spec)
    indexed = lists.indexed()
    classes = classes_from_catalog(spec, lists.many) or (
        _names_by_label(lists) if indexed else _sorted_names_csv_list(lists)
    )
    labels = Labels(classes)
    return {split: _listing(lists, rows, labels, classes, indexed) for split, rows in lists.splits.items()}


# --- what the files say ---


@dataclass
class _ListedRows:
    """The rows of one split, a place per row in each list, for there may be millions. `cells`: which of `_Lists.known`
    a row has; `first`: for each of those the first row that has it.
    """

    file: str
    paths: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    segments: list[_Segment] = field(default_factory=list)
    cells: array[int] = field(default_factory=lambda: array("l"))
    first: dict[int, int] = field(default_factory=dict)

    def add(self, number: int, path: str, source: str, segment: _Segment, cells: int) -> None:
        self.paths.append(path)
        self.sources.append(source)
        self.segments.append(segment)
        self.cells.append(cells)
        self.first.setdefault(cells, number)


@dataclass(frozen=True)
class _Lists:
    """All splits as they were read. `many`: a sample has any number of classes; `known`: the distinct cells of classes,
    numbered.
    """

    spec: DatasetSpec
    many: bool
    splits: dict[str, _ListedRows]
    known: list[_Cells]

    @classmethod
    def read(cls, spec: DatasetSpec) -> _Lists:
        needed = ("path", spec.source) if spec.source else ("path",)
        tables = {file: read_table(file, needed) for file in dict.fromkeys(spec.annotations.values())}
        many = _many(spec, tables.values())
        splits = {split: _ListedRows(file) for split, file in spec.annotations.items()}
        known: dict[_Cells, int] = {}
        for file, table in tables.items():
            _read(
                _Columns.of(spec, table, many),
                table,
                {split: rows for split, rows in splits.items() if rows.file == file},
                known,
            )
        return cls(spec, many, splits, list(known))

    def named(self, cells: int) -> list[tuple[str, str]]:
        """`(label, name)` of each class in some cells; the label is empty where there is a column `class` alone."""
        label, name = self.known[cells]
        if self.many:
            return [(word, word) for word in self.words(cells) or ()]
        return [(label, name or label)] if label or name else []

    def words(self, cells: int) -> list[str] | None:
        """The classes in the one cell of a multi-label row; None where they are not known."""
        text = self.known[cells][0]
        return (
            None
            if text.strip() == _UNKNOWN
            else [word for part in text.split(self.spec.separator) if (word := part.strip())]
        )

    def indexed(self) -> bool:
        """Whether the column of labels holds numbers rather than names."""
        labels = {label for cells in range(len(self.known)) for label, _ in self.named(cells)} - {""}
        return bool(labels) and all(map(_is_number, labels))


def _many(spec: DatasetSpec, tables: Iterable[CsvTable]) -> bool:
    """Whether a sample has any number of classes: its lists have a column that says so."""
    columns = {column for table in tables for column in table.header}
    results = [column for column in (*_MANY, *_ONE) if column in columns]
    if columns.intersection(_MANY) and len(results) > 1:
        raise UserError(
            f'{_files_csv_list(spec)}: has a column "{results[0]}" and a column "{results[1]}";'
            " keep label where a sample has one class, labels where it has any number"
        )
    return not columns.isdisjoint(_MANY)


@dataclass(frozen=True)
class _Columns:
    """Where in the rows of a file its columns stand; None for one that it does not have. `classes`: those of `_Cells`."""

    file: str
    path: int
    source: int
    split: int | None
    start: int | None
    end: int | None
    classes: tuple[int | None, int | None]
    absent: str  # what a row says of its class where it has no such column

    @classmethod
    def of(cls, spec: DatasetSpec, table: CsvTable, many: bool) -> _Columns:
        place = {column: number for number, column in enumerate(table.header)}
        one, many_of = (place.get("label"), place.get("class")), (place.get("labels", place.get("classes")), None)
        return cls(
            table.file,
            place["path"],
            place[spec.source or "path"],
            place.get("split"),
            place.get("start"),
            place.get("end"),
            many_of if many else one,
            _UNKNOWN if many else "",
        )

    def cells(self, row: list[str]) -> _Cells:
        label, name = self.classes
        return self.absent if label is None else row[label], "" if name is None else row[name]

    def segment(self, number: int, row: list[str]) -> _Segment:
        where = place_of(self.file, number)
        start = None if self.start is None else seconds(row[self.start], "start", where)
        end = None if self.end is None else seconds(row[self.end], "end", where)
        if (start or 0) < 0 or (end is not None and end <= (start or 0)):
            raise UserError(f"{where}: start and end must be seconds inside the file, the start before the end")
        return start, end


def _read(columns: _Columns, table: CsvTable, splits: Mapping[str, _ListedRows], known: dict[_Cells, int]) -> None:
    """Add the rows of a file to the splits that it serves: its column `split` chooses, where it has one."""
    every, whole = list(splits.values()), columns.start is None and columns.end is None
    chosen: dict[str, list[_ListedRows]] = {}
    for number, row in table.rows:
        into = every
        if columns.split is not None:
            word = row[columns.split]
            if word not in chosen:
                chosen[word] = [rows for split, rows in splits.items() if word in _SPLIT_NAMES[split]]
            into = chosen[word]
        if not into:
            continue
        path = row[columns.path]
        if not path:
            raise UserError(f"{place_of(columns.file, number)}: no path")
        segment = _WHOLE if whole else columns.segment(number, row)
        cells = known.setdefault(columns.cells(row), len(known))
        for rows in into:
            rows.add(number, path, row[columns.source] or path, segment, cells)
    unserved = next((split for split, rows in splits.items() if chosen and not rows.paths), None)
    if unserved:
        raise UserError(
            f'{columns.file}: no row of the split "{unserved}" in its column split{nearest(unserved, chosen)}'
        )


# --- rows and classes ---


def _listing(lists: _Lists, rows: _ListedRows, labels: Labels, classes: ClassList, indexed: bool) -> Listing:
    class_of = {
        cells: _class(lists, cells, labels, indexed, place_of(rows.file, number))
        for cells, number in rows.first.items()
    }
    root = str(lists.spec.root)
    columns = zip(rows.paths, rows.sources, rows.segments, rows.cells)
    listed = [_listed(root, path, source, segment, class_of[cells]) for path, source, segment, cells in columns]
    return Listing(classes, listed, tuple(_of_no_class(listed)))


def _listed(root: str, path: str, source: str, segment: _Segment, present: int | list[int] | None) -> ListedSample:
    start, end = segment
    sample = path if segment == _WHOLE else f"{path}#{start or 0:g}-{'' if end is None else f'{end:g}'}"
    label, several = (None, present) if isinstance(present, list) else (present, None)
    return ListedSample(
        sample, source, os.path.normpath(os.path.join(root, path)), label, start=start, end=end, labels=several
    )


def _class(lists: _Lists, cells: int, labels: Labels, indexed: bool, where: str) -> int | list[int] | None:
    """The label of rows with these cells, the labels where there are many; None where they are not known."""
    if lists.many:
        words = lists.words(cells)
        return (
            None
            if words is None
            else sorted({labels.at(int(word), where) if indexed else labels.of(word, where) for word in words})
        )
    label, name = lists.known[cells]
    if indexed and label:
        return labels.at(int(label), where)
    return labels.of(name or label, where) if name or label else None


def _of_no_class(rows: Sequence[ListedSample]) -> Iterator[str]:
    """Said, because an empty cell may be a forgotten one."""
    if count := sum(row.labels == [] for row in rows):
        yield f"{count} of {len(rows)} samples have no class, which counts; where the classes are not known, write {_UNKNOWN}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _sorted_names_csv_list(lists: _Lists) -> ClassList:
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
    """Names in the order of their labels, which must be 0, 1, 2, ... over all splits together."""
    name_of: dict[int, str] = {}
    present = (
        (place_of(rows.file, number), cells) for rows in lists.splits.values() for cells, number in rows.first.items()
    )
    for where, (label, name) in ((where, pair) for where, cells in present for pair in lists.named(cells)):
        if label and name_of.setdefault(int(label), name) != name:
            raise UserError(f'{where}: label {label} is "{name}" here and "{name_of[int(label)]}" before')
    gap = next((label for label in range(len(name_of)) if label not in name_of), None)
    files = _files_csv_list(lists.spec)
    if gap is not None:
        raise UserError(
            f"{files}: no row has the label {gap}; number the labels from 0 without gaps or give `classes: FILE`"
        )
    return ClassList.of([name_of[label] for label in range(len(name_of))], f"labels of {files}", lists.many)


def _files_csv_list(spec: DatasetSpec) -> str:
    return ", ".join(dict.fromkeys(Path(file).name for file in spec.annotations.values()))
