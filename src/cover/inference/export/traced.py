"""The function that is exported as a graph: clips in, the probabilities of every chosen head out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cover.model.cover import CoVeR
from cover.model.heads import Head

INPUT = "clips"


class Classifier(nn.Module):
    """`clips` uint8 `(B, frames, 3, size, size)`, RGB, to head name -> its probabilities, float32 `(B, classes)`.

    Takes over `model`, whose backbone is simplified for a graph (`Backbone.simplify`); the function stays the same.
    """

    def __init__(self, model: CoVeR, heads: Sequence[Head], frames: int) -> None:
        super().__init__()
        self.model, self.chosen, self.frames = model.eval(), tuple(heads), frames
        model.backbone.simplify()

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        features = self.model.forward_features(self.model.normalize(clips.flatten(0, 1)), ((clips.shape[0], self.frames),))
        return {head.name: head.probabilities(self.model.heads[head.name](features)) for head in self.chosen}

    def example(self, batch: int) -> Tensor:
        """Clips of noise, the same ones each time."""
        size = self.model.backbone.pixels.size
        shape = (batch, self.frames, 3, size, size)
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
