"""TimeSformer, a vision transformer with divided space-time attention, for a Pack of clips and images.

Source: Bertasius et al., 2021, "Is Space-Time Attention All You Need for Video Understanding?", called the paper below.
"Released code" is the code that its authors published.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, N tokens of one
frame (class token, then patches), P patches of one frame, D width.

Token 0 of every frame is the class token. All frames of a clip have the same class token. So the whole Pack is one
tensor (F, N, D) from the first layer to the last, and no tensor is split and joined again between branches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.errors import UserError, nearest
from cover.model.backbone import (
    MOST_CHANNELS,
    Backbone,
    BackboneConfig,
    BackboneOptions,
    Groups,
    Heat,
    Intermediates,
    Pixels,
    count_parts,
    linears_of,
    no_check,
    note,
    option,
    per_frame,
)
from cover.model.layers import (
    Attention,
    AttentionMaps,
    ConvStem,
    Mlp,
    Motion,
    Rotation,
    SummedPatchEmbed,
    attend_over_time,
    clip_and_image_frames,
    motion_channels,
    motion_input,
    rotation_of,
)

# From this number of tokens per channel, one product of two weight matrices costs less than a second product with the
# tokens: D^3 multiply-adds and their gradient against F N D^2.
MERGE_TOKENS = 2
# name: width, depth, attention heads (ViT: Dosovitskiy et al., table 1; Ti and S: Touvron et al., DeiT, table 1)
PRESETS = {
    "mini": (128, 4, 4),
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
}


@dataclass(frozen=True)
class TimeSformerConfig(BackboneConfig):
    """The configuration of a TimeSformer. The defaults are TimeSformer-B/16 with 8 frames of 224 pixels.

    `frames`: also the number of entries of the additive time embedding. `attention`: `divided` (temporal, then
    spatial), `joint` (all tokens of a clip at once) or `space` (each frame alone, their class tokens averaged); section
    3.3 and table 1 of the paper. `time`: how the network distinguishes frames, by a learned embedding or by rotary
    positions. `image_temporal`: whether images pass the temporal branch. `image_time`: the time embedding that is added
    to an image, none or the first entry (as in the released code with T = 1). `resize`: the interpolation of position
    embeddings for another size than `size`; the released code uses `nearest`. `layer_scale`: the initial value of a
    factor per channel on every branch (CaiT), 0 for no factor. `patch_embed`: one linear map of each patch, as in
    published checkpoints, a stem of stride-2 convolutions (`ConvStem`), which learns more from few pictures, or the sum
    of both (`SummedPatchEmbed`), which learns movement too.
    `motion`: what the patch embedding receives: the frames, as in published checkpoints, the differences between
    neighbouring frames, or both (`motion_input`). An image has no differences: they are zero.
    """

    family: ClassVar[str] = "timesformer"
    inherited: ClassVar[frozenset[str]] = BackboneConfig.inherited | {
        "norm_eps",
        "resize",
        "image_time",
        "patch_embed",
        "motion",
    }

    added_later: ClassVar[frozenset[str]] = frozenset(["motion"])

    width: int = 768
    depth: int = 12
    attention_heads: int = 12
    mlp_ratio: float = 4.0
    patch: int = 16
    attention: Literal["divided", "joint", "space"] = "divided"
    time: Literal["rotary", "additive"] = "rotary"
    image_temporal: Literal["attend", "skip"] = "attend"
    image_time: Literal["none", "first"] = "none"
    resize: Literal["bicubic", "nearest"] = "bicubic"
    dropout: float = 0.0
    layer_scale: float = 0.0
    patch_embed: Literal["linear", "conv", "both"] = "linear"
    motion: Motion = "frames"
    norm_eps: float = 1e-6

    @property
    def tokens(self) -> int:
        """Tokens of one frame: the class token and the patches."""
        return 1 + (self.size // self.patch) ** 2

    def check(self) -> None:
        super().check()
        self._check_whole(width=(1, MOST_CHANNELS), depth=(1, None), attention_heads=(1, None), patch=(1, self.size))
        if self.width % self.attention_heads:
            raise ValueError(f"attention_heads: {self.attention_heads} do not divide the width, {self.width}")
        if self.time == "rotary" and self.width // self.attention_heads % 2:
            raise ValueError(
                f"attention_heads: {self.attention_heads} of an odd width each; rotary time needs an even one"
            )
        if self.size % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the size, {self.size}")
        if self.patch_embed != "linear" and (self.patch < 2 or self.patch.bit_count() != 1):
            raise ValueError(f"patch: {self.patch} is no power of two, which patch_embed {self.patch_embed} needs")
        if not 1 <= self.width * self.mlp_ratio <= MOST_CHANNELS:
            raise ValueError(f"mlp_ratio: {self.mlp_ratio} gives an MLP of no channels, or of too many")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if not 0 <= self.layer_scale < math.inf:
            raise ValueError(f"layer_scale: {self.layer_scale} is not a finite number, 0 or more")
        if not 0 < self.norm_eps < math.inf:
            raise ValueError(f"norm_eps: {self.norm_eps} is not a finite number above 0")

    def shown_by(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        shown: dict[str, Any] = {"depth": count_parts(shapes, "blocks")}
        return shown | ({"width": shapes["norm.weight"][0]} if len(shapes.get("norm.weight", ())) == 1 else {})

    def build(self) -> TimeSformer:
        return TimeSformer(self)

    def options(self) -> TimeSformerOptions:
        # Only presets can be written into a recipe, so the sizes must be those of one.
        shape = self.width, self.depth, self.attention_heads
        name = next((name for name, sizes in PRESETS.items() if sizes == shape), None)
        if name is None:
            raise UserError(f"width, depth and heads {shape} are those of no preset, so no recipe can ask for them")
        return TimeSformerOptions(
            preset=f"{name}/{self.patch}",
            size=self.size,
            attention=self.attention,
            time=self.time,
            image_temporal=self.image_temporal,
            layer_scale=self.layer_scale,
            patch_embed=self.patch_embed,
            motion=self.motion,
        )

    def start_options(self) -> TimeSformerOptions:
        # A run on images alone skips the temporal branch; the run that starts from it usually has clips.
        return replace(self.options(), image_temporal="attend")

    def summary(self) -> dict[str, str]:
        motion = {} if self.motion == "frames" else {"motion": self.motion}
        return {"attention": self.attention, "time": self.time, "image_temporal": self.image_temporal, **motion}

    def difference(self, theirs: TimeSformerConfig, temporal: bool) -> str | None:
        if theirs.attention_heads != self.attention_heads:
            return (
                f"its network has {theirs.attention_heads} attention heads, this run's has {self.attention_heads}; "
                "choose another model.preset"
            )
        # Names and shapes of tensors do not show every difference: with joint attention instead of space attention, the
        # same tensors would load and compute another function.
        embedding = ("patch_embed", "motion")
        for name in (*embedding, *(("attention", "time") if temporal else ())):
            if getattr(theirs, name) != getattr(self, name):
                advice = f"set model.{name}" + ("" if name in embedding else ", or start.temporal to fresh")
                return f"its model.{name} is {getattr(theirs, name)}, this run's {getattr(self, name)}: {advice}"
        return None


@dataclass(frozen=True)
class TimeSformerOptions(BackboneOptions):
    """`model` of a recipe that trains a TimeSformer."""

    backbone: Literal["timesformer"] = option("timesformer", "the family of the network")
    preset: str = option("mini", "mini, or a ViT size with its patch, as in B/16")
    attention: Literal["divided", "joint", "space"] = option(
        "divided", "divided: temporal, then spatial; joint: all tokens at once; space: each frame alone"
    )
    time: Literal["rotary", "additive"] = option(
        "rotary", "the positions of frames: rotary angles, or a learned embedding"
    )
    image_temporal: Literal["attend", "skip"] = option("attend", "whether images pass the temporal branch")
    dropout: float = option(0.0, "dropout rate after the embedding and in every branch")
    drop_tubes: float = option(0.0, "fraction of the places that training leaves out of all frames of a sample")
    layer_scale: float = option(0.0, "initial value of a factor per channel on every branch; 0 for no factor")
    patch_embed: Literal["auto", "linear", "conv", "both"] = option(
        "auto",
        "linear: one map of each patch, as in published checkpoints; conv: a stem of stride-2 convolutions, which "
        "learns more from few pictures; both: their sum, which learns movement too; auto: as in the starting "
        "checkpoint, else both for mini and linear for the ViT sizes",
    )
    motion: Literal["auto", "frames", "differences", "both"] = option(
        "auto",
        "what is embedded: frames, differences between neighbouring frames, or both; auto: as in the starting "
        "checkpoint, else both for mini and frames for the ViT sizes",
    )

    def config(self, frames: int, inherited: BackboneConfig | None = None) -> TimeSformerConfig:
        changes = inherited.inherited_values() if inherited else {}
        for name in ("patch_embed", "motion"):
            if getattr(self, name) != "auto":  # `difference` refuses it later if the checkpoint has another one
                changes[name] = getattr(self, name)
        return timesformer_config(
            self.preset,
            size=self.size,
            frames=frames,
            attention=self.attention,
            time=self.time,
            image_temporal=self.image_temporal,
            dropout=self.dropout,
            layer_scale=self.layer_scale,
            **changes,
        )

    def for_images(self) -> TimeSformerOptions:
        return replace(self, image_temporal="skip")

    def check(self) -> None:
        super().check()
        self.check_rates("dropout", "drop_tubes")
        if not self.layer_scale >= 0:
            raise UserError(f"model.layer_scale: {self.layer_scale} is not 0 or more")


def timesformer_config(preset: str, **changes: Any) -> TimeSformerConfig:
    """The configuration of the preset `mini` or `SIZE/PATCH`, as in `B/16`, with some fields replaced.

    Raises `UserError` for an unknown preset, or for sizes that do not fit each other.
    """
    name, _, patch = preset.partition("/")
    if name not in PRESETS or (patch and not (patch.isdecimal() and int(patch))):
        raise UserError(f'unknown model preset "{preset}"{nearest(name, PRESETS)} (with a patch size, as in B/16)')
    width, depth, heads = PRESETS[name]
    default_patch, default_size = (8, 32) if name == "mini" else (16, 224)
    shape: dict[str, Any] = {"width": width, "depth": depth, "attention_heads": heads}
    sizes = {"patch": int(patch or default_patch), "size": default_size}
    if name == "mini":  # it is trained from random weights; the others mostly start from published ones
        shape |= {"patch_embed": "both", "motion": "both"}
    config = TimeSformerConfig(**{**shape, **sizes, **changes})
    if config.size % config.patch:
        raise UserError(f"image size {config.size} is not a multiple of the patch {config.patch}")
    if config.patch_embed != "linear" and config.patch.bit_count() != 1:
        size = f"{preset} has {config.patch} px"
        raise UserError(
            f"model.patch_embed: {config.patch_embed} needs a patch that is a power of two, and {size}; use linear"
        )
    return config


class Block(nn.Module):
    """Divided space-time attention: temporal attention, spatial attention, MLP (TimeSformer, section 3.3)."""

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.attention_heads
        self.kind, self.rotary = config.attention, config.time == "rotary"
        self.skip_images = config.image_temporal == "skip"
        self.merging = True  # see `_project`
        # The names of the modules are those of the released code, with `temporal_norm` for its `temporal_norm1`.
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
        self,
        x_FND: Tensor,
        groups: Groups,
        rotations: list[Rotation | None],
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """Tokens `(F, N, D)` to tokens of the same shape.

        `rotations`: the rotary angles of each group of clips, None without rotary time. `drop`: drop-path factors
        `(3, F, 1, 1)` of the three branches; None is the same as all ones. `intermediates` receives the output of each
        branch.
        """
        # Three residual branches in the order of the paper. Spatial attention and the MLP do not depend on the clip of
        # a frame, so they run once for clips and images together.
        if self.kind == "divided":
            x_FND = self._add_temporal(x_FND, groups, rotations, drop, intermediates)
        x_FND = x_FND + self._branch("spatial", self._space(self.norm1(x_FND), groups, rotations), drop, intermediates)
        return x_FND + self._branch("mlp", self.mlp(self.norm2(x_FND)), drop, intermediates)

    @torch.no_grad()
    def reset_temporal(self, differences: bool) -> None:
        """Copy the spatial weights into the temporal branch and set `temporal_fc` to zero (released code).

        `differences`: with rotary time, initialise the copy as temporal differences
        (`Attention.init_temporal_differences`).
        """
        self.temporal_attn.load_state_dict(self.attn.state_dict())
        self.temporal_norm.load_state_dict(self.norm1.state_dict())
        # Only rotary positions let an attention bias select a frame by its distance in time.
        if differences and self.rotary:
            self.temporal_attn.init_temporal_differences()
        if "temporal_scale" in self._parameters:
            self.get_parameter("temporal_scale").copy_(self.get_parameter("scale1"))
        # The branch adds nothing at first: the block computes what the block of an image model computes.
        nn.init.zeros_(self.temporal_fc.weight)
        nn.init.zeros_(self.temporal_fc.bias)

    def temporal_parts(self) -> list[nn.Module | Tensor]:
        """The modules and parameters of the temporal branch. The last of them is the last matrix, `temporal_fc`."""
        if self.kind != "divided":
            return []
        scale = [self.get_parameter("temporal_scale")] if "temporal_scale" in self._parameters else []
        return [*scale, self.temporal_norm, self.temporal_attn, self.temporal_fc]

    def _space(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        """Spatial or joint attention, `(F, N, D)` to the same shape."""
        if self.kind == "joint":  # one sequence of 1 + T P tokens for each clip
            return self.attn.within_clips(x_FND, groups, rotations)
        return self.attn.within_frames(x_FND, groups, shared=self.kind == "divided")

    def _add_temporal(
        self,
        x_FND: Tensor,
        groups: Groups,
        rotations: list[Rotation | None],
        drop: Tensor | None,
        intermediates: Intermediates | None,
    ) -> Tensor:
        """The tokens `(F, N, D)` plus the temporal branch."""
        clip_frames, image_frames = clip_and_image_frames(groups)
        if self.skip_images and image_frames:  # `image_temporal: skip`: the branch runs on the clips alone
            if not clip_frames:
                return x_FND
            clips, images = x_FND.split((clip_frames, image_frames))
            drop = None if drop is None else drop[:, :clip_frames]
            return torch.cat([self._add_temporal(clips, groups[:-1], rotations, drop, intermediates), images])
        # The branch is computed for the class token too and then multiplied by zero. This avoids a copy of the patches
        # out of the tensor and back.
        time_FND = self._project(self.temporal_attn.across_frames(self.temporal_norm(x_FND), groups, rotations))
        # Only patches take part in temporal attention (released code).
        patches_only = torch.ones(x_FND.shape[1], 1, dtype=x_FND.dtype, device=x_FND.device)
        patches_only[0] = 0
        branch = self._branch("temporal", time_FND, drop, intermediates)
        # Under autocast the branch is bfloat16 and the residual stream float32.
        return torch.addcmul(x_FND, branch.to(x_FND.dtype), patches_only)

    def _project(self, mixed_FND: Tensor) -> Tensor:
        """The output projection of temporal attention, then `temporal_fc`.

        No nonlinearity separates the two linear maps. With many tokens it is cheaper to multiply their matrices first
        and to apply one product. Dropout between them prevents this.
        """
        proj, last = self.temporal_attn.proj, self.temporal_fc
        dropping = self.training and self.temporal_attn.drop.p > 0
        if dropping or not self.merging or mixed_FND[..., 0].numel() < MERGE_TOKENS * proj.in_features:
            return last(self.temporal_attn.drop(proj(mixed_FND)))
        # W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)
        return fn.linear(mixed_FND, last.weight @ proj.weight, fn.linear(proj.bias, last.weight, last.bias))

    def _branch(self, name: str, x_FND: Tensor, drop: Tensor | None, intermediates: Intermediates | None) -> Tensor:
        """The output of a branch times its LayerScale and drop-path factors, ready to be added to the tokens."""
        number = ("temporal", "spatial", "mlp").index(name)
        scale = getattr(self, ("temporal_scale", "scale1", "scale2")[number], None)
        if scale is not None:
            x_FND = x_FND * scale
        note(intermediates, name, x_FND)  # before drop-path, which is absent in evaluation
        return x_FND if drop is None else x_FND * drop[number]


class TimeSformer(Backbone):
    """The network of a `TimeSformerConfig`. A feature is the normalised class token of a sample.

    Spatial attention and the MLP run once over all frames of the Pack. Temporal attention runs group by group. An image
    is a clip of one frame. `temporal_fc` and the additive time embedding start at zero, so a new network computes the
    same as an image ViT, unless its input has differences between frames.
    """

    config: TimeSformerConfig

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        channels = motion_channels(config.motion)
        self.patch_embed: nn.Module
        if config.patch_embed == "linear":
            self.patch_embed = nn.Conv2d(channels, config.width, config.patch, config.patch)
        else:
            stem = ConvStem if config.patch_embed == "conv" else SummedPatchEmbed
            self.patch_embed = stem(config.width, config.patch, channels)
        # These three and the blocks have the names and shapes of the released code.
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))  # entry 0 is for the class token
        if self.has_time_embedding:
            self.time_embed = nn.Parameter(torch.zeros(1, config.frames, config.width))
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.config.size, multiple=self.config.patch, mean=self.config.mean, std=self.config.std)

    @property
    def has_time_embedding(self) -> bool:
        """Whether a learned embedding of the frame index is added to the patch tokens."""
        return self.config.time == "additive" and self.config.attention != "space"

    def initialise(self) -> None:
        """As `Backbone.initialise`: Kaiming values for the convolutional stem, deviation 0.02 for embeddings (ViT)."""
        for stem in (module for module in self.patch_embed.modules() if isinstance(module, ConvStem)):
            for module in stem.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.reset_temporal("fresh")

    def reset_temporal(self, how: Literal["fresh", "copied"]) -> None:
        """Copy the spatial attention into the temporal one, with `temporal_fc` zero (released code).

        The network then computes the same as its image ViT. `fresh`: with rotary time, initialise the copy as temporal
        differences (`Attention.init_temporal_differences`).
        """
        if self.config.attention == "divided":
            for block in self.stages():
                block.reset_temporal(differences=how == "fresh")
        if self.has_time_embedding:
            nn.init.zeros_(self.time_embed)

    # --- the function -------------------------------------------------------------------------------------------------

    def forward(
        self,
        frames: Tensor,
        groups: Groups,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
        tubes: Tensor | None = None,
    ) -> Tensor:
        """As `Backbone.forward`. `drop`: `(depth, 3, S)`, for the temporal branch, the spatial branch and the MLP.

        `intermediates` receives `embedded`, then for each block (here block 3) the branches `blocks.3.temporal`,
        `blocks.3.spatial` and `blocks.3.mlp` as they are added and the output `blocks.3`, all `(F, N, D)`, and at the
        end `features`, `(S, D)`.
        """
        self.check_pack(frames, groups)
        x_FND = self.drop(self._embed(frames, groups, tubes))
        note(intermediates, "embedded", x_FND)
        return self._features(x_FND, groups, 0, drop, intermediates)

    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """As `Backbone.forward_prefix`, the tokens `(F, N, D)` after `stages` blocks."""
        if not stages:
            return frames
        self.check_pack(frames, groups)
        with self.as_in_evaluation():
            x_FND = self._embed(frames, groups)
            rotations = self._rotations(groups, x_FND.device)
            for block in self.stages()[:stages]:
                x_FND = block(x_FND, groups, rotations)
        return x_FND

    def forward_suffix(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """As `Backbone.forward_suffix`. `intermediates` receives the entries of the blocks that run."""
        if not stages:
            return self.forward(x, groups, drop, intermediates)
        return self._features(x, groups, stages, drop, intermediates)

    def _features(
        self, x_FND: Tensor, groups: Groups, stages: int, drop: Tensor | None, intermediates: Intermediates | None
    ) -> Tensor:
        rotations = self._rotations(groups, x_FND.device)
        drop_F = None if drop is None else per_frame(drop, groups)[..., None, None]  # (depth, 3, F, 1, 1)
        for number, block in enumerate(self.stages()[stages:], stages):
            branches: Intermediates | None = None if intermediates is None else {}
            block_drop = None if drop_F is None else drop_F[number]
            x_FND = self.run_stage(block, x_FND, groups, rotations, block_drop, branches)
            for name, value in (branches or {}).items():
                note(intermediates, f"blocks.{number}.{name}", value)
            note(intermediates, f"blocks.{number}", x_FND)
        features = self.pooled(x_FND, groups)
        note(intermediates, "features", features)
        return features

    def pooled(self, x_FND: Tensor, groups: Groups) -> Tensor:
        """The normalised class token of every sample, `(S, D)`, from the output of the last block, `(F, N, D)`."""
        return self.norm(self._class_tokens(x_FND, groups))

    def _embed(self, frames: Tensor, groups: Groups, tubes: Tensor | None = None) -> Tensor:
        """Frames `(F, 3, H, W)` to tokens `(F, N, D)`: patches, positions, times and the class token.

        `tubes`: as in `Backbone.forward`.
        """
        x_FDhw = self.patch_embed(motion_input(frames, groups, self.config.motion))
        # The size of the frames may differ from `config.size`, for instance in evaluation.
        position = resized_positions(self.pos_embed, (x_FDhw.shape[2], x_FDhw.shape[3]), self.config.resize)
        x_FPD = x_FDhw.flatten(2).transpose(1, 2) + position[:, 1:]
        if self.has_time_embedding:  # for patches alone: the class token belongs to no frame (released code)
            x_FPD = x_FPD + self._time(groups)[:, None]
        if tubes is not None:
            places_FK = per_frame(tubes.T, groups).T
            x_FPD = x_FPD.gather(1, places_FK[..., None].expand(-1, -1, x_FPD.shape[-1]))
        return torch.cat([(self.cls_token + position[:, :1]).expand(x_FPD.shape[0], -1, -1), x_FPD], dim=1)

    def _time(self, groups: Groups) -> Tensor:
        """The learned time embedding of every frame, `(F, D)`, resized for another clip length."""
        entries = []
        for samples, frames in groups:
            embed = resized_time(self.time_embed, frames)[0]  # (T, D)
            if frames == 1 and self.config.image_time == "none":
                embed = torch.zeros_like(embed)
            entries.append(embed.repeat(samples, 1))
        return torch.cat(entries)

    def _rotations(self, groups: Groups, device: torch.device) -> list[Rotation | None]:
        """The rotary angles of every group of clips, computed once for all layers. Images have none."""
        channels = self.config.width // self.config.attention_heads
        # With `space` attention no token attends to another frame, so there is nothing to rotate.
        rotary = self.config.time == "rotary" and self.config.attention != "space"
        return [rotation_of(frames, channels, device) if rotary else None for _, frames in groups if frames > 1]

    def _class_tokens(self, x_FND: Tensor, groups: Groups) -> Tensor:
        """The class token of each sample, `(S, D)`: of its first frame, or with `space` attention the mean of all."""
        parts = x_FND[:, 0].split([samples * frames for samples, frames in groups])  # (S T, D) of each group
        if self.config.attention == "space":
            return torch.cat([part.unflatten(0, group).mean(1) for part, group in zip(parts, groups, strict=True)])
        # All frames of a clip have the same class token, so the first frame's is enough.
        return torch.cat([part[::frames] for part, (_, frames) in zip(parts, groups, strict=True)])

    # --- parameters ---------------------------------------------------------------------------------------------------

    def stages(self) -> Sequence[Block]:
        return tuple(self.blocks)  # type: ignore[arg-type]

    def drop_shape(self) -> tuple[int, int]:
        return self.config.depth, 3

    def temporal_parameters(self) -> frozenset[str]:
        parts = [part for block in self.stages() for part in block.temporal_parts()]
        return self.names_of(*parts, *([self.time_embed] if self.has_time_embedding else []))

    def projections(self) -> dict[str, list[nn.Linear]]:
        return {"attention": linears_of(self, Attention), "mlp": linears_of(self, Mlp)}

    def no_decay_parameters(self) -> frozenset[str]:
        embeddings = [self.cls_token, self.pos_embed, *([self.time_embed] if self.has_time_embedding else [])]
        return super().no_decay_parameters() | self.names_of(*embeddings)

    def temporal_is_new(self, weights: dict[str, Tensor]) -> bool:
        """As `Backbone.temporal_is_new`: the last matrix of every temporal branch is still zero."""
        # The matrices of `temporal_fc`, without its biases, which have one dimension.
        last = [
            weights[name]
            for block in self.stages()
            for name in self.names_of(*block.temporal_parts()[-1:])
            if weights[name].ndim > 1
        ]
        return bool(last) and not any(value.any() for value in last)

    def fit_embeddings(self, weights: dict[str, Tensor]) -> list[str]:
        side = self.config.size // self.config.patch
        fitting = {"pos_embed": lambda embed: resized_positions(embed, (side, side), self.config.resize)}
        if self.has_time_embedding:
            fitting["time_embed"] = lambda embed: resized_time(embed, self.config.frames)
        notes = []
        for name, fit in fitting.items():
            before = weights.get(name)
            # A tensor of another width is left as it is; the comparison of shapes reports it.
            if before is not None and before.ndim == 3 and before.shape[-1] == self.width:
                weights[name] = fit(before)
                if weights[name].shape != before.shape:
                    notes.append(f"{name} from {before.shape[1]} to {weights[name].shape[1]} entries")
        return notes

    # --- uses ---------------------------------------------------------------------------------------------------------

    def set_merging(self, on: bool) -> None:
        """Allow or forbid that `Block._project` multiplies its two matrices first. The function is the same."""
        for block in self.stages():
            block.merging = on

    @contextmanager
    def attention_maps(self) -> Iterator[dict[str, AttentionMaps]]:
        """Record every attention that is computed inside the context.

        The dictionary has an entry for each module, such as `blocks.3.attn` and `blocks.3.temporal_attn`, with one
        `Attended` for each computed group (temporal attention of images is not computed). If contexts are nested, only
        the inner one records. Recording changes no numbers. It does not work with compiled blocks, nor while another
        thread runs the same network.
        """
        modules = {name: module for name, module in self.named_modules() if isinstance(module, Attention)}
        recorded: dict[str, AttentionMaps] = {name: [] for name in modules}
        before = {name: module.maps for name, module in modules.items()}
        try:
            for name, module in modules.items():
                module.maps = recorded[name]
            yield recorded
        finally:
            for name, module in modules.items():
                module.maps = before[name]  # of an outer context, or None

    def heat(
        self, frames: Tensor, score: Callable[[Tensor], Tensor] | None, check: Callable[[], None] = no_check
    ) -> Heat:
        """As `Backbone.heat`: attention roll-out without a `score`, attention x gradient with one.

        Every layer is computed twice. `check` is called before each computation.
        """
        from cover.model.backbones.timesformer_rollout import rollout

        return rollout(self, frames, score, check)

    def simplify(self) -> None:
        self.set_merging(False)  # `_project` decides by the size of the batch, which is unknown in an exported graph
        if self.config.attention == "divided":
            for block in self.stages():
                _merge_temporal_matrices(block)


# --- embeddings of another size ---------------------------------------------------------------------------------------


def resized_positions(pos_embed: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Position embeddings `(1, 1 + h w, D)` of a square grid, resized to `grid` (rows, columns).

    The entry of the class token does not change. `mode`: `bicubic` over both axes (as the ViT of transformers), or
    `nearest` (as the released code of TimeSformer).
    """
    side = round((pos_embed.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return pos_embed
    patches = pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (1, D, h, w), as interpolate needs
    patches = fn.interpolate(patches, size=grid, mode=mode, align_corners=False if mode == "bicubic" else None)
    return torch.cat([pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def resized_time(time_embed: Tensor, frames: int) -> Tensor:
    """Time embeddings `(1, T, D)`, resized to `frames` entries by the nearest neighbour (released code)."""
    if time_embed.shape[1] == frames:
        return time_embed
    return fn.interpolate(time_embed.transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)


# --- export -----------------------------------------------------------------------------------------------------------


class _SplitAttention(nn.Module):
    """`Attention.across_frames` for one group, with separate layers for query, key and value.

    In an exported graph, a slice of a matrix is a computed value. A separate matrix is a constant, and only constants
    can be rearranged or quantized in advance.
    """

    def __init__(self, attention: Attention, proj: nn.Linear) -> None:
        super().__init__()
        self.heads, self.proj, self.drop = attention.heads, proj, nn.Identity()
        parts = zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in parts)

    def across_frames(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        (group,) = groups
        if group[1] == 1:  # the attention of an image is its value projection
            return self.v(x_FND)
        q, k, v = (project(x_FND).unflatten(0, group) for project in (self.q, self.k, self.v))
        return attend_over_time(q, k, v, self.heads, rotations[0]).flatten(0, 1)


@torch.no_grad()
def _merge_temporal_matrices(block: Block) -> None:
    """Replace the temporal output projection and `temporal_fc` by one matrix, computed in float64."""
    proj, last = block.temporal_attn.proj, block.temporal_fc
    # The product is computed once, so float64 costs nothing and avoids a second rounding.
    weight = last.weight.double() @ proj.weight.double()
    bias = last.weight.double() @ proj.bias.double() + last.bias.double()
    block.add_module("temporal_attn", _SplitAttention(block.temporal_attn, _linear(weight, bias)))
    block.add_module("temporal_fc", nn.Identity())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A float32 linear layer with copies of the given tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # no memory: its tensors are replaced
    layer.load_state_dict({"weight": weight.float().contiguous().clone(), "bias": bias.float().clone()}, assign=True)
    return layer
