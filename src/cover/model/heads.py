"""Heads: the classifiers on top of a backbone, one for each data set or for several that share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

PREFIX = "heads."  # of the names of their parameters in a model


@dataclass(frozen=True)
class Head:
    """One classifier: its name and its classes in the order of its outputs.

    `loss`: `softmax` where a sample has one of the classes, `sigmoid` where it has any number of them. `serves`: the
    data sets whose classes it has, empty for the one of its own name. Raises ValueError on another loss.
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
        """The place of each of `classes` among its own; KeyError where it lacks one."""
        place = {name: number for number, name in enumerate(self.classes)}
        return [place[name] for name in classes]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits `(..., classes)` as a probability of each class; those of a softmax add up to 1."""
        return logits.float().softmax(-1) if self.loss == "softmax" else logits.float().sigmoid()


def head_of(parameter: str) -> str | None:
    """The head that a parameter of a model belongs to, by its name; None for one of the backbone."""
    return parameter.split(".")[1] if parameter.startswith(PREFIX) else None
