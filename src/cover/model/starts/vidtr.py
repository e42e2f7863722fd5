"""Published checkpoints of VidTr: the names of gluonmm, and the inflation of its image ViT."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbones.vidtr import PRESETS, VidTrConfig
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import HEAD_WIDTH, ImportOptions, PixelStatistics, pixels_beside
from cover.model.starts.conversion import (
    Conversion,
    check_strangers,
    named_format,
    refuse_options,
    without_prefixes,
)
from cover.model.starts.formats import HEAD, Names, Translation

PREFIXES = ("module.", "model.")
MARK = "encoder.layers.0.self_attn.in_proj_weight"
PLACES = 14 * 14  # of the released networks with a class token; no tensor shows it
EVERY_LAYER = 16  # frames of a clip for which a VidTr adds its position in every layer (released code)
VIEWS = "10x3"
# frames of a clip -> frames of a 30 fps video from one frame of the clip to the next (8 x 8, 16 x 4, 32 x 2)
SPAN = 64
_LAYERS = {
    "norm1": "norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "norm2",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
}


def names(depth: int, grid: bool) -> dict[str, str]:
    """Our name -> the name in gluonmm, for every tensor of a network of `depth` layers.

    Both names of a position embedding with a class token are one tensor in gluonmm.
    """
    layers = {"patch_embed": "conv_stem", "norm": "encoder.norm", HEAD: "fc"}
    tokens = {"frame_tokens": "cls_s", "place_tokens": "cls_t"} if grid else {"cls_token": "cls"}
    single = {**tokens, "pos_embed": "pos_embedding"}
    if not grid:
        single["cls_pos"] = "pos_embedding"
    for layer in range(depth):
        block, theirs = f"blocks.{layer}.", f"encoder.layers.{layer}."
        layers |= {block + ours: theirs + name for ours, name in _LAYERS.items()}
        single |= {f"{block}attn.qkv.{kind}": f"{theirs}self_attn.in_proj_{kind}" for kind in ("weight", "bias")}
    for ours, theirs in layers.items():
        single |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return single


def convert(checkpoint: ForeignCheckpoint, state: Mapping[str, Tensor], options: ImportOptions) -> Conversion | None:
    """A VidTr from the tensors `state` of a checkpoint; None if they are of another family.

    The image ViT of gluonmm, whose position embedding has one frame, is inflated: its position and class token are
    repeated. Raises `UserError` if it is no network of this package.
    """
    files = without_prefixes(state, PREFIXES)
    if MARK not in files or "pos_embedding" not in files:
        return None
    grid = "cls_s" in files
    if not grid and _rows(state[files["pos_embedding"]]) == 1 + PLACES:
        return _inflated(checkpoint, state, files, options)
    title = "VidTr, gluonmm" if grid else "compact VidTr, gluonmm"
    translation, wanted = _translation(state, files, grid, title)
    config = _config(translation, grid, options)
    notes: tuple[str, ...] = ("the MLPs have ReLU, as in the networks that gluonmm builds",)
    if config.pool_layers:
        pools = f"by its {config.frames} frames it is {_compact(config.frames)}"
        notes += (f"{pools}: no tensor shows in which layers frames are dropped",)
    return _finished(checkpoint, title, True, translation, config, wanted, options, notes)


def _inflated(
    checkpoint: ForeignCheckpoint, state: Mapping[str, Tensor], files: Mapping[str, str], options: ImportOptions
) -> Conversion:
    """A VidTr from an image ViT under the names of gluonmm (released code)."""
    title, frames = "image ViT, gluonmm", options.frames or VidTrConfig.frames
    (cls,) = [name for name in ("cls", "cls_token") if name in files] or [""]
    if not cls:
        raise UserError("the tensor cls is missing")
    repeated = dict(state)
    position, token = repeated.pop(files["pos_embedding"]), repeated.pop(files[cls])
    repeated |= {
        "pos_embedding": position.repeat(1, frames + 1, 1),
        "cls_s": token.repeat(frames, 1, 1),
        "cls_t": token.repeat(1, 1 + PLACES, 1),
    }
    made = {name: name for name in ("pos_embedding", "cls_s", "cls_t")}
    rest = {name: file for name, file in files.items() if name not in ("pos_embedding", cls)}
    translation, wanted = _translation(repeated, rest | made, True, title)
    sources = {
        **translation.sources,
        "pos_embed": (files["pos_embedding"],),
        "frame_tokens": (files[cls],),
        "place_tokens": (files[cls],),
    }
    translation = Translation(translation.tensors, sources, translation.depth, ())
    config = _config(translation, True, options)
    changes = dict.fromkeys(("pos_embed", "frame_tokens", "place_tokens"), f"inflated: repeated for {frames} frames")
    note = (
        "an image ViT, inflated; VidTr has ReLU in its MLPs, so it is a start for training and computes nothing known"
    )
    return _finished(checkpoint, title, False, translation, config, wanted, options, (note,), changes)


def _finished(
    checkpoint: ForeignCheckpoint,
    title: str,
    video: bool,
    translation: Translation,
    config: VidTrConfig,
    wanted: Mapping[str, Names],
    options: ImportOptions,
    notes: tuple[str, ...],
    changes: Mapping[str, str] | None = None,
) -> Conversion:
    """The conversion at the size and length of the options."""
    refuse_options(options, title, allowed=("attention_heads",))
    patch, changes = config.patch, dict(changes or {})
    size, frames = options.size or config.size, options.frames or config.frames
    if size % patch:
        raise UserError(f"--size {size} is not a multiple of the patch, {patch} px")
    fitted = VidTrConfig(**{**vars(config), "size": size, "frames": frames})
    if fitted != config:
        with torch.device("meta"):
            network = fitted.build()
        before = {name: tuple(value.shape) for name, value in translation.tensors.items()}
        network.fit_embeddings(translation.tensors)
        for name, value in translation.tensors.items():
            if tuple(value.shape) != before[name]:
                changes[name] = f"from {before[name]}"
    pixels = pixels_beside(checkpoint) or PixelStatistics(
        config.mean, config.std, "no file says it; those of gluonmm, of ImageNet"
    )
    step = SPAN / config.frames / 30 * config.frames / frames
    sampling, views = (f"dense@{step:.4g}", VIEWS) if video else ("segments", "1x1")
    return Conversion(
        named_format(title, video), translation, fitted, wanted, pixels, sampling, views, changes, notes=notes
    )


def _translation(
    state: Mapping[str, Tensor], files: Mapping[str, str], grid: bool, title: str
) -> tuple[Translation, dict[str, Names]]:
    """The tensors under our names and in our shapes, and the names that the checkpoint should have."""
    layers = {int(match[1]) for name in files if (match := re.match(r"encoder\.layers\.(\d+)\.", name))}
    depth = max(layers) + 1
    if depth > len(files):
        raise UserError(f"a layer has the number {depth - 1}, and there are {len(files)} tensors in all")
    wanted = names(depth, grid)
    check_strangers(files, set(wanted.values()), title)
    for theirs in ("conv_stem.weight", "pos_embedding", *(("cls_t", "cls_s") if grid else ("cls",))):
        if theirs not in files:
            raise UserError(f"the tensor {theirs} is missing")
        if state[files[theirs]].ndim != (5 if theirs == "conv_stem.weight" else 3):
            raise UserError(f"{files[theirs]} is {tuple(state[files[theirs]].shape)}: no tensor of a VidTr")
    tensors = {ours: state[files[theirs]] for ours, theirs in wanted.items() if theirs in files}
    sources: dict[str, Names] = {ours: (files[theirs],) for ours, theirs in wanted.items() if theirs in files}
    shown: dict[str, Names] = {ours: (files.get(theirs, theirs),) for ours, theirs in wanted.items()}
    _shape(tensors, sources, grid)
    return Translation(tensors, sources, depth, ()), shown


def _shape(tensors: dict[str, Tensor], sources: Mapping[str, Names], grid: bool) -> None:
    """Bring the embeddings and the patch kernel into the shapes of our network, in place."""
    kernel, position = tensors["patch_embed.weight"], tensors["pos_embed"]
    if kernel.shape[1:3] != (3, 1) or kernel.shape[3] != kernel.shape[4]:
        raise UserError(f"{sources['patch_embed.weight'][0]} is {tuple(kernel.shape)}: this model embeds single frames")
    tensors["patch_embed.weight"] = kernel[:, :, 0]
    columns = tensors["place_tokens"].shape[1] if grid else PLACES
    if not grid:
        tensors["cls_pos"], position = position[:, :1], position[:, 1:]
    if position.shape[0] != 1 or position.shape[1] % columns:
        name, rows = sources["pos_embed"][0], _rows(tensors["pos_embed"])
        raise UserError(f"{name} has {rows} entries, which are not those of whole frames of {columns} places")
    tensors["pos_embed"] = position[0].unflatten(0, (-1, columns))
    if grid:
        tensors["frame_tokens"] = tensors["frame_tokens"].transpose(0, 1)


def _rows(position: Tensor) -> int:
    """The number of entries of a position embedding; 0 if it is none."""
    return position.shape[1] if position.ndim == 3 else 0


def _config(translation: Translation, grid: bool, options: ImportOptions) -> VidTrConfig:
    """The configuration, from the shapes of the tensors."""
    tensors = translation.tensors
    width, _, patch, _ = tensors["patch_embed.weight"].shape
    rows, columns = tensors["pos_embed"].shape[:2]
    places, frames = (columns - 1, rows - 1) if grid else (columns, rows)
    side = math.isqrt(places)
    if side * side != places or not frames:
        raise UserError(f"{translation.source('pos_embed')} is of {places} places and {frames} frames: no square")
    heads = options.attention_heads or width // HEAD_WIDTH
    if not heads or width % heads:
        raise UserError(f"--attention-heads: a width of {width} does not divide into {heads} heads")
    fc1 = tensors.get("blocks.0.mlp.fc1.weight")
    pools = {} if grid else {key: PRESETS[_preset(frames)][key] for key in ("tokens", "pool_layers", "pool_frames")}
    return VidTrConfig(
        size=side * patch,
        frames=frames,
        width=width,
        depth=translation.depth,
        attention_heads=heads,
        patch=patch,
        mlp_ratio=fc1.shape[0] / width if fc1 is not None and fc1.ndim == 2 else VidTrConfig.mlp_ratio,
        positions="every" if grid and frames == EVERY_LAYER else "first",
        **pools,
    )


def _preset(frames: int) -> str:
    """The published compact network with clips of this many frames."""
    presets = {PRESETS[name]["frames"]: name for name in ("C-S", "C-M")}
    if frames not in presets:
        raise UserError(
            f"a compact VidTr for {frames} frames: known are {_compact(8)} and {_compact(16)}, of 8 and 16, and no "
            "tensor shows in which layers others drop frames"
        )
    return presets[frames]


def _compact(frames: int) -> str:
    return {8: "C-VidTr-S", 16: "C-VidTr-M"}[frames]
