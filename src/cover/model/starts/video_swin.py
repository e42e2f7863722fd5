"""Published checkpoints of Video Swin and of image Swins: their names, and the inflation of an image Swin.

Read are the released code and mmaction2, torchvision, and image Swins of Microsoft, timm and transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbones.video_swin import PAIR, PATCH, VideoSwinConfig, window_of_table
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import ImportOptions, PixelStatistics, pixels_beside
from cover.model.starts.conversion import (
    Conversion,
    check_strangers,
    named_format,
    refuse_options,
    without_prefixes,
)
from cover.model.starts.formats import HEAD, Names, Translation

PREFIXES = ("module.", "model.", "backbone.", "swin.")
TABLE = "relative_position_bias_table"
COMPUTED = ("relative_position_index", "attn_mask")  # ends of the names of buffers that a network computes itself
STEP = 2  # frames of a 30 fps video from one frame of a clip to the next (32 x 2)
VIDEO_VIEWS = "4x3"
# Key of a configuration of transformers -> the values with which the function is that of this network.
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "num_channels": (3,),
    "patch_size": (PATCH,),
    "qkv_bias": (True,),
    "use_absolute_embeddings": (False,),
    "problem_type": (None, "single_label_classification"),
}


@dataclass(frozen=True)
class SwinNames:
    """The names of one library, without prefixes.

    `block`, `merge`: the beginnings of the names of a block and of the patch merging after a stage, with `{stage}`,
    `{block}`, `{next}` for the stage after and `{even}`, `{odd}` for twice the stage and the number after it. `parts`:
    our name in a block -> theirs.
    """

    title: str
    block: str
    merge: str
    norm: str
    head: str
    parts: Mapping[str, str | Names]
    patch: str = "patch_embed.proj"
    patch_norm: str = "patch_embed.norm"

    def of_block(self, stage: int, block: int) -> str:
        """The beginning of the names of a block."""
        return self.block.format(stage=stage, block=block, even=2 * stage)

    def names(self, depths: tuple[int, ...]) -> dict[str, Names]:
        """Our name -> their names, for every tensor of a network with these numbers of blocks."""
        layers: dict[str, Names] = {"patch_embed.proj": (self.patch,), "patch_embed.norm": (self.patch_norm,)}
        layers |= {"norm": (self.norm,), HEAD: (self.head,)}
        single: dict[str, Names] = {}
        number = 0
        for stage, depth in enumerate(depths):
            if stage:
                merge = self.merge.format(stage=stage - 1, next=stage, odd=2 * stage - 1)
                layers[f"blocks.{number}.merge.norm"] = (f"{merge}norm",)
                single[f"blocks.{number}.merge.reduction.weight"] = (f"{merge}reduction.weight",)
            for block in range(depth):
                start = self.of_block(stage, block)
                for ours, theirs in self.parts.items():
                    parts = (theirs,) if isinstance(theirs, str) else theirs
                    target = single if ours == "attn.bias_table" else layers
                    target[f"blocks.{number}.{ours}"] = tuple(start + part for part in parts)
                number += 1
        for ours, parts in layers.items():
            single |= {f"{ours}.{kind}": tuple(f"{part}.{kind}" for part in parts) for kind in ("weight", "bias")}
        return single


_PARTS: dict[str, str | Names] = {
    "norm1": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "attn.bias_table": f"attn.{TABLE}",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLOCK, _MERGE = "layers.{stage}.blocks.{block}.", "layers.{stage}.downsample."
RELEASED = SwinNames("Video Swin, released code", _BLOCK, _MERGE, "norm", "cls_head.fc_cls", _PARTS)
MMACTION2 = SwinNames("Video Swin, mmaction2", _BLOCK, _MERGE, "norm3", "cls_head.fc_cls", _PARTS)
MICROSOFT = SwinNames("Swin, Microsoft", _BLOCK, _MERGE, "norm", "head", _PARTS)
TIMM = SwinNames("Swin, timm", _BLOCK, "layers.{next}.downsample.", "norm", "head.fc", _PARTS)
TORCHVISION = SwinNames(
    "Video Swin, torchvision",
    "features.{even}.{block}.",
    "features.{odd}.",
    "norm",
    "head",
    {**_PARTS, "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3"},
)
TRANSFORMERS = SwinNames(
    "Swin, transformers",
    "encoder.layers.{stage}.blocks.{block}.",
    "encoder.layers.{stage}.downsample.",
    "layernorm",
    "classifier",
    {
        "norm1": "layernorm_before",
        "attn.qkv": tuple(f"attention.self.{part}" for part in ("query", "key", "value")),
        "attn.proj": "attention.output.dense",
        "attn.bias_table": f"attention.self.{TABLE}",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    patch="embeddings.patch_embeddings.projection",
    patch_norm="embeddings.norm",
)


def convert(checkpoint: ForeignCheckpoint, state: Mapping[str, Tensor], options: ImportOptions) -> Conversion | None:
    """A Video Swin from the tensors `state` of a checkpoint; None if they are of another family.

    An image Swin is inflated: its patch embedding is divided between the two frames of a pair, and its bias tables are
    repeated over time. Raises `UserError` if it is no network of this package.
    """
    files = without_prefixes(state, PREFIXES)
    names = _names_of(set(files))
    if names is None:
        return None
    patch = _tensor(state, files, f"{names.patch}.weight")
    video = patch.ndim == 5
    title = names.title if video else names.title.replace("Video Swin, released code", MICROSOFT.title)
    refuse_options(options, title)
    depths = _depths(names, set(files))
    wanted = names.names(depths)
    computed = {bare for bare in files if bare.endswith(COMPUTED)}
    check_strangers(files, {part for parts in wanted.values() for part in parts} | computed, title)
    translation = _translation(wanted, state, files, len(depths))
    config = _config(checkpoint, translation, depths, patch, options)
    changes = {} if video else _inflate(translation.tensors, config)
    mean, std = VideoSwinConfig.mean, VideoSwinConfig.std
    pixels = pixels_beside(checkpoint) or PixelStatistics(mean, std, "no file says it; those of Swin, of ImageNet")
    return Conversion(
        named_format(title, video),
        translation,
        config,
        {ours: tuple(files.get(part, part) for part in parts) for ours, parts in wanted.items()},
        pixels,
        sampling=f"dense@{STEP / 30:.4g}" if video else "segments",
        views=VIDEO_VIEWS if video else "1x1",
        changes=changes,
        unused={files[bare]: "computed by the network itself" for bare in sorted(computed)},
        notes=() if video else ("an image Swin, inflated: its function on images does not change",),
    )


def _names_of(bare: set[str]) -> SwinNames | None:
    """The library of a checkpoint, from its names; None for another family."""
    for names in (TRANSFORMERS, TORCHVISION):
        if f"{names.of_block(0, 0)}{names.parts['attn.bias_table']}" in bare:
            return names
    if f"{RELEASED.of_block(0, 0)}attn.{TABLE}" not in bare:
        return None
    if f"{MMACTION2.norm}.weight" in bare:
        return MMACTION2
    later = "layers.1.downsample.norm.weight" in bare and "layers.0.downsample.norm.weight" not in bare
    if later or f"{TIMM.head}.weight" in bare:
        return TIMM
    return MICROSOFT if f"{MICROSOFT.head}.weight" in bare else RELEASED


def _depths(names: SwinNames, bare: set[str]) -> tuple[int, ...]:
    """The number of blocks of each stage."""
    pattern = re.compile(re.escape(names.block).replace(r"\{stage\}", r"(\d+)").replace(r"\{even\}", r"(\d+)")
                         .replace(r"\{block\}", r"(\d+)"))  # fmt: skip
    step = 2 if "{even}" in names.block else 1
    counts: dict[int, int] = {}
    for name in bare:
        if match := pattern.match(name):
            stage, block = int(match[1]) // step, int(match[2])
            counts[stage] = max(counts.get(stage, 0), block + 1)
    if sum(counts.values()) > len(bare) or len(counts) != max(counts) + 1:
        raise UserError(f"its blocks are numbered to {max(counts.values()) - 1} in {max(counts) + 1} stages: some lack")
    return tuple(counts[stage] for stage in sorted(counts))


def _translation(
    wanted: Mapping[str, Names], state: Mapping[str, Tensor], files: Mapping[str, str], depth: int
) -> Translation:
    """The tensors under our names. Of an absent tensor there is no entry."""
    tensors: dict[str, Tensor] = {}
    sources: dict[str, Names] = {}
    for ours, parts in wanted.items():
        present = [part for part in parts if part in files]
        if not present:
            continue
        if len(present) < len(parts):
            missing = next(part for part in parts if part not in files)
            raise UserError(f"the tensor {missing} is missing, but {files[present[0]]} is present")
        sources[ours] = tuple(files[part] for part in parts)
        values = [state[name] for name in sources[ours]]
        if len({value.shape[1:] for value in values}) > 1 or (len(values) > 1 and not values[0].ndim):
            raise UserError(f"{' and '.join(sources[ours])} have shapes that do not fit each other")
        tensors[ours] = torch.cat(values) if len(values) > 1 else values[0]
    return Translation(tensors, sources, depth, ())


def _tensor(state: Mapping[str, Tensor], files: Mapping[str, str], name: str) -> Tensor:
    if name not in files:
        raise UserError(f"the tensor {name} is missing")
    return state[files[name]]


# --- the network ------------------------------------------------------------------------------------------------------


def _config(
    checkpoint: ForeignCheckpoint,
    translation: Translation,
    depths: tuple[int, ...],
    patch: Tensor,
    options: ImportOptions,
) -> VideoSwinConfig:
    """The configuration, from the shapes of the tensors and the file `config.json`."""
    settings = checkpoint.config
    kernel, wanted = tuple(patch.shape[1:]), (3, PAIR, PATCH, PATCH)
    if patch.ndim not in (4, 5) or kernel not in (wanted, (3, PATCH, PATCH)):
        raise UserError(
            f"{translation.source('patch_embed.proj.weight')} is {tuple(patch.shape)}: this model embeds pairs of "
            f"frames in patches of {PATCH} px"
        )
    for key, values in ONLY.items():
        if settings.get(key, values[0]) not in values:
            raise UserError(f"config.json: {key}: {settings[key]}: only {values[0]} is the function of this model")
    tables = [_table(translation, sum(depths[:stage])) for stage in range(len(depths))]
    window = _window(translation, tables[0], patch.ndim == 5)
    for block in range(sum(depths)):  # an image Swin of Microsoft has smaller windows where its maps are smaller
        if len(_table(translation, block)) != len(tables[0]):
            name = translation.source(f"blocks.{block}.attn.bias_table")
            raise UserError(f"{name} is of another window than that of the first block; this model has one for all")
    hidden = translation.tensors.get("blocks.0.mlp.fc1.weight", torch.empty(4 * len(patch), 0)).shape[0]
    config = VideoSwinConfig(
        size=options.size or int(settings.get("image_size") or window[1] * PATCH * 2 ** (len(depths) - 1)),
        frames=options.frames or VideoSwinConfig.frames,
        channels=len(patch),
        depths=depths,
        attention_heads=tuple(table.shape[1] for table in tables),
        window=window[1],
        window_frames=window[0],
        mlp_ratio=hidden / len(patch),
        norm_eps=float(settings.get("layer_norm_eps", VideoSwinConfig.norm_eps)),
    )
    for key, value in {
        "embed_dim": config.channels,
        "depths": list(depths),
        "num_heads": list(config.attention_heads),
        "window_size": config.window,
        "mlp_ratio": config.mlp_ratio,
    }.items():
        if settings.get(key, value) != value:
            raise UserError(f"config.json: {key} is {settings[key]}, but the tensors say {value}")
    return config


def _table(translation: Translation, block: int) -> Tensor:
    """The bias table of a block. Raises `UserError` if it is missing or no matrix."""
    ours = f"blocks.{block}.attn.bias_table"
    if ours not in translation.tensors:
        raise UserError(f"the bias table of block {block} ({TABLE}) is missing")
    table = translation.tensors[ours]
    if table.ndim != 2:
        raise UserError(f"{translation.source(ours)} is {tuple(table.shape)}, and should have 2 dimensions")
    return table


def _window(translation: Translation, table: Tensor, video: bool) -> tuple[int, int]:
    """The length and the side of a window, from the rows of a bias table."""
    if video:
        window = window_of_table(len(table), VideoSwinConfig.window)
    else:
        side = (math.isqrt(len(table)) + 1) // 2
        window = (VideoSwinConfig.window_frames, side, side) if (2 * side - 1) ** 2 == len(table) else None
    if window is None:
        name = translation.source("blocks.0.attn.bias_table")
        raise UserError(f"{name} has {len(table)} rows, which are those of no window of equal height and width")
    return window[0], window[1]


def _inflate(tensors: dict[str, Tensor], config: VideoSwinConfig) -> dict[str, str]:
    """Make an image network one of pairs of frames, in place (released code); returns how each tensor was changed."""
    kernel = "patch_embed.proj.weight"
    tensors[kernel] = tensors[kernel].float()[:, :, None].repeat(1, 1, PAIR, 1, 1) / PAIR
    changes = {kernel: f"inflated: divided between {PAIR} frames"}
    times = 2 * config.window_frames - 1
    for name in [name for name in tensors if name.endswith("bias_table")]:
        changes[name] = f"inflated: repeated for {times} distances in time"
        tensors[name] = tensors[name].repeat(times, 1)
    return changes
