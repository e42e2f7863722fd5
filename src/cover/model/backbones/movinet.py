"""MoViNet A0 to A2: inverted bottlenecks with squeeze-excitation, for whole clips (base) or for streams (stream).

Source: Kondratyuk et al., 2021, "MoViNets"; the released networks, whose numbers of parameters differ from the paper's
from A2 on. A base network convolves in space and time at once. A stream network is causal: it convolves in space, then
over the frame and those before it, and its averages over time are cumulative. So it can read a video in chunks of any
length (`MoViNet.stream`), and an image is the first frame of a stream. `cover.model.starts.movinet` reads published
weights. BatchNorm follows the rule of `cover.model.batch_norm`.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, C channels of a map,
h, w sides of a map, D width of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, cast

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbone import (
    Backbone,
    BackboneConfig,
    BackboneOptions,
    Groups,
    Intermediates,
    Pixels,
    Rgb,
    note,
    option,
    per_frame,
)
from cover.model.batch_norm import PackBatchNorm
from cover.model.layers import SameConv2d, each_group, rounded_channels, same_padding

Variant = Literal["a0", "a1", "a2"]
Statistics = Literal["batch", "frozen"]


class Stage(NamedTuple):
    """A row of the published table. Each of its blocks has (frames and pixels of a kernel, expanded channels)."""

    channels: int
    stride: int  # of the first block
    blocks: tuple[tuple[int, int, int], ...]


class Sizes(NamedTuple):
    """A variant: channels of the first convolution, the stages, channels of the last convolution, published pixels."""

    stem: int
    stages: tuple[Stage, ...]
    last: int
    pixels: int


# fmt: off
VARIANTS: dict[Variant, Sizes] = {
    "a0": Sizes(8, (
        Stage(8, 2, ((1, 5, 24),)),
        Stage(32, 2, ((3, 3, 80), (3, 3, 80), (3, 3, 80))),
        Stage(56, 2, ((5, 3, 184), (3, 3, 112), (3, 3, 184))),
        Stage(56, 1, ((5, 3, 184), (3, 3, 184), (3, 3, 184), (3, 3, 184))),
        Stage(104, 2, ((5, 3, 384), (1, 5, 280), (1, 5, 280), (1, 5, 344))),
    ), 480, 172),
    "a1": Sizes(16, (
        Stage(16, 2, ((1, 5, 40), (3, 3, 40))),
        Stage(40, 2, ((3, 3, 96), (3, 3, 120), (3, 3, 96), (3, 3, 96))),
        Stage(64, 2, ((5, 3, 216), (3, 3, 128), (3, 3, 216), (3, 3, 168), (3, 3, 216))),
        Stage(64, 1, ((5, 3, 216), (3, 3, 216), (3, 3, 216), (3, 3, 128), (1, 5, 128), (3, 3, 216))),
        Stage(136, 2, (
            (5, 3, 456), (1, 5, 360), (1, 5, 360), (1, 5, 360), (1, 5, 456), (3, 3, 456), (1, 3, 544),
        )),
    ), 600, 172),
    "a2": Sizes(16, (
        Stage(16, 2, ((1, 5, 40), (3, 3, 40), (3, 3, 64))),
        Stage(40, 2, ((3, 3, 96), (3, 3, 120), (3, 3, 96), (3, 3, 96), (3, 3, 120))),
        Stage(72, 2, ((5, 3, 240), (3, 3, 160), (3, 3, 240), (3, 3, 192), (3, 3, 240))),
        Stage(72, 1, ((5, 3, 240), (3, 3, 240), (3, 3, 240), (3, 3, 240), (1, 5, 144), (3, 3, 240))),
        Stage(144, 2, (
            (5, 3, 480), (1, 5, 384), (1, 5, 384), (1, 5, 480), (1, 5, 480), (3, 3, 480), (1, 3, 576),
        )),
    ), 640, 224),
}
# fmt: on
HIDDEN = 2048  # width of the layer before the classifier
SQUEEZE = 4  # channels of a map for each squeezed channel
NORM_EPS = 1e-3
PACK_LAYOUTS = 8  # layouts of a Pack for which stages are compiled: clips, images, both, training, evaluation


@dataclass(frozen=True)
class MoViNetConfig(BackboneConfig):
    """The configuration of a MoViNet.

    `variant`: the published size. `stream`: the causal network. `statistics`, `norm_samples`: how BatchNorm normalises
    in training (`cover.model.batch_norm`); `frozen` never changes its running statistics.
    """

    family: ClassVar[str] = "movinet"

    size: int = 172
    frames: int = 50
    mean: Rgb = (0.0, 0.0, 0.0)  # the published networks read values from 0 to 1
    std: Rgb = (1.0, 1.0, 1.0)
    variant: Variant = "a0"
    stream: bool = False
    statistics: Statistics = "batch"
    norm_samples: int = 8

    def build(self) -> MoViNet:
        return MoViNet(self)

    def options(self) -> MoViNetOptions:
        return MoViNetOptions(
            size=self.size,
            variant=self.variant,
            stream=self.stream,
            statistics=self.statistics,
            norm_samples=self.norm_samples,
        )

    def start_options(self) -> MoViNetOptions:
        """As `BackboneConfig.start_options`. A run that starts from weights keeps their statistics."""
        return replace(self.options(), statistics="frozen")

    def summary(self) -> dict[str, str]:
        return {"variant": self.variant, "network": "stream" if self.stream else "base", "statistics": self.statistics}

    def difference(self, theirs: MoViNetConfig, temporal: bool) -> str | None:
        if theirs.variant != self.variant:
            return f"its model.variant is {theirs.variant}, this run's {self.variant}: set model.variant"
        if theirs.stream != self.stream:
            kinds = ["a base network", "a stream network"]
            return f"it is {kinds[theirs.stream]}, this run's {kinds[self.stream]}: set model.stream"
        return None


@dataclass(frozen=True)
class MoViNetOptions(BackboneOptions):
    """`model` of a recipe that trains a MoViNet."""

    backbone: Literal["movinet"] = option("movinet", "the family of the network")
    size: int = option(172, "image side in pixels")
    variant: Variant = option("a0", "movinet: the published size")
    stream: bool = option(False, "movinet: the causal network, which can read a video in chunks")
    statistics: Statistics = option(
        "batch",
        "movinet: BatchNorm in training. batch: by the statistics of each group of a Pack; frozen: by the running "
        "statistics, which do not change. A run that starts from weights has frozen where it does not say otherwise",
    )
    norm_samples: int = option(
        8, "movinet: samples that BatchNorm normalises together in training; 0 for all of a group"
    )

    def config(self, frames: int, inherited: BackboneConfig | None = None) -> MoViNetConfig:
        colours = inherited.inherited_values() if inherited else {}
        return MoViNetConfig(
            size=self.size,
            frames=frames,
            variant=self.variant,
            stream=self.stream,
            statistics=self.statistics,
            norm_samples=self.norm_samples,
            **colours,
        )

    def check(self) -> None:
        super().check()
        if self.norm_samples < 0:
            raise UserError(f"model.norm_samples: {self.norm_samples} is not 0 or more")


# --- the state of a stream --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockState:
    """What a block of a stream network remembers.

    `frames`: the last inputs of its temporal convolution, `(S, kernel - 1, C, h, w)`; None without one. `total`: the
    sum over time of the means of its maps, float32 `(S, C)`.
    """

    frames: Tensor | None
    total: Tensor


@dataclass(frozen=True)
class StreamState:
    """What a stream network remembers of the frames so far: their number, each block's state, the sum of features."""

    count: int
    blocks: tuple[BlockState, ...]
    total: Tensor


