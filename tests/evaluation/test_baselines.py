"""Trivial methods on sets whose labels are in one known place, against independent computations of the same numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import scipy.optimize
import torch
from PIL import Image

from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.evaluation.baseline_features import cache_file, features_of, pixel_features
from cover.evaluation.baselines import (
    C,
    advice,
    baselines,
    fit_and_predict,
    fold_baselines,
    sample_by_class,
    shortfalls,
    sizes,
)
from cover.evaluation.evaluate import evaluate_release, print_results
from cover.evaluation.start_features import start_features
from cover.model.release import find_release, load_release
from cover.model.starts.known import known_start

MakeSet = Callable[..., Path]
Frames = npt.NDArray[np.uint8]
HEIGHT, WIDTH, LENGTH = 48, 64, 16
Samples = Sequence[tuple[str, Frames]]


def write_video(path: Path, frames: Frames) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12, options={"qscale": "2"})
        stream.width, stream.height = WIDTH, HEIGHT
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def write_set(folder: Path, splits: dict[str, Samples]) -> Path:
    """Write and index a set of videos `(label, frames)` for each split; returns its catalog."""
    for split, samples in splits.items():
        lines = ["path,label"]
        for number, (label, frames) in enumerate(samples):
            write_video(folder / f"{split}{number}.mp4", frames)
            lines.append(f"{split}{number}.mp4,{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lists = ", ".join(f"{split}: {split}.csv" for split in splits)
    catalog = folder / "catalog.yaml"
    catalog.write_text(f"mine: {{format: csv, root: ., media: video, dev: 0, annotations: {{{lists}}}}}\n")
    index(catalog, workers=0)
    return catalog


def texture(rng: np.random.Generator) -> Frames:
    coarse = rng.integers(60, 190, (6, 8, 3), dtype=np.uint8)
    return coarse.repeat(HEIGHT // 6, axis=0).repeat(WIDTH // 8, axis=1)


def bright(label: int, rng: np.random.Generator) -> Frames:
    """A moving clip whose level of grey is its class."""
    frames = np.stack([texture(rng) for _ in range(LENGTH)])
    return (frames // 4 + 40 + 70 * label).astype(np.uint8)


def moving(label: int, rng: np.random.Generator) -> Frames:
    """A clip of random pictures that change only in the first half (0) or only in the second half (1)."""
    changing = [texture(rng) for _ in range(LENGTH // 2)]
    still = [changing[-1 if label == 0 else 0]] * (LENGTH // 2)
    return np.stack([*changing, *still] if label == 0 else [*still, *changing])


def samples_of(make: Callable[[int, np.random.Generator], Frames], count: int, classes: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    return [(f"class{number % classes}", make(number % classes, rng)) for number in range(count)]


@pytest.fixture(scope="module")
def bright_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 clips to fit and 36 to measure, in 3 classes of brightness. Never changed."""
    splits = {name: samples_of(bright, 36, 3, seed) for seed, name in enumerate(("train", "val"))}
    return write_set(tmp_path_factory.mktemp("bright"), splits)


def measured(catalog: Path, split: str = "val", **more: Any) -> dict[str, Any]:
    return baselines(load_catalog(catalog), "mine", split, 0, **more)


# --- where the label is -----------------------------------------------------------------------------------------------


def test_brightness_is_in_the_thumbnail_and_not_in_the_motion(bright_set: Path) -> None:
    found = measured(bright_set)
    assert found["chance"] == pytest.approx(1 / 3)
    assert found["thumbnail"]["top1"] == 1
    assert found["motion"]["top1"] < 0.6
    assert found["prior"]["top1"] == pytest.approx(1 / 3)
    assert (found["train_rows"], found["train_rows_per_class"], found["n"], found["n_evaluated"]) == (36, None, 36, 36)
    assert found["unreadable"] == {"train": 0, "val": 0}
    for name in ("prior", "thumbnail", "motion"):
        assert found[name]["low"] <= found[name]["top1"] <= found[name]["high"]
        assert found[name]["converged"]


