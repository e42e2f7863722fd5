"""Engines: the same classes as `eager`, files that are made once and never half, and what a user is told."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import onnxruntime
import pytest
import torch

from cover.cli import main
from cover.errors import UserError
from cover.inference import engines
from cover.inference.engines import FOLDER, moving_textures, prepare_engine
from cover.inference.predictor import Predictor
from cover.inference.views import ViewRequest
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    heads = (Head("act", ("run", "sit", "fall")), Head("thing", ("cup", "dog")))
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16, frames=3), heads)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    sets = {head.name: {"sampling": "whole", "views": "1x1"} for head in heads}
    folder = tmp_path_factory.mktemp("engines") / "release"
    save_release(folder, model, {"step": 7, "frames": 3, "datasets": sets})
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in moving_textures(1, 12, 64)[0].permute(0, 2, 3, 1).numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def pixels(clips: int, images: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(1, 3)] * clips + [(1, 1)] * images
    return [rng.integers(0, 256, (*size, 3, 16, 16), dtype=np.uint8) for size in sizes]


def files_of(checkpoint: Path, kind: str) -> list[Path]:
    return sorted(path for path in (checkpoint / FOLDER).glob(f"{kind}-[0-9]*.onnx"))


@pytest.mark.parametrize(("kind", "tolerance"), [("onnx", 1e-5), ("onnx-int8", 0.1)])
def test_clips_and_images_have_the_scores_of_eager(
    checkpoint: Path, kind: engines.Engine, tolerance: float, capfd: pytest.CaptureFixture[str]
) -> None:
    eager, other = Predictor.load(checkpoint), Predictor.load(checkpoint, engine=kind)
    both = zip(eager.run(pixels(3, 2)), other.run(pixels(3, 2)), strict=True)
    for ours, theirs in both:
        np.testing.assert_allclose(theirs.features, ours.features, atol=tolerance * np.abs(ours.features).max())
        np.testing.assert_allclose(theirs.scores["act"], ours.scores["act"], atol=tolerance)
    three, one = files_of(checkpoint, kind)[::-1]
    said = capfd.readouterr().err
    assert all(part in said for part in (str(three), str(one), "of 6 clips and heads"))
    stored = {tensor.data_type for tensor in _initializers(three)}
    assert (3 in stored) == (kind == "onnx-int8")  # 3 is ONNX's INT8

    before = three.stat().st_mtime_ns
    Predictor.load(checkpoint, engine=kind).run(pixels(3, 0))
    assert "being made" not in capfd.readouterr().err
    assert three.stat().st_mtime_ns == before


def _initializers(path: Path) -> list[object]:
    import onnx

    return list(onnx.load(path).graph.initializer)


def test_other_weights_have_another_file(checkpoint: Path, tmp_path: Path) -> None:
    model = Predictor.load(checkpoint).model
    with torch.no_grad():
        model.backbone.get_parameter("norm.bias").add_(1.0)
    save_release(tmp_path / "changed", model, model.metadata)
    (tmp_path / "changed" / FOLDER).mkdir()
    Predictor.load(checkpoint, engine="onnx").run(pixels(1, 0))
    for file in (checkpoint / FOLDER).iterdir():  # as if the folder were copied with files of the earlier weights
        (tmp_path / "changed" / FOLDER / file.name).write_bytes(file.read_bytes())
    changed = Predictor.load(tmp_path / "changed", engine="onnx")
    wanted = Predictor.load(tmp_path / "changed").run(pixels(1, 0))[0].features
    np.testing.assert_allclose(changed.run(pixels(1, 0))[0].features, wanted, atol=1e-5)


def test_a_file_that_was_not_finished_is_made_again_before_the_first_request(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    save_release(tmp_path / "run", Predictor.load(checkpoint).model, Predictor.load(checkpoint).metadata)
    with monkeypatch.context() as patched:
        patched.setattr(onnxruntime, "InferenceSession", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Predictor.load(tmp_path / "run", engine="onnx").run(pixels(1, 0))
    assert {path.suffix for path in (tmp_path / "run" / FOLDER).iterdir()} == {".lock"}
    predictor = Predictor.load(tmp_path / "run", engine="onnx")
    prepare_engine(predictor, ViewRequest(tuple(predictor.plans().values())), [], textures=True)
    assert len(files_of(tmp_path / "run", "onnx")) == 2  # for clips and for images
    capfd.readouterr()
    predictor.run(pixels(1, 1))
    assert not capfd.readouterr().err


def test_an_engine_that_computes_something_else_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_release(tmp_path / "run", Predictor.load(checkpoint).model, Predictor.load(checkpoint).metadata)
    predictor = Predictor.load(tmp_path / "run", engine="onnx")
    with torch.no_grad():  # the weights in memory are not those in the folder
        predictor.model.backbone.get_parameter("norm.bias").add_(1.0)
    with pytest.raises(UserError, match=r"--engine onnx: .* differ .* --engine eager"):
        predictor.run(pixels(1, 0))
    assert not files_of(tmp_path / "run", "onnx")


def test_predict_names_its_engine(checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {}
    for engine in ("eager", "onnx"):
        command = ["predict", str(checkpoint), str(clip), "--engine", engine, "--json", "-", "--device", "cpu"]
        assert main(command) == 0
        (rows[engine],) = json.loads(capsys.readouterr().out)
    assert rows["onnx"]["protocol"].pop("engine") == "onnx"
    assert rows["onnx"]["protocol"] == rows["eager"]["protocol"]
    assert rows["onnx"]["heads"]["act"][0][0] == rows["eager"]["heads"]["act"][0][0]


def test_onnx_needs_its_packages(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["predict", str(checkpoint), "clip.mp4", "--engine", "onnx-int8", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in ("--engine onnx-int8", "pip install", "[export]"))


@pytest.mark.full
def test_a_compiled_engine_is_kept_in_the_users_cache(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    eager, compiled = Predictor.load(checkpoint), Predictor.load(checkpoint, engine="compiled")
    for ours, theirs in zip(eager.run(pixels(3, 2)), compiled.run(pixels(3, 2)), strict=True):
        np.testing.assert_allclose(theirs.features, ours.features, atol=1e-4)
    # machine code from a folder of weights would run whatever its author wants
    assert len(list(tmp_path.rglob("*.pt2"))) == 2
    assert not list(checkpoint.rglob("*.pt2"))
