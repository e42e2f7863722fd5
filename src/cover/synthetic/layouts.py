"""Files and annotation lists of the synthetic data sets, in the layouts of the real data sets' downloads."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cover.synthetic.content import CLASSES, SPLITS, class_of, classes_of, draw_object, picture_label, sample_rng
from cover.synthetic.settings import Settings

ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
WORDS = {
    "blinds": "blinds, window shade",
    "fence": "fence, fencing",
    "chessboard": "chessboard, checkerboard",
    "domino": "domino, dotted tile",
    "target": "target, bull's eye",
    "pinwheel": "pinwheel",
    "plate": "plate, disc",
    "eye": "eye, iris",
    "window": "window, crossed pane",
    "flag": "flag, two-banded",
    "book": "book, open pages",
    "frame": "picture frame",
}
SSV2_VIDEOS = 999_983  # a prime, so that `_ssv2_id` gives each number below it once


@dataclass(frozen=True)
class Layout:
    """The layout of one data set on disk.

    `path(settings, split, index)` is the path of a sample in the data set's folder. `annotate(folder, settings)` writes
    the annotation lists. `catalog` holds the fields of the data set's catalog entry.
    """

    folder: str
    path: Callable[[Settings, str, int], str]
    annotate: Callable[[Path, Settings], None]
    catalog: dict[str, Any]


def count(settings: Settings, dataset: str, split: str) -> int:
    """The number of files in a split."""
    return settings.count(dataset, split, len(classes_of(settings, dataset)))


# --- Kinetics ---------------------------------------------------------------------------------------------------------


def youtube_id(settings: Settings, dataset: str, split: str, index: int) -> str:
    """An id of eleven letters in the form of YouTube ids. Like real ids, some begin with `-` or `_`."""
    numbers = sample_rng(settings, dataset, split, index, purpose=2).integers(len(ID_LETTERS), size=11)
    letters = [ID_LETTERS[number] for number in numbers]
    first = {5: "-", 11: "_"}.get(index % 16, letters[0])
    return first + "".join(letters[1:])


def _kinetics_start(settings: Settings, split: str, index: int) -> int:
    return int(sample_rng(settings, "kinetics", split, index, purpose=3).integers(0, 300))


def _kinetics_path(settings: Settings, split: str, index: int) -> str:
    start = _kinetics_start(settings, split, index)
    return f"{split}/{youtube_id(settings, 'kinetics', split, index)}_{start:06d}_{start + 10:06d}.mp4"


def _kinetics_annotate(root: Path, settings: Settings) -> None:
    for split in SPLITS:
        rows: list[list[Any]] = [["label", "youtube_id", "time_start", "time_end", "split", "is_cc"]]
        for index in range(count(settings, "kinetics", split)):
            start = _kinetics_start(settings, split, index)
            label, video = class_of(settings, "kinetics", index), youtube_id(settings, "kinetics", split, index)
            rows.append([label, video, start, start + 10, split, 0])
        _write_csv(root / "annotations" / f"{split}.csv", rows)


# --- Something-Something v2 -------------------------------------------------------------------------------------------


def _ssv2_id(settings: Settings, split: str, index: int) -> int:
    """A video number that is unique and contains no information on the class."""
    assert 2 * index + 1 < SSV2_VIDEOS
    return (7919 * (2 * index + SPLITS.index(split)) + 104_729 * settings.seed) % SSV2_VIDEOS + 1


def _ssv2_path(settings: Settings, split: str, index: int) -> str:
    return f"20bn-something-something-v2/{_ssv2_id(settings, split, index)}.webm"


def _ssv2_entry(settings: Settings, split: str, index: int) -> dict[str, Any]:
    template = class_of(settings, "ssv2", index)
    # The first random draw of the sample's pixels is its object. The same generator gives the object's name.
    thing = draw_object(sample_rng(settings, "ssv2", split, index, purpose=1))
    thing = f"an {thing}" if thing.startswith("a") else f"a {thing}"
    label = template.replace("[something]", thing).lower()
    return {"id": str(_ssv2_id(settings, split, index)), "label": label, "template": template, "placeholders": [thing]}


def _ssv2_annotate(root: Path, settings: Settings) -> None:
    plain = (template.replace("[", "").replace("]", "") for template in CLASSES["ssv2"])
    _write_json(_ssv2_list(root, "labels"), {template: str(number) for number, template in enumerate(plain)})
    for split, word in zip(SPLITS, ("train", "validation")):
        entries = [_ssv2_entry(settings, split, index) for index in range(count(settings, "ssv2", split))]
        _write_json(_ssv2_list(root, word), entries)
    _write_json(_ssv2_list(root, "test"), [])


def _ssv2_list(root: Path, word: str) -> Path:
    return root / "labels" / f"something-something-v2-{word}.json"


# --- Moments in Time --------------------------------------------------------------------------------------------------


def _moments_within(settings: Settings, split: str, index: int) -> str:
    second = int(sample_rng(settings, "moments", split, index, purpose=3).integers(0, 300))
    return f"{class_of(settings, 'moments', index)}/yt-{youtube_id(settings, 'moments', split, index)}_{second}.mp4"


def _moments_path(settings: Settings, split: str, index: int) -> str:
    return f"{_moments_split(split)}/{_moments_within(settings, split, index)}"


def _moments_split(split: str) -> str:
    return {"train": "training", "val": "validation"}[split]


def _moments_annotate(root: Path, settings: Settings) -> None:
    for split in SPLITS:
        rows = []
        for index in range(count(settings, "moments", split)):
            votes = sample_rng(settings, "moments", split, index, purpose=4).integers([3, 0], [8, 2])
            label = class_of(settings, "moments", index)
            rows.append([_moments_within(settings, split, index), label, *votes.tolist()])
        _write_csv(root / f"{_moments_split(split)}Set.csv", rows)
    _write_csv(root / "moments_categories.txt", [[name, number] for number, name in enumerate(CLASSES["moments"])])


# --- ImageNet ---------------------------------------------------------------------------------------------------------


def wnid(number: int) -> str:
    """An invented WordNet id for class `number`, larger than all real ids."""
    return f"n{90_000_001 + number}"


def _imagenet_path(settings: Settings, split: str, index: int) -> str:
    synset = wnid(index % len(CLASSES["imagenet"]))
    name = f"{synset}_{index}" if split == "train" else f"ILSVRC2012_val_{index + 1:08d}"
    return f"{split}/{synset}/{name}.JPEG"


def _imagenet_annotate(root: Path, settings: Settings) -> None:
    lines = (f"{wnid(number)} {WORDS[name]}\n" for number, name in enumerate(CLASSES["imagenet"]))
    _write_text(root / "LOC_synset_mapping.txt", "".join(lines))


# --- pictures: a folder for each class --------------------------------------------------------------------------------


def _pictures_path(settings: Settings, split: str, index: int) -> str:
    return f"{split}/{picture_label(settings, index)}/{index + 1:06d}.jpg"


def _pictures_annotate(root: Path, settings: Settings) -> None:
    """Write nothing: the names of the folders are the labels."""


# --- files ------------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


LAYOUTS = {
    "kinetics": Layout(
        "kinetics_like",
        _kinetics_path,
        _kinetics_annotate,
        # Eight frames cover a clip of 2 s. The format's default suits clips of 10 s.
        {"annotations": {"train": "annotations/train.csv", "val": "annotations/val.csv"}, "sampling": "dense@0.25"},
    ),
    "ssv2": Layout(
        "ssv2_like",
        _ssv2_path,
        _ssv2_annotate,
        {
            "annotations": {
                "train": "labels/something-something-v2-train.json",
                "val": "labels/something-something-v2-validation.json",
            },
            "flip": "swap",
            "crop_scale": [0.7, 1.0],
            # The object moves a few pixels between frames. Random instants in each segment would add jitter of the
            # same size and hide the direction.
            "sampling": "whole",
        },
    ),
    "moments": Layout(
        "moments_like",
        _moments_path,
        _moments_annotate,
        {"annotations": {"train": "trainingSet.csv", "val": "validationSet.csv"}},
    ),
    "imagenet": Layout(
        "imagenet_like", _imagenet_path, _imagenet_annotate, {"annotations": {"train": "train", "val": "val"}}
    ),
    "pictures": Layout(
        "pictures",
        _pictures_path,
        _pictures_annotate,
        {"format": "folder", "media": "image", "annotations": {"train": "train", "val": "val"}},
    ),
}
