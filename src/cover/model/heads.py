"""Heads, the classifiers on top of a backbone. A head serves one data set, or several data sets share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

NOT_FINITE = "the network's output for it is not finite (NaN or infinity)"  # the problem with a file
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


def check_head(head: Head, key: str) -> None:
    """Raises ValueError, in one line that begins with `key`, if a model cannot have this head."""
    check_head_name(head.name, f"{key}.name")
    if not head.classes:
        raise ValueError(f"{key}.classes: it has no class")
    name, count = Counter(head.classes).most_common(1)[0]
    if count > 1:
        raise ValueError(f'{key}.classes: "{name}" is in it {count} times')


def check_head_name(name: str, key: str) -> None:
    """Raises ValueError if a text cannot name a head: the names of its parameters in a model contain it."""
    if not name or "." in name or not name.isprintable() or hasattr(nn.ModuleDict, name):
        raise ValueError(f'{key}: "{name}" cannot name a head')


def finite_samples(values: Tensor) -> Tensor:
    """Whether all values of each sample are finite, bool `(B,)`, from values `(B, ...)`."""
    return values.flatten(1).isfinite().all(1)


def head_of(parameter: str) -> str | None:
    """The head of a parameter, from the name of the parameter in a model; None for a parameter of the backbone."""
    return parameter.split(".")[1] if parameter.startswith(PREFIX) else None
