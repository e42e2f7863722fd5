"""Any data set described by a csv file with a header: one row per sample.

Columns: `path` (absolute, or relative to the catalog's root); the class in `label` or `class`; and, each optional: `split` (selects
the rows of one file that serves several splits), `start` and `end` (seconds inside the file), the column that the catalog's `source`
key names (samples with the same text there never part into train and dev). Others are ignored. A row without a class is unlabelled.

Class order: sorted names, or the file that the catalog's `classes` key names. Labels that are integers are kept as they are; names
for them come from a `class` column beside or from the `classes` file.

A multi-label set has a column `labels` (or `classes`) instead: any number of classes in one cell, `run|jump`, names or integers, parted
by `|` or by what the catalog's `separator` says. An empty cell is a sample of no class, which trains and counts as such; `?` says that
its classes are not known, as does a split whose file has no such column.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cover.datasets.catalog import DatasetSpec
from cover.datasets.listing import Labels, Listed, Listing, Table, given_classes, naming_splits, place_of, read_table, seconds
from cover.datasets.manifest import ClassList
from cover.errors import UserError, nearest

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
    """The rows of one split. Raises UserError for a list that cannot be read, a label outside the class list or labels with gaps."""
    return csv_lists(spec)[split]


def csv_lists(spec: DatasetSpec) -> dict[str, Listing]:
    """The rows of all splits, as `csv_list`: every file is read once, however many splits it serves."""
    lists = _Lists.read(spec)
    indexed = lists.indexed()
    classes = given_classes(spec, lists.many) or (_names_by_label(lists) if indexed else _sorted_names(lists))
    labels = Labels(classes)
    return {split: _listing(lists, rows, labels, classes, indexed) for split, rows in lists.splits.items()}


# --- what the files say -------------------------------------------------------------------------------------------------------------


@dataclass
class _Rows:
    """The rows of one split, a place per row in each list, for there may be millions. `cells`: which of `_Lists.known` a row has;
    `first`: for each of those the first row that has it."""

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
    """All splits as they were read. `many`: a sample has any number of classes; `known`: the distinct cells of classes, numbered."""

    spec: DatasetSpec
    many: bool
    splits: dict[str, _Rows]
    known: list[_Cells]

    @classmethod
    def read(cls, spec: DatasetSpec) -> _Lists:
        needed = ("path", spec.source) if spec.source else ("path",)
        tables = {file: read_table(file, needed) for file in dict.fromkeys(spec.annotations.values())}
        many = _many(spec, tables.values())
        splits = {split: _Rows(file) for split, file in spec.annotations.items()}
        known: dict[_Cells, int] = {}
        for file, table in tables.items():
            _read(_Columns.of(spec, table, many), table, {split: rows for split, rows in splits.items() if rows.file == file}, known)
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
        return None if text.strip() == _UNKNOWN else [word for part in text.split(self.spec.separator) if (word := part.strip())]

    def indexed(self) -> bool:
        """Whether the column of labels holds numbers rather than names."""
        labels = {label for cells in range(len(self.known)) for label, _ in self.named(cells)} - {""}
        return bool(labels) and all(map(_is_number, labels))


def _many(spec: DatasetSpec, tables: Iterable[Table]) -> bool:
    """Whether a sample has any number of classes: its lists have a column that says so."""
    columns = {column for table in tables for column in table.header}
    found = [column for column in (*_MANY, *_ONE) if column in columns]
    if columns.intersection(_MANY) and len(found) > 1:
        raise UserError(
            f'{_files(spec)}: has a column "{found[0]}" and a column "{found[1]}";'
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
    def of(cls, spec: DatasetSpec, table: Table, many: bool) -> _Columns:
        place = {column: number for number, column in enumerate(table.header)}
        one, many_of = (place.get("label"), place.get("class")), (place.get("labels", place.get("classes")), None)
        return cls(
            table.file, place["path"], place[spec.source or "path"], place.get("split"), place.get("start"), place.get("end"),
            many_of if many else one, _UNKNOWN if many else "",
        )  # fmt: skip

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


def _read(columns: _Columns, table: Table, splits: Mapping[str, _Rows], known: dict[_Cells, int]) -> None:
    """Add the rows of a file to the splits that it serves: its column `split` chooses, where it has one."""
    every, whole = list(splits.values()), columns.start is None and columns.end is None
    chosen: dict[str, list[_Rows]] = {}
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
        raise UserError(f'{columns.file}: no row of the split "{unserved}" in its column split{nearest(unserved, chosen)}')


# --- rows and classes ---------------------------------------------------------------------------------------------------------------


def _listing(lists: _Lists, rows: _Rows, labels: Labels, classes: ClassList, indexed: bool) -> Listing:
    class_of = {cells: _class(lists, cells, labels, indexed, place_of(rows.file, number)) for cells, number in rows.first.items()}
    root = str(lists.spec.root)
    columns = zip(rows.paths, rows.sources, rows.segments, rows.cells)
    listed = [_listed(root, path, source, segment, class_of[cells]) for path, source, segment, cells in columns]
    return Listing(classes, listed, tuple(_of_no_class(listed)))


def _listed(root: str, path: str, source: str, segment: _Segment, held: int | list[int] | None) -> Listed:
    start, end = segment
    sample = path if segment == _WHOLE else f"{path}#{start or 0:g}-{'' if end is None else f'{end:g}'}"
    label, several = (None, held) if isinstance(held, list) else (held, None)
    return Listed(sample, source, os.path.normpath(os.path.join(root, path)), label, start=start, end=end, labels=several)


def _class(lists: _Lists, cells: int, labels: Labels, indexed: bool, where: str) -> int | list[int] | None:
    """The label of rows with these cells, the labels where there are many; None where they are not known."""
    if lists.many:
        words = lists.words(cells)
        return None if words is None else sorted({labels.at(int(word), where) if indexed else labels.of(word, where) for word in words})
    label, name = lists.known[cells]
    if indexed and label:
        return labels.at(int(label), where)
    return labels.of(name or label, where) if name or label else None


def _of_no_class(rows: Sequence[Listed]) -> Iterator[str]:
    """Said, because an empty cell may be a forgotten one."""
    if count := sum(row.labels == [] for row in rows):
        yield f"{count} of {len(rows)} samples have no class, which counts; where the classes are not known, write {_UNKNOWN}"


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
    """Names in the order of their labels, which must be 0, 1, 2, ... over all splits together."""
    name_of: dict[int, str] = {}
    held = ((place_of(rows.file, number), cells) for rows in lists.splits.values() for cells, number in rows.first.items())
    for where, (label, name) in ((where, pair) for where, cells in held for pair in lists.named(cells)):
        if label and name_of.setdefault(int(label), name) != name:
            raise UserError(f'{where}: label {label} is "{name}" here and "{name_of[int(label)]}" before')
    gap = next((label for label in range(len(name_of)) if label not in name_of), None)
    files = _files(lists.spec)
    if gap is not None:
        raise UserError(f"{files}: no row has the label {gap}; number the labels from 0 without gaps or give `classes: FILE`")
    return ClassList.of([name_of[label] for label in range(len(name_of))], f"labels of {files}", lists.many)


def _files(spec: DatasetSpec) -> str:
    return ", ".join(dict.fromkeys(Path(file).name for file in spec.annotations.values()))
