"""Which function is written down as a graph? Clips in, the probabilities of every chosen head out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cover.model.attention import Rotation, attend_over_time
from cover.model.lean import Groups
from cover.model.timesformer import Attention, Block, Head, TimeSformer

INPUT = "clips"


class Classifier(nn.Module):
    """`clips` uint8 `(B, frames, 3, size, size)`, RGB, to head name -> its probabilities, float32 `(B, classes)`.

    Takes over `model`, whose temporal branches are put into a form with fewer, constant matrices; the function stays the same.
    """

    def __init__(self, model: TimeSformer, heads: Sequence[Head], frames: int) -> None:
        super().__init__()
        self.model, self.chosen, self.frames = model.eval(), tuple(heads), frames
        model.set_merging(False)  # whether it pays is asked of the batch, which is not known
        for block in model.blocks if model.config.attention == "divided" else ():
            assert isinstance(block, Block)
            _simplify(block)

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        features = self.model.forward_features(self.model.normalize(clips.flatten(0, 1)), ((clips.shape[0], self.frames),))
        return {head.name: head.probabilities(self.model.heads[head.name](features)) for head in self.chosen}

    def example(self, batch: int) -> Tensor:
        """Clips of noise, the same ones each time."""
        shape = (batch, self.frames, 3, self.model.config.size, self.model.config.size)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trace(classifier: Classifier) -> ExportedProgram:
    """Its graph, for any number of clips from 1 on."""
    with torch.no_grad():
        return torch.export.export(classifier, (classifier.example(2),), dynamic_shapes={INPUT: {0: Dim("batch", min=1)}})


@contextmanager
def quiet() -> Iterator[None]:
    """What exporters narrate of their own workings is not for who exports."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _ApartAttention(nn.Module):
    """`Attention.across_frames` for one group, with query, key and value as layers of their own: parts cut out of one matrix are no
    constants in a graph, and what is no constant cannot be laid out or rounded beforehand."""

    def __init__(self, attention: Attention, proj: nn.Linear) -> None:
        super().__init__()
        self.heads, self.proj, self.drop = attention.heads, proj, nn.Identity()
        parts = zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in parts)

    def across_frames(self, x_FND: Tensor, groups: Groups, rotations: list[Rotation | None]) -> Tensor:
        (group,) = groups
        if group[1] == 1:
            return self.v(x_FND)
        q, k, v = (project(x_FND).unflatten(0, group) for project in (self.q, self.k, self.v))
        return attend_over_time(q, k, v, self.heads, rotations[0]).flatten(0, 1)


@torch.no_grad()
def _simplify(block: Block) -> None:
    """The temporal output projection and `temporal_fc`, between which nothing lies, become one matrix."""
    proj, last = block.temporal_attn.proj, block.temporal_fc
    weight = last.weight.double() @ proj.weight.double()
    bias = last.weight.double() @ proj.bias.double() + last.bias.double()
    block.add_module("temporal_attn", _ApartAttention(block.temporal_attn, _linear(weight, bias)))
    block.add_module("temporal_fc", nn.Identity())


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.load_state_dict({"weight": weight.float().contiguous().clone(), "bias": bias.float().clone()}, assign=True)
    return made
