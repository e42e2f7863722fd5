"""The names of tensors in the published weights of MoViNet-pytorch: `modelA0_statedict_v3` to A2, and `_stream_`.

These files are bare state dicts of a port of the TensorFlow networks, for the 600 classes of Kinetics-600. Their 1x1
convolutions have one or two axes more than ours, all of length 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from cover.errors import UserError
from cover.model.backbones.movinet import VARIANTS, MoViNetConfig, Variant
from cover.model.batch_norm import MOMENTUM
from cover.model.starts.formats import HEAD, ForeignFormat, Translation

MARKS = {"conv1.conv_1.conv3d.weight": False, "conv1.conv_1.conv2d.weight": True}  # tensor -> whether it is a stream
PREFIXES = ("module.", "model.")
FRAME_SECONDS = 0.2  # the published clips have 5 frames a second
NORM = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "running_mean",
    "running_var": "running_var",
    "updates": "num_batches_tracked",
}


def movinet_of(names: Collection[str]) -> tuple[ForeignFormat, MoViNetConfig] | None:
    """The format and the network of a checkpoint with these tensor names; None if it is no MoViNet.

    Raises `UserError` for a variant that this package does not have.
    """
    bare = {_bare(name) for name in names}
    stream = next((stream for mark, stream in MARKS.items() if mark in bare), None)
    if stream is None:
        return None
    blocks = {name.split(".")[1] for name in bare if name.startswith("blocks.")}
    variant = next((variant for variant in VARIANTS if set(_block_names(variant)) == blocks), None)
    if variant is None:
        raise UserError(f"a MoViNet of {len(blocks)} blocks; {', '.join(map(str.upper, VARIANTS))} are read")
    config = MoViNetConfig(size=VARIANTS[variant].pixels, variant=variant, stream=stream, statistics="frozen")
    mark = next(mark for mark, kind in MARKS.items() if kind == stream)
    return ForeignFormat("MoViNet-pytorch", mark, True, PREFIXES, dict(_tensors(config)), {}), config


def without_single_axes(translation: Translation, shapes: dict[str, tuple[int, ...]]) -> Translation:
    """The translation with tensors in `shapes` (our name -> our shape), where only axes of length 1 differ.

    The numbers of updates are at least the memory of a running statistic, so that it does not begin anew in training.
    """
    tensors = dict(translation.tensors)
    for name, tensor in tensors.items():
        shape = shapes.get(name, tuple(tensor.shape))
        if [side for side in tensor.shape if side > 1] == [side for side in shape if side > 1]:
            tensors[name] = tensor.reshape(shape)
        if name.endswith(".updates"):
            tensors[name] = tensors[name].clamp_min(round(1 / MOMENTUM))
    return replace(translation, tensors=tensors)


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _block_names(variant: Variant) -> list[str]:
    stages = VARIANTS[variant].stages
    return [f"b{stage}_l{block}" for stage, row in enumerate(stages) for block in range(len(row.blocks))]


def _tensors(config: MoViNetConfig) -> Iterator[tuple[str, str]]:
    """Our name -> their name, for every tensor of a network."""
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
