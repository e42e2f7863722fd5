"""Low-rank adaptation (LoRA, Hu et al., 2021): frozen linear layers with a trained addition of low rank.

The weight of an adapted layer is W + (alpha / rank) B A. W stays as it is, A starts at random and B at zero, so an
adapted network begins as the network that it comes from. `merged` makes the plain network of it, under the plain names.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch.nn.functional as fn
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbone import Backbone

Targets = Literal["attention", "mlp", "both"]


@dataclass(frozen=True)
class Lora:
    """`rank` of the additions, their factor `alpha` / rank, and the projections that get one."""

    rank: int = 8
    alpha: float = 16.0
    targets: Targets = "attention"


class LoraLinear(nn.Linear):
    """A frozen linear layer with an addition of low rank. `weight` is the sum of both.

    `lora_a`: `(rank, inputs)`. `lora_b`: `(outputs, rank)`.
    """

    def __init__(self, linear: nn.Linear, lora: Lora) -> None:
        nn.Module.__init__(self)  # not that of Linear, which would make a second weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # The frozen matrix has its name in the state of the network, behind the property of the same name.
        self._parameters["weight"] = cast(nn.Parameter, linear.weight)
        self.bias = linear.bias
        self.scale = lora.alpha / lora.rank
        self.lora_a = nn.Parameter(linear.weight.new_empty(lora.rank, linear.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(linear.out_features, lora.rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))  # as the released code

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The sum, for code that reads the matrix and does not call the layer."""
        return self._frozen() + self.scale * (self.lora_b @ self.lora_a)

    def forward(self, x: Tensor) -> Tensor:
        # Two thin products: the gradient of the whole matrix, a third of a training step, is never computed.
        return fn.linear(x, self._frozen(), self.bias) + self.scale * fn.linear(fn.linear(x, self.lora_a), self.lora_b)

    def _frozen(self) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None
        return weight


def add_lora(backbone: Backbone, lora: Lora, without: Container[str] = ()) -> list[str]:
    """Adapt the projections of a network in place; returns the names of the new parameters.

    `without`: names of parameters; a layer with such a weight stays as it is. Raises `UserError` if no layer is left,
    or if the family has no projections.
    """
    projections = backbone.projections()
    if not projections:
        raise UserError(
            f"adapt.method: lora: a {backbone.config.family} network has no projections of attention or MLPs;"
            " use full or probe"
        )
    kinds = ("attention", "mlp") if lora.targets == "both" else (lora.targets,)
    wanted = {id(linear) for kind in kinds for linear in projections[kind]}
    places = [
        name
        for name, module in backbone.named_modules()
        if id(module) in wanted and f"{name}.weight" not in without and isinstance(module, nn.Linear)
    ]
    if not places:
        raise UserError("adapt.method: lora: all its layers are frozen or new; lower adapt.frozen_stages, or use full")
    for name in places:
        linear = backbone.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        backbone.set_submodule(name, LoraLinear(linear, lora))
    return [f"{name}.lora_{factor}" for name in places for factor in "ab"]


def merged(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network with every addition of low rank added to its matrix: that of the plain network."""
    plain = dict(state)
    for name, module in network.named_modules():
        if isinstance(module, LoraLinear) and f"{name}.lora_a" in plain:  # a rank without the whole state has none
            a, b = (plain.pop(f"{name}.lora_{factor}") for factor in "ab")
            plain[f"{name}.weight"] = plain[f"{name}.weight"] + module.scale * (b @ a)
    return plain