def test_the_time_of_a_movement_is_in_the_motion_and_not_in_the_thumbnail(tmp_path: Path) -> None:
    found = measured(
        write_set(tmp_path, {name: samples_of(moving, 40, 2, seed) for seed, name in ((2, "train"), (3, "val"))})
    )
    assert found["motion"]["top1"] > 0.95
    assert found["thumbnail"]["top1"] < 0.8


def test_the_prior_is_the_most_frequent_class_of_train(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = [(label, texture(rng)[None].repeat(4, 0)) for label in ("a", "b", "b", "c", "c")]
    val = [(label, texture(rng)[None].repeat(4, 0)) for label in ("a", "a", "b", "c", "c", "c", "c", "b")]
    found = measured(write_set(tmp_path, {"train": train, "val": val}))
    assert found["prior"]["top1"] == 2 / 8  # of b and c, equally frequent, the first


# --- the same numbers, computed otherwise -----------------------------------------------------------------------------


def test_the_features_of_pictures_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (LENGTH, HEIGHT, WIDTH, 3), dtype=np.uint8)
    (tmp_path / "clip").mkdir()
    for number, picture in enumerate(frames):  # a folder of pictures is a video, and loses nothing
        Image.fromarray(picture).save(tmp_path / "clip" / f"{number:03}.png")
    (tmp_path / "train.csv").write_text("path,label\nclip,a\n", encoding="utf-8")
    (tmp_path / "catalog.yaml").write_text(
        "mine: {format: csv, root: ., media: video, dev: 0, annotations: {train: train.csv}}\n", encoding="utf-8"
    )
    index(tmp_path / "catalog.yaml", workers=0)
    row = open_manifest(load_catalog(tmp_path / "catalog.yaml").manifest_path("mine", "train")).row(0)
    features = pixel_features(row, "video")
    small = np.rint(frames.reshape(LENGTH, 12, 4, 16, 4, 3).astype(float).mean((2, 4)))
    assert np.abs(features["thumbnail"] - small[8].ravel()).max() <= 1  # rounding
    grey = small @ [0.299, 0.587, 0.114]
    steps = abs(grey[1:] - grey[:-1])
    parts = [
        np.log(1 + steps[3 * part : 3 * part + 3, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean())
        for part in range(5)
        for y in range(6)
        for x in range(8)
    ]
    assert np.abs(features["motion"] - parts).max() < 0.06  # rounding of a grey level in about 13


def test_logistic_regression_against_another_optimiser() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    train = (rng.normal(size=(60, 5)) + labels[:, None] * [1, 0, 0.5, 0, 0] * 2).astype(np.float32)
    other = rng.normal(size=(200, 5)).astype(np.float32) * 3
    mean, deviation = train.mean(0), train.std(0)
    x, y = (train - mean) / deviation, np.eye(3)[labels]

    def loss(flat: npt.NDArray[np.float64]) -> float:
        weights, bias = flat[:15].reshape(5, 3), flat[15:]
        logits = x @ weights + bias
        return float((np.log(np.exp(logits).sum(1)) - (logits * y).sum(1)).sum() + (weights**2).sum() / (2 * C))

    best = scipy.optimize.minimize(loss, np.zeros(18), method="BFGS", options={"gtol": 1e-5}).x
    wanted = (((other - mean) / deviation) @ best[:15].reshape(5, 3) + best[15:]).argmax(1)
    predicted, converged = fit_and_predict(train, labels, other)
    assert converged
    assert (predicted != wanted).sum() <= 2  # samples on a border
    assert len(set(predicted.tolist())) == 3


def test_a_train_split_of_one_class() -> None:
    predicted, converged = fit_and_predict(
        np.ones((3, 2), np.float32), np.array([1, 1, 1]), np.zeros((2, 2), np.float32)
    )
    assert (predicted.tolist(), converged) == ([1, 1], True)


def test_more_numbers_than_samples_against_the_same_fit_in_all_numbers() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 20)
    train = (rng.normal(size=(20, 80)) + labels[:, None] * (np.arange(80) < 5)).astype(np.float32)
    other = rng.normal(size=(300, 80)).astype(np.float32) * 2
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=C, tol=1e-8, max_iter=2000).fit(scaler.transform(train), labels)
    predicted, converged = fit_and_predict(train, labels, other)
    assert converged
    assert (predicted != model.predict(scaler.transform(other))).sum() <= 2  # samples on a border


