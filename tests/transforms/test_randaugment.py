"""RandAugment draws within its limits and never mirrors; its operations are Pillow's, alike in all frames of a clip."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from cover.errors import UserError
from cover.transforms import randaugment
from cover.transforms.randaugment import Operations, RandAugment, affine_matrix, apply_operations

SIDE = 40
ENHANCE = {
    "colour": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def picture(seed: int, low: int = 20, high: int = 230) -> Tensor:
    """uint8 `(3, SIDE, SIDE)`: a slope of colours and some noise, channels unlike each other."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 1, SIDE)
    x, y = np.meshgrid(slope, slope)
    base = np.stack([x, x * y, 1 - 0.7 * y])
    noise = rng.uniform(-0.1, 0.1, base.shape)
    return torch.from_numpy((low + (high - low) * np.clip(base + noise, 0, 1)).astype(np.uint8))


def by_pillow(name: str, amount: float, frame: Tensor) -> Tensor:
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    outputs: dict[str, Callable[[], Image.Image]] = {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "solarize": lambda: ImageOps.solarize(image, int(amount)),
        "posterize": lambda: ImageOps.posterize(image, int(amount)),
    }
    result = ENHANCE[name](image).enhance(amount) if name in ENHANCE else outputs[name]()
    return torch.from_numpy(np.array(result)).permute(2, 0, 1)


def draws(spec: str, count: int = 400) -> list[Operations | None]:
    rng = np.random.default_rng(0)
    return [RandAugment.parse(spec).draw(rng, SIDE) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("m7-n4", RandAugment(7, 4)),
        ("m9-n2-std0.5", RandAugment(9, 2, 0.5)),
        ("m0-n1-p1", RandAugment(0, 1, 0, 1)),
        ("rand-m7-n4-mstd0.5-inc1", RandAugment(7, 4, 0.5)),
        ("", RandAugment(count=0)),
    ],
)
def test_settings_as_timm_writes_them(text: str, wanted: RandAugment) -> None:
    assert RandAugment.parse(text) == wanted


@pytest.mark.parametrize("text", ["m11-n2", "m7", "n2", "m7-n0", "m7-n15", "m7-n4-p1.5", "m7_n4", "rand", "m7-n4-w0"])
def test_settings_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="write mM-nN") as error:
        RandAugment.parse(text)
    assert "\n" not in str(error.value)


def test_the_same_generator_draws_the_same() -> None:
    assert draws("m7-n4-std0.5") == draws("m7-n4-std0.5")


def test_every_operation_comes_and_none_mirrors() -> None:
    result = draws("m10-n4-p1", 600)
    assert {name for each in result if each for name, _ in each.colour} == set(randaugment.COLOUR)
    matrices = [np.array(each.affine).reshape(2, 3) for each in result if each and each.affine]
    assert 0.6 < len(matrices) / len(result) < 0.95  # 1 - (9/14)^4 = 0.83
    assert all(np.linalg.det(matrix[:, :2]) > 0.3 for matrix in matrices)
    ways = {tuple(np.sign(matrix[:, 2])) for matrix in matrices}
    assert ways >= {(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)}


def test_amounts_stay_within_their_limits_whatever_the_deviation() -> None:
    limits = {"solarize": (0, 256), "posterize": (4, 8), "autocontrast": (0, 0), "equalize": (0, 0)}
    for each in draws("m9-n4-std5-p1"):
        for name, amount in each.colour if each else ():
            low, high = limits.get(name, (0.1, 1.9))
            assert low - 1e-9 <= amount <= high + 1e-9


def test_magnitude_0_changes_next_to_nothing() -> None:
    for each in draws("m0-n4-p1"):
        assert each is None or each.affine is None
        for name, amount in each.colour if each else ():
            assert amount == {"solarize": 256, "posterize": 8, "autocontrast": 0, "equalize": 0}.get(name, 1)


def test_each_operation_is_applied_with_its_chance() -> None:
    applied = [len(each.colour) if each else 0 for each in draws("m5-n7", 3000)]
    colour_operations = len(randaugment.COLOUR) / len(randaugment.OPERATIONS)
    assert np.mean(applied) == pytest.approx(7 * 0.5 * colour_operations, rel=0.05)


@pytest.mark.parametrize("magnitude", [10, 5])
def test_geometric_operations_at_their_published_limits(magnitude: int) -> None:
    """30 degrees, a shear of 0.3, 0.45 of the side at magnitude 10, both ways; in a map of sides from -1 to 1."""
    angle, shear, move = np.radians(3.0 * magnitude), 0.03 * magnitude, 2 * 0.045 * magnitude
    wanted = set()
    for sign in (1, -1):
        cos, sin = np.cos(angle), sign * np.sin(angle)
        rows = [(cos, sin, 0, -sin, cos, 0), (1, sign * shear, 0, 0, 1, 0), (1, 0, 0, sign * shear, 1, 0)]
        rows += [(1, 0, sign * move, 0, 1, 0), (1, 0, 0, 0, 1, sign * move)]
        wanted |= {tuple(np.round(row, 9) + 0.0) for row in rows}
    results = {tuple(np.round(each.affine, 9) + 0.0) for each in draws(f"m{magnitude}-n1-p1") if each and each.affine}
    assert results == wanted


