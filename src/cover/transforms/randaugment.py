"""RandAugment (Cubuk et al.): operations drawn for each sample, and applied to whole clips on the device.

The operations are the published fourteen (section 3), none left out, and none of them mirrors a picture: what a catalog
says of flips holds. Settings are written as timm writes them, `m7-n4`, and each operation is applied with a probability
of 0.5 as there; the article itself applies every one it draws (`m7-n4-p1`).

They differ from Pillow's, frame by frame, in two ways: all geometric operations of a sample make one affine map, so
that pixels are resampled once, before the colour operations; and histograms and means are those of the whole clip, so
that a clip does not flicker.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.errors import UserError
from cover.transforms.base import FrameGroups, Stage, Transform

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
LARGEST = 10.0  # the magnitude at which an operation is at its limit
DEGREES, SHEAR, TRANSLATE = 30.0, 0.3, 0.45  # the limits; a translation is a fraction of the side
FACTOR = 0.9  # 1 +- this is the limit of colour, contrast, brightness and sharpness (timm's increasing variant)
FEWEST_BITS = 4  # left by posterize at the limit (the article; timm's increasing variant goes down to 0)
FILL = 128  # outside a picture that was moved
LUMA = (19595, 38470, 7471)  # Pillow's weights of a grey, in 65536ths
_NUM = r"\d+(?:\.\d+)?"
_SPEC = re.compile(rf"(?:rand-)?m(?P<m>{_NUM})-n(?P<n>\d+)(?:-m?std(?P<std>{_NUM}))?(?:-p(?P<p>{_NUM}))?(?:-inc1)?")


class Operations(NamedTuple):
    """The operations of one sample, the same in all frames of a clip.

    `affine`: the six numbers of a map, row by row, from places in the new picture to places in the old one, sides from
    -1 to 1; None where nothing moves. `colour`: names in `COLOUR` and their amounts, in the order in which they are
    applied, after the map.
    """

    affine: tuple[float, ...] | None
    colour: tuple[tuple[str, float], ...]


# --- settings and draw ---


@dataclass(frozen=True)
class RandAugment(Transform):
    """`count` operations, each applied with probability `chance`, of magnitudes from 0 to 10.

    Magnitudes are normally distributed about `magnitude` with the standard deviation `std`.
    """

    magnitude: float = 0.0
    count: int = 0
    std: float = 0.0
    chance: float = 0.5
    stage: ClassVar[Stage] = "uint8"

    @staticmethod
    def parse(text: str) -> RandAugment:
        """The settings of `m7-n4`, `m7-n4-std0.5-p1` or timm's `rand-m7-n4-mstd0.5-inc1`; no operation if empty.

        Raises `UserError` for any other text.
        """
        if not text:
            return RandAugment()
        if match := _SPEC.fullmatch(text):
            magnitude, count, chance = float(match["m"]), int(match["n"]), float(match["p"] or 0.5)
            if magnitude <= LARGEST and 1 <= count <= len(OPERATIONS) and chance <= 1:
                return RandAugment(magnitude, count, float(match["std"] or 0), chance)
        raise UserError(
            f'"{text}" is no RandAugment: write mM-nN with a magnitude M of 0 to {LARGEST:.0f} and N of 1 to'
            f" {len(OPERATIONS)} operations, as in m7-n4, or m7-n4-std0.5-p1"
        )

    @property
    def is_identity(self) -> bool:
        return not self.count

    def draw(self, rng: np.random.Generator, size: int) -> Operations | None:
        """The operations of one sample; None where nothing is changed."""
        affine, colour = np.eye(3), []
        for name in rng.choice(OPERATIONS, self.count):
            applied, sign = rng.random() < self.chance, 1 if rng.random() < 0.5 else -1
            fraction = min(LARGEST, max(0.0, rng.normal(self.magnitude, self.std))) / LARGEST
            if applied and name in GEOMETRIC:
                affine = affine @ affine_matrix(name, sign * fraction)
            elif applied and name != "identity":
                colour.append((str(name), colour_amount(name, fraction, sign)))
        moved = None if np.array_equal(affine, np.eye(3)) else tuple(affine[:2].ravel().tolist())
        return Operations(moved, tuple(colour)) if moved or colour else None

    @staticmethod
    def apply(frames: Tensor, operations: Sequence[Operations | None], groups: FrameGroups) -> Tensor:
        """uint8 frames `(F, 3, H, W)` with each sample's operations applied.

        The host knows which samples are changed, so that no device waits for another.
        """
        if not any(operations):
            return frames
        changed, first = [], 0
        parts = frames.split([samples * length for samples, length in groups])
        for part, (samples, length) in zip(parts, groups, strict=True):
            clips = part.unflatten(0, (samples, length))
            changed.append(apply_operations(clips, operations[first : first + samples]).flatten(0, 1))
            first += samples
        return torch.cat(changed)


def affine_matrix(name: str, fraction: float) -> np.ndarray:
    """Float `(3, 3)`, about the middle of the picture: an operation at `fraction` of its limit, of either sign."""
    matrix = np.eye(3)
    if name == "rotate":
        angle = math.radians(DEGREES * fraction)
        matrix[:2, :2] = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    elif name.startswith("shear"):
        matrix[(0, 1) if name == "shear_x" else (1, 0)] = SHEAR * fraction
    else:
        matrix[0 if name == "translate_x" else 1, 2] = 2 * TRANSLATE * fraction  # a side is 2 long
    return matrix


def colour_amount(name: str, fraction: float, sign: int) -> float:
    """The parameter of a colour operation: a threshold (solarize), bits left (posterize), a factor, or 0 for none."""
    if name == "solarize":
        return 256 * (1 - fraction)
    if name == "posterize":
        return 8 - round((8 - FEWEST_BITS) * fraction)
    return 1 + sign * FACTOR * fraction if name in ("colour", "contrast", "brightness", "sharpness") else 0.0


# --- apply, to clips `(S, T, 3, H, W)` of equal length ---


def apply_operations(clips: Tensor, operations: Sequence[Operations | None]) -> Tensor:
    """uint8 clips `(S, T, 3, H, W)` with each one's operations applied: the affine map, then the colour operations."""
    clips = clips.clone()
    moved = [number for number, each in enumerate(operations) if each and each.affine]
    if moved:
        clips[moved] = apply_affine(clips[moved], [each.affine for each in operations if each and each.affine])
    colour = [each.colour if each else () for each in operations]
    for layer in range(max(map(len, colour))):
        for name, function in COLOUR.items():
            mine = [number for number, each in enumerate(colour) if layer < len(each) and each[layer][0] == name]
            if mine:
                amounts = [colour[number][layer][1] for number in mine]
                clips[mine] = function(clips[mine], torch.tensor(amounts, dtype=torch.float32, device=clips.device))
    return clips


