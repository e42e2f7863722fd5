"""What RandAugment draws: within its limits, from the generator alone, and never a mirror image."""

from __future__ import annotations

import numpy as np
import pytest

from cover.errors import UserError
from cover.media.randaugment import TONES, WARPS, Change, RandAugment, random_erasing


def draws(spec: str, count: int = 400) -> list[Change | None]:
    settings = RandAugment.parse(spec)
    assert settings is not None
    rng = np.random.default_rng(0)
    return [settings.draw(rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("m7-n4", RandAugment(7, 4)),
        ("m9-n2-std0.5", RandAugment(9, 2, 0.5)),
        ("m0-n1-p1", RandAugment(0, 1, 0, 1)),
        ("rand-m7-n4-mstd0.5-inc1", RandAugment(7, 4, 0.5)),
        ("", None),
    ],
)
def test_settings_as_timm_writes_them(text: str, wanted: RandAugment | None) -> None:
    assert RandAugment.parse(text) == wanted


@pytest.mark.parametrize("text", ["m11-n2", "m7", "n2", "m7-n0", "m7-n15", "m7-n4-p1.5", "m7_n4", "rand", "m7-n4-w0"])
def test_settings_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="write mM-nN") as error:
        RandAugment.parse(text)
    assert "\n" not in str(error.value)


def test_the_same_generator_draws_the_same() -> None:
    assert draws("m7-n4-std0.5") == draws("m7-n4-std0.5")


def test_every_operation_comes_and_none_mirrors() -> None:
    found = draws("m10-n4-p1", 600)
    tones = {name for change in found if change for name, _ in change.tones}
    assert tones == set(TONES)
    matrices = [np.array(change.warp).reshape(2, 3) for change in found if change and change.warp]
    assert 0.6 < len(matrices) / len(found) < 0.95  # 1 - (9/14)^4 = 0.83
    assert all(np.linalg.det(matrix[:, :2]) > 0.3 for matrix in matrices)
    assert {tuple(np.sign(matrix[:, 2])) for matrix in matrices} >= {(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)}, "both ways"


def test_amounts_stay_within_their_limits_whatever_the_deviation() -> None:
    limits = {"solarize": (0, 256), "posterize": (4, 8), "autocontrast": (0, 0), "equalize": (0, 0)}
    for change in draws("m9-n4-std5-p1"):
        for name, amount in change.tones if change else ():
            low, high = limits.get(name, (0.1, 1.9))
            assert low - 1e-9 <= amount <= high + 1e-9


def test_magnitude_0_changes_next_to_nothing() -> None:
    for change in draws("m0-n4-p1"):
        assert change is None or change.warp is None
        for name, amount in change.tones if change else ():
            assert amount == {"solarize": 256, "posterize": 8, "autocontrast": 0, "equalize": 0}.get(name, 1)


def test_each_operation_is_made_with_its_chance() -> None:
    made = [len(change.tones) if change else 0 for change in draws("m5-n7", 3000)]
    assert np.mean(made) == pytest.approx(7 * 0.5 * len(TONES) / (1 + len(WARPS) + len(TONES)), rel=0.05)


def test_erased_boxes() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_erasing(rng, 0.25, 64) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    area = (right - left) * (bottom - top) / 64**2
    assert (area > 0).mean() == pytest.approx(0.25, abs=0.03)
    assert (boxes >= 0).all()
    assert (boxes <= 64).all()
    assert area[area > 0].min() > 0.015
    assert 0.25 < area.max() < 0.35
    assert not any(random_erasing(rng, 0.0, 64).any() for _ in range(50))
