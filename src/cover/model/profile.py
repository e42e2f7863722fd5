"""Parameters, multiply-adds and step memory of any network, measured with tensors that have shapes but no values.

Multiply-adds come from torch's flop counter on the meta device. Memory comes from a whole forward and backward pass on
fake CPU tensors: a tracker records the creation and the release of every storage, so the figures follow the code. No
weights, no data and no training device are needed.

A network is called as `model(frames, groups)` with frames from `model.normalize`. It returns head name -> logits.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cover.errors import UserError
from cover.model.backbone import BackboneConfig, Groups
from cover.model.cover import CoVeR
from cover.model.heads import Head, head_of

MOST_CLASSES = 10**6  # largest number of classes of a head; a larger one is a typing error
FLOAT32 = 4  # bytes
FLOP_PER_MULTIPLY_ADD = 2
CPU = torch.device("cpu")


def on_meta(config: BackboneConfig, heads: Mapping[str, int]) -> CoVeR:
    """The network on the meta device, where tensors have shapes but no values.

    `heads`: head name -> number of classes. Raises `UserError` for a head with an impossible name or number of classes.
    """
    for name, classes in heads.items():
        if not 1 <= classes <= MOST_CLASSES:
            raise UserError(f"heads: {name}={classes}, but a head has 1 to {MOST_CLASSES:,} classes")
    try:
        with torch.device("meta"):
            return CoVeR(config, tuple(Head(name, ("",) * classes) for name, classes in heads.items()))
    except KeyError as error:  # torch raises it for a name that a module cannot have
        raise UserError(f"heads: no head can have this name: {error.args[0]}") from None


def pack_of(clips: int, frames: int, images: int) -> Groups:
    """The groups of a Pack of `clips` clips of `frames` frames and `images` images. Raises `UserError` if it is empty.

    A clip of one frame counts as an image.
    """
    if frames == 1:
        clips, images = 0, clips + images
    if clips + images == 0:
        raise UserError("a step of no clips and no images; give --batch or --images")
    return tuple(group for group in ((clips, frames), (images, 1)) if group[0])


# --- parameters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """The number of parameters of a network.

    `body`: in the backbone. `heads`: in all heads. `temporal`: the part of `body` that an image model does not have.
    `trained`: the part of `total` that requires a gradient.
    """

    body: int
    heads: int
    temporal: int
    trained: int

    @property
    def total(self) -> int:
        """Parameters of the backbone and of all heads."""
        return self.body + self.heads


def count_parameters(model: CoVeR) -> Parameters:
    """Count the parameters of a model on any device."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    heads = sum(size for name, size in sizes.items() if head_of(name) is not None)
    temporal = sum(sizes[name] for name in model.temporal_parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Parameters(sum(sizes.values()) - heads, heads, temporal, trained)


def largest_stage(model: CoVeR) -> int:
    """The number of parameters of the largest stage. FSDP gathers one stage at a time."""
    stages = model.backbone.stages()
    return max((sum(parameter.numel() for parameter in stage.parameters()) for stage in stages), default=0)


# --- multiply-adds ----------------------------------------------------------------------------------------------------


class ForwardCost(NamedTuple):
    """The cost of one forward pass over a Pack.

    `multiply_adds`: number of multiply-adds. `tokens`: tokens in the output of the last stage, or places of its feature
    map, over all frames.
    """

    multiply_adds: int
    tokens: int


@dataclass(frozen=True)
class _Structure:
    """What the cost of a network depends on. Networks of one structure are measured once in a process."""

    config: BackboneConfig
    modules: str
    parameters: tuple[tuple[torch.Size, bool], ...]  # shape, and whether it is trained
    model: CoVeR = field(compare=False)

    @classmethod
    def of(cls, model: CoVeR) -> _Structure:
        parameters = tuple((each.shape, each.requires_grad) for each in model.parameters())
        return cls(model.config, repr(model), parameters, model)


def forward_cost(model: CoVeR, groups: Groups, size: int, stages: int = 0) -> ForwardCost:
    """The cost of a forward pass of a network on the meta device (`on_meta`), with frames of `size` pixels.

    `stages`: the number of first stages that do not run, because their output is cached.

    It counts the multiply-adds of matrix products and convolutions, including the two products of attention. Papers
    print this number as FLOPs. A forward and a backward pass together cost three times as much, because each product
    has two gradients of the same cost. The count is for the published function: it ignores that a module may multiply
    two of its matrices first (`merging`).
    """
    return _forward_cost(_Structure.of(model), groups, size, stages)


@lru_cache(maxsize=64)
def _forward_cost(structure: _Structure, groups: Groups, size: int, stages: int) -> ForwardCost:
    # a copy, because hooks and `merging` change the module
    network = _copy_without_numbers(structure.model, "meta").eval()
    for module in network.modules():
        if hasattr(module, "merging"):
            module.merging = False  # type: ignore[assignment]
    outputs: list[Tensor] = []
    for stage in network.backbone.stages()[-1:]:
        stage.register_forward_hook(lambda _module, _arguments, output: outputs.extend(_tensors(output)))
    frames = torch.empty(sum(samples * length for samples, length in groups), 3, size, size, device="meta")
    # On the meta device, scaled_dot_product_attention becomes two plain products, which the counter can count.
    x = network.forward_prefix(frames, groups, stages) if stages else frames
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x, groups, stages=stages)
    # (F, N, D) of a transformer or (F, C, h, w) of a convolutional stage
    tokens = sum(output.numel() // output.shape[1 if output.ndim == 4 else -1] for output in outputs)
    return ForwardCost(counter.get_total_flops() // FLOP_PER_MULTIPLY_ADD, tokens)


# --- memory -----------------------------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """Bytes in memory at one moment of a step, without parameters and without the uint8 frames of the Pack.

    `stage`: the index of the running stage; after the last stage, the number of stages. `gradients`: gradients of
    parameters. `activations`: tensors that the forward pass created. `working`: other tensors that the backward pass
    created.
    """

    stage: int
    gradients: int
    activations: int
    working: int


@dataclass(frozen=True)
class StepTrace:
    """The memory of one forward and backward pass over time, without activation checkpointing.

    `forward`: bytes of activations at the end of the forward pass. `recomputed`: for each stage, the bytes that
    checkpointing would not store: all activations except the output of the stage. `moments`: one for each operation
    that allocates memory.
    """

    forward: int
    recomputed: tuple[int, ...]
    moments: tuple[Moment, ...]

    def activation_bytes(self, checkpointing: bool = False) -> int:
        """Bytes of activations that the backward pass needs at once."""
        if not checkpointing:
            return self.forward
        # The backward pass computes one stage at a time again: the largest of them counts.
        return self.forward - sum(self.recomputed) + max(self.recomputed, default=0)

    def with_checkpointing(self) -> tuple[Moment, ...]:
        """The moments if every stage is checkpointed: of the stages before the running one only outputs are stored."""
        dropped = [0, *accumulate(self.recomputed)]
        return tuple(moment._replace(activations=moment.activations - dropped[moment.stage]) for moment in self.moments)


def trace_step(
    model: CoVeR, groups: Groups, size: int, bf16: bool = False, byte_masks: bool = True, backward: bool = True
) -> StepTrace:
    """Record the memory of a training step's forward and backward pass.

    `model`: on the meta device (`on_meta`); frozen parameters get no gradient. `groups`: of one micro-batch, with
    frames of `size` pixels. `bf16`: with autocast to bfloat16. `byte_masks`: a dropout mask takes one byte for each
    value, as on a GPU; a CPU stores the float factors. `backward=False` stops after the forward pass and takes less
    than half the time.
    """
    return _trace_step(_Structure.of(model), groups, size, bf16, byte_masks, backward)


@lru_cache(maxsize=64)
def _trace_step(
    structure: _Structure, groups: Groups, size: int, bf16: bool, byte_masks: bool, backward: bool
) -> StepTrace:
    count = sum(samples * length for samples, length in groups)
    with FakeTensorMode():  # operations compute shapes and allocate nothing
        network = _copy_without_numbers(structure.model, "cpu").train()
        pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
        with _Tracker(network, byte_masks) as tracker:
            frames = network.normalize(pixels)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = network(frames, groups)
            tracker.end_forward()
            # Any scalar that depends on every logit has the same backward pass as the loss.
            if backward and any(scores.requires_grad for scores in logits.values()):
                torch.stack([scores.float().sum() for scores in logits.values()]).sum().backward()
                tracker.note_moment()
    return StepTrace(tracker.forward, tuple(tracker.recomputed), tuple(tracker.moments))


class _Tracker(TorchDispatchMode):
    """Counts the bytes of every storage that is created inside the context, from its creation to its release.

    Storages are identified by the address of their C++ object, since several tensors may share one storage. A storage
    belongs to one of three counters: `activations`, `working` or `gradients`.
    """

    def __init__(self, network: CoVeR, byte_masks: bool) -> None:
        super().__init__()
        self.activations = self.working = self.gradients = self.forward = 0
        self.stage, self.in_backward, self.byte_masks = 0, False, byte_masks
        self.moments: list[Moment] = []
        self.recomputed: list[int] = []
        # These dictionaries have the key of a storage as their key.
        self._kinds: dict[int, str] = {}  # the counter that it belongs to
        self._bytes: dict[int, int] = {}  # its size
        self._ends: dict[int, weakref.ref[torch.UntypedStorage]] = {}  # calls `_remove` at its release
        self._inside: dict[int, int] = {}  # the stage that created it, unless it is an output of the stage
        self._stage_count, self._in_stage = len(network.backbone.stages()), False
        # Parameters and buffers exist before the step and are counted elsewhere.
        self._ignored = {_key(tensor) for tensor in (*network.parameters(), *network.buffers())}
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note_gradient)
        for number, stage in enumerate(network.backbone.stages()):
            self._watch(stage, number)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # called many times by every operation; this answer is fast
            return CPU
        output = func(*args, **(kwargs or {}))  # storages that die during the call are removed by their `_ends`
        before = len(self._bytes)
        for tensor in _tensors(output):
            self._add(tensor)
        if self.byte_masks and func is torch.ops.aten.bernoulli_.float:  # a dropout mask on the CPU
            self._resize(_key(output), output.numel())
        if len(self._bytes) > before:
            self.note_moment()
        return output

    def note_moment(self) -> None:
        """Record the counters as they are now."""
        self.moments.append(Moment(self.stage, self.gradients, self.activations, self.working))

    def end_forward(self) -> None:
        """Note the activations that the backward pass needs. Autocast has released its copies of the weights."""
        self.in_backward, self.forward = True, self.activations
        # The inner activations of a stage that are still alive: checkpointing would compute them again.
        self.recomputed = [0] * self._stage_count
        for key, stage in self._inside.items():
            self.recomputed[stage] += self._bytes[key]

    def _add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, unless it is counted already: many operations return views."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._bytes or key in self._ignored:
            return
        self._kinds[key], self._bytes[key] = "working" if self.in_backward else "activations", 0
        if self._in_stage:
            self._inside[key] = self.stage
        self._resize(key, storage.nbytes())
        self._ends[key] = weakref.ref(storage, lambda _: self._remove(key))

    def _resize(self, key: int, count: int) -> None:
        kind = self._kinds[key]
        setattr(self, kind, getattr(self, kind) + count - self._bytes[key])
        self._bytes[key] = count

    def _remove(self, key: int) -> None:
        self._resize(key, 0)
        del self._kinds[key], self._bytes[key], self._ends[key]
        self._inside.pop(key, None)

    def _note_gradient(self, parameter: Tensor) -> None:
        """Move the gradient of a parameter from `working` to `gradients`: it stays until the end of the step."""
        assert parameter.grad is not None
        key = _key(parameter.grad)
        count = self._bytes[key]
        self._resize(key, 0)
        self._kinds[key] = "gradients"
        self._resize(key, count)

    def _watch(self, stage: nn.Module, number: int) -> None:
        """Register hooks that note the start of a stage's forward and backward pass, and its outputs."""

        def begin(_module: nn.Module, _arguments: Any) -> None:
            self.stage, self._in_stage = number, True

        def end(_module: nn.Module, _arguments: Any, output: Any) -> None:
            self.stage, self._in_stage = number + 1, False
            for tensor in _tensors(output):
                self._inside.pop(_key(tensor), None)  # checkpointing stores the outputs of a stage
                if tensor.requires_grad:  # its gradient is ready when the backward pass reaches the stage
                    tensor.register_hook(begin_backward)

        def begin_backward(_gradient: Tensor) -> None:
            self.stage = number

        stage.register_forward_pre_hook(begin)
        stage.register_forward_hook(end)


def _copy_without_numbers(model: CoVeR, device: str) -> CoVeR:
    """A copy of the module with empty tensors on `device`. Values of the original are not copied."""
    memo: dict[int, Any] = {}  # deepcopy takes these objects instead of copies
    for parameter in model.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return copy.deepcopy(model, memo)


def _tensors(output: Any) -> list[Tensor]:
    """All tensors in a nested structure."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int:
    """The identity of the storage of a tensor."""
    return tensor.untyped_storage()._cdata
