"""Any data set kept as a folder per class: `<root>/<split>/<class>/...`, or `<root>/<class>/...`, which is all train.

Class order: sorted folder names. Files may lie in folders of their own below the class folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import subfolders, walk
from cover.datasets.listing import Labels, Listed, Listing, given_classes, naming_splits
from cover.datasets.manifest import ClassList
from cover.errors import UserError


def folder(spec: DatasetSpec, split: str) -> Listing:
    """The rows of one split. Raises UserError for a class folder outside the class list."""
    classes = given_classes(spec) or _folder_names(spec)
    labels = Labels(classes)
    top = spec.annotations[split]
    rows = []
    for name in subfolders(top):
        label = labels.of(name, top)
        for path in walk(os.path.join(top, name), spec.media):
            sample = os.path.relpath(path, spec.root)
            rows.append(Listed(sample, sample, path, label))
    return Listing(classes, rows)


def _folder_names(spec: DatasetSpec) -> ClassList:
    splits = naming_splits(spec)
    names = {name for split in splits for name in subfolders(spec.annotations[split])}
    if not names:
        raise UserError(f"{spec.name}: no class folder in {spec.annotations[splits[0]]}")
    return ClassList.of(sorted(names), f"folders of {', '.join(Path(spec.annotations[split]).name for split in splits)}")
