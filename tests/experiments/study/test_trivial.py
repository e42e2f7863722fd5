"""Trivial methods of a study are those of `baselines` on the clips of its arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.evaluation.baselines import baselines
from cover.experiments.study.study_file import Size, Study
from cover.experiments.study.subsets import SubsetBuilder
from cover.experiments.study.trivial import trivial_methods


def rows_of(sandbox: Path, folder: Path, targets: Sequence[str], **more: Any) -> list[dict[str, Any]]:
    keys = {"sizes": {"whole": Size(1)}, "seeds": [0], "margin": 0.05, "arms": ["alone"], **more}
    study = Study(str(sandbox), str(folder), targets=list(targets), videos=list(targets), **keys)
    return trivial_methods(study, SubsetBuilder(load_catalog(sandbox), folder / "data", "val", 0.1), 0)


def test_the_whole_train_split(sandbox: Path, tmp_path: Path) -> None:
    rows = rows_of(sandbox, tmp_path, ["kinetics", "ssv2"])
    assert [row["dataset"] for row in rows] == ["kinetics", "ssv2"]
    for row in rows:
        found = baselines(load_catalog(sandbox), row["dataset"], "val", 0)
        assert row["n"] == found["n"]
        for name in ("prior", "thumbnail", "motion"):
            assert row[name] == {key: pytest.approx(found[name][key]) for key in ("top1", "low", "high")}
            assert row[name]["top1"] <= row[row["best"]]["top1"]


def test_with_folds_every_clip_is_measured_once(sandbox: Path, tmp_path: Path) -> None:
    (row,) = rows_of(sandbox, tmp_path, ["kinetics"], folds={"kinetics": 3})
    catalog = load_catalog(sandbox)
    manifests = [
        open_manifest(catalog.manifest_path("kinetics", split)) for split in ("train", "val")
    ]  # too few for dev
    assert row["n"] == sum(len(manifest.usable) for manifest in manifests)


def test_sizes_have_rows_of_their_own(sandbox: Path, tmp_path: Path) -> None:
    rows = rows_of(sandbox, tmp_path, ["kinetics"], sizes={"whole": Size(1), "half": Size(1, 0.5)})
    assert [row["size"] for row in rows] == ["whole", "half"]
