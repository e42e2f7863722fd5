"""Pooling: from the features of frames to one feature for each sample, an option of the networks that work per frame.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, C channels of the
feature of a frame, H heads, d = channels of a head.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.model.backbone import Groups
from cover.model.layers import rotate, rotation_of

Pool = Literal["mean", "quarters", "attentive"]

PARTS = 4  # of a clip, in the pooling `quarters`
NARROWING = 4  # the attention of `attentive` has about a fourth of the channels of a feature
HEAD_CHANNELS = 32  # channels of each of its heads


def pooled_width(pool: Pool, channels: int) -> int:
    """The number of channels of a sample's feature, for frames with features of `channels` channels."""
    return PARTS * channels if pool == "quarters" else channels


class FramePool(nn.Module):
    """The feature of every sample from the features of its frames, `(F, C)` to `(S, D)`.

    `mean`: the mean over the frames, D = C. `quarters`: the means of four equal parts of the clip side by side, the
    first part first, D = 4 C; part i of T frames has the frames from floor(i T / 4) to ceil((i + 1) T / 4), as in
    adaptive average pooling. So an image is repeated four times. `attentive`: the mean plus an `AttentivePool`, D = C.
    """

    def __init__(self, pool: Pool, channels: int) -> None:
        super().__init__()
        self.pool, self.width = pool, pooled_width(pool, channels)
        if pool == "attentive":
            self.attention = AttentivePool(channels)

    def initialise(self) -> None:
        """Set the initial values that the general rule of `CoVeR` does not cover."""
        if self.pool == "attentive":
            self.attention.initialise()

    def forward(self, x_FC: Tensor, groups: Groups) -> Tensor:
        parts = x_FC.split([samples * frames for samples, frames in groups])
        pooled = [self._pooled(part.unflatten(0, group)) for part, group in zip(parts, groups, strict=True)]
        return torch.cat(pooled) if len(pooled) > 1 else pooled[0]

    def _pooled(self, x_STC: Tensor) -> Tensor:
        """The features of one group, `(S, D)`."""
        if self.pool == "quarters":
            return torch.cat([x_STC[:, begin:end].mean(1) for begin, end in _parts(x_STC.shape[1])], dim=-1)
        mean = x_STC.mean(1)
        return mean + self.attention(x_STC) if self.pool == "attentive" else mean


class AttentivePool(nn.Module):
    """Cross-attention of one learned query to the frames of a clip, `(S, T, C)` to `(S, C)`.

    After the attentive probe of V-JEPA 2 (Assran et al., 2025, section 4), with fewer channels and over frames. Rotary
    positions distinguish the frames. The output projection starts at zero, so a new one adds nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, channels // NARROWING // HEAD_CHANNELS)
        inner = self.heads * HEAD_CHANNELS
        self.query = nn.Parameter(torch.zeros(inner))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.key = nn.Linear(channels, inner)
        self.value = nn.Linear(channels, inner)
        self.proj = nn.Linear(inner, channels)

    @torch.no_grad()
    def initialise(self) -> None:
        """A random query of scale 1, and an output of zero."""
        nn.init.normal_(self.query)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x_STC: Tensor) -> Tensor:
        x_STC = self.norm(x_STC)
        keys, values = (of(x_STC).unflatten(-1, (self.heads, -1)) for of in (self.key, self.value))  # (S, T, H, d)
        keys = rotate(keys[:, :, None], rotation_of(keys.shape[1], keys.shape[-1], keys.device))[:, :, 0]
        # The batch comes from the keys, so that an exported graph takes any number of samples.
        query = self.query.to(keys.dtype).unflatten(0, (self.heads, 1, -1)).expand(keys.shape[0], -1, -1, -1)
        mixed = fn.scaled_dot_product_attention(query, keys.transpose(1, 2), values.transpose(1, 2))  # (S, H, 1, d)
        return self.proj(mixed.flatten(1))


def fitted_head(weight: Tensor, ours: Pool, theirs: Pool) -> Tensor | None:
    """The weight `(classes, D)` of a classifier of features pooled by `theirs`, for features pooled by `ours`.

    The logits stay the same for images and for clips whose length is a multiple of four. None if no weight gives the
    same logits.
    """
    if (ours == "quarters") == (theirs == "quarters"):
        return weight
    # The mean of a clip is the mean over its four parts.
    return weight.repeat(1, PARTS) / PARTS if ours == "quarters" else None


def _parts(frames: int) -> list[tuple[int, int]]:
    """The first frame of each part of a clip, and the first one after it."""
    return [(part * frames // PARTS, -(-(part + 1) * frames // PARTS)) for part in range(PARTS)]
