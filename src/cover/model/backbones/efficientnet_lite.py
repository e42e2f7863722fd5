"""EfficientNet-Lite, an image network of inverted bottlenecks, with pooling over frames and space-time blocks on top.

Source: Google's EfficientNet-Lite (Tan & Le, 2019, "EfficientNet", without squeeze-excitation and with ReLU6). The
BatchNorm of the published networks is folded into the convolutions, so training and evaluation compute the same and a
sample does not depend on the rest of the Pack. `cover.model.starts.efficientnet_lite` reads published weights.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, C channels of a map,
h, w sides of a map, N = h w its places, D width of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, cast

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
    count_parts,
    linears_of,
    note,
    option,
    per_frame,
)
from cover.model.layers import Attention, Mlp, Rotation, SameConv2d, rotation_of, rounded_channels
from cover.model.pooling import FramePool, Pool, fitted_head

Variant = Literal["lite0", "lite1", "lite2"]


class Stage(NamedTuple):
    """A row of the published table: the blocks of one stage, before the factors of a variant."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    repeats: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
FACTORS: dict[Variant, tuple[float, float]] = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
STEM, FEATURES = 32, 1280  # channels of the first and the last convolution in every variant
HEAD_CHANNELS = 32  # channels of an attention head of a space-time block
MEAN: Rgb = (127 / 255,) * 3  # the published networks read (x - 127) / 128 of bytes x
STD: Rgb = (128 / 255,) * 3


