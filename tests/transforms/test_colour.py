"""Colour jitter is saturation, brightness and contrast, as the formulas of the three say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cover.transforms.colour import ColourJitter


def test_no_change_at_strength_0() -> None:
    drawn = ColourJitter(0.0).draw(np.random.default_rng(0), 32)
    torch.testing.assert_close(drawn, torch.eye(3, 4))
    frames = torch.rand(3, 3, 5, 5)
    assert torch.equal(ColourJitter.apply(frames, torch.eye(3, 4)[None], ((1, 3),)), frames)


@given(st.integers(0, 2**63), st.floats(0.01, 0.5))
def test_saturation_then_brightness_then_contrast(seed: int, strength: float) -> None:
    drawn = ColourJitter(strength).draw(np.random.default_rng(seed), 32)
    assert (drawn.shape, drawn.dtype) == ((3, 4), torch.float32)
    values = drawn.double().numpy()
    contrast = 1 - 2 * values[0, 3]
    brightness = values[0, :3].sum() / contrast
    saturation = (values[0, 0] - values[1, 0]) / (contrast * brightness)
    for factor in (contrast, brightness, saturation):
        assert 1 - strength - 1e-4 <= factor <= 1 + strength + 1e-4
    pixels = np.random.default_rng(seed).random((3, 4, 5)).astype(np.float32)
    grey = np.tensordot([0.299, 0.587, 0.114], pixels, 1)
    wanted = ((grey + saturation * (pixels - grey)) * brightness - 0.5) * contrast + 0.5
    (result,) = ColourJitter.apply(torch.from_numpy(pixels)[None], drawn[None], ((1, 1),)).numpy()
    assert result == pytest.approx(wanted.clip(0, 1), abs=1e-5)


def test_every_frame_gets_the_map_of_its_sample() -> None:
    frames = torch.full((4, 3, 2, 2), 0.5)
    maps = torch.stack([factor * torch.eye(3, 4) for factor in (0.5, 1.0)])
    result = ColourJitter.apply(frames, maps, ((1, 3), (1, 1)))
    assert result.amax((1, 2, 3)).tolist() == result.amin((1, 2, 3)).tolist() == [0.25, 0.25, 0.25, 0.5]
