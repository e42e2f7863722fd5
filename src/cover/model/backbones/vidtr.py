"""VidTr, a vision transformer with separable attention: over time, and then over space with the same queries and keys.

Source: Zhang et al., 2021, "VidTr: Video Transformer Without Convolutions", called the paper below. "Released code" is
gluonmm, which its authors published. `cover.model.starts.vidtr` reads its checkpoints.

Letters in shapes: S samples, F frames of all samples together (clips first), T frames of one clip, R rows of all
samples (the frames of a clip and one more), P patches of a frame, N tokens of a row (its patches and one more),
L tokens of all samples, H heads, d = D / H channels of a head, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.errors import UserError, nearest
from cover.model.backbone import (
    Backbone,
    BackboneConfig,
    BackboneOptions,
    Groups,
    Intermediates,
    Pixels,
    Rgb,
    linears_of,
    note,
    option,
    per_frame,
)
from cover.model.backbones.timesformer import resized_positions, resized_time
from cover.model.layers import Mlp, attend_over_time, each_group

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)

Tokens = Literal["grid", "class"]
Positions = Literal["first", "every"]
Activation = Literal["relu", "gelu"]

_BASE: dict[str, Any] = {"width": 768, "depth": 12, "attention_heads": 12, "patch": 16}
_MINI: dict[str, Any] = {"width": 128, "depth": 4, "attention_heads": 4, "patch": 8}
# name: fields of the configuration; `frames` only where no data says them (README and configurations of gluonmm)
PRESETS: dict[str, dict[str, Any]] = {
    "mini": {**_MINI, "frames": 4, "size": 32},
    "S": {**_BASE, "frames": 8},
    "M": {**_BASE, "frames": 16, "positions": "every"},
    "L": {**_BASE, "frames": 32},
    "C-mini": {**_MINI, "frames": 4, "size": 32, "tokens": "class", "pool_layers": (1,), "pool_frames": (2,)},
    "C-S": {**_BASE, "frames": 8, "tokens": "class", "pool_layers": (1, 3, 5), "pool_frames": (2, 2, 2)},
    "C-M": {**_BASE, "frames": 16, "tokens": "class", "pool_layers": (1, 2, 4), "pool_frames": (8, 4, 2)},
}
_CHOSEN_APART = ("frames", "size")  # fields of a preset that a recipe has elsewhere


@dataclass(frozen=True)
class VidTrConfig(BackboneConfig):
    """The configuration of a VidTr. The defaults are VidTr-S for 8 frames of 224 pixels.

    `frames`: also the number of frames that have a position of their own. `tokens`: `grid`, a token for each frame, one
    for each place and one for the clip (VidTr), or `class`, one class token (compact VidTr). `pool_layers`: layers,
    counted from 0, after whose temporal attention frames are dropped, and `pool_frames`: how many; each head and place
    keeps the frames whose attention differs most from a uniform one. `separable`: the number of first layers with
    separable attention, with a class token; the others attend to all tokens of a clip. None: up to the last layer that
    drops frames, or all. `positions`: whether the position is added in the first layer alone or in every one.
    """

    family: ClassVar[str] = "vidtr"
    inherited: ClassVar[frozenset[str]] = BackboneConfig.inherited | {"activation", "positions"}

    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    width: int = 768
    depth: int = 12
    attention_heads: int = 12
    mlp_ratio: float = 4.0
    patch: int = 16
    tokens: Tokens = "grid"
    pool_layers: tuple[int, ...] = ()
    pool_frames: tuple[int, ...] = ()
    separable: int | None = None
    positions: Positions = "first"
    activation: Activation = "relu"
    dropout: float = 0.0
    norm_eps: float = 1e-5

    @property
    def side(self) -> int:
        """Patches along a side of a frame."""
        return self.size // self.patch

    @property
    def separable_layers(self) -> int:
        """The number of first layers with separable attention."""
        if self.tokens == "grid" or (self.separable is None and not self.pool_layers):
            return self.depth
        return self.pool_layers[-1] + 1 if self.separable is None else self.separable

    def dropped_in(self, layer: int) -> int:
        """The number of frames that a layer drops of a long clip."""
        return dict(zip(self.pool_layers, self.pool_frames)).get(layer, 0)

    def frames_before(self, layer: int, frames: int) -> int:
        """How many of `frames` frames of a clip reach a layer. The last one is never dropped."""
        return max(1, frames - sum(self.dropped_in(before) for before in range(layer)))

    def build(self) -> VidTr:
        return VidTr(self)

    def options(self) -> VidTrOptions:
        # Only presets can be written into a recipe, so the structure must be that of one.
        for name in PRESETS:
            preset = _structure(name)
            if all(getattr(self, key) == value for key, value in preset.items()):
                return VidTrOptions(preset=name, size=self.size, dropout=self.dropout)
        raise UserError("its sizes and pooling layers are those of no preset, so no recipe can ask for them")

    def summary(self) -> dict[str, str]:
        pools = ", ".join(f"{count} after layer {layer}" for layer, count in zip(self.pool_layers, self.pool_frames))
        dropped = {"frames dropped": pools} if pools else {}
        return {"tokens": self.tokens, "width": str(self.width), "positions": self.positions, **dropped}

    def difference(self, theirs: VidTrConfig, temporal: bool) -> str | None:
        names = ("tokens", "attention_heads", "pool_layers", "pool_frames", "separable_layers", "positions")
        for name in (*names, "activation"):
            if getattr(theirs, name) != getattr(self, name):
                values = f"is {getattr(theirs, name)}, this run's {getattr(self, name)}"
                return f"its {name} {values}; choose another model.preset"
        return None


@dataclass(frozen=True)
class VidTrOptions(BackboneOptions):
    """`model` of a recipe that trains a VidTr."""

    backbone: Literal["vidtr"] = option("vidtr", "the family of the network")
    size: int = option(224, "image side in pixels")
    preset: str = option("S", "vidtr: S, M or L; C-S or C-M, which drop frames; mini or C-mini")
    dropout: float = option(0.0, "vidtr: dropout rate in every branch")

    def config(self, frames: int, inherited: BackboneConfig | None = None) -> VidTrConfig:
        changes = inherited.inherited_values() if inherited else {}
        return vidtr_config(self.preset, size=self.size, frames=frames, dropout=self.dropout, **changes)

    def check(self) -> None:
        super().check()
        self.check_rates("dropout")


def vidtr_config(preset: str, **changes: Any) -> VidTrConfig:
    """The configuration of a preset, with some fields replaced.

    Raises `UserError` for an unknown preset, or for sizes that do not fit each other.
    """
    if preset not in PRESETS:
        raise UserError(f'unknown model preset "{preset}" of vidtr{nearest(preset, PRESETS)}')
    config = VidTrConfig(**{**PRESETS[preset], **changes})
    if config.size % config.patch:
        raise UserError(f"image size {config.size} is not a multiple of the patch {config.patch}")
    return config


def _structure(preset: str) -> dict[str, Any]:
    """The fields of a preset that a recipe cannot choose apart, with their defaults."""
    default = VidTrConfig()
    names = {name for fields in PRESETS.values() for name in fields} - set(_CHOSEN_APART)
    return {name: PRESETS[preset].get(name, getattr(default, name)) for name in sorted(names)}


# --- blocks -----------------------------------------------------------------------------------------------------------


class ReluMlp(Mlp):
    """Two linear layers with a ReLU between them, `(..., D)` to the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(fn.relu(self.fc1(x)))))


