"""Random erasing (Zhong et al., Random Erasing Data Augmentation): a box of a sample at the mean colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cover.transforms.base import FrameGroups, Stage, Transform, inside_boxes, sample_of_frame

AREA = (0.02, 1 / 3)  # of the picture; this range and the next as in timm
RATIO = 0.3  # width to height at least, and height to width; logarithmically uniform


@dataclass(frozen=True)
class RandomErasing(Transform):
    """Erases a box of a sample, the same in all its frames, with probability `chance`."""

    chance: float
    stage: ClassVar[Stage] = "normalized"

    @property
    def is_identity(self) -> bool:
        return not self.chance

    def draw(self, rng: np.random.Generator, size: int) -> Tensor:
        """int64 `(4,)`: left, top, right, bottom of the box in pixels; zeros where nothing is erased."""
        if rng.random() < self.chance:
            for _ in range(10):
                area, ratio = size * size * rng.uniform(*AREA), math.exp(rng.uniform(math.log(RATIO), -math.log(RATIO)))
                width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if 1 <= width < size and 1 <= height < size:
                    left, top = (int(rng.integers(size - side, endpoint=True)) for side in (width, height))
                    return torch.tensor([left, top, left + width, top + height])
        return torch.zeros(4, dtype=torch.int64)

    @staticmethod
    def apply(frames: Tensor, boxes_S4: Tensor, groups: FrameGroups) -> Tensor:
        """Normalised frames `(F, 3, H, W)` with each sample's box at zero, the mean colour."""
        return frames.masked_fill(inside_boxes(boxes_S4, frames)[sample_of_frame(groups, frames.device)], 0)
