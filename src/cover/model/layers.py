"""Layers of the networks: motion input, attention along tokens and over time, the MLP, convolutions.

The attention kernels read queries, keys and values in the layout of the tokens and return the output in the same
layout, without a copy. PyTorch's fused kernel accepts any strides in four dimensions, so it reads the output of the
projections directly. Spatial attention is (frames, heads, tokens, d). Temporal attention is (clips, tokens x heads,
frames, d): tokens and heads are neighbours in memory, so they can be one axis. With five dimensions the fused kernel
would fall back to separate products (docs/performance.md has measurements of both).

Some steps have a hand-written backward pass, which stores fewer tensors and moves less memory. Under torch.compile and
torch.export the plain formulas run instead, because the compiler fuses them itself.

Letters in shapes: B batch, L length, S samples, F frames of all samples together, T frames of one clip, N tokens of one
frame (class token, then patches), D width, H heads, d = D / H channels of a head, C any number of channels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cover.model.backbone import Groups

ROTARY_BASE = 100.0  # gives periods from 2 pi to 200 pi frames: clips have 4 to 96 frames, not thousands
STEM_GROUPS = 8  # groups of a GroupNorm in the convolutional stem
# `Attention.init_temporal_differences`: the pairs of heads use these distances in frames, in turn.
DIFFERENCE_OFFSETS = (1, 2, 4)
# Factor on the weights of queries and keys. With larger weights, content would outweigh the distance in time.
DIFFERENCE_CONTENT = 0.1
DIFFERENCE_BIAS = 4.0  # about nine tenths of the attention of such a head then go to one frame

Motion = Literal["frames", "differences", "both"]  # the input of a network's first layer: see `motion_input`
Rotation = tuple[Tensor, Tensor]  # cosines and sines, float32 (T, 1, d / 2)


# --- motion input -----------------------------------------------------------------------------------------------------


def motion_channels(motion: Motion) -> int:
    """The number of channels of `motion_input`."""
    return 6 if motion == "both" else 3


def motion_input(frames: Tensor, groups: Groups, motion: Motion) -> Tensor:
    """The input of the first layer, `(F, 3 or 6, H, W)`, from frames `(F, 3, H, W)`.

    `frames`: the frames themselves. `differences`: each frame minus the frame before it; zero for the first frame of a
    clip and for an image. `both`: the two stacked along the channels, frames first.
    """
    if motion == "frames":
        return frames
    differences = torch.cat([_differences(part, group) for part, group in each_group(frames, groups)])
    return differences if motion == "differences" else torch.cat([frames, differences], dim=1)


def each_group(x_FC: Tensor, groups: Groups) -> list[tuple[Tensor, tuple[int, int]]]:
    """The slice of `x_FC` of each group, with the group."""
    return list(zip(x_FC.split([samples * length for samples, length in groups]), groups, strict=True))


def _differences(frames: Tensor, group: tuple[int, int]) -> Tensor:
    clips = frames.unflatten(0, group)
    before = torch.cat([clips[:, :1], clips[:, :-1]], dim=1)
    return (clips - before).flatten(0, 1)


# --- attention kernels ------------------------------------------------------------------------------------------------


class Attended(NamedTuple):
    """The queries, keys, values and output of one attention, each `(B, H, L, d)`.

    Temporal attention has the N tokens of a frame and the heads on one axis: `(S, N H, T, d)`. The fused kernel does
    not return its weights. They can be computed from queries and keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor


AttentionMaps = list[Attended]


def attend_along(qkv_BL3D: Tensor, heads: int, maps: AttentionMaps | None = None) -> Tensor:
    """Attention among the L tokens of each row, `(B, L, 3 D)` to `(B, L, D)`.

    `maps`: a list to which the attention is appended.
    """
    q, k, v = qkv_BL3D.unflatten(-1, (3, heads, -1)).transpose(1, 3).unbind(2)  # (B, H, L, d), views
    return _attend(q, k, v, maps).transpose(1, 2).flatten(2)


