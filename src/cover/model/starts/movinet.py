"""The names of tensors in the published weights of MoViNet-pytorch: `modelA0_statedict_v3` to A2, and `_stream_`.

These files are bare state dicts of a port of the TensorFlow networks, for the 600 classes of Kinetics-600. Their 1x1
convolutions have one or two axes more than ours, all of length 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbones.movinet import VARIANTS, MoViNetConfig, Variant
from cover.model.batch_norm import MOMENTUM
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

MARKS = {"conv1.conv_1.conv3d.weight": False, "conv1.conv_1.conv2d.weight": True}  # tensor -> whether it is a stream
PREFIXES = ("module.", "model.")
SAMPLING = "dense@0.2"  # the published clips have 5 frames a second
NORM = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "updates": "num_batches_tracked",
}


def convert(checkpoint: ForeignCheckpoint, state: Mapping[str, Tensor], options: ImportOptions) -> Conversion | None:
    """A MoViNet from the tensors `state` of a checkpoint; None if they are of another family.

    No tensor depends on the side or the number of frames, so none is resized. Raises `UserError` if it is no network of
    this package.
    """
    files = without_prefixes(state, PREFIXES)
    stream = next((stream for mark, stream in MARKS.items() if mark in files), None)
    if stream is None:
        return None
    refuse_options(options, "a MoViNet")
    config = _config(files, stream, options)
    title = "MoViNet-pytorch"
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in config.build().state_dict().items()}
    wanted: dict[str, Names] = {ours: (theirs,) for ours, theirs in published_names(config).items()}
    check_strangers(files, {name for names in wanted.values() for name in names}, title)
    sources: dict[str, Names] = {ours: (files[name],) for ours, (name,) in wanted.items() if name in files}
    tensors = {ours: _fitted(ours, state[file], shapes.get(ours)) for ours, (file,) in sources.items()}
    convention = PixelStatistics(config.mean, config.std, "no file says it; MoViNet's networks read 0 to 1")
    return Conversion(
        form=named_format(title, video=True),
        translation=Translation(tensors, sources, 0, ()),
        config=config,
        wanted=wanted,
        pixels=pixels_beside(checkpoint) or convention,
        sampling=SAMPLING,
        views="1x1",
        notes=("the statistics of BatchNorm are frozen: model.statistics",),
    )


def _config(files: Mapping[str, str], stream: bool, options: ImportOptions) -> MoViNetConfig:
    """The configuration of the variant with the blocks in `files`."""
    blocks = {name.split(".")[1] for name in files if name.startswith("blocks.")}
    variant = next((variant for variant in VARIANTS if set(_block_names(variant)) == blocks), None)
    if variant is None:
        raise UserError(f"a MoViNet of {len(blocks)} blocks; {', '.join(map(str.upper, VARIANTS))} are read")
    size, frames = options.size or VARIANTS[variant].pixels, options.frames or MoViNetConfig.frames
    return MoViNetConfig(size=size, frames=frames, variant=variant, stream=stream, statistics="frozen")


def _fitted(name: str, tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """A tensor without the axes of length 1 that ours has not. `shape`: of ours, None for the classifier.

    A number of updates is at least the memory of a running statistic, so that it does not begin anew in training.
    """
    if name.endswith(".updates"):
        return tensor.float().clamp_min(round(1 / MOMENTUM))
    if shape is None:
        shape = tuple(tensor.shape[:2] if name.endswith("weight") else tensor.shape[:1])
    same = [side for side in tensor.shape if side > 1] == [side for side in shape if side > 1]
    return tensor.reshape(shape) if same else tensor


def _block_names(variant: Variant) -> list[str]:
    stages = VARIANTS[variant].stages
    return [f"b{stage}_l{block}" for stage, row in enumerate(stages) for block in range(len(row.blocks))]


def published_names(config: MoViNetConfig) -> dict[str, str]:
    """Our name -> the published name, for every tensor of a network and for `head.weight` and `head.bias`."""
    with torch.device("meta"):
        ours = config.build().state_dict().keys()
    return {name: theirs for name, theirs in _names(config) if name in ours or name.startswith(f"{HEAD}.")}


def _names(config: MoViNetConfig) -> Iterator[tuple[str, str]]:
    """The names of all parts that a block can have."""
    kind = "conv2d" if config.stream else "conv3d"

    def conv(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield f"{ours}.weight", f"{theirs}.{kind}.weight"

    def norm(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from ((f"{ours}.{part}", f"{theirs}.norm.{name}") for part, name in NORM.items())

    def conv_norm(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from conv(f"{ours}.conv", f"{theirs}.conv_1")
        yield from norm(f"{ours}.norm", f"{theirs}.conv_1")

    def linear(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from ((f"{ours}.{part}", f"{theirs}.conv_1.{kind}.{part}") for part in ("weight", "bias"))

    yield from conv_norm("stem", "conv1")
    kernels = [kernel for stage in VARIANTS[config.variant].stages for kernel in stage.blocks]
    for number, (name, (frames, _, _)) in enumerate(zip(_block_names(config.variant), kernels, strict=True)):
        ours, theirs = f"blocks.{number}", f"blocks.{name}"
        yield f"{ours}.alpha", f"{theirs}.alpha"
        yield from conv_norm(f"{ours}.expand", f"{theirs}.expand")
        if config.stream:
            for part, place in (("space", "conv_1"), ("time", "conv_2"))[: 2 if frames > 1 else 1]:
                yield from conv(f"{ours}.depthwise.{part}", f"{theirs}.deep.{place}")
                yield from norm(f"{ours}.depthwise.{part}_norm", f"{theirs}.deep.{place}")
        else:
            yield from conv_norm(f"{ours}.depthwise", f"{theirs}.deep")
        for part in ("fc1", "fc2"):
            yield from linear(f"{ours}.excite.{part}", f"{theirs}.se.{part}")
        yield from conv_norm(f"{ours}.project", f"{theirs}.project")
        yield from conv_norm(f"{ours}.shortcut.project", f"{theirs}.res.1")
    yield from conv_norm("last", "conv7")
    yield from linear("dense", "classifier.0")
    yield from linear(HEAD, "classifier.3")
