"""Erased boxes have their share of area and frequency, and are zero in all frames of their sample and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cover.transforms.erasing import RandomErasing


def test_boxes() -> None:
    rng = np.random.default_rng(0)
    boxes = torch.stack([RandomErasing(0.25).draw(rng, 64) for _ in range(4000)]).numpy()
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top) / 64**2
    assert (area > 0).mean() == pytest.approx(0.25, abs=0.03)
    assert (boxes >= 0).all()
    assert (boxes <= 64).all()
    assert area[area > 0].min() > 0.015
    assert 0.25 < area.max() < 0.35
    ratio = ((right - left) / np.maximum(bottom - top, 1))[area > 0]
    assert 0.25 < ratio.min() < 0.4
    assert 2.5 < ratio.max() < 4


def test_nothing_is_erased_without_a_chance() -> None:
    rng = np.random.default_rng(0)
    assert not any(RandomErasing(0.0).draw(rng, 64).any() for _ in range(50))
    assert RandomErasing(0.0).is_identity
    assert not RandomErasing(0.1).is_identity


def test_pixels_by_hand() -> None:
    frames = torch.arange(1.0, 5).view(4, 1, 1, 1).expand(4, 3, 6, 8).clone()
    result = RandomErasing.apply(frames, torch.tensor([[1, 2, 4, 5], [0, 0, 0, 0]]), ((1, 3), (1, 1)))
    assert torch.equal(result[3], frames[3])
    for frame in range(3):
        assert not result[frame, :, 2:5, 1:4].any()
        assert int((result[frame] == 0).sum()) == 3 * 3 * 3
    assert frames.all(), "the frames given stay as they are"
