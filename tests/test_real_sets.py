"""Odd and broken files beside real clips: the way from index to evaluation ends normally, and every file that is not
read is counted.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cover.datasets.index import index
from cover.evaluation.evaluate import evaluate_release
from cover.training.recipe import Data, Recipe
from cover.training.train import train


@pytest.fixture
def mixed(test_data: Path, tmp_path: Path) -> Path:
    """A catalog of utinteraction6 and of every torture file, the latter under classes in turn, in train and val."""
    rows = [
        (f"utinteraction6/{line.rpartition(' ')[0]}", line.rpartition(" ")[2], split)
        for split, name in (("train", "train.txt"), ("val", "test.txt"))
        for line in (test_data / "utinteraction6" / name).read_text(encoding="utf-8").splitlines()
    ]
    with (test_data / "torture/manifest.csv").open(encoding="utf-8") as file:
        odd = [f"torture/{row['path']}" for row in csv.DictReader(file)]
    rows += [(path, str(number % 6), split) for number, path in enumerate(odd) for split in ("train", "val")]
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("path", "class", "split"), *rows])
    catalog = tmp_path / "catalog.yaml"
    lists = f"{{train: {tmp_path}/list.csv, val: {tmp_path}/list.csv}}"
    catalog.write_text(
        f"mixed: {{format: csv, root: {test_data}, media: video, dev: 0, annotations: {lists}}}\n", encoding="utf-8"
    )
    return catalog


def test_torture_files_among_real_clips(mixed: Path, tmp_path: Path) -> None:
    indexed = {result["split"]: result for result in index(mixed, workers=0)}
    for result in indexed.values():
        assert result["listed"] == sum(result[state] for state in ("ok", "missing", "unreadable", "too_short"))
        assert result["unreadable"] + result["too_short"] == len(result["unusable"]) > 5

    listed = indexed["train"]["listed"]
    recipe = Recipe(
        Data(["mixed"], str(mixed), frames=2), str(tmp_path / "run"), steps=12, batch=12, workers=0, evaluate_every=-1
    )
    log = [json.loads(line) for line in (train(recipe) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    metadata = log[0]["datasets"]["mixed"]
    assert metadata["train_samples"] + sum(metadata["not_ok"].values()) == listed
    windows = [line for line in log if line["event"] == "train"]
    assert windows[-1]["seen"]["mixed"] == 144
    assert sum(line.get("files_damaged", 0) for line in windows) >= 1

    (value,) = evaluate_release(tmp_path / "run", mixed, "val", (), None, ("plain",), "cpu", 0, 0)
    assert value["n_listed"] == indexed["val"]["listed"]
    assert value["n_read"] == indexed["val"]["ok"] == value["n_listed"] - sum(value["not_ok"].values())
    assert value["n_notes"] == 2  # of the files cut short, each named
    assert value["top1_listed"] < value["top1"] or value["top1"] == 0
