"""Lists of `path label` lines, as SlowFast, VideoMAE and mmaction2 train from.

The label is what stands behind the last space, tab or comma of a line, so paths may hold spaces; they are absolute or relative to the
root. There is no header. Labels are numbers, of which the catalog's `classes` file (one name per line) gives the names, or names of
one word. Without that file numbered classes are called by their numbers, and named ones are in sorted order. Where the path is that of
a folder of frames, their number may stand between it and the label, and is not used: the folder is read. A clip that is called as
Kinetics' are (`<YouTube id>_<start>_<end>.mp4`) has its YouTube id as source.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import media_of
from cover.datasets.listing import Labels, Listed, Listing, given_classes, naming_splits, read_pairs
from cover.datasets.manifest import ClassList
from cover.errors import UserError

_WITH_COUNT = re.compile(r"(.+?)[ \t]+[0-9]+")
_KINETICS = re.compile(r"(.{11})_\d{6}_\d{6}")


def path_list(spec: DatasetSpec, split: str) -> Listing:
    """The rows of one split. Raises UserError for a line without a label or a label outside the class list."""
    numbered = all(label.isdecimal() for file in set(spec.annotations.values()) for _, _, label in _pairs(file))
    classes = given_classes(spec) or (_counted(spec) if numbered else _sorted_names(spec))
    labels = Labels(classes)
    rows = []
    for where, path, label in _pairs(spec.annotations[split]):
        if media_of(label):
            raise UserError(f"{where}: no label behind the path; a line is `path label`")
        number = labels.at(int(label), where) if numbered else labels.of(label, where)
        rows.append(Listed(path, _source(path), os.path.normpath(spec.root / path), number))
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
    held = set().union(*of_split.values())
    gap = next((label for label in range(len(held)) if label not in held), None)
    if gap is not None:
        raise UserError(f"{_files(spec)}: no line has the label {gap}; number the labels from 0 without gaps or give `classes: FILE`")
    return ClassList.of([str(label) for label in range(len(held))], f"labels of {_files(spec)}")


def _sorted_names(spec: DatasetSpec) -> ClassList:
    names = {label for split in naming_splits(spec) for _, _, label in _pairs(spec.annotations[split])}
    return ClassList.of(sorted(names), f"sorted labels of {_files(spec)}")


def _files(spec: DatasetSpec) -> str:
    return ", ".join(dict.fromkeys(Path(file).name for file in spec.annotations.values()))
