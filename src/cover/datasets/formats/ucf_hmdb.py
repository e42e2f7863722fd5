"""The format `splits` (UCF101 and HMDB51): one folder per class, and three numbered divisions into train and test.

UCF101: `trainlist01.txt` has lines `Class/video.avi 1`, `testlist01.txt` has lines without the number. `classInd.txt`
beside them has the class order, as lines `1 Class`. An annotation is the path of one list.

HMDB51: each class has a file `<class>_test_split1.txt` with lines `video.avi 1`, where 1 is train, 2 is test and 0 is
neither. The class order is that of the sorted names. An annotation is the folder of these files (first division) or a
pattern for another division, such as `splits/*_test_split2.txt`. If `val` is annotated, it is the test part.

The videos may be anywhere under the root, in class folders, with any ending. The source id is the name of the longer
video that a clip was cut from.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cover.datasets.annotations import (
    Labels,
    ListedSample,
    Listing,
    classes_from_catalog,
    naming_splits,
    read_lines,
    read_numbered,
)
from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import walk
from cover.datasets.manifest import ClassList
from cover.errors import UserError

_OF_HMDB = re.compile(r"(.+)_test_split\d+\.txt")
_UCF_GROUP = re.compile(r"(v_.+_g\d+)_c\d+")


@dataclass(frozen=True)
class _ListedVideo:
    where: str  # file and row, for messages
    name: str  # the class
    file: str


def ucf_hmdb(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split. Raises UserError for an invalid list or a class outside the class list."""
    classes = classes_from_catalog(spec) or _classes(spec)
    labels = Labels(classes)
    clips = {(os.path.basename(os.path.dirname(path)), Path(path).stem): path for path in walk(spec.root, "video")}
    rows = []
    for item in _items(spec, split):
        stem = Path(item.file).stem
        path = clips.get((item.name, stem)) or os.path.join(spec.root, item.name, item.file)
        label = labels.of(item.name, item.where)
        rows.append(ListedSample(f"{item.name}/{stem}", _source(item.name, stem), path, label))
    return Listing(classes, rows)


def _source(name: str, stem: str) -> str:
    """The source id of a clip of class `name`, from its file name without ending.

    >>> _source("Archery", "v_Archery_g08_c01"), _source("clap", "#20_Rhythm_clap_u_nm_np1_fr_goo_0")
    ('v_Archery_g08', '#20_Rhythm')
    """
    group = _UCF_GROUP.fullmatch(stem)
    return group[1] if group else stem.partition(f"_{name}_")[0]


def _items(spec: DatasetSpec, split: str) -> list[_ListedVideo]:
    place = Path(spec.annotations[split])
    files = [place] if place.is_file() else _files_of_hmdb(place)
    if not files:
        raise UserError(
            f"{spec.name}: {place} is neither a list nor a folder or pattern of <class>_test_split1.txt files"
        )
    read = (_of_hmdb(file, split) if _OF_HMDB.fullmatch(file.name) else _of_ucf(file) for file in files)
    return [item for items in read for item in items]


def _files_of_hmdb(place: Path) -> list[Path]:
    files = place.glob("*_test_split1.txt") if place.is_dir() else place.parent.glob(place.name)
    return sorted(file for file in files if _OF_HMDB.fullmatch(file.name))


def _of_hmdb(file: Path, split: str) -> list[_ListedVideo]:
    match, wanted = _OF_HMDB.fullmatch(file.name), "1" if split == "train" else "2"
    assert match
    items = []
    for where, line in read_numbered(str(file)):
        name, _, part = line.strip().rpartition(" ")
        if part not in ("0", "1", "2") or not name:
            raise UserError(f"{where}: expected `video.avi 1`, the number 0, 1 or 2")
        if part == wanted:
            items.append(_ListedVideo(where, match[1], name.strip()))
    return items


def _of_ucf(file: Path) -> list[_ListedVideo]:
    items = []
    for where, line in read_numbered(str(file)):
        name, slash, video = re.sub(r"\s+\d+$", "", line.strip()).rpartition("/")
        if not slash or not name or not video:
            raise UserError(f"{where}: expected `Class/video.avi` with or without the number of the class")
        items.append(_ListedVideo(where, name, video))
    return items


def _classes(spec: DatasetSpec) -> ClassList:
    order = Path(next(iter(spec.annotations.values()))).parent / "classInd.txt"
    if order.is_file():
        return ClassList.of(_in_order(order), order.name)
    names = {item.name for split in naming_splits(spec) for item in _items(spec, split)}
    return ClassList.of(sorted(names), f"sorted classes of {', '.join(naming_splits(spec))}")


def _in_order(file: Path) -> list[str]:
    pairs = [line.split(None, 1) for line in read_lines(str(file))]
    if [pair[0] for pair in pairs] != [str(number) for number in range(1, len(pairs) + 1)] or any(
        len(pair) < 2 for pair in pairs
    ):
        raise UserError(f"{file}: expected lines `1 Class`, numbered 1, 2, 3, ...")
    return [pair[1] for pair in pairs]