def apply_affine(clips: Tensor, maps: Sequence[tuple[float, ...]]) -> Tensor:
    """Clips moved by their maps (`Operations.affine`), bilinear, `FILL` outside. A clip's frames share one grid."""
    samples, length, channels, height, width = clips.shape
    shape = (samples, length * channels, height, width)
    maps_S23 = torch.tensor(maps, dtype=torch.float32, device=clips.device).view(-1, 2, 3)
    grid = fn.affine_grid(maps_S23, list(shape), align_corners=False)
    moved = fn.grid_sample(clips.reshape(shape).float() - FILL, grid, align_corners=False)  # outside it is 0
    return (moved + FILL).round_().to(torch.uint8).view_as(clips)


# --- colour operations: Pillow's arithmetic, over a clip where Pillow has one picture ---


def autocontrast(clips: Tensor, _: Tensor) -> Tensor:
    """Every channel stretched to 0 to 255."""
    low, high = (edge.float() for edge in clips.transpose(1, 2).flatten(2).aminmax(dim=2))
    scale = 255 / (high - low).clamp(min=1)
    stretched = (_levels(clips) - low[..., None]) * scale[..., None] + 1e-3  # float32 may end just below a whole number
    return _from_tables(clips, torch.where((high > low)[..., None], stretched, _levels(clips).float()))


