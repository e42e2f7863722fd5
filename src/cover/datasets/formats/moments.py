"""The format `moments` (Moments in Time, v1: 339 classes, v2: 305 classes): csv lists without a header.

The lists `trainingSet.csv` and `validationSet.csv` have rows `label/name.mp4,label,positive votes,negative votes`. The
files are in `training/` and `validation/`, one folder per class. `moments_categories.txt` has the class order as rows
`label,index`, or as names in order. The number of classes identifies the version. The source of the class list names
the version, because results on the two versions cannot be compared.
"""

from __future__ import annotations

import re
from pathlib import Path

from cover.datasets.annotations import (
    Labels,
    ListedSample,
    Listing,
    naming_splits,
    padding_warnings,
    read_lines,
    read_rows,
    stripped,
)
from cover.datasets.catalog import DatasetSpec
from cover.datasets.manifest import ClassList
from cover.errors import UserError

_FOLDERS = {"train": "training", "val": "validation", "test": "testing"}
_VERSIONS = {339: "v1", 305: "v2"}
_YOUTUBE = re.compile(r"yt-(.{11})_\d+")


def moments(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split. Raises UserError for an invalid list or a label outside the class list."""
    classes = _classes(spec)
    labels = Labels(classes)
    folder = spec.root / _FOLDERS.get(split, split)
    rows = []
    padded = []
    for where, path, cell in _pairs(spec.annotations[split]):
        name = stripped(cell)
        padded += [where] if name != cell else []
        rows.append(ListedSample(path, _source(path), str(folder / path), labels.of(name, where)))
    return Listing(classes, rows, tuple(padding_warnings(len(padded), *padded[:1] or [""])))


def _pairs(file: str) -> list[tuple[str, str, str]]:
    """`(where, path, label)` of every row."""
    pairs = []
    for where, cells in read_rows(file):
        if len(cells) < 2 or not cells[0] or not cells[1]:
            raise UserError(f"{where}: expected `label/name.mp4,label,...`")
        pairs.append((where, cells[0], cells[1]))
    return pairs


def _source(path: str) -> str:
    """The YouTube id in a file name, otherwise the name.

    >>> _source("clapping/yt-0a_b-c1D2E3_12.mp4"), _source("clapping/getty-12.mp4")
    ('0a_b-c1D2E3', 'getty-12')
    """
    stem = Path(path).stem
    youtube = _YOUTUBE.match(stem)
    return youtube[1] if youtube else stem


def _classes(spec: DatasetSpec) -> ClassList:
    file = Path(spec.classes) if spec.classes else spec.root / "moments_categories.txt"
    if spec.classes or file.is_file():
        return _versioned(_categories(file), file.name)
    splits = naming_splits(spec)
    names = {stripped(name) for split in splits for _, _, name in _pairs(spec.annotations[split])}
    files = ", ".join(Path(spec.annotations[split]).name for split in splits)
    return _versioned(sorted(names), f"sorted labels of {files}")


def _versioned(names: list[str], source: str) -> ClassList:
    version = _VERSIONS.get(len(names))
    return ClassList.of(names, f"{source} (Moments in Time {version})" if version else source)


def _categories(file: Path) -> list[str]:
    lines = read_lines(str(file))
    pairs = [line.rpartition(",") for line in lines]
    if not all(index.strip().isdigit() and name for name, _, index in pairs):
        return lines
    ordered = sorted((int(index), name) for name, _, index in pairs)
    if [index for index, _ in ordered] != list(range(len(ordered))):
        raise UserError(f"{file}: the indices must be 0, 1, 2, ... each once")
    return [name for _, name in ordered]
