"""What goes without saying for a data set of a known format: where its lists lie, and how its clips are read.

Sampling and views: the articles' own (TimeSformer reads Kinetics densely and Something-Something by segments, one clip by three
crops; a Moments clip is 3 s, so it is read whole). `folder`, `csv` and `list` say nothing of their clips' length, and segments cover a clip
of any length. Something-Something is not flipped unless the catalog says `swap`: its labels name left and right.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from cover.datasets.files import media_of, subfolders, walk
from cover.datasets.manifest import Media


@dataclass(frozen=True)
class Convention:
    """Defaults of a format. `lists`: split -> paths below the root, the first that exists is taken; `media` None: it varies."""

    lists: dict[str, tuple[str, ...]]
    media: Media | None
    sampling: str = "segments"
    views: str = "1x3"
    flip: Literal["allow", "never", "swap"] = "allow"
    crop_scale: tuple[float, float] = (0.3, 1.0)

    @property
    def looked_for(self) -> list[str]:
        return list(dict.fromkeys(chain.from_iterable(self.lists.values())))


_SSV2 = "something-something-v2-"
_FOLDERS = {"train": ("train",), "dev": ("dev",), "val": ("val", "validation", "valid"), "test": ("test",)}
CONVENTIONS: dict[str, Convention] = {
    "kinetics": Convention(
        {
            "train": ("annotations/train.csv", "train.csv"),
            "val": ("annotations/val.csv", "val.csv", "annotations/validate.csv", "validate.csv"),
            "test": ("annotations/test.csv", "test.csv"),
        },
        "video", sampling="dense",
    ),
    "ssv2": Convention(
        {
            "train": (f"{_SSV2}train.json", f"labels/{_SSV2}train.json", "labels/train.json", "train.json"),
            "val": (f"{_SSV2}validation.json", f"labels/{_SSV2}validation.json", "labels/validation.json", "validation.json"),
            "test": (f"{_SSV2}test.json", f"labels/{_SSV2}test.json", "labels/test.json", "test.json"),
        },
        "video", flip="never", crop_scale=(0.5, 1.0),
    ),
    "moments": Convention({"train": ("trainingSet.csv",), "val": ("validationSet.csv",)}, "video", sampling="whole"),
    "imagenet": Convention({"train": ("train", "ILSVRC/Data/CLS-LOC/train"), "val": ("val", "ILSVRC/Data/CLS-LOC/val")}, "image"),
    "folder": Convention(_FOLDERS, None),
    "csv": Convention({split: (f"{split}.csv",) for split in _FOLDERS}, None),
    "list": Convention({split: (f"{split}.txt", f"annotations/{split}.txt", f"{split}.csv") for split in _FOLDERS}, None),
    "splits": Convention(
        {
            "train": ("ucfTrainTestlist/trainlist01.txt", "trainlist01.txt", "testTrainMulti_7030_splits"),
            "test": ("ucfTrainTestlist/testlist01.txt", "testlist01.txt", "testTrainMulti_7030_splits"),
        },
        "video",
    ),
    "prepared": Convention({}, None),
}  # fmt: skip


def convention_of(form: str) -> Convention:
    """Defaults of a format. One of the user's own (`FILE.py:FUNCTION`) has none but the general ones."""
    return CONVENTIONS.get(form, Convention({}, None))


def find_annotations(form: str, root: Path) -> dict[str, str]:
    """Split -> absolute path of the lists (or folders) that lie where the format has them. A `folder` set that has class folders but
    no split folders is all train, as is an `imagenet` one (21k)."""
    found = {}
    for split, places in convention_of(form).lists.items():
        for place in places:
            if split not in found and (root / place).exists():
                found[split] = str(root / place)
    if not found and any(form == "folder" or (form == "imagenet" and re.fullmatch(r"n\d{8}", name)) for name in subfolders(root)):
        return {"train": str(root)}
    return found


def guess_media(annotations: dict[str, str]) -> Media | None:
    """Videos or images, by the ending of the first file that has a telling one; None where none has."""
    for place in annotations.values():
        samples = walk(place, None) if Path(place).is_dir() else _cells(Path(place))
        for sample in islice(samples, 1000):
            if media := media_of(sample):
                return media
    return None


def _cells(file: Path) -> Iterator[str]:
    """The words of a list, for their endings only; whether it is a sound list is for its adapter to say."""
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
            yield from (word for cells in csv.reader(lines) for cell in cells for word in cell.split())
    except (OSError, csv.Error):
        return
