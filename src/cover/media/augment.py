"""What is done to the pixels of a sample, every parameter of it taken from the sample's own draw."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as fn

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the source
RATIO = (3 / 4, 4 / 3)


def random_box(rng: np.random.Generator, width: int, height: int, scale: tuple[float, float]) -> Box:
    """The box of a random-resized crop (Inception): a share of the area in `scale`, an aspect ratio in 3/4 to 4/3, in whole pixels."""
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
    """Evaluation's views: the frames scaled to a short side of `size`, then `crops` squares equally spaced along the long side.

    `frames`: uint8 `(T, H, W, 3)`. Returns `crops` uint8 views `(T, 3, size, size)` of the scaled frames.
    """
    height, width = frames.shape[1:3]
    short = min(width, height)
    scaled = _scaled(frames, round(height * size / short), round(width * size / short))
    shares = [crop / (crops - 1) for crop in range(crops)] if crops > 1 else [0.5]
    corners = [(int((scaled.shape[2] - size) * share), int((scaled.shape[3] - size) * share)) for share in shares]
    return [scaled[:, :, top : top + size, left : left + size] for top, left in corners]


def _scaled(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `(T, H, W, 3)` to `(T, 3, height, width)`. In torch, whose 8-bit path gives Pillow's pixels in a third of its time."""
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if pixels.shape[2:] != (height, width):
        pixels = fn.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return pixels.contiguous().numpy()


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