@dataclass(frozen=True)
class EfficientNetLiteConfig(BackboneConfig):
    """The configuration of an EfficientNet-Lite.

    `variant`: the published size. `depth`: number of space-time blocks between the last stage of the image network and
    its last convolution. `pool`: from the features of frames to that of a sample (`cover.model.pooling.FramePool`).
    """

    family: ClassVar[str] = "efficientnet_lite"

    size: int = 160
    frames: int = 16
    mean: Rgb = MEAN
    std: Rgb = STD
    variant: Variant = "lite0"
    depth: int = 0
    pool: Pool = "mean"

    def check(self) -> None:
        super().check()
        self._check_whole(depth=(0, None))

    def shown_by(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return {"depth": count_parts(shapes, "blocks")}

    def prefix_values(self) -> dict[str, Any]:
        # The number of blocks shows in the weights of the stages, and frames are pooled behind them.
        return {name: value for name, value in super().prefix_values().items() if name not in ("depth", "pool")}

    def build(self) -> EfficientNetLite:
        return EfficientNetLite(self)

    def options(self) -> EfficientNetLiteOptions:
        return EfficientNetLiteOptions(size=self.size, variant=self.variant, depth=self.depth, pool=self.pool)

    def summary(self) -> dict[str, str]:
        return {"variant": self.variant, "depth": str(self.depth), "pool": self.pool}

    def difference(self, theirs: EfficientNetLiteConfig, temporal: bool) -> str | None:
        if theirs.variant != self.variant:
            return f"its model.variant is {theirs.variant}, this run's {self.variant}: set model.variant"
        # More blocks or another pooling start from the same function. Fewer would drop trained parts of it.
        if theirs.depth > self.depth:
            return f"its model.depth is {theirs.depth}, this run's {self.depth}: set model.depth to as many or more"
        if theirs.pool == "attentive" != self.pool:
            return f"its model.pool is attentive, this run's {self.pool}: set model.pool"
        return None


@dataclass(frozen=True)
class EfficientNetLiteOptions(BackboneOptions):
    """`model` of a recipe that trains an EfficientNet-Lite."""

    backbone: Literal["efficientnet_lite"] = option("efficientnet_lite", "the family of the network")
    size: int = option(160, "image side in pixels")
    variant: Variant = option("lite0", "efficientnet_lite: the published size")
    depth: int = option(0, "efficientnet_lite: number of space-time blocks on the last map of the image network")
    pool: Pool = option(
        "mean",
        "efficientnet_lite: from frames to a sample: their mean; quarters: the means of four parts of the clip side by "
        "side; attentive: the mean plus a learned attention over the frames",
    )

    def config(self, frames: int, inherited: BackboneConfig | None = None) -> EfficientNetLiteConfig:
        colours = inherited.inherited_values() if inherited else {}
        return EfficientNetLiteConfig(
            size=self.size, frames=frames, variant=self.variant, depth=self.depth, pool=self.pool, **colours
        )

    def pooled_by(self, pool: Pool) -> EfficientNetLiteOptions:
        return replace(self, pool=pool)

    def with_late_block(self) -> EfficientNetLiteOptions:
        return replace(self, depth=self.depth + 1, pool="quarters")

    def check(self) -> None:
        super().check()
        if self.depth < 0:
            raise UserError(f"model.depth: {self.depth} is not 0 or more")
        if self.drop_path and not self.depth:
            raise UserError("model.drop_path: without space-time blocks (model.depth) there is nothing to drop")


# --- the image network ------------------------------------------------------------------------------------------------


class Stem(SameConv2d):
    """The first convolution with ReLU6."""

    def forward(self, x_FChw: Tensor) -> Tensor:
        """Frames `(F, 3, H, W)` to `(F, 32, H / 2, W / 2)`, rounded up."""
        return fn.relu6(super().forward(x_FChw))


class Bottleneck(nn.Module):
    """An inverted bottleneck: expand the channels, convolve each of them, project them (MBConv)."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        if expansion > 1:
            self.expand: SameConv2d | None = SameConv2d(before, inner, 1)
        else:
            self.expand = None
        self.depthwise = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.project = SameConv2d(inner, after, 1)
        self.residual = stride == 1 and before == after

    def forward(self, x_FChw: Tensor) -> Tensor:
        """`(F, C, h, w)` to `(F, C', h / stride, w / stride)`, rounded up."""
        inner = x_FChw if self.expand is None else fn.relu6(self.expand(x_FChw))
        out = self.project(fn.relu6(self.depthwise(inner)))
        return out + x_FChw if self.residual else out


class LastConv(SameConv2d):
    """The last convolution with ReLU6, and the mean over the places of a frame."""

    def forward(self, x_FChw: Tensor) -> Tensor:
        """`(F, C, h, w)` to the features of frames, `(F, 1280)`."""
        return fn.relu6(super().forward(x_FChw)).mean((2, 3))


def scaled_stages(variant: Variant) -> list[Stage]:
    """The stages of a variant. The first and the last stage keep their number of blocks."""
    width, depth = FACTORS[variant]
    rows = []
    for number, stage in enumerate(STAGES):
        repeats = stage.repeats if number in (0, len(STAGES) - 1) else math.ceil(stage.repeats * depth)
        rows.append(stage._replace(channels=rounded_channels(stage.channels * width), repeats=repeats))
    return rows


def _image_stages(variant: Variant) -> tuple[nn.ModuleList, int]:
    """The stages of the image network after the stem, and the number of channels of the last."""
    stages, before = nn.ModuleList(), STEM
    for kernel, stride, expansion, channels, repeats in scaled_stages(variant):
        blocks = [Bottleneck(before, channels, kernel, stride, expansion)]
        blocks += [Bottleneck(channels, channels, kernel, 1, expansion) for _ in range(repeats - 1)]
        stages.append(nn.Sequential(*blocks))
        before = channels
    return stages, before


# --- space and time ---------------------------------------------------------------------------------------------------


class SpaceTimeBlock(nn.Module):
    """Divided space-time attention over the places of a map: temporal attention, spatial attention, MLP.

    The last matrix of each branch starts at zero, so a new block returns its input. Rotary angles distinguish the
    frames. The image network before it has seen where a place is, so places have no embedding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = channels // HEAD_CHANNELS
        self.temporal_norm = nn.LayerNorm(channels, eps=1e-6)
        self.temporal_attn = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Mlp(channels, 4 * channels, 0.0)

    def initialise(self) -> None:
        """Set the last matrix of each branch to zero, and the temporal branch as in `reset_temporal("fresh")`."""
        for linear in (self.attn.proj, self.mlp.fc2):
            nn.init.zeros_(linear.weight)
        self.reset_temporal(differences=True)

    @torch.no_grad()
    def reset_temporal(self, differences: bool) -> None:
        """Copy the spatial attention into the temporal one, and set its output projection to zero.

        `differences`: initialise its queries, keys and values as temporal differences
        (`Attention.init_temporal_differences`).
        """
        self.temporal_norm.load_state_dict(self.norm1.state_dict())
        self.temporal_attn.load_state_dict(self.attn.state_dict())
        if differences:
            self.temporal_attn.init_temporal_differences()
        nn.init.zeros_(self.temporal_attn.proj.weight)
        nn.init.zeros_(self.temporal_attn.proj.bias)

    def forward(
        self, x_FChw: Tensor, groups: Groups, rotations: list[Rotation | None], drop: Tensor | None = None
    ) -> Tensor:
        """`(F, C, h, w)` to the same shape. `rotations`: the rotary angles of each group of clips. `drop`: drop-path
        factors `(3, F, 1, 1)` of the branches; None is the same as all ones.
        """
        x_FNC = x_FChw.flatten(2).transpose(1, 2)
        time = self.temporal_attn.across_frames(self.temporal_norm(x_FNC), groups, rotations)
        x_FNC = x_FNC + _dropped(self.temporal_attn.proj(time), drop, 0)
        x_FNC = x_FNC + _dropped(self.attn.within_frames(self.norm1(x_FNC), groups, shared=False), drop, 1)
        x_FNC = x_FNC + _dropped(self.mlp(self.norm2(x_FNC)), drop, 2)
        return x_FNC.transpose(1, 2).unflatten(2, x_FChw.shape[2:])


def _dropped(x_FNC: Tensor, drop: Tensor | None, branch: int) -> Tensor:
    return x_FNC if drop is None else x_FNC * drop[branch]


# --- the network ------------------------------------------------------------------------------------------------------


class EfficientNetLite(Backbone):
    """The network of an `EfficientNetLiteConfig`.

    The image network reads every frame alone. Space-time blocks mix places and frames of its last map. A last
    convolution and the mean over places give a feature of each frame, and the pooling that of a sample. An image is a
    clip of one frame. A new network of any depth computes on an image what the image network computes.
    """

    config: EfficientNetLiteConfig

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(3, STEM, 3, stride=2)
        self.layers, channels = _image_stages(config.variant)
        self.blocks = nn.ModuleList(SpaceTimeBlock(channels) for _ in range(config.depth))
        self.last = LastConv(channels, FEATURES, 1)
        self.pool = FramePool(config.pool, FEATURES)
        self.width = self.pool.width

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.config.size, mean=self.config.mean, std=self.config.std)

    def stages(self) -> Sequence[nn.Module]:
        """The stem, the seven stages of the image network, the space-time blocks, the last convolution."""
        return (self.stem, *self.layers, *self.blocks, self.last)

    def drop_shape(self) -> tuple[int, int]:
        return (self.config.depth, 3) if self.config.depth else (0, 0)

    def drop_layers_within(self, stages: int) -> int:
        return min(self.config.depth, max(0, stages - 1 - len(self.layers)))

    def initialise(self) -> None:
        """As `Backbone.initialise`. ReLU6 halves the scale of a random network, so its kernels are drawn for that."""
        for module in (self.stem, *self.layers.modules(), self.last):
            if isinstance(module, SameConv2d):
                nn.init.kaiming_normal_(module.weight)
        for block in self._space_time_blocks():
            block.initialise()
        self.pool.initialise()

    def _space_time_blocks(self) -> Sequence[SpaceTimeBlock]:
        return cast(Sequence[SpaceTimeBlock], self.blocks)

    # --- parameters ---------------------------------------------------------------------------------------------------

    def temporal_parameters(self) -> frozenset[str]:
        return self.names_of(
            *(part for block in self._space_time_blocks() for part in (block.temporal_norm, block.temporal_attn))
        )

    def projections(self) -> dict[str, list[nn.Linear]]:
        if not self.config.depth:
            return {}
        return {"attention": linears_of(self, Attention), "mlp": linears_of(self, Mlp)}

    def reset_temporal(self, how: Literal["fresh", "copied"]) -> None:
        """Copy the spatial attention into the temporal one, with a last matrix of zero.

        `fresh`: initialise the copy as temporal differences (`Attention.init_temporal_differences`). Raises `UserError`
        without space-time blocks.
        """
        if not self.config.depth:
            raise UserError(f"start.temporal: {how}: no temporal branch without space-time blocks; set model.depth")
        for block in self._space_time_blocks():
            block.reset_temporal(differences=how == "fresh")

    def temporal_is_new(self, weights: dict[str, Tensor]) -> bool:
        last = self.names_of(*(block.temporal_attn.proj for block in self._space_time_blocks()))
        return bool(last) and not any(bool(weights[name].any()) for name in last)

    def added_parameters(self, theirs: BackboneConfig) -> frozenset[str]:
        assert isinstance(theirs, EfficientNetLiteConfig)
        pool = [self.pool] if theirs.pool != self.config.pool else []
        return self.names_of(*self.blocks[theirs.depth :], *pool)

    def fitted_head(self, weight: Tensor, theirs: BackboneConfig) -> Tensor:
        assert isinstance(theirs, EfficientNetLiteConfig)
        fitted = fitted_head(weight, self.config.pool, theirs.pool)
        if fitted is None:
            raise UserError(f"its heads are for model.pool {theirs.pool}, this run's is {self.config.pool}: set it")
        return fitted

    # --- the function -------------------------------------------------------------------------------------------------

    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """As `Backbone.forward`. `drop`: `(depth, 3, S)`: the temporal branch, the spatial branch and the MLP.

        `intermediates` receives `stem`, `layers.0` to `layers.6`, `blocks.0` and so on, each `(F, C, h, w)`, then
        `frames`, `(F, 1280)`, and `features`, `(S, D)`.
        """
        self.check_pack(frames, groups)
        return self.forward_suffix(frames, groups, 0, drop, intermediates)

    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """The output of the first `stages` stages, without drop-path, `(F, ...)`; of no stage, the frames."""
        self.check_pack(frames, groups)
        return self._run(frames, groups, range(stages))

    def forward_suffix(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """The feature of every sample, `(S, D)`, from the output of `forward_prefix` with the same `stages`."""
        x_FC = self._run(x, groups, range(stages, len(self.stages())), drop, intermediates)
        features = self.pool(x_FC, groups)
        note(intermediates, "features", features)
        return features

    def _run(
        self,
        x: Tensor,
        groups: Groups,
        numbers: range,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """The output of the stages `numbers`, one after the other."""
        if x.ndim == 4:  # on a CPU, convolutions of this layout take about 0.6 of the time
            x = x.contiguous(memory_format=torch.channels_last)
        stages, image_stages = self.stages(), 1 + len(self.layers)
        names = ["stem", *(f"layers.{number}" for number in range(len(self.layers)))]
        names += [*(f"blocks.{number}" for number in range(len(self.blocks))), "frames"]
        rotations: list[Rotation | None] = [
            rotation_of(frames, HEAD_CHANNELS, x.device) for _, frames in groups if frames > 1
        ]
        drop_F = None if drop is None else per_frame(drop, groups)[..., None, None]  # (depth, 3, F, 1, 1)
        for number in numbers:
            if image_stages <= number < len(stages) - 1:
                block_drop = None if drop_F is None else drop_F[number - image_stages]
                x = self.run_stage(stages[number], x, groups, rotations, block_drop)
            else:
                x = self.run_stage(stages[number], x)
            note(intermediates, names[number], x)
        return x
