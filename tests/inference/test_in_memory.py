"""Pictures and clips in memory give the predictions of the files that hold the same pixels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cover
from cover import Predictor
from cover.datasets.catalog import load_catalog
from cover.datasets.manifest import open_manifest
from cover.errors import UserError
from cover.inference.explain import ExplainOptions, explanations
from cover.media.decode import MediaError, decode_at, decode_image, probe
from cover.media.sampling import Views

Frames = tuple[str, np.ndarray, float]


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return Predictor.load(trained)


def file_of(sandbox: Path, name: str) -> str:
    return open_manifest(load_catalog(sandbox).manifest_path(name, "val")).row(0).path


@pytest.fixture(scope="module")
def clip(sandbox: Path) -> Frames:
    """A video, its frames uint8 `(T, H, W, 3)` and its rate."""
    path = file_of(sandbox, "ssv2")
    found = probe(path)
    return path, decode_at(path, (np.arange(found.frames) / found.fps).tolist()).frames, found.fps


def same(predictor: Predictor, media: Any, file: str, **options: Any) -> None:
    """All heads have the same scores for both."""
    wanted, result = predictor(file), predictor(media, **options)
    assert list(result) == list(wanted)
    for head, prediction in wanted.items():
        assert np.array_equal(result[head].scores, prediction.scores), head


PICTURES: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda pixels: pixels,
    "a clip of one frame": lambda pixels: pixels[None],
    "colours first": lambda pixels: np.moveaxis(pixels, -1, 0),
    "read-only": lambda pixels: np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape),
    "mirrored twice": lambda pixels: pixels[:, ::-1].copy()[:, ::-1],
    "tensor": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
    "Pillow": Image.fromarray,
    "Pillow, RGBA": lambda pixels: Image.fromarray(pixels).convert("RGBA"),
    "a list of one": lambda pixels: [pixels],
}


@pytest.mark.parametrize("form", PICTURES.values(), ids=PICTURES.keys())
def test_a_picture(predictor: Predictor, sandbox: Path, form: Callable[[np.ndarray], Any]) -> None:
    path = file_of(sandbox, "imagenet")
    same(predictor, form(decode_image(path)), path)


def test_an_image_of_pillow_is_turned_upright(predictor: Predictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as image:
        same(predictor, image, str(tmp_path / "turned.png"))


CLIPS: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda frames: frames,
    "colours first": lambda frames: np.moveaxis(frames, -1, 1),
    "tensor": lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
    "list of arrays": list,
    "list of images": lambda frames: [Image.fromarray(frame) for frame in frames],
    "tuple of tensors": lambda frames: tuple(torch.from_numpy(frames)),
}


@pytest.mark.parametrize("form", CLIPS.values(), ids=CLIPS.keys())
def test_a_clip(predictor: Predictor, clip: Frames, form: Callable[[np.ndarray], Any]) -> None:
    path, frames, fps = clip
    same(predictor, form(frames), path, fps=fps)


def test_features_and_timelines_and_explanations(predictor: Predictor, clip: Frames) -> None:
    path, frames, fps = clip
    assert np.array_equal(predictor.features(frames, fps=fps), predictor.features(path))
    wanted, result = predictor.timeline(path, 0.5), predictor.timeline(frames, 0.5, fps=fps)
    for part, other in zip(result, wanted, strict=True):
        assert (part.start, part.end) == pytest.approx((other.start, other.end))
        assert np.array_equal(part["ssv2"].scores, other["ssv2"].scores)
    (_, found), (_, files) = (
        explanations(predictor, media, ExplainOptions(("ssv2",)), **options)
        for media, options in ((frames, {"fps": fps}), (path, {}))
    )
    assert np.array_equal(found[0].heat, files[0].heat)


def test_a_clip_of_as_many_frames_as_the_network_takes_needs_no_rate(predictor: Predictor, clip: Frames) -> None:
    _, frames, _ = clip
    taken = frames[: predictor.metadata["frames"]]
    for head, sampling in (("ssv2", "whole"), ("kinetics", "dense")):
        plan = predictor.plan(head, Views(1, 1))
        assert plan.sampling.kind == sampling
        result = predictor(taken, [head], Views(1, 1))[head].scores
        fps = 1 / plan.sampling.interval
        assert np.array_equal(result, predictor(taken, [head], Views(1, 1), fps=fps)[head].scores)


def test_a_dense_clip_of_another_length_needs_its_rate(predictor: Predictor, clip: Frames) -> None:
    _, frames, _ = clip
    predictor(frames, ["ssv2"])
    with pytest.raises(UserError, match=r"fps: the network takes 4 frames, .* s apart, and the clip has"):
        predictor(frames, ["kinetics"])
    with pytest.raises(UserError, match="fps: windows are in seconds"):
        predictor.timeline(frames, 0.5)
    for wrong in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="fps"):
            predictor(frames, fps=wrong)


WRONG: dict[str, tuple[Any, str]] = {
    "floats": (np.zeros((8, 8, 3)), "float64 8x8x3: give uint8"),
    "a tensor of floats": (torch.zeros(4, 3, 8, 8), "float32 4x3x8x8: give uint8"),
    "wide integers": (np.zeros((8, 8, 3), np.int64), "int64"),
    "truth values": (np.zeros((8, 8, 3), bool), "bool"),
    "grey": (np.zeros((8, 8), np.uint8), "shape 8x8"),
    "grey with an axis": (np.zeros((8, 8, 1), np.uint8), "no axis has 3 colours"),
    "transparent": (np.zeros((8, 8, 4), np.uint8), "no axis has 3 colours"),
    "a batch of clips": (np.zeros((2, 4, 8, 8, 3), np.uint8), "shape 2x4x8x8x3"),
    "either axis": (np.zeros((3, 8, 3), np.uint8), "not clear which axis"),
    "no frames": (np.zeros((0, 8, 8, 3), np.uint8), "there is no frame"),
    "no pixels": (np.zeros((0, 8, 3), np.uint8), "no pixels"),
    "no dimension": (np.uint8(3), "uint8"),
    "an empty list": ([], "an empty list"),
    "a list of paths": (["a.mp4", "b.mp4"], "call the predictor for each"),
    "frames of two sizes": ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], "of one size"),
    "a list of clips": ([np.zeros((4, 8, 8, 3), np.uint8)] * 2, "must be pictures"),
    "a list of numbers": ([1, 2], "type int"),
    "bytes": (b"\x89PNG", "type bytes"),
    "nothing": (None, "type NoneType"),
    "a path of bytes": (Path("x.mp4").__class__("x").__fspath__().encode(), "type bytes"),
    "an open file": (sys.stdin, "type"),
}


@pytest.mark.parametrize(("media", "part"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_media_is_named_in_one_line(predictor: Predictor, media: Any, part: str) -> None:
    for use in (predictor, predictor.features, lambda it: predictor.timeline(it, 0.5, fps=25)):
        with pytest.raises(UserError) as error:
            use(media)  # type: ignore[operator]
        assert part in str(error.value)
        assert "\n" not in str(error.value)


def test_a_damaged_image_of_pillow(predictor: Predictor, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "x.png") as image, pytest.raises(MediaError, match="damaged image"):
        predictor(image)


def test_the_package_lists_its_names() -> None:
    assert set(cover.__all__) <= set(dir(cover))
    code = "import cover, sys; assert {'CoVeR', 'Predictor'} <= set(dir(cover)); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code + "; from cover import *; CoVeR, Predictor"], check=True)
