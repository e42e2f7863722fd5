"""How much memory does a training step take on one device? The state that stays, and the fullest of three moments of a step.

A step is fullest where its backward pass begins (every activation, hardly a gradient), where that pass reaches the first block (one
block's activations, nearly every gradient), or at the update (every gradient and none of the rest). In between it moves in a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cover.errors import UserError
from cover.model.backbone import BackboneConfig, Groups
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cost import BFLOAT16, FLOAT32, activation_bytes, parameters, tokens

FRAGMENTS = 0.05  # of everything: what the allocator of a GPU holds and cannot hand out (assumed)
GATHERED = 4  # blocks under FSDP: the one at work and the next one's weights, a whole gradient and what is sent of it


@dataclass(frozen=True)
class Ways:
    """How a step is computed.

    `parts`: micro-batches. `means`: float32 numbers that the optimizer keeps for each trained one (AdamW 2, SGD with momentum 1).
    `average`: whether a moving average of the weights is kept. `untrained`: parameters that stay as they are. `shards`: devices that share
    weights, gradients and optimizer (FSDP), 1 where each holds all of them. `buckets`: gradients stay from step to step (DDP). `mask`:
    bytes of one place of a dropout mask (on a GPU 1, on a CPU those of the number that it is multiplied with).
    """

    checkpointing: bool = False
    bf16: bool = False
    parts: int = 1
    means: int = 2
    average: bool = False
    untrained: int = 0
    shards: int = 1
    buckets: bool = False
    mask: int = 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the fullest moment of a step. `working`: what the backward pass needs beside what the forward pass left."""

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


def step_memory(config: BackboneConfig, heads: Mapping[str, int], groups: Groups, size: int, ways: Ways) -> Memory:
    """Of one device that takes `groups` (samples, frames each) in a step, all micro-batches together, frames of `size` pixels."""
    if not isinstance(config, TimeSformerConfig):
        raise UserError(f"model.backbone: the memory of a {config.family} is not estimated")
    count = parameters(config, heads)
    trained = FLOAT32 * (count.total - ways.untrained)
    weights = FLOAT32 * count.total // ways.shards
    gathered = GATHERED * block_bytes(config) if ways.shards > 1 else 0
    fullest = max(_moments(config, groups, size, ways, trained), key=sum)
    pixels = sum(samples * frames for samples, frames in groups) * 3 * size**2
    return Memory(
        weights=weights,
        optimizer=ways.means * trained // ways.shards,
        average=trained // ways.shards if ways.average else 0,
        gradients=fullest[0],
        activations=fullest[1],
        working=fullest[2] + gathered,
        pixels=pixels * (2 if ways.parts > 1 else 1),  # a Pack is copied where it is cut up
    )


def _moments(config: TimeSformerConfig, groups: Groups, size: int, ways: Ways, trained: int) -> list[tuple[int, int, int]]:
    """(gradients, activations, working) where the backward pass begins, where it reaches the first block, and at the update."""
    micro = tuple((samples // ways.parts, frames) for samples, frames in groups)
    beside = sum(samples * frames for samples, frames in micro) * 3 * size**2 * FLOAT32 if ways.bf16 else 0  # what was cast
    masks = mask_bytes(config, micro, size, ways.mask)
    kept = activation_bytes(config, micro, size, ways.checkpointing, ways.bf16) + beside
    kept += masks if ways.checkpointing else config.depth * masks
    of_one = activation_bytes(replace(config, depth=1), micro, size, False, ways.bf16) + beside + masks
    working, block = backward_bytes(config, micro, size, ways.bf16), block_bytes(config) // ways.shards
    if ways.parts == 1:  # several micro-batches add up whole gradients, under FSDP too, and exchange them once
        trained //= ways.shards
    later = trained if ways.parts > 1 or ways.buckets else 0  # a second micro-batch finds the gradients of the first
    return [
        (later, kept, working),
        (max(later, trained - block), of_one, working),
        (trained, 0, block),
    ]


def backward_bytes(config: TimeSformerConfig, groups: Groups, size: int, bf16: bool = False) -> int:
    """What the backward pass holds at its fullest, in an MLP: GELU's output and its gradient, the stream's gradient, a weight's."""
    product = BFLOAT16 if bf16 else FLOAT32
    hidden = int(config.width * config.mlp_ratio)
    per_token = 2 * hidden * product + config.width * (FLOAT32 + (product if bf16 else 0))
    return tokens(config, groups, size) * per_token + hidden * config.width * FLOAT32


def mask_bytes(config: TimeSformerConfig, groups: Groups, size: int, each: int) -> int:
    """Where one block drops out: after every branch and inside the MLP."""
    places = config.width * ((3 if config.attention == "divided" else 2) + config.mlp_ratio)
    return round(tokens(config, groups, size) * places) * each if config.dropout else 0


def block_bytes(config: TimeSformerConfig) -> int:
    """The weights of one block in float32."""
    two, one = (parameters(replace(config, depth=depth)).body for depth in (2, 1))
    return FLOAT32 * (two - one)
