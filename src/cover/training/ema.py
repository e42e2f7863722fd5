"""What are the mean weights of a run? An exponential moving average, kept on the device beside the weights that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn


def decay_at(decay: float, step: int) -> float:
    """The decay of the update after `step` (from 0): at first (1 + step) / (10 + step), so that a short run's average forgets its start."""
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """The average of the parameters that are trained; the others do not move, so they are their own average.

    What an exact resume needs is `state()` and nothing else: the decay is a function of the step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begins at the model's present weights. `decay` in [0, 1)."""
        self.decay = decay
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._weights: list[Tensor] = list(trained.values())
        self._means = {name: parameter.detach().clone() for name, parameter in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the optimizer's `step` (from 0)."""
        torch._foreach_lerp_(list(self._means.values()), self._weights, 1 - decay_at(self.decay, step))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model holds the averages: for evaluation and for a release. Its own weights come back, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, mean in zip(self._weights, self._means.values(), strict=True):
            held = weight.detach().clone()  # one tensor at a time: no second copy of the model
            weight.copy_(mean)
            mean.copy_(held)

    def state(self) -> dict[str, Tensor]:
        """Parameter name -> its average: the very tensors, so that loading into them restores the average in place."""
        return self._means

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from another's `state()`. KeyError where a parameter is missing."""
        for name, mean in self._means.items():
            mean.copy_(state[name])


def averaged(ema: Ema | None) -> AbstractContextManager[None]:
    """Where there is an average, `Ema.in_place`; else nothing changes inside."""
    return ema.in_place() if ema else nullcontext()
