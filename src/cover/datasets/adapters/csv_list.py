"""Any data set described by a csv file with a header: one row per sample.

Columns: `path` (absolute, or relative to the catalog's root); the class in `label` or `class`; and, each optional: `split` (selects
the rows of one file that serves several splits), `start` and `end` (seconds inside the file), the column that the catalog's `source`
key names (samples with the same text there never part into train and dev). Others are ignored. A row without a class is unlabelled.

Class order: sorted names, or the file that the catalog's `classes` key names. Labels that are integers are kept as they are; names
for them come from a `class` column beside or from the `classes` file. A sample has one class; several in one cell are refused.
"""

from __future__ import annotations

import os
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


def csv_list(spec: DatasetSpec, split: str) -> Listing:
    """The rows of one split. Raises UserError for a list that cannot be read, a label outside the class list or labels with gaps."""
    indexed = _indexed(spec)
    classes = given_classes(spec) or (_names_by_label(spec) if indexed else _sorted_names(spec))
    labels = Labels(classes)
    return Listing(classes, [_listed(spec, record, labels, indexed) for record in _records(spec, split)])


def _listed(spec: DatasetSpec, record: Record, labels: Labels, indexed: bool) -> Listed:
    path = record.cells["path"]
    if not path:
        raise UserError(f"{record.where}: no path")
    start, end = record.seconds("start"), record.seconds("end")
    if (start or 0) < 0 or (end is not None and end <= (start or 0)):
        raise UserError(f"{record.where}: start and end must be seconds inside the file, the start before the end")
    sample = path if start is None and end is None else f"{path}#{start or 0:g}-{'' if end is None else f'{end:g}'}"
    source = record.cells[spec.source] if spec.source else ""
    absolute = os.path.normpath(spec.root / path)
    return Listed(sample, source or path, absolute, _label(record, labels, indexed), start=start, end=end)


def _label(record: Record, labels: Labels, indexed: bool) -> int | None:
    if indexed and record.cells["label"]:
        return labels.at(int(record.cells["label"]), record.where)
    name = _class_name(record)
    return labels.of(name, record.where) if name else None


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


def _indexed(spec: DatasetSpec) -> bool:
    """Whether the column `label` holds labels rather than names."""
    labels = {record.cells.get("label", "") for record in _all_records(spec)} - {""}
    return bool(labels) and all(label.isascii() and label.isdigit() for label in labels)


def _sorted_names(spec: DatasetSpec) -> ClassList:
    splits = naming_splits(spec)
    names = {_class_name(record) for split in splits for record in _records(spec, split)} - {""}
    if not names:
        raise UserError(f"{spec.annotations[splits[0]]}: no class in any row; it needs a column label or class")
    several = next((name for name in sorted(names) if ";" in name and {part.strip() for part in name.split(";")} <= names), None)
    if several:
        raise UserError(f'{spec.annotations[splits[0]]}: "{several}" is several classes; a sample has one (no multi-label sets yet)')
    return ClassList.of(sorted(names), f"sorted classes of {_files(spec)}")


def _names_by_label(spec: DatasetSpec) -> ClassList:
    """Names in the order of their labels, which must be 0, 1, 2, ... over all splits together."""
    name_of: dict[int, str] = {}
    for record in _all_records(spec):
        if label := record.cells["label"]:
            name = _class_name(record)
            if name_of.setdefault(int(label), name) != name:
                raise UserError(f'{record.where}: label {label} is "{name}" here and "{name_of[int(label)]}" before')
    gap = next((label for label in range(len(name_of)) if label not in name_of), None)
    if gap is not None:
        raise UserError(f"{_files(spec)}: no row has the label {gap}; number the labels from 0 without gaps or give `classes: FILE`")
    return ClassList.of([name_of[label] for label in range(len(name_of))], f"labels of {_files(spec)}")


def _files(spec: DatasetSpec) -> str:
    return ", ".join(dict.fromkeys(Path(file).name for file in spec.annotations.values()))
