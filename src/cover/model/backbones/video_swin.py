"""Video Swin, a vision transformer with attention in shifted windows of space and time.

Source: Liu et al., 2022, "Video Swin Transformer", called the paper below. "Released code" is the code that its authors
published. A checkpoint of it, of mmaction2, of torchvision or of an image Swin is read by
`cover.model.starts.video_swin`.

Letters in shapes: S samples, F frames of all samples together (clips first), P pairs of frames of all samples, T pairs
of one clip, h, w sides of a map, C channels of a map, W windows of one sample, N tokens of a window, H heads,
d = C / H, D width of a feature.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

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
from cover.model.layers import Mlp, each_group

PAIR = 2  # frames that are embedded together
PATCH = 4  # side of a patch in pixels
OTHER_REGION = -100.0  # added to the score of two tokens of a shifted window that are not neighbours (released code)
MOST_FRAMES = 64  # largest temporal window that `window_of_table` considers
IMAGENET_MEAN: Rgb = (123.675 / 255, 116.28 / 255, 103.53 / 255)
IMAGENET_STD: Rgb = (58.395 / 255, 57.12 / 255, 57.375 / 255)
# name: channels of the first stage, blocks of each stage, heads of each stage (paper, section 3.3)
PRESETS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "mini": (48, (2, 2), (3, 6)),
    "T": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "L": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}

ImageFrames = Literal["repeat", "zeros"]
Sides = tuple[int, int, int]  # of a window or a map: pairs of frames, rows, columns


@dataclass(frozen=True)
class VideoSwinConfig(BackboneConfig):
    """The configuration of a Video Swin. The defaults are Video Swin-T for 32 frames of 224 pixels.

    `channels`: of the first stage; every further stage doubles them. `depths`, `attention_heads`: of each stage.
    `window`, `window_frames`: sides of a window, in tokens and in pairs of frames. `image_frames`: the second frame of
    the pair that an image becomes: the image again, with which an inflated network computes what its image network
    computes, or zeros, as in the released code.
    """

    family: ClassVar[str] = "video_swin"
    inherited: ClassVar[frozenset[str]] = BackboneConfig.inherited | {"image_frames"}

    frames: int = 32
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    channels: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    attention_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    window_frames: int = 8
    image_frames: ImageFrames = "repeat"
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-5

    def build(self) -> VideoSwin:
        return VideoSwin(self)

    def options(self) -> VideoSwinOptions:
        # Only presets can be written into a recipe, so the sizes must be those of one.
        shape = self.channels, self.depths, self.attention_heads
        name = next((name for name, sizes in PRESETS.items() if sizes == shape), None)
        if name is None:
            raise UserError(f"channels, depths and heads {shape} are those of no preset, so no recipe can ask for them")
        return VideoSwinOptions(preset=name, size=self.size, window=self.window, window_frames=self.window_frames)

    def summary(self) -> dict[str, str]:
        blocks = "-".join(map(str, self.depths))
        return {"channels": str(self.channels), "blocks": blocks, "window": _by(self.window_sides)}

    def difference(self, theirs: VideoSwinConfig, temporal: bool) -> str | None:
        # Another window only resizes tables. The depths decide which blocks belong to a stage, which names do not show.
        for name in ("channels", "depths", "attention_heads"):
            if getattr(theirs, name) != getattr(self, name):
                values = f"is {getattr(theirs, name)}, this run's {getattr(self, name)}"
                return f"its {name} {values}; choose another model.preset"
        return None

    @property
    def window_sides(self) -> Sides:
        """Pairs of frames, rows and columns of a window."""
        return self.window_frames, self.window, self.window


@dataclass(frozen=True)
class VideoSwinOptions(BackboneOptions):
    """`model` of a recipe that trains a Video Swin."""

    backbone: Literal["video_swin"] = option("video_swin", "the family of the network")
    size: int = option(224, "image side in pixels")
    preset: str = option("T", "video_swin: T, S, B or L as published, or mini")
    window: int = option(7, "video_swin: side of an attention window in tokens")
    window_frames: int = option(8, "video_swin: length of a window in pairs of frames; published are 8 and 16")

    def config(self, frames: int, inherited: BackboneConfig | None = None) -> VideoSwinConfig:
        changes = inherited.inherited_values() if inherited else {}
        windows = {"window": self.window, "window_frames": self.window_frames}
        return video_swin_config(self.preset, size=self.size, frames=frames, **windows, **changes)

    def check(self) -> None:
        super().check()
        for name in ("window", "window_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}: {getattr(self, name)} is not 1 or more")


def video_swin_config(preset: str, **changes: Any) -> VideoSwinConfig:
    """The configuration of a preset, with some fields replaced. Raises `UserError` for an unknown preset."""
    if preset not in PRESETS:
        raise UserError(f'unknown model preset "{preset}" of video_swin{nearest(preset, PRESETS)}')
    channels, depths, heads = PRESETS[preset]
    return VideoSwinConfig(**{"channels": channels, "depths": depths, "attention_heads": heads, **changes})


# --- windows ----------------------------------------------------------------------------------------------------------


class Division(NamedTuple):
    """How a map of T pairs, h rows and w columns is divided into windows.

    `window`: sides of a window. `shift`: by how much the map is rolled before it is divided. `padded`: the sides of the
    map with zeros at the end of each axis, multiples of those of a window.
    """

    window: Sides
    shift: Sides
    padded: Sides

    @classmethod
    def of(cls, sides: Sides, window: Sides, shifted: bool) -> Division:
        """The division of a map. An axis that is not longer than the window is one window and is not shifted."""
        fits = [side <= most for side, most in zip(sides, window)]
        used = tuple(side if fit else most for side, most, fit in zip(sides, window, fits))
        shift = tuple(0 if fit or not shifted else most // 2 for most, fit in zip(window, fits))
        padded = tuple(-(-side // most) * most for side, most in zip(sides, used))
        return cls(cast(Sides, used), cast(Sides, shift), cast(Sides, padded))

    def divide(self, x_SThwC: Tensor) -> Tensor:
        """The windows of padded maps, `(S, W, N, C)`."""
        (a, b, c), (t, h, w) = self.window, self.padded
        parts = x_SThwC.unflatten(3, (w // c, c)).unflatten(2, (h // b, b)).unflatten(1, (t // a, a))
        return parts.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(1, 3)

    def join(self, x_SWNC: Tensor) -> Tensor:
        """The padded maps `(S, T, h, w, C)` of windows."""
        counts = [whole // part for whole, part in zip(self.padded, self.window)]
        parts = x_SWNC.unflatten(2, self.window).unflatten(1, counts)
        return parts.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(5, 6).flatten(3, 4).flatten(1, 2)

    def pad(self, x_SThwC: Tensor) -> Tensor:
        """Add zeros at the end of each axis."""
        short = [padded - side for padded, side in zip(self.padded, x_SThwC.shape[1:4])]
        return fn.pad(x_SThwC, (0, 0, 0, short[2], 0, short[1], 0, short[0])) if any(short) else x_SThwC

    def roll(self, x_SThwC: Tensor, back: bool = False) -> Tensor:
        """Roll the maps by the shift, or back."""
        if not any(self.shift):
            return x_SThwC
        return torch.roll(x_SThwC, self.shift if back else [-step for step in self.shift], (1, 2, 3))

    def mask(self, device: torch.device) -> Tensor | None:
        """What is added to the scores of each window, `(W, N, N)`; None without a shift.

        After the roll, a window at the end of an axis has tokens of both ends of the map. They do not attend to each
        other.
        """
        if not any(self.shift):
            return None
        region = torch.zeros((), dtype=torch.long, device=device)
        for axis, (side, window, shift) in enumerate(zip(self.padded, self.window, self.shift)):
            place = torch.arange(side, device=device)
            of_axis = (place >= side - window).long() + (place >= side - shift).long() if shift else place * 0
            region = 3 * region + of_axis.view([-1 if other == axis else 1 for other in range(3)])
        regions_WN = self.divide(region[None, ..., None])[0, ..., 0]
        return (regions_WN[:, :, None] != regions_WN[:, None, :]).float() * OTHER_REGION


def relative_places(tokens: int, window: Sides, device: torch.device) -> Tensor:
    """The row of the bias table for each pair of the first N tokens of a full window, int64 `(N, N)`.

    If the map is smaller than the window, the released code still takes these first rows and columns. They are right
    where only the clip is shorter. Where rows or columns are fewer, they are the places of another shape; checkpoints
    were trained so.
    """
    _, rows, columns = window
    place = torch.arange(tokens, device=device)
    frame, row, column = place // (rows * columns), place // columns % rows, place % columns
    code = (frame * (2 * rows - 1) + row) * (2 * columns - 1) + column
    return code[:, None] - code[None, :] + _middle(window)


def _middle(window: Sides) -> int:
    """The row of the bias table for a token and itself."""
    frames, rows, columns = window
    return ((frames - 1) * (2 * rows - 1) + rows - 1) * (2 * columns - 1) + columns - 1


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, with a learned bias for each relative position."""

    def __init__(self, channels: int, heads: int, window: Sides) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros(math.prod(2 * side - 1 for side in window), heads))

    def forward(self, x_SThwC: Tensor, shifted: bool) -> Tensor:
        """Maps of one group `(S, T, h, w, C)` to the same shape."""
        pairs, height, width = x_SThwC.shape[1:4]
        division = Division.of((pairs, height, width), self.window, shifted)
        x_SWNC = division.divide(division.roll(division.pad(x_SThwC)))
        mixed = self._attend(x_SWNC, division.mask(x_SWNC.device))
        maps = division.roll(division.join(self.proj(mixed)), back=True)
        return maps[:, :pairs, :height, :width]

    def _attend(self, x_SWNC: Tensor, mask_WNN: Tensor | None) -> Tensor:
        """Attention within each window, `(S, W, N, C)` to the same shape."""
        samples, windows, tokens, _ = x_SWNC.shape
        q, k, v = self.qkv(x_SWNC).unflatten(-1, (3, self.heads, -1)).transpose(2, 4).unbind(3)  # (S, W, H, N, d)
        bias_HNN = self.bias_table[relative_places(tokens, self.window, x_SWNC.device)].permute(2, 0, 1).contiguous()
        # PyTorch has fused kernels for four dimensions. The bias is broadcast over the first: over samples if windows
        # differ by their mask, else over all windows.
        if mask_WNN is None:
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (S W, H, N, d)
            mixed = fn.scaled_dot_product_attention(q, k, v, bias_HNN[None].to(q.dtype))
            mixed = mixed.unflatten(0, (samples, windows))
        else:
            q, k, v = (x.flatten(1, 2) for x in (q, k, v))  # (S, W H, N, d)
            bias = (bias_HNN + mask_WNN[:, None]).flatten(0, 1)[None]
            mixed = fn.scaled_dot_product_attention(q, k, v, bias.to(q.dtype)).unflatten(1, (windows, self.heads))
        return mixed.transpose(2, 3).flatten(3)


