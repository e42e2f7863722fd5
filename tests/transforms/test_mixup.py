"""Mixup and cutmix: what is drawn for a pair, and pixels mixed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cover.transforms.mixup import NO_BOX, Mix, Mixup, draw_box

GROUPS = ((2, 3), (4, 1))
SIDE, HALF = 8, 4


def frames_of_a_pack() -> torch.Tensor:
    """float `(10, 3, SIDE, SIDE)`: two clips of 3 frames and four images, all unlike."""
    return torch.rand(10, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()


def make_mix() -> Mix:
    """The clips mixed up, the first two images cut, the other two left alone."""
    boxes = [[0, 0, 0, 0]] * 2 + [[0, 0, HALF, HALF]] * 2 + [[0, 0, 0, 0]] * 2
    lam = torch.tensor([0.3, 0.3, 0.25, 0.25, 0, 0], dtype=torch.float64)
    return Mix(torch.tensor([1, -1, 1, -1, 0, 0]), lam, torch.tensor(boxes))


def test_pixels_by_hand() -> None:
    frames = frames_of_a_pack()
    result, partner, lam = Mixup.apply(frames, make_mix(), torch.ones(6), GROUPS)
    torch.testing.assert_close(result[:3], 0.7 * frames[:3] + 0.3 * frames[3:6], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result[3:6], 0.7 * frames[3:6] + 0.3 * frames[:3], rtol=1e-6, atol=1e-6)
    wanted = frames[6].clone()
    wanted[:, :HALF, :HALF] = frames[7][:, :HALF, :HALF]
    assert torch.equal(result[6], wanted)
    assert torch.equal(result[8:], frames[8:])
    assert partner.tolist() == [1, 0, 3, 2, 4, 5]
    assert lam.tolist() == pytest.approx([0.3, 0.3, 0.25, 0.25, 0, 0])


@pytest.mark.parametrize("lost", [0, 3])
def test_where_a_partner_could_not_be_read_nothing_is_mixed(lost: int) -> None:
    frames, weight = frames_of_a_pack(), torch.ones(6)
    weight[lost] = 0
    result, _, lam = Mixup.apply(frames, make_mix(), weight, GROUPS)
    pair, others = (slice(0, 6), slice(6, 8)) if lost == 0 else (slice(6, 8), slice(0, 6))
    assert torch.equal(result[pair], frames[pair])
    assert not torch.equal(result[others], frames[others])
    assert lam[lost] == lam[lost ^ 1] == 0


@pytest.mark.parametrize(("mixup", "cutmix", "pasted"), [(0.8, 1.0, 0.5), (0.8, 0.0, 0.0), (0.0, 1.0, 1.0)])
def test_draws_of_pairs(mixup: float, cutmix: float, pasted: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [Mixup(mixup, cutmix).draw(rng, 32, 0.5) for _ in range(4000)]
    mixed = [each for each in drawn if each]
    assert len(mixed) / len(drawn) == pytest.approx(0.5, abs=0.04)
    cut = [(lam, box) for lam, box in mixed if box != NO_BOX]
    assert len(cut) / len(mixed) == pytest.approx(pasted, abs=0.06)
    for lam, (left, top, right, bottom) in cut:
        assert lam == pytest.approx((right - left) * (bottom - top) / 32**2)
    if mixup:
        blended = np.array([lam for lam, box in mixed if box == NO_BOX])
        assert blended.mean() == pytest.approx(0.5, abs=0.04)
        assert blended.std() == pytest.approx((4 * (2 * mixup + 1)) ** -0.5, abs=0.02)  # of Beta(a, a)


def test_a_box_has_its_area_inside_the_picture() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(300):
        left, top, right, bottom = draw_box(rng, 0.25, 64)
        assert 0 <= left <= right <= 64
        assert 0 <= top <= bottom <= 64
        areas.append((right - left) * (bottom - top) / 64**2)
    assert max(areas) == pytest.approx(0.25)
    assert draw_box(rng, 1.0, 64) != draw_box(rng, 0.0, 64)
