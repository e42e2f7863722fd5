"""What is done to pixels on the device: against Pillow's own operations, alike in all frames of a clip, and nothing to other samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from cover.media.randaugment import TONES, Change, warp_matrix
from cover.mixture.pack import Pack
from cover.training import augment
from cover.training.augment import change_pixels, changed, erased, mixed

SIDE = 40
ENHANCE = {
    "colour": ImageEnhance.Color, "contrast": ImageEnhance.Contrast, "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}  # fmt: skip


def picture(seed: int, low: int = 20, high: int = 230) -> Tensor:
    """uint8 `(3, SIDE, SIDE)`: a slope of colours and some noise, channels unlike each other."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 1, SIDE)
    base = np.stack([slope[None] + 0 * slope[:, None], slope[:, None] * slope[None], 1 - slope[:, None] * 0.7 + 0 * slope[None]])
    noise = rng.uniform(-0.1, 0.1, base.shape)
    return torch.from_numpy((low + (high - low) * np.clip(base + noise, 0, 1)).astype(np.uint8))


def by_pillow(name: str, amount: float, frame: Tensor) -> Tensor:
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    made: dict[str, Callable[[], Image.Image]] = {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "solarize": lambda: ImageOps.solarize(image, int(amount)),
        "posterize": lambda: ImageOps.posterize(image, int(amount)),
    }
    result = ENHANCE[name](image).enhance(amount) if name in ENHANCE else made[name]()
    return torch.from_numpy(np.array(result)).permute(2, 0, 1)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("autocontrast", 0), ("equalize", 0), ("solarize", 256), ("solarize", 100), ("posterize", 4), ("posterize", 7), ("posterize", 8),
        *((name, amount) for name in ENHANCE for amount in (0.1, 0.55, 1.0, 1.63, 1.9)),
    ],
)  # fmt: skip
def test_tones_are_pillow_s(name: str, amount: float, seed: int) -> None:
    frame = picture(seed)
    (found,) = changed(frame[None, None], [Change(None, ((name, float(amount)),))])
    assert (found[0].int() - by_pillow(name, amount, frame).int()).abs().max() <= 1


def test_there_is_a_function_for_every_tone() -> None:
    assert set(augment.TONES) == set(TONES)


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_a_channel_of_one_value_stays(name: str) -> None:
    frame = torch.full((1, 1, 3, SIDE, SIDE), 77, dtype=torch.uint8)
    assert torch.equal(changed(frame, [Change(None, ((name, 0.0),))]), frame)


@pytest.mark.parametrize(("name", "share"), [("rotate", 0.7), ("rotate", -1), ("shear_x", 1), ("shear_y", -0.5), ("translate_x", -0.5)])
def test_warps_are_pillow_s(name: str, share: float) -> None:
    frame, matrix = picture(3), warp_matrix(name, share)
    (found,) = changed(frame[None, None], [Change(tuple(matrix[:2].ravel()), ())])
    half = SIDE / 2  # Pillow counts in pixels from the corner, the map in half sides from the middle
    to_unit = np.array([[1 / half, 0, -1], [0, 1 / half, -1], [0, 0, 1]])
    pixels = np.linalg.inv(to_unit) @ matrix @ to_unit
    image = Image.fromarray(frame.permute(1, 2, 0).numpy())
    moved = image.transform(
        (SIDE, SIDE), Image.Transform.AFFINE, tuple(pixels[:2].ravel()), Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )
    wanted = torch.from_numpy(np.array(moved)).permute(2, 0, 1).int()
    # Pillow leaves whole pixels out at the border of the old picture, where bilinear weights mix it with what lies outside.
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    source = pixels[:2] @ np.stack([x.ravel(), y.ravel(), np.ones(SIDE * SIDE)])
    inside = torch.from_numpy(((source > 1) & (source < SIDE - 1)).all(0).reshape(SIDE, SIDE))
    outside = torch.from_numpy(((source < -1) | (source > SIDE + 1)).any(0).reshape(SIDE, SIDE))
    assert inside.float().mean() > 0.4
    assert (found[0].int() - wanted).abs()[:, inside].max() <= 1
    assert (found[0][:, outside] == augment.FILL).all()


def test_tones_follow_each_other_after_the_warp() -> None:
    frame = picture(5)
    matrix = warp_matrix("translate_x", 0.5) @ warp_matrix("rotate", 0.3)
    both = Change(tuple(matrix[:2].ravel()), (("posterize", 5.0), ("solarize", 90.0)))
    (found,) = changed(frame[None, None], [both])
    (moved,) = changed(frame[None, None], [Change(both.warp, ())])
    wanted = by_pillow("solarize", 90, by_pillow("posterize", 5, moved[0]))
    assert torch.equal(found[0], wanted)


