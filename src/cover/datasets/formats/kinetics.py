"""The format `kinetics` (400, 600, 700, 700-2020): official csv lists, and clips in all common folder layouts.

Lists have the columns `label,youtube_id,time_start,time_end,split[,is_cc]`. Test lists have no label. The class order
is that of the sorted names, as published. A clip is named `<11-character id>_<start>_<end>.mp4`, or `<id>.mp4` in some
copies. An id may contain - and _, so a name is cut after 11 characters and never split at a separator.

Clips may be in one folder per split (CVDF), in class folders (the crawler, mmaction2) or in volumes (OpenDataLab). The
root is listed once, and clips are matched by name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from cover.datasets.annotations import (
    CsvRecord,
    Labels,
    ListedSample,
    Listing,
    classes_from_catalog,
    naming_splits,
    padding_warnings,
    read_records,
)
from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import subfolders, walk
from cover.datasets.manifest import ClassList
from cover.errors import UserError

_TIMES = re.compile(r"_(\d+)_\d+")
_NAMES_OF = {"train": {"train"}, "dev": {"dev"}, "val": {"val", "valid", "validate", "validation"}, "test": {"test"}}
_ClipKey = tuple[str, int | None]


def kinetics(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split. Raises UserError for an invalid list or a label outside the class list."""
    classes = classes_from_catalog(spec) or _sorted_names(spec)
    labels = Labels(classes)
    records = _records(spec, split)
    clips = _clips(spec.root, split)
    rows_of_id = Counter(record.cells["youtube_id"] for record in records)
    rows = []
    for record in records:
        youtube_id, start, end = _segment(record)
        stem = f"{youtube_id}_{int(start):06d}_{int(end):06d}"
        path = clips.get((youtube_id, int(start)))
        # a file name without times cannot be matched to one of several segments of a video
        if path is None and rows_of_id[youtube_id] == 1:
            path = clips.get((youtube_id, None))
        path = path or os.path.join(spec.root, split, f"{stem}.mp4")
        name = record.cells.get("label")
        label = labels.of(name, record.where) if name else None
        rows.append(ListedSample(stem, youtube_id, path, label, start, end))
    padded = [record.where for record in records if record.is_padded]
    return Listing(classes, rows, tuple(padding_warnings(len(padded), *padded[:1] or [""])))


def _records(spec: DatasetSpec, split: str) -> list[CsvRecord]:
    """The rows of a split's list. The `split` column is used only if one file serves several splits."""
    file = spec.annotations[split]
    records = read_records(file, ("youtube_id", "time_start", "time_end"))
    if list(spec.annotations.values()).count(file) == 1:
        return records
    return [record for record in records if record.cells.get("split") in _NAMES_OF[split]]


def _sorted_names(spec: DatasetSpec) -> ClassList:
    splits = naming_splits(spec)
    names = {record.cells.get("label", "") for split in splits for record in _records(spec, split)} - {""}
    if not names:
        raise UserError(
            f"{spec.name}: no list of {', '.join(splits)} has a label; add a column label, or `classes: FILE`"
        )
    files = ", ".join(Path(spec.annotations[split]).name for split in splits)
    return ClassList.of(sorted(names), f"sorted labels of {files}")


def _segment(record: CsvRecord) -> tuple[str, float, float]:
    start, end = record.seconds("time_start"), record.seconds("time_end")
    youtube_id = record.cells["youtube_id"]
    if start is None or end is None or not 0 <= start < end:
        raise UserError(f"{record.where}: time_start and time_end must be seconds, the start before the end")
    if len(youtube_id) != 11:
        raise UserError(f'{record.where}: "{youtube_id}" is not a YouTube id of 11 characters')
    return youtube_id, start, end


def _clips(root: Path, split: str) -> dict[_ClipKey, str]:
    """`(id, start)` -> path, or `(id, None)` if the file name has no times.

    Of two copies, the one in CVDF's folder of replacements for corrupt clips comes first, then the one in the split's
    own folder.
    """
    clips: dict[_ClipKey, str] = {}
    others = frozenset(folder for folder in subfolders(root) if _of_another_split(folder, split))
    for path in walk(root, "video", skip=others):
        key = _key(os.path.basename(path))
        if key and (key not in clips or _rank(path, root, split) < _rank(clips[key], root, split)):
            clips[key] = path
    return clips


def _key(name: str) -> _ClipKey | None:
    """The id and start time in a file name, None for other names.

    >>> _key("-_a_b_c_d_e_000017_000027.mp4")
    ('-_a_b_c_d_e', 17)
    """
    youtube_id, rest = name[:11], os.path.splitext(name[11:])[0] if name[11:12] != "." else ""
    times = _TIMES.match(rest)
    if rest and not times:
        return None
    return youtube_id, int(times[1]) if times else None


def _of_another_split(folder: str, split: str) -> bool:
    """Whether a folder name has the word of another split, as `val_256` for train. `testifying` does not."""
    words = set(re.split(r"[\W_]+", folder.lower()))
    return not words & _NAMES_OF[split] and any(words & names for names in _NAMES_OF.values())


def _rank(path: str, root: Path, split: str) -> tuple[bool, bool]:
    """The sort key of copies of one clip. The smallest is used."""
    folders = os.path.relpath(os.path.dirname(path), root).lower()
    return "replacement" not in folders, not set(re.split(r"[\W_]+", folders)) & _NAMES_OF[split]
