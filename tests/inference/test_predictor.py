"""Predictions are evaluation's own scores, for videos and images; a bad file is one line."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cover import CoVeR
from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.errors import UserError
from cover.evaluation import view_reader
from cover.evaluation.evaluate import evaluate
from cover.evaluation.metrics import TopK
from cover.evaluation.protocol import find_tasks
from cover.inference.predictor import Predictor
from cover.media.decode import MediaError
from cover.media.sampling import Views
from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.heads import Head
from cover.model.release import load_release, save_release

MakeSet = Callable[..., Path]


def first_file(sandbox: Path, name: str) -> str:
    return open_manifest(load_catalog(sandbox).manifest_path(name, "val")).row(0).path


def evaluated_scores(
    model: CoVeR, catalog: Path, name: str, frames: int, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """What evaluation counts, sample by sample."""
    visited: list[torch.Tensor] = []
    monkeypatch.setattr(view_reader, "BATCH_FRAMES", 1)
    with monkeypatch.context() as patch:
        patch.setattr(TopK, "update", lambda self, scores, labels: visited.append(scores))
        (task,) = find_tasks(load_catalog(catalog), model, frames, "val", [name])
        evaluate(model, task, "cpu", 0)
    return torch.cat(visited).numpy()


def test_the_likeliest_classes_of_every_head(trained: Path, sandbox: Path) -> None:
    predictor = Predictor.load(trained)
    for name in ("ssv2", "imagenet"):
        result = predictor(first_file(sandbox, name))
        assert list(result) == ["kinetics", "ssv2", "moments", "imagenet"]
        for head, prediction in result.items():
            classes = open_manifest(load_catalog(sandbox).manifest_path(head, "val")).classes.names
            assert prediction.classes == classes
            assert prediction.scores.sum() == pytest.approx(1, abs=1e-5)
            top = prediction.top(3)
            assert [share for _, share in top] == sorted(prediction.scores.tolist(), reverse=True)[:3]
            assert [classes.index(word) for word, _ in top] == np.argsort(-prediction.scores, kind="stable")[
                :3
            ].tolist()
            assert len(prediction.top(99)) == len(classes)


@pytest.mark.parametrize("name", ["kinetics", "ssv2", "moments", "imagenet"])
def test_a_prediction_is_what_evaluation_counts(
    trained: Path, sandbox: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(trained)
    wanted = evaluated_scores(predictor.model, sandbox, name, predictor.metadata["frames"], monkeypatch)
    manifest = open_manifest(load_catalog(sandbox).manifest_path(name, "val"))
    for row in (0, len(manifest) - 1):
        assert np.array_equal(predictor(manifest.row(row).path, [name])[name].scores, wanted[row])
        assert predictor(manifest.row(row).path)[name].scores == pytest.approx(wanted[row], abs=1e-6)


def test_a_video_of_changing_rate_is_looked_at_alike(
    make_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts as the length of a video has to be the same for both."""
    catalog = make_set({"a.mp4": "x", "b.mp4": "y"}, sampling="whole")
    rng, path = np.random.default_rng(0), tmp_path / "mine" / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for stamp in (0, 5, 11, 30, 90, 150, 152, 160):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    index(catalog, 0)
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("mine", ("x", "y")),)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    metadata = {"step": 0, "frames": 6, "datasets": {"mine": {"sampling": "whole", "views": "2x1"}}}
    save_release(tmp_path / "release", model, metadata)
    predictor = Predictor(load_release(tmp_path / "release"))
    (task,) = find_tasks(load_catalog(catalog), predictor.model, 6, "val", views=Views(2, 1))
    wanted: dict[int, np.ndarray] = {}
    with monkeypatch.context() as patch:
        patch.setattr(TopK, "update", lambda self, scores, labels: wanted.update(zip(labels.tolist(), scores.numpy())))
        evaluate(predictor.model, task, "cpu", 0)
    assert predictor(path)["mine"].scores == pytest.approx(wanted[0], abs=1e-6)


def test_wished_views_replace_each_heads_own(trained: Path, sandbox: Path) -> None:
    predictor = Predictor.load(trained)
    assert str(predictor.plan("kinetics").views) == "1x3"
    assert str(predictor.plan("kinetics", Views(4, 1)).views) == "4x1"
    file = first_file(sandbox, "kinetics")
    one, many = (predictor(file, ["kinetics"], views)["kinetics"].scores for views in (Views(1, 1), Views(4, 3)))
    assert not np.array_equal(one, many)


def test_a_head_that_is_not_there(trained: Path) -> None:
    with pytest.raises(UserError, match='no head "ssv3"; did you mean "ssv2"'):
        Predictor.load(trained).plan("ssv3")


def test_a_file_that_cannot_be_read(trained: Path, tmp_path: Path) -> None:
    for name in ("bad.mp4", "bad.jpg", "bad", "absent.mp4"):
        if name != "absent.mp4":
            (tmp_path / name).write_bytes(b"nothing" * 50)
        with pytest.raises(MediaError):
            Predictor.load(trained)(tmp_path / name)


def test_files_are_told_apart_by_content_where_their_ending_says_nothing(
    trained: Path, sandbox: Path, tmp_path: Path
) -> None:
    predictor = Predictor.load(trained)
    for name, plain in (("imagenet", "picture"), ("kinetics", "clip")):
        source = Path(first_file(sandbox, name))
        (tmp_path / plain).write_bytes(source.read_bytes())
        assert np.array_equal(predictor(tmp_path / plain, [name])[name].scores, predictor(source, [name])[name].scores)


def test_a_model_that_was_never_trained_says_what_it_lacks(tmp_path: Path) -> None:
    CoVeR(named_config("mini", size=16, frames=3), (Head("act", ("a", "b")),)).save_pretrained(tmp_path)
    predictor = Predictor.load(tmp_path)
    assert predictor.metadata["frames"] == 3
    with pytest.raises(UserError, match=r'metadata\.datasets, .*"act": \{"sampling"'):
        predictor(tmp_path / "a.mp4")
    with pytest.raises(UserError, match='no head "act2"; did you mean "act"'):
        predictor.plan("act2")
