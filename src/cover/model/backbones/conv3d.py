"""A small 3-D convolutional network, trained from random weights. It is the baseline for the transformers.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbone import (
    MOST_CHANNELS,
    Backbone,
    BackboneConfig,
    BackboneOptions,
    Groups,
    Intermediates,
    Pixels,
    count_parts,
    note,
    option,
)
from cover.model.layers import Motion, each_group, motion_channels, motion_input

GROUPS = 8  # of a GroupNorm


@dataclass(frozen=True)
class Conv3dConfig(BackboneConfig):
    """The configuration of a 3-D convolutional network.

    `channels`: number of output channels of each layer; the last is the width D. `motion`: the input of the first
    layer: the frames, the differences between neighbouring frames, or both (`motion_input`).
    """

    family: ClassVar[str] = "conv3d"

    channels: tuple[int, ...] = (24, 48, 72)
    motion: Motion = "both"

    def check(self) -> None:
        super().check()
        if not self.channels or min(self.channels) < 1 or max(self.channels) > MOST_CHANNELS:
            raise ValueError(f"channels: they are not one number or more, each in [1, {MOST_CHANNELS}]")

    def shown_by(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        biases = [shapes.get(f"layers.{layer}.conv.bias", ()) for layer in range(count_parts(shapes, "layers"))]
        return {"channels": tuple(shape[0] for shape in biases)} if all(len(shape) == 1 for shape in biases) else {}

    def build(self) -> Conv3d:
        return Conv3d(self)

    def options(self) -> Conv3dOptions:
        return Conv3dOptions(size=self.size, channels=self.channels, motion=self.motion)

    def summary(self) -> dict[str, str]:
        return {"channels": "-".join(map(str, self.channels)), "motion": self.motion}

    def difference(self, theirs: Conv3dConfig, temporal: bool) -> str | None:
        if theirs.motion != self.motion:  # `frames` and `differences` have tensors of the same shapes
            return f"its model.motion is {theirs.motion}, this run's {self.motion}: set model.motion"
        return None


@dataclass(frozen=True)
class Conv3dOptions(BackboneOptions):
    """`model` of a recipe that trains a 3-D convolutional network."""

    backbone: Literal["conv3d"] = option("conv3d", "the family of the network")
    channels: tuple[int, ...] = option((24, 48, 72), "conv3d: output channels of each layer")
    motion: Motion = option("both", "conv3d: the input: frames, differences between neighbouring frames, or both")

    def config(self, frames: int, inherited: BackboneConfig | None = None) -> Conv3dConfig:
        colours = inherited.inherited_values() if inherited else {}
        return Conv3dConfig(size=self.size, frames=frames, channels=self.channels, motion=self.motion, **colours)

    def check(self) -> None:
        super().check()
        if not self.channels or min(self.channels) < 1:
            raise UserError(f"model.channels: {list(self.channels)} are not one number or more, each above 0")
        if self.drop_path:
            raise UserError("model.drop_path: a conv3d has no residual branches to drop; set it to 0")


class Layer(nn.Module):
    """A 3x3x3 convolution with stride 2 in space and stride 1 in time, then GroupNorm and GELU.

    In time, the padding repeats the first and the last frame. So a clip of identical frames gives the same output at
    every frame as the image, which is a clip of one frame. Zero padding would not.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, 3, stride=(1, 2, 2), padding=(0, 1, 1))  # `forward` pads in time
        self.norm = nn.GroupNorm(math.gcd(GROUPS, after), after)

    def forward(self, x_FChw: Tensor, groups: Groups) -> Tensor:
        """`(F, C, h, w)` to `(F, C', h / 2, w / 2)`, rounded up."""
        outputs = []
        for clips, group in each_group(x_FChw, groups):
            x_SCThw = clips.unflatten(0, group).transpose(1, 2)  # the layout of nn.Conv3d
            x_SCThw = torch.cat([x_SCThw[:, :, :1], x_SCThw, x_SCThw[:, :, -1:]], dim=2)  # T + 2 frames
            outputs.append(fn.gelu(self.norm(self.conv(x_SCThw))).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)


class Conv3d(Backbone):
    """Layers of 3-D convolution. The feature is the mean of the last output over all places and frames.

    An image is a clip of one frame. Its differences are zero, as in a clip of identical frames, so with
    `motion: differences` all images have the same feature. GroupNorm normalises each sample alone, so a feature does
    not depend on the rest of the Pack.
    """

    config: Conv3dConfig

    def __init__(self, config: Conv3dConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.channels[-1]
        # channels that enter each layer
        entering = (motion_channels(config.motion), *config.channels)
        self.layers = nn.ModuleList(Layer(before, after) for before, after in zip(entering, config.channels))

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.config.size, mean=self.config.mean, std=self.config.std)

    def stages(self) -> Sequence[nn.Module]:
        return tuple(self.layers)

    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """As `Backbone.forward`. There are no drop-path branches, so `drop` has no effect.

        `intermediates` receives `layers.0`, `layers.1`, ..., each `(F, C, h, w)`, and `features`, `(S, D)`.
        """
        return self.forward_suffix(frames, groups, 0, drop, intermediates)

    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """As `Backbone.forward_prefix`, `(F, C, h, w)` after `stages` layers."""
        if not stages:
            return frames
        self.check_pack(frames, groups)
        x_FChw = motion_input(frames, groups, self.config.motion)
        for layer in self.stages()[:stages]:
            x_FChw = layer(x_FChw, groups)
        return x_FChw

    def forward_suffix(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """As `Backbone.forward_suffix`. `intermediates` receives the entries of the layers that run."""
        if not stages:
            self.check_pack(x, groups)
            x = motion_input(x, groups, self.config.motion)
        x_FChw = x
        for number, layer in enumerate(self.stages()[stages:], stages):
            x_FChw = self.run_stage(layer, x_FChw, groups)
            note(intermediates, f"layers.{number}", x_FChw)
        # First over places, then over the frames of each sample.
        x_FC = x_FChw.mean((2, 3))
        features = torch.cat([part.unflatten(0, group).mean(1) for part, group in each_group(x_FC, groups)])
        note(intermediates, "features", features)
        return features
