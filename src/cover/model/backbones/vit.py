"""Plain vision transformers for images and video: one network for the published families, all by its configuration.

It is the network of ViT, AugReg, DeiT, DINOv2, DINOv3, CLIP, SigLIP 2 and EVA-02, with four ways over time, and of
VideoMAE, UMT, V-JEPA 2, ViViT (models 1 to 4) and VATT. `cover.model.backbones.vit_presets` has the settings of each,
and `cover.model.starts.vit` reads published weights. TimeSformer has a file of its own.

Letters in shapes: S samples, F frames of all samples together (clips first), T slots of one sample (a slot is the
frames that are embedded together), C tokens before the patches, P patches of one slot, L tokens of one sequence, B
sequences, N tokens of all samples together, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from cover.errors import UserError, nearest
from cover.model.backbone import (
    Backbone,
    BackboneConfig,
    BackboneOptions,
    Groups,
    Heat,
    Intermediates,
    Pixels,
    linears_of,
    no_check,
    note,
    option,
)
from cover.model.backbones.vit_blocks import (
    Activation,
    AttentiveProbe,
    BlockSettings,
    Embedded,
    LateEncoder,
    Layout,
    ProbePool,
    SelfAttention,
    ViTBlock,
    ViTMlp,
    joined,
)
from cover.model.backbones.vit_embedding import AXES, TokenEmbedding
from cover.model.backbones.vit_positions import Grid, Rotary, resized_axis, resized_grid
from cover.model.backbones.vit_presets import PRESETS
from cover.model.backbones.vit_static import distinct_frames, patch_values
from cover.model.backbones.vit_token_learner import TokenLearning, Version
from cover.model.layers import Attention
from cover.model.pooling import FramePool, Pool, fitted_head

Attending = Literal["joint", "space", "late", "divided", "dot_product"]
Time = Literal["none", "additive", "rotary"]
Position = Literal["learned", "learned_joint", "factorised", "sincos", "none"]
TokenPool = Literal["class", "class_distillation", "class_mean", "mean", "mean_norm", "probe", "attentive"]
TWICE = ("class_distillation", "class_mean")  # two features side by side
# Fields that a run may choose without changing what the weights of a start compute on an image.
FREE = frozenset(
    ["size", "frames", "mean", "std", "drop_tokens", "static_patches", "frame_pool", "layer_scale", "added_blocks"]
)
AFTER_BLOCKS = ("frame_pool", "added_blocks")  # fields that the outputs of the encoder's blocks do not depend on
TEMPORAL = ("attention", "time", "time_first", "late_depth", "late_heads", "late_hidden", "late_pool")


@dataclass(frozen=True)
class VitConfig(BackboneConfig):
    """The configuration of a plain vision transformer. The defaults are ViT-B/16 on each frame alone.

    Tokens: `tubelet` frames are embedded together. `class_token`, `distillation`, `registers`: tokens before the
    patches, in this order. `position`: the table that is added to the patches: `learned` for the places of one slot,
    `learned_joint` for all slots, `factorised` into slots, rows and columns (with a norm of their sum, VATT), `sincos`
    fixed over the numbers of the tokens of `position_grid` (empty: of this network's own grid). `positioned`: tokens
    before the patches that have an entry in a learned table too. `rotary`: angles in attention, by the halves of a head
    (DINOv3), by pairs of channels on a grid of side `rotary_grid` (EVA-02), or on three axes (V-JEPA 2). `entry_norm`:
    a norm before the blocks (CLIP).

    Blocks: `hidden` values of the MLP, `mlp` its activation, `mlp_norm` a norm in it, `qkv_bias`, `layer_scale` as an
    initial value, 0 for none.

    Time: `attention` is `joint` among all tokens of a clip; `space` within slots, and the features of slots are pooled
    by `frame_pool`; `late`, a transformer of `late_depth` layers over the features of slots, read from its class token
    or from its mean; `divided`, a temporal branch in each block, before the spatial one if `time_first`; `dot_product`,
    half of the heads over time. `time`: what distinguishes slots beside `position`: a learned embedding that is added,
    or rotary angles in the temporal branch.

    `pool`: the feature of a sequence: the class token; this beside the distillation token or the mean of the patches
    (DINOv2's classifiers); this mean after the last norm or before it (`mean_norm`); a learned query (`probe`, SigLIP);
    `probe_depth` blocks and then a learned query (`attentive`, V-JEPA 2). `pool_eps`: of the norms after the blocks, 0
    for `norm_eps`. `static_patches`: patches that differ from those before by at most this are computed once
    (`vit_static`); None: all are computed. `drop_tokens`: the part of the patches that is left out of a training pass,
    the same ones in the whole Pack (VATT).

    `added_blocks`: blocks after those of the encoder that add nothing at first. They attend over space and time: as the
    encoder where it is `joint` or `dot_product`, else `divided` with rotary time.

    `learned_tokens`: the patches of a slot become this many tokens after `learner_after` blocks, 0 for never
    (TokenLearner, version `learner`). `fuser`: they become patches again after each block.
    """

    family: ClassVar[str] = "vit"
    added_later: ClassVar[frozenset[str]] = frozenset(["added_blocks", "static_patches"])

    frames: int = 8
    width: int = 768
    depth: int = 12
    attention_heads: int = 12
    hidden: int = 3072
    patch: int = 16
    tubelet: int = 1
    patch_bias: bool = True
    class_token: bool = True
    distillation: bool = False
    registers: int = 0
    position: Position = "learned"
    positioned: int | None = None  # None: the class and the distillation token
    position_grid: tuple[int, ...] = ()
    rotary: Rotary = "none"
    rotary_grid: int = 0
    entry_norm: bool = False
    norm_eps: float = 1e-6
    qkv_bias: Literal["all", "qv", "none"] = "all"
    mlp: Activation = "gelu"
    mlp_norm: bool = False
    layer_scale: float = 0.0
    attention: Attending = "space"
    time: Time = "none"
    time_first: bool = True
    late_depth: int = 4
    late_heads: int = 0  # 0: as many as in the blocks
    late_hidden: int = 0  # 0: as in the blocks
    late_pool: Literal["class", "mean"] = "mean"
    pool: TokenPool = "class"
    pool_eps: float = 0.0
    probe_depth: int = 3
    probe_heads: int = 0
    frame_pool: Pool = "mean"
    added_blocks: int = 0
    drop_tokens: float = 0.0
    static_patches: float | None = None
    learned_tokens: int = 0
    learner: Version = "v1.1"
    learner_after: int = 0
    fuser: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError if settings do not fit each other."""
        if problem := self._problem():
            raise ValueError(problem)

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches of a sequence."""
        return self.class_token + self.distillation + self.registers

    @property
    def positions_before(self) -> int:
        """The number of entries of the learned table for tokens before the patches."""
        if self.position not in ("learned", "learned_joint"):
            return 0
        return self.class_token + self.distillation if self.positioned is None else self.positioned

    @property
    def grid(self) -> Grid:
        """Slots, rows and columns of a training clip."""
        side = self.size // self.patch
        return max(1, self.frames // self.tubelet), side, side

    def prefix_values(self) -> dict[str, Any]:
        return {name: value for name, value in super().prefix_values().items() if name not in AFTER_BLOCKS}

    def build(self) -> Vit:
        return Vit(self)

    def options(self) -> VitOptions:
        # The preset that shares most fields, and every field that differs from it.
        differences = {name: self._difference_from(name) for name in PRESETS}
        preset = min(
            differences, key=lambda name: (len(differences[name]), VitConfig(**PRESETS[name]).mean != self.mean)
        )
        return VitOptions(preset=preset, **{"size": self.size, **differences[preset]})

    def summary(self) -> dict[str, str]:
        learned = {"learned_tokens": str(self.learned_tokens)} if self.learned_tokens else {}
        clip: dict[str, str] = {**learned, "attention": self.attention, "time": self.time, "pool": self.pool}
        if self.attention in ("space", "divided") and self.frame_pool != "mean":
            clip["frame_pool"] = self.frame_pool
        clip |= {"added_blocks": str(self.added_blocks)} if self.added_blocks else {}
        return {**clip, "position": self.position if self.rotary == "none" else f"{self.position} + {self.rotary}"}

    def difference(self, theirs: VitConfig, temporal: bool) -> str | None:
        for field in fields(self):
            name, ours, its = field.name, getattr(self, field.name), getattr(theirs, field.name)
            if ours == its or name in FREE or (name in TEMPORAL and not temporal):
                continue
            advice = f"set model.{name}" + (", or start.temporal to fresh" if name in TEMPORAL else "")
            return f"its model.{name} is {its}, this run's {ours}: {advice}"
        if bool(theirs.layer_scale) != bool(self.layer_scale):
            return (
                f"its model.layer_scale is {theirs.layer_scale}, this run's {self.layer_scale}: set model.layer_scale"
            )
        # More blocks begin as the same function. Fewer would drop trained parts of it.
        if theirs.added_blocks > self.added_blocks:
            return f"its model.added_blocks is {theirs.added_blocks}, this run's {self.added_blocks}: set it to as many"
        if theirs.frame_pool == "attentive" != self.frame_pool:
            return f"its model.frame_pool is attentive, this run's {self.frame_pool}: set model.frame_pool"
        return None

    def block(self, **changes: Any) -> BlockSettings:
        """The settings of a block of the encoder, with some replaced."""
        attends = self.attention if self.attention in ("divided", "dot_product") else "sequence"
        settings = BlockSettings(
            width=self.width,
            heads=self.attention_heads,
            hidden=self.hidden,
            eps=self.norm_eps,
            qkv_bias=self.qkv_bias,
            mlp=self.mlp,
            mlp_norm=self.mlp_norm,
            layer_scale=self.layer_scale,
            rotary=self.rotary,
            attends=cast(Any, attends),
            time_first=self.time_first,
            rotary_time=self.time == "rotary",
        )
        return replace(settings, **changes)

    def added_block(self) -> BlockSettings:
        """The settings of a block after those of the encoder."""
        apart = self.attention in ("space", "late", "divided")
        return self.block(layer_scale=0.0, **({"attends": "divided", "rotary_time": True} if apart else {}))

    def after_blocks(self, **changes: Any) -> BlockSettings:
        """The settings of a block that attends to the output of the encoder, without positions of its own."""
        plain = {"qkv_bias": "all", "mlp_norm": False, "layer_scale": 0.0, "rotary": "none", "attends": "sequence"}
        return self.block(**{**plain, "eps": self.pool_eps or self.norm_eps, **changes})

    def _difference_from(self, preset: str) -> dict[str, Any]:
        """The fields of the options whose values are not those of a preset."""
        theirs = VitConfig(**PRESETS[preset])
        return {name: getattr(self, name) for name in ARCHITECTURE if getattr(self, name) != getattr(theirs, name)}

    def _problem(self) -> str | None:  # noqa: PLR0912
        """What does not fit, in one line that begins with a field; None if all fits."""
        halves, channels = self.attention == "dot_product", self.width // max(1, self.attention_heads)
        if self.attention_heads < 1 or self.width % self.attention_heads:
            return f"attention_heads: a width of {self.width} does not divide into {self.attention_heads} heads"
        if self.patch < 1 or self.size % self.patch:
            return f"size: {self.size} is not a multiple of the patch, {self.patch} px"
        if self.frames > 1 and self.frames % self.tubelet:
            return f"frames: {self.frames} is not a multiple of the tubelet, {self.tubelet} frames"
        if halves and (self.prefix or self.attention_heads % 2):
            return "attention: dot_product needs an even number of heads and no token before the patches"
        if self.time == "rotary" and (self.attention != "divided" or channels % 2):
            return f"time: rotary is for divided attention, and this is {self.attention}; set it to additive or none"
        if self.time == "additive" and self.attention in ("space", "late"):
            return (
                f"time: additive is for attention over time in the blocks, and this is {self.attention}; set it to none"
            )
        if self.rotary in ("halves", "pairs") and channels % 4:
            return f"rotary: {self.rotary} needs a multiple of 4 channels in a head, and it has {channels}"
        if self.pool == "class_distillation" and not (self.class_token and self.distillation):
            return "pool: class_distillation needs a class and a distillation token"
        if self.attention == "late" and self.pool in TWICE:
            return f"pool: a late encoder reads one feature of a slot, and {self.pool} are two; set it to class"
        if self.learned_tokens and (self.rotary != "none" or self.attention not in ("joint", "space", "late")):
            return "learned_tokens: they have no places, which rotary positions and attention over time in blocks need"
        if self.learned_tokens and (self.drop_tokens or self.added_blocks):
            return "learned_tokens: they go with neither drop_tokens nor added_blocks; set those to 0"
        if self.learned_tokens and not 0 <= self.learner_after < self.depth:
            return f"learner_after: {self.learner_after} is not 0 to {self.depth - 1}"
        if self.drop_tokens and self.attention != "joint":
            return f"drop_tokens: is for joint attention, and this is {self.attention}"
        return self._static_problem()

    def _static_problem(self) -> str | None:
        if self.static_patches is None:
            return None
        if not 0 <= self.static_patches <= 1:
            return f"static_patches: {self.static_patches} is no difference of pixels, 0 to 1"
        if self.attention not in ("joint", "space", "late"):
            return f"static_patches: are for joint, space and late attention, and this is {self.attention}"
        if self.attention == "joint" and (
            self.learned_tokens or self.drop_tokens or self.pool in ("probe", "attentive")
        ):
            return f"static_patches: cannot go with learned_tokens, drop_tokens or pool {self.pool}"
        alike = self.tubelet == 1 and self.position in ("learned", "none") and not self.added_blocks
        if self.attention != "joint" and not alike:
            return "static_patches: need frames that are embedded alone and alike, without tubelets and added_blocks"
        return None


# The fields of a configuration that the options can replace: all but those that a clip or the pixels decide.
ARCHITECTURE = tuple(field.name for field in fields(VitConfig) if field.name not in ("size", "frames", "mean", "std"))
OF_PRESET = "; default: as the preset"


@dataclass(frozen=True)
class VitOptions(BackboneOptions):
    """`model` of a recipe that trains a plain vision transformer: a preset, and what differs from it."""

    backbone: Literal["vit"] = option("vit", "the family of the network")
    preset: str = option("vit_b16", "vit: a published network, such as dinov2_b14 or videomae_b16")
    size: int = option(224, "image side in pixels")
    attention: Attending | None = option(None, "vit: attention over space and time" + OF_PRESET)
    time: Time | None = option(None, "vit: what distinguishes slots, beside the positions" + OF_PRESET)
    frame_pool: Pool | None = option(None, "vit: from the slots of a clip to its feature" + OF_PRESET)
    pool: TokenPool | None = option(None, "vit: from the tokens of a sequence to its feature" + OF_PRESET)
    added_blocks: int | None = option(None, "vit: space-time blocks after the others, new at first" + OF_PRESET)
    drop_tokens: float | None = option(None, "vit: part of the patches left out of a training pass" + OF_PRESET)
    drop_tubes: float = option(0.0, "fraction of the places that training leaves out of all frames of a sample")
    static_patches: float | None = option(
        None,
        "vit: patches that differ from those before by at most this are computed once, from 0 (equal) to 1; not set:"
        " all are computed",
    )
    layer_scale: float | None = option(None, "vit: initial LayerScale, 0 for none" + OF_PRESET)
    late_depth: int | None = option(None, "vit: layers of the late encoder" + OF_PRESET)
    late_heads: int | None = option(None, "vit: attention heads of the late encoder" + OF_PRESET)
    late_hidden: int | None = option(None, "vit: hidden values of its MLP" + OF_PRESET)
    late_pool: Literal["class", "mean"] | None = option(None, "vit: how it is read" + OF_PRESET)
    time_first: bool | None = option(None, "vit: temporal branch before the spatial one" + OF_PRESET)
    width: int | None = option(None, "vit: channels of a token" + OF_PRESET)
    depth: int | None = option(None, "vit: number of blocks" + OF_PRESET)
    attention_heads: int | None = option(None, "vit: attention heads" + OF_PRESET)
    hidden: int | None = option(None, "vit: hidden values of the MLP" + OF_PRESET)
    patch: int | None = option(None, "vit: side of a patch in pixels" + OF_PRESET)
    tubelet: int | None = option(None, "vit: frames that are embedded together" + OF_PRESET)
    patch_bias: bool | None = option(None, "vit: bias of the patch embedding" + OF_PRESET)
    class_token: bool | None = option(None, "vit: a class token" + OF_PRESET)
    distillation: bool | None = option(None, "vit: a distillation token" + OF_PRESET)
    registers: int | None = option(None, "vit: number of register tokens" + OF_PRESET)
    position: Position | None = option(None, "vit: the table of positions" + OF_PRESET)
    positioned: int | None = option(None, "vit: entries of the table before the patches" + OF_PRESET)
    position_grid: tuple[int, ...] | None = option(None, "vit: grid of the fixed table" + OF_PRESET)
    rotary: Rotary | None = option(None, "vit: rotary positions of patches" + OF_PRESET)
    rotary_grid: int | None = option(None, "vit: side of their grid" + OF_PRESET)
    entry_norm: bool | None = option(None, "vit: a norm before the blocks" + OF_PRESET)
    norm_eps: float | None = option(None, "vit: epsilon of the norms" + OF_PRESET)
    qkv_bias: Literal["all", "qv", "none"] | None = option(None, "vit: biases of attention" + OF_PRESET)
    mlp: Activation | None = option(None, "vit: activation of the MLP" + OF_PRESET)
    mlp_norm: bool | None = option(None, "vit: a norm in the MLP" + OF_PRESET)
    pool_eps: float | None = option(None, "vit: epsilon of the norms after the blocks" + OF_PRESET)
    probe_depth: int | None = option(None, "vit: blocks of the attentive probe" + OF_PRESET)
    learned_tokens: int | None = option(None, "vit: TokenLearner's tokens of a slot, 0 for none" + OF_PRESET)
    learner: Version | None = option(None, "vit: version of TokenLearner" + OF_PRESET)
    learner_after: int | None = option(None, "vit: blocks before TokenLearner" + OF_PRESET)
    fuser: bool | None = option(None, "vit: TokenFuser after each block from there on" + OF_PRESET)
    probe_heads: int | None = option(None, "vit: attention heads of the probe" + OF_PRESET)

    def config(self, frames: int, inherited: BackboneConfig | None = None) -> VitConfig:
        changes = {name: getattr(self, name) for name in ARCHITECTURE if getattr(self, name) is not None}
        return vit_config(
            self.preset, size=self.size, frames=frames, **changes, **(inherited.inherited_values() if inherited else {})
        )

    def pooled_by(self, pool: Pool) -> VitOptions | None:
        return replace(self, frame_pool=pool) if self._of_preset("attention") in ("space", "divided") else None

    def with_late_block(self) -> VitOptions | None:
        if self._of_preset("learned_tokens"):
            return None
        options = replace(self, added_blocks=self._of_preset("added_blocks") + 1)
        return options.pooled_by("quarters") or options

    def _of_preset(self, name: str) -> Any:
        """The value of a field, from the preset if it is not given."""
        own = getattr(self, name)
        return getattr(vit_config(self.preset), name) if own is None else own

    def check(self) -> None:
        super().check()
        if self.drop_tokens is not None:
            self.check_rates("drop_tokens")
        self.check_rates("drop_tubes")
        if (self.added_blocks or 0) < 0:
            raise UserError(f"model.added_blocks: {self.added_blocks} is not 0 or more")


def vit_config(preset: str, **changes: Any) -> VitConfig:
    """The configuration of a preset with some fields replaced.

    Raises `UserError` for an unknown preset, or for settings that do not fit each other.
    """
    if preset not in PRESETS:
        raise UserError(f'model.preset: unknown "{preset}"{nearest(preset, PRESETS)}')
    try:
        return VitConfig(**{**PRESETS[preset], **changes})
    except ValueError as error:
        raise UserError(f"model.{error}") from None


class Vit(Backbone):
    """The network of a `VitConfig`, over one flat tensor of the tokens of the whole Pack.

    An image is one slot. With tubelets it is repeated to one tubelet, computed as one convolution with the sum of the
    kernel over its frames. A new temporal branch adds nothing, so a new video network computes on an image what its
    image network computes.
    """

    config: VitConfig

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config)
        settings = [config.block()] * config.depth + [config.added_block()] * config.added_blocks
        self.blocks = nn.ModuleList(ViTBlock(each) for each in settings)
        if config.learned_tokens:
            self.learning = TokenLearning(
                config.block(), config.learned_tokens, config.learner, config.depth - config.learner_after, config.fuser
            )
        self.norm = nn.LayerNorm(config.width, eps=self._last_eps())
        self._add_pooling(config.grid[0])

    def _add_pooling(self, slots: int) -> None:
        config = self.config
        if config.pool == "probe":
            heads = config.probe_heads or config.attention_heads
            self.pool: nn.Module = ProbePool(config.after_blocks(heads=heads))
        if config.pool == "attentive":
            heads = config.probe_heads or config.attention_heads
            settings = config.after_blocks(heads=heads, hidden=4 * config.width, mlp="gelu")
            self.pool = AttentiveProbe(settings, config.probe_depth)
        self.width = config.width * (2 if config.pool in TWICE else 1)
        if config.attention == "late":
            sizes = {
                "heads": config.late_heads or config.attention_heads,
                "hidden": config.late_hidden or config.hidden,
            }
            settings = config.after_blocks(**sizes)
            self.late = LateEncoder(settings, config.late_depth, slots, config.late_pool == "class")
        elif config.attention != "joint":
            self.frame_pool = FramePool(config.frame_pool, self.width)
            self.width = self.frame_pool.width

    def _last_eps(self) -> float:
        after = self.config.pool == "mean_norm" and self.config.pool_eps
        return after or self.config.norm_eps

    @property
    def pixels(self) -> Pixels:
        config = self.config
        return Pixels(config.size, config.patch, config.tubelet, mean=config.mean, std=config.std)

    @torch.no_grad()
    def initialise(self) -> None:
        """As `Backbone.initialise`: deviation 0.02 for tokens and positions (ViT), and nothing from temporal parts."""
        for parameter in self.embed.tables():
            nn.init.trunc_normal_(parameter, std=0.02)
        if hasattr(self, "pool"):
            nn.init.trunc_normal_(cast(Tensor, self.pool.query), std=0.02)
        if hasattr(self, "frame_pool"):
            self.frame_pool.initialise()
        if self.config.learned_tokens:
            self.learning.initialise()
        for block in self.stages()[self.config.depth :]:
            _begin_as_nothing(block)
        self._reset_temporal("fresh")

    def reset_temporal(self, how: Literal["fresh", "copied"]) -> None:
        """Make the temporal parameters of an image network: it computes on an image what the image network computes.

        `divided`: a copy of the spatial attention with an output of zero; `fresh` with rotary time: temporal
        differences (`Attention.init_temporal_differences`). A late encoder starts anew. Raises `UserError` for `space`
        attention, which has none.
        """
        if self.config.attention == "space" and not self.config.added_blocks:
            raise UserError(f"start.temporal: {how}: space attention has no temporal branch; set it to keep")
        self._reset_temporal(how)

    @torch.no_grad()
    def _reset_temporal(self, how: Literal["fresh", "copied"]) -> None:
        for block in self.stages():
            if block.divided:
                block.reset_temporal(differences=how == "fresh")
        if self.config.time == "additive":
            nn.init.zeros_(self.embed.time_embed)
        if self.config.attention == "late":
            for embedding in (self.late.pos_embed, *([self.late.cls_token] if self.late.token else [])):
                nn.init.trunc_normal_(embedding, std=0.02)
            # Read from the mean, blocks that add nothing leave the mean over the slots.
            for block in cast(Sequence[ViTBlock], self.late.blocks) if not self.late.token else ():
                _begin_as_nothing(block)

    # --- the function -------------------------------------------------------------------------------------------------

    def forward(
        self,
        frames: Tensor,
        groups: Groups,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
        tubes: Tensor | None = None,
    ) -> Tensor:
        """As `Backbone.forward`. `drop`: `(depth, branches, S)`: with `divided` the temporal branch, then the others.

        `intermediates` receives `embedded`, then for each block (here block 3) the branches `blocks.3.spatial`,
        `blocks.3.mlp` and `blocks.3.temporal` as they are added and the output `blocks.3`, all `(N, D)`, and at the end
        `features`, `(S, D)`.
        """
        if self.embed.static is None or self.config.attention == "joint" or frames.device.type == "meta":
            return self._features(frames, groups, 0, drop, intermediates, tubes)
        self.check_pack(frames, groups)
        std = torch.tensor(self.config.std, device=frames.device).view(3, 1, 1)
        values = patch_values(frames.detach(), std, self.config.patch, 1)
        distinct = distinct_frames(values, groups, self.embed.static)
        drop = None if drop is None else drop[..., distinct.sample]
        tubes = None if tubes is None else tubes[distinct.sample]
        x_ND, layout = self._encoded(
            frames[distinct.frames], ((len(distinct.frames), 1),), 0, drop, intermediates, tubes
        )
        features = joined([self._of_sequences(part, None) for part in layout.split(x_ND)])[distinct.place]
        features = self._over_slots(features, self.embed.slots(groups))
        note(intermediates, "features", features)
        return features

    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """As `Backbone.forward_prefix`, `(F, C + P, D)`: the tokens of each frame's slot after `stages` blocks.

        With joint attention every slot has a copy of the tokens before the patches. With tubelets, each frame of a clip
        has a copy of its slot.
        """
        if not stages:
            return frames
        if self.embed.static is not None:
            raise UserError("cache.stages: a network with model.static_patches has no fixed tokens; set it to 0")
        self.check_pack(frames, groups)
        with self.as_in_evaluation():
            x_ND, layout = self.embed(frames, groups)
            for number in range(stages):
                x_ND, layout = self._run(number, x_ND, layout)
        return self.embed.to_frames(Embedded(x_ND, layout), groups)

    def forward_suffix(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """As `Backbone.forward_suffix`. `intermediates` receives the entries of the blocks that run."""
        return self._features(x, groups, stages, drop, intermediates)

    def _features(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None,
        intermediates: Intermediates | None,
        tubes: Tensor | None = None,
    ) -> Tensor:
        x_ND, layout = self._encoded(x, groups, stages, drop, intermediates, tubes)
        features = self.pooled(x_ND, layout)
        note(intermediates, "features", features)
        return features

    def _encoded(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None,
        intermediates: Intermediates | None,
        tubes: Tensor | None,
    ) -> Embedded:
        """The output of the last block."""
        if stages:
            x_ND, layout = self.embed.from_frames(x, groups, learned=self._are_learned(stages))
        else:
            self.check_pack(x, groups)
            x_ND, layout = self.embed(x, groups, tubes)
            note(intermediates, "embedded", x_ND)
        for number in range(stages, len(self.blocks)):
            x_ND, layout = self._run(number, x_ND, layout, None if drop is None else drop[number], intermediates)
        return Embedded(x_ND, layout)

    def _run(
        self,
        number: int,
        x_ND: Tensor,
        layout: Layout,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Embedded:
        """The output of one block, with what is learned from the patches before it. `drop`: `(branches, S)`."""
        config, before = self.config, Embedded(x_ND, layout)
        first = number - config.learner_after
        learns = bool(config.learned_tokens) and first >= 0 and (config.fuser or first == 0)
        joint, slots = config.attention == "joint", layout.slots
        if learns:
            x_ND = self.learning.learn(first, before, config.prefix, joint)
            layout = self.embed.layout(slots, (1, config.learned_tokens), x_ND.device)
        branches: Intermediates | None = None if intermediates is None else {}
        drop_N = None if drop is None else self._per_token(drop, layout)
        x_ND = self.run_stage(self.blocks[number], x_ND, layout, drop_N, branches)
        for name, value in (branches or {}).items():
            note(intermediates, f"blocks.{number}.{name}", value)
        if learns and config.fuser:
            x_ND = self.learning.fuse(first, Embedded(x_ND, layout), before, config.prefix, joint)
            layout = before.layout
        note(intermediates, f"blocks.{number}", x_ND)
        return Embedded(x_ND, layout)

    def _are_learned(self, stages: int) -> bool:
        """Whether the output of this many stages has learned tokens in place of patches."""
        config = self.config
        return bool(config.learned_tokens) and not config.fuser and stages > config.learner_after

    def pooled(self, x_ND: Tensor, layout: Layout) -> Tensor:
        """The feature of every sample, `(S, D)`, from the output of the last block, `(N, D)`."""
        lengths: Sequence[Tensor | None] = layout.lengths or [None] * len(layout.sequences)
        parts = zip(layout.split(x_ND), lengths, strict=True)
        return self._over_slots(joined([self._of_sequences(*part) for part in parts]), layout.slots)

    def _over_slots(self, features: Tensor, slots: Groups) -> Tensor:
        """The feature of every sample, `(S, D)`, from those of its sequences."""
        if self.config.attention == "late":
            return self.late(features, slots)
        if self.config.attention == "joint":
            return features
        return self.frame_pool(features, slots)

    def _of_sequences(self, x_BLD: Tensor, lengths_BL: Tensor | None) -> Tensor:
        """The feature of each sequence. `lengths_BL`: as in `Layout`."""
        pool, prefix = self.config.pool, self.config.prefix

        def mean(x_BPD: Tensor) -> Tensor:
            if lengths_BL is None:
                return x_BPD.mean(1)
            weights = lengths_BL[:, prefix:, None].to(x_BPD.dtype)
            return (x_BPD * weights).sum(1) / weights.sum(1)

        if pool == "class":
            return self.norm(x_BLD[:, 0])  # without a class token the first patch (VideoMAE's released code)
        if pool == "class_distillation":
            return self.norm(x_BLD[:, :2]).flatten(1)
        if pool == "class_mean":
            x_BLD = self.norm(x_BLD)
            return torch.cat([x_BLD[:, 0], mean(x_BLD[:, prefix:])], -1)
        if pool == "mean_norm":
            return self.norm(mean(x_BLD[:, prefix:]))
        if pool == "mean":
            return mean(self.norm(x_BLD[:, prefix:]))
        return self.pool(self.norm(x_BLD))

    def _per_token(self, drop: Tensor, layout: Layout) -> Tensor:
        """Drop-path factors of samples `(branches, S)` for their tokens, `(branches, N, 1)`."""
        parts = zip(drop.split([samples for samples, _ in layout.samples], dim=-1), layout.samples, strict=True)
        return torch.cat([part.repeat_interleave(tokens, dim=-1) for part, (_, tokens) in parts], dim=-1)[..., None]

    def heat(
        self, frames: Tensor, score: Callable[[Tensor], Tensor] | None, check: Callable[[], None] = no_check
    ) -> Heat:
        """As `Backbone.heat`: attention roll-out without a `score`, input x gradient with one."""
        if score is not None:
            return super().heat(frames, score, check)
        from cover.model.backbones.vit_rollout import rollout

        static, self.embed.static = self.embed.static, None  # the map has a place for every patch
        try:
            return rollout(self, frames, check)
        finally:
            self.embed.static = static

    # --- parameters ---------------------------------------------------------------------------------------------------

    def simplify(self) -> None:
        self.embed.static = None  # an exported graph computes all patches: their number cannot depend on the clip

    def stages(self) -> Sequence[ViTBlock]:
        return tuple(self.blocks)  # type: ignore[arg-type]

    def drop_shape(self) -> tuple[int, int]:
        return len(self.blocks), 3 if any(block.divided for block in self.stages()) else 2

    def temporal_parameters(self) -> frozenset[str]:
        parts: list[nn.Module | Tensor] = [part for block in self.stages() for part in block.temporal_parts()]
        parts += [self.embed.time_embed] if self.config.time == "additive" else []
        return self.names_of(*parts, *([self.late] if self.config.attention == "late" else []))

    def projections(self) -> dict[str, list[nn.Linear]]:
        return {"attention": linears_of(self, SelfAttention, Attention), "mlp": linears_of(self, ViTMlp)}

    def no_decay_parameters(self) -> frozenset[str]:
        embeddings = [*self.embed.tables(), *([self.pool.query] if hasattr(self, "pool") else [])]
        if self.config.attention == "late":
            embeddings += [self.late.pos_embed, *([self.late.cls_token] if self.late.token else [])]
        return super().no_decay_parameters() | self.names_of(*cast(list[Tensor], embeddings))

    def temporal_is_new(self, weights: dict[str, Tensor]) -> bool:
        """As `Backbone.temporal_is_new`: the last matrix of every temporal branch, or the added time, is still zero."""
        last = [block.temporal_attn.proj.weight for block in self.stages() if block.divided]
        last += [self.embed.time_embed] if self.config.time == "additive" else []
        return bool(last) and not any(weights[name].any() for name in self.names_of(*last))

    def added_parameters(self, theirs: BackboneConfig) -> frozenset[str]:
        assert isinstance(theirs, VitConfig)
        pooled = hasattr(self, "frame_pool") and theirs.frame_pool != self.config.frame_pool
        blocks = self.stages()[theirs.depth + theirs.added_blocks :]
        return self.names_of(*blocks, *([self.frame_pool] if pooled else []))

    def fitted_head(self, weight: Tensor, theirs: BackboneConfig) -> Tensor:
        assert isinstance(theirs, VitConfig)
        fitted = fitted_head(weight, _pool_of(self.config), _pool_of(theirs))
        if fitted is None:
            raise UserError(f"its heads are for model.frame_pool {theirs.frame_pool}, this run's is another: set it")
        return fitted

    def fit_embeddings(self, weights: dict[str, Tensor]) -> list[str]:
        notes, own = [], dict(self.named_parameters())
        for name in (*(f"embed.{table}" for table in ("pos_embed", *AXES, "time_embed")), "late.pos_embed"):
            before, ours = weights.get(name), own.get(name)
            # A tensor of another width is left as it is; the comparison of shapes reports it.
            if before is None or ours is None or before.ndim != ours.ndim or before.shape[-1] != ours.shape[-1]:
                continue
            if before.shape != ours.shape:
                weights[name] = self._fitted(name, before, ours)
                notes.append(f"{name} from {_places(before)} to {_places(ours)} entries")
        return notes

    def _fitted(self, name: str, before: Tensor, ours: Tensor) -> Tensor:
        """A table of positions with the places of ours."""
        if name == "embed.pos_embed":
            return resized_grid(before, cast(Grid, tuple(ours.shape[:3])))
        token = int(name == "late.pos_embed" and self.late.token)
        return torch.cat([before[:token], resized_axis(before[token:], ours.shape[0] - token)])


def _begin_as_nothing(block: ViTBlock) -> None:
    """Set the last matrices of a block to zero, so that it returns its input."""
    for linear in (block.attn.proj, block.mlp.fc2):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)


def _places(table: Tensor) -> str:
    return " x ".join(map(str, table.shape[:-1]))


def _pool_of(config: VitConfig) -> Pool:
    """How the slots of a clip are pooled, where they are."""
    return config.frame_pool if config.attention not in ("joint", "late") else "mean"
