"""Which kernel computes an attention on this device? Queries, keys and values come in the layout of tokens and leave in it.

Letters in shapes: B batch, L length, S samples, T frames of one clip, N tokens of one frame, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as fn
from torch import Tensor

ROTARY_BASE = 100.0  # periods from 2 pi to 200 pi frames: clips have 4 to 96 frames, not thousands
PRODUCT_KEYS = 64  # on a CPU, up to so many keys, an explicit batched product beats the fused kernel (docs/performance.md)

Rotation = tuple[Tensor, Tensor]  # cosines and sines, float32 (T, 1, 1, d / 2)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over the last but one axis; `(..., length, d)` each. The one place that picks a kernel."""
    if q.device.type == "cpu" and k.shape[-2] <= PRODUCT_KEYS:
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return weights.softmax(-1) @ v
    return fn.scaled_dot_product_attention(q, k, v)


def attend_along(qkv_BL3D: Tensor, heads: int) -> Tensor:
    """Attention among the L tokens of each row, `(B, L, 3 D)` to `(B, L, D)`."""
    rows, length, _ = qkv_BL3D.shape
    q, k, v = qkv_BL3D.view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return attention(q, k, v).transpose(1, 2).reshape(rows, length, -1)


def attend_over_time(qkv_STN3D: Tensor, heads: int, rotation: Rotation | None) -> Tensor:
    """Attention of every token to the same place in the T frames of its clip, `(S, T, N, 3 D)` to `(S, T, N, D)`."""
    samples, frames, tokens, _ = qkv_STN3D.shape
    q, k, v = qkv_STN3D.view(samples, frames, tokens, 3, heads, -1).unbind(3)  # STNHd
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    out_SNHTd = attention(*(x.permute(0, 2, 3, 1, 4) for x in (q, k, v)))
    return out_SNHTd.permute(0, 3, 1, 2, 4).reshape(samples, frames, tokens, -1)


def rotation_of(frames: int, channels: int, device: torch.device) -> Rotation:
    """The angles of rotary positions by frame index for heads of `channels` (RoFormer, section 3.2)."""
    rates = ROTARY_BASE ** (-torch.arange(channels // 2, device=device, dtype=torch.float32) / (channels // 2))
    angle = torch.arange(frames, device=device, dtype=torch.float32)[:, None, None, None] * rates
    return angle.cos(), angle.sin()


def rotate(x_STNHd: Tensor, rotation: Rotation) -> Tensor:
    """Pairs of channels, one from each half, turned by an angle that grows with the frame index."""
    cos, sin = (part.to(x_STNHd.dtype) for part in rotation)
    a, b = x_STNHd.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
