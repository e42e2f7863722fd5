"""Planted leaks are found by id, by bytes and by pictures, different clips are not, and training leaves out what was
found.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from PIL import Image

from cover.datasets import phash
from cover.datasets.catalog import load_catalog
from cover.datasets.exclusions import excluded_rows, read_exclusions
from cover.datasets.index import index
from cover.datasets.overlap import overlap, print_overlap
from cover.datasets.phash import CROPS, HASHES, HashIndex, frame_hashes, video_hashes
from cover.datasets.prepare import prepare
from cover.errors import UserError
from cover.mixture.mixture import Mixture
from cover.mixture.schedule import Draw
from cover.training.recipe import Data, Recipe
from cover.training.train import make_schedule, train

KINETICS = "label,youtube_id,time_start,time_end,split\n"


def clip(seed: int, frames: int = 20, width: int = 128, height: int = 96) -> np.ndarray:
    """uint8 `(T, H, W, 3)`: a smooth picture of its own that moves and changes, another in every frame."""
    rng = np.random.default_rng(seed)
    two = [
        np.asarray(Image.fromarray(part).resize((2 * width, height), Image.Resampling.BICUBIC))
        for part in rng.integers(0, 256, (2, 6, 14, 3), dtype=np.uint8)
    ]
    shares = np.linspace(0, 1, frames)
    moved = [(1 - shard) * two[0] + shard * two[1] for shard in shares]
    return np.stack([one[:, int(shard * width / 2) :][:, :width] for one, shard in zip(moved, shares)]).astype(np.uint8)


def write_clip(path: Path, frames: np.ndarray, codec: str = "libx264", crf: int = 23) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = (side // 2 * 2 for side in frames.shape[1:3])
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf)} if codec == "libx264" else {}
        for pixels in frames:
            picture = np.ascontiguousarray(pixels[: stream.height, : stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def resized(frames: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def cropped(frames: np.ndarray, shard: float) -> np.ndarray:
    top, left = (int(side * (1 - shard) / 2) for side in frames.shape[1:3])
    return frames[:, top : frames.shape[1] - top, left : frames.shape[2] - left]


def brighter(frames: np.ndarray) -> np.ndarray:
    return np.clip(frames * 1.1 + 10.0, 0, 255).astype(np.uint8)


def black_first(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(frames[:7]), frames[7:]])


def write_list(root: Path, split: str, names: Iterable[str]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    labels = (f"{name},{'ab'[number % 2]}\n" for number, name in enumerate(names))
    (root / f"{split}.csv").write_text("path,label\n" + "".join(labels), encoding="utf-8")


def of(results: dict[str, Any], left: str, right: str) -> dict[str, Any]:
    """The counts of a pair of splits, by kind: (distinct, left rows, right rows)."""
    for pair in results["pairs"]:
        if [f"{pair[side]['dataset']} {pair[side]['split']}" for side in ("left", "right")] == [left, right]:
            return {
                kind: (pair[kind]["distinct"], pair[kind]["left_rows"], pair[kind]["right_rows"])
                for kind in results["kinds"]
            }
    raise AssertionError(f"no pair {left}, {right}")


# --- by id ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Two Kinetics and a Moments set that are lists alone. Shared: AAA (twice in k6 train), BBB between k4 val and k6
    train, CCC between k4 val and k4 test, DDD between k4 train and m val.
    """
    ids = {name: f"{name}_-_-_-_-"[:11] for name in ("AAA", "BBB", "CCC", "DDD", "EEE", "FFF")}
    rows = {
        "k4/train": [("DDD", 0), ("FFF", 0)],
        "k4/val": [("AAA", 0), ("BBB", 5), ("CCC", 0)],
        "k4/test": [("CCC", 90)],
        "k6/train": [("AAA", 0), ("AAA", 50), ("BBB", 0), ("EEE", 0)],
    }
    for name, present in rows.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.csv").write_text(KINETICS + "".join(f"jump,{ids[i]},{t},{t + 10},x\n" for i, t in present))
    (tmp_path / "m").mkdir()
    (tmp_path / "m/validationSet.csv").write_text(f"jump/yt-{ids['DDD']}_3.mp4,jump,1,0\njump/getty-1.mp4,jump,1,0\n")
    sets = [
        "k4: {format: kinetics, root: k4, dev: 0}",
        "k6: {format: kinetics, root: k6, dev: 0}",
        "m: {format: moments, root: m}",
    ]
    (tmp_path / "catalog.yaml").write_text("\n".join(sets) + "\n")
    index(tmp_path / "catalog.yaml", 0)
    return tmp_path / "catalog.yaml"