def attend_over_time(
    q_STND: Tensor,
    k_STND: Tensor,
    v_STND: Tensor,
    heads: int,
    rotation: Rotation | None = None,
    maps: AttentionMaps | None = None,
) -> Tensor:
    """Attention of every token to the same token of the T frames of its clip, `(S, T, N, D)` to the same shape.

    `rotation`: rotary angles from `rotation_of`. `maps`: a list to which the attention is appended.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (q_STND, k_STND, v_STND))  # (S, T, N, H, d)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    q, k, v = (x.flatten(2, 3).transpose(1, 2) for x in (q, k, v))  # (S, N H, T, d), views
    return _attend(q, k, v, maps).transpose(1, 2).reshape(v_STND.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, maps: AttentionMaps | None) -> Tensor:
    out = fn.scaled_dot_product_attention(q, k, v)
    if maps is not None:
        maps.append(Attended(q, k, v, out))
    return out


def rotation_of(frames: int, channels: int, device: torch.device) -> Rotation:
    """Cosines and sines of the rotary angles of frames 0 to `frames` - 1 (RoFormer, section 3.2).

    `channels`: of one head. Returns two float32 tensors `(T, 1, channels / 2)`; the middle axis is for the heads.
    """
    # float32 also under autocast: a bfloat16 angle of 96 frames would be wrong by up to a quarter of a radian
    rates = ROTARY_BASE ** (-torch.arange(channels // 2, device=device, dtype=torch.float32) / (channels // 2))
    angle = torch.arange(frames, device=device, dtype=torch.float32)[:, None, None] * rates
    return angle.cos(), angle.sin()


def rotate(x_STNHd: Tensor, rotation: Rotation) -> Tensor:
    """Rotate pairs of channels by an angle that grows with the frame index; channel i is paired with i + d / 2."""
    cos, sin = (part.to(x_STNHd.dtype)[:, None] for part in rotation)  # (T, 1, 1, d / 2)
    return turn_pairs(x_STNHd, cos, sin)


# --- modules ----------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention. Its three methods differ in the tokens that attend to each other."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)
        self.maps: AttentionMaps | None = None  # if it is a list, every attention is appended to it

    def within_frames(self, x_FND: Tensor, groups: Groups, shared: bool) -> Tensor:
        """Spatial attention: every token attends to all tokens of its frame, `(F, N, D)` to the same shape.

        `shared`: the frames of a clip share one class token, so its outputs are averaged over the frames.
        """
        x_FND = self.drop(self.proj(attend_along(self.qkv(x_FND), self.heads, self.maps)))
        return share_class_token(x_FND, groups) if shared else x_FND

    def across_frames(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        """Temporal attention: every token attends to the same token of the other frames of its clip.

        `(F, N, D)` to the same shape, without the output projection. An image has one frame, so the softmax has a
        single key and its weight is 1. So the attention of an image is its value projection, and its queries and keys
        are not computed.
        """
        clip_frames, image_frames = clip_and_image_frames(groups)
        # Autocast would convert the input once for each of the three products.
        x_FND = _in_autocast_type(x_FND)
        # Three products instead of one: images need only values, and the slices are views of the weight.
        (w_q, w_k, w_v), (b_q, b_k, b_v) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        v_FND = fn.linear(x_FND, w_v, b_v)
        if not clip_frames:
            return v_FND
        q_clips, k_clips = fn.linear(x_FND[:clip_frames], w_q, b_q), fn.linear(x_FND[:clip_frames], w_k, b_k)
        v_clips, v_images = v_FND.split((clip_frames, image_frames))
        # one (S, T, N, D) of each kind, and one rotation, for each group of clips
        q_groups, k_groups, v_groups = (_clips_of(x, groups) for x in (q_clips, k_clips, v_clips))
        qkv = zip(q_groups, k_groups, v_groups, rotations, strict=True)
        mixed = [attend_over_time(q, k, v, self.heads, rotation, self.maps).flatten(0, 1) for q, k, v, rotation in qkv]
        mixed += [v_images] if image_frames else []
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]

    def within_clips(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        """Joint attention: every token attends to all tokens of its clip, with one class token for the clip.

        `(F, N, D)` to the same shape.
        """
        clips = _clips_of(self.qkv(x_FND), groups, images=True)
        mixed = [self._joint(part, rotation) for part, rotation in zip(clips, [*rotations, None])]
        return self.drop(self.proj(torch.cat(mixed)))

    def init_temporal_differences(self) -> None:
        """Make each pair of heads subtract an earlier frame from a later one, at equal distances from the current one.

        This initialisation is our own choice. With rotary positions, the product of a query bias and a key bias depends
        only on the distance in time. So biases can make one head of a pair attend to a later frame and the other to an
        earlier frame. Equal value weights and opposite output columns then subtract the two frames. A branch that
        starts like this learns the direction of motion fast; a plain copy of spatial weights learns it slowly
        (docs/performance.md).
        """
        width, channels = self.qkv.in_features, self.qkv.in_features // self.heads
        rates = ROTARY_BASE ** (-torch.arange(channels // 2) / (channels // 2))  # radians for each frame, (d / 2,)
        # Views into the parameters: the assignments below change the parameters in place.
        query, key, value = (
            self.qkv.bias[part * width : (part + 1) * width].view(self.heads, channels) for part in range(3)
        )
        value_weight = self.qkv.weight[2 * width :].view(self.heads, channels, width)
        output_weight = self.proj.weight.view(width, self.heads, channels)
        self.qkv.weight[: 2 * width] *= DIFFERENCE_CONTENT
        for pair in range(self.heads // 2):  # with an odd number of heads, the last one stays a copy
            ahead, back = 2 * pair, 2 * pair + 1
            turn = DIFFERENCE_OFFSETS[pair % len(DIFFERENCE_OFFSETS)] * rates
            # The key is the query rotated by -turn or +turn, so their product is largest that many frames away.
            query[[ahead, back]] = torch.cat([torch.ones_like(rates), torch.zeros_like(rates)]) * DIFFERENCE_BIAS
            key[ahead] = torch.cat([turn.cos(), -turn.sin()]) * DIFFERENCE_BIAS
            key[back] = torch.cat([turn.cos(), turn.sin()]) * DIFFERENCE_BIAS
            value[back], value_weight[back] = value[ahead], value_weight[ahead]
            output_weight[:, back] = -output_weight[:, ahead]
        # Identical frames then give an output of zero, up to rounding.
        nn.init.zeros_(self.proj.bias)

    def _joint(self, qkv_STN3D: Tensor, rotation: Rotation | None) -> Tensor:
        """Joint attention of one group, `(S, T, N, 3 D)` to `(S T, N, D)`."""
        _, frames, tokens, _ = qkv_STN3D.shape
        if rotation is not None:
            q, k, v = qkv_STN3D.unflatten(-1, (3, self.heads, -1)).unbind(3)
            # The class token belongs to no frame, so it is not rotated.
            rotated = [torch.cat([x[:, :, :1], rotate(x[:, :, 1:], rotation)], 2).flatten(3) for x in (q, k)]
            qkv_STN3D = torch.cat([*rotated, v.flatten(3)], -1)
        # one class token, then the patches of all frames: L = 1 + T (N - 1)
        qkv_SL3D = torch.cat([qkv_STN3D[:, 0, :1], qkv_STN3D[:, :, 1:].flatten(1, 2)], 1)
        token_S1D, patches_SLD = attend_along(qkv_SL3D, self.heads, self.maps).split([1, frames * (tokens - 1)], 1)
        patches_STPD = patches_SLD.unflatten(1, (frames, -1))
        # every frame gets a copy of the class token again
        return torch.cat([token_S1D[:, None].expand(-1, frames, -1, -1), patches_STPD], 2).flatten(0, 1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, `(..., D)` to the same shape."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(gelu_linear(self.fc1(x), self.fc2.weight, self.fc2.bias, self.drop))


class ConvStem(nn.Sequential):
    """A patch embedding from 3x3 convolutions with stride 2 and a final 1x1 convolution (Xiao et al., 2021, section 4).

    Input `(F, C, H, W)` with C = `channels` to `(F, D, H / patch, W / patch)`. Each convolution halves the sides, so
    log2(patch) of them give one place for each patch. Their widths double from one to the next, up to D. GroupNorm
    replaces the BatchNorm of the paper, so that the output of a sample does not depend on the rest of the Pack. Raises
    ValueError if the patch is not a power of two.
    """

    def __init__(self, width: int, patch: int, channels: int = 3) -> None:
        steps = patch.bit_length() - 1
        if patch != 2**steps or steps < 1:
            raise ValueError(f"a patch of {patch} px is no power of two, which the convolutional stem needs")
        widths = [channels, *(max(STEM_GROUPS, width >> (steps - 1 - step)) for step in range(steps))]  # ..., D / 2, D
        layers: dict[str, nn.Module] = {}
        for step, (before, after) in enumerate(pairwise(widths)):
            layers[f"conv{step}"] = nn.Conv2d(before, after, 3, stride=2, padding=1)
            layers[f"norm{step}"] = nn.GroupNorm(math.gcd(STEM_GROUPS, after), after)
            layers[f"gelu{step}"] = nn.GELU()
        layers["proj"] = nn.Conv2d(widths[-1], width, 1)
        super().__init__(OrderedDict(layers))


class SummedPatchEmbed(nn.Module):
    """The sum of a `ConvStem` and of one linear map of each patch, with the shapes of `ConvStem`.

    The convolutions describe texture. The linear map is a shortcut past their nonlinear layers: the difference of the
    tokens of two frames holds the map of the difference of the frames, from which attention over time reads movement.
    """

    def __init__(self, width: int, patch: int, channels: int = 3) -> None:
        super().__init__()
        self.conv = ConvStem(width, patch, channels)
        self.linear = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x_FChw: Tensor) -> Tensor:
        return self.conv(x_FChw) + self.linear(x_FChw)


class SameConv2d(nn.Conv2d):
    """A convolution with the padding of TensorFlow's SAME: an odd pixel goes to the right and the bottom."""

    def __init__(
        self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=bias)

    def forward(self, x_FChw: Tensor) -> Tensor:
        """`(F, C, h, w)` to `(F, C', h / stride, w / stride)`, rounded up."""
        left, right, top, bottom = same_padding(x_FChw.shape[2:], self.kernel_size[0], self.stride[0])
        if left != right or top != bottom:
            x_FChw = fn.pad(x_FChw, (left, right, top, bottom))
            left = top = 0
        return fn.conv2d(x_FChw, self.weight, self.bias, self.stride, (top, left), 1, self.groups)


