"""RandAugment (Cubuk et al.): random operations for each sample, applied to whole clips on the device.

The operations are the fourteen of the paper (section 3). None of them mirrors a frame, so the catalog's setting of
flips stays valid. Settings are written as in timm, `m7-n4`, and as in timm each operation is applied with probability
0.5. The paper applies all operations (`m7-n4-p1`).

There are two differences from Pillow's operations frame by frame. All geometric operations of a sample form one affine
map, so pixels are resampled once, before the colour operations. And histograms and means are those of the whole clip,
so that a clip does not flicker.
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
from cover.hardware import wide_dtype
from cover.transforms.base import FrameGroups, Stage, Transform

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
LARGEST = 10.0  # the magnitude at which operations reach their limits
DEGREES, SHEAR, TRANSLATE = 30.0, 0.3, 0.45  # limits; a translation is a fraction of the side
FACTOR = 0.9  # colour, contrast, brightness, sharpness have the limits 1 ± FACTOR (timm's increasing variant)
FEWEST_BITS = 4  # bits after posterize at the limit (paper; timm's increasing variant goes down to 0)
FILL = 128  # grey level outside a moved frame
LUMA = (19595, 38470, 7471)  # Pillow's weights of red, green and blue in a grey, times 65536
_NUM = r"\d+(?:\.\d+)?"
_SPEC = re.compile(rf"(?:rand-)?m(?P<m>{_NUM})-n(?P<n>\d+)(?:-m?std(?P<std>{_NUM}))?(?:-p(?P<p>{_NUM}))?(?:-inc1)?")


class Operations(NamedTuple):
    """The operations of one sample. They are the same in all frames of a clip.

    `affine`: six numbers, row by row, of the map from positions in the new frame to positions in the old frame, in
    coordinates from -1 to 1. None for no geometric operation. `colour`: names in `COLOUR` and their amounts, in order.
    They are applied after the map.
    """

    affine: tuple[float, ...] | None
    colour: tuple[tuple[str, float], ...]


# --- settings and draw ---


@dataclass(frozen=True)
class RandAugment(Transform):
    """Draws `count` operations per sample, and applies each with probability `chance`.

    Their magnitudes (0 to 10) are normally distributed with mean `magnitude` and standard deviation `std`.
    """

    magnitude: float = 0.0
    count: int = 0
    std: float = 0.0
    chance: float = 0.5
    stage: ClassVar[Stage] = "uint8"

    @staticmethod
    def parse(text: str) -> RandAugment:
        """Parse `m7-n4`, `m7-n4-std0.5-p1` or timm's `rand-m7-n4-mstd0.5-inc1`. Empty text gives no operations.

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
        """The operations of one sample, None if they change nothing."""
        affine, colour = np.eye(3), []
        for name in rng.choice(OPERATIONS, self.count):
            # Every operation draws the same numbers, applied or not, so later draws do not depend on the outcome.
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
        """uint8 frames `(F, 3, H, W)` after the operations of each sample.

        The operations are on the host, so the host needs no data from the device and does not wait for it.
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
    """float64 `(3, 3)`: a geometric operation about the middle of the frame. `fraction`: -1 to 1 of its limit."""
    matrix = np.eye(3)
    if name == "rotate":
        angle = math.radians(DEGREES * fraction)
        matrix[:2, :2] = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    elif name.startswith("shear"):
        matrix[(0, 1) if name == "shear_x" else (1, 0)] = SHEAR * fraction
    else:
        matrix[0 if name == "translate_x" else 1, 2] = 2 * TRANSLATE * fraction  # a side goes from -1 to 1
    return matrix


def colour_amount(name: str, fraction: float, sign: int) -> float:
    """The parameter of a colour operation: a threshold (solarize), bits (posterize), a factor, or 0 (no parameter)."""
    if name == "solarize":
        return 256 * (1 - fraction)
    if name == "posterize":
        return 8 - round((8 - FEWEST_BITS) * fraction)
    return 1 + sign * FACTOR * fraction if name in ("colour", "contrast", "brightness", "sharpness") else 0.0


# --- apply, to clips `(S, T, 3, H, W)` of equal length ---


def apply_operations(clips: Tensor, operations: Sequence[Operations | None]) -> Tensor:
    """uint8 clips `(S, T, 3, H, W)` after their operations: first the affine map, then the colour operations."""
    clips = clips.clone()
    moved = [number for number, each in enumerate(operations) if each and each.affine]
    if moved:
        clips[moved] = apply_affine(clips[moved], [each.affine for each in operations if each and each.affine])
    colour = [each.colour if each else () for each in operations]
    # Layer n is the n-th colour operation of every sample. Samples with the same operation are computed together.
    for layer in range(max(map(len, colour))):
        for name, function in COLOUR.items():
            mine = [number for number, each in enumerate(colour) if layer < len(each) and each[layer][0] == name]
            if mine:
                amounts = [colour[number][layer][1] for number in mine]
                clips[mine] = function(clips[mine], torch.tensor(amounts, dtype=torch.float32, device=clips.device))
    return clips


def apply_affine(clips: Tensor, maps: Sequence[tuple[float, ...]]) -> Tensor:
    """Clips after their maps (`Operations.affine`), bilinear, `FILL` outside. The frames of a clip share a grid."""
    samples, length, channels, height, width = clips.shape
    shape = (samples, length * channels, height, width)
    maps_S23 = torch.tensor(maps, dtype=torch.float32, device=clips.device).view(-1, 2, 3)
    grid = fn.affine_grid(maps_S23, list(shape), align_corners=False)
    moved = fn.grid_sample(clips.reshape(shape).float() - FILL, grid, align_corners=False)  # 0 outside
    return (moved + FILL).round_().to(torch.uint8).view_as(clips)


# --- colour operations: Pillow's arithmetic, over a whole clip instead of one picture ---


def autocontrast(clips: Tensor, _: Tensor) -> Tensor:
    """Stretch every channel to 0 to 255."""
    low, high = (edge.float() for edge in clips.transpose(1, 2).flatten(2).aminmax(dim=2))
    scale = 255 / (high - low).clamp(min=1)
    stretched = (_levels(clips) - low[..., None]) * scale[..., None] + 1e-3  # float32 may be just below a whole number
    return _from_tables(clips, torch.where((high > low)[..., None], stretched, _levels(clips).float()))


def equalize(clips: Tensor, _: Tensor) -> Tensor:
    """Make the histogram of every channel flat."""
    counts = _histograms(clips)
    highest = (counts > 0).long().mul(_levels(clips)).argmax(2, keepdim=True)  # highest level that occurs
    last = counts.gather(2, highest)
    # As in Pillow: the step leaves out the pixels of the highest level, and a step of 0 changes nothing.
    step = (counts.sum(2, keepdim=True) - last) // 255
    flat = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return _from_tables(clips, torch.where(step > 0, flat, _levels(clips)))


def solarize(clips: Tensor, thresholds: Tensor) -> Tensor:
    """Invert all values from the threshold on."""
    levels = _levels(clips)
    return _from_tables(clips, torch.where(levels < thresholds[:, None, None], levels, 255 - levels))


def posterize(clips: Tensor, bits: Tensor) -> Tensor:
    """Clear all but the highest bits."""
    unit = 2 ** (8 - bits[:, None, None]).long()
    return _from_tables(clips, _levels(clips) // unit * unit)


def brightness(clips: Tensor, factors: Tensor) -> Tensor:
    """Scale all values by a factor."""
    return _from_tables(clips, _levels(clips) * factors[:, None, None])


def contrast(clips: Tensor, factors: Tensor) -> Tensor:
    """Scale all values about the mean grey of the clip."""
    mean = (_grey(clips).to(wide_dtype(clips.device)).mean((1, 2, 3, 4)) + 0.5).floor().float()[:, None, None]
    return _from_tables(clips, mean + factors[:, None, None] * (_levels(clips) - mean))


def colour(clips: Tensor, factors: Tensor) -> Tensor:
    """Scale every pixel about its own grey."""
    return _blend(_grey(clips), clips, factors)


def sharpness(clips: Tensor, factors: Tensor) -> Tensor:
    """Scale every pixel about its smoothed value. As in Pillow, a border of one pixel is not smoothed."""
    kernel = torch.ones(1, 1, 3, 3, device=clips.device)
    kernel[0, 0, 1, 1] = 5
    planes = clips.reshape(-1, 1, *clips.shape[3:]).float()
    smooth = clips.clone().view_as(planes)
    smooth[..., 1:-1, 1:-1] = (fn.conv2d(planes, kernel / 13) + 0.5).to(torch.uint8)
    return _blend(smooth.view_as(clips), clips, factors)


def _levels(clips: Tensor) -> Tensor:
    return torch.arange(256, device=clips.device)


def _from_tables(clips: Tensor, tables: Tensor) -> Tensor:
    """Replace every value by its entry in `tables` `(S, 3 or 1, 256)`, clamped to 0 to 255 and truncated."""
    samples, length, channels, height, width = clips.shape
    values = clips.transpose(1, 2).reshape(samples, channels, -1)
    result = tables.clamp(0, 255).to(torch.uint8).expand(-1, channels, -1).gather(2, values.long())
    return result.view(samples, channels, length, height, width).transpose(1, 2)


def _histograms(clips: Tensor) -> Tensor:
    """int64 `(S, 3, 256)`: the count of each value in each channel of a clip."""
    values = clips.transpose(1, 2).flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=clips.device)
    return counts.scatter_add_(2, values, torch.ones_like(values))


def _blend(base: Tensor, clips: Tensor, factors: Tensor) -> Tensor:
    """Interpolate from `base` (factor 0) to `clips` (factor 1), or extrapolate. Clamped and truncated to uint8."""
    mixed = torch.lerp(base.float().expand(clips.shape), clips.float(), factors.view(-1, 1, 1, 1, 1))
    return mixed.clamp_(0, 255).to(torch.uint8)


def _grey(clips: Tensor) -> Tensor:
    """int32 `(S, T, 1, H, W)`: the grey of each pixel, rounded as in Pillow."""
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
