"""The fifth data set: absent unless asked for, and related to kinetics as it was told to be."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.errors import UserError
from cover.mixture.dataset import make_heads
from cover.synthetic.content import ACTIVITIES, SKIES, draw_sample
from cover.synthetic.generate import generate
from cover.synthetic.render import OBJECTS, draw_sprite
from cover.synthetic.settings import DIALS, RELATIONS, Settings, dials

SMALL = Settings(
    height=32,
    width=40,
    kinetics=(8, 8),
    ssv2=(8, 8),
    moments=(8, 8),
    imagenet=(12, 12),
    pictures=(48, 24),
    noise=0.05,  # codecs remove noise
)
TEXT = (".csv", ".json", ".txt", ".yaml")

Read = Callable[[Path], np.ndarray]


@pytest.fixture(scope="module")
def sandboxes(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Path]:
    """Relation -> the folder of its sandbox; None: a sandbox without the fifth set."""
    top = tmp_path_factory.mktemp("relations")
    folders = {relation: top / str(relation) for relation in (None, *RELATIONS)}
    for relation, folder in folders.items():
        generate(folder, dataclasses.replace(SMALL, relation=relation), workers=0)
    return folders


def every_byte(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("**/*")) if path.is_file()}


def named(folder: Path, split: str = "train") -> dict[str, str]:
    """Picture -> the class that it is filed under."""
    return {path.name: path.parent.name for path in (folder / "pictures" / split).glob("*/*")}


def sharpest(picture: np.ndarray) -> float:
    """The largest step of brightness between two pixels side by side, in [0, 255], of a frame whose noise is smoothed
    away.
    """
    grey = picture.astype(float).mean(-1)
    smooth = sum(np.roll(grey, (down, right), (0, 1)) for down in range(3) for right in range(3))[2:, 2:] / 9
    return max(abs(np.diff(smooth, axis=axis)).max() for axis in (0, 1))


# What the generator wrote before it had a fifth data set and the dials that are at 0 in the easy data: a digest of all
# names and lists, and a sum over the pixels of a sample of each set, every pixel with a weight of its own.
FIRST_DIALS = ("clutter", "shake", "distractors", "noise")
LISTS = "526704e02c7b6a09"
SUMS = {"kinetics": 246.9, "ssv2": 1062.7, "moments": 1382.9, "imagenet": 95.9}


def test_without_a_relation_the_easy_data_have_not_changed(tmp_path: Path) -> None:
    settings = Settings(
        size=0.1,
        height=32,
        width=40,
        kinetics=(24, 8),
        ssv2=(24, 8),
        moments=(16, 8),
        imagenet=(24, 12),
        **dials("easy"),
    )
    generate(tmp_path, settings, workers=0)
    record = json.loads((tmp_path / "sandbox.json").read_text(encoding="utf-8"))
    assert all(record["settings"].pop(dial) == 0 for dial in DIALS if dial not in FIRST_DIALS)
    (tmp_path / "sandbox.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    digest = hashlib.sha256()
    for path in sorted(path for path in tmp_path.glob("**/[!.]*") if path.is_file()):
        digest.update(str(path.relative_to(tmp_path)).encode() + (path.read_bytes() if path.suffix in TEXT else b""))
    assert digest.hexdigest()[:16] == LISTS
    for dataset, wanted in SUMS.items():
        pixels = draw_sample(settings, dataset, "train", 1).astype(float).ravel()
        # room for a pixel rounded the other way
        assert pixels @ np.cos(np.arange(pixels.size)) == pytest.approx(wanted, abs=5)


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_other_four_sets_are_the_same_under_every_relation(
    sandboxes: dict[str | None, Path], relation: str
) -> None:
    plain, record = every_byte(sandboxes[None]), every_byte(sandboxes[relation])
    added = {name for name in record if name.startswith("pictures/")}
    assert len(added) == 48 + 24
    assert record.keys() - added == plain.keys()
    assert {name for name in plain if plain[name] != record[name]} == {"catalog.yaml", "sandbox.json"}
    catalogs = [yaml.safe_load(files["catalog.yaml"]) for files in (plain, record)]
    assert {**catalogs[0], "pictures": catalogs[1]["pictures"]} == catalogs[1]


def test_shared_pictures_show_what_kinetics_shows_under_its_names(
    sandboxes: dict[str | None, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def watched(rng: np.random.Generator, name: str, side: float, tone: float, settings: Settings) -> np.ndarray:
        drawn.append(name)
        return draw_sprite(rng, name, side, tone, settings)

    monkeypatch.setattr("cover.synthetic.render.draw_sprite", watched)
    settings = dataclasses.replace(SMALL, relation="shared", distractors=0)

    def shown(dataset: str, number: int) -> str:
        draw_sample(settings, dataset, "train", number)
        return drawn.pop()

    with (sandboxes["shared"] / "kinetics_like/annotations/train.csv").open(newline="", encoding="utf-8") as lines:
        clips = {row["label"]: shown("kinetics", number) for number, row in enumerate(csv.DictReader(lines))}
    assert len(set(clips.values())) == 8
    pictures = named(sandboxes["shared"])
    assert len(pictures) == 48
    for number in range(48):
        assert shown("pictures", number) == clips[pictures[f"{number + 1:06d}.jpg"]]


def test_pictures_are_what_was_drawn(sandboxes: dict[str | None, Path], read_file: Read) -> None:
    for relation in RELATIONS:
        (path,) = (sandboxes[relation] / "pictures" / "val").glob("*/000004.jpg")
        drawn = draw_sample(dataclasses.replace(SMALL, relation=relation), "pictures", "val", 3)
        assert abs(read_file(path).astype(int) - drawn).mean() < 8


def test_contrary_pictures_are_the_shared_ones_each_under_the_next_name(sandboxes: dict[str | None, Path]) -> None:
    def filed(relation: str) -> dict[str, tuple[bytes, str]]:
        return {
            path.name: (path.read_bytes(), path.parent.name)
            for path in (sandboxes[relation] / "pictures" / "val").glob("*/*")
        }

    right, wrong = filed("shared"), filed("contrary")
    names = sorted(ACTIVITIES)
    assert right.keys() == wrong.keys()
    assert len(right) == 24
    for file, (pixels, name) in right.items():
        assert wrong[file] == (pixels, names[(names.index(name) + 1) % len(names)])


def test_separate_pictures_have_no_class_and_no_edge_of_the_others(
    sandboxes: dict[str | None, Path], read_file: Read
) -> None:
    assert set(named(sandboxes["separate"]).values()) == set(SKIES)
    assert not set(SKIES) & {*ACTIVITIES, *OBJECTS}
    steps = {
        relation: [
            sharpest(read_file(path)[0]) for path in (sandboxes[relation] / "pictures" / "train").glob("*/*.jpg")
        ]
        for relation in ("shared", "separate")
    }
    assert max(steps["separate"]) < min(steps["shared"])


def test_separate_pictures_hold_no_distractors_either() -> None:
    wild = dataclasses.replace(SMALL, relation="separate", distractors=1)
    calm = dataclasses.replace(wild, distractors=0)
    assert (draw_sample(wild, "pictures", "train", 5) == draw_sample(calm, "pictures", "train", 5)).all()


def test_the_class_of_a_separate_picture_is_how_bright_it_is(
    sandboxes: dict[str | None, Path], read_file: Read
) -> None:
    for path in (sandboxes["separate"] / "pictures" / "train").glob("*/*.jpg"):
        assert path.parent.name == ("day sky" if read_file(path).mean() > 127.5 else "night sky")


@pytest.mark.parametrize(("relation", "classes"), [("shared", 8), ("separate", 10), ("contrary", 8)])
def test_kinetics_and_pictures_can_share_a_head(sandboxes: dict[str | None, Path], relation: str, classes: int) -> None:
    catalog = load_catalog(sandboxes[relation] / "catalog.yaml")
    index(catalog.path, 0, ["kinetics", "pictures"])
    lists = {name: open_manifest(catalog.manifest_path(name, "val")).classes for name in ("kinetics", "pictures")}
    (head,) = make_heads(lists, {"activities": ["kinetics", "pictures"]})
    assert len(head.classes) == classes
    with (catalog.path.parent / "kinetics_like/annotations/val.csv").open(newline="", encoding="utf-8") as lines:
        assert lists["kinetics"].names == tuple(sorted({row["label"] for row in csv.DictReader(lines)}))


def test_another_relation_is_another_sandbox(sandboxes: dict[str | None, Path]) -> None:
    with pytest.raises(UserError, match=r"other settings \(relation\)"):
        generate(sandboxes["shared"], dataclasses.replace(SMALL, relation="contrary"), workers=0)
    with pytest.raises(UserError, match=r"other settings \(.*relation.*\)"):
        generate(sandboxes["shared"], SMALL, workers=0)


def test_an_unknown_relation_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match='relation is "hostile": give one of shared, separate, contrary'):
        Settings(relation="hostile")  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as ended:
        main(["sandbox", str(tmp_path / "new"), "--relation", "hostile"])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(word in line for word in ("--relation", "hostile", *RELATIONS))
    assert not (tmp_path / "new").exists()


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", str(tmp_path / "new"), "--size", "0.001", "--relation", "contrary", "--workers", "0"]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "new" / "catalog.yaml"))
    assert len(named(tmp_path / "new", "val")) == len(ACTIVITIES)
