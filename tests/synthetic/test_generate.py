"""The sandbox on disk: layouts, names, the same bytes again, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from cover.errors import UserError
from cover.synthetic.content import CLASSES, DATASETS, draw_sample
from cover.synthetic.generate import generate, sample_path
from cover.synthetic.settings import DIALS, DIFFICULTIES, Settings, dials

# Codecs remove noise. With little of it, files can be compared with what was drawn.
SMALL = Settings(height=32, width=40, kinetics=(24, 8), ssv2=(24, 8), moments=(16, 8), imagenet=(24, 12), noise=0.05)
TINY = dataclasses.replace(SMALL, size=0.1)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sandbox") / "data"
    assert generate(folder, SMALL, workers=2) == folder / "catalog.yaml"
    return folder


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines))


def every_byte(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder, "**/*")}


def test_kinetics_layout(sandbox: Path) -> None:
    root = sandbox / "kinetics_like"
    for split, wanted in (("train", 24), ("val", 8)):
        header, *listed = rows(root / "annotations" / f"{split}.csv")
        assert header == ["label", "youtube_id", "time_start", "time_end", "split", "is_cc"]
        names = {f"{video}_{int(start):06d}_{int(end):06d}.mp4" for _, video, start, end, _, _ in listed}
        assert names == {path.name for path in files(root, f"{split}/*")}
        assert len(names) == wanted
        assert all(re.fullmatch(r"[\w-]{11}_\d{6}_\d{6}\.mp4", name, re.ASCII) for name in names)
        assert set(Counter(label for label, *_ in listed).values()) == {wanted // 8}
        assert all(row[4] == split and " " in row[0] for row in listed)
    assert {"-", "_"} <= {path.name[0] for path in files(root, "train/*")}


def test_ssv2_layout(sandbox: Path) -> None:
    root = sandbox / "ssv2_like"
    lists = {
        path.stem.rpartition("-")[2]: json.loads(path.read_text())
        for path in files(root, "labels/something-something-v2-*.json")
    }
    assert set(lists) == {"labels", "train", "validation", "test"}
    assert sorted(lists["labels"].values(), key=int) == [str(number) for number in range(8)]
    for item in lists["train"] + lists["validation"]:
        assert (root / "20bn-something-something-v2" / f"{item['id']}.webm").is_file()
        assert item["template"].replace("[", "").replace("]", "") in lists["labels"]
        assert item["label"] == item["template"].replace("[something]", item["placeholders"][0]).lower()
    assert len(files(root, "20bn-something-something-v2/*.webm")) == 32
    assert set(Counter(item["template"] for item in lists["train"]).values()) == {3}


def test_moments_layout(sandbox: Path) -> None:
    root = sandbox / "moments_like"
    categories = rows(root / "moments_categories.txt")
    assert [int(number) for _, number in categories] == list(range(8))
    for list_name, split, wanted in (("trainingSet.csv", "training", 16), ("validationSet.csv", "validation", 8)):
        listed = rows(root / list_name)
        assert {name for name, *_ in listed} == {
            str(path.relative_to(root / split)) for path in files(root, f"{split}/*/*.mp4")
        }
        assert len(listed) == wanted
        assert all(name.split("/")[0] == label and int(yes) >= 3 and int(no) >= 0 for name, label, yes, no in listed)
        assert {label for _, label, *_ in listed} == {name for name, _ in categories}


def test_imagenet_layout(sandbox: Path) -> None:
    root = sandbox / "imagenet_like"
    words = dict(line.split(" ", 1) for line in (root / "LOC_synset_mapping.txt").read_text().splitlines())
    assert len(set(words.values())) == 12
    assert all(re.fullmatch(r"n9\d{7}", wnid) for wnid in words)
    assert all(re.fullmatch(rf"{path.parent.name}_\d+\.JPEG", path.name) for path in files(root, "train/*/*"))
    assert all(re.fullmatch(r"ILSVRC2012_val_\d{8}\.JPEG", path.name) for path in files(root, "val/*/*"))
    assert Counter(path.parent.name for path in files(root, "train/*/*")) == dict.fromkeys(words, 2)
    assert Counter(path.parent.name for path in files(root, "val/*/*")) == dict.fromkeys(words, 1)


def test_catalog(sandbox: Path) -> None:
    catalog = yaml.safe_load((sandbox / "catalog.yaml").read_text())
    assert list(catalog) == list(DATASETS)
    for name, entry in catalog.items():
        assert entry["format"] == name
        assert set(entry["annotations"]) == {"train", "val"}
        assert all((sandbox / entry["root"] / place).exists() for place in entry["annotations"].values())
    assert catalog["ssv2"]["flip"] == "swap"


@pytest.mark.parametrize(("dataset", "codec"), [("kinetics", "h264"), ("ssv2", "vp9"), ("moments", "h264")])
def test_videos_are_what_was_drawn(
    sandbox: Path, read_file: Callable[[Path], np.ndarray], dataset: str, codec: str
) -> None:
    for index in range(4):
        path = sample_path(sandbox, SMALL, dataset, "train", index)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert (
                stream.codec_context.name.removeprefix("lib"),
                stream.codec_context.pix_fmt,
                stream.average_rate,
            ) == (
                codec,
                "yuv420p",
                12,
            )
        frames, drawn = read_file(path), draw_sample(SMALL, dataset, "train", index)
        assert frames.shape == drawn.shape
        assert len(frames) == 36 if dataset == "moments" else 24 <= len(frames) <= 36
        assert abs(frames.astype(int) - drawn).mean() < 10


def test_images_are_what_was_drawn(sandbox: Path, read_file: Callable[[Path], np.ndarray]) -> None:
    image = read_file(sample_path(sandbox, SMALL, "imagenet", "val", 3))
    assert abs(image.astype(int) - draw_sample(SMALL, "imagenet", "val", 3)).mean() < 8


def test_motion_files_hold_key_frames_only(sandbox: Path) -> None:
    """A predicted frame could show where the object was before."""
    for path in files(sandbox, "ssv2_like/*/*.webm")[:4]:
        with av.open(str(path)) as container:
            assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)


def test_class_names_form_mirror_pairs() -> None:
    swap = {"left": "right", "right": "left"}
    mirrored = [re.sub("left|right", lambda side: swap[side[0]], name) for name in CLASSES["ssv2"]]
    assert sorted(mirrored) == sorted(CLASSES["ssv2"])
    assert sum(one != other for one, other in zip(mirrored, CLASSES["ssv2"])) == 6
    assert not any(
        re.search("left|right", name) for name in CLASSES["kinetics"] + CLASSES["moments"] + CLASSES["imagenet"]
    )


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        generate(tmp_path / name, TINY, workers)
    assert every_byte(tmp_path / "one") == every_byte(tmp_path / "two")


def test_another_seed_gives_other_pixels_and_names(tmp_path: Path) -> None:
    generate(tmp_path / "one", TINY, workers=0)
    generate(tmp_path / "other", dataclasses.replace(TINY, seed=1), workers=0)
    media = (".mp4", ".webm", ".JPEG")
    one, other = (
        {path.read_bytes() for path in files(tmp_path / name, "**/*") if path.suffix in media}
        for name in ("one", "other")
    )
    assert len(one) == len(other) >= 68
    assert not one & other
    names = [{path.name for path in files(tmp_path / name, "*/*/*.mp4")} for name in ("one", "other")]
    assert not names[0] & names[1]


def test_size_leaves_no_class_empty_and_scales_counts() -> None:
    assert Settings(size=0.001).count("kinetics", "train", classes=8) == 8
    assert Settings(size=0.5).count("ssv2", "val", classes=8) == 150


def test_dials_at_zero_leave_only_the_object_moving() -> None:
    calm = dataclasses.replace(SMALL, **dict.fromkeys(DIALS, 0.0))
    clip = draw_sample(calm, "ssv2", "train", 0).astype(int)
    background = np.median(clip, 0)
    changed = (abs(clip - background).max(-1) > 20).mean((1, 2))
    assert 0 < changed.max() < 0.5
    assert (clip == background).all(-1).mean() > 0.5


@pytest.mark.parametrize("dial", DIALS)
def test_every_dial_changes_pixels_and_no_length(dial: str) -> None:
    calm, wild = (dataclasses.replace(SMALL, **dials("easy", **{dial: value})) for value in (0.0, 1.0))
    one, other = (draw_sample(settings, "moments", "train", 0) for settings in (calm, wild))
    assert one.shape == other.shape
    assert (one != other).any()


def test_each_difficulty_is_harder_than_the_one_before_by_every_dial() -> None:
    easy, medium, hard = (DIFFICULTIES[name] for name in ("easy", "medium", "hard"))
    assert all(easy[dial] <= medium[dial] <= hard[dial] for dial in DIALS)
    assert dials("medium") == {dial: getattr(Settings(), dial) for dial in DIALS}
    assert dials("easy", noise=0.5, tilt=None) == {**DIFFICULTIES["easy"], "noise": 0.5}


def test_every_dial_is_in_the_record(sandbox: Path) -> None:
    assert set(DIALS) <= {field.name for field in dataclasses.fields(Settings)}
    settings = json.loads((sandbox / "sandbox.json").read_text())["settings"]
    assert {dial: settings[dial] for dial in DIALS} == dials("medium", noise=0.05)
    assert "val" not in settings


def test_a_folder_that_was_written_before_a_dial_existed_has_it_at_zero(tmp_path: Path) -> None:
    easy = dataclasses.replace(TINY, **dials("easy"))
    catalog = generate(tmp_path / "data", easy, workers=0)
    record = json.loads((tmp_path / "data/sandbox.json").read_text())
    del record["settings"]["pan"], record["settings"]["tilt"]
    (tmp_path / "data/sandbox.json").write_text(json.dumps(record))
    catalog.unlink()
    assert generate(tmp_path / "data", easy, workers=0) == catalog
    assert not catalog.exists()
    with pytest.raises(UserError, match=r"other settings \(pan\)"):
        generate(tmp_path / "data", dataclasses.replace(easy, pan=0.5), workers=0)


def test_val_is_the_number_of_validation_files_of_each_class(tmp_path: Path) -> None:
    few = dataclasses.replace(TINY, val=2, relation="shared")
    folder = tmp_path / "data"
    generate(folder, few, workers=0)
    assert Counter(row[0] for row in rows(folder / "kinetics_like/annotations/val.csv")[1:]) == dict.fromkeys(
        CLASSES["kinetics"], 2
    )
    listed = json.loads((folder / "ssv2_like/labels/something-something-v2-validation.json").read_text())
    assert Counter(item["template"] for item in listed) == dict.fromkeys(CLASSES["ssv2"], 2)
    assert Counter(row[1] for row in rows(folder / "moments_like/validationSet.csv")) == dict.fromkeys(
        CLASSES["moments"], 2
    )
    for pattern, classes in (("imagenet_like/val/*/*", 12), ("pictures/val/*/*", 8)):
        counts = Counter(path.parent.name for path in files(folder, pattern))
        assert (len(counts), set(counts.values())) == (classes, {2})
    assert json.loads((folder / "sandbox.json").read_text())["settings"]["val"] == 2
    assert [few.count(name, "train", 8) for name in ("kinetics", "ssv2")] == [8, 8]
    with pytest.raises(UserError, match=r"other settings \(val\)"):
        generate(folder, dataclasses.replace(few, val=3), workers=0)


def test_more_validation_files_leave_the_others_as_they_are() -> None:
    few, many = (dataclasses.replace(TINY, val=count) for count in (1, 3))
    for index in range(8):
        assert (draw_sample(few, "ssv2", "val", index) == draw_sample(many, "ssv2", "val", index)).all()


def test_finished_sandbox_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "data"
    catalog = generate(folder, TINY, workers=0)
    changed = {path: path.stat().st_mtime_ns for path in files(folder, "**/*")}
    assert generate(folder, TINY, workers=0) == catalog
    assert "already holds this sandbox" in capsys.readouterr().err
    assert changed == {path: path.stat().st_mtime_ns for path in files(folder, "**/*")}


def test_broken_off_sandbox_is_completed(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    generate(folder, TINY, workers=0)
    whole = every_byte(folder)
    record = json.loads((folder / "sandbox.json").read_text())
    (folder / "sandbox.json").write_text(json.dumps({**record, "finished": False}))
    (folder / "catalog.yaml").unlink()
    files(folder, "ssv2_like/*/*.webm")[0].unlink()
    generate(folder, TINY, workers=0)
    assert every_byte(folder) == whole


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    generate(tmp_path / "data", TINY, workers=0)
    with pytest.raises(UserError, match=r"other settings \(noise\)"):
        generate(tmp_path / "data", dataclasses.replace(TINY, noise=0.5), workers=0)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no sandbox"):
        generate(tmp_path, TINY, workers=0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("height", 47),
        ("width", 8),
        *[(dial, value) for dial in DIALS for value in (1.5, -0.1, float("nan"))],
        ("seed", -1),
        ("size", 0.0),
        ("ssv2", (10, 0)),
        ("val", 0),
        ("val", 10_001),
    ],
)
def test_wrong_settings_name_the_key(key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        Settings(**{key: value})


def test_an_unknown_difficulty_names_the_known_ones() -> None:
    with pytest.raises(UserError, match='difficulty is "default": give one of easy, medium, hard'):
        dials("default")  # type: ignore[arg-type]
