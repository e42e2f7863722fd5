"""What the network computes: a TimeSformer over a Pack of clips and images, with one classifier per head.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, N tokens of one frame (class
token, then patches), D width, H attention heads, d = D / H.

The class token of a clip is kept once per frame, equal in all of them: token 0 of every frame. So the whole Pack is one tensor
(F, N, D) from the first layer to the last, and nothing is cut apart and put together again between branches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

Groups = tuple[tuple[int, int], ...]  # (samples, frames each), in the order of the frames
ROTARY_BASE = 100.0  # periods from 2 pi to 200 pi frames: clips have 4 to 96 frames, not thousands
LOOKS = (1, -1, 4, -4, 2, -2)  # frames ahead that the heads of a fresh rotary branch look at, in turn
LOOK_BIAS = 4.0  # makes about nine tenths of a fresh head's attention fall on the frame it looks at
PRODUCT_KEYS = 64  # on a CPU, up to so many keys, an explicit batched product beats the fused kernel (docs/performance.md)


@dataclass(frozen=True)
class Head:
    """One classifier: its name and its classes in the order of its outputs."""

    name: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the function but not the weights. Defaults are TimeSformer-B/16, 8 x 224."""

    width: int = 768
    depth: int = 12
    attention_heads: int = 12
    mlp_ratio: float = 4.0
    patch: int = 16
    size: int = 224  # pixels
    frames: int = 8  # entries of the additive time embedding
    time: Literal["rotary", "additive"] = "rotary"
    image_temporal: Literal["attend", "skip"] = "attend"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def tokens(self) -> int:
        """Tokens of one frame: the class token and the patches."""
        return 1 + (self.size // self.patch) ** 2


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over the last but one axis; `(..., length, d)` each. The one place that picks a kernel."""
    if q.device.type == "cpu" and k.shape[-2] <= PRODUCT_KEYS:
        weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return weights.softmax(-1) @ v
    return fn.scaled_dot_product_attention(q, k, v)


def rotate(x_STNHd: Tensor) -> Tensor:
    """Rotary position by frame index: pairs of channels turned by an angle that grows with time (RoFormer, section 3.2)."""
    frames, half = x_STNHd.shape[1], x_STNHd.shape[-1] // 2
    rates = ROTARY_BASE ** (-torch.arange(half, device=x_STNHd.device, dtype=torch.float32) / half)
    angle = torch.arange(frames, device=x_STNHd.device, dtype=torch.float32)[:, None] * rates
    cos, sin = (part.to(x_STNHd.dtype)[:, None, None, :] for part in (angle.cos(), angle.sin()))
    a, b = x_STNHd.split(half, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Query, key, value and output projections; which tokens see which is decided by the caller's shapes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def within_frames(self, x_FND: Tensor) -> Tensor:
        """Every token of a frame attends to every token of that frame (spatial attention)."""
        frames, tokens, width = x_FND.shape
        q, k, v = self.qkv(x_FND).view(frames, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(frames, tokens, width))

    def across_frames(self, x_FND: Tensor, groups: Groups, rotary: bool) -> Tensor:
        """Every token attends to the same place in the other frames of its clip (temporal attention)."""
        x_FND, images_FND = x_FND.split(_clip_and_image_frames(groups))
        mixed = [self._over_time(x, group, rotary) for x, group in _clips_of(self.qkv(x_FND), groups)]
        if len(images_FND):
            # One frame, one key: its softmax is 1, so the branch is the value projection; queries and keys need not be made.
            width = x_FND.shape[-1]
            mixed.append(fn.linear(images_FND, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :]))
        return self.proj(torch.cat(mixed) if len(mixed) > 1 else mixed[0])

    def look_in_time(self) -> None:
        """Set the query and key biases so that the first head attends to the next frame, the second to the one before, and so on.

        Under rotary positions the product of two biases depends on the distance in time alone. Copied spatial weights know nothing
        of time; this gives the branch the frames before and after to compare from its first step (our choice; docs/performance.md).
        """
        width = self.qkv.in_features
        half = width // self.heads // 2
        rates = ROTARY_BASE ** (-torch.arange(half) / half)
        for head in range(self.heads):
            turn = LOOKS[head % len(LOOKS)] * rates
            first = head * 2 * half
            self.qkv.bias[first : first + 2 * half] = torch.cat([torch.ones(half), torch.zeros(half)]) * LOOK_BIAS
            self.qkv.bias[width + first : width + first + 2 * half] = torch.cat([turn.cos(), -turn.sin()]) * LOOK_BIAS

    def _over_time(self, qkv: Tensor, group: tuple[int, int], rotary: bool) -> Tensor:
        samples, frames = group
        q, k, v = qkv.view(samples, frames, qkv.shape[1], 3, self.heads, -1).unbind(3)  # STNHd
        if rotary:
            q, k = rotate(q), rotate(k)
        out = attention(*(x.permute(0, 2, 3, 1, 4) for x in (q, k, v)))  # SNHTd
        return out.permute(0, 3, 1, 2, 4).reshape(samples * frames, qkv.shape[1], -1)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(fn.gelu(self.fc1(x)))


class Block(nn.Module):
    """Divided space-time attention: temporal attention, spatial attention, MLP (TimeSformer, section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads = config.width, config.attention_heads
        self.rotary, self.skip_images = config.time == "rotary", config.image_temporal == "skip"
        self.temporal_norm = nn.LayerNorm(width, eps=1e-6)
        self.temporal_attn = Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(self, x_FND: Tensor, groups: Groups, keep: Tensor | None) -> Tensor:
        """`keep`: drop-path factors `(3, F, 1, 1)` of the three branches, or None to keep all."""
        x_FND = self._add_temporal(x_FND, groups, keep)
        space_FND = _share_class_token(self.attn.within_frames(self.norm1(x_FND)), groups)
        x_FND = x_FND + _scaled(space_FND, keep, 1)
        return x_FND + _scaled(self.mlp(self.norm2(x_FND)), keep, 2)

    def fresh_temporal_branch(self) -> None:
        """Spatial weights copied, `temporal_fc` zero; under rotary time each head looks a fixed way in time to begin with."""
        self.temporal_attn.load_state_dict(self.attn.state_dict())
        self.temporal_norm.load_state_dict(self.norm1.state_dict())
        if self.rotary:
            self.temporal_attn.look_in_time()
        nn.init.zeros_(self.temporal_fc.weight)
        nn.init.zeros_(self.temporal_fc.bias)

    def _add_temporal(self, x_FND: Tensor, groups: Groups, keep: Tensor | None) -> Tensor:
        clip_frames, image_frames = _clip_and_image_frames(groups)
        if self.skip_images and image_frames:
            if not clip_frames:
                return x_FND
            clips, images = x_FND.split((clip_frames, image_frames))
            moved = self._add_temporal(clips, groups[:-1], None if keep is None else keep[:, :clip_frames])
            return torch.cat([moved, images])
        time_FND = self.temporal_fc(self.temporal_attn.across_frames(self.temporal_norm(x_FND), groups, self.rotary))
        time_FND[:, 0] = 0  # the class token takes no part in temporal attention (released TimeSformer code)
        return x_FND + _scaled(time_FND, keep, 0)


class TimeSformer(nn.Module):
    """The network of `config` with one linear classifier for each of `heads`.

    All clips of a Pack share the spatial attention and the MLP with the images; temporal attention runs group by group. New
    heads, `temporal_fc` and the additive time embedding start at zero, so the fresh model is an image ViT.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, heads: tuple[Head, ...] = ()) -> None:
        super().__init__()
        self.config, self.head_list = config, heads
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        if config.time == "additive":
            self.time_embed = nn.Parameter(torch.zeros(1, config.frames, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.heads = nn.ModuleDict({head.name: nn.Linear(config.width, len(head.classes)) for head in heads})
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.fresh_temporal_branch()
        for head in self.heads.values():
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]

    @torch.no_grad()
    def fresh_temporal_branch(self) -> None:
        """Temporal attention as a copy of the spatial one with `temporal_fc` zero: the model is its image ViT (released code)."""
        for block in self.blocks:
            assert isinstance(block, Block)
            block.fresh_temporal_branch()
        if self.config.time == "additive":
            nn.init.zeros_(self.time_embed)

    def normalize(self, frames: Tensor, colour: Tensor | None = None) -> Tensor:
        """uint8 `(F, 3, H, W)` as the floats that `forward` takes; `colour` float `(F, 3, 4)` is an affine map of RGB in 0..1."""
        x = frames.to(self.mean.dtype) / 255
        if colour is not None:
            x = (colour[:, :, :3] @ x.flatten(2) + colour[:, :, 3:]).view_as(x).clamp(0, 1)
        return (x - self.mean) / self.std

    def forward(self, frames: Tensor, groups: Groups, keep: Tensor | None = None) -> dict[str, Tensor]:
        """Logits of every head for every sample of a Pack.

        `frames`: float `(F, 3, size, size)` from `normalize`, clips first. `groups`: `(samples, frames each)`, one-frame groups
        last, at most one of them. `keep`: drop-path factors `(depth, 3, S)`, None in evaluation.
        Returns head name -> float `(S, classes)`. Raises ValueError where shapes do not fit.
        """
        return self.forward_head(self.forward_features(frames, groups, keep))

    def forward_features(self, frames: Tensor, groups: Groups, keep: Tensor | None = None) -> Tensor:
        """The normalised class token of every sample, float `(S, D)`."""
        self._check(frames, groups)
        x_FND = self.patch_embed(frames).flatten(2).transpose(1, 2)
        x_FND = torch.cat([self.cls_token.expand(len(x_FND), -1, -1), x_FND], dim=1) + self.pos_embed
        if self.config.time == "additive":
            x_FND = self._add_time(x_FND, groups)
        keep_F = None if keep is None else per_frame(keep, groups)[..., None, None]
        for number, block in enumerate(self.blocks):
            x_FND = block(x_FND, groups, None if keep_F is None else keep_F[number])
        return self.norm(_first_frames(x_FND[:, 0], groups))

    def forward_head(self, features: Tensor) -> dict[str, Tensor]:
        """Features `(S, D)` through every head."""
        return {name: head(features) for name, head in self.heads.items()}

    def _add_time(self, x_FND: Tensor, groups: Groups) -> Tensor:
        """TimeSformer's learned embedding on the patch tokens; images get none. Another T reads the nearest entries."""
        entries = []
        for samples, frames in groups:
            embed = fn.interpolate(self.time_embed.transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)
            entries.append((embed if frames > 1 else torch.zeros_like(embed)).expand(samples, -1, -1).flatten(0, 1))
        time = fn.pad(torch.cat(entries)[:, None], (0, 0, 1, 0))  # the class token gets none
        return x_FND + torch.cat([time[:, :1], time[:, 1:].expand(-1, x_FND.shape[1] - 1, -1)], dim=1)

    def _check(self, frames: Tensor, groups: Groups) -> None:
        wanted = (sum(s * t for s, t in groups), 3, self.config.size, self.config.size)
        if tuple(frames.shape) != wanted:
            raise ValueError(f"frames are {tuple(frames.shape)}, but groups {groups} at {self.config.size} px need {wanted}")
        if any(t == 1 for _, t in groups[:-1]):
            raise ValueError(f"groups {groups}: images (one-frame samples) come last, in one group")

    def is_temporal(self, parameter: str) -> bool:
        """Whether a parameter belongs to the branch that image pre-training does not have."""
        return "temporal" in parameter or parameter == "time_embed"

    def no_weight_decay(self, parameter: str) -> bool:
        """Whether a parameter is a bias, a norm or an embedding."""
        return parameter.endswith("bias") or "norm" in parameter or parameter in ("cls_token", "pos_embed", "time_embed")


def per_frame(x: Tensor, groups: Groups) -> Tensor:
    """A value per sample on the last axis, `(..., S)`, repeated for each of its frames: `(..., F)`."""
    parts = x.split([samples for samples, _ in groups], dim=-1)
    return torch.cat([part.repeat_interleave(frames, dim=-1) for part, (_, frames) in zip(parts, groups, strict=True)], dim=-1)


def _clip_and_image_frames(groups: Groups) -> tuple[int, int]:
    images = groups[-1][0] if groups[-1][1] == 1 else 0
    return sum(s * t for s, t in groups) - images, images


def _clips_of(x: Tensor, groups: Groups) -> list[tuple[Tensor, tuple[int, int]]]:
    clips = [group for group in groups if group[1] > 1]
    return list(zip(x.split([s * t for s, t in clips]), clips, strict=True)) if clips else []


def _scaled(x: Tensor, keep: Tensor | None, branch: int) -> Tensor:
    return x if keep is None else x * keep[branch]


def _share_class_token(x_FND: Tensor, groups: Groups) -> Tensor:
    """Token 0 of every frame replaced by its mean over the frames of the clip."""
    start = 0
    for samples, frames in groups:
        if frames > 1:
            token = x_FND[start : start + samples * frames, 0].view(samples, frames, -1)
            x_FND[start : start + samples * frames, 0] = token.mean(1, keepdim=True).expand_as(token).flatten(0, 1)
        start += samples * frames
    return x_FND


def _first_frames(x_FD: Tensor, groups: Groups) -> Tensor:
    """The class token of each sample, taken from its first frame: `(S, D)`."""
    parts = x_FD.split([samples * frames for samples, frames in groups])
    return torch.cat([part[:: group[1]] for part, group in zip(parts, groups, strict=True)])
