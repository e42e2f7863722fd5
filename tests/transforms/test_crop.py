"""Crops lie inside the picture and are Pillow's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cover.transforms.crop import apply_flip, crop_resize, draw_flip, middle_box, mirror_pairs, random_box, view_crops

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
    result = view_crops(frames, 48, crops)
    assert [view.shape for view in result] == [(2, 3, 48, 48)] * crops
    for view, fraction in zip(result, {1: [0.5], 2: [0, 1], 3: [0, 0.5, 1]}[crops], strict=True):
        left, top = int((width - 48) * fraction), int((height - 48) * fraction)
        assert np.array_equal(view, frames[:, top : top + 48, left : left + 48].transpose(0, 3, 1, 2))


def test_views_are_cut_from_pillows_scaled_frame() -> None:
    frame = noise(5, 60, 100)
    wanted = np.asarray(Image.fromarray(frame).resize((53, 32), Image.Resampling.BILINEAR))
    result = np.stack(view_crops(frame[None], 32, 3))[:, 0].transpose(0, 2, 3, 1)
    for view, left in zip(result, (0, 10, 21), strict=True):
        assert np.abs(view.astype(int) - wanted[:, left : left + 32]).max() <= 1


def test_a_crop_of_the_wanted_size_is_a_cut() -> None:
    frames = noise(0, 3, 20, 30)
    assert np.array_equal(crop_resize(frames, (7, 2, 23, 18), 16), frames[:, 2:18, 7:23].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("side", "size"), [(40, 16), (16, 40), (33, 20)])
def test_scaling_is_pillows(side: int, size: int) -> None:
    frames = noise(1, 2, side, side)
    wanted = [np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR)) for frame in frames]
    result = crop_resize(frames, (0, 0, side, side), size).astype(int)
    assert np.abs(result - np.stack(wanted).transpose(0, 3, 1, 2)).max() <= 1


def test_a_scaled_crop_is_the_crop_scaled() -> None:
    frame = noise(2, 60, 80)
    wanted = np.asarray(Image.fromarray(frame).crop((10, 5, 58, 53)).resize((16, 16), Image.Resampling.BILINEAR))
    result = crop_resize(frame[None], (10, 5, 58, 53), 16)[0].transpose(1, 2, 0)
    assert np.abs(result.astype(int) - wanted).max() <= 1


def test_all_frames_of_a_clip_are_cut_alike() -> None:
    frames = np.repeat(noise(3, 1, 30, 40), 4, axis=0)
    result = crop_resize(frames, (3, 4, 25, 26), 12)
    assert (result == result[0]).all()
    assert result.dtype == np.uint8
    assert result.shape == (4, 3, 12, 12)


Outcomes = set[tuple[bool, tuple[int, ...]]]  # whether it is flipped, and its labels then
NAMES = ["pull left", "Pull Right", "spin left", "drop", "leave something left behind", "be upright"]


def test_mirror_pairs() -> None:
    assert mirror_pairs(NAMES).tolist() == [1, 0, -1, 3, -1, 5]


def test_mirror_pairs_of_published_ssv2(test_data: Path) -> None:
    labels = (test_data / "annotations/label_map_ssv2.txt").read_text().splitlines()
    mirrored = mirror_pairs(labels)
    swapped = {a: int(b) for a, b in enumerate(mirrored) if a != b and b >= 0}
    assert swapped == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    assert [labels[a] for a, b in enumerate(mirrored) if b == -1] == [
        "Plugging something into something but pulling it right out as you remove your hand"
    ]


def outcomes(labels: list[int], allowed: bool, swap: bool) -> Outcomes:
    mirror = mirror_pairs(NAMES) if swap else None
    drawn = [draw_flip(np.random.default_rng(seed), labels, allowed, mirror) for seed in range(50)]
    return {(flip, tuple(after)) for flip, after in drawn}


@pytest.mark.parametrize(
    ("labels", "allowed", "swap", "wanted"),
    [
        ([0], True, True, {(False, (0,)), (True, (1,))}),
        ([0, 3], True, True, {(False, (0, 3)), (True, (1, 3))}),
        ([2], True, True, {(False, (2,))}),
        ([3, 2], True, True, {(False, (3, 2))}),
        ([], True, True, {(False, ()), (True, ())}),
        ([0], True, False, {(False, (0,)), (True, (0,))}),
        ([0], False, True, {(False, (0,))}),
    ],
)
def test_a_flip_and_its_labels(labels: list[int], allowed: bool, swap: bool, wanted: Outcomes) -> None:
    assert outcomes(labels, allowed, swap) == wanted


def test_half_of_all_samples_are_flipped() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([draw_flip(rng, [0], True, None)[0] for _ in range(4000)]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("labels", "allowed"), [([0], False), ([2], True), ([3], True)])
def test_the_generator_advances_the_same_whether_flips_are_allowed_or_not(labels: list[int], allowed: bool) -> None:
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    draw_flip(one, labels, allowed, mirror_pairs(NAMES))
    draw_flip(other, [0], True, None)
    assert one.random() == other.random()


def test_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    flipped = apply_flip(frames)
    assert np.array_equal(flipped, np.flip(frames, 3))
    assert not np.shares_memory(flipped, frames)
