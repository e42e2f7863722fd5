"""Parameters, multiply-adds and step memory of any network, from running it on tensors that have shapes but no numbers.

Multiply-adds come from torch's flop counter on the meta device. Memory comes from a whole forward and backward pass on
fake CPU tensors: every storage is followed from its creation to its end, so the figures follow the code. Nothing here
needs weights, data or the device that will train.

A network is called as `model(frames, groups)` with frames from `model.normalize`, and returns head name -> logits.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
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

MOST_CLASSES = 10**6  # of one head; more is a typing error
FLOAT32 = 4  # bytes
FLOP_PER_MULTIPLY_ADD = 2
CPU = torch.device("cpu")


def on_meta(config: BackboneConfig, heads: Mapping[str, int]) -> CoVeR:
    """The network on the meta device: shapes and names without numbers. Raises `UserError` on a head that cannot be."""
    for name, classes in heads.items():
        if not 1 <= classes <= MOST_CLASSES:
            raise UserError(f"heads: {name}={classes}, but a head has 1 to {MOST_CLASSES:,} classes")
    try:
        with torch.device("meta"):
            return CoVeR(config, tuple(Head(name, ("",) * classes) for name, classes in heads.items()))
    except KeyError as error:  # what torch says of a name that it cannot give to a module
        raise UserError(f"heads: no head can have this name: {error.args[0]}") from None


def pack_of(clips: int, frames: int, images: int) -> Groups:
    """The layout of a Pack; a clip of one frame is an image. Raises `UserError` on an empty one."""
    if frames == 1:
        clips, images = 0, clips + images
    if clips + images == 0:
        raise UserError("a step of no clips and no images; give --batch or --images")
    return tuple(group for group in ((clips, frames), (images, 1)) if group[0])


# --- parameters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """How many numbers a network has. `temporal`: the part of `body` that exists for time alone. `trained`: the part of
    all that requires a gradient."""

    body: int
    heads: int
    temporal: int
    trained: int

    @property
    def total(self) -> int:
        return self.body + self.heads


def count_parameters(model: CoVeR) -> Parameters:
    """Counted on the module itself, on any device."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    heads = sum(size for name, size in sizes.items() if head_of(name) is not None)
    temporal = sum(sizes[name] for name in model.temporal_parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Parameters(sum(sizes.values()) - heads, heads, temporal, trained)


def largest_stage(model: CoVeR) -> int:
    """Parameters of the largest stage: the unit that FSDP gathers."""
    return max(
        (sum(parameter.numel() for parameter in stage.parameters()) for stage in model.backbone.stages()), default=0
    )


# --- multiply-adds ----------------------------------------------------------------------------------------------------


class ForwardCost(NamedTuple):
    """One forward pass over a Pack: multiply-adds, and the tokens (or places of the feature map) that the last stage
    gives.
    """

    multiply_adds: int
    tokens: int


@lru_cache(maxsize=64)
def forward_cost(model: CoVeR, groups: Groups, size: int) -> ForwardCost:
    """Cost of a forward pass of a network on the meta device (`on_meta`), frames of `size` pixels.

    Multiply-adds are those of matrix products and convolutions, the attention's two among them (what papers print as
    FLOPs). A forward and a backward pass are three times as many: each product has two gradients of its own size. The
    published function is counted, product by product: a module that may multiply two matrices into one beforehand
    (`merging`) is counted without that.
    """
    network = _copy_without_numbers(model, "meta").eval()
    for module in network.modules():
        if hasattr(module, "merging"):
            module.merging = False  # type: ignore[assignment]
    outputs: list[Tensor] = []
    for stage in network.backbone.stages()[-1:]:
        stage.register_forward_hook(lambda _module, _arguments, output: outputs.extend(_tensors(output)))
    frames = torch.empty(sum(samples * length for samples, length in groups), 3, size, size, device="meta")
    # On the meta device scaled_dot_product_attention becomes two plain products, which the counter knows.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(frames, groups)
    # (F, N, D) of a transformer or (F, C, h, w) of a convolutional stage
    tokens = sum(output.numel() // output.shape[1 if output.ndim == 4 else -1] for output in outputs)
    return ForwardCost(counter.get_total_flops() // FLOP_PER_MULTIPLY_ADD, tokens)


# --- memory -----------------------------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """Bytes at one moment of a step, parameters and the Pack's uint8 frames left out.

    `stage`: the stage at work, from 0; behind the last one, the number of stages. `activations`: what the forward pass
    made. `working`: what the backward pass made and has not yet added to `gradients`.
    """

    stage: int
    gradients: int
    activations: int
    working: int


@dataclass(frozen=True)
class StepTrace:
    """What one forward and backward pass holds in memory, moment by moment, when no stage is checkpointed.

    `forward`: bytes of activations where the forward pass ends. `recomputed`: for each stage, the bytes that
    checkpointing does not keep: all but its output. `moments`: one for each operation that takes memory.
    """

    forward: int
    recomputed: tuple[int, ...]
    moments: tuple[Moment, ...]

    def activation_bytes(self, checkpointing: bool = False) -> int:
        """What the forward pass leaves for the backward pass; with `checkpointing`, one stage computed again included."""
        if not checkpointing:
            return self.forward
        return self.forward - sum(self.recomputed) + max(self.recomputed, default=0)

    def with_checkpointing(self) -> tuple[Moment, ...]:
        """The moments when every stage is checkpointed: stages before the one at work keep their outputs alone."""
        dropped = [0, *accumulate(self.recomputed)]
        return tuple(moment._replace(activations=moment.activations - dropped[moment.stage]) for moment in self.moments)


@lru_cache(maxsize=64)
def trace_step(
    model: CoVeR, groups: Groups, size: int, bf16: bool = False, byte_masks: bool = True, backward: bool = True
) -> StepTrace:
    """Follow a training step's forward and backward pass through memory.

    `model`: on the meta device (`on_meta`); what requires no gradient gets none. `groups`: of one micro-batch, frames
    of `size` pixels. `bf16`: under autocast. `byte_masks`: dropout masks take one byte for each value, as on a GPU; a
    CPU keeps the factors themselves. `backward=False` stops after the forward pass, in less than half the time.
    """
    count = sum(samples * length for samples, length in groups)
    with FakeTensorMode():
        network = _copy_without_numbers(model, "cpu").train()
        pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
        with _Tracker(network, byte_masks) as tracker:
            frames = network.normalize(pixels)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = network(frames, groups)
            tracker.end_forward()
            if backward and any(scores.requires_grad for scores in logits.values()):
                torch.stack([scores.float().sum() for scores in logits.values()]).sum().backward()
                tracker.note_moment()
    return StepTrace(tracker.forward, tuple(tracker.recomputed), tuple(tracker.moments))


class _Tracker(TorchDispatchMode):
    """Follows every storage that is created inside, from the operation that makes it to its end."""

    def __init__(self, network: CoVeR, byte_masks: bool) -> None:
        super().__init__()
        self.activations = self.working = self.gradients = self.forward = 0
        self.stage, self.in_backward, self.byte_masks = 0, False, byte_masks
        self.moments: list[Moment] = []
        self.recomputed: list[int] = []
        # For each storage: the counter that it is in, its size, its end, and the stage that made it and does not hand
        # it on.
        self._kinds: dict[int, str] = {}
        self._bytes: dict[int, int] = {}
        self._ends: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._inside: dict[int, int] = {}
        self._stage_count, self._in_stage = len(network.backbone.stages()), False
        self._ignored = {_key(tensor) for tensor in (*network.parameters(), *network.buffers())}
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note_gradient)
        for number, stage in enumerate(network.backbone.stages()):
            self._watch(stage, number)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked for many times in every operation
            return CPU
        output = func(*args, **(kwargs or {}))
        before = len(self._bytes)
        for tensor in _tensors(output):
            self._add(tensor)
        if self.byte_masks and func is torch.ops.aten.bernoulli_.float:
            self._resize(_key(output), output.numel())
        if len(self._bytes) > before:
            self.note_moment()
        return output

    def note_moment(self) -> None:
        self.moments.append(Moment(self.stage, self.gradients, self.activations, self.working))

    def end_forward(self) -> None:
        """What is alive here stays for the backward pass; copies of weights that autocast kept are gone."""
        self.in_backward, self.forward = True, self.activations
        self.recomputed = [0] * self._stage_count
        for key, stage in self._inside.items():
            self.recomputed[stage] += self._bytes[key]

    def _add(self, tensor: Tensor) -> None:
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
        """What the backward pass has made for a parameter stays from here on."""
        assert parameter.grad is not None
        key = _key(parameter.grad)
        count = self._bytes[key]
        self._resize(key, 0)
        self._kinds[key] = "gradients"
        self._resize(key, count)

    def _watch(self, stage: nn.Module, number: int) -> None:
        """Learn when a stage begins its forward and its backward pass, and what it hands on."""

        def begin(_module: nn.Module, _arguments: Any) -> None:
            self.stage, self._in_stage = number, True

        def end(_module: nn.Module, _arguments: Any, output: Any) -> None:
            self.stage, self._in_stage = number + 1, False
            for tensor in _tensors(output):
                self._inside.pop(_key(tensor), None)
                if tensor.requires_grad:
                    tensor.register_hook(begin_backward)

        def begin_backward(_gradient: Tensor) -> None:
            self.stage = number

        stage.register_forward_pre_hook(begin)
        stage.register_forward_hook(end)


def _copy_without_numbers(model: CoVeR, device: str) -> CoVeR:
    """The same module with empty tensors on `device`; no number of the original is copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return copy.deepcopy(model, memo)


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
