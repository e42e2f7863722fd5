"""Memory of a training step on one device: the permanent state, and the largest use during the step.

`cover.model.profile` records the forward and backward pass. This module adds the parts that follow from parameter
counts: optimizer state, average of the weights, permanent gradients (several micro-batches, DDP) and shards (FSDP).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cover.model.backbone import Groups
from cover.model.cover import CoVeR
from cover.model.profile import FLOAT32, Moment, count_parameters, largest_stage, trace_step

FRAGMENTS = 0.05  # fraction of all memory that the allocator of a GPU loses to fragmentation (assumed)
# Tensors of the size of a stage that FSDP has at once: the weights of the running stage and of the next, a whole
# gradient, and the buffer in which it is sent.
GATHERED = 4


@dataclass(frozen=True)
class StepOptions:
    """The settings of a step that its memory depends on.

    `optimizer_states`: float32 values of the optimizer for each trained parameter (2 for AdamW, 1 for SGD with
    momentum). `ema`: whether there is an average of the weights. `shards`: number of devices that share weights,
    gradients and optimizer state (FSDP); 1 if each device has all of them. `ddp`: gradients stay in buckets from step
    to step. `byte_masks`: dropout masks take one byte for each value, as on a GPU.
    """

    checkpointing: bool = False
    bf16: bool = False
    micro_batches: int = 1
    optimizer_states: int = 2
    ema: bool = False
    shards: int = 1
    ddp: bool = False
    byte_masks: bool = True


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device at the moment of a step with the largest memory use.

    `activations`: tensors of the forward pass. `working`: tensors of the backward pass, and gathered weights with FSDP.
    `pixels`: the uint8 frames of the Pack.
    """

    weights: int
    optimizer: int
    average: int
    gradients: int
    activations: int
    working: int
    pixels: int

    @property
    def tensors(self) -> int:
        """The bytes of all tensors, as the allocator counts them."""
        return sum(vars(self).values())

    @property
    def total(self) -> int:
        """The bytes of all tensors and of fragmentation."""
        return round(self.tensors * (1 + FRAGMENTS))


def step_memory(model: CoVeR, groups: Groups, size: int, options: StepOptions) -> StepMemory:
    """The memory of one device in a step.

    `model`: on the meta device; frozen parameters require no gradient. `groups`: (samples, frames of each sample) of
    the device, all micro-batches together. `size`: side of the frames in pixels.
    """
    count = count_parameters(model)
    trained = FLOAT32 * count.trained
    fullest = max(_moments(model, groups, size, options), key=lambda moment: sum(moment[1:]))
    gathered = GATHERED * FLOAT32 * largest_stage(model) if options.shards > 1 else 0
    pixels = sum(samples * frames for samples, frames in groups) * 3 * size**2
    return StepMemory(
        weights=FLOAT32 * count.total // options.shards,
        optimizer=options.optimizer_states * trained // options.shards,
        average=trained // options.shards if options.ema else 0,
        gradients=fullest.gradients,
        activations=fullest.activations,
        working=fullest.working + gathered,
        pixels=pixels * (2 if options.micro_batches > 1 else 1),  # splitting a Pack into micro-batches copies it
    )


def _moments(model: CoVeR, groups: Groups, size: int, options: StepOptions) -> Iterator[Moment]:
    """The moments of the last micro-batch, with all gradients in memory, and the moment of the update."""
    micro_batch = tuple((samples // options.micro_batches, frames) for samples, frames in groups)
    trace = trace_step(model, micro_batch, size, options.bf16, options.byte_masks)
    trained = FLOAT32 * count_parameters(model).trained
    # With several micro-batches, a device sums whole gradients and exchanges them once, also with FSDP.
    whole = options.micro_batches > 1 or options.ddp
    shards = options.shards if options.micro_batches == 1 else 1
    for moment in trace.with_checkpointing() if options.checkpointing else trace.moments:
        yield moment._replace(gradients=trained if whole else moment.gradients // shards)
    yield Moment(stage=0, gradients=trained // shards, activations=0, working=0)
