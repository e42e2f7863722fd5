"""Crops lie inside the picture and are Pillow's; colour changes are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cover.media.augment import crop_resize, random_box, random_colour, view_box

SIDES, SEEDS = st.integers(2, 4000), st.integers(0, 2**63)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@given(SEEDS, SIDES, SIDES, st.floats(0.01, 1), st.floats(0.01, 1))
def test_random_boxes(seed: int, width: int, height: int, one: float, other: float) -> None:
    scale = (min(one, other), max(one, other))
    left, top, right, bottom = random_box(np.random.default_rng(seed), width, height, scale)
    assert 0 <= left < right <= width * (1 + 1e-9)
    assert 0 <= top < bottom <= height * (1 + 1e-9)
    if (left, top, right, bottom) != view_box(width, height, 0, 1):
        w, h = right - left, bottom - top
        assert scale[0] - 1e-6 <= w * h / (width * height) <= scale[1] + 1e-6
        assert 3 / 4 - 1e-6 <= w / h <= 4 / 3 + 1e-6


def test_random_boxes_differ_and_reach_the_edges() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, 64, 48, (0.3, 1.0)) for _ in range(500)])
    assert len(np.unique(boxes, axis=0)) > 450
    assert boxes[:, :2].min() < 1
    assert boxes[:, 2].max() > 63
    assert boxes[:, 3].max() > 47


def test_a_picture_too_long_for_any_box_gives_its_middle() -> None:
    assert random_box(np.random.default_rng(0), 1000, 10, (0.9, 1.0)) == (495, 0, 505, 10)


@pytest.mark.parametrize(
    ("width", "height", "crops", "wanted"),
    [
        (64, 48, 1, [(8, 0, 56, 48)]),
        (64, 48, 3, [(0, 0, 48, 48), (8, 0, 56, 48), (16, 0, 64, 48)]),
        (48, 64, 3, [(0, 0, 48, 48), (0, 8, 48, 56), (0, 16, 48, 64)]),
        (48, 48, 2, [(0, 0, 48, 48), (0, 0, 48, 48)]),
    ],
)
def test_view_boxes(width: int, height: int, crops: int, wanted: list[tuple[int, ...]]) -> None:
    assert [view_box(width, height, crop, crops) for crop in range(crops)] == wanted


def test_a_crop_of_the_wanted_size_is_a_cut() -> None:
    frames = noise(0, 3, 20, 30)
    assert np.array_equal(crop_resize(frames, (7, 2, 23, 18), 16), frames[:, 2:18, 7:23].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("side", "size"), [(40, 16), (16, 40), (33, 20)])
def test_scaling_is_pillows(side: int, size: int) -> None:
    frames = noise(1, 2, side, side)
    wanted = [np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR)) for frame in frames]
    assert np.array_equal(crop_resize(frames, (0, 0, side, side), size), np.stack(wanted).transpose(0, 3, 1, 2))


def test_a_scaled_crop_is_the_crop_scaled() -> None:
    frame = noise(2, 60, 80)
    wanted = np.asarray(Image.fromarray(frame).crop((10, 5, 58, 53)).resize((16, 16), Image.Resampling.BILINEAR))
    found = crop_resize(frame[None], (10, 5, 58, 53), 16)[0].transpose(1, 2, 0)
    assert np.array_equal(found[1:-1, 1:-1], wanted[1:-1, 1:-1])  # at the border Pillow looks at what lies beyond the box


def test_all_frames_of_a_clip_are_cut_alike() -> None:
    frames = np.repeat(noise(3, 1, 30, 40), 4, axis=0)
    found = crop_resize(frames, (3.2, 4.7, 25.1, 26.3), 12)
    assert (found == found[0]).all()
    assert found.dtype == np.uint8
    assert found.shape == (4, 3, 12, 12)


def test_flipping_mirrors() -> None:
    frames = noise(4, 2, 30, 40)
    plain, flipped = (crop_resize(frames, (1.5, 2.5, 29.5, 28.5), 12, flip) for flip in (False, True))
    assert np.array_equal(flipped, plain[..., ::-1])
    assert flipped.flags.c_contiguous


def test_no_colour_change_at_strength_0() -> None:
    identity = np.concatenate([np.eye(3), np.zeros((3, 1))], axis=1)
    assert random_colour(np.random.default_rng(0), 0.0) == pytest.approx(identity, abs=1e-7)


@given(SEEDS, st.floats(0.01, 0.5))
def test_colour_is_saturation_then_brightness_then_contrast(seed: int, strength: float) -> None:
    change = random_colour(np.random.default_rng(seed), strength).astype(np.float64)
    assert change.shape == (3, 4)
    contrast = 1 - 2 * change[0, 3]
    brightness = change[0, :3].sum() / contrast
    saturation = (change[0, 0] - change[1, 0]) / (contrast * brightness)
    for factor in (contrast, brightness, saturation):
        assert 1 - strength - 1e-4 <= factor <= 1 + strength + 1e-4
    pixels = np.random.default_rng(seed).random((5, 3))
    grey = pixels @ [0.299, 0.587, 0.114]
    saturated = grey[:, None] + saturation * (pixels - grey[:, None])
    wanted = (saturated * brightness - 0.5) * contrast + 0.5
    assert pixels @ change[:, :3].T + change[:, 3] == pytest.approx(wanted, abs=1e-5)
