"""What does a network cost? Its parameters, multiply-adds and the memory of a training step, without building or running it.

Parameters are counted on the module itself, made on the meta device. Multiply-adds are those of its matrix products, the convolution
among them (what papers print as FLOPs); sums, norms, softmax and GELU are left out, as everybody leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from cover.errors import UserError
from cover.model.lean import Groups
from cover.model.timesformer import MERGE_TOKENS, ConvStem, Head, ModelConfig, TimeSformer

MOST_CLASSES = 10**6  # of one head; more is a typing error
FLOAT32, BFLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class Parameters:
    """How many numbers are learned. `temporal` is the part of `body` that an image ViT does not have."""

    body: int
    heads: int
    temporal: int

    @property
    def total(self) -> int:
        return self.body + self.heads


def parameters(config: ModelConfig, heads: Mapping[str, int] | None = None) -> Parameters:
    """The parameters of a network with `heads`, name -> classes. Raises `UserError` on a head that cannot be."""
    model = on_meta(config, heads or {})
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    of_heads = sum(size for name, size in sizes.items() if name.startswith("heads."))
    temporal = sum(size for name, size in sizes.items() if model.is_temporal(name) and not name.startswith("heads."))
    return Parameters(sum(sizes.values()) - of_heads, of_heads, temporal)


def on_meta(config: ModelConfig, heads: Mapping[str, int]) -> TimeSformer:
    """The network without any weights, for its shapes and names. Raises `UserError` on a head that cannot be."""
    for name, classes in heads.items():
        if not 1 <= classes <= MOST_CLASSES:
            raise UserError(f"heads: {name}={classes}, but a head has 1 to {MOST_CLASSES:,} classes")
    try:
        with torch.device("meta"):
            return TimeSformer(config, tuple(Head(name, ("",) * classes) for name, classes in heads.items()))
    except KeyError as error:  # what torch says of a name that it cannot give to a module
        raise UserError(f"heads: no head can have this name: {error.args[0]}") from None


def pack_of(clips: int, frames: int, images: int) -> Groups:
    """The layout of a Pack; a clip of one frame is an image. Raises `UserError` on an empty one."""
    if frames == 1:
        clips, images = 0, clips + images
    if clips + images == 0:
        raise UserError("a step of no clips and no images; give --batch or --images")
    return tuple(group for group in ((clips, frames), (images, 1)) if group[0])


def tokens(config: ModelConfig, groups: Groups, size: int) -> int:
    """Tokens that every layer works on, frames of `size` pixels: each frame has its patches and a class token."""
    return _frames(groups) * (1 + _patches(config, size))


def multiply_adds(config: ModelConfig, groups: Groups, size: int, classes: int = 0) -> int:
    """Multiply-adds of one forward pass over a Pack of `groups`, frames of `size` pixels, heads of `classes` in all.

    A forward and a backward pass are three times as many: each product has two gradients of its own size. Counted is the published
    function, product by product; where the temporal output projection and `temporal_fc` are merged, about 6 % fewer are computed.
    """
    embedding = _frames(groups) * _patch_embedding(config, size)
    block = _projections(config, groups, size) + _mixing(config, groups, size)
    return embedding + config.depth * block + sum(samples for samples, _ in groups) * config.width * classes


def _patch_embedding(config: ModelConfig, size: int) -> int:
    """The convolutions that turn one frame into patch tokens, each as (weights) x (places of its output)."""
    if config.patch_embed == "linear":
        return _patches(config, size) * 3 * config.patch**2 * config.width
    sides = ((layer, size // 2 ** (step + 1)) for step, layer in enumerate(_stem(config)))
    return sum(layer.weight.numel() * max(side, size // config.patch) ** 2 for layer, side in sides)


def _stem(config: ModelConfig) -> list[nn.Conv2d]:
    with torch.device("meta"):
        return [layer for layer in ConvStem(config.width, config.patch) if isinstance(layer, nn.Conv2d)]


def _projections(config: ModelConfig, groups: Groups, size: int) -> int:
    """Linear layers of a block: so many width x width matrices for each token."""
    clips, images = (tokens(config, part, size) for part in _clips_and_images(groups))
    square, hidden = config.width**2, int(config.width * config.mlp_ratio)
    spatial_and_mlp = (clips + images) * (4 * square + 2 * config.width * hidden)
    if config.attention != "divided":
        return spatial_and_mlp
    # An image has one key and so weight 1: its temporal branch is the value and output projections and temporal_fc.
    of_images = 3 * images if config.image_temporal == "attend" else 0
    return spatial_and_mlp + (5 * clips + of_images) * square


def _mixing(config: ModelConfig, groups: Groups, size: int) -> int:
    """The two products of each attention of a block: queries with keys, weights with values."""
    patches, pairs = _patches(config, size), 0
    for samples, frames in groups:
        if config.attention == "joint":
            pairs += samples * (1 + frames * patches) ** 2
            continue
        pairs += samples * frames * (1 + patches) ** 2
        if config.attention == "divided" and frames > 1:
            pairs += samples * (1 + patches) * frames**2
    return 2 * pairs * config.width


def activation_bytes(config: ModelConfig, groups: Groups, size: int, checkpointing: bool = False, bf16: bool = False) -> int:
    """Bytes that the forward pass of a training step leaves for its backward pass, parameters left out, no dropout.

    `bf16`: under autocast, where the copies of the weights count too. `checkpointing`: the inputs of all blocks, and one block at the
    moment when it is computed again. What a backward pass itself needs is not in it.
    """
    product = BFLOAT16 if bf16 else FLOAT32
    frames, samples = _frames(groups), sum(samples for samples, _ in groups)
    ends = frames * 3 * size**2 * product + samples * config.width * (FLOAT32 + product)  # pixels; the last norm and the heads
    if config.patch_embed == "conv":
        ends += _kept_by_stem(config, frames, size, product)
    block = _kept_by_block(config, groups, size, product)
    if bf16:
        ends += 3 * config.patch**2 * config.width * BFLOAT16
        block += _copied_weights(config, groups)
    if not checkpointing:
        return ends + config.depth * block
    stream = tokens(config, groups, size) * config.width * FLOAT32  # a block's input, which the block counts as its own
    return ends + (config.depth - 1) * stream + block


def _kept_by_stem(config: ModelConfig, frames: int, size: int, product: int) -> int:
    """Three tensors of each convolution but the last: what enters its GroupNorm, what enters GELU, and what leaves it."""
    places = (layer.out_channels * (size // 2 ** (step + 1)) ** 2 for step, layer in enumerate(_stem(config)[:-1]))
    return 3 * product * frames * sum(places)


def _kept_by_block(config: ModelConfig, groups: Groups, size: int, product: int) -> int:
    """What each branch of a block keeps. LayerNorm: its input and statistics in float32, its output as the next layer's input."""
    width, every = config.width, tokens(config, groups, size)
    norm = width * (FLOAT32 + product) + 2 * FLOAT32
    scale = width * product if config.layer_scale else 0
    hidden = int(width * config.mlp_ratio) * product * (2 if config.dropout else 1)  # GELU's output is made again, but for its dropout
    mlp = every * (norm + hidden + scale)
    spatial = every * (norm + scale) + _kept_by_spatial_mixing(config, groups, size, product)
    if config.attention != "divided":
        return spatial + mlp
    clips, images = (tokens(config, part, size) for part in _clips_and_images(groups))
    if config.image_temporal == "skip":
        groups, cut_off = tuple(group for group in groups if group[1] > 1), images * width * FLOAT32 if clips else 0
        temporal = clips * (norm + scale) + cut_off  # images are cut off the tensor that the norm keeps
    else:
        temporal = every * (norm + scale)
    return temporal + _kept_by_temporal_mixing(config, groups, size, product) + spatial + mlp


