"""A small 3-D convolutional network, trained from random weights: the baseline that a transformer has to beat.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbone import Backbone, BackboneConfig, BackboneOptions, Groups, Intermediates, Pixels, note, option

GROUPS = 8  # of a GroupNorm
Motion = Literal["frames", "differences", "both"]


@dataclass(frozen=True)
class Conv3dConfig(BackboneConfig):
    """`channels`: of each layer; the last are the width. `motion`: what enters the first layer, the frames, the
    differences between neighbouring frames, or both one above the other.
    """

    family: ClassVar[str] = "conv3d"

    channels: tuple[int, ...] = (24, 48, 72)
    motion: Motion = "both"

    def build(self) -> Conv3d:
        return Conv3d(self)

    def options(self) -> Conv3dOptions:
        return Conv3dOptions(size=self.size, channels=self.channels, motion=self.motion)

    def summary(self) -> dict[str, str]:
        return {"channels": "-".join(map(str, self.channels)), "motion": self.motion}


@dataclass(frozen=True)
class Conv3dOptions(BackboneOptions):
    """`model` of a recipe that trains a 3-D convolutional network."""

    backbone: Literal["conv3d"] = option("conv3d", "the family of the network")
    channels: tuple[int, ...] = option((24, 48, 72), "conv3d: of each layer")
    motion: Motion = option(
        "both", "conv3d: the input, which is frames, differences between neighbouring frames, or both"
    )

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
    """A 3x3x3 convolution that halves height and width and keeps every frame, GroupNorm and GELU.

    The first and the last frame are repeated beyond the ends of a clip. So a still clip of any length gives the same
    output at every frame as its image, a clip of one frame.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, 3, stride=(1, 2, 2), padding=(0, 1, 1))
        self.norm = nn.GroupNorm(math.gcd(GROUPS, after), after)

    def forward(self, x_FChw: Tensor, groups: Groups) -> Tensor:
        outputs = []
        for clips, group in _each(x_FChw, groups):
            x_SCThw = clips.unflatten(0, group).transpose(1, 2)
            x_SCThw = torch.cat([x_SCThw[:, :, :1], x_SCThw, x_SCThw[:, :, -1:]], dim=2)
            outputs.append(fn.gelu(self.norm(self.conv(x_SCThw))).transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)


class Conv3d(Backbone):
    """Layers of 3-D convolution and the mean over all places and frames, which is the feature.

    An image is a clip of one frame. Its differences are zero, as those of a still clip are: with `motion: differences`
    all images have the same feature. Samples of different lengths never meet, since GroupNorm works on each sample
    alone.
    """

    config: Conv3dConfig

    def __init__(self, config: Conv3dConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.channels[-1]
        entering = (6 if config.motion == "both" else 3, *config.channels)
        self.layers = nn.ModuleList(Layer(before, after) for before, after in zip(entering, config.channels))

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.config.size, mean=self.config.mean, std=self.config.std)

    def stages(self) -> Sequence[nn.Module]:
        return tuple(self.layers)

    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """As `Backbone.forward`. `intermediates` gets `layers.0` and so on, each `(F, C, h, w)`, and `features`."""
        self.check_pack(frames, groups)
        x_FChw = self._input(frames, groups)
        for number, layer in enumerate(self.layers):
            x_FChw = self.run_stage(layer, x_FChw, groups)
            note(intermediates, f"layers.{number}", x_FChw)
        features = torch.cat([part.unflatten(0, group).mean(1) for part, group in _each(x_FChw.mean((2, 3)), groups)])
        note(intermediates, "features", features)
        return features

    def _input(self, frames: Tensor, groups: Groups) -> Tensor:
        if self.config.motion == "frames":
            return frames
        differences = torch.cat([_differences(part, group) for part, group in _each(frames, groups)])
        return differences if self.config.motion == "differences" else torch.cat([frames, differences], dim=1)


def _each(frames: Tensor, groups: Groups) -> list[tuple[Tensor, tuple[int, int]]]:
    """The rows of each group of frames, with the group."""
    return list(zip(frames.split([samples * length for samples, length in groups]), groups, strict=True))


def _differences(frames: Tensor, group: tuple[int, int]) -> Tensor:
    """Each frame of clips `(S T, 3, H, W)` minus the one before it; of a first frame zero."""
    clips = frames.unflatten(0, group)
    before = torch.cat([clips[:, :1], clips[:, :-1]], dim=1)
    return (clips - before).flatten(0, 1)