# --- blocks -----------------------------------------------------------------------------------------------------------


class PatchMerging(nn.Module):
    """Four neighbouring tokens become one with twice the channels, `(P, h, w, C)` to `(P, h / 2, w / 2, 2 C)`."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels, eps=eps)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x_PhwC: Tensor) -> Tensor:
        height, width = x_PhwC.shape[1:3]
        if height % 2 or width % 2:
            x_PhwC = fn.pad(x_PhwC, (0, 0, 0, width % 2, 0, height % 2))
        # columns outermost: (0, 0), (1, 0), (0, 1), (1, 1)
        neighbours = [x_PhwC[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, -1)))


class Block(nn.Module):
    """Attention in windows and an MLP; the first block of every further stage merges patches before (paper, figure 2).

    `shifted`: whether the windows are shifted by half their sides, in every second block of a stage.
    """

    def __init__(self, config: VideoSwinConfig, stage: int, shifted: bool, merges: bool) -> None:
        super().__init__()
        channels = config.channels * 2**stage
        self.shifted = shifted
        self.merge = PatchMerging(channels // 2, config.norm_eps) if merges else None
        self.norm1 = nn.LayerNorm(channels, eps=config.norm_eps)
        self.attn = WindowAttention(channels, config.attention_heads[stage], config.window_sides)
        self.norm2 = nn.LayerNorm(channels, eps=config.norm_eps)
        self.mlp = Mlp(channels, int(channels * config.mlp_ratio), 0.0)

    def forward(self, x_PChw: Tensor, groups: Groups, drop: Tensor | None = None) -> Tensor:
        """Maps `(P, C, h, w)` to maps, of half the sides and twice the channels if the block merges patches.

        `groups`: `(samples, pairs of each sample)`. `drop`: drop-path factors `(2, P, 1, 1, 1)` of the two branches;
        None is the same as all ones. The layout in memory is channels-last.
        """
        x_PhwC = x_PChw.permute(0, 2, 3, 1)
        if self.merge is not None:
            x_PhwC = self.merge(x_PhwC)
        parts = each_group(self.norm1(x_PhwC), groups)
        mixed = [self.attn(part.unflatten(0, group), self.shifted).flatten(0, 1) for part, group in parts]
        x_PhwC = x_PhwC + _dropped(torch.cat(mixed) if len(mixed) > 1 else mixed[0], drop, 0)
        x_PhwC = x_PhwC + _dropped(self.mlp(self.norm2(x_PhwC)), drop, 1)
        return x_PhwC.permute(0, 3, 1, 2)


def _dropped(x: Tensor, drop: Tensor | None, branch: int) -> Tensor:
    return x if drop is None else x * drop[branch]


class PatchEmbed(nn.Module):
    """The tokens of pairs of frames: one linear map of each patch of 2 x 4 x 4 values, and a norm.

    Zeros complete a clip of an odd number of frames and sides that are no multiples of 4 (released code). An image is a
    pair too, see `VideoSwinConfig.image_frames`.
    """

    def __init__(self, config: VideoSwinConfig) -> None:
        super().__init__()
        self.image_frames = config.image_frames
        self.proj = nn.Conv3d(3, config.channels, (PAIR, PATCH, PATCH), (PAIR, PATCH, PATCH))
        self.norm = nn.LayerNorm(config.channels, eps=config.norm_eps)

    def forward(self, frames: Tensor, groups: Groups) -> Tensor:
        """Frames `(F, 3, H, W)` to maps `(P, C, H / 4, W / 4)`, rounded up."""
        bottom, right = (-side % PATCH for side in frames.shape[2:])
        frames = fn.pad(frames, (0, right, 0, bottom)) if bottom or right else frames
        embedded = [self._embed(part, group) for part, group in each_group(frames, groups)]
        return self.norm(torch.cat(embedded).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _embed(self, frames: Tensor, group: tuple[int, int]) -> Tensor:
        """The maps `(P, C, h, w)` of one group."""
        if group[1] == 1:  # a product with the sum of both kernels, or with the first alone
            kernel = self.proj.weight.sum(2) if self.image_frames == "repeat" else self.proj.weight[:, :, 0]
            return fn.conv2d(frames, kernel, self.proj.bias, PATCH)
        clips = frames.unflatten(0, group).transpose(1, 2)
        if group[1] % PAIR:
            clips = fn.pad(clips, (0, 0, 0, 0, 0, 1))
        return self.proj(clips).transpose(1, 2).flatten(0, 1)


# --- the network ------------------------------------------------------------------------------------------------------


def pairs_of(groups: Groups) -> Groups:
    """The groups of pairs of frames: `(samples, pairs of each sample)`."""
    return tuple((samples, -(-frames // PAIR)) for samples, frames in groups)


class VideoSwin(Backbone):
    """The network of a `VideoSwinConfig`. A feature is the mean of the normalised tokens of a sample.

    Norms, MLPs and patch merging run once over clips and images together. Attention runs group by group. Time is never
    shortened after the embedding. Any height and width are possible, but at less than 28 pixels for each token of a
    window the last stages have fewer tokens than a window; see `relative_places`.
    """

    config: VideoSwinConfig

    def __init__(self, config: VideoSwinConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.channels * 2 ** (len(config.depths) - 1)
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(
            Block(config, stage, shifted=number % 2 == 1, merges=stage > 0 and number == 0)
            for stage, depth in enumerate(config.depths)
            for number in range(depth)
        )
        self.norm = nn.LayerNorm(self.width, eps=config.norm_eps)

    @property
    def pixels(self) -> Pixels:
        return Pixels(self.config.size, mean=self.config.mean, std=self.config.std)

    def stages(self) -> Sequence[Block]:
        return tuple(self.blocks)  # type: ignore[arg-type]

    def drop_shape(self) -> tuple[int, int]:
        return len(self.blocks), 2

    @torch.no_grad()
    def initialise(self) -> None:
        """As `Backbone.initialise`: bias tables of deviation 0.02 (released code)."""
        for block in self.stages():
            nn.init.trunc_normal_(block.attn.bias_table, std=0.02)

    def projections(self) -> dict[str, list[nn.Linear]]:
        return {"attention": linears_of(self, WindowAttention), "mlp": linears_of(self, Mlp)}

    def no_decay_parameters(self) -> frozenset[str]:
        return super().no_decay_parameters() | self.names_of(*(block.attn.bias_table for block in self.stages()))

    def fit_embeddings(self, weights: dict[str, Tensor]) -> list[str]:
        """Resize bias tables of another window to this network, in place; returns a note for each kind of window."""
        wanted, counts = self.config.window_sides, Counter[Sides]()
        for name in self.names_of(*(block.attn.bias_table for block in self.stages())) & weights.keys():
            before = weights[name]
            theirs = window_of_table(len(before), self.config.window) if before.ndim == 2 else None
            if theirs is not None and theirs != wanted:
                weights[name] = resized_table(before, theirs, wanted)
                counts[theirs] += 1
        return [f"{count} bias tables from windows of {_by(sides)} to {_by(wanted)}" for sides, count in counts.items()]

    def simplify(self) -> None:
        # PyTorch has no fused attention with a bias that requires a gradient. A graph that was traced without gradients
        # expects the memory layout of the fused kernel.
        for block in self.stages():
            block.attn.bias_table.requires_grad_(False)

    # --- the function -------------------------------------------------------------------------------------------------

    def forward(
        self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
    ) -> Tensor:
        """As `Backbone.forward`. `drop`: `(blocks, 2, S)`, for the attention and the MLP.

        `intermediates` receives `embedded`, the blocks `blocks.0`, `blocks.1`, ... and `map`, the normalised output of
        the last, each `(P, C, h, w)`, and `features`, `(S, D)`.
        """
        return self.forward_suffix(frames, groups, 0, drop, intermediates)

    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """As `Backbone.forward_prefix`, `(F, C, h, w)` after `stages` blocks. Both frames of a pair have its map."""
        if not stages:
            return frames
        self.check_pack(frames, groups)
        x_PChw, pairs = self.patch_embed(frames, groups), pairs_of(groups)
        for block in self.stages()[:stages]:
            x_PChw = block(x_PChw, pairs)
        parts = zip(each_group(x_PChw, pairs), groups, strict=True)
        return torch.cat(
            [
                part.unflatten(0, pair_group).repeat_interleave(PAIR, 1)[:, :frames_each].flatten(0, 1)
                for (part, pair_group), (_, frames_each) in parts
            ]
        )

    def forward_suffix(
        self,
        x: Tensor,
        groups: Groups,
        stages: int,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
    ) -> Tensor:
        """As `Backbone.forward_suffix`. `intermediates` receives the entries of the blocks that run."""
        pairs = pairs_of(groups)
        if stages:
            x_PChw = torch.cat(
                [part.unflatten(0, group)[:, ::PAIR].flatten(0, 1) for part, group in each_group(x, groups)]
            )
        else:
            self.check_pack(x, groups)
            x_PChw = self.patch_embed(x, groups)
            note(intermediates, "embedded", x_PChw)
        drop_P = None if drop is None else per_frame(drop, pairs)[..., None, None, None]  # (blocks, 2, P, 1, 1, 1)
        for number, block in enumerate(self.stages()[stages:], stages):
            x_PChw = self.run_stage(block, x_PChw, pairs, None if drop_P is None else drop_P[number])
            note(intermediates, f"blocks.{number}", x_PChw)
        x_PhwC = self.norm(x_PChw.permute(0, 2, 3, 1))
        note(intermediates, "map", x_PhwC.permute(0, 3, 1, 2))
        means = [part.unflatten(0, group).mean((1, 2, 3)) for part, group in each_group(x_PhwC, pairs)]
        features = torch.cat(means)
        note(intermediates, "features", features)
        return features


# --- bias tables of another window ------------------------------------------------------------------------------------


def window_of_table(rows: int, side: int) -> Sides | None:
    """The window of a bias table with this number of rows; its height and width are equal.

    Several windows can have as many rows: the one of `side` tokens is preferred, then the largest. None if there is no
    window.
    """
    sides = [side, *range(math.isqrt(rows) // 2 + 1, 0, -1)]
    for tokens in sides:
        frames, rest = divmod(rows, (2 * tokens - 1) ** 2)
        if not rest and frames % 2 and frames <= 2 * MOST_FRAMES - 1 and (frames > 1 or tokens == side):
            return (frames + 1) // 2, tokens, tokens
    return None


def resized_table(table: Tensor, theirs: Sides, ours: Sides) -> Tensor:
    """A bias table `(rows, H)` of windows `theirs`, resized to windows `ours`.

    Bicubic over height and width (released code), then linear over time, so that a table that is equal at all times
    stays so.
    """
    frames, height, width = (2 * side - 1 for side in theirs)
    maps = table.float().T.unflatten(1, (frames, height, width))  # (H, frames, height, width)
    new_frames, new_height, new_width = (2 * side - 1 for side in ours)
    if (height, width) != (new_height, new_width):
        maps = fn.interpolate(maps, size=(new_height, new_width), mode="bicubic", align_corners=False)
    if frames != new_frames:
        lines = maps.flatten(2).transpose(1, 2)  # (H, height width, frames)
        lines = fn.interpolate(lines, size=new_frames, mode="linear", align_corners=True)
        maps = lines.transpose(1, 2)
    return maps.flatten(1).T.to(table.dtype).contiguous()


def _by(sides: Sides) -> str:
    """Sides as text, such as 8x7x7."""
    return "x".join(map(str, sides))
