"""Mixup (Zhang et al.) and cutmix (Yun et al.): the mixing of two samples of a Pack.

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
    """The parameters of mixing the S samples of a Pack.

    `partner`: int64 `(S,)`, index of the partner minus index of the sample, 0 for no partner. `lam`: float32 `(S,)`,
    the weight of the partner (1 - lambda in the papers), 0 for no partner. `box`: int64 `(S, 4)`, the box (left, top,
    right, bottom) that cutmix pastes from the partner, zeros for mixup.
    """

    partner: Tensor
    lam: Tensor
    box: Tensor


@dataclass(frozen=True)
class Mixup:
    """The settings: the parameters of the Beta distributions of mixup and cutmix, 0 for never.

    With both, each pair gets one of the two with probability 0.5.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def draw(self, rng: np.random.Generator, size: int, chance: float) -> tuple[float, Box] | None:
        """`lam` and the box of a pair, mixed with probability `chance`; None if it is not mixed. `size`: pixels."""
        if rng.random() >= chance:
            return None
        cutting = rng.random() < (0.5 if self.mixup and self.cutmix else bool(self.cutmix))
        parameter = self.cutmix if cutting else self.mixup
        lam = float(rng.beta(parameter, parameter))
        if not cutting:
            return lam, NO_BOX
        box = draw_box(rng, lam, size)
        return (box[2] - box[0]) * (box[3] - box[1]) / size**2, box  # the box may be cut off at the edges

    @staticmethod
    def apply(frames: Tensor, mix: Mix, weight_S: Tensor, groups: FrameGroups) -> tuple[Tensor, Tensor, Tensor]:
        """Mix the frames `(F, 3, H, W)`. Also returns the index and the weight of each sample's partner, both `(S,)`.

        `weight_S`: the weights of the Pack, 0 for a file that could not be read. Its pair is not mixed.
        """
        partner_S = torch.arange(len(mix.partner), device=frames.device) + mix.partner
        lam_S = mix.lam * weight_S * weight_S[partner_S]
        pasted = (mix.box[:, 2] > mix.box[:, 0]).view(-1, 1, 1, 1)
        inside = inside_boxes(mix.box, frames).to(frames.dtype) * (lam_S > 0).view(-1, 1, 1, 1)
        lam_S1HW = torch.where(pasted, inside, lam_S.view(-1, 1, 1, 1))
        # In frames, the distance to the partner is the distance in samples times the frames per sample of their group.
        parts = mix.partner.split([samples for samples, _ in groups])
        lengths = [length for _, length in groups]
        distance_F = torch.cat([part.repeat_interleave(t) * t for part, t in zip(parts, lengths, strict=True)])
        partners = frames[torch.arange(len(frames), device=frames.device) + distance_F]
        return torch.lerp(frames, partners, lam_S1HW[sample_of_frame(groups, frames.device)]), partner_S, lam_S


def draw_box(rng: np.random.Generator, area: float, size: int) -> Box:
    """A square around a random point, cut off at the edges (CutMix, section 3.1). `area`: fraction of the frame."""
    half = size * math.sqrt(area) / 2
    x, y = rng.uniform(0, size, 2)
    left, top, right, bottom = (min(size, max(0, round(edge))) for edge in (x - half, y - half, x + half, y + half))
    return left, top, right, bottom
