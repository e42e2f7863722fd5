"""The section `adapt` of a recipe: which parameters of the network of a start are trained."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from cover.console import say
from cover.errors import UserError, nearest
from cover.model.cover import BACKBONE, CoVeR
from cover.model.lora import LoraLinear, add_lora
from cover.model.profile import count_parameters
from cover.training.recipe import Adapt


def adapt(model: CoVeR, settings: Adapt, new: Iterable[str] = ()) -> None:
    """Freeze what is not trained, and add low-rank additions, in place.

    `new`: the parameters that the start does not have (`release.new_parameters`). Raises `UserError`, with the key.
    """
    new = frozenset(new)
    before = first_stages(model, settings.frozen_stages)
    if settings.method == "full":
        trained = frozenset(name for name, _ in model.named_parameters())
    else:
        trained = new | _named(model, settings.train)
        trained |= frozenset(name for name, _ in model.named_parameters() if not name.startswith(BACKBONE))
    if settings.lora:
        without = {name.removeprefix(BACKBONE) for name in trained | before}
        added = add_lora(model.backbone, settings.lora, without)
        trained |= {f"{BACKBONE}{name}" for name in added}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained and name not in before)


def first_stages(model: CoVeR, stages: int) -> frozenset[str]:
    """The parameters of the first stages and of all before them. Raises `UserError` if there are not so many stages."""
    most = len(model.backbone.stages())
    if stages > most:
        raise UserError(f"adapt.frozen_stages: {stages}, but this network has {most} stages")
    layers = model.backbone.layer_numbers() if stages else {}
    return frozenset(f"{BACKBONE}{name}" for name, layer in layers.items() if layer <= stages)


def _named(model: CoVeR, pattern: str) -> frozenset[str]:
    """The parameters that `adapt.train` names. Raises `UserError` for a pattern that names none."""
    if not pattern:
        return frozenset()
    names = [name for name, _ in model.named_parameters()]
    try:
        found = frozenset(name for name in names if re.search(pattern, name))
    except re.error as error:
        raise UserError(f'adapt.train: "{pattern}" is no regular expression: {error}') from None
    if not found:
        raise UserError(f'adapt.train: "{pattern}" finds no parameter{nearest(pattern, names)}')
    return found


def say_adapted(model: CoVeR, settings: Adapt, new: Container[str]) -> None:
    """Print in one line what is trained, unless that is all."""
    if settings == Adapt():
        return
    parts = []
    if lora := settings.lora:
        layers = sum(isinstance(module, LoraLinear) for module in model.modules())
        parts.append(f"additions of rank {lora.rank} to {layers} layers")
    if settings.frozen_stages:
        parts.append(f"the first {settings.frozen_stages} stages frozen")
    fresh = [name for name, parameter in model.named_parameters() if name in new and parameter.requires_grad]
    if fresh:
        parts.append(f"{len(fresh)} parameters that the start does not have")
    count = count_parameters(model)
    parts.append(f"{count.trained:,} of {count.total:,} numbers are trained")
    say(f"adapt: {settings.method}: {'; '.join(parts)}")
