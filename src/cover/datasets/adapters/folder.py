"""Any data set kept as a folder per class: `<root>/<split>/<class>/...`, or `<root>/<class>/...`, which is all train.

Class order: sorted folder names. Files may lie in folders of their own below the class folder. Files of another ending than the
media's are left out, and counted.
"""

from __future__ import annotations

import os
from pathlib import Path

from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import ENDINGS, subfolders, walk_all
from cover.datasets.listing import Labels, Listed, Listing, given_classes, naming_splits
from cover.datasets.manifest import ClassList
from cover.errors import UserError


def folder(spec: DatasetSpec, split: str) -> Listing:
    """The rows of one split. Raises UserError for a class folder outside the class list."""
    classes = given_classes(spec) or _folder_names(spec)
    labels = Labels(classes)
    top = spec.annotations[split]
    rows, left_out = [], []
    for name in subfolders(top):
        label = labels.of(name, top)
        for path in walk_all(os.path.join(top, name)):
            sample = os.path.relpath(path, spec.root)
            if os.path.splitext(path)[1].lower() in ENDINGS[spec.media]:
                rows.append(Listed(sample, sample, path, label))
            else:
                left_out.append(sample)
    return Listing(classes, rows, _remarks(spec, left_out))


def _remarks(spec: DatasetSpec, left_out: list[str]) -> tuple[str, ...]:
    if not left_out:
        return ()
    return (f"left out, for their ending is no {spec.media}'s: {len(left_out)} files in class folders, the first {left_out[0]}",)


def _folder_names(spec: DatasetSpec) -> ClassList:
    splits = naming_splits(spec)
    names = {name for split in splits for name in subfolders(spec.annotations[split])}
    if not names:
        raise UserError(f"{spec.name}: no class folder in {spec.annotations[splits[0]]}")
    return ClassList.of(sorted(names), f"folders of {', '.join(Path(spec.annotations[split]).name for split in splits)}")
