"""What is done to the pixels of a sample, every parameter of it taken from the sample's own draw."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the source
RATIO = (3 / 4, 4 / 3)


def random_box(rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> Box:
    """The box of a random-resized crop (Inception): a share of the area in `scale`, an aspect ratio in 3/4 to 4/3."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    return view_box(width, height, 0, 1)


def view_box(width: int, height: int, crop: int, crops: int) -> Box:
    """The square box of evaluation crop `crop` of `crops`: as large as the short side, equally spaced along the long side."""
    side = min(width, height)
    share = crop / (crops - 1) if crops > 1 else 0.5
    left, top = (width - side) * share, (height - side) * share
    return left, top, left + side, top + side


def crop_resize(frames: np.ndarray | Sequence[np.ndarray], box: Box, size: int, flip: bool = False) -> np.ndarray:
    """Cut the same `box` from every frame, scale it to a square (bilinear with antialiasing), mirror it where `flip`.

    `frames`: uint8 `(T, H, W, 3)`. Returns uint8 `(T, 3, size, size)`.
    """
    out = np.empty((len(frames), size, size, 3), np.uint8)
    for number, frame in enumerate(frames):
        out[number] = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR, box=box))
    if flip:
        out = out[:, :, ::-1]
    return np.ascontiguousarray(out.transpose(0, 3, 1, 2))


LUMA = np.array([0.299, 0.587, 0.114])


def random_colour(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A light colour change as an affine map of RGB in 0..1: brightness, contrast about mid-grey, saturation.

    Each factor is uniform in 1 ± `strength`. Returns float32 `(3, 4)`: a matrix and, in the last column, an offset; the
    identity for strength 0. It is applied on the device, the same for all frames of a clip.
    """
    brightness, contrast, saturation = 1 + strength * rng.uniform(-1, 1, size=3)
    matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA[None, :])
    offset = np.full((3, 1), 0.5 * (1 - contrast))
    return np.concatenate([matrix, offset], axis=1).astype(np.float32)