def same_padding(sides: Sequence[int], kernel: int, stride: int) -> tuple[int, int, int, int]:
    """Pixels of TensorFlow's SAME padding at the left, right, top and bottom of a map of `sides` (height, width)."""
    down, across = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in sides)
    return across // 2, across - across // 2, down // 2, down - down // 2


def rounded_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of `divisor`, but not below nine tenths of `channels` (MobileNet's released code)."""
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * channels else nearest + divisor


def _in_autocast_type(x: Tensor) -> Tensor:
    """`x` in the dtype to which autocast converts the input of a linear layer."""
    kind = x.device.type  # torch has no autocast for the meta device
    return x.to(torch.get_autocast_dtype(kind)) if kind != "meta" and torch.is_autocast_enabled(kind) else x


def clip_and_image_frames(groups: Groups) -> tuple[int, int]:
    """The number of frames of all clips, and the number of images."""
    images = groups[-1][0] if groups[-1][1] == 1 else 0  # images are the last group
    return sum(s * t for s, t in groups) - images, images


def _clips_of(x_FNC: Tensor, groups: Groups, images: bool = False) -> list[Tensor]:
    """The rows of each group as `(S, T, N, C)`. `images`: also those of the group of images."""
    wanted = [group for group in groups if images or group[1] > 1]
    parts = x_FNC.split([s * t for s, t in wanted]) if wanted else ()
    return [part.unflatten(0, group) for part, group in zip(parts, wanted, strict=True)]


def initialise_by_width(network: nn.Module) -> None:
    """Draw the weights of every matrix and kernel from a normal distribution, and set biases to zero.

    The standard deviation is 1 / sqrt(inputs of one output value), so outputs have about the scale of the inputs.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# --- steps with a backward pass written by hand -----------------------------------------------------------------------


def gelu_linear(hidden: Tensor, weight: Tensor, bias: Tensor, drop: nn.Dropout) -> Tensor:
    """GELU, dropout and a linear layer, `(..., hidden)` to `(..., D)`.

    The output of GELU is the largest tensor of a block. It is not stored; the backward pass computes it again.
    """
    # Dropout would need its mask in the backward pass. Without gradients nothing is stored anyway.
    if torch.compiler.is_compiling() or (drop.p and drop.training) or not torch.is_grad_enabled():
        return fn.linear(drop(fn.gelu(hidden)), weight, bias)
    return _GeluLinear.apply(hidden, weight, bias)


def share_class_token(x_FND: Tensor, groups: Groups) -> Tensor:
    """Replace token 0 of every frame by its mean over the frames of the clip, `(F, N, D)` to the same shape.

    `x_FND` is changed in place; the caller must not use it afterwards.
    """
    if all(frames == 1 for _, frames in groups):  # the mean over one frame changes nothing
        return x_FND
    if not torch.compiler.is_compiling():
        return _ShareClassToken.apply(x_FND, groups)
    parts = x_FND[:, 0].split([samples * frames for samples, frames in groups])
    shared = [
        part.unflatten(0, group).mean(1, keepdim=True).expand(-1, group[1], -1).flatten(0, 1)
        for part, group in zip(parts, groups, strict=True)
    ]
    return x_FND.select_scatter(torch.cat(shared), 1, 0)


def turn_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels on the last axis: channel i of the first half with channel i of the second half.

    `cos`, `sin`: of the angles, broadcast against half of `x`.
    """
    if torch.compiler.is_compiling():
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return _TurnPairs.apply(x, cos, sin)


class _TurnPairs(torch.autograd.Function):
    """The rotation with half the memory traffic of the plain formula. Its gradient is rotated by minus the angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (a, b), (first, second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    # first = a cos - b sin, second = b cos + a sin
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=second).addcmul_(a, sin)
    return out


class _GeluLinear(torch.autograd.Function):
    """GELU and a linear layer that stores only the input of the GELU and the weight."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return fn.linear(fn.gelu(hidden), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)  # all tokens, `(F N, D)`
        of_hidden = of_weight = None
        # Under autocast `grad` has another dtype than the float32 weight: each gradient gets the dtype of its tensor.
        if ctx.needs_input_grad[0]:
            of_hidden = torch.ops.aten.gelu_backward((grad @ weight.to(grad.dtype)).to(hidden.dtype), hidden)
        if ctx.needs_input_grad[1]:  # false if the layer is frozen
            of_weight = (rows.T @ fn.gelu(hidden).flatten(0, -2)).to(weight.dtype)
        return of_hidden, of_weight, rows.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None


class _ShareClassToken(torch.autograd.Function):
    """The mean of the class tokens, in place. The plain formula passes five times over the tensor and its gradient.

    The mean is its own transpose, so the backward pass is the same operation on a copy of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x_FND: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        ctx.mark_dirty(x_FND)
        return _average_first_tokens(x_FND, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _average_first_tokens(grad.clone(), ctx.groups), None


def _average_first_tokens(x_FND: Tensor, groups: Groups) -> Tensor:
    """Average token 0 over the frames of each clip, in place."""
    for part, group in zip(x_FND[:, 0].split([samples * frames for samples, frames in groups]), groups, strict=True):
        token_STD = part.unflatten(0, group)
        token_STD.copy_(token_STD.mean(1, keepdim=True).expand_as(token_STD))
    return x_FND