def _kept_by_spatial_mixing(config: ModelConfig, groups: Groups, size: int, product: int) -> int:
    """Query, key, value and the fused kernel's output, which enters the output projection, and the logarithms of the softmax's sums."""
    if config.attention != "joint":
        return tokens(config, groups, size) * (4 * config.width * product + config.attention_heads * FLOAT32)
    patches = _patches(config, size)
    once = sum(samples * (1 + frames * patches) for samples, frames in groups)
    spread = tokens(config, groups, size) * config.width * product  # the class token back in every frame
    return spread + once * (4 * config.width * product + config.attention_heads * FLOAT32)


def _kept_by_temporal_mixing(config: ModelConfig, groups: Groups, size: int, product: int) -> int:
    """Values for every token; for clips query, key, output and sums; a copy where groups are joined; what enters `temporal_fc`.

    Where the output projection and `temporal_fc` are merged, their product is kept in place of what passes between them.
    """
    width, every = config.width * product, tokens(config, groups, size)
    clips = tokens(config, _clips_and_images(groups)[0], size)
    joined = every * width if len(groups) > 1 else 0
    merged = every >= MERGE_TOKENS * config.width and not config.dropout
    between = (config.width * width if merged else every * width) if groups else 0
    return every * width + between + clips * (3 * width + config.attention_heads * FLOAT32) + joined


def _copied_weights(config: ModelConfig, groups: Groups) -> int:
    """The bf16 copies of a block's matrices that autocast makes for a step."""
    square, hidden = config.width**2, int(config.width * config.mlp_ratio)
    mlp = config.width * hidden * (2 if config.dropout else 1)  # the second layer keeps its own weights where GELU is made again
    temporal, (clips, _) = 0, _clips_and_images(groups)
    if config.attention == "divided" and (clips or config.image_temporal == "attend"):
        temporal = 5 if clips else 3  # images make no queries and keys
    return BFLOAT16 * ((4 + temporal) * square + mlp)


def _clips_and_images(groups: Groups) -> tuple[Groups, Groups]:
    return tuple(group for group in groups if group[1] > 1), tuple(group for group in groups if group[1] == 1)


def _frames(groups: Groups) -> int:
    return sum(samples * frames for samples, frames in groups)


def _patches(config: ModelConfig, size: int) -> int:
    return (size // config.patch) ** 2