def equalize(clips: Tensor, _: Tensor) -> Tensor:
    """Every channel's histogram made flat."""
    counts = _histograms(clips)
    highest = (counts > 0).long().mul(_levels(clips)).argmax(2, keepdim=True)  # level that occurs
    last = counts.gather(2, highest)
    step = (counts.sum(2, keepdim=True) - last) // 255
    flat = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return _from_tables(clips, torch.where(step > 0, flat, _levels(clips)))


def solarize(clips: Tensor, thresholds: Tensor) -> Tensor:
    """Values from the threshold on inverted."""
    levels = _levels(clips)
    return _from_tables(clips, torch.where(levels < thresholds[:, None, None], levels, 255 - levels))


def posterize(clips: Tensor, bits: Tensor) -> Tensor:
    """Only the highest bits left."""
    unit = 2 ** (8 - bits[:, None, None]).long()
    return _from_tables(clips, _levels(clips) // unit * unit)


def brightness(clips: Tensor, factors: Tensor) -> Tensor:
    """Away from black, or towards it."""
    return _from_tables(clips, _levels(clips) * factors[:, None, None])


def contrast(clips: Tensor, factors: Tensor) -> Tensor:
    """Away from the clip's mean grey, or towards it."""
    mean = (_grey(clips).double().mean((1, 2, 3, 4)) + 0.5).floor().float()[:, None, None]
    return _from_tables(clips, mean + factors[:, None, None] * (_levels(clips) - mean))


def colour(clips: Tensor, factors: Tensor) -> Tensor:
    """Away from each pixel's grey, or towards it."""
    return _blend(_grey(clips), clips, factors)


def sharpness(clips: Tensor, factors: Tensor) -> Tensor:
    """Away from the smoothed picture, or towards it; a border of one pixel stays, as in Pillow."""
    kernel = torch.ones(1, 1, 3, 3, device=clips.device)
    kernel[0, 0, 1, 1] = 5
    planes = clips.reshape(-1, 1, *clips.shape[3:]).float()
    smooth = clips.clone().view_as(planes)
    smooth[..., 1:-1, 1:-1] = (fn.conv2d(planes, kernel / 13) + 0.5).to(torch.uint8)
    return _blend(smooth.view_as(clips), clips, factors)


def _levels(clips: Tensor) -> Tensor:
    return torch.arange(256, device=clips.device)


def _from_tables(clips: Tensor, tables: Tensor) -> Tensor:
    """Every value replaced by that in a table: `(S, 3 or 1, 256)`, clamped to 0 to 255, cut down to whole numbers."""
    samples, length, channels, height, width = clips.shape
    values = clips.transpose(1, 2).reshape(samples, channels, -1)
    result = tables.clamp(0, 255).to(torch.uint8).expand(-1, channels, -1).gather(2, values.long())
    return result.view(samples, channels, length, height, width).transpose(1, 2)


def _histograms(clips: Tensor) -> Tensor:
    """How often each value comes in a channel of a clip, int64 `(S, 3, 256)`."""
    values = clips.transpose(1, 2).flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=clips.device)
    return counts.scatter_add_(2, values, torch.ones_like(values))


def _blend(base: Tensor, clips: Tensor, factors: Tensor) -> Tensor:
    """`base` at factor 0, `clips` at factor 1, and beyond."""
    mixed = torch.lerp(base.float().expand(clips.shape), clips.float(), factors.view(-1, 1, 1, 1, 1))
    return mixed.clamp_(0, 255).to(torch.uint8)


def _grey(clips: Tensor) -> Tensor:
    red, green, blue = clips.int().split(1, 2)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2] + 0x8000) >> 16


COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": autocontrast,
    "equalize": equalize,
    "solarize": solarize,
    "posterize": posterize,
    "colour": colour,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
}
OPERATIONS = ("identity", *GEOMETRIC, *COLOUR)  # draws depend on this order
