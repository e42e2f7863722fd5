"""Optimizers, parameter groups, learning-rate schedules and the exponential moving average of the weights.

A group holds parameters with the same learning rate and weight decay; patterns of the recipe change the rate of the
parameters whose names they match, or freeze them. The moving average stays on the device beside the trained weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cover.console import say
from cover.errors import UserError, nearest
from cover.mixture.dataset import retained_heads
from cover.model.cover import CoVeR
from cover.model.heads import head_of
from cover.training.recipe import Optimizer, Pattern

NAMES_SHOWN = 3


def matches(model: CoVeR, patterns: Mapping[str, Pattern]) -> dict[str, list[str]]:
    """Pattern -> the names of the parameters that it decides about.

    Raises `UserError` for a pattern that is no regular expression, finds nothing, or finds only what earlier ones
    decide.
    """
    names = [name for name, _ in model.named_parameters()]
    owner = {name: next((pattern for pattern in patterns if _search(pattern, name)), None) for name in names}
    results = {pattern: [name for name in names if owner[name] == pattern] for pattern in patterns}
    for pattern, mine in results.items():
        if mine:
            continue
        theirs = next((owner[name] for name in names if _search(pattern, name)), None)
        if theirs is not None:
            raise UserError(
                f'optimizer.patterns: all that "{pattern}" finds is decided by "{theirs}" before it; put it first'
            )
        hint = nearest(pattern, names)
        example = hint if "did you mean" in hint else f"; parameters are named as in {names[-1]}"
        raise UserError(f'optimizer.patterns: "{pattern}" finds no parameter{example}')
    return results


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
        count = (
            f"{len(names)} parameter{'s' if len(names) > 1 else ''} ({sum(sizes[name] for name in names):,} numbers)"
        )
        lines.append(f'pattern "{pattern}": {patterns[pattern].words}: {count}: {shown}')
    return lines


def freeze_retained(model: CoVeR, trained: Container[str]) -> None:
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
    """The trained parameters for an optimizer: those of one decay and one factor on the rate (`lr_scale`) together,
    largest first.
    """
    patterns = {
        name: settings.patterns[pattern]
        for pattern, names in matches(model, settings.patterns).items()
        for name in names
    }
    undecayed, places = model.no_decay_parameters(), place_factors(model, settings)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            mine = patterns.get(name, Pattern())
            decay = mine.decay if mine.decay is not None else 0.0 if name in undecayed else settings.weight_decay
            groups.setdefault((decay, mine.lr * places[name]), []).append(parameter)
    return [
        {"params": groups[decay, scale], "weight_decay": decay, "lr_scale": scale}
        for decay, scale in sorted(groups, reverse=True)
    ]


def place_factors(model: CoVeR, settings: Optimizer) -> dict[str, float]:
    """Parameter -> the factor on its rate from its place: heads x `head_lr`, the temporal branch 1, the rest by its
    layer.
    """
    temporal = model.temporal_parameters()

    def factor(name: str) -> float:
        if head_of(name):
            return settings.head_lr
        return 1.0 if name in temporal else float(settings.layer_decay ** model.layers_below(name))

    return {name: factor(name) for name, _ in model.named_parameters()}


STEP_DOWN = 0.1  # the factor at each milestone of the schedule `steps`


def build_optimizer(model: CoVeR, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that are trained, without decay on biases, norms and embeddings unless a pattern
    says so.

    Fused AdamW updates all parameters in one pass; against the plain one only the last bits differ, from the order of
    its products.
    """
    groups = parameter_groups(model, settings)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of `step` (from 0) of `steps`: linear warm-up, then a cosine to zero, a constant, or a tenth from each
    milestone on.
    """
    warmup = settings.warmup * steps
    if step + 1 < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "steps":
        return float(settings.lr * STEP_DOWN ** sum(step >= share * steps for share in settings.milestones))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, step - warmup) / max(1.0, steps - warmup))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def decay_at(decay: float, step: int) -> float:
    """The decay of the update after `step` (from 0): at first (1 + step) / (10 + step), so that a short run's average
    forgets its start.
    """
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
        """Inside, the model holds the averages: for evaluation and for a release. Its own weights come back, bit for
        bit.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, mean in zip(self._weights, self._means.values(), strict=True):
            present = weight.detach().clone()  # one tensor at a time: no second copy of the model
            weight.copy_(mean)
            mean.copy_(present)

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
