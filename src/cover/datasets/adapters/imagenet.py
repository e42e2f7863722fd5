"""ImageNet (1k, 21k): a folder per wnid, the label of a class being its place among the sorted wnids.

Names are the words of `LOC_synset_mapping.txt` (`n01440764 tench, Tinca tinca`) where the root or one of its parents' annotation
folders holds it, else the wnids. A flat validation folder is read with Kaggle's `LOC_val_solution.csv`. A `classes` file gives one
wnid per line, with or without words.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import subfolders, walk
from cover.datasets.listing import Labels, Listed, Listing, naming_splits, read_lines, read_records
from cover.datasets.manifest import ClassList
from cover.errors import UserError

_WNID = re.compile(r"n\d{8}")


def imagenet(spec: DatasetSpec, split: str) -> Listing:
    """The rows of one split. Raises UserError for a wnid outside the class list or images whose class nothing tells."""
    wnids, source = _wnids(spec)
    classes = ClassList.of(_names(spec, wnids), source)
    labels = Labels(ClassList.of(wnids, source))
    folder = spec.annotations[split]
    rows = _in_class_folders(folder, labels) if _class_folders(folder) else _flat(spec, folder, labels)
    return Listing(classes, rows)


def _class_folders(folder: str) -> list[str]:
    return [name for name in subfolders(folder) if _WNID.fullmatch(name)]


def _in_class_folders(folder: str, labels: Labels) -> list[Listed]:
    rows = []
    for wnid in _class_folders(folder):
        label = labels.of(wnid, os.path.join(folder, wnid))
        rows += [_listed(path, label) for path in walk(os.path.join(folder, wnid), "image")]
    return rows


def _flat(spec: DatasetSpec, folder: str, labels: Labels) -> list[Listed]:
    paths = list(walk(folder, "image"))
    solution = _beside(spec, "LOC_val_solution.csv")
    if not paths:
        return []
    if solution is None:
        raise UserError(
            f"{folder}: images without class folders; move them into folders named by wnid, or put LOC_val_solution.csv in {spec.root}"
        )
    label_of = {
        record.cells["ImageId"]: labels.of(record.cells["PredictionString"].partition(" ")[0], record.where)
        for record in read_records(str(solution), ("ImageId", "PredictionString"))
    }
    return [_listed(path, label_of.get(Path(path).stem)) for path in paths]


def _listed(path: str, label: int | None) -> Listed:
    stem = Path(path).stem
    return Listed(stem, stem, path, label)


def _wnids(spec: DatasetSpec) -> tuple[list[str], str]:
    """Sorted wnids and where they come from."""
    if spec.classes:
        return sorted(line.split()[0] for line in read_lines(spec.classes)), Path(spec.classes).name
    splits = naming_splits(spec)
    found = sorted({wnid for split in splits for wnid in _class_folders(spec.annotations[split])})
    if not found:
        raise UserError(f"{spec.name}: no folder named by a wnid (n01440764, ...) in {spec.annotations[splits[0]]}")
    return found, f"sorted wnids of {', '.join(splits)}"


def _names(spec: DatasetSpec, wnids: list[str]) -> list[str]:
    """Words for wnids. Two classes of the same words ("crane", the bird and the machine) keep their wnid behind them."""
    file = spec.classes or _beside(spec, "LOC_synset_mapping.txt")
    lines = read_lines(str(file)) if file else []
    words = {wnid: text.strip() for wnid, _, text in (line.partition(" ") for line in lines)}
    names = [words.get(wnid) or wnid for wnid in wnids]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({wnid})" if name in shared else name for name, wnid in zip(names, wnids)]


def _beside(spec: DatasetSpec, name: str) -> Path | None:
    """A file of Kaggle's, which lie at the top of the download: the root or a folder above an annotated one."""
    folders = [spec.root, *Path(next(iter(spec.annotations.values()))).parents[:4]]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
