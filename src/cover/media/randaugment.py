"""Which changes does RandAugment make to a sample? Drawn here, from the sample's own draw; made on the device (training/augment.py).

The operations are the published fourteen (Cubuk et al., RandAugment, section 3), none left out, and none of them mirrors a picture: what
a catalog says of flips holds. Settings are written as timm writes them, `m7-n4`, and each operation is made with a chance of 0.5 as
there; the article itself makes every one it draws (`m7-n4-p1`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cover.errors import UserError

WARPS = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
TONES = ("autocontrast", "equalize", "solarize", "posterize", "colour", "contrast", "brightness", "sharpness")
OPERATIONS = ("identity", *WARPS, *TONES)
LARGEST = 10.0  # the magnitude at which a change is at its limit
DEGREES, SHEAR, TRANSLATE = 30.0, 0.3, 0.45  # the limits; a translation is a share of the side
FACTOR = 0.9  # colour, contrast, brightness and sharpness are multiplied by 1 +- this at the limit (timm's increasing variant)
FEWEST_BITS = 4  # kept by posterize at the limit (the article; timm's increasing variant goes down to 0)
_SPEC = re.compile(r"(?:rand-)?m(?P<m>\d+(?:\.\d+)?)-n(?P<n>\d+)(?:-m?std(?P<std>\d+(?:\.\d+)?))?(?:-p(?P<p>[01](?:\.\d+)?))?(?:-inc1)?")


class Change(NamedTuple):
    """What is made of one sample, the same in all frames of a clip.

    `warp`: the six numbers of an affine map, row by row, from places in the new picture to places in the old one, sides from -1 to 1;
    None where nothing moves. `tones`: operations of `TONES` with their amount, in their order.
    """

    warp: tuple[float, ...] | None
    tones: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class RandAugment:
    """`count` operations of normally distributed `magnitude` (0 to 10, standard deviation `std`), each made with `chance`."""

    magnitude: float
    count: int
    std: float = 0.0
    chance: float = 0.5

    @staticmethod
    def parse(text: str) -> RandAugment | None:
        """`m7-n4`, and after it `-std0.5` and `-p1`; timm's `rand-m7-n4-mstd0.5-inc1` too. None for an empty text. Raises `UserError`."""
        if not text:
            return None
        match = _SPEC.fullmatch(text)
        if not match or float(match["m"]) > LARGEST or not 1 <= int(match["n"]) <= len(OPERATIONS) or float(match["p"] or 0) > 1:
            raise UserError(
                f'"{text}" is no RandAugment: write mM-nN with a magnitude M of 0 to {LARGEST:.0f} and N of 1 to {len(OPERATIONS)}'
                " operations, as in m7-n4, or m7-n4-std0.5-p1"
            )
        return RandAugment(float(match["m"]), int(match["n"]), float(match["std"] or 0), float(match["p"] or 0.5))

    def draw(self, rng: np.random.Generator) -> Change | None:
        """The changes of one sample; None where there are none. All warps make one map, so that pixels are resampled once, before tones."""
        warp, tones = np.eye(3), []
        for name in rng.choice(OPERATIONS, self.count):
            made, sign = rng.random() < self.chance, 1 if rng.random() < 0.5 else -1
            share = min(LARGEST, max(0.0, rng.normal(self.magnitude, self.std))) / LARGEST
            if made and name in WARPS:
                warp = warp @ warp_matrix(name, sign * share)
            elif made and name != "identity":
                tones.append((str(name), tone_amount(name, share, sign)))
        moved = None if np.array_equal(warp, np.eye(3)) else tuple(warp[:2].ravel().tolist())
        return Change(moved, tuple(tones)) if moved or tones else None


def warp_matrix(name: str, share: float) -> np.ndarray:
    """Float `(3, 3)`, about the middle of the picture: `share` of the limit of a warp, negative for the other way."""
    matrix = np.eye(3)
    if name == "rotate":
        angle = math.radians(DEGREES * share)
        matrix[:2, :2] = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    elif name.startswith("shear"):
        matrix[(0, 1) if name == "shear_x" else (1, 0)] = SHEAR * share
    else:
        matrix[0 if name == "translate_x" else 1, 2] = 2 * TRANSLATE * share
    return matrix


def tone_amount(name: str, share: float, sign: int) -> float:
    """What an operation is told: solarize a threshold, posterize the bits that stay, the others a factor (or nothing, so 0)."""
    if name == "solarize":
        return 256 * (1 - share)
    if name == "posterize":
        return 8 - round((8 - FEWEST_BITS) * share)
    return 1 + sign * FACTOR * share if name in ("colour", "contrast", "brightness", "sharpness") else 0.0


def random_erasing(rng: np.random.Generator, chance: float, size: int) -> np.ndarray:
    """The box that is erased, int64 `(4,)`: left, top, right, bottom in pixels; empty (zeros) except with `chance`.

    A share of the area in 0.02 to 1/3 and an aspect ratio in 0.3 to 1/0.3, logarithmically uniform (Zhong et al.; timm).
    """
    box = np.zeros(4, np.int64)
    if rng.random() >= chance:
        return box
    for _ in range(10):
        area, ratio = size * size * rng.uniform(0.02, 1 / 3), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= width < size and 1 <= height < size:
            left, top = rng.integers(size - width, endpoint=True), rng.integers(size - height, endpoint=True)
            return np.array([left, top, left + width, top + height])
    return box