def test_ids_are_matched_without_any_file(lists: Path) -> None:
    results = overlap(lists, 0)
    counts = {
        (
            f"{pair['left']['dataset']} {pair['left']['split']}",
            f"{pair['right']['dataset']} {pair['right']['split']}",
        ): (
            pair["source"]["distinct"],
            pair["source"]["left_rows"],
            pair["source"]["right_rows"],
        )
        for pair in results["pairs"]
    }
    assert len(counts) == 10
    assert {pair: count for pair, count in counts.items() if any(count)} == {
        ("k4 val", "k4 test"): (1, 1, 1),
        ("k4 val", "k6 train"): (2, 2, 3),
        ("k4 train", "m val"): (1, 1, 1),
    }
    assert all(pair["file"]["distinct"] == 0 for pair in results["pairs"])
    assert [(row["dataset"], row["train_rows"], row["excluded"], row["by"]) for row in results["excluded"]] == [
        ("k4", 2, 1, {"source": 1}),
        ("k6", 4, 3, {"source": 3}),
    ]


def test_examples_show_the_times_beside(lists: Path) -> None:
    pair = next(
        pair
        for pair in overlap(lists, 0)["pairs"]
        if (pair["left"]["split"], pair["right"]["split"]) == ("val", "test")
    )
    (example,) = pair["source"]["examples"]
    assert example["left"]["source_id"] == example["right"]["source_id"]
    assert (example["left"]["youtube_times"], example["right"]["youtube_times"]) == ([0, 10], [90, 100])


def test_only_the_named_sets_are_compared(lists: Path) -> None:
    assert {row["dataset"] for row in overlap(lists, 0, ["k6", "m"])["splits"]} == {"k6", "m"}
    with pytest.raises(UserError, match='no data set "k7"'):
        overlap(lists, 0, ["k7"])


def test_equal_paths_in_other_roots_are_no_leak(tmp_path: Path) -> None:
    for name, split in (("one", "train"), ("two", "val")):
        write_list(tmp_path / name, split, ["a.mp4", "b.mp4"])
    (tmp_path / "catalog.yaml").write_text("one: {format: csv, root: one, dev: 0}\ntwo: {format: csv, root: two}\n")
    index(tmp_path / "catalog.yaml", 0)
    assert of(overlap(tmp_path / "catalog.yaml", 0), "one train", "two val")["source"] == (0, 0, 0)


@pytest.mark.parametrize("splits", [("val",), pytest.param(("val", "test"), marks=pytest.mark.full)], ids=" ".join)
def test_the_published_lists(test_data: Path, tmp_path: Path, splits: tuple[str, ...]) -> None:
    """The counts that others have made of the same lists."""
    folder = test_data / "annotations"
    entries = []
    for n in (400, 600):
        files = ", ".join(f"{split}: {folder}/kinetics-{n}_{split}.csv" for split in splits)
        entries.append(f"k{n}: {{format: kinetics, root: {tmp_path}, annotations: {{{files}}}}}")
    (tmp_path / "catalog.yaml").write_text("\n".join(entries) + "\n")
    index(tmp_path / "catalog.yaml", 0)
    results = overlap(tmp_path / "catalog.yaml", 0)
    wanted = {
        ("k400 val", "k600 val"): 13_569,
        ("k400 val", "k600 test"): 450,
        ("k400 test", "k600 test"): 27_589,
        ("k600 val", "k600 test"): 28,
        ("k400 val", "k400 test"): 0,
    }
    found = [pair for pair in wanted if all(part.split()[1] in splits for part in pair)]
    assert {pair: of(results, *pair)["source"][0] for pair in found} == {pair: wanted[pair] for pair in found}


