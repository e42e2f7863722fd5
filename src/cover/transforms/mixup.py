"""Mixup (Zhang et al.) and cutmix (Yun et al.): two samples of a Pack mixed with each other.

The schedule chooses the pairs (mixture/schedule.py). Both samples of a pair get the same `lam` and box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cover.transforms.base import FrameGroups, inside_boxes, sample_of_frame
from cover.transforms.crop import Box

NO_BOX: Box = (0, 0, 0, 0)


class Mix(NamedTuple):
    """How the S samples of a Pack are mixed.

    `partner`: int64 `(S,)`, how many places further the sample lies that a sample is mixed with; 0 for none. `lam`:
    float32 `(S,)`, the weight of the partner (1 - lambda in the papers), 0 for none. `box`: int64 `(S, 4)`, the box
    (left, top, right, bottom) that cutmix pastes from the partner; zeros for mixup.
    """

    partner: Tensor
    lam: Tensor
    box: Tensor


@dataclass(frozen=True)
class Mixup:
    """`mixup` and `cutmix`: the parameter of each one's Beta distribution, 0 for never. With both, a pair gets one."""

    mixup: float = 0.0
    cutmix: float = 0.0

    def draw(self, rng: np.random.Generator, size: int, chance: float) -> tuple[float, Box] | None:
        """`lam` and the box of a pair of `size` x `size` pixels, mixed with probability `chance`; None if it is not."""
        if rng.random() >= chance:
            return None
        cutting = rng.random() < (0.5 if self.mixup and self.cutmix else bool(self.cutmix))
        parameter = self.cutmix if cutting else self.mixup
        lam = float(rng.beta(parameter, parameter))
        if not cutting:
            return lam, NO_BOX
        box = draw_box(rng, lam, size)
        return (box[2] - box[0]) * (box[3] - box[1]) / size**2, box  # the area that is left inside the picture

    @staticmethod
    def apply(frames: Tensor, mix: Mix, weight_S: Tensor, groups: FrameGroups) -> tuple[Tensor, Tensor, Tensor]:
        """Frames `(F, 3, H, W)` mixed with their partners'; the index and the weight of each sample's partner, `(S,)`.

        `weight_S`: as in a Pack, 0 where a file could not be read. Of such a pair the weight is 0, and the other is
        trained as it is.
        """
        partner_S = torch.arange(len(mix.partner), device=frames.device) + mix.partner
        lam_S = mix.lam * weight_S * weight_S[partner_S]
        pasted = (mix.box[:, 2] > mix.box[:, 0]).view(-1, 1, 1, 1)
        inside = inside_boxes(mix.box, frames).to(frames.dtype) * (lam_S > 0).view(-1, 1, 1, 1)
        lam_S1HW = torch.where(pasted, inside, lam_S.view(-1, 1, 1, 1))
        # A partner's frames lie its distance in samples times the frames of a sample away; both are of one group.
        parts = mix.partner.split([samples for samples, _ in groups])
        lengths = [length for _, length in groups]
        distance_F = torch.cat([part.repeat_interleave(t) * t for part, t in zip(parts, lengths, strict=True)])
        partners = frames[torch.arange(len(frames), device=frames.device) + distance_F]
        return torch.lerp(frames, partners, lam_S1HW[sample_of_frame(groups, frames.device)]), partner_S, lam_S


def draw_box(rng: np.random.Generator, area: float, size: int) -> Box:
    """A square of `area` (of the picture's) about a random place, cut off at the edges (CutMix, section 3.1)."""
    half = size * math.sqrt(area) / 2
    x, y = rng.uniform(0, size, 2)
    left, top, right, bottom = (min(size, max(0, round(edge))) for edge in (x - half, y - half, x + half, y + half))
    return left, top, right, bottom
