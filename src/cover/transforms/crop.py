"""Crops and horizontal flips: how each is drawn, and how it is applied."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as fn

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the source
RATIO = (3 / 4, 4 / 3)


def random_box(rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> Box:
    """The box of a random-resized crop (Inception): a fraction of the area in `scale`, an aspect ratio in `RATIO`."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        exact_w, exact_h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if exact_w <= width and exact_h <= height:
            w, h = max(1, round(exact_w)), max(1, round(exact_h))
            left, top = int(rng.integers(width - w, endpoint=True)), int(rng.integers(height - h, endpoint=True))
            return left, top, left + w, top + h
    return middle_box(width, height)


def middle_box(width: int, height: int) -> Box:
    """The square in the middle, as large as the short side."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def crop_resize(frames: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cut the same `box` from every frame and scale it to a square (bilinear with antialiasing, as Pillow's).

    `frames`: uint8 `(T, H, W, 3)`. Returns uint8 `(T, 3, size, size)`.
    """
    left, top, right, bottom = box
    return _scaled(frames[:, top:bottom, left:right], size, size)


def view_crops(frames: np.ndarray, size: int, crops: int) -> list[np.ndarray]:
    """The views of evaluation: frames scaled to a short side of `size`, then `crops` squares along the long side.

    `frames`: uint8 `(T, H, W, 3)`. Returns `crops` uint8 views `(T, 3, size, size)` of the scaled frames.
    """
    height, width = frames.shape[1:3]
    short = min(width, height)
    scaled = _scaled(frames, round(height * size / short), round(width * size / short))
    fractions = [crop / (crops - 1) for crop in range(crops)] if crops > 1 else [0.5]
    spare_y, spare_x = scaled.shape[2] - size, scaled.shape[3] - size  # one of them is 0
    corners = [(int(spare_y * fraction), int(spare_x * fraction)) for fraction in fractions]
    return [scaled[:, :, top : top + size, left : left + size] for top, left in corners]


def _scaled(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `(T, H, W, 3)` to `(T, 3, height, width)`. Torch's 8-bit path gives Pillow's pixels in less time."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if pixels.shape[2:] != (height, width):
        pixels = fn.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return pixels.contiguous().numpy()


_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def draw_flip(
    rng: np.random.Generator, labels: Sequence[int], allowed: bool, mirror: npt.NDArray[np.int32] | None
) -> tuple[bool, Sequence[int]]:
    """Whether a sample is flipped, with a probability of 0.5 if `allowed`, and its labels after that.

    `mirror`: what `mirror_pairs` returns, or None where flips change no label. A sample with a label that has no
    counterpart is not flipped. The generator advances the same in every case.
    """
    wanted = bool(rng.random() < 0.5)
    if not (wanted and allowed):
        return False, labels
    if mirror is None:
        return True, labels
    mirrored = [int(mirror[label]) for label in labels]
    return (False, labels) if any(label < 0 for label in mirrored) else (True, mirrored)


def apply_flip(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Frames `(..., W)`, mirrored left to right, in memory of their own."""
    return frames[..., ::-1].copy()


def mirror_pairs(names: Sequence[str]) -> npt.NDArray[np.int32]:
    """int32 `(classes,)`: the label of each class after a horizontal flip.

    It is the class whose name is this one's with the words left and right exchanged, the class itself if its name has
    neither, and -1 (never flip) if it has them and no class is its counterpart. "left" as a verb ("something left
    behind") counts as a side, which costs flips and never gives a wrong label. Something-Something-v2 has three pairs,
    the ones that mmaction2 swaps.
    """
    index = {name.lower(): label for label, name in enumerate(names)}
    mirrored = list(range(len(names)))
    for label, name in enumerate(names):
        if _SIDES.search(name):
            mirrored[label] = index.get(_SIDES.sub(_other, name).lower(), -1)
    return np.array(mirrored, np.int32)


def _other(side: re.Match[str]) -> str:
    return "right" if side[0].lower() == "left" else "left"