# --- by bytes and by pictures -----------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Clips 0 to 9 for training; for evaluation in another set clips of their own, and leaks under other names: a copy
    of 0; 1 encoded anew, 2 resized, 3 cropped, 4 brighter; and two clips, 5 for training and 30, that begin with the
    same black frames.
    """
    train_clips = {number: black_first(clip(number)) if number == 5 else clip(number) for number in range(10)}
    for number, frames in train_clips.items():
        write_clip(tmp_path / f"one/t{number}.mp4", frames)
    leaks = {
        "encoded": clip(1),
        "resized": resized(clip(2), 80, 60),
        "cropped": cropped(clip(3), 0.9),
        "brighter": brighter(clip(4)),
        "black": black_first(clip(30)),
    }
    for name, frames in leaks.items():
        write_clip(tmp_path / f"two/{name}.mp4", frames, crf=32)
    for number in (20, 21, 22):
        write_clip(tmp_path / f"two/v{number}.mp4", clip(number))
    shutil.copyfile(tmp_path / "one/t0.mp4", tmp_path / "two/copy.mp4")
    write_list(tmp_path / "one", "train", sorted(path.name for path in (tmp_path / "one").iterdir()))
    write_list(tmp_path / "two", "val", [*sorted(path.name for path in (tmp_path / "two").iterdir()), "absent.mp4"])
    (tmp_path / "catalog.yaml").write_text("one: {format: csv, root: one, dev: 0}\ntwo: {format: csv, root: two}\n")
    index(tmp_path / "catalog.yaml", 0)
    return tmp_path / "catalog.yaml"


def test_a_copy_under_another_name(clips: Path) -> None:
    results = overlap(clips, 0)
    assert of(results, "one train", "two val") == {"source": (0, 0, 0), "file": (1, 1, 1)}
    (example,) = results["pairs"][0]["file"]["examples"]
    assert (example["left"]["sample_id"], example["right"]["sample_id"]) == ("t0.mp4", "copy.mp4")
    assert [row["comparable"]["file"] for row in results["splits"]] == [10, 9]


def test_clips_that_were_encoded_resized_cropped_or_brightened(clips: Path) -> None:
    results = overlap(clips, 0, frames=True)
    entries = {(e["left"]["sample_id"], e["right"]["sample_id"]) for e in results["pairs"][0]["frames"]["examples"]}
    wanted = {("t0.mp4", "copy.mp4"), ("t1.mp4", "encoded.mp4"), ("t2.mp4", "resized.mp4"), ("t3.mp4", "cropped.mp4")}
    assert entries == wanted | {("t4.mp4", "brighter.mp4")}
    assert of(results, "one train", "two val")["frames"] == (5, 5, 5)
    by = {"file": 1, "frames": 5}
    assert results["excluded"][0] == {"dataset": "one", "train_rows": 10, "excluded": 5, "by": by, "why": ""}
    one, two = results["chance"]
    # labels take turns down either list
    assert (one["pairs"], one["matched"], one["rate"], one["same_class"]) == (5 * 5, 0, 0.0, 20)
    assert (two["pairs"], two["matched"], two["limit"]) == (4 * 5, 0, None)
    assert 0 < one["upper"] < 0.1
    assert (one["dataset"], one["media"], one["compared"]) == ("one", "video", 90)
    assert results["doubtful"] == []


def test_mirrored_copies(tmp_path: Path) -> None:
    """Mirrored, mirrored and resized, mirrored and cropped."""
    for number in range(4):
        write_clip(tmp_path / f"one/t{number}.mp4", clip(number))
    mirrored = [clip(number)[:, :, ::-1] for number in range(3)]
    for name, frames in zip("abc", (mirrored[0], resized(mirrored[1], 80, 60), cropped(mirrored[2], 0.9))):
        write_clip(tmp_path / f"two/{name}.mp4", frames, crf=32)
    write_image(tmp_path / "three/train/x/left.png", clip(8)[0])
    write_image(tmp_path / "four/val/x/right.jpg", clip(8)[0][:, ::-1])
    for root, split in (("one", "train"), ("two", "val")):
        write_list(tmp_path / root, split, sorted(path.name for path in (tmp_path / root).iterdir()))
    (tmp_path / "catalog.yaml").write_text(
        "one: {format: csv, root: one, dev: 0}\ntwo: {format: csv, root: two}\n"
        "three: {format: folder, root: three, dev: 0}\nfour: {format: folder, root: four}\n"
    )
    index(tmp_path / "catalog.yaml", 0)
    results = overlap(tmp_path / "catalog.yaml", 0, frames=True)
    assert of(results, "one train", "two val")["frames"] == (3, 3, 3)
    assert of(results, "three train", "four val")["frames"] == (1, 1, 1)


def before_one_camera(number: int, first: int = 100) -> np.ndarray:
    """A clip of an object that moves in its own way before the same background."""
    rng = np.random.default_rng(first + number)
    still = np.repeat(clip(0, frames=1), 20, axis=0)
    (top, left), (down, right) = rng.integers(10, 50, 2), rng.integers(-15, 16, 2) / 10
    for time, frame in enumerate(still):
        y, x = int(np.clip(top + down * time, 0, 70)), int(np.clip(left + right * time, 0, 100))
        frame[y : y + 26, x : x + 20] = rng.integers(200, 256)
    return still


@pytest.mark.parametrize("media", ["video", "image"])
def test_different_clips_before_one_camera_are_listed_and_not_excluded(
    tmp_path: Path, media: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """But copies of these clips are excluded: encoded, resized and mirrored."""
    kinds = {"train": range(12), "val": range(12, 18)}
    first = {"video": 100, "image": 460}[media]  # of these, no two pictures are as near as a copy is
    taken = [before_one_camera(number, first) for number in range(18)]
    leaks = {"anew": taken[0], "small": resized(taken[1], 96, 72), "mirror": taken[2][:, :, ::-1]}
    for split, numbers in kinds.items():
        own = {f"{number:02}": taken[number] for number in numbers} | (leaks if split == "val" else {})
        for place, (name, frames) in enumerate(own.items()):
            path = tmp_path / split / "ab"[place % 2] / name
            if media == "video":
                write_clip(path.with_suffix(".mp4"), frames, crf=26 if name.isalpha() else 18)
            else:
                write_image(path.with_suffix(".jpg"), frames[0])
    (tmp_path / "catalog.yaml").write_text(f"mine: {{format: folder, root: ., media: {media}, dev: 0}}\n")
    index(tmp_path / "catalog.yaml", 0)
    results = overlap(tmp_path / "catalog.yaml", 0, frames=True)
    (chance,) = results["chance"]
    assert chance["matched"] > 0
    assert chance["expected"] == 0
    excluded = {Path(item.sample_id).stem for item in read_exclusions(Path(results["exclusions"]))[0]}
    assert excluded == {"00", "01", "02"}
    (doubtful,) = results["doubtful"]
    assert doubtful["rows"] > 0
    print_overlap(results)
    assert "not excluded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("splits", "other", "wanted"),
    [
        ({"train": ["a", "b"]}, [], "no val or test split"),
        ({"train": ["a", "b"], "val": ["c"]}, [], "pictures were not compared (--frames)"),
        ({"train": ["a", "b"], "val": ["c"]}, [], "its files are not here"),
        ({"train": ["a", "b"], "dev": ["a"], "val": ["c"]}, [], "1 rows match mine dev"),
        ({"train": ["a", "b"], "val": ["c"]}, ["a", "b"], "2 rows match other train, which is not evaluated"),
    ],
)
def test_no_exclusion_has_its_reason(
    tmp_path: Path,
    splits: dict[str, list[str]],
    other: list[str],
    wanted: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split, names in {**splits, "other": other}.items():
        write_list(tmp_path, split, [f"{name}.mp4" for name in names])
    catalog = "mine: {format: csv, root: ., dev: 0}\n"
    if other:
        catalog += "other: {format: csv, root: ., dev: 0, annotations: {train: other.csv}}\n"
    (tmp_path / "catalog.yaml").write_text(catalog)
    index(tmp_path / "catalog.yaml", 0)
    results = overlap(tmp_path / "catalog.yaml", 0)
    assert results["excluded"][0]["excluded"] == 0
    print_overlap(results)
    assert wanted in capsys.readouterr().out


def test_runs_agree_and_a_second_reads_nothing(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = overlap(clips, 2, frames=True)

    def no_reading(portion: phash.HashInput) -> None:
        raise AssertionError(f"read again: {portion.path}")

    monkeypatch.setattr("cover.datasets.matching.of_bytes", no_reading)
    monkeypatch.setattr("cover.datasets.picture_matches.of_video", no_reading)
    assert overlap(clips, 0, frames=True) == first
    os.utime(clips.parent / "one/t3.mp4", ns=(1, 1))
    with pytest.raises(AssertionError, match="t3"):
        overlap(clips, 0, frames=True)


def test_interrupted_work_is_kept(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = phash.video_hashes, []

    def interrupted(path: str, start: float, seconds: float) -> tuple[int, ...] | None:
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(path, start, seconds)

    monkeypatch.setattr(phash, "_FILES_PER_TASK", 1)
    monkeypatch.setattr(phash, "video_hashes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        overlap(clips, 0, frames=True)
    overlap(clips, 0, frames=True)
    assert len(calls) == 6 + 19 - 5


def test_images(tmp_path: Path) -> None:
    for number in range(6):
        write_image(tmp_path / f"one/train/{'ab'[number % 2]}/{number}.png", clip(number)[0])
    write_image(tmp_path / "two/val/a/copy.jpg", resized(clip(2)[:1], 100, 70)[0])
    write_image(tmp_path / "two/val/b/other.jpg", clip(50)[0])
    (tmp_path / "catalog.yaml").write_text(
        "one: {format: folder, root: one, dev: 0}\ntwo: {format: folder, root: two}\n"
    )
    index(tmp_path / "catalog.yaml", 0)
    results = overlap(tmp_path / "catalog.yaml", 0, frames=True)
    (example,) = results["pairs"][0]["frames"]["examples"]
    assert (Path(example["left"]["path"]).name, Path(example["right"]["path"]).name) == ("2.png", "copy.jpg")
    assert results["chance"][0]["matched"] == 0


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def related(clips: Path) -> Path:
    """Beside `clips`: rows below the root of `one`, of which t7.mp4 is in its train split; the same name below another
    root, which is another clip; and two Moments sets with the publisher's own id getty-1 in both, of which one's files
    are there.
    """
    write_list(clips.parent / "one", "val", ["t7.mp4"])
    write_clip(clips.parent / "four/t7.mp4", clip(60))
    write_list(clips.parent / "four", "val", ["t7.mp4"])
    for root, file in (("m1", "trainingSet"), ("m2", "validationSet")):
        (clips.parent / root).mkdir()
        (clips.parent / root / f"{file}.csv").write_text(f"jump/getty-1.mp4,jump,1,0\njump/{root}.mp4,jump,1,0\n")
    write_clip(clips.parent / "m1/training/jump/m1.mp4", clip(61))
    with clips.open("a") as catalog:
        catalog.write("three: {format: csv, root: one, annotations: {val: val.csv}}\nfour: {format: csv, root: four}\n")
        catalog.write("m1: {format: moments, root: m1, dev: 0}\nm2: {format: moments, root: m2}\n")
    index(clips, 0)
    return clips


def matrix(results: dict[str, Any], kind: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The counts of all pairs that share something."""
    names = [
        tuple(pair[side][part] for side in ("left", "right") for part in ("dataset", "split"))
        for pair in results["pairs"]
    ]
    counts = (
        tuple(pair[kind][count] for count in ("distinct", "left_rows", "right_rows")) for pair in results["pairs"]
    )
    return {name: count for name, count in zip(names, counts) if any(count)}


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_prepared_data_match_as_their_originals_do(related: Path, tmp_path: Path, shard_bytes: int | None) -> None:
    before = overlap(related, 0, frames=True)
    assert matrix(before, "source") == {
        ("one", "train", "one", "val"): (1, 1, 1),
        ("one", "train", "three", "val"): (1, 1, 1),
        ("one", "val", "three", "val"): (1, 1, 1),
        ("m1", "train", "m2", "val"): (1, 1, 1),
    }
    prepare(related, tmp_path / "fast", 0, shard_bytes=shard_bytes)
    again = prepare(tmp_path / "fast/catalog.yaml", tmp_path / "twice", 0, shard_bytes=shard_bytes)
    assert sum(result["failed"] for result in again) == 0
    for folder in ("fast", "twice"):
        after = overlap(tmp_path / folder / "catalog.yaml", 0, frames=True)
        for kind in ("source", "frames"):
            assert matrix(after, kind) == matrix(before, kind), kind
            entries = [[split["comparable"][kind] for split in results["splits"]] for results in (before, after)]
            assert entries[0] == entries[1], kind
        entries = [[(each["media"], each["pairs"]) for each in results["chance"]] for results in (before, after)]
        assert entries[0] == entries[1]


