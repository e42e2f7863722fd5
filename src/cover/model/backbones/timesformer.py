"""TimeSformer: a vision transformer with divided space-time attention, over a Pack of clips and images (Bertasius et
al., 2021).

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, N tokens of one
frame (class token, then patches), D width.

The class token of a clip is kept once per frame, equal in all of them: it is token 0 of every frame. So the whole Pack
is one tensor (F, N, D) from the first layer to the last, and nothing is cut apart and joined again between branches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as fn
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
    Rotation,
    attend_over_time,
    clip_and_image_frames,
    rotation_of,
)

MERGE_TOKENS = 2  # tokens per channel from which merging two square matrices is cheaper than one more product
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
    """The defaults are TimeSformer-B/16, 8 x 224. `frames` are the entries of the additive time embedding.

    `attention`: `divided` (temporal, then spatial), `joint` (all tokens of a clip at once) or `space` (frames apart,
    their class tokens averaged), section 3.3 and table 1 of the paper. `image_time`: the additive time embedding of an
    image, none or the first entry (as the released code has it at T = 1). `resize`: how position embeddings meet
    another size than `size`; the released code uses `nearest`. `layer_scale`: the first value of a factor per channel
    on every branch (CaiT), 0 for none. `patch_embed`: one linear map of each patch, as published checkpoints have it,
    or a stem of stride-2 convolutions (`ConvStem`), which learns far more from few samples.
    """

    family: ClassVar[str] = "timesformer"
    inherited: ClassVar[frozenset[str]] = BackboneConfig.inherited | {"norm_eps", "resize", "image_time", "patch_embed"}

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
    patch_embed: Literal["linear", "conv"] = "linear"
    norm_eps: float = 1e-6

    @property
    def tokens(self) -> int:
        """Tokens of one frame: the class token and the patches."""
        return 1 + (self.size // self.patch) ** 2

    def build(self) -> TimeSformer:
        return TimeSformer(self)

    def options(self) -> TimeSformerOptions:
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
        )

    def summary(self) -> dict[str, str]:
        return {"attention": self.attention, "time": self.time, "image_temporal": self.image_temporal}

    def difference(self, theirs: TimeSformerConfig, temporal: bool) -> str | None:
        if theirs.attention_heads != self.attention_heads:
            return (
                f"its network has {theirs.attention_heads} attention heads, this run's has {self.attention_heads}; "
                "choose another model.preset"
            )
        for name in ("patch_embed", *(("attention", "time") if temporal else ())):
            if getattr(theirs, name) != getattr(self, name):
                or_fresh = "" if name == "patch_embed" else ", or start.temporal to fresh"
                return f"its model.{name} is {getattr(theirs, name)}, this run's {getattr(self, name)}: set model.{name}{or_fresh}"
        return None


@dataclass(frozen=True)
class TimeSformerOptions(BackboneOptions):
    """`model` of a recipe that trains a TimeSformer."""

    backbone: Literal["timesformer"] = option("timesformer", "the family of the network")
    preset: str = option("mini", "mini, or a ViT size with its patch, as in B/16")
    attention: Literal["divided", "joint", "space"] = option(
        "divided", "temporal then spatial, all tokens at once, or frames apart"
    )
    time: Literal["rotary", "additive"] = option("rotary", "how frames are told apart")
    image_temporal: Literal["attend", "skip"] = option("attend", "whether images pass the temporal branch")
    dropout: float = option(0.0, "after the embedding and in every branch")
    layer_scale: float = option(0.0, "first value of a factor per channel on every branch; 0 for none")
    patch_embed: Literal["auto", "linear", "conv"] = option(
        "auto",
        "linear: one map of each patch, as in published checkpoints; conv: a stem of stride-2 convolutions, which learns more from few "
        "samples; auto: as the starting checkpoint, else conv for mini and linear for the ViT sizes",
    )

    def config(self, frames: int, inherited: BackboneConfig | None = None) -> TimeSformerConfig:
        changes = inherited.inherited_values() if inherited else {}
        if self.patch_embed != "auto":
            changes["patch_embed"] = self.patch_embed
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
        self.check_rates("dropout")
        if not self.layer_scale >= 0:
            raise UserError(f"model.layer_scale: {self.layer_scale} is not 0 or more")


def timesformer_config(preset: str, **changes: Any) -> TimeSformerConfig:
    """The configuration of `mini` or of `SIZE/PATCH` as in `B/16`, with fields replaced. Raises `UserError`."""
    name, _, patch = preset.partition("/")
    if name not in PRESETS or (patch and not (patch.isdecimal() and int(patch))):
        raise UserError(f'unknown model preset "{preset}"{nearest(name, PRESETS)} (with a patch size, as in B/16)')
    width, depth, heads = PRESETS[name]
    default_patch, default_size = (8, 32) if name == "mini" else (16, 224)
    fields: dict[str, Any] = {
        "width": width,
        "depth": depth,
        "attention_heads": heads,
        "patch": int(patch or default_patch),
    }
    # `mini` is trained from random weights; the others mostly start from published ones, whose patches are embedded by
    # one linear map.
    embed = "conv" if name == "mini" else "linear"
    config = TimeSformerConfig(**{**fields, "size": default_size, "patch_embed": embed, **changes})
    if config.size % config.patch:
        raise UserError(f"image size {config.size} is not a multiple of the patch {config.patch}")
    if config.patch_embed == "conv" and config.patch.bit_count() != 1:
        raise UserError(
            f"model.patch_embed: conv needs a patch that is a power of two, and {preset} has {config.patch} px; use linear"
        )
    return config


class Block(nn.Module):
    """Divided space-time attention: temporal attention, spatial attention, MLP (TimeSformer, section 3.3)."""

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.attention_heads
        self.kind, self.rotary, self.skip_images = (
            config.attention,
            config.time == "rotary",
            config.image_temporal == "skip",
        )
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
        self,
        x_FND: Tensor,
        groups: Groups,
        rotations: list[Rotation | None],
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """Tokens `(F, N, D)` to the same. `drop`: drop-path factors `(3, F, 1, 1)` of the three branches, None for all
        ones.

        `intermediates` is filled with the branches.
        """
        if self.kind == "divided":
            x_FND = self._add_temporal(x_FND, groups, rotations, drop, intermediates)
        x_FND = x_FND + self._branch("spatial", self._space(self.norm1(x_FND), groups, rotations), drop, intermediates)
        return x_FND + self._branch("mlp", self.mlp(self.norm2(x_FND)), drop, intermediates)

    @torch.no_grad()
    def reset_temporal(self, differences: bool) -> None:
        """Copy the spatial weights and set `temporal_fc` to zero (released code).

        `differences`: under rotary time, start as temporal differences (`Attention.init_temporal_differences`).
        """
        self.temporal_attn.load_state_dict(self.attn.state_dict())
        self.temporal_norm.load_state_dict(self.norm1.state_dict())
        if differences and self.rotary:
            self.temporal_attn.init_temporal_differences()
        if "temporal_scale" in self._parameters:
            self.get_parameter("temporal_scale").copy_(self.get_parameter("scale1"))
        nn.init.zeros_(self.temporal_fc.weight)
        nn.init.zeros_(self.temporal_fc.bias)

    def temporal_parts(self) -> list[nn.Module | Tensor]:
        """The modules and parameters of the temporal branch, in the order of the computation, the last matrix at the
        end.
        """
        if self.kind != "divided":
            return []
        scale = [self.get_parameter("temporal_scale")] if "temporal_scale" in self._parameters else []
        return [*scale, self.temporal_norm, self.temporal_attn, self.temporal_fc]

    def _space(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        if self.kind == "joint":
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
        clip_frames, image_frames = clip_and_image_frames(groups)
        if self.skip_images and image_frames:
            if not clip_frames:
                return x_FND
            clips, images = x_FND.split((clip_frames, image_frames))
            moved = self._add_temporal(
                clips, groups[:-1], rotations, None if drop is None else drop[:, :clip_frames], intermediates
            )
            return torch.cat([moved, images])
        time_FND = self._project(self.temporal_attn.across_frames(self.temporal_norm(x_FND), groups, rotations))
        # The class token takes no part in temporal attention (released TimeSformer code).
        patches_only = torch.ones(x_FND.shape[1], 1, dtype=x_FND.dtype, device=x_FND.device)
        patches_only[0] = 0
        return torch.addcmul(
            x_FND, self._branch("temporal", time_FND, drop, intermediates).to(x_FND.dtype), patches_only
        )

    def _project(self, mixed_FND: Tensor) -> Tensor:
        """The output projection and `temporal_fc`: nothing lies between them, so where there are many tokens one
        product does for both.
        """
        proj, last = self.temporal_attn.proj, self.temporal_fc
        dropping = self.training and self.temporal_attn.drop.p > 0
        if dropping or not self.merging or mixed_FND[..., 0].numel() < MERGE_TOKENS * proj.in_features:
            return last(self.temporal_attn.drop(proj(mixed_FND)))
        return fn.linear(mixed_FND, last.weight @ proj.weight, fn.linear(proj.bias, last.weight, last.bias))

    def _branch(self, name: str, x_FND: Tensor, drop: Tensor | None, intermediates: Intermediates | None) -> Tensor:
        """The output of a branch as it is added: times its LayerScale and drop-path factors."""
        number = ("temporal", "spatial", "mlp").index(name)
        scale = getattr(self, ("temporal_scale", "scale1", "scale2")[number], None)
        if scale is not None:
            x_FND = x_FND * scale
        note(intermediates, name, x_FND)
        return x_FND if drop is None else x_FND * drop[number]


class TimeSformer(Backbone):
    """The network of a `TimeSformerConfig`. A feature is the normalised class token of a sample.

    All clips of a Pack share the spatial attention and the MLP with the images; temporal attention runs group by group.
    `temporal_fc` and the additive time embedding start at zero, so a new network is an image ViT. An image is a clip of
    one frame.
    """

    config: TimeSformerConfig

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        conv = config.patch_embed == "conv"
        self.patch_embed = (
            ConvStem(config.width, config.patch) if conv else nn.Conv2d(3, config.width, config.patch, config.patch)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.tokens, config.width))
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
        """Whether frames are told apart by an embedding that is added to their patch tokens."""
        return self.config.time == "additive" and self.config.attention != "space"

    def initialise(self) -> None:
        if isinstance(self.patch_embed, ConvStem):
            for module in self.patch_embed.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.reset_temporal("fresh")

    def reset_temporal(self, how: Literal["fresh", "copied"]) -> None:
        """Temporal attention as a copy of the spatial one with `temporal_fc` zero: the network is its image ViT
        (released code).

        `fresh`: under rotary time the copy starts as temporal differences (`Attention.init_temporal_differences`).
        """
        if self.config.attention == "divided":
            for block in self.stages():
                block.reset_temporal(differences=how == "fresh")
        if self.has_time_embedding:
            nn.init.zeros_(self.time_embed)

    # --- the function -------------------------------------------------------------------------------------------------

    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """As `Backbone.forward`. `drop`: `(depth, 3, S)`, for the temporal branch, the spatial branch and the MLP of
        each block.

        `intermediates` gets `embedded`, for every block `blocks.3.temporal`, `blocks.3.spatial` and `blocks.3.mlp` (the
        branches as they are added) and `blocks.3` (their sum), each `(F, N, D)`, and `features`.
        """
        self.check_pack(frames, groups)
        x_FND = self.drop(self._embed(frames, groups))
        note(intermediates, "embedded", x_FND)
        rotations = self._rotations(groups, x_FND.device)
        drop_F = None if drop is None else per_frame(drop, groups)[..., None, None]
        for number, block in enumerate(self.blocks):
            branches: Intermediates | None = None if intermediates is None else {}
            x_FND = self.run_stage(
                block, x_FND, groups, rotations, None if drop_F is None else drop_F[number], branches
            )
            for name, value in (branches or {}).items():
                note(intermediates, f"blocks.{number}.{name}", value)
            note(intermediates, f"blocks.{number}", x_FND)
        features = self.pooled(x_FND, groups)
        note(intermediates, "features", features)
        return features

    def pooled(self, x_FND: Tensor, groups: Groups) -> Tensor:
        """The output of the last block, `(F, N, D)`, as the normalised class token of every sample, `(S, D)`."""
        return self.norm(self._class_tokens(x_FND, groups))

    def _embed(self, frames: Tensor, groups: Groups) -> Tensor:
        x_FDhw = self.patch_embed(frames)
        position = resized_positions(self.pos_embed, (x_FDhw.shape[2], x_FDhw.shape[3]), self.config.resize)
        x_FPD = x_FDhw.flatten(2).transpose(1, 2) + position[:, 1:]
        if self.has_time_embedding:
            x_FPD = x_FPD + self._time(groups)[:, None]
        return torch.cat([(self.cls_token + position[:, :1]).expand(x_FPD.shape[0], -1, -1), x_FPD], dim=1)

    def _time(self, groups: Groups) -> Tensor:
        """The learned embedding of every frame, `(F, D)`; another T reads the nearest entries."""
        entries = []
        for samples, frames in groups:
            embed = resized_time(self.time_embed, frames)[0]
            if frames == 1 and self.config.image_time == "none":
                embed = torch.zeros_like(embed)
            entries.append(embed.repeat(samples, 1))
        return torch.cat(entries)

    def _rotations(self, groups: Groups, device: torch.device) -> list[Rotation | None]:
        """The rotary angles of every group of clips, computed once for all layers."""
        channels = self.config.width // self.config.attention_heads
        rotary = self.config.time == "rotary" and self.config.attention != "space"
        return [rotation_of(frames, channels, device) if rotary else None for _, frames in groups if frames > 1]

    def _class_tokens(self, x_FND: Tensor, groups: Groups) -> Tensor:
        """The class token of each sample, `(S, D)`: from its first frame, or the mean where frames are kept apart."""
        parts = x_FND[:, 0].split([samples * frames for samples, frames in groups])
        if self.config.attention == "space":
            return torch.cat(
                [part.view(samples, frames, -1).mean(1) for part, (samples, frames) in zip(parts, groups, strict=True)]
            )
        return torch.cat([part[::frames] for part, (_, frames) in zip(parts, groups, strict=True)])

    # --- parameters ---------------------------------------------------------------------------------------------------

    def stages(self) -> Sequence[Block]:
        return tuple(self.blocks)  # type: ignore[arg-type]

    def drop_shape(self) -> tuple[int, int]:
        return self.config.depth, 3

    def temporal_parameters(self) -> frozenset[str]:
        parts = [part for block in self.stages() for part in block.temporal_parts()]
        return self.names_of(*parts, *([self.time_embed] if self.has_time_embedding else []))

    def no_decay_parameters(self) -> frozenset[str]:
        embeddings = [self.cls_token, self.pos_embed, *([self.time_embed] if self.has_time_embedding else [])]
        return super().no_decay_parameters() | self.names_of(*embeddings)

    def temporal_is_new(self, weights: dict[str, Tensor]) -> bool:
        """Without the last matrix of the temporal branch, which is zero at first, the branch adds nothing."""
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
            if before is not None and before.ndim == 3 and before.shape[-1] == self.width:
                weights[name] = fit(before)
                if weights[name].shape != before.shape:
                    notes.append(f"{name} from {before.shape[1]} to {weights[name].shape[1]} entries")
        return notes

    # --- uses ---------------------------------------------------------------------------------------------------------

    def set_merging(self, on: bool) -> None:
        """Whether the temporal output projection and `temporal_fc` may be multiplied into one matrix (the default): the
        same function.
        """
        for block in self.stages():
            block.merging = on

    @contextmanager
    def attention_maps(self) -> Iterator[dict[str, AttentionMaps]]:
        """Inside, every attention that is computed is recorded, by module as `blocks.3.attn` and
        `blocks.3.temporal_attn`.

        Each module has one for each group that was attended to (none in time for images). Nested, the inner one alone
        records, until it is left. Numbers do not change. Not for compiled blocks, nor beside the passes of another
        thread.
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
                module.maps = before[name]

    def heat(
        self, frames: Tensor, score: Callable[[Tensor], Tensor] | None, check: Callable[[], None] = no_check
    ) -> Heat:
        """Attention roll-out, or attention times gradient where there is a `score`. `check` is called before every
        layer, each of which is computed twice.
        """
        from cover.model.backbones.timesformer_rollout import rollout

        return rollout(self, frames, score, check)

    def simplify(self) -> None:
        self.set_merging(False)  # whether merging pays depends on the batch, which a graph does not know
        if self.config.attention == "divided":
            for block in self.stages():
                _merge_temporal_matrices(block)


