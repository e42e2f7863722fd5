"""A release may state the head that answers where none is named; everything that picks heads follows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cover.cli import main
from cover.errors import UserError
from cover.inference.explain import ExplainOptions, explanations
from cover.inference.export.graph import load_heads
from cover.inference.predictor import Predictor
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import read_config, save_release

OWN, START = Head("own", ("serve", "smash")), Head("start", ("cat", "dog", "cow"))
VIEWS = {"media": "video", "sampling": "segments", "views": "1x1"}


@pytest.fixture
def release(tmp_path: Path) -> Callable[..., Path]:
    """Write a release with two heads; arguments are further metadata."""

    def write(**metadata: object) -> Path:
        config = TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16)
        torch.manual_seed(0)
        sets = {head.name: VIEWS for head in (OWN, START)}
        save_release(tmp_path / "release", CoVeR(config, (START, OWN)), {"frames": 2, "datasets": sets, **metadata})
        return tmp_path / "release"

    return write


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)).save(path)
    return path


def asked(release: Path, photo: Path, tmp_path: Path, *more: str) -> list[str]:
    """The heads in a row of `cover predict`."""
    words = ["predict", release, photo, "--json", tmp_path / "rows.json", *more]
    assert main([str(word) for word in words]) == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    return list(row["heads"])


def test_it_answers_alone(release: Callable[..., Path], photo: Path, tmp_path: Path) -> None:
    folder = release(default_head="own")
    predictor = Predictor.load(folder)
    found = predictor(photo)
    assert list(found) == ["own"]
    assert [name for name, _ in found.top(2)] == [name for name, _ in predictor(photo, ["own", "start"])["own"].top(2)]
    assert asked(folder, photo, tmp_path) == ["own"]
    _, explained = explanations(predictor, str(photo), ExplainOptions())
    assert [each.prediction.head for each in explained] == ["own"]
    assert [head.name for head in load_heads(folder, []).heads] == ["own"]


def test_the_others_answer_where_they_are_named(release: Callable[..., Path], photo: Path, tmp_path: Path) -> None:
    folder = release(default_head="own")
    assert asked(folder, photo, tmp_path, "--head", "start") == ["start"]
    assert asked(folder, photo, tmp_path, "--head", "start", "--head", "own") == ["start", "own"]
    assert [head.name for head in load_heads(folder, ["start"]).heads] == ["start"]


def test_a_class_of_another_head_is_explained_where_that_is_named(release: Callable[..., Path], photo: Path) -> None:
    predictor = Predictor.load(release(default_head="own"))
    with pytest.raises(UserError, match='own has no class "cat"; --head start has it'):
        explanations(predictor, str(photo), ExplainOptions(class_name="cat"))
    _, (only,) = explanations(predictor, str(photo), ExplainOptions(("start",), "cat"))
    assert (only.prediction.head, only.class_name) == ("start", "cat")


def test_a_release_without_one_answers_with_all(release: Callable[..., Path], photo: Path, tmp_path: Path) -> None:
    folder = release()
    assert asked(folder, photo, tmp_path) == ["start", "own"]
    assert [head.name for head in load_heads(folder, []).heads] == ["start", "own"]


def test_its_features_are_over_its_views(release: Callable[..., Path], tmp_path: Path) -> None:
    sets = {"start": VIEWS, "own": {**VIEWS, "views": "2x1"}}
    predictor = Predictor.load(release(default_head="own", datasets=sets))
    clip = np.random.default_rng(0).integers(0, 256, (8, 24, 32, 3), np.uint8)
    features = [predictor.features(clip, head, fps=8) for head in (None, "own", "start")]
    np.testing.assert_array_equal(features[0], features[1])
    assert not np.array_equal(features[1], features[2])


def test_a_release_that_states_a_head_that_it_lacks(release: Callable[..., Path]) -> None:
    folder = release(default_head="other")
    with pytest.raises(UserError, match=r'config\.json: metadata\.default_head: .*"other"'):
        read_config(folder)