def test_prepared_images_in_shards(tmp_path: Path) -> None:
    for number in range(4):
        write_image(tmp_path / f"one/train/{'ab'[number % 2]}/{number}.png", clip(number)[0])
    write_image(tmp_path / "two/val/a/copy.jpg", resized(clip(2)[:1], 100, 70)[0])
    (tmp_path / "catalog.yaml").write_text(
        "one: {format: folder, root: one, dev: 0}\ntwo: {format: folder, root: two}\n"
    )
    index(tmp_path / "catalog.yaml", 0)
    prepare(tmp_path / "catalog.yaml", tmp_path / "fast", 0, shard_bytes=8_000)
    results = overlap(tmp_path / "fast/catalog.yaml", 0, frames=True)
    assert of(results, "one train", "two val")["frames"] == (1, 1, 1)
    assert results["chance"][0]["pairs"] == 4, "those of another label, in whatever shards"


def test_prepared_data_beside_originals(related: Path, tmp_path: Path) -> None:
    """One catalog of both: every prepared row has its original's id, and its pictures."""
    prepare(related, tmp_path / "fast", 0, ["one"], shard_bytes=20_000)
    entry = yaml.safe_load((tmp_path / "fast/catalog.yaml").read_text())["one"]
    both = yaml.safe_load(related.read_text()) | {"small": entry | {"root": str(tmp_path / "fast")}}
    related.write_text(yaml.safe_dump(both))
    counts = of(overlap(related, 0, ["one", "small"], frames=True), "one train", "small train")
    assert (counts["source"], counts["frames"]) == ((10, 10, 10), (10, 10, 10))