# --- embeddings of another size ---------------------------------------------------------------------------------------


def resized_positions(pos_embed: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Position embeddings `(1, 1 + h w, D)` of a square grid for another `grid` (rows, columns); the entry of the class
    token stays.

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


# --- export -----------------------------------------------------------------------------------------------------------


class _SplitAttention(nn.Module):
    """`Attention.across_frames` for one group, with query, key and value as layers of their own.

    Parts that are cut out of one matrix are no constants in a graph, and only constants can be laid out or rounded
    beforehand.
    """

    def __init__(self, attention: Attention, proj: nn.Linear) -> None:
        super().__init__()
        self.heads, self.proj, self.drop = attention.heads, proj, nn.Identity()
        parts = zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in parts)

    def across_frames(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        (group,) = groups
        if group[1] == 1:
            return self.v(x_FND)
        q, k, v = (project(x_FND).unflatten(0, group) for project in (self.q, self.k, self.v))
        return attend_over_time(q, k, v, self.heads, rotations[0]).flatten(0, 1)


@torch.no_grad()
def _merge_temporal_matrices(block: Block) -> None:
    """The temporal output projection and `temporal_fc`, between which nothing lies, become one matrix."""
    proj, last = block.temporal_attn.proj, block.temporal_fc
    weight = last.weight.double() @ proj.weight.double()
    bias = last.weight.double() @ proj.bias.double() + last.bias.double()
    block.add_module("temporal_attn", _SplitAttention(block.temporal_attn, _linear(weight, bias)))
    block.add_module("temporal_fc", nn.Identity())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.load_state_dict({"weight": weight.float().contiguous().clone(), "bias": bias.float().clone()}, assign=True)
    return layer
