"""Which kernel computes an attention? Queries, keys and values come in the layout of tokens and leave in it, without a copy.

PyTorch's fused kernel takes any strides in four dimensions, so it reads the projections' own output: spatial attention as (frames, heads,
tokens, d), temporal attention as (clips, places x heads, frames, d), where places and heads count as one axis because they lie side by side
in memory. In five dimensions it would fall back to separate products (docs/performance.md has both, measured).

Letters in shapes: B batch, L length, S samples, T frames of one clip, N tokens of one frame, D width, H heads, d = D / H.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.model.lean import turn_pairs

ROTARY_BASE = 100.0  # periods from 2 pi to 200 pi frames: clips have 4 to 96 frames, not thousands

Rotation = tuple[Tensor, Tensor]  # cosines and sines, float32 (T, 1, d / 2)


class Attended(NamedTuple):
    """One attention as it was computed: queries, keys, values and what came out, each `(B, H, L, d)`.

    Temporal attention has the N places of a frame in front of the heads, on the same axis: `(S, N H, T, d)`. The fused kernel hands out
    no weights; who wants them makes them of queries and keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor


Kept = list[Attended]


def attend_along(qkv_BL3D: Tensor, heads: int, kept: Kept | None = None) -> Tensor:
    """Attention among the L tokens of each row, `(B, L, 3 D)` to `(B, L, D)`. `kept`, where given, gets it."""
    q, k, v = qkv_BL3D.unflatten(-1, (3, heads, -1)).transpose(1, 3).unbind(2)  # BHLd
    return _attend(q, k, v, kept).transpose(1, 2).flatten(2)


def attend_over_time(
    q_STND: Tensor, k_STND: Tensor, v_STND: Tensor, heads: int, rotation: Rotation | None = None, kept: Kept | None = None
) -> Tensor:
    """Attention of every token to the same place in the T frames of its clip: three `(S, T, N, D)` to one. `kept`, where given, gets it."""
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q_STND, k_STND, v_STND))
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    q, k, v = (x.flatten(2, 3).transpose(1, 2) for x in (q, k, v))  # S, N H, T, d
    return _attend(q, k, v, kept).transpose(1, 2).reshape(v_STND.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, kept: Kept | None) -> Tensor:
    out = fn.scaled_dot_product_attention(q, k, v)
    if kept is not None:
        kept.append(Attended(q, k, v, out))
    return out


def rotation_of(frames: int, channels: int, device: torch.device) -> Rotation:
    """The angles of rotary positions by frame index for heads of `channels` (RoFormer, section 3.2)."""
    rates = ROTARY_BASE ** (-torch.arange(channels // 2, device=device, dtype=torch.float32) / (channels // 2))
    angle = torch.arange(frames, device=device, dtype=torch.float32)[:, None, None] * rates
    return angle.cos(), angle.sin()


def rotate(x_STNHd: Tensor, rotation: Rotation) -> Tensor:
    """Pairs of channels, one from each half, turned by an angle that grows with the frame index."""
    cos, sin = (part.to(x_STNHd.dtype)[:, None] for part in rotation)
    return turn_pairs(x_STNHd, cos, sin)