def test_what_lies_behind_urls_is_compared_by_id(
    related: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(related, tmp_path / "fast", 0, shard_bytes=20_000, url="memory://bucket/fast")
    results = overlap(tmp_path / "fast/catalog.yaml", 0, frames=True)
    assert matrix(results, "source") == matrix(overlap(related, 0), "source")
    assert not matrix(results, "frames")
    assert "have URLs and are compared by source id alone" in capsys.readouterr().err


def test_plain_frames_say_nothing(tmp_path: Path) -> None:
    title = np.zeros((96, 128, 3), np.uint8)
    title[40:56, 30:98] = 255
    for plain in (np.zeros((96, 128, 3), np.uint8), np.full((96, 128, 3), 200, np.uint8), title):
        assert frame_hashes(plain) == ()
    write_clip(tmp_path / "half.mp4", black_first(clip(1)))
    assert video_hashes(str(tmp_path / "half.mp4"), 0.0, 2.0) is not None
    assert len(video_hashes(str(tmp_path / "half.mp4"), 0.0, 2.0) or ()) == 3 * HASHES
    assert video_hashes(str(tmp_path / "gone.mp4"), 0.0, 2.0) is None


def test_the_index_finds_what_comparing_all_pairs_finds() -> None:
    """Hashes with near ones planted at every distance; the same matches as without an index."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 2**63, (300, 5, HASHES), dtype=np.uint64)
    for item in range(1, 300, 2):
        flips = [sum(1 << int(bit) for bit in rng.choice(64, item // 20, replace=False)) for _ in range(5)]
        frames[item, :, 0] = frames[item - 1, :, item % CROPS] ^ np.array(flips, np.uint64)
    gallery = HashIndex([tuple(item.ravel().tolist()) for item in frames], np.arange(300), video=True)
    everything = np.array(list(combinations(range(300), 2)))
    matching = everything[np.isfinite(gallery.bits(everything))]
    assert gallery.pairs().tolist() == matching.tolist()
    assert 60 < len(matching) < 150


def test_the_index_misses_no_pair_whose_bits_are_spread() -> None:
    """One pair of frames 7 bits apart, in every band at least one of them; two pairs 10 bits apart."""
    rng = np.random.default_rng(1)
    first = rng.integers(0, 2**63, (3, HASHES), dtype=np.uint64)
    spread = [(0, 1, 16, 17, 32, 33, 48), (0, 1, 2, 16, 17, 18, 32, 33, 48, 49), (3, 4, 5, 20, 21, 22, 40, 41, 50, 51)]
    second = first ^ np.array([sum(1 << bit for bit in bits) for bits in spread], np.uint64)[:, None]
    items = [tuple(frames.ravel().tolist()) for frames in (first, second)]
    assert HashIndex(items, np.arange(2), video=True).pairs().tolist() == [[0, 1]]
    assert HashIndex(items, np.zeros(2, np.int64), video=True).pairs().tolist() == [], "of one group"


# --- the list of exclusions -------------------------------------------------------------------------------------------


def recipe_of(catalog: Path, out: Path, **data: Any) -> Recipe:
    base = Recipe(
        Data(["one"], str(catalog), frames=2), str(out), steps=2, batch=5, workers=0, log_every=1, evaluate_every=-1
    )
    return replace(base, data=replace(base.data, **data))


def start_of(run: Path) -> dict[str, Any]:
    start: dict[str, Any] = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return start


def test_training_never_draws_what_is_excluded(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlap(clips, 0, frames=True)
    recipe = recipe_of(clips, tmp_path / "run")
    schedule = make_schedule(recipe, Mixture.open(recipe.data, load_catalog(clips)))
    draws: set[Draw] = {draw for step in range(4) for group in schedule.step(step) for draw in group}
    assert {draw.row for draw in draws} == {5, 6, 7, 8, 9}
    start = start_of(train(recipe))
    assert (start["exclusions"]["one"]["rows"], start["datasets"]["one"]["train_samples"]) == (5, 5)
    assert "left out, being in evaluation splits too: one 5" in capsys.readouterr().err
    ignoring = start_of(train(recipe_of(clips, tmp_path / "all", exclusions="ignore")))
    assert (ignoring["exclusions"], ignoring["datasets"]["one"]["train_samples"]) == (None, 10)
    assert "exclusions is ignore" in capsys.readouterr().err


def test_the_list_says_why(clips: Path) -> None:
    result, metadata = read_exclusions(Path(overlap(clips, 0)["exclusions"]))
    (item,) = result
    assert (item.dataset, item.row, item.sample_id, item.reason) == ("one", 0, "t0.mp4", "file")
    assert (item.matched_dataset, item.matched_split, item.matched_sample_id) == ("two", "val", "copy.mp4")
    assert set(metadata["manifests"]) == {"one-train.arrow", "two-val.arrow"}


def test_dev_rows_of_its_own_exclude_nothing_and_those_of_others_do(tmp_path: Path) -> None:
    for name in ("k4", "k6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text(KINETICS + "".join(f"jump,{n:011d},0,10,x\n" for n in range(400)))
    (tmp_path / "catalog.yaml").write_text(
        "k4: {format: kinetics, root: k4}\nk6: {format: kinetics, root: k6, dev: 0}\n"
    )
    index(tmp_path / "catalog.yaml", 0)
    results = overlap(tmp_path / "catalog.yaml", 0)
    dev = next(row["rows"] for row in results["splits"] if row["split"] == "dev")
    assert 0 < dev < 400
    assert {row["dataset"]: row["excluded"] for row in results["excluded"]} == {"k4": 0, "k6": dev}


def test_a_copy_in_the_dev_split_of_its_own_set_excludes_nothing(tmp_path: Path) -> None:
    for split in ("train", "dev", "val"):
        write_list(tmp_path, split, ["a.mp4", f"{split}.mp4"])
    (tmp_path / "val.csv").write_text("path,label\nb.mp4,a\n")
    (tmp_path / "catalog.yaml").write_text("mine: {format: csv, root: .}\n")
    index(tmp_path / "catalog.yaml", 0)
    results = overlap(tmp_path / "catalog.yaml", 0)
    assert of(results, "mine train", "mine dev")["source"] == (1, 1, 1)
    assert results["excluded"][0]["excluded"] == 0


def test_a_stale_list_is_refused(clips: Path, tmp_path: Path) -> None:
    overlap(clips, 0)
    assert excluded_rows(load_catalog(clips), ["one"]) is not None
    index(clips, 0)
    assert excluded_rows(load_catalog(clips), ["one"]) is not None, (
        "indexing again what has not changed makes nothing stale"
    )
    shutil.copyfile(tmp_path / "two/v20.mp4", tmp_path / "two/absent.mp4")
    index(clips, 0)
    with pytest.raises(
        UserError, match=r"stale: two-val\.arrow has changed.*run `cover overlap .*catalog\.yaml` again"
    ) as error:
        train(recipe_of(clips, tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    train(recipe_of(clips, tmp_path / "run", exclusions="ignore"))
    overlap(clips, 0)
    train(recipe_of(clips, tmp_path / "again"))


def test_a_list_made_without_the_data_set(clips: Path, tmp_path: Path) -> None:
    overlap(clips, 0, ["two"])
    with pytest.raises(UserError, match="made without one; run `cover overlap"):
        train(recipe_of(clips, tmp_path / "run"))


def test_a_run_goes_on_with_the_rows_it_was_begun_with(clips: Path, tmp_path: Path) -> None:
    recipe = recipe_of(clips, tmp_path / "run")
    train(recipe)
    (clips.parent / "manifests/exclusions.arrow").unlink(missing_ok=True)
    assert train(recipe, resume=True) == tmp_path / "run"
    overlap(clips, 0)
    with pytest.raises(UserError, match="begun with other training rows left out"):
        train(recipe, resume=True)


def test_tables_tell_the_counts_and_the_false_matches(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_overlap(overlap(clips, 0, frames=True))
    out = capsys.readouterr().out
    assert "one train" in out
    assert "one: 0 of 25 pairs of different classes match" in out
    assert "two: 0 of 20 pairs of different classes match" in out


def test_other_folder_and_other_errors(clips: Path, tmp_path: Path) -> None:
    assert Path(overlap(clips, 0, out=tmp_path / "elsewhere")["exclusions"]).parent == tmp_path / "elsewhere"
    assert not (tmp_path / "manifests/exclusions.arrow").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out: .*file: cannot be made"):
        overlap(clips, 0, out=tmp_path / "file")
    (tmp_path / "manifests/exclusions.arrow").write_bytes(b"ARROW1 and then nothing")
    with pytest.raises(UserError, match="not a list of exclusions"):
        excluded_rows(load_catalog(clips), ["one"])


def test_a_list_that_is_train_and_val_at_once(make_set: Callable[..., Path]) -> None:
    """Every row leaks, by id and by file; then nothing is left to train on."""
    catalog = make_set({"a.mp4": "x", "b.mp4": "y"})
    assert of(overlap(catalog, 0), "mine train", "mine val") == {"source": (2, 2, 2), "file": (2, 2, 2)}
    with pytest.raises(UserError, match=r"all are excluded \(2\)"):
        Mixture.open(recipe_of(catalog, catalog.parent / "run", sets=["mine"]).data, load_catalog(catalog))
