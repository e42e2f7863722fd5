"""Heads, the classifiers on top of a backbone. A head serves one data set, or several data sets share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

PREFIX = "heads."  # prefix of the names of their parameters in a model


@dataclass(frozen=True)
class Head:
    """One classifier: its name, and its class names in the order of its outputs.

    `loss`: `softmax` if a sample has exactly one of the classes, `sigmoid` if it has any number of them. `serves`: the
    data sets that it classifies; empty for a single data set with the name of the head. Raises ValueError for another
    loss.
    """

    name: str
    classes: tuple[str, ...]
    loss: Literal["softmax", "sigmoid"] = "softmax"
    serves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f'the loss of the head {self.name} is "{self.loss}", neither softmax nor sigmoid')

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that it classifies."""
        return self.serves or (self.name,)

    def places(self, classes: Iterable[str]) -> list[int]:
        """The index of each of `classes` in the outputs of the head. Raises KeyError for a class that it lacks."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [index[name] for name in classes]

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of each class, float32 `(..., classes)`, from logits. Those of a softmax sum to 1."""
        return logits.float().softmax(-1) if self.loss == "softmax" else logits.float().sigmoid()


def head_of(parameter: str) -> str | None:
    """The head of a parameter, from the name of the parameter in a model; None for a parameter of the backbone."""
    return parameter.split(".")[1] if parameter.startswith(PREFIX) else None
