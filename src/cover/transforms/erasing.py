"""Random erasing (Zhong et al., Random Erasing Data Augmentation): a random box gets the mean colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cover.transforms.base import FrameGroups, Stage, Transform, inside_boxes, sample_of_frame

AREA = (0.02, 1 / 3)  # area of the box, as a fraction of the frame; this range and the next are those of timm
RATIO = 0.3  # smallest aspect ratio; the largest is 1 / RATIO, and the distribution is log-uniform


@dataclass(frozen=True)
class RandomErasing(Transform):
    """Erases a box of a sample with probability `chance`. The box is the same in all frames."""

    chance: float
    stage: ClassVar[Stage] = "normalized"

    @property
    def is_identity(self) -> bool:
        return not self.chance

    def draw(self, rng: np.random.Generator, size: int) -> Tensor:
        """int64 `(4,)`: left, top, right, bottom of the box in pixels. Zeros if nothing is erased."""
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
        """Normalised frames `(F, 3, H, W)` with the box of each sample set to 0, the mean colour."""
        return frames.masked_fill(inside_boxes(boxes_S4, frames)[sample_of_frame(groups, frames.device)], 0)
