"""The format `imagenet` (ImageNet 1k, 21k): one folder per wnid. The label is the index among the sorted wnids.

Class names are the words of `LOC_synset_mapping.txt` (`n01440764 tench, Tinca tinca`) or `words.txt`, in the root or in
a folder above an annotated one. Without these files the names are the wnids. A `classes` file has one wnid per line,
with or without words.

A split may also be a list with lines `name label`, where the label is a wnid or its index. A flat validation folder
needs one of the following files, in the root or beside the folder. The first one that exists is used:

- `LOC_val_solution.csv` from Kaggle;
- a list `ILSVRC2012_img_val.txt`, `val.txt` or `meta/val.txt`;
- `imagenet_2012_validation_synset_labels.txt`: the wnids of the images in order;
- `ILSVRC2012_devkit_t12/`. Its class numbers are not in the order of the wnids. `data/meta.mat` (with scipy) or
  `data/synsets.txt` (the wnid of number 1, 2, ... on each line) maps them to wnids.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from cover.datasets.annotations import (
    Labels,
    ListedSample,
    Listing,
    naming_splits,
    read_lines,
    read_pairs,
    read_records,
)
from cover.datasets.catalog import CONVENTIONS, DatasetSpec
from cover.datasets.files import IMAGE, FolderLinks, few, media_files, subfolders, unpack_hint, walk, walk_all
from cover.datasets.formats.folder import stray_warnings
from cover.datasets.manifest import ClassList
from cover.errors import UserError

_WNID = re.compile(r"n\d{8}")
_WORDS = ("LOC_synset_mapping.txt", "words.txt")
_LISTS = ("ILSVRC2012_img_val.txt", "val.txt", "meta/val.txt")
_SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"
_GROUND_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"


def imagenet(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split. Raises UserError for a wnid outside the class list, or images without a label file."""
    wnids, source = _wnids(spec)
    labels = Labels(ClassList.of(wnids, source))
    classes = ClassList.of(_names(spec, wnids), source)
    place = spec.annotations[split]
    if _class_folders(place):
        return Listing(classes, *_in_class_folders(place, labels))
    return Listing(classes, _rows(spec, split, labels))


def _rows(spec: DatasetSpec, split: str, labels: Labels) -> list[ListedSample]:
    place = spec.annotations[split]
    if os.path.isfile(place):
        return _flat(_image_folder(spec, split), _from_list(place, labels))
    unlabelled = split == "test" or next(walk(place, "image"), None) is None
    return _flat(place, {} if unlabelled else _from_label_file(spec, place, labels))


def _class_folders(folder: str, links: FolderLinks | None = None) -> list[str]:
    return [name for name in subfolders(folder, links) if _WNID.fullmatch(name)]


def _in_class_folders(folder: str, labels: Labels) -> tuple[list[ListedSample], tuple[str, ...]]:
    """The samples, and warnings about files that are left out."""
    rows, others, links = [], [], FolderLinks(folder)
    for wnid in _class_folders(folder, links):
        label = labels.of(wnid, os.path.join(folder, wnid))
        for path in walk_all(os.path.join(folder, wnid), links=links):
            if os.path.splitext(path)[1].lower() in IMAGE:
                rows.append(_listed(path, label))
            else:
                others.append(path)
    return rows, tuple(_stray_warnings(folder, others, links))


def _stray_warnings(folder: str, others: Sequence[str], links: FolderLinks) -> Iterator[str]:
    yield from stray_warnings("image", others, media_files(folder, "image"), links)
    if odd := [name for name in subfolders(folder) if not _WNID.fullmatch(name)]:
        yield f"left out, for their names are no wnids: {few(odd)} in {folder}"


def _flat(folder: str, label_of: dict[str, int]) -> list[ListedSample]:
    """Listed images first, even without a file on disk (any ending matches), then images that are not listed."""
    on_disk = {Path(path).stem: path for path in walk(folder, "image")}
    named = {Path(name).stem: name for name in label_of}
    rows = [_listed(on_disk.get(stem) or os.path.join(folder, name), label_of[name]) for stem, name in named.items()]
    return rows + [_listed(path, None) for stem, path in on_disk.items() if stem not in named]


def _listed(path: str, label: int | None) -> ListedSample:
    stem = Path(path).stem
    return ListedSample(stem, stem, path, label)


def _image_folder(spec: DatasetSpec, split: str) -> str:
    """The folder with the images of a listed split: the usual folder of the format, otherwise the root."""
    folders = (spec.root / place for place in CONVENTIONS["imagenet"].lists.get(split, ()))
    return str(next((folder for folder in folders if folder.is_dir()), spec.root))


# --- labels of images without class folders ---


