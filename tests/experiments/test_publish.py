"""What a run folder says of its accuracy, for a model card, also on a machine without its data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.evaluation.answers import Answers, write_answers
from cover.experiments.publish import results_of_run
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of `cover train` with one data set of pictures, three of four right."""
    for number in range(4):
        place = tmp_path / "pictures" / "train" / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (60 * number, 0, 0)).save(place / f"{number}.png")
    run = tmp_path / "run"
    run.mkdir()
    (run / "catalog.yaml").write_text("mine: {format: folder, root: ../pictures, dev: 0}\n")
    index(run / "catalog.yaml", 0)
    manifest = load_catalog(run / "catalog.yaml").manifest("mine", "train")
    sets = {"mine": {"media": "image", "sampling": "segments", "views": "1x1"}}
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("mine", ("a", "b")),)
    )
    save_release(run, model, {"step": 1, "frames": 2, "datasets": sets})
    truth = manifest.labels[manifest.usable].tolist()
    said = [1 - truth[0], *truth[1:]]
    answers = Answers(
        "mine",
        "train",
        str(manifest.path),
        manifest.digest(),
        ["a", "b"],
        5,
        manifest.usable.tolist(),
        truth,
        said,
        [0.9] * 4,
    )
    write_answers(run, [answers])
    base = {"chance": 0.5, "thumbnail": {"top1": 1.0, "low": 0.5, "high": 1.0}, "behind": ["thumbnail"]}
    (run / "baselines.json").write_text(json.dumps({"mine": base}))
    return run


def test_results_of_a_run(run: Path) -> None:
    (result,) = results_of_run(run)
    assert (result.value, result.n_read, result.n_listed, result.measured) == (0.75, 4, 5, "train")
    assert result.low is not None
    assert result.high is not None
    assert result.low < 0.75 < result.high
    assert (result.media, result.frames, result.views) == ("image", 1, "1x1")
    assert (dict(result.baselines), result.behind) == ({"chance": 0.5, "thumbnail": 1.0}, ("thumbnail",))


@pytest.mark.parametrize("gone", ["pictures", "run/manifests"])
def test_a_run_without_its_data(run: Path, gone: str) -> None:
    """The accuracy is in the folder; its interval needs the manifest, which says what comes from one source."""
    shutil.rmtree(run.parent / gone)
    (result,) = results_of_run(run)
    assert (result.value, result.low is None) == (0.75, gone == "run/manifests")


def test_a_release_alone(run: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "release").mkdir(exist_ok=True)
        shutil.copy(run / name, tmp_path / "release")
    assert results_of_run(tmp_path / "release") == []