class SeparableAttention(nn.Module):
    """The queries, keys and values of a block, and its output projection. One projection serves time and space."""

    def __init__(self, config: VidTrConfig) -> None:
        super().__init__()
        self.heads = config.attention_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.drop = nn.Dropout(config.dropout)


class Block(nn.Module):
    """A pre-norm block. Subclasses differ in the tokens that attend to each other."""

    def __init__(self, config: VidTrConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = SeparableAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        hidden, mlp = int(config.width * config.mlp_ratio), ReluMlp if config.activation == "relu" else Mlp
        self.mlp = mlp(config.width, hidden, config.dropout)


class GridBlock(Block):
    """Separable attention on a grid of rows (frames) and columns (places), each with one token more."""

    def forward(self, x_RND: Tensor, rows: Groups, position_RND: Tensor | None, drop: Tensor | None = None) -> Tensor:
        """The rows of all samples `(R, N, D)` to the same shape.

        `rows`: `(samples, rows of each sample)`. `position_RND`: is added to the input of the attention. `drop`:
        drop-path factors `(2, R, 1, 1)` of the two branches; None is the same as all ones.
        """
        y_RND = self.norm1(x_RND) if position_RND is None else self.norm1(x_RND) + position_RND
        x_RND = x_RND + _dropped(self._attend(y_RND, rows), drop, 0)
        return x_RND + _dropped(self.mlp(self.norm2(x_RND)), drop, 1)

    def _attend(self, y_RND: Tensor, rows: Groups) -> Tensor:
        heads = self.attn.heads
        q, k, v = self.attn.qkv(y_RND).chunk(3, dim=-1)
        q_groups, k_groups, v_groups = (
            [part.unflatten(0, group) for part, group in each_group(x, rows)] for x in (q, k, v)
        )
        qkv = zip(q_groups, k_groups, v_groups, strict=True)
        mixed = [attend_over_time(q_, k_, v_, heads).flatten(0, 1) for q_, k_, v_ in qkv]
        v = torch.cat(mixed) if len(mixed) > 1 else mixed[0]
        return self.attn.drop(self.attn.proj(_attend_in_rows(q, k, v, heads)))


def _attend_in_rows(q_RND: Tensor, k_RND: Tensor, v_RND: Tensor, heads: int) -> Tensor:
    """Attention among the tokens of each row, `(R, N, D)` to the same shape."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q_RND, k_RND, v_RND))
    return fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _dropped(x: Tensor, drop: Tensor | None, branch: int) -> Tensor:
    return x if drop is None else x * drop[branch]


class ClassBlock(Block):
    """A block of tokens that begin with one class token, with separable or joint attention.

    With separable attention, the class token attends to nothing: its normalised value is the output of its attention
    (released code).
    """

    def __init__(self, config: VidTrConfig, layer: int) -> None:
        super().__init__(config)
        self.joint, self.pooled = layer >= config.separable_layers, config.dropped_in(layer)

    def forward(
        self,
        x_LD: Tensor,
        groups: Groups,
        places: int,
        positions: list[Tensor] | None,
        drop: Tensor | None = None,
    ) -> Tensor:
        """The tokens of all samples, one after the other, `(L, D)`; fewer if the block drops frames.

        `groups`: `(samples, frames of each sample)` at the input of this block. `places`: P. `positions`: for each
        group `(1 + T P, D)`. `drop`: drop-path factors `(2, S)` of the two branches; None is the same as all ones.
        """
        parts = x_LD.split([samples * (1 + frames * places) for samples, frames in groups])
        drops = [None] * len(groups) if drop is None else drop.split([samples for samples, _ in groups], dim=1)
        outputs = []
        for number, (part, (samples, frames)) in enumerate(zip(parts, groups, strict=True)):
            x_SLD = part.unflatten(0, (samples, 1 + frames * places))
            position = None if positions is None else positions[number]
            factors = drops[number]
            outputs.append(self._group(x_SLD, frames, position, None if factors is None else factors[..., None, None]))
        return torch.cat([x_SLD.flatten(0, 1) for x_SLD in outputs])

    def _group(self, x_SLD: Tensor, frames: int, position: Tensor | None, drop: Tensor | None) -> Tensor:
        """The tokens `(S, 1 + T P, D)` of one group of clips of `frames` frames."""
        y_SLD = self.norm1(x_SLD)
        with_position = y_SLD if position is None else y_SLD + position
        if self.joint:
            branch = self._attend_to_all(with_position, y_SLD)
        else:
            x_SLD, branch = self._attend_apart(x_SLD, with_position, frames)
        x_SLD = x_SLD + _dropped(branch, drop, 0)
        return x_SLD + _dropped(self.mlp(self.norm2(x_SLD)), drop, 1)

    def _attend_to_all(self, y_SLD: Tensor, values_SLD: Tensor) -> Tensor:
        """Joint attention. The values come from the input without position (released code)."""
        attn = self.attn
        weights, biases = attn.qkv.weight.split(attn.qkv.in_features), attn.qkv.bias.split(attn.qkv.in_features)
        q, k = (fn.linear(y_SLD, weight, bias) for weight, bias in zip(weights[:2], biases[:2]))
        v = fn.linear(values_SLD, weights[2], biases[2])
        return attn.drop(attn.proj(_attend_in_rows(q, k, v, attn.heads)))

    def _attend_apart(self, x_SLD: Tensor, y_SLD: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """The tokens that remain, and the output of separable attention for them."""
        attn, heads = self.attn, self.attn.heads
        x_STPD = x_SLD[:, 1:].unflatten(1, (frames, -1))
        q, k, v = attn.qkv(y_SLD[:, 1:].unflatten(1, (frames, -1))).chunk(3, dim=-1)
        kept = frames - min(self.pooled, frames - 1)
        if kept < frames:
            x_STPD, q, k, v = self._pool(x_STPD, q, k, v, kept)
        else:
            v = attend_over_time(q, k, v, heads)
        mixed = _attend_in_rows(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), heads)
        mixed = attn.drop(attn.proj(mixed)).unflatten(0, (-1, kept)).flatten(1, 2)
        return torch.cat([x_SLD[:, :1], x_STPD.flatten(1, 2)], 1), torch.cat([y_SLD[:, :1], mixed], 1)

    def _pool(
        self, x_STPD: Tensor, q_STPD: Tensor, k_STPD: Tensor, v_STPD: Tensor, kept: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Drop frames by their temporal attention; returns the input, queries, keys and new values of the others.

        Each head and place keeps its own `kept` frames, in the order of time: those whose attention weights have the
        largest standard deviation. These weights then pass through a second softmax (released code).
        """
        x, q, k, v = (
            y.unflatten(-1, (self.attn.heads, -1)).permute(0, 2, 3, 1, 4) for y in (x_STPD, q_STPD, k_STPD, v_STPD)
        )  # (S, P, H, T, d)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        places = weights.std(-1).topk(kept, dim=-1).indices.sort(dim=-1).values[..., None]  # (S, P, H, kept, 1)
        weights = weights.gather(3, places.expand(-1, -1, -1, -1, weights.shape[-1])).softmax(-1)
        rest = [y.gather(3, places.expand(-1, -1, -1, -1, y.shape[-1])) for y in (x, q, k)]
        new = [y.permute(0, 3, 1, 2, 4).flatten(3) for y in (*rest, weights @ v)]
        return new[0], new[1], new[2], new[3]


# --- the network ------------------------------------------------------------------------------------------------------


class VidTr(Backbone):
    """The network of a `VidTrConfig`. A feature is the normalised first token of a sample.

    An image is a clip of one frame: it has the tokens and the position of the first frame. A clip of another length
    takes those of the nearest frames.
    """

    config: VidTrConfig

    def __init__(self, config: VidTrConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, config.patch)
        frames, places, width = config.frames, config.side**2, config.width
        if config.tokens == "grid":
            self.frame_tokens = nn.Parameter(torch.zeros(1, frames, width))
            self.place_tokens = nn.Parameter(torch.zeros(1, 1 + places, width))  # entry 0 is for the clip
            self.pos_embed = nn.Parameter(torch.zeros(1 + frames, 1 + places, width))
            blocks: list[Block] = [GridBlock(config) for _ in range(config.depth)]
        else:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            self.cls_pos = nn.Parameter(torch.zeros(1, 1, width))
            self.pos_embed = nn.Parameter(torch.zeros(frames, places, width))
            blocks = [ClassBlock(config, layer) for layer in range(config.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.config.size, multiple=self.config.patch, mean=self.config.mean, std=self.config.std)

    @property
    def is_grid(self) -> bool:
        """Whether frames and places have tokens of their own."""
        return self.config.tokens == "grid"

    def stages(self) -> Sequence[Block]:
        return cast(Sequence[Block], tuple(self.blocks))

    def drop_shape(self) -> tuple[int, int]:
        return self.config.depth, 2

    def initialise(self) -> None:
        """As `Backbone.initialise`: deviation 0.02 for tokens and positions (ViT)."""
        for embedding in self._embeddings():
            nn.init.trunc_normal_(embedding, std=0.02)

    def projections(self) -> dict[str, list[nn.Linear]]:
        return {"attention": linears_of(self, SeparableAttention), "mlp": linears_of(self, Mlp)}

    def no_decay_parameters(self) -> frozenset[str]:
        return super().no_decay_parameters() | self.names_of(*self._embeddings())

    def _embeddings(self) -> list[Tensor]:
        """Tokens and positions."""
        first = [self.frame_tokens, self.place_tokens] if self.is_grid else [self.cls_token, self.cls_pos]
        return [*first, self.pos_embed]

    def fit_embeddings(self, weights: dict[str, Tensor]) -> list[str]:
        """Resize tokens and positions of another size or length to this network, in place; returns a note for each."""
        frames, side = self.config.frames, self.config.side
        notes = []
        for name, value in self.named_parameters():
            before = weights.get(name)
            fits = name in ("frame_tokens", "place_tokens", "pos_embed") and before is not None
            if not fits or before is None or before.ndim != 3 or before.shape[-1] != self.width:
                continue  # the comparison of shapes reports it
            if before.shape != value.shape:
                after = before
                if name != "frame_tokens":
                    after = _resized_places(after, side, first=self.is_grid)
                if name != "place_tokens":
                    after = _resized_frames(after, frames, name, first=self.is_grid)
                weights[name] = after
                shapes = ("x".join(map(str, tensor.shape[:2])) for tensor in (before, after))
                notes.append(f"{name} from {next(shapes)} to {next(shapes)} entries")
        return notes

    # --- the function -------------------------------------------------------------------------------------------------

    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """As `Backbone.forward`. `drop`: `(depth, 2, S)`, for the attention and the MLP.

        `intermediates` receives `embedded`, the blocks `blocks.0`, `blocks.1`, ... and `features`, `(S, D)`. With a
        grid of tokens, the first ones are `(R, N, D)`; with a class token they are `(L, D)`.
        """
        return self.forward_suffix(frames, groups, 0, drop, intermediates)

    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """As `Backbone.forward_prefix`, `(F, 2, N, D)` after `stages` blocks: a frame, and the first row of its clip.

        Raises `UserError` with a class token, because heads drop different frames. Raises ValueError if later blocks
        add positions and frames are not square, because N does not show their sides.
        """
        if not self.is_grid:
            return super().forward_prefix(frames, groups, stages)
        if not stages:
            return frames
        self.check_pack(frames, groups)
        if self.config.positions == "every" and frames.shape[2] != frames.shape[3]:
            raise ValueError(f"frames are {tuple(frames.shape)}, but the blocks after a prefix need square ones")
        with self.as_in_evaluation():
            x_RND, rows = self._grid(frames, groups), _rows_of(groups)
            position = self._grid_position(groups, self._sides(frames))
            for layer, block in enumerate(self.stages()[:stages]):
                x_RND = block(x_RND, rows, position if self._adds_position(layer) else None)
        parts = [part.unflatten(0, group) for part, group in each_group(x_RND, rows)]
        pairs = [torch.stack([part[:, 1:], part[:, :1].expand_as(part[:, 1:])], 2) for part in parts]
        return torch.cat([pair.flatten(0, 1) for pair in pairs])

    def forward_suffix(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """As `Backbone.forward_suffix`. `intermediates` receives the entries of the blocks that run."""
        if not self.is_grid:
            return self._with_class_token(x, groups, stages, drop, intermediates)
        rows = _rows_of(groups)
        if stages:
            pairs = [part.unflatten(0, group) for part, group in each_group(x, groups)]
            x_RND = torch.cat([torch.cat([pair[:, :1, 1], pair[:, :, 0]], 1).flatten(0, 1) for pair in pairs])
            side = round((x_RND.shape[1] - 1) ** 0.5)
            sides = (side, side)
        else:
            self.check_pack(x, groups)
            x_RND, sides = self._grid(x, groups), self._sides(x)
            note(intermediates, "embedded", x_RND)
        drop_R = None if drop is None else per_frame(drop, rows)[..., None, None]  # (depth, 2, R, 1, 1)
        position = self._grid_position(groups, sides) if self._adds_position(stages) else None
        for layer, block in enumerate(self.stages()[stages:], stages):
            added = position if self._adds_position(layer) else None
            x_RND = self.run_stage(block, x_RND, rows, added, None if drop_R is None else drop_R[layer])
            note(intermediates, f"blocks.{layer}", x_RND)
        first = torch.cat([part.unflatten(0, group)[:, 0, 0] for part, group in each_group(x_RND, rows)])
        features = self.norm(first)
        note(intermediates, "features", features)
        return features

    def _grid(self, frames: Tensor, groups: Groups) -> Tensor:
        """Frames `(F, 3, H, W)` to rows `(R, N, D)`. The first row of a sample has the tokens of its places."""
        x_FDhw = self.patch_embed(frames)
        place_tokens = _resized_places(self.place_tokens, self._sides(frames), first=True)
        rows = []
        for part, group in each_group(x_FDhw.flatten(2).transpose(1, 2), groups):
            tokens = resized_time(self.frame_tokens, group[1])[:, :, None]  # (1, T, 1, D)
            x_STPD = part.unflatten(0, group)
            x_STND = torch.cat([tokens.expand(x_STPD.shape[0], -1, -1, -1), x_STPD], 2)
            first = place_tokens[None].expand(x_STPD.shape[0], -1, -1, -1)
            rows.append(torch.cat([first, x_STND], 1).flatten(0, 1))
        return torch.cat(rows) if len(rows) > 1 else rows[0]

    def _adds_position(self, layer: int) -> bool:
        return layer == 0 or self.config.positions == "every"

    def _sides(self, frames: Tensor) -> tuple[int, int]:
        """Patches of a frame along its height and width."""
        return frames.shape[2] // self.config.patch, frames.shape[3] // self.config.patch

    def _grid_position(self, groups: Groups, sides: tuple[int, int]) -> Tensor:
        """The positions of the rows of all samples, `(R, N, D)`."""
        position = _resized_places(self.pos_embed, sides, first=True)
        parts = [_resized_frames(position, frames, "pos_embed", first=True) for _, frames in groups]
        return torch.cat(
            [part.expand(samples, -1, -1, -1).flatten(0, 1) for part, (samples, _) in zip(parts, groups, strict=True)]
        )

    def _with_class_token(
        self, frames: Tensor, groups: Groups, stages: int, drop: Tensor | None, intermediates: Intermediates | None
    ) -> Tensor:
        """The features of the network with a class token, from frames."""
        if stages:
            return super().forward_suffix(frames, groups, stages, drop, intermediates)
        self.check_pack(frames, groups)
        x_FDhw = self.patch_embed(frames)
        sides, places = self._sides(frames), x_FDhw.shape[2] * x_FDhw.shape[3]
        parts = []
        for part, group in each_group(x_FDhw.flatten(2).transpose(1, 2), groups):
            x_SLD = part.unflatten(0, group).flatten(1, 2)
            parts.append(torch.cat([self.cls_token.expand(x_SLD.shape[0], -1, -1), x_SLD], 1).flatten(0, 1))
        x_LD = torch.cat(parts)
        note(intermediates, "embedded", x_LD)
        position = _resized_places(self.pos_embed, sides, first=False)
        positions = [
            torch.cat([self.cls_pos[0], _resized_frames(position, count, "pos_embed", first=False).flatten(0, 1)])
            for _, count in groups
        ]
        for layer, block in enumerate(self.stages()):
            left = tuple((samples, self.config.frames_before(layer, count)) for samples, count in groups)
            added = positions if self._adds_position(layer) else None
            x_LD = self.run_stage(block, x_LD, left, places, added, None if drop is None else drop[layer])
            note(intermediates, f"blocks.{layer}", x_LD)
        left = tuple((samples, self.config.frames_before(self.config.depth, count)) for samples, count in groups)
        lengths = [(samples, 1 + count * places) for samples, count in left]
        first = torch.cat([part.unflatten(0, length)[:, 0] for part, length in each_group(x_LD, tuple(lengths))])
        features = self.norm(first)
        note(intermediates, "features", features)
        return features


def _rows_of(groups: Groups) -> Groups:
    """The groups of rows: `(samples, rows of each sample)`, one more than its frames."""
    return tuple((samples, frames + 1) for samples, frames in groups)


# --- tokens and positions of another size -----------------------------------------------------------------------------


def _resized_places(x_TND: Tensor, side: int | tuple[int, int], first: bool) -> Tensor:
    """Entries of a square of places, resized to another one by bicubic interpolation (as the ViT of transformers).

    `first`: entry 0 of every row is for no place and does not change.
    """
    grid = (side, side) if isinstance(side, int) else side
    if first:
        return resized_positions(x_TND, grid, "bicubic")
    return resized_positions(fn.pad(x_TND, (0, 0, 1, 0)), grid, "bicubic")[:, 1:]


def _resized_frames(x_TND: Tensor, frames: int, name: str, first: bool) -> Tensor:
    """Entries of frames, resized to another number by the nearest neighbour, so that an image has the first frame's.

    `first`: of positions, row 0 is for no frame and does not change.
    """
    if name == "frame_tokens":
        return resized_time(x_TND, frames)
    above, rest = (x_TND[:1], x_TND[1:]) if first else (x_TND[:0], x_TND)
    if len(rest) == frames:
        return x_TND
    resized = resized_time(rest.flatten(1)[None], frames)[0]
    return torch.cat([above, resized.unflatten(1, x_TND.shape[1:])])