def test_frozen_features_are_those_of_the_start(tmp_path: Path) -> None:
    """The frames of a clip one by one through the released network, resized by another library."""
    catalog = write_set(tmp_path, {"train": samples_of(bright, 2, 2, 0)})
    row = open_manifest(load_catalog(catalog).manifest_path("mine", "train")).row(0)
    model = load_release(find_release("efficientnet_lite0")).eval()
    with av.open(str(tmp_path / "train0.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with torch.inference_mode():
        wanted = []
        for picture in frames:
            small = Image.fromarray(picture).resize((128, 128), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1)[None]
            wanted.append(model.forward_features(model.normalize(pixels), ((1, 1),))[0].numpy())
    features = start_features(row, "video")["frozen"].reshape(4, 1280)
    similar = np.corrcoef(features, wanted)[:4, 4:]
    assert similar.argmax(1).tolist() == [2, 6, 10, 14]  # the middles of four quarters of 16 frames
    assert similar.max(1).min() > 0.95  # the filters of torch and Pillow round otherwise


# --- over folds -------------------------------------------------------------------------------------------------------


def test_every_fold_is_predicted_by_a_fit_to_the_others(tmp_path: Path) -> None:
    catalog = write_set(tmp_path, {"train": samples_of(bright, 30, 3, 0)})
    manifest = open_manifest(load_catalog(catalog).manifest_path("mine", "train"))
    folds = [np.arange(first, 30, 4) for first in range(4)]
    found = fold_baselines(manifest, folds, 0)
    features = features_of(manifest, manifest.usable, 0)
    for name in ("thumbnail", "motion"):
        right = []
        for fold in folds:
            others = np.setdiff1d(np.arange(30), fold)
            predicted, _ = fit_and_predict(
                features.values[name][others], manifest.labels[others], features.values[name][fold]
            )
            right += (predicted == manifest.labels[fold]).tolist()
        assert found[name]["top1"] == pytest.approx(np.mean(right))
    assert (found["folds"], found["n"], found["chance"]) == (4, 30, pytest.approx(1 / 3))
    assert found["thumbnail"]["top1"] == 1
    assert sizes(found) == "30 in 4 folds"


def test_files_of_folds_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    catalog = write_set(tmp_path, {"train": samples_of(bright, 12, 3, 0)})
    (tmp_path / "train4.mp4").write_bytes(b"lost")
    manifest = open_manifest(load_catalog(catalog).manifest_path("mine", "train"))
    found = fold_baselines(manifest, [np.arange(6), np.arange(6, 12)], 0)
    assert (found["n"], found["n_evaluated"], found["unreadable"]) == (11, 12, {"all": 1})


# --- what may be used -------------------------------------------------------------------------------------------------


def test_the_labels_that_are_measured_do_not_change_the_fit(tmp_path: Path) -> None:
    """All are predicted right before, so with other labels exactly those are right that kept theirs."""
    splits = {name: samples_of(bright, 24, 3, seed) for seed, name in enumerate(("train", "val"))}
    catalog = write_set(tmp_path, splits)
    assert measured(catalog)["thumbnail"]["top1"] == 1
    lines = (tmp_path / "val.csv").read_text(encoding="utf-8").splitlines()
    before = [line.partition(",")[2] for line in lines[1:]]
    after = np.random.default_rng(1).permutation(before).tolist()
    rows = [f"val{number}.mp4,{label}" for number, label in enumerate(after)]
    (tmp_path / "val.csv").write_text("\n".join([lines[0], *rows]) + "\n", encoding="utf-8")
    index(catalog, workers=0)
    kept = np.mean([one == other for one, other in zip(before, after)])
    assert 0 < kept < 1
    assert measured(catalog)["thumbnail"]["top1"] == pytest.approx(kept)


def test_only_rows_that_were_read_are_measured(bright_set: Path) -> None:
    found = measured(bright_set, rows=np.array([3, 4, 9]))
    assert (found["n"], found["n_evaluated"], found["prior"]["top1"]) == (3, 3, pytest.approx(2 / 3))


def test_classes_that_are_not_evaluated_are_neither_fitted_nor_measured(bright_set: Path) -> None:
    found = measured(bright_set, relabel=np.array([-1, 0, 1]))
    assert (found["chance"], found["train_rows"], found["n"], found["thumbnail"]["top1"]) == (1 / 2, 24, 24, 1)


def test_files_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    catalog = write_set(tmp_path, {name: samples_of(bright, 12, 3, seed) for seed, name in enumerate(("train", "val"))})
    for name in ("train1.mp4", "val0.mp4", "val7.mp4"):
        (tmp_path / name).write_bytes(b"lost")
    for _ in range(2):  # from the files, and from the cache
        found = measured(catalog)
        assert found["unreadable"] == {"train": 1, "val": 2}
        assert (found["train_rows"], found["n"], found["n_evaluated"]) == (11, 10, 12)


@pytest.mark.parametrize(
    ("column", "split", "part"),
    [("labels", "val", "several classes"), ("label", "train", "fitted to train")],
)
def test_where_they_do_not_apply(make_set: MakeSet, column: str, split: str, part: str) -> None:
    catalog = make_set({"a.mp4": "x", "b.mp4": "y"}, column=column)
    found = baselines(load_catalog(catalog), "mine", split, 0)
    assert part in found["why_not"]
    assert not {"prior", "thumbnail", "motion"} & set(found)


def test_a_set_without_a_train_split(tmp_path: Path) -> None:
    catalog = write_set(tmp_path, {"val": samples_of(bright, 4, 2, 0)})
    assert "no train split" in measured(catalog)["why_not"]


def test_images_have_no_motion(make_set: MakeSet) -> None:
    found = baselines(load_catalog(make_set({"a.png": "x", "b.png": "y", "c.png": "y"})), "mine", "val", 0)
    assert "motion" not in found
    assert found["thumbnail"]["top1"] == 1  # the same files are train and val


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_cache_serves_until_the_manifest_changes(tmp_path: Path) -> None:
    catalog = write_set(tmp_path, {name: samples_of(bright, 12, 3, seed) for seed, name in enumerate(("train", "val"))})
    first = measured(catalog)
    manifest = load_catalog(catalog).manifest_path("mine", "val")
    assert manifest.with_suffix(".baselines.npz").is_file()
    kept = (tmp_path / "val0.mp4").read_bytes()
    (tmp_path / "val0.mp4").write_bytes(b"lost")
    assert measured(catalog) == first
    (tmp_path / "val0.mp4").write_bytes(kept)
    lines = (tmp_path / "val.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "val.csv").write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    index(catalog, workers=0)
    (tmp_path / "val0.mp4").write_bytes(b"lost")
    changed = measured(catalog)
    assert (changed["n_evaluated"], changed["unreadable"]["val"]) == (11, 1)


def test_rows_that_the_cache_lacks_are_added(bright_set: Path, tmp_path: Path) -> None:
    manifest = open_manifest(load_catalog(bright_set).manifest_path("mine", "val"))
    cache_file(manifest).unlink(missing_ok=True)
    some, every = np.array([2, 5]), np.arange(8)
    first = features_of(manifest, some, 0)
    whole = features_of(manifest, every, 0)
    assert (first.rows.tolist(), whole.rows.tolist()) == (some.tolist(), every.tolist())
    assert np.array_equal(whole.values["thumbnail"][some], first.values["thumbnail"])
    cache_file(manifest).unlink()
    again = features_of(manifest, every, 0)
    assert all(np.array_equal(again.values[name], whole.values[name]) for name in ("thumbnail", "motion"))


def test_a_damaged_cache_is_written_again(bright_set: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wanted = measured(bright_set)
    path = load_catalog(bright_set).manifest_path("mine", "val").with_suffix(".baselines.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert measured(bright_set) == wanted
    assert str(path) in capfd.readouterr().err
    assert measured(bright_set) == wanted
    assert str(path) not in capfd.readouterr().err


def test_twice_the_same(bright_set: Path) -> None:
    assert measured(bright_set) == measured(bright_set)


def test_a_large_split_is_sampled_by_class() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 1000, p=[0.7, 0.2, 0.08, 0.02])
    rows = np.arange(1000) * 3
    chosen, each = sample_by_class(rows, labels, 200)
    counts = np.bincount(labels[chosen // 3], minlength=4)
    assert each is not None
    assert counts.tolist() == np.minimum(np.bincount(labels), each).tolist()
    assert counts.sum() <= 200 < np.minimum(np.bincount(labels), each + 1).sum()
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, sample_by_class(rows, labels, 200)[0])
    assert sample_by_class(rows, labels, 1000) == (rows, None)


# --- a model beside them ----------------------------------------------------------------------------------------------

FOUND = {"chance": 0.25, "prior": {"top1": 0.3}, "thumbnail": {"top1": 0.5}}


@pytest.mark.parametrize(
    ("top1", "low", "names"),
    [
        (0.8, 0.6, []),
        (0.5, 0.4, []),
        (0.4, 0.3, ["thumbnail"]),
        (0.28, 0.25, ["chance", "prior", "thumbnail"]),
    ],
)
def test_what_a_model_is_not_above(top1: float, low: float, names: list[str]) -> None:
    assert shortfalls(FOUND, top1, low) == names


def test_the_advice_names_what_can_be_typed() -> None:
    line = advice("mine", ["chance", "motion"], Path("my sets/catalog.yaml"), 400)
    for part in ("mine: not above chance, below motion", "400", "--data mine", "--steps 1600"):
        assert part in line
    assert "'my sets/catalog.yaml'" in line
    (start,) = re.findall(r"cover add (\S+) --data", line)
    assert start == "START" or known_start(start) is not None


def test_an_untrained_model_is_told_apart(trained: Path, sandbox: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = evaluate_release(
        trained, sandbox, "val", ["ssv2", "imagenet"], "1x1", ["plain", "single"], "cpu", 0, 0, with_baselines=True
    )
    assert [(row["variant"], "baselines" in row) for row in results] == [
        ("plain", True),
        ("single", False),
        ("plain", True),
    ]
    for row in (row for row in results if "baselines" in row):
        found = row["baselines"]
        assert found == {
            **baselines(load_catalog(sandbox), row["dataset"], "val", 0),
            "behind": shortfalls(found, row["top1"], row["top1_interval"]["low"]),
        }
        assert found["n"] == row["n_read"]
    json.dumps(results)
    capfd.readouterr()
    print_results(results)
    out, err = capfd.readouterr()
    assert {"ssv2 val", "imagenet val"} <= {line[:12].rstrip() for line in out.splitlines()}
    behind = [row["dataset"] for row in results if row.get("baselines", {}).get("behind")]
    assert "ssv2" in behind  # four steps
    assert all(re.search(rf"cover add \S+ --data {name} ", err) for name in behind)


@pytest.mark.full
def test_the_figures_of_real_clips(test_data: Path, tmp_path: Path) -> None:
    """UT-Interaction's split: about 40 % from a thumbnail and 60 to 80 % from motion, of 37 clips in 6 classes."""
    catalog = tmp_path / "catalog.yaml"
    lists = "{train: train.txt, val: test.txt}"
    entry = f"format: list, root: {test_data}/utinteraction6, media: video, dev: 0, annotations: {lists}"
    catalog.write_text(f"mine: {{{entry}}}\n", encoding="utf-8")
    index(catalog, workers=0)
    found = measured(catalog)
    assert (found["train_rows"], found["n"]) == (83, 37)
    assert 0.3 < found["thumbnail"]["top1"] < 0.55
    assert 0.55 < found["motion"]["top1"] < 0.85
