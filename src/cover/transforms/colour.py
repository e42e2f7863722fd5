"""Colour jitter: brightness, contrast and saturation, as one affine map of RGB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cover.transforms.base import FrameGroups, Stage, Transform, sample_of_frame

LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in a grey (ITU-R BT.601)


@dataclass(frozen=True)
class ColourJitter(Transform):
    """Random brightness, contrast (about mid-grey) and saturation. Each factor is uniform in 1 ± `strength`."""

    strength: float
    stage: ClassVar[Stage] = "float"
    # `is_identity` stays False at strength 0: what the later transforms draw must not depend on the strength.

    def draw(self, rng: np.random.Generator, size: int) -> Tensor:
        """float32 `(3, 4)`: a matrix and an offset (last column) for RGB in 0 to 1. The identity at strength 0."""
        brightness, contrast, saturation = 1 + self.strength * rng.uniform(-1, 1, size=3)
        # Saturation blends the colour with its grey. Contrast then scales about 0.5, which adds the offset.
        matrix = brightness * contrast * (saturation * np.eye(3) + (1 - saturation) * LUMA[None, :])
        offset = np.full((3, 1), 0.5 * (1 - contrast))
        return torch.from_numpy(np.concatenate([matrix, offset], axis=1).astype(np.float32))

    @staticmethod
    def apply(frames: Tensor, maps_S34: Tensor, groups: FrameGroups) -> Tensor:
        """Float frames `(F, 3, H, W)` in 0 to 1 after the map, clamped to 0 to 1."""
        maps_F34 = maps_S34[sample_of_frame(groups, frames.device)]
        return (maps_F34[:, :, :3] @ frames.flatten(2) + maps_F34[:, :, 3:]).view_as(frames).clamp(0, 1)
