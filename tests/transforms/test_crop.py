"""Crops lie inside the picture and are Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cover.transforms.crop import crop_resize, middle_box, random_box, view_crops

SIDES, SEEDS = st.integers(2, 4000), st.integers(0, 2**63)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


@given(SEEDS, SIDES, SIDES, st.floats(0.01, 1), st.floats(0.01, 1))
def test_random_boxes(seed: int, width: int, height: int, one: float, other: float) -> None:
    scale = (min(one, other), max(one, other))
    left, top, right, bottom = random_box(np.random.default_rng(seed), width, height, scale)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if (left, top, right, bottom) != middle_box(width, height):
        w, h = right - left, bottom - top  # each side is rounded by at most half a pixel
        assert scale[0] <= (w + 0.5) * (h + 0.5) / (width * height)
        assert max(w - 0.5, 0.5) * max(h - 0.5, 0.5) / (width * height) <= max(scale[1], 1 / (width * height))
        assert max(w - 0.5, 0) / (h + 0.5) <= 4 / 3
        assert (w + 0.5) / max(h - 0.5, 0.1) >= 3 / 4


def test_random_boxes_differ_and_reach_the_edges() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, 64, 48, (0.3, 1.0)) for _ in range(500)])
    assert len(np.unique(boxes, axis=0)) > 450
    assert boxes[:, :2].min() < 1
    assert boxes[:, 2].max() > 63
    assert boxes[:, 3].max() > 47


def test_a_picture_too_long_for_any_box_gives_its_middle() -> None:
    assert random_box(np.random.default_rng(0), 1000, 10, (0.9, 1.0)) == (495, 0, 505, 10)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (48, 48)])
@pytest.mark.parametrize("crops", [1, 2, 3])
def test_views_of_frames_of_the_wanted_size_are_cuts(width: int, height: int, crops: int) -> None:
    frames = noise(0, 2, height, width)
    found = view_crops(frames, 48, crops)
    assert [view.shape for view in found] == [(2, 3, 48, 48)] * crops
    for view, fraction in zip(found, {1: [0.5], 2: [0, 1], 3: [0, 0.5, 1]}[crops], strict=True):
        left, top = int((width - 48) * fraction), int((height - 48) * fraction)
        assert np.array_equal(view, frames[:, top : top + 48, left : left + 48].transpose(0, 3, 1, 2))


def test_views_are_cut_from_pillows_scaled_frame() -> None:
    frame = noise(5, 60, 100)
    wanted = np.asarray(Image.fromarray(frame).resize((53, 32), Image.Resampling.BILINEAR))
    found = np.stack(view_crops(frame[None], 32, 3))[:, 0].transpose(0, 2, 3, 1)
    for view, left in zip(found, (0, 10, 21), strict=True):
        assert np.abs(view.astype(int) - wanted[:, left : left + 32]).max() <= 1


def test_a_crop_of_the_wanted_size_is_a_cut() -> None:
    frames = noise(0, 3, 20, 30)
    assert np.array_equal(crop_resize(frames, (7, 2, 23, 18), 16), frames[:, 2:18, 7:23].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("side", "size"), [(40, 16), (16, 40), (33, 20)])
def test_scaling_is_pillows(side: int, size: int) -> None:
    frames = noise(1, 2, side, side)
    wanted = [np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR)) for frame in frames]
    found = crop_resize(frames, (0, 0, side, side), size).astype(int)
    assert np.abs(found - np.stack(wanted).transpose(0, 3, 1, 2)).max() <= 1


def test_a_scaled_crop_is_the_crop_scaled() -> None:
    frame = noise(2, 60, 80)
    wanted = np.asarray(Image.fromarray(frame).crop((10, 5, 58, 53)).resize((16, 16), Image.Resampling.BILINEAR))
    found = crop_resize(frame[None], (10, 5, 58, 53), 16)[0].transpose(1, 2, 0)
    assert np.abs(found.astype(int) - wanted).max() <= 1


def test_all_frames_of_a_clip_are_cut_alike() -> None:
    frames = np.repeat(noise(3, 1, 30, 40), 4, axis=0)
    found = crop_resize(frames, (3, 4, 25, 26), 12)
    assert (found == found[0]).all()
    assert found.dtype == np.uint8
    assert found.shape == (4, 3, 12, 12)
