"""Crops and horizontal flips of training samples, and the crops of evaluation views."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as fn
from torch import Tensor

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
RATIO = (3 / 4, 4 / 3)  # width to height of random crops


# --- crops ---


def random_box(rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> Box:
    """The box of a random-resized crop (Szegedy et al., Going deeper with convolutions, section 6).

    `scale`: range of its area, as fractions of the frame. The aspect ratio is in `RATIO`. After ten boxes that do not
    fit into the frame, it is the middle square.
    """
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
    """The largest square in the middle of the frame."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def crop_resize(frames: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Crop the same `box` from every frame and resize it to a square (bilinear with antialiasing, as in Pillow).

    `frames`: uint8 `(T, H, W, 3)`. Returns uint8 `(T, 3, size, size)`.
    """
    left, top, right, bottom = box
    return _scaled(frames[:, top:bottom, left:right], size, size).contiguous().numpy()


def view_crops(frames: np.ndarray, size: int, crops: int) -> list[np.ndarray]:
    """The spatial views of evaluation: frames resized to a short side of `size`, and squares along the long side.

    `frames`: uint8 `(T, H, W, 3)`. Returns `crops` arrays, uint8 `(T, 3, size, size)`. They share memory.
    """
    scaled = short_side_scaled(frames, size).contiguous().numpy()
    corners = crop_corners((scaled.shape[2], scaled.shape[3]), size, crops)
    return [scaled[:, :, top : top + size, left : left + size] for top, left in corners]


def short_side_scaled(frames: np.ndarray, size: int) -> Tensor:
    """Frames resized to a short side of `size`, uint8 `(T, H, W, 3)` to `(T, 3, h, w)`, colours last in memory."""
    height, width = frames.shape[1:3]
    short = min(width, height)
    return _scaled(frames, round(height * size / short), round(width * size / short))


def crop_corners(sides: tuple[int, int], size: int, crops: int) -> list[tuple[int, int]]:
    """Top and left of `crops` squares of `size` pixels along the long side of frames of these sides (height, width)."""
    fractions = [crop / (crops - 1) for crop in range(crops)] if crops > 1 else [0.5]
    spare_y, spare_x = sides[0] - size, sides[1] - size  # one of them is 0
    return [(int(spare_y * fraction), int(spare_x * fraction)) for fraction in fractions]


def _scaled(frames: np.ndarray, height: int, width: int) -> Tensor:
    """uint8 `(T, H, W, 3)` to `(T, 3, height, width)`. Torch's 8-bit path gives the same pixels as Pillow, faster."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if pixels.shape[2:] != (height, width):
        pixels = fn.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return pixels


# --- flips ---

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def draw_flip(
    rng: np.random.Generator, labels: Sequence[int], allowed: bool, mirror: npt.NDArray[np.int32] | None
) -> tuple[bool, Sequence[int]]:
    """Whether a sample is flipped, and its labels after the flip. The probability is 0.5 if `allowed`.

    `mirror`: the result of `mirror_pairs`, or None if flips change no label. A sample with a label without a
    counterpart is not flipped. The generator advances by one number in every case, so that later draws do not depend on
    `allowed`.
    """
    flip = bool(rng.random() < 0.5)
    if not (flip and allowed):
        return False, labels
    if mirror is None:
        return True, labels
    mirrored = [int(mirror[label]) for label in labels]
    return (False, labels) if any(label < 0 for label in mirrored) else (True, mirrored)


def apply_flip(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The frames `(..., W)` mirrored left to right, as a copy."""
    return frames[..., ::-1].copy()


def mirror_pairs(names: Sequence[str]) -> npt.NDArray[np.int32]:
    """int32 `(classes,)`: the label of each class after a horizontal flip.

    If a class name has the words left or right, this is the class with the two words exchanged, or -1 (never flip) if
    there is no such class. Otherwise it is the class itself. "left" as a verb ("something left behind") counts as a
    side. This only reduces the number of flips, and never gives a wrong label. Something-Something-v2 has three pairs,
    which are those of mmaction2.
    """
    index = {name.lower(): label for label, name in enumerate(names)}
    mirrored = list(range(len(names)))
    for label, name in enumerate(names):
        if _SIDES.search(name):
            mirrored[label] = index.get(_SIDES.sub(_other, name).lower(), -1)
    return np.array(mirrored, np.int32)


def _other(side: re.Match[str]) -> str:
    return "right" if side[0].lower() == "left" else "left"