def _from_label_file(spec: DatasetSpec, folder: str, labels: Labels) -> dict[str, int]:
    """File name -> label. Raises UserError if there is no label file."""
    if solution := _beside(spec, "LOC_val_solution.csv"):
        return _from_kaggle(str(solution), labels)
    readers = {**dict.fromkeys(_LISTS, _from_list), _SYNSET_LABELS: _from_wnids_in_order, _GROUND_TRUTH: _from_devkit}
    for name, read in readers.items():
        for place in (spec.root / name, Path(folder).parent / name):
            if place.is_file():
                return read(str(place), labels)
    raise UserError(
        f"{folder}: images without class folders; move them into folders named by wnid, or put LOC_val_solution.csv,"
        f" {_LISTS[0]} (lines `name wnid`) or ILSVRC2012_devkit_t12 in {spec.root}"
    )


def _from_kaggle(file: str, labels: Labels) -> dict[str, int]:
    return {
        f"{record.cells['ImageId']}.JPEG": labels.of(record.cells["PredictionString"].partition(" ")[0], record.where)
        for record in read_records(file, ("ImageId", "PredictionString"))
    }


def _from_list(file: str, labels: Labels) -> dict[str, int]:
    return {
        name: labels.at(int(label), where) if label.isdecimal() else labels.of(label, where)
        for where, name, label in read_pairs(file)
    }


def _from_wnids_in_order(file: str, labels: Labels) -> dict[str, int]:
    return _numbered(((f"{file}, row {row}", wnid) for row, wnid in enumerate(read_lines(file), start=1)), labels)


def _from_devkit(file: str, labels: Labels) -> dict[str, int]:
    wnid_of, wnids = _wnid_of_number(Path(file).parent), []
    for row, number in enumerate(read_lines(file), start=1):
        if number not in wnid_of:
            raise UserError(f'{file}, row {row}: "{number}" is not the number of a class')
        wnids.append((f"{file}, row {row}", wnid_of[number]))
    return _numbered(wnids, labels)


def _wnid_of_number(data: Path) -> dict[str, str]:
    """Class number of the devkit, as text -> wnid."""
    if (data / "synsets.txt").is_file():
        lines = read_lines(str(data / "synsets.txt"))
        return {str(number): line.split()[0] for number, line in enumerate(lines, start=1)}
    try:
        synsets = import_module("scipy.io").loadmat(str(data / "meta.mat"), squeeze_me=True)["synsets"]
    except ImportError:
        raise UserError(
            f"{data / 'meta.mat'}: reading it takes scipy: pip install scipy;"
            f" or give {_LISTS[0]} with lines `name wnid`"
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{data / 'meta.mat'}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return {str(int(synset[0])): str(synset[1]) for synset in synsets}


def _numbered(wnids: Iterable[tuple[str, str]], labels: Labels) -> dict[str, int]:
    """File name -> label, from `(where, wnid)` of the validation images 1, 2, ... in order."""
    return {
        f"ILSVRC2012_val_{number:08d}.JPEG": labels.of(wnid, where)
        for number, (where, wnid) in enumerate(wnids, start=1)
    }


# --- classes ---


def _wnids(spec: DatasetSpec) -> tuple[list[str], str]:
    """The sorted wnids, and their origin for messages."""
    if spec.classes:
        return sorted(line.split()[0] for line in read_lines(spec.classes)), Path(spec.classes).name
    splits = naming_splits(spec)
    wnids = sorted({wnid for split in splits for wnid in _wnids_of(spec.annotations[split])})
    if not wnids:
        places = " or ".join(spec.annotations[split] for split in splits)
        hint = unpack_hint(spec.annotations[splits[0]]) or "or give the wnids with `classes: FILE`"
        raise UserError(f"{spec.name}: no folder named by a wnid (n01440764, ...) in {places}; {hint}")
    return wnids, f"sorted wnids of {', '.join(splits)}"


def _wnids_of(place: str) -> list[str]:
    if os.path.isfile(place):
        return [label for _, _, label in read_pairs(place) if _WNID.fullmatch(label)]
    return _class_folders(place)


def _names(spec: DatasetSpec, wnids: list[str]) -> list[str]:
    """Class names for wnids. Classes with equal words ("crane", a bird and a machine) get `WORDS (WNID)`."""
    file = spec.classes or next((file for name in _WORDS if (file := _beside(spec, name))), None)
    words = dict(pair for line in (read_lines(str(file)) if file else []) if len(pair := line.split(None, 1)) == 2)
    names = [words.get(wnid, wnid) for wnid in wnids]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({wnid})" if name in shared else name for name, wnid in zip(names, wnids)]


def _beside(spec: DatasetSpec, name: str) -> Path | None:
    """A file in the root or in one of four folders above the first annotated folder; None if it does not exist."""
    folders = [spec.root, *Path(next(iter(spec.annotations.values()))).parents[:4]]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
