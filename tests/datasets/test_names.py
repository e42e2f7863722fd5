"""Data sets and classes whose names another YAML reader takes for numbers, truth values or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cover import config
from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.experiments.study.study_file import Study

SETS = ("010", "1e3", "yes", "null")
CLASSES = ("010", "1e3", "no", "null")
CATALOG = """\
010: {format: csv, root: 010, media: image, dev: 3e-1}
1e3: {format: list, root: 1e3, media: image, dev: 0.3, classes: classes.txt}
yes: {format: folder, root: yes, dev: .3}
null: {format: folder, root: "null", annotations: {train: train, val: val}, dev: 3E-1}
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Four data sets of eight training and four validation images, two and one of each class; indexed."""
    rng = np.random.default_rng(0)
    for name in SETS:
        root = tmp_path / name
        for split, count in (("train", 2), ("val", 1)):
            rows = [(f"{split}/{label}/{number}.png", label) for label in CLASSES for number in range(count)]
            for file, _ in rows:
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(root / file)
            (root / f"{split}.csv").write_text("path,label\n" + "".join(f"{file},{label}\n" for file, label in rows))
            (root / f"{split}.txt").write_text("".join(f"{file} {label}\n" for file, label in rows))
        (root / "classes.txt").write_text("".join(f"{label}\n" for label in CLASSES))
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    assert main(["index", str(tmp_path / "catalog.yaml"), "--workers", "0"]) == 0
    return tmp_path / "catalog.yaml"


def test_they_are_indexed_under_their_names(catalog: Path) -> None:
    loaded = load_catalog(catalog)
    assert tuple(loaded.specs) == SETS
    for name, spec in loaded.specs.items():
        assert (spec.dev, spec.root) == (0.3, catalog.parent / name)
        sizes = {split: len(open_manifest(loaded.manifest_path(name, split))) for split in spec.splits}
        assert (sizes["train"] + sizes["dev"], sizes["val"]) == (8, 4)
        assert sizes["dev"] > 0
        assert open_manifest(loaded.manifest_path(name, "train")).classes.names == CLASSES


@pytest.mark.parametrize("heads", ["", "  heads: {no: [010, yes]}\n"], ids=["own heads", "a shared head"])
def test_they_are_mixed_trained_and_evaluated(catalog: Path, heads: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = catalog.parent / "run"
    (catalog.parent / "recipe.yaml").write_text(
        f"data:\n  sets: [010, 1e3, yes, null]\n  catalog: {catalog}\n  weights: "
        f"{{010: 1, 1e3: 2e0, yes: 1, null: 1}}\n{heads}"
        f"out: {run}\nsteps: 1\nbatch: 8\nworkers: 0\nmodel: {{size: 16}}\n"
    )
    arguments = ["--data.loss_weights", "{yes: 2, null: 5e-1}", "--augment.sets.yes.colour", "1e-1"]
    assert main(["train", str(catalog.parent / "recipe.yaml"), *arguments]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--catalog", str(catalog), "--workers", "0", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["dataset"]: row["n_read"] for row in rows} == dict.fromkeys(SETS, 4)
    assert main(["train", str(run / "recipe.yaml"), "--resume"]) == 0  # the recipe that it wrote is the same


def test_they_are_prepared(catalog: Path) -> None:
    fast = catalog.parent / "fast"
    for names in (["010", "1e3"], ["yes", "null"]):  # the second run reads the catalog of the first
        assert main(["prepare", str(catalog), "--out", str(fast), "--workers", "0", *names]) == 0
    assert tuple(load_catalog(fast / "catalog.yaml").specs) == SETS


def test_a_study_names_them(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "catalog: c\nout: o\ntargets: [010, yes]\nvideos: [010, yes, 1e3]\nseeds: [0]\nmargin: 2e-1\nfolds: {010: 2}\n"
        "sizes: {1e3: {epochs: 1e-1}}\nlrs: [1e-3]\nweights: {null: 1e-1}\n"
    )
    study = config.load(Study, tmp_path / "study.yaml")
    assert (study.targets, study.videos, study.folds, study.weights) == (
        ["010", "yes"],
        ["010", "yes", "1e3"],
        {"010": 2},
        {"null": 0.1},
    )
    assert (study.margin, study.sizes["1e3"].epochs, study.lrs) == (0.2, 0.1, [1e-3])
