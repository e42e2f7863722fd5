"""What the network computes: a TimeSformer over a Pack of clips and images, with one classifier per head.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, N tokens of one frame (class
token, then patches), D width, H attention heads.

The class token of a clip is kept once per frame, equal in all of them: token 0 of every frame. So the whole Pack is one tensor
(F, N, D) from the first layer to the last, and nothing is cut apart and put together again between branches.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cover.model.attention import ROTARY_BASE, Kept, Rotation, attend_along, attend_over_time, rotate, rotation_of
from cover.model.lean import Groups, gelu_linear, share_class_token

Seen = dict[str, Tensor]  # name -> what the network computed there
LOOKS = (1, 2, 4)  # frames ahead and back that the pairs of heads of a fresh rotary branch look, in turn
MERGE_TOKENS = 2  # tokens per channel from which merging two square matrices is cheaper than one more product
STEM_GROUPS = 8  # of a GroupNorm of the convolutional stem
HEAD_STD = 0.02  # of the weights of a classifier on a trunk that begins with random weights
LOOK_CONTENT = 0.1  # of the weights of queries and keys that such heads keep, or content would outweigh the distance in time
LOOK_BIAS = 4.0  # makes about nine tenths of a fresh head's attention fall on the frame it looks at


@dataclass(frozen=True)
class Head:
    """One classifier: its name and its classes in the order of its outputs.

    `loss`: `softmax` where a sample has one of the classes, `sigmoid` where it has any number of them. `serves`: the data sets whose
    classes it has, empty for the one of its own name. Raises ValueError on another loss.
    """

    name: str
    classes: tuple[str, ...]
    loss: Literal["softmax", "sigmoid"] = "softmax"
    serves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f'the loss of the head {self.name} is "{self.loss}", neither softmax nor sigmoid')

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that it classifies."""
        return self.serves or (self.name,)

    def places(self, classes: Iterable[str]) -> list[int]:
        """The place of each of `classes` among its own; KeyError where it lacks one."""
        place = {name: number for number, name in enumerate(self.classes)}
        return [place[name] for name in classes]

    def probabilities(self, logits: Tensor) -> Tensor:
        """What its logits `(..., classes)` say of each class, 0 to 1; the classes of a softmax add up to 1."""
        return logits.float().softmax(-1) if self.loss == "softmax" else logits.float().sigmoid()


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the function but not the weights. Defaults are TimeSformer-B/16, 8 x 224.

    `attention`: `divided` (temporal, then spatial), `joint` (all tokens of a clip at once) or `space` (frames apart, their class tokens
    averaged): the paper's section 3.3 and table 1. `image_time`: the additive time embedding of an image, none or the first entry (as the
    released code has it at T = 1). `resize`: how position embeddings meet another size than `size`; the released code uses `nearest`.
    `layer_scale`: the first value of a factor per channel on every branch (CaiT), 0 for none. `patch_embed`: one linear map of each patch,
    as published checkpoints have it, or a stem of stride-2 convolutions (`ConvStem`), which learns far more from few samples.
    """

    width: int = 768
    depth: int = 12
    attention_heads: int = 12
    mlp_ratio: float = 4.0
    patch: int = 16
    size: int = 224  # pixels
    frames: int = 8  # entries of the additive time embedding
    attention: Literal["divided", "joint", "space"] = "divided"
    time: Literal["rotary", "additive"] = "rotary"
    image_temporal: Literal["attend", "skip"] = "attend"
    image_time: Literal["none", "first"] = "none"
    resize: Literal["bicubic", "nearest"] = "bicubic"
    dropout: float = 0.0
    head_dropout: float = 0.0
    layer_scale: float = 0.0
    patch_embed: Literal["linear", "conv"] = "linear"
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def tokens(self) -> int:
        """Tokens of one frame: the class token and the patches."""
        return 1 + (self.size // self.patch) ** 2


class Attention(nn.Module):
    """Query, key, value and output projections; which tokens see which is decided by the caller's shapes."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)
        self.kept: Kept | None = None  # gets every attention, where there is a list

    def within_frames(self, x_FND: Tensor, groups: Groups, shared: bool) -> Tensor:
        """Every token of a frame attends to every token of that frame (spatial attention); `shared`: a clip has one class token."""
        x_FND = self.drop(self.proj(attend_along(self.qkv(x_FND), self.heads, self.kept)))
        return share_class_token(x_FND, groups) if shared else x_FND

    def across_frames(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        """Every token attends to the same place in the other frames of its clip (temporal attention), up to the output projection.

        An image has one frame, so one key, whose softmax is 1: its branch is the value projection, and no query or key is made.
        """
        clip_frames, image_frames = _clip_and_image_frames(groups)
        x_FND = _in_autocast_type(x_FND)  # once, not for each projection
        (w_q, w_k, w_v), (b_q, b_k, b_v) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        v_FND = fn.linear(x_FND, w_v, b_v)
        if not clip_frames:
            return v_FND
        q_clips, k_clips = fn.linear(x_FND[:clip_frames], w_q, b_q), fn.linear(x_FND[:clip_frames], w_k, b_k)
        v_clips, v_images = v_FND.split((clip_frames, image_frames))
        qkv = zip(_clips_of(q_clips, groups), _clips_of(k_clips, groups), _clips_of(v_clips, groups), rotations, strict=True)
        mixed = [attend_over_time(q, k, v, self.heads, rotation, self.kept).flatten(0, 1) for q, k, v, rotation in qkv]
        mixed += [v_images] if image_frames else []
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]

    def within_clips(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        """Every token of a clip attends to all tokens of that clip, its one class token among them (joint attention)."""
        clips = _clips_of(self.qkv(x_FND), groups, images=True)
        mixed = [self._joint(part, rotation) for part, rotation in zip(clips, [*rotations, None])]
        return self.drop(self.proj(torch.cat(mixed)))

    def look_in_time(self) -> None:
        """Make each pair of heads the difference between the frame some way ahead and the one as far behind (our choice).

        Copied spatial weights know nothing of time. Under rotary positions the product of a query bias and a key bias depends on the
        distance in time alone, so biases make one head of a pair look ahead and the other back; equal values and opposite output columns
        subtract what both see. A branch that begins like this soon learns which way things move, a plain copy slowly (docs/performance.md).
        """
        width, channels = self.qkv.in_features, self.qkv.in_features // self.heads
        rates = ROTARY_BASE ** (-torch.arange(channels // 2) / (channels // 2))
        query, key, value = (self.qkv.bias[part * width : (part + 1) * width].view(self.heads, channels) for part in range(3))
        value_weight = self.qkv.weight[2 * width :].view(self.heads, channels, width)
        output_weight = self.proj.weight.view(width, self.heads, channels)
        self.qkv.weight[: 2 * width] *= LOOK_CONTENT
        for pair in range(self.heads // 2):
            ahead, back = 2 * pair, 2 * pair + 1
            turn = LOOKS[pair % len(LOOKS)] * rates
            query[[ahead, back]] = torch.cat([torch.ones_like(rates), torch.zeros_like(rates)]) * LOOK_BIAS
            key[ahead] = torch.cat([turn.cos(), -turn.sin()]) * LOOK_BIAS
            key[back] = torch.cat([turn.cos(), turn.sin()]) * LOOK_BIAS
            value[back], value_weight[back] = value[ahead], value_weight[ahead]
            output_weight[:, back] = -output_weight[:, ahead]
        nn.init.zeros_(self.proj.bias)

    def _joint(self, qkv_STN3D: Tensor, rotation: Rotation | None) -> Tensor:
        _, frames, tokens, _ = qkv_STN3D.shape
        if rotation is not None:
            q, k, v = qkv_STN3D.unflatten(-1, (3, self.heads, -1)).unbind(3)
            turned = [torch.cat([x[:, :, :1], rotate(x[:, :, 1:], rotation)], 2).flatten(3) for x in (q, k)]  # class token: no time
            qkv_STN3D = torch.cat([*turned, v.flatten(3)], -1)
        once = torch.cat([qkv_STN3D[:, 0, :1], qkv_STN3D[:, :, 1:].flatten(1, 2)], 1)
        token, patches = attend_along(once, self.heads, self.kept).split([1, frames * (tokens - 1)], 1)
        spread = patches.unflatten(1, (frames, -1))
        return torch.cat([token[:, None].expand(-1, frames, -1, -1), spread], 2).flatten(0, 1)


class ConvStem(nn.Sequential):
    """Stride-2 3x3 convolutions, as many as it takes to reach one place per patch, then 1x1 (Xiao et al., 2021, section 4).

    Frames `(F, 3, H, W)` to `(F, D, H / patch, W / patch)`, in place of one convolution as large as the patch. Channels double up to D.
    GroupNorm, unlike the paper's BatchNorm, gives a sample the same output whatever else is in the Pack. Raises ValueError where the
    patch is not a power of two.
    """

    def __init__(self, width: int, patch: int) -> None:
        steps = patch.bit_length() - 1
        if patch != 2**steps or steps < 1:
            raise ValueError(f"a patch of {patch} px is no power of two, which the convolutional stem needs")
        channels = [3, *(max(STEM_GROUPS, width >> (steps - 1 - step)) for step in range(steps))]
        layers: dict[str, nn.Module] = {}
        for step, (before, after) in enumerate(pairwise(channels)):
            layers[f"conv{step}"] = nn.Conv2d(before, after, 3, stride=2, padding=1)
            layers[f"norm{step}"] = nn.GroupNorm(math.gcd(STEM_GROUPS, after), after)
            layers[f"gelu{step}"] = nn.GELU()
        layers["proj"] = nn.Conv2d(channels[-1], width, 1)
        super().__init__(OrderedDict(layers))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(gelu_linear(self.fc1(x), self.fc2.weight, self.fc2.bias, self.drop))


class Block(nn.Module):
    """Divided space-time attention: temporal attention, spatial attention, MLP (TimeSformer, section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, heads = config.width, config.attention_heads
        self.kind, self.rotary, self.skip_images = config.attention, config.time == "rotary", config.image_temporal == "skip"
        self.merging = True
        if self.kind == "divided":
            self.temporal_norm = nn.LayerNorm(width, eps=config.norm_eps)
            self.temporal_attn = Attention(width, heads, config.dropout)
            self.temporal_fc = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, heads, config.dropout)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.dropout)
        names = ("temporal_scale", "scale1", "scale2") if self.kind == "divided" else ("scale1", "scale2")
        for name in names if config.layer_scale else ():
            self.register_parameter(name, nn.Parameter(torch.full((width,), config.layer_scale)))

    def forward(
        self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None], keep: Tensor | None = None, seen: Seen | None = None
    ) -> Tensor:
        """`keep`: drop-path factors `(3, F, 1, 1)` of the three branches, or None to keep all. `seen` is filled with the branches."""
        if self.kind == "divided":
            x_FND = self._add_temporal(x_FND, groups, rotations, keep, seen)
        x_FND = x_FND + self._branch("spatial", self._space(self.norm1(x_FND), groups, rotations), keep, seen)
        return x_FND + self._branch("mlp", self.mlp(self.norm2(x_FND)), keep, seen)

    @torch.no_grad()
    def fresh_temporal_branch(self, looking: bool) -> None:
        """Spatial weights copied, `temporal_fc` zero (released code); `looking`: under rotary time, changed by `Attention.look_in_time`."""
        self.temporal_attn.load_state_dict(self.attn.state_dict())
        self.temporal_norm.load_state_dict(self.norm1.state_dict())
        if looking and self.rotary:
            self.temporal_attn.look_in_time()
        if "temporal_scale" in self._parameters:
            self.get_parameter("temporal_scale").copy_(self.get_parameter("scale1"))
        nn.init.zeros_(self.temporal_fc.weight)
        nn.init.zeros_(self.temporal_fc.bias)

    def _space(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        if self.kind == "joint":
            return self.attn.within_clips(x_FND, groups, rotations)
        return self.attn.within_frames(x_FND, groups, shared=self.kind == "divided")

    def _add_temporal(
        self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None], keep: Tensor | None, seen: Seen | None
    ) -> Tensor:
        clip_frames, image_frames = _clip_and_image_frames(groups)
        if self.skip_images and image_frames:
            if not clip_frames:
                return x_FND
            clips, images = x_FND.split((clip_frames, image_frames))
            moved = self._add_temporal(clips, groups[:-1], rotations, None if keep is None else keep[:, :clip_frames], seen)
            return torch.cat([moved, images])
        time_FND = self._project(self.temporal_attn.across_frames(self.temporal_norm(x_FND), groups, rotations))
        # The class token takes no part in temporal attention (released TimeSformer code).
        patches_only = torch.ones(x_FND.shape[1], 1, dtype=x_FND.dtype, device=x_FND.device)
        patches_only[0] = 0
        return torch.addcmul(x_FND, self._branch("temporal", time_FND, keep, seen).to(x_FND.dtype), patches_only)

    def _project(self, mixed_FND: Tensor) -> Tensor:
        """The output projection and `temporal_fc`: nothing lies between them, so where there are many tokens one product does for both."""
        proj, last = self.temporal_attn.proj, self.temporal_fc
        dropping = self.training and self.temporal_attn.drop.p > 0
        if dropping or not self.merging or mixed_FND[..., 0].numel() < MERGE_TOKENS * proj.in_features:
            return last(self.temporal_attn.drop(proj(mixed_FND)))
        return fn.linear(mixed_FND, last.weight @ proj.weight, fn.linear(proj.bias, last.weight, last.bias))

    def _branch(self, name: str, x_FND: Tensor, keep: Tensor | None, seen: Seen | None) -> Tensor:
        """The output of a branch as it is added: times its LayerScale and drop-path factors."""
        number = ("temporal", "spatial", "mlp").index(name)
        scale = getattr(self, ("temporal_scale", "scale1", "scale2")[number], None)
        if scale is not None:
            x_FND = x_FND * scale
        if seen is not None:
            seen[name] = x_FND
        return x_FND if keep is None else x_FND * keep[number]


class TimeSformer(nn.Module):
    """The network of `config` with one linear classifier for each of `heads`.

    All clips of a Pack share the spatial attention and the MLP with the images; temporal attention runs group by group.
    `temporal_fc` and the additive time embedding start at zero, so the fresh model is an image ViT. Other weights start at a scale that
    follows the width of what enters them. The biases of a sigmoid head of C classes start at -log(C - 1), so that it too begins by
    saying about 1 / C to every class, as a softmax does. Heads start small, not at zero: through zeros a random trunk gets no gradient
    at first. On a pretrained trunk they start at zero (`zero_head`).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, heads: tuple[Head, ...] = ()) -> None:
        super().__init__()
        self.config, self.head_list, self.checkpointing = config, heads, False
        conv = config.patch_embed == "conv"
        self.patch_embed = ConvStem(config.width, config.patch) if conv else nn.Conv2d(3, config.width, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        if self.has_time_embedding:
            self.time_embed = nn.Parameter(torch.zeros(1, config.frames, config.width))
        self.drop, self.head_drop = nn.Dropout(config.dropout), nn.Dropout(config.head_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.heads = nn.ModuleDict({head.name: nn.Linear(config.width, len(head.classes)) for head in heads})
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
        if self.cls_token.device.type != "meta":  # where there is nothing to fill
            self._initialise()

    @property
    def has_time_embedding(self) -> bool:
        """Whether frames are told apart by an embedding added to their patch tokens."""
        return self.config.time == "additive" and self.config.attention != "space"

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if isinstance(self.patch_embed, ConvStem):
            for module in self.patch_embed.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.fresh_temporal_branch()
        for head, linear in zip(self.head_list, self.heads.values(), strict=True):
            nn.init.normal_(linear.weight, std=HEAD_STD)  # type: ignore[arg-type]
            if head.loss == "sigmoid":
                nn.init.constant_(linear.bias, -math.log(max(1, len(head.classes) - 1)))  # type: ignore[arg-type]

    def zero_head(self, name: str) -> None:
        """Set the weights of a classifier to zero, where a new one starts on a pretrained trunk; its bias stays."""
        nn.init.zeros_(self.heads[name].weight)  # type: ignore[arg-type]

    def fresh_temporal_branch(self, looking: bool = True) -> None:
        """Temporal attention as a copy of the spatial one with `temporal_fc` zero: the model is its image ViT (released code).

        `looking`: under rotary time the heads begin by attending to frames before and after (`Attention.look_in_time`).
        """
        if self.config.attention == "divided":
            for block in self._blocks():
                block.fresh_temporal_branch(looking)
        if self.has_time_embedding:
            nn.init.zeros_(self.time_embed)

    # --- the function -------------------------------------------------------------------------------------------------------------

    def normalize(self, frames: Tensor, colour: Tensor | None = None) -> Tensor:
        """uint8 `(F, 3, H, W)` as the floats that `forward` takes; `colour` float `(F, 3, 4)` is an affine map of RGB in 0..1."""
        x = frames.to(self.mean.dtype) / 255
        if colour is not None:
            x = (colour[:, :, :3] @ x.flatten(2) + colour[:, :, 3:]).view_as(x).clamp(0, 1)
        return (x - self.mean) / self.std

    def forward(self, frames: Tensor, groups: Groups, keep: Tensor | None = None) -> dict[str, Tensor]:
        """Logits of every head for every sample of a Pack.

        `frames`: float `(F, 3, H, W)` from `normalize`, clips first, sides multiples of the patch. `groups`: `(samples, frames each)`,
        one-frame groups last, at most one of them. `keep`: drop-path factors `(depth, 3, S)`, None in evaluation.
        Returns head name -> float `(S, classes)`. Raises ValueError where shapes do not fit.
        """
        return self.forward_head(self.forward_features(frames, groups, keep))

    def forward_features(self, frames: Tensor, groups: Groups, keep: Tensor | None = None, seen: Seen | None = None) -> Tensor:
        """The normalised class token of every sample, float `(S, D)`.

        `seen`, where given, is filled with everything on the way: `embedded`, for every layer `blocks.3.temporal`, `blocks.3.spatial` and
        `blocks.3.mlp` (the branches as they are added) and `blocks.3` (their sum), each `(F, N, D)`, and `features`.
        """
        self._check(frames, groups)
        x_FND = self.drop(self._embed(frames, groups))
        _note(seen, "embedded", x_FND)
        rotations = self._rotations(groups, x_FND.device)
        keep_F = None if keep is None else per_frame(keep, groups)[..., None, None]
        for number, block in enumerate(self.blocks):
            branches: Seen | None = None if seen is None else {}
            arguments = (x_FND, groups, rotations, None if keep_F is None else keep_F[number], branches)
            x_FND = checkpoint(block, *arguments, use_reentrant=False) if self.checkpointing and self.training else block(*arguments)
            for name, value in (branches or {}).items():
                _note(seen, f"blocks.{number}.{name}", value)
            _note(seen, f"blocks.{number}", x_FND)
        features = self.pooled(x_FND, groups)
        _note(seen, "features", features)
        return features

    def pooled(self, x_FND: Tensor, groups: Groups) -> Tensor:
        """What the last block gives, `(F, N, D)`, as the normalised class token of every sample, `(S, D)`."""
        return self.norm(self._class_tokens(x_FND, groups))

    def forward_head(self, features: Tensor) -> dict[str, Tensor]:
        """Features `(S, D)` through every head."""
        features = self.head_drop(features)
        return {name: head(features) for name, head in self.heads.items()}

    def _embed(self, frames: Tensor, groups: Groups) -> Tensor:
        x_FDhw = self.patch_embed(frames)
        position = resized_positions(self.pos_embed, (x_FDhw.shape[2], x_FDhw.shape[3]), self.config.resize)
        x_FPD = x_FDhw.flatten(2).transpose(1, 2) + position[:, 1:]
        if self.has_time_embedding:
            x_FPD = x_FPD + self._time(groups)[:, None]
        return torch.cat([(self.cls_token + position[:, :1]).expand(x_FPD.shape[0], -1, -1), x_FPD], dim=1)

    def _time(self, groups: Groups) -> Tensor:
        """TimeSformer's learned embedding of every frame, `(F, D)`; another T reads the nearest entries."""
        entries = []
        for samples, frames in groups:
            embed = resized_time(self.time_embed, frames)[0]
            if frames == 1 and self.config.image_time == "none":
                embed = torch.zeros_like(embed)
            entries.append(embed.repeat(samples, 1))
        return torch.cat(entries)

    def _rotations(self, groups: Groups, device: torch.device) -> list[Rotation | None]:
        """The rotary angles of every group of clips, made once for all layers."""
        channels = self.config.width // self.config.attention_heads
        rotary = self.config.time == "rotary" and self.config.attention != "space"
        return [rotation_of(frames, channels, device) if rotary else None for _, frames in groups if frames > 1]

    def _class_tokens(self, x_FND: Tensor, groups: Groups) -> Tensor:
        """The class token of each sample, `(S, D)`: from its first frame, or the mean where frames are kept apart."""
        parts = x_FND[:, 0].split([samples * frames for samples, frames in groups])
        if self.config.attention == "space":
            return torch.cat([part.view(samples, frames, -1).mean(1) for part, (samples, frames) in zip(parts, groups, strict=True)])
        return torch.cat([part[::frames] for part, (_, frames) in zip(parts, groups, strict=True)])

    def _check(self, frames: Tensor, groups: Groups) -> None:
        wanted, patch = sum(s * t for s, t in groups), self.config.patch
        if frames.ndim != 4 or tuple(frames.shape[:2]) != (wanted, 3):
            raise ValueError(f"frames are {tuple(frames.shape)}, but groups {groups} need ({wanted}, 3, height, width)")
        if frames.shape[2] % patch or frames.shape[3] % patch:
            raise ValueError(f"frames are {tuple(frames.shape)}, but the sides have to be multiples of the patch, {patch} px")
        if any(t == 1 for _, t in groups[:-1]):
            raise ValueError(f"groups {groups}: images (one-frame samples) come last, in one group")

    # --- what others ask of a network ---------------------------------------------------------------------------------------------

    def is_temporal(self, parameter: str) -> bool:
        """Whether a parameter belongs to the branch that image pre-training does not have."""
        return "temporal" in parameter or parameter == "time_embed"

    def no_weight_decay(self, parameter: str) -> bool:
        """Whether a parameter is a bias, a norm, a scale or an embedding."""
        embeddings = ("cls_token", "pos_embed", "time_embed")
        return parameter.endswith("bias") or "norm" in parameter or "scale" in parameter or parameter in embeddings

    def layer_of(self, parameter: str) -> int:
        """The layer group of a parameter, for layer-wise rates: 0 the embeddings, 1 to `depth` the blocks, then the last norm and heads."""
        top, _, rest = parameter.partition(".")
        if top == "blocks":
            return 1 + int(rest.split(".")[0])
        return self.config.depth + 1 if top in ("norm", "heads") else 0

    def set_checkpointing(self, on: bool = True) -> None:
        """In training, keep each block's input alone and compute the rest again in the backward pass: less memory, more time."""
        self.checkpointing = on

    def set_merging(self, on: bool) -> None:
        """Whether the temporal output projection and `temporal_fc` may be multiplied into one matrix (the default): the same function."""
        for block in self._blocks():
            block.merging = on

    @contextmanager
    def keeping_attention(self) -> Iterator[dict[str, Kept]]:
        """Inside, every attention that is computed is kept: by module, as `blocks.3.attn` and `blocks.3.temporal_attn`, one for each group
        that was attended to (none in time for images). Nested, the inner one alone keeps, until it is left. Changes no number; not for
        compiled blocks, nor beside another thread's passes."""
        found = {name: module for name, module in self.named_modules() if isinstance(module, Attention)}
        kept: dict[str, Kept] = {name: [] for name in found}
        before = {name: module.kept for name, module in found.items()}
        try:
            for name, module in found.items():
                module.kept = kept[name]
            yield kept
        finally:
            for name, module in found.items():
                module.kept = before[name]

    def compile_blocks(self, **options: object) -> None:
        """torch.compile block by block: one graph serves all layers for a given Pack layout. `options` go to torch.compile."""
        for block in self._blocks():
            block.compile(**options)

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block


def per_frame(x: Tensor, groups: Groups) -> Tensor:
    """A value per sample on the last axis, `(..., S)`, repeated for each of its frames: `(..., F)`."""
    parts = x.split([samples for samples, _ in groups], dim=-1)
    return torch.cat([part.repeat_interleave(frames, dim=-1) for part, (_, frames) in zip(parts, groups, strict=True)], dim=-1)


def resized_positions(pos_embed: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Position embeddings `(1, 1 + h w, D)` of a square grid for another `grid` (rows, columns); the class token's stays.

    `bicubic` over both axes (as transformers' ViT resizes), or `nearest` (as TimeSformer does).
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return pos_embed
    patches = pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    patches = fn.interpolate(patches, size=grid, mode=mode, align_corners=False if mode == "bicubic" else None)
    return torch.cat([pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def resized_time(time_embed: Tensor, frames: int) -> Tensor:
    """Time embeddings `(1, T, D)` for another number of frames: the nearest entries (released code)."""
    if time_embed.shape[1] == frames:
        return time_embed
    return fn.interpolate(time_embed.transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)


def _in_autocast_type(x: Tensor) -> Tensor:
    """What autocast makes of the input of a linear layer."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if kind != "meta" and torch.is_autocast_enabled(kind) else x


def _note(seen: Seen | None, name: str, value: Tensor) -> None:
    if seen is not None:
        seen[name] = value


def _clip_and_image_frames(groups: Groups) -> tuple[int, int]:
    images = groups[-1][0] if groups[-1][1] == 1 else 0
    return sum(s * t for s, t in groups) - images, images


def _clips_of(x_FNC: Tensor, groups: Groups, images: bool = False) -> list[Tensor]:
    """Each group as `(S, T, N, C)`; one-frame groups only with `images`."""
    wanted = [group for group in groups if images or group[1] > 1]
    parts = x_FNC.split([s * t for s, t in wanted]) if wanted else ()
    return [part.unflatten(0, group) for part, group in zip(parts, wanted, strict=True)]
