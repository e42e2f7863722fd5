"""At which rate and decay does each parameter move, and which stay as they are?

The rate of a parameter is the recipe's, times what its place says (`layer_decay` on what comes from an image model, `head_lr` on heads),
times what its pattern says. The first pattern that finds a parameter decides.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

from torch import nn

from cover.console import say
from cover.errors import UserError, nearest
from cover.mixture.dataset import retained_heads
from cover.model.cover import CoVeR
from cover.model.heads import head_of
from cover.training.recipe import Optimizer, Pattern

NAMES_SHOWN = 3


def matches(model: CoVeR, patterns: Mapping[str, Pattern]) -> dict[str, list[str]]:
    """Pattern -> the names of the parameters that it decides about.

    Raises `UserError` for a pattern that is no regular expression, finds nothing, or finds only what earlier ones decide.
    """
    names = [name for name, _ in model.named_parameters()]
    owner = {name: next((pattern for pattern in patterns if _search(pattern, name)), None) for name in names}
    found = {pattern: [name for name in names if owner[name] == pattern] for pattern in patterns}
    for pattern, mine in found.items():
        if mine:
            continue
        theirs = next((owner[name] for name in names if _search(pattern, name)), None)
        if theirs is not None:
            raise UserError(f'optimizer.patterns: all that "{pattern}" finds is decided by "{theirs}" before it; put it first')
        hint = nearest(pattern, names)
        example = hint if "did you mean" in hint else f"; parameters are named as in {names[-1]}"
        raise UserError(f'optimizer.patterns: "{pattern}" finds no parameter{example}')
    return found


def _search(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(f'optimizer.patterns: "{pattern}" is no regular expression: {error}') from None


def describe_patterns(model: CoVeR, patterns: Mapping[str, Pattern]) -> list[str]:
    """One line for each pattern: what it does, and to how many parameters."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    lines = []
    for pattern, names in matches(model, patterns).items():
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        count = f"{len(names)} parameter{'s' if len(names) > 1 else ''} ({sum(sizes[name] for name in names):,} numbers)"
        lines.append(f'pattern "{pattern}": {patterns[pattern].words}: {count}: {shown}')
    return lines


def freeze_kept(model: CoVeR, trained: Container[str]) -> None:
    """Stop the gradients of the heads that none of the data sets `trained` trains, and name them."""
    retained = [head.name for head in retained_heads(model.head_list, trained)]
    for name in retained:
        model.heads[name].requires_grad_(False)
    if retained:
        say(f"heads kept as they are: {', '.join(retained)}")


def freeze_matched(model: CoVeR, patterns: Mapping[str, Pattern]) -> None:
    """Stop the gradients of what a pattern freezes, and say of every pattern what it finds.

    Raises `UserError` where nothing is left to train.
    """
    for line in describe_patterns(model, patterns):
        say(line)
    for pattern, names in matches(model, patterns).items():
        for name in names if patterns[pattern].freeze else ():
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("optimizer.patterns: they freeze every parameter; nothing is left to train")


def parameter_groups(model: CoVeR, settings: Optimizer) -> list[dict[str, Any]]:
    """The trained parameters for an optimizer: those of one decay and one factor on the rate (`lr_scale`) together, largest first."""
    patterns = {name: settings.patterns[pattern] for pattern, names in matches(model, settings.patterns).items() for name in names}
    undecayed, places = model.no_decay_parameters(), place_factors(model, settings)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            mine = patterns.get(name, Pattern())
            decay = mine.decay if mine.decay is not None else 0.0 if name in undecayed else settings.weight_decay
            groups.setdefault((decay, mine.lr * places[name]), []).append(parameter)
    return [
        {"params": groups[decay, scale], "weight_decay": decay, "lr_scale": scale} for decay, scale in sorted(groups, reverse=True)
    ]  # fmt: skip


def place_factors(model: CoVeR, settings: Optimizer) -> dict[str, float]:
    """Parameter -> the factor on its rate from its place: heads x `head_lr`, the temporal branch 1, the rest by its layer."""
    temporal = model.temporal_parameters()

    def factor(name: str) -> float:
        if head_of(name):
            return settings.head_lr
        return 1.0 if name in temporal else float(settings.layer_decay ** model.layers_below(name))

    return {name: factor(name) for name, _ in model.named_parameters()}
