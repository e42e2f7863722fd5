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
from collections.abc import Iterator, Sequence
from pathlib import Path

from cover.datasets.catalog import DatasetSpec
from cover.datasets.listing import Labels, Listed, Listing, Record, given_classes, naming_splits, read_records
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


def csv_list(spec: DatasetSpec, split: str) -> Listing:
    """The rows of one split. Raises UserError for a list that cannot be read, a label outside the class list or labels with gaps."""
    many = _many(spec)
    indexed = _indexed(spec, many)
    classes = given_classes(spec, many) or (_names_by_label(spec, many) if indexed else _sorted_names(spec, many))
    labels = Labels(classes)
    rows = [_listed(spec, record, labels, indexed, many) for record in _records(spec, split)]
    return Listing(classes, rows, tuple(_of_no_class(rows)))


def _many(spec: DatasetSpec) -> bool:
    """Whether a sample has any number of classes: its lists have a column that says so."""
    columns = {column for split in spec.annotations for record in _records(spec, split)[:1] for column in record.cells}
    found = [column for column in (*_MANY, *_ONE) if column in columns]
    if columns.intersection(_MANY) and len(found) > 1:
        raise UserError(
            f'{_files(spec)}: has a column "{found[0]}" and a column "{found[1]}";'
            " keep label where a sample has one class, labels where it has any number"
        )
    return not columns.isdisjoint(_MANY)


def _of_no_class(rows: Sequence[Listed]) -> Iterator[str]:
    """Said, because an empty cell may be a forgotten one."""
    if count := sum(row.labels == [] for row in rows):
        yield f"{count} of {len(rows)} samples have no class, which counts; where the classes are not known, write {_UNKNOWN}"


def _listed(spec: DatasetSpec, record: Record, labels: Labels, indexed: bool, many: bool) -> Listed:
    path = record.cells["path"]
    if not path:
        raise UserError(f"{record.where}: no path")
    start, end = record.seconds("start"), record.seconds("end")
    if (start or 0) < 0 or (end is not None and end <= (start or 0)):
        raise UserError(f"{record.where}: start and end must be seconds inside the file, the start before the end")
    sample = path if start is None and end is None else f"{path}#{start or 0:g}-{'' if end is None else f'{end:g}'}"
    source = record.cells[spec.source] if spec.source else ""
    absolute = os.path.normpath(spec.root / path)
    label, several = (None, _labels(spec, record, labels, indexed)) if many else (_label(record, labels, indexed), None)
    return Listed(sample, source or path, absolute, label, start=start, end=end, labels=several)


def _label(record: Record, labels: Labels, indexed: bool) -> int | None:
    if indexed and record.cells["label"]:
        return labels.at(int(record.cells["label"]), record.where)
    name = _class_name(record)
    return labels.of(name, record.where) if name else None


def _labels(spec: DatasetSpec, record: Record, labels: Labels, indexed: bool) -> list[int] | None:
    words = _words(spec, record)
    if words is None:
        return None
    return sorted({labels.at(int(word), record.where) if indexed else labels.of(word, record.where) for word in words})


def _words(spec: DatasetSpec, record: Record) -> list[str] | None:
    """The classes of a multi-label record as they stand in its cell; None where they are not known."""
    cells = record.cells
    text = next((cells[column] for column in _MANY if column in cells), _UNKNOWN)
    return None if text.strip() == _UNKNOWN else [word for part in text.split(spec.separator) if (word := part.strip())]


def _records(spec: DatasetSpec, split: str) -> list[Record]:
    file = spec.annotations[split]
    records = read_records(file, ("path", spec.source) if spec.source else ("path",))
    if not any("split" in record.cells for record in records):
        return records
    chosen = [record for record in records if record.cells["split"] in _SPLIT_NAMES[split]]
    if not chosen:
        held = {record.cells["split"] for record in records}
        raise UserError(f'{file}: no row of the split "{split}" in its column split{nearest(split, held)}')
    return chosen


def _all_records(spec: DatasetSpec) -> list[Record]:
    return [record for split in spec.annotations for record in _records(spec, split)]


def _class_name(record: Record) -> str:
    return record.cells.get("class") or record.cells.get("label", "")


def _named(spec: DatasetSpec, record: Record, many: bool) -> list[tuple[str, str]]:
    """`(label, name)` of each class of a record as the list has them; the label is empty where there is a column `class` alone."""
    if many:
        return [(word, word) for word in _words(spec, record) or ()]
    name = _class_name(record)
    return [(record.cells.get("label", ""), name)] if name else []


def _indexed(spec: DatasetSpec, many: bool) -> bool:
    """Whether the column of labels holds numbers rather than names."""
    labels = {label for record in _all_records(spec) for label, _ in _named(spec, record, many)} - {""}
    return bool(labels) and all(map(_is_number, labels))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _sorted_names(spec: DatasetSpec, many: bool) -> ClassList:
    splits = naming_splits(spec)
    names = {name for split in splits for record in _records(spec, split) for _, name in _named(spec, record, many)}
    if not names:
        raise UserError(f"{spec.annotations[splits[0]]}: no class in any row; it needs a column label or class, or labels for several")
    several = next((name for name in sorted(names) if not many and _is_several(name, names)), None)
    if several:
        raise UserError(f'{spec.annotations[splits[0]]}: "{several}" is several classes; call the column labels, and part them with |')
    return ClassList.of(sorted(names), f"sorted classes of {_files(spec)}", many)


def _is_several(name: str, names: set[str]) -> bool:
    return any(mark in name and {part.strip() for part in name.split(mark)} <= names for mark in ";|")


def _names_by_label(spec: DatasetSpec, many: bool) -> ClassList:
    """Names in the order of their labels, which must be 0, 1, 2, ... over all splits together."""
    name_of: dict[int, str] = {}
    for record in _all_records(spec):
        for label, name in _named(spec, record, many):
            if label and name_of.setdefault(int(label), name) != name:
                raise UserError(f'{record.where}: label {label} is "{name}" here and "{name_of[int(label)]}" before')
    gap = next((label for label in range(len(name_of)) if label not in name_of), None)
    if gap is not None:
        raise UserError(f"{_files(spec)}: no row has the label {gap}; number the labels from 0 without gaps or give `classes: FILE`")
    return ClassList.of([name_of[label] for label in range(len(name_of))], f"labels of {_files(spec)}", many)


def _files(spec: DatasetSpec) -> str:
    return ", ".join(dict.fromkeys(Path(file).name for file in spec.annotations.values()))