# --- parts ------------------------------------------------------------------------------------------------------------


class ConvNorm(nn.Module):
    """A 2-D convolution, BatchNorm and an activation."""

    def __init__(
        self, config: MoViNetConfig, before: int, after: int, kernel: int = 1, stride: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(before, after, kernel, stride, bias=False)
        self.norm = _norm(config, after)
        self.stream, self.active = config.stream, active

    def forward(self, x_FChw: Tensor, groups: Groups) -> Tensor:
        """`(F, C, h, w)` to `(F, C', h / stride, w / stride)`, rounded up."""
        x_FChw = self.norm(self.conv(x_FChw), groups)
        return _activation(x_FChw, self.stream) if self.active else x_FChw


class Depthwise(nn.Module):
    """The depthwise convolution of a base network, over a few frames before and after, with zeros beyond the clip."""

    def __init__(self, config: MoViNetConfig, channels: int, frames: int, kernel: int, stride: int) -> None:
        super().__init__()
        if frames == 1:
            self.conv: nn.Conv2d | nn.Conv3d = SameConv2d(channels, channels, kernel, stride, channels, bias=False)
        else:
            sizes, strides = (frames, kernel, kernel), (1, stride, stride)
            self.conv = nn.Conv3d(channels, channels, sizes, strides, groups=channels, bias=False)
        self.norm = _norm(config, channels)

    def forward(self, x_FChw: Tensor, groups: Groups) -> Tensor:
        """`(F, C, h, w)` to `(F, C, h / stride, w / stride)`, rounded up."""
        if isinstance(self.conv, nn.Conv3d):
            parts = [self._over_time(part, group) for part, group in each_group(x_FChw, groups)]
            x_FChw = torch.cat(parts) if len(parts) > 1 else parts[0]
        else:
            x_FChw = self.conv(x_FChw)
        return fn.silu(self.norm(x_FChw, groups))

    def _over_time(self, x_FChw: Tensor, group: tuple[int, int]) -> Tensor:
        around = self.conv.kernel_size[0] // 2
        padding = same_padding(x_FChw.shape[2:], self.conv.kernel_size[1], self.conv.stride[1])
        x_SCThw = fn.pad(x_FChw.unflatten(0, group).transpose(1, 2), (*padding, around, around))
        return self.conv(x_SCThw).transpose(1, 2).flatten(0, 1)


class CausalDepthwise(nn.Module):
    """The depthwise convolution of a stream network: in space, then over the frame and `frames` - 1 before it."""

    def __init__(self, config: MoViNetConfig, channels: int, frames: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.frames = frames
        self.space = SameConv2d(channels, channels, kernel, stride, channels, bias=False)
        self.space_norm = _norm(config, channels)
        if frames > 1:
            self.time = nn.Conv2d(channels, channels, (frames, 1), groups=channels, bias=False)
            self.time_norm = _norm(config, channels)

    def forward(
        self, x_FChw: Tensor, groups: Groups, memory: Tensor | None = None, follow: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """`(F, C, h, w)` to `(F, C, h / stride, w / stride)`, rounded up, and the memory of a stream.

        `memory`: `BlockState.frames`; None for zeros. `follow`: whether to return the memory after these frames.
        """
        x_FChw = fn.hardswish(self.space_norm(self.space(x_FChw), groups))
        if self.frames == 1:
            return x_FChw, None
        parts, later = [], None
        for part_FChw, (samples, length) in each_group(x_FChw, groups):
            x_STChw = part_FChw.unflatten(0, (samples, length))
            if memory is None:
                before = x_STChw.new_zeros(1).expand(x_STChw.shape[0], self.frames - 1, *x_STChw.shape[2:])
            else:
                before = memory
            x_STChw = torch.cat([before, x_STChw], dim=1)
            later = x_STChw[:, length:].clone() if follow else None
            x_SCTN = self.time(x_STChw.flatten(3).transpose(1, 2))
            parts.append(x_SCTN.transpose(1, 2).unflatten(3, x_STChw.shape[3:]).flatten(0, 1))
        x_FChw = torch.cat(parts) if len(parts) > 1 else parts[0]
        return fn.hardswish(self.time_norm(x_FChw, groups)), later


class SqueezeExcite(nn.Module):
    """Factors for the channels of a map, from the mean over the clip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = rounded_channels(channels // SQUEEZE)
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x_FChw: Tensor, groups: Groups) -> Tensor:
        """`(F, C, h, w)` to the same shape."""
        mean_SC = _clip_means(x_FChw, groups)
        factors_SC = torch.sigmoid(self.fc2(fn.silu(self.fc1(mean_SC))))
        return x_FChw * per_frame(factors_SC.T, groups).T[..., None, None].to(x_FChw.dtype)


class CausalSqueezeExcite(nn.Module):
    """Factors for the channels of a map, from the mean over the frame and that over all frames so far."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = rounded_channels(channels // SQUEEZE * 2)
        self.fc1 = nn.Linear(2 * channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, x_FChw: Tensor, groups: Groups, count: int, total_SC: Tensor | None) -> tuple[Tensor, Tensor]:
        """`(F, C, h, w)` to the same shape, and the sum over time of the means, `(S, C)` of the last group.

        `count`, `total_SC`: the number of earlier frames and their sum; 0 and None at the start.
        """
        frame_FC = x_FChw.mean((2, 3), dtype=torch.float32)
        means, later = [], frame_FC
        for part_FC, group in each_group(frame_FC, groups):
            sum_STC = part_FC.unflatten(0, group).cumsum(1)
            if total_SC is not None:
                sum_STC = sum_STC + total_SC[:, None]
            frames_T1 = torch.arange(count + 1, count + 1 + group[1], device=x_FChw.device)[:, None]
            means.append((sum_STC / frames_T1).flatten(0, 1))
            later = sum_STC[:, -1]
        factors_FC = self.fc2(fn.hardswish(self.fc1(torch.cat([torch.cat(means), frame_FC], 1))))
        factors_FC = (0.2 * factors_FC + 0.5).clamp(0, 1)  # Keras' hard sigmoid; torch's has a slope of 1 / 6
        return x_FChw * factors_FC[..., None, None].to(x_FChw.dtype), later


class Shortcut(nn.Module):
    """The way around a block that changes the shape: a mean over 3 x 3 places with stride 2, then a 1x1 convolution."""

    def __init__(self, config: MoViNetConfig, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.project = ConvNorm(config, before, after, active=False)

    def forward(self, x_FChw: Tensor, groups: Groups) -> Tensor:
        """`(F, C, h, w)` to `(F, C', h / stride, w / stride)`, rounded up."""
        if self.stride > 1:
            padding = same_padding(x_FChw.shape[2:], 3, self.stride)
            inside = fn.pad(x_FChw.new_ones(1, 1, *x_FChw.shape[2:]), padding)
            # Places outside the map do not count.
            x_FChw = fn.avg_pool2d(fn.pad(x_FChw, padding), 3, self.stride) / fn.avg_pool2d(inside, 3, self.stride)
        return cast(Tensor, self.project(x_FChw, groups))


class Block(nn.Module):
    """An inverted bottleneck: expand the channels, convolve each of them, weigh them, project them.

    The result is added to the shortcut with the factor `alpha`, which starts at zero.
    """

    def __init__(
        self, config: MoViNetConfig, before: int, after: int, kernel: tuple[int, int], inner: int, stride: int
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))  # FSDP2 refuses parameters without an axis
        self.expand = ConvNorm(config, before, inner)
        self.depthwise = (CausalDepthwise if config.stream else Depthwise)(config, inner, *kernel, stride)
        self.excite = (CausalSqueezeExcite if config.stream else SqueezeExcite)(inner)
        self.project = ConvNorm(config, inner, after, active=False)
        same = stride == 1 and before == after
        self.shortcut = None if same else Shortcut(config, before, after, stride)

    def forward(self, x_FChw: Tensor, groups: Groups, drop_F111: Tensor | None = None) -> Tensor:
        """`(F, C, h, w)` to `(F, C', h / stride, w / stride)`, rounded up. `drop_F111`: drop-path factors."""
        return self.follow(x_FChw, groups, drop_F111)[0]

    def follow(
        self,
        x_FChw: Tensor,
        groups: Groups,
        drop_F111: Tensor | None = None,
        count: int = 0,
        state: BlockState | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, BlockState | None]:
        """As `forward`, after `count` earlier frames with their `state`; with `keep` the state after these frames."""
        inner, later = self.expand(x_FChw, groups), None
        if isinstance(self.depthwise, CausalDepthwise):
            inner, frames = self.depthwise(inner, groups, state.frames if state else None, keep)
            inner, total = self.excite(inner, groups, count, state.total if state else None)
            later = BlockState(frames, total) if keep else None
        else:
            inner = self.excite(self.depthwise(inner, groups), groups)
        branch = self.alpha * self.project(inner, groups)
        if drop_F111 is not None:
            branch = branch * drop_F111
        return (x_FChw if self.shortcut is None else self.shortcut(x_FChw, groups)) + branch, later


def _norm(config: MoViNetConfig, channels: int) -> PackBatchNorm:
    return PackBatchNorm(channels, NORM_EPS, config.statistics == "batch", config.norm_samples)


def _activation(x: Tensor, stream: bool) -> Tensor:
    return fn.hardswish(x) if stream else fn.silu(x)


def _clip_means(x_FChw: Tensor, groups: Groups) -> Tensor:
    """The means over the places and frames of each sample, float32 `(S, C)`."""
    x_FC = x_FChw.mean((2, 3), dtype=torch.float32)
    return torch.cat([part.unflatten(0, group).mean(1) for part, group in each_group(x_FC, groups)])


# --- the network ------------------------------------------------------------------------------------------------------


class MoViNet(Backbone):
    """The network of a `MoViNetConfig`.

    An image is a clip of one frame: in a stream network, the first frame of a stream; in a base network, a frame with
    zeros before and after it. No parameter is temporal in the sense of `temporal_parameters`: images train the taps of
    temporal kernels that they pass.
    """

    config: MoViNetConfig

    def __init__(self, config: MoViNetConfig) -> None:
        super().__init__()
        self.config, self.width = config, HIDDEN
        sizes = VARIANTS[config.variant]
        self.stem = ConvNorm(config, 3, sizes.stem, 3, 2)
        self.blocks, before = nn.ModuleList(), sizes.stem
        for stage in sizes.stages:
            for number, (frames, pixels, inner) in enumerate(stage.blocks):
                stride = stage.stride if number == 0 else 1
                self.blocks.append(Block(config, before, stage.channels, (frames, pixels), inner, stride))
                before = stage.channels
        self.last = ConvNorm(config, before, sizes.last)
        self.dense = nn.Linear(sizes.last, HIDDEN)

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.config.size, mean=self.config.mean, std=self.config.std)

    def stages(self) -> Sequence[nn.Module]:
        """The stem, the blocks, the last convolution."""
        return (self.stem, *self.blocks, self.last)

    def drop_shape(self) -> tuple[int, int]:
        return (len(self.blocks), 1)

    def drop_layers_within(self, stages: int) -> int:
        return min(len(self.blocks), max(0, stages - 1))

    def compile_stages(self, **options: object) -> None:
        """As `Backbone.compile_stages`."""
        import torch._dynamo as dynamo

        # The blocks are one class with many structures. Beyond this number of graphs of a class, the compiler would
        # leave the rest as they are.
        limit = PACK_LAYOUTS * len(self.stages())
        dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, limit)
        super().compile_stages(**options)

    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """As `Backbone.forward`. `drop`: `(blocks, 1, S)`.

        `intermediates` receives `stem`, `blocks.0` and so on, and `last`, each `(F, C, h, w)`, then `features`,
        `(S, D)`.
        """
        self.check_pack(frames, groups)
        return self.forward_suffix(frames, groups, 0, drop, intermediates)

    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """As `Backbone.forward_prefix`, `(F, C, h, w)`."""
        self.check_pack(frames, groups)
        with self.as_in_evaluation():
            return self._run(frames, groups, range(stages))

    def forward_suffix(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """As `Backbone.forward_suffix`. `intermediates` receives the entries of the stages that run."""
        x_FChw = self._run(x, groups, range(stages, len(self.stages())), drop, intermediates)
        features = self._features(_clip_means(x_FChw, groups))
        note(intermediates, "features", features)
        return features

    def _features(self, mean_SC: Tensor) -> Tensor:
        return fn.silu(self.dense(mean_SC))

    def _run(
        self,
        x: Tensor,
        groups: Groups,
        numbers: range,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """The output of the stages `numbers`, one after the other."""
        stages = self.stages()
        names = ["stem", *(f"blocks.{number}" for number in range(len(self.blocks))), "last"]
        drop_F = None if drop is None else per_frame(drop, groups)[..., None, None, None]  # (blocks, 1, F, 1, 1, 1)
        for number in numbers:
            if isinstance(stages[number], Block):
                x = self.run_stage(stages[number], x, groups, None if drop_F is None else drop_F[number - 1, 0])
            else:
                x = self.run_stage(stages[number], x, groups)
            note(intermediates, names[number], x)
        return x

    # --- streams ------------------------------------------------------------------------------------------------------

    def stream(self, frames: Tensor, state: StreamState | None = None) -> tuple[Tensor, StreamState]:
        """The features of S streams after another chunk of frames, `(S, D)`, and the state for the next chunk.

        `frames`: normalised float `(S, T, 3, H, W)`, any T. `state`: what the call for the chunk before returned; None
        at the start. The features are those of `forward` for all frames so far: they do not depend on how a video is
        cut into chunks. It is computed as in evaluation. The state holds no gradient. Raises `UserError` for a base
        network, ValueError if shapes do not fit.

        >>> state = None
        >>> for chunk in chunks:
        ...     features, state = model.backbone.stream(model.normalize(chunk), state)
        ...     logits = model.forward_head(features)
        """
        if not self.config.stream:
            raise UserError("model.stream: a base network needs the frames after a frame; only a stream network has it")
        if frames.ndim != 5 or not frames.shape[1]:
            raise ValueError(f"frames are {tuple(frames.shape)}, but a chunk is (streams, frames, 3, height, width)")
        groups: Groups = ((frames.shape[0], frames.shape[1]),)
        self.check_pack(frames.flatten(0, 1), groups)
        if state is not None and len(state.total) != len(frames):
            raise ValueError(f"a chunk of {len(frames)} streams, but the state is of {len(state.total)}")
        with torch.no_grad(), self.as_in_evaluation():
            return self._follow(frames.flatten(0, 1), groups, state)

    def _follow(self, x: Tensor, groups: Groups, state: StreamState | None) -> tuple[Tensor, StreamState]:
        count = state.count if state else 0
        x, blocks = self.stem(x, groups), []
        for number, block in enumerate(cast(Sequence[Block], self.blocks)):
            x, later = block.follow(x, groups, None, count, state.blocks[number] if state else None, True)
            assert later is not None
            blocks.append(later)
        length = groups[0][1]
        mean_SC = _clip_means(self.last(x, groups), groups)
        total = mean_SC * length + (state.total if state else 0)
        return self._features(total / (count + length)), StreamState(count + length, tuple(blocks), total)
