"""Flips under every policy, with labels that have a mirror image and labels that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cover.transforms.flip import apply_flip, draw_flip, mirror_pairs

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