@pytest.mark.parametrize(("magnitude", "pixels"), [(10, 18), (5, 9)])
def test_a_translation_moves_by_45_percent_of_the_side_at_the_limit(magnitude: int, pixels: int) -> None:
    frame = picture(2)
    padded = np.pad(frame.numpy(), ((0, 0), (pixels, pixels), (pixels, pixels)), constant_values=128)
    corners = [(0, pixels), (2 * pixels, pixels), (pixels, 0), (pixels, 2 * pixels)]  # of windows
    shifted = [padded[:, top : top + SIDE, left : left + SIDE] for top, left in corners]
    operations = {each for each in draws(f"m{magnitude}-n1-p1") if each and each.affine and not each.colour}
    moves = [each for each in operations if (each.affine or ())[2] or (each.affine or ())[5]]
    assert len(moves) == 4
    for wanted in shifted:
        results = [RandAugment.apply(frame[None], (each,), ((1, 1),))[0].numpy() for each in moves]
        assert sum(np.array_equal(moved, wanted) for moved in results) == 1


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("autocontrast", 0),
        ("equalize", 0),
        ("solarize", 256),
        ("solarize", 100),
        *(("posterize", bits) for bits in (4, 7, 8)),
        *((name, amount) for name in ENHANCE for amount in (0.1, 0.55, 1.0, 1.63, 1.9)),
    ],
)
def test_colour_operations_are_pillow_s(name: str, amount: float, seed: int) -> None:
    frame = picture(seed)
    (result,) = apply_operations(frame[None, None], [Operations(None, ((name, float(amount)),))])
    assert (result[0].int() - by_pillow(name, amount, frame).int()).abs().max() <= 1


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_a_channel_of_one_value_stays(name: str) -> None:
    frame = torch.full((1, 1, 3, SIDE, SIDE), 77, dtype=torch.uint8)
    assert torch.equal(apply_operations(frame, [Operations(None, ((name, 0.0),))]), frame)


MOVES = [("rotate", 0.7), ("rotate", -1), ("shear_x", 1), ("shear_y", -0.5), ("translate_x", -0.5)]


@pytest.mark.parametrize(("name", "fraction"), MOVES)
def test_geometric_operations_are_pillow_s(name: str, fraction: float) -> None:
    frame, matrix = picture(3), affine_matrix(name, fraction)
    (result,) = apply_operations(frame[None, None], [Operations(tuple(matrix[:2].ravel()), ())])
    half = SIDE / 2  # Pillow counts in pixels from the corner, the map in half sides from the middle
    to_unit = np.array([[1 / half, 0, -1], [0, 1 / half, -1], [0, 0, 1]])
    pixels = np.linalg.inv(to_unit) @ matrix @ to_unit
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    moved = image.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, tuple(pixels[:2].ravel()), Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )
    wanted = torch.from_numpy(np.array(moved)).permute(2, 0, 1).int()
    # Pillow omits whole pixels at the border of the old picture; bilinear weights mix it with what lies outside.
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    source = pixels[:2] @ np.stack([x.ravel(), y.ravel(), np.ones(SIDE * SIDE)])
    inside = torch.from_numpy(((source > 1) & (source < SIDE - 1)).all(0).reshape(SIDE, SIDE))
    outside = torch.from_numpy(((source < -1) | (source > SIDE + 1)).any(0).reshape(SIDE, SIDE))
    assert inside.float().mean() > 0.4
    assert (result[0].int() - wanted).abs()[:, inside].max() <= 1
    assert (result[0][:, outside] == randaugment.FILL).all()


def test_colour_operations_follow_each_other_after_the_map() -> None:
    frame = picture(5)
    matrix = affine_matrix("translate_x", 0.5) @ affine_matrix("rotate", 0.3)
    both = Operations(tuple(matrix[:2].ravel()), (("posterize", 5.0), ("solarize", 90.0)))
    (result,) = apply_operations(frame[None, None], [both])
    (moved,) = apply_operations(frame[None, None], [Operations(both.affine, ())])
    wanted = by_pillow("solarize", 90, by_pillow("posterize", 5, moved[0]))
    assert torch.equal(result[0], wanted)


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "contrast", "sharpness"])
def test_equal_frames_stay_equal_and_unlike_ones_are_changed_by_one_map(name: str) -> None:
    operations = [Operations((0.9, 0.1, 0.0, -0.1, 0.9, 0.1), ((name, 1.5),))]
    still = picture(1).expand(1, 3, 3, SIDE, SIDE)
    result = apply_operations(still, operations)
    assert (result == result[:, :1]).all()
    dark, light = picture(1, 10, 60), picture(2, 100, 250)
    together = apply_operations(torch.stack([dark, light])[None], operations)
    apart = apply_operations(dark[None, None], operations)
    if name != "sharpness":  # whose map is the same everywhere
        assert not torch.equal(together[0, 0], apart[0, 0]), "statistics are of the whole clip"


def test_each_of_many_samples_gets_its_own_amounts() -> None:
    clips = torch.stack([picture(number) for number in range(6)])[:, None]
    amounts = [(0.2 * number, 4.0 + number % 4) for number in range(6)]
    operations = [Operations(None, (("brightness", factor), ("posterize", bits))) for factor, bits in amounts]
    together = apply_operations(clips, operations)
    for number, each in enumerate(operations):
        assert torch.equal(together[number], apply_operations(clips[number : number + 1], [each])[0])


def test_samples_without_operations_are_not_touched() -> None:
    frames, groups = torch.stack([picture(number) for number in range(10)]), ((2, 3), (4, 1))
    each = Operations((0.9, 0.1, 0.0, -0.1, 0.9, 0.1), (("solarize", 50.0), ("colour", 0.3)))
    result = RandAugment.apply(frames, (None, each, None, None, each, None), groups)
    same = [(a == b).all().item() for a, b in zip(result, frames, strict=True)]
    assert same == [True] * 3 + [False] * 3 + [True, True, False, True]
    assert torch.equal(result[3:6], apply_operations(frames[3:6][None], [each])[0])
    assert RandAugment.apply(frames, (None,) * 6, groups) is frames
