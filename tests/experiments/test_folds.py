"""Folds of a run: every sample is measured once, by a run that has not seen its group, and nothing is done twice."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cover.cli import main
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.evaluation.evaluate import evaluate_release
from cover.evaluation.statistics import proportion
from cover.model.release import find_release, read_config
from cover.training.recipe import Data, Recipe, Start
from cover.training.train import train

Listed = Sequence[tuple[str, str, str]]  # path, class, group
# 24 images of 2 classes in 6 groups
LISTED: Listed = [(f"{number}.png", "ab"[number % 2], f"take {number // 4}") for number in range(24)]


def write_set(folder: Path, listed: Listed, name: str = "mine", absent: Sequence[str] = (), **keys: object) -> Path:
    """An indexed csv data set of small images, in two given splits; returns its catalog."""
    root = folder / name
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for path, _, _ in listed:
        if path not in absent:
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / path)
    with (root / "list.csv").open("w", newline="", encoding="utf-8") as file:
        splits = ["val" if number % 3 == 2 else "train" for number in range(len(listed))]
        rows = [(*sample, split) for sample, split in zip(listed, splits, strict=True)]
        csv.writer(file).writerows([("path", "class", "take", "split"), *rows])
    entry = {"format": "csv", "root": name, "annotations": "{train: list.csv, val: list.csv}", "dev": 0, **keys}
    with (folder / "catalog.yaml").open("a", encoding="utf-8") as catalog:
        catalog.write(f"{name}: {{{', '.join(f'{key}: {value}' for key, value in entry.items())}}}\n")
    index(folder / "catalog.yaml", 0, [name])
    return folder / "catalog.yaml"


def train_on(catalog: Path, out: Path, *sets: str, **changes: Any) -> Path:
    data = Data(list(sets or ["mine"]), str(catalog), frames=1)
    return train(Recipe(data, str(out), steps=2, batch=6, workers=0, evaluate_every=-1, **changes))


@pytest.fixture
def run_cover(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """run_cover("evaluate", ...) -> exit code, and what was said on stderr."""

    def run(*words: object) -> tuple[int, str]:
        code = main([str(word) for word in (*words, "--workers", 0)])
        return code, capsys.readouterr().err

    return run


def weights_of(folder: Path) -> dict[str, int]:
    files = sorted(folder.rglob("model.safetensors"))
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}


def test_every_sample_is_measured_once_by_a_run_without_its_group(
    tmp_path: Path, run_cover: Callable[..., tuple[int, str]]
) -> None:
    catalog = write_set(tmp_path, LISTED, group="take")
    run = train_on(catalog, tmp_path / "run")
    command = ("evaluate", run, "--catalog", catalog, "--folds", 2, "--json", tmp_path / "folds.json")
    assert run_cover(*command)[0] == 0
    (result,) = json.loads((tmp_path / "folds.json").read_text(encoding="utf-8"))
    answers = result["answers"]
    assert sorted(answer["sample_id"] for answer in answers) == sorted(path for path, _, _ in LISTED)
    assert {(answer["sample_id"], answer["class"], answer["group"]) for answer in answers} == set(LISTED)

    right = [answer["class"] == answer["predicted"] for answer in answers]
    assert result["top1"] == pytest.approx(np.mean(right))
    interval = proportion(right, [answer["group"] for answer in answers])
    assert result["top1_interval"] == {"low": interval.low, "high": interval.high, "groups": 6}
    assert (result["n_read"], result["n_listed"], result["folds"]) == (24, 24, 2)

    for fold, own in enumerate(result["by_fold"], start=1):
        folder = run / f"folds/fold{fold}of2"
        groups = {
            split: {row.group for row in open_manifest(folder / f"data/mine-{split}.arrow").rows()}
            for split in ("train", "val")
        }
        assert not groups["train"] & groups["val"]
        assert len(groups["train"] | groups["val"]) == 6
        assert groups["val"] == {answer["group"] for answer in answers if answer["fold"] == fold}
        (value,) = evaluate_release(folder / "run", folder / "catalog.yaml", "val", (), None, ("plain",), "cpu", 0, 0)
        assert (own["top1"], own["n_read"]) == (value["top1"], value["n_read"])

    # Again: nothing is trained. After the loss of a fold: that one alone.
    before, first = weights_of(run / "folds"), (tmp_path / "folds.json").read_bytes()
    assert run_cover(*command)[0] == 0
    assert (weights_of(run / "folds"), (tmp_path / "folds.json").read_bytes()) == (before, first)
    shutil.rmtree(run / "folds/fold2of2")
    assert run_cover(*command)[0] == 0
    after = weights_of(run / "folds")
    assert {name for name in after if after[name] != before[name]} == {
        name for name in before if name.startswith("fold2of2")
    }
    assert (tmp_path / "folds.json").read_bytes() == first

    # With other rows the folds are others.
    (tmp_path / "mine/0.png").unlink()
    index(catalog, 0)
    code, said = run_cover(*command)
    assert code == 2
    assert "fold1of2: was begun with other rows" in said
    assert weights_of(run / "folds") == after


def test_a_file_that_cannot_be_read_is_counted(tmp_path: Path, run_cover: Callable[..., tuple[int, str]]) -> None:
    catalog = write_set(tmp_path, LISTED, absent=["5.png"], group="take")
    run = train_on(catalog, tmp_path / "run")
    out = tmp_path / "folds.json"
    assert run_cover("evaluate", run, "--catalog", catalog, "--folds", 2, "--json", out)[0] == 1
    (result,) = json.loads(out.read_text(encoding="utf-8"))
    assert (result["n_read"], result["n_listed"]) == (23, 24)
    assert result["top1_listed"] == pytest.approx(result["top1"] * 23 / 24)


def test_adding_a_head_by_folds(tmp_path: Path, run_cover: Callable[..., tuple[int, str]]) -> None:
    old = [(f"{number}.png", "xy"[number % 2], str(number)) for number in range(12)]
    release = train_on(write_set(tmp_path, old, "old"), tmp_path / "release", "old")
    catalog = write_set(tmp_path, LISTED, group="take")
    out = tmp_path / "run"
    command = ("add", release, "--data", "mine", "--catalog", catalog, "--folds", 3, "--epochs", 1, "--out", out)
    assert run_cover(*command, "--how", "replay", "--json", tmp_path / "results.json")[0] == 0
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    new = results["new"]
    assert (new["dataset"], new["split"], new["n_read"], len(new["answers"])) == ("mine", "3 folds", 24, 24)
    assert new["low"] <= new["value"] == new["top1"] <= new["high"]
    assert results["old"][0]["dataset"] == "old"
    assert json.loads((out / "add/results.json").read_text(encoding="utf-8")) == results
    config = read_config(find_release(out))
    assert {head.name for head in config.heads} == {"mine", "old"}
    assert config.datasets["mine"]["train_samples"] == 24, "the final head is trained on all samples"
    assert [
        read_config(find_release(out / f"add/folds/fold{fold}of3/run")).datasets["mine"]["train_samples"]
        for fold in (1, 2, 3)
    ] == [16, 16, 16]


def refused(run_cover: Callable[..., tuple[int, str]], *words: object) -> str:
    code, said = run_cover(*words)
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("cover ")]
    return line


def test_refused_folds_of_a_run(tmp_path: Path, run_cover: Callable[..., tuple[int, str]]) -> None:
    write_set(tmp_path, LISTED, group="take")
    torn = [*LISTED, ("x.png", "c", "take 9"), ("y.png", "c", "take 9")]
    catalog = write_set(tmp_path, torn, "torn", group="take")
    run = train_on(catalog, tmp_path / "run", "mine", "torn")
    folds = ("--catalog", catalog, "--folds", 3)
    assert "trains mine, torn; name the data sets" in refused(run_cover, "evaluate", run, *folds)
    assert "does not train other" in refused(run_cover, "evaluate", run, "other", *folds)
    assert "cannot go with --split" in refused(run_cover, "evaluate", run, *folds, "--split", "val")
    assert "cannot go with --per-class" in refused(run_cover, "evaluate", run, *folds, "--per-class", 3)
    assert "is no run folder" in refused(run_cover, "evaluate", find_release(run), *folds)
    line = refused(run_cover, "evaluate", run, "torn", *folds)
    assert 'torn: groups put the class "c" into one split alone: all its 2 samples are in the group "take 9"' in line
    line = refused(run_cover, "evaluate", run, "mine", "--catalog", catalog, "--folds", 7)
    assert "mine: 6 groups cannot make 7 folds" in line
    assert not (run / "folds").exists()

    further = train_on(catalog, tmp_path / "further", "mine", start=Start(str(run)))
    assert "was trained on mine" in refused(run_cover, "evaluate", further, *folds)
    assert not (further / "folds").exists()


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([(path, "a", group) for path, _, group in LISTED], 'all 24 samples are of the class "a"'),
        ([*LISTED, ("one.png", "c", "take 1")], 'the class "c" has one sample'),
        ([(path, label, "one take") for path, label, _ in LISTED], "into one split alone"),
    ],
)
def test_refused_folds_of_a_new_head(
    tmp_path: Path, run_cover: Callable[..., tuple[int, str]], listed: Listed, message: str
) -> None:
    old = [(f"{number}.png", "xy"[number % 2], str(number)) for number in range(12)]
    release = train_on(write_set(tmp_path, old, "old"), tmp_path / "release", "old")
    catalog = write_set(tmp_path, listed, group="take")
    command = ("add", release, "--data", "mine", "--catalog", catalog, "--out", tmp_path / "run")
    assert message in refused(run_cover, *command, "--folds", 3)
    assert "cannot go with --compare" in refused(run_cover, *command, "--folds", 3, "--compare")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "group"), [("yoga6", "group"), ("utinteraction6", "sequence")])
def test_folds_of_real_clips(
    test_data: Path, tmp_path: Path, run_cover: Callable[..., tuple[int, str]], name: str, group: str
) -> None:
    """Every fourth clip, so that the walk is short; the groups are those of the data set's own list."""
    with (test_data / name / "index.csv").open(encoding="utf-8") as file:
        listed = [(row["path"], row["class"], row[group]) for row in csv.DictReader(file)][::4]
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("path", "class", "g"), *listed])
    entry = f"format: csv, root: {test_data / name}, media: video, annotations: {{train: {tmp_path}/list.csv}}"
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(f"mine: {{{entry}, group: g, dev: 0, views: 1x1}}\n", encoding="utf-8")
    index(catalog, 0)
    data = Data(["mine"], str(catalog), frames=2)
    run = train(Recipe(data, str(tmp_path / "run"), steps=1, batch=4, workers=0, evaluate_every=-1))
    assert run_cover("evaluate", run, "--catalog", catalog, "--folds", 2, "--json", tmp_path / "folds.json")[0] == 0
    (result,) = json.loads((tmp_path / "folds.json").read_text(encoding="utf-8"))
    assert {(answer["sample_id"], answer["class"], answer["group"]) for answer in result["answers"]} == set(listed)
    folds_of: dict[str, set[int]] = {}
    for answer in result["answers"]:
        folds_of.setdefault(answer["group"], set()).add(answer["fold"])
    assert all(len(folds) == 1 for folds in folds_of.values())