@pytest.mark.parametrize("tone", ["autocontrast", "equalize", "contrast", "sharpness"])
def test_equal_frames_stay_equal_and_unlike_ones_are_changed_by_one_map(tone: str) -> None:
    change = [Change((0.9, 0.1, 0.0, -0.1, 0.9, 0.1), ((tone, 1.5),))]
    still = picture(1).expand(1, 3, 3, SIDE, SIDE)
    found = changed(still, change)
    assert (found == found[:, :1]).all()
    dark, light = picture(1, 10, 60), picture(2, 100, 250)
    together, apart = changed(torch.stack([dark, light])[None], change), changed(dark[None, None], change)
    if tone != "sharpness":  # whose map is the same everywhere
        assert not torch.equal(together[0, 0], apart[0, 0]), "statistics are of the whole clip"


def make_pack() -> Pack:
    """Two clips of 3 frames and four images, all unlike."""
    frames = torch.stack([picture(number) for number in range(10)])
    return Pack(
        frames=frames, groups=((2, 3), (4, 1)), dataset=torch.tensor([0, 0, 1, 1, 1, 1]), targets=torch.zeros(6, 1, dtype=torch.long),
        weight=torch.ones(6), colour=torch.eye(3, 4).expand(6, 3, 4), seed=torch.arange(6),
    )  # fmt: skip


def test_samples_without_a_change_are_not_touched() -> None:
    pack = make_pack()
    change = Change((0.9, 0.1, 0.0, -0.1, 0.9, 0.1), (("solarize", 50.0), ("colour", 0.3)))
    found = change_pixels(replace(pack, changes=(None, change, None, None, change, None)))
    assert found.changes == ()
    same = [(a == b).all().item() for a, b in zip(found.frames, pack.frames, strict=True)]
    assert same == [True] * 3 + [False] * 3 + [True, True, False, True]
    assert torch.equal(found.frames[3:6], changed(pack.frames[3:6][None], [change])[0])
    assert change_pixels(pack) is pack


def test_each_of_many_samples_gets_its_own_amounts() -> None:
    clips = torch.stack([picture(number) for number in range(6)])[:, None]
    changes = [Change(None, (("brightness", 0.2 * number), ("posterize", 4.0 + number % 4))) for number in range(6)]
    together = changed(clips, changes)
    for number, change in enumerate(changes):
        assert torch.equal(together[number], changed(clips[number : number + 1], [change])[0])


def test_erasing_by_hand() -> None:
    frames = torch.arange(1.0, 5).view(4, 1, 1, 1).expand(4, 3, 6, 8).clone()
    found = erased(frames, torch.tensor([[1, 2, 4, 5], [0, 0, 0, 0]]), ((1, 3), (1, 1)))
    assert torch.equal(found[3], frames[3])
    for frame in range(3):
        assert not found[frame, :, 2:5, 1:4].any()
        assert int((found[frame] == 0).sum()) == 3 * 3 * 3
    assert frames.all(), "the frames given stay as they are"


def mix_of(pack: Pack) -> Pack:
    """The clips mixed up, the first two images cut, the other two left alone."""
    return replace(
        pack,
        partner=torch.tensor([1, -1, 1, -1, 0, 0]),
        share=torch.tensor([0.3, 0.3, 0.25, 0.25, 0, 0]),
        cut=torch.tensor([[0, 0, 0, 0]] * 2 + [[0, 0, SIDE // 2, SIDE // 2]] * 2 + [[0, 0, 0, 0]] * 2),
    )


def test_mixing_by_hand() -> None:
    pack = mix_of(make_pack())
    frames = pack.frames.double()
    found, partner, share = mixed(frames, replace(pack, share=pack.share.double()))  # type: ignore[union-attr]
    torch.testing.assert_close(found[:3], 0.7 * frames[:3] + 0.3 * frames[3:6], rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(found[3:6], 0.7 * frames[3:6] + 0.3 * frames[:3], rtol=1e-6, atol=1e-4)
    half = SIDE // 2
    wanted = frames[6].clone()
    wanted[:, :half, :half] = frames[7][:, :half, :half]
    assert torch.equal(found[6], wanted)
    assert torch.equal(found[8:], frames[8:])
    assert partner.tolist() == [1, 0, 3, 2, 4, 5]
    assert share.tolist() == pytest.approx([0.3, 0.3, 0.25, 0.25, 0, 0])


@pytest.mark.parametrize("lost", [0, 3])
def test_where_a_partner_could_not_be_read_nothing_is_mixed(lost: int) -> None:
    pack = mix_of(make_pack())
    weight = torch.ones(6)
    weight[lost] = 0
    frames = pack.frames.float()
    found, _, share = mixed(frames, replace(pack, weight=weight))
    pair, kept = (slice(0, 6), slice(6, 8)) if lost == 0 else (slice(6, 8), slice(0, 6))
    assert torch.equal(found[pair], frames[pair])
    assert not torch.equal(found[kept], frames[kept])
    assert share[lost] == share[lost ^ 1] == 0
