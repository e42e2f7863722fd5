"""Memory of a training step on one device: the state that stays, and the fullest moment of the step.

`cover.model.profile` follows the forward and backward pass. This module adds what follows from parameter counts:
optimizer state, the average of the weights, gradients that stay (several micro-batches, DDP), shards (FSDP).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cover.model.backbone import Groups
from cover.model.cover import CoVeR
from cover.model.profile import FLOAT32, Moment, count_parameters, largest_stage, trace_step

FRAGMENTS = 0.05  # of everything: what the allocator of a GPU holds and cannot hand out (assumed)
GATHERED = 4  # stages under FSDP: the one at work and the next one's weights, a whole gradient and what is sent of it


@dataclass(frozen=True)
class StepOptions:
    """How a step is computed.

    `optimizer_states`: float32 numbers that the optimizer keeps for each trained one (AdamW 2, SGD with momentum 1).
    `ema`: whether an average of the weights is kept. `shards`: devices that share weights, gradients and optimizer
    (FSDP), 1 where each holds all of them. `ddp`: gradients stay in buckets from step to step. `byte_masks`: dropout
    masks take one byte for each value, as on a GPU.
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
    """Bytes on one device at the fullest moment of a step.

    `activations`: what the forward pass made. `working`: what the backward pass made, and under FSDP gathered weights.
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
        """What all tensors take, by the allocator's own account."""
        return sum(vars(self).values())

    @property
    def total(self) -> int:
        """With what the allocator cannot hand out."""
        return round(self.tensors * (1 + FRAGMENTS))


def step_memory(model: CoVeR, groups: Groups, size: int, options: StepOptions) -> StepMemory:
    """Memory of one device that takes `groups` (samples, frames each) in a step, all micro-batches together.

    `model`: on the meta device; what it does not train requires no gradient. `size`: side of the frames in pixels.
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
        pixels=pixels * (2 if options.micro_batches > 1 else 1),  # a Pack is copied where it is cut up
    )


def _moments(model: CoVeR, groups: Groups, size: int, options: StepOptions) -> Iterator[Moment]:
    """The moments of the last micro-batch, with the gradients that are held at each, and the update."""
    micro_batch = tuple((samples // options.micro_batches, frames) for samples, frames in groups)
    trace = trace_step(model, micro_batch, size, options.bf16, options.byte_masks)
    trained = FLOAT32 * count_parameters(model).trained
    # Several micro-batches add up whole gradients, under FSDP too, and exchange them once.
    whole = options.micro_batches > 1 or options.ddp
    shards = options.shards if options.micro_batches == 1 else 1
    for moment in trace.with_checkpointing() if options.checkpointing else trace.moments:
        yield moment._replace(gradients=trained if whole else moment.gradients // shards)
    yield Moment(stage=0, gradients=trained // shards, activations=0, working=0)
