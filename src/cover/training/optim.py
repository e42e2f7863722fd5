"""Optimizers, parameter groups, learning-rate schedules and the exponential moving average of the weights.

A parameter group has one learning rate and one weight decay. Patterns of the recipe are regular expressions on
parameter names. They change the rate or the decay of the parameters that they match, or freeze them. The moving average
stays on the device of the weights.
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
from cover.errors import UserError, similar
from cover.mixture.dataset import retained_heads
from cover.model.batch_norm import batch_norms
from cover.model.cover import CoVeR
from cover.model.heads import head_of
from cover.training.recipe import Optimizer, Pattern

NAMES_SHOWN = 3  # parameters that a line about a pattern names
STEP_DOWN = 0.1  # factor at each milestone of the schedule `steps`


def matches(model: CoVeR, patterns: Mapping[str, Pattern]) -> dict[str, list[str]]:
    """Pattern -> the names of the parameters that it applies to. The first pattern that matches a name applies.

    Raises `UserError` if a pattern is no regular expression, matches nothing, or matches only parameters that earlier
    patterns match.
    """
    names = [name for name, _ in model.named_parameters()]
    owner = {name: next((pattern for pattern in patterns if _search(pattern, name)), None) for name in names}
    matched = {pattern: [name for name in names if owner[name] == pattern] for pattern in patterns}
    for pattern, own in matched.items():
        if own:
            continue
        theirs = next((owner[name] for name in names if _search(pattern, name)), None)
        if theirs is not None:
            raise UserError(
                f'optimizer.patterns: all that "{pattern}" finds is decided by "{theirs}" before it; put it first'
            )
        example = similar(pattern, names) or f"; parameters are named as in {names[-1]}"
        raise UserError(f'optimizer.patterns: "{pattern}" finds no parameter{example}')
    return matched


def _search(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        raise UserError(f'optimizer.patterns: "{pattern}" is no regular expression: {error}') from None


def describe_patterns(model: CoVeR, patterns: Mapping[str, Pattern]) -> list[str]:
    """One line for each pattern: its effect, and the number and names of its parameters."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    lines = []
    for pattern, names in matches(model, patterns).items():
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        parameters = f"{len(names)} parameter{'s' if len(names) > 1 else ''}"
        numbers = f"{sum(sizes[name] for name in names):,} numbers"
        lines.append(f'pattern "{pattern}": {patterns[pattern].words}: {parameters} ({numbers}): {shown}')
    return lines


def freeze_retained(model: CoVeR, trained: Container[str]) -> None:
    """Freeze the heads that none of the data sets `trained` trains, and print their names."""
    retained = [head.name for head in retained_heads(model.head_list, trained)]
    for name in retained:
        model.heads[name].requires_grad_(False)
    if retained:
        say(f"heads kept as they are: {', '.join(retained)}")


def freeze(model: CoVeR, names: Container[str]) -> None:
    """Freeze the parameters with these names."""
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)


def frozen_by(model: CoVeR, patterns: Mapping[str, Pattern]) -> frozenset[str]:
    """The names of the parameters that patterns freeze."""
    matched = matches(model, patterns).items()
    return frozenset(name for pattern, names in matched if patterns[pattern].freeze for name in names)


def freeze_matched(model: CoVeR, patterns: Mapping[str, Pattern]) -> None:
    """Freeze the parameters of patterns with `freeze`, and print a line about every pattern.

    Raises `UserError` if no parameter is left to train.
    """
    for line in describe_patterns(model, patterns):
        say(line)
    freeze(model, frozen_by(model, patterns))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("optimizer.patterns: they freeze every parameter; nothing is left to train")


def parameter_groups(model: CoVeR, settings: Optimizer) -> list[dict[str, Any]]:
    """The trained parameters in groups for an optimizer, sorted by weight decay and rate, the largest first.

    A group has one weight decay and one factor on the learning rate, `lr_scale` (`set_learning_rate` applies it).
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
            pattern = patterns.get(name, Pattern())
            decay = 0.0 if name in undecayed else settings.weight_decay
            decay = decay if pattern.decay is None else pattern.decay
            groups.setdefault((decay, pattern.lr * places[name]), []).append(parameter)
    return [
        {"params": groups[decay, scale], "weight_decay": decay, "lr_scale": scale}
        for decay, scale in sorted(groups, reverse=True)
    ]


def place_factors(model: CoVeR, settings: Optimizer) -> dict[str, float]:
    """Parameter -> the factor on its learning rate that follows from its place in the network.

    It is `head_lr` for heads, 1 for the temporal branch, and a power of `layer_decay` for all other parameters. The
    temporal branch is new where the rest is pretrained, so it learns at the full rate in every layer.
    """
    temporal, above = model.temporal_parameters(), model.layers_above()

    def factor(name: str) -> float:
        if head_of(name):
            return settings.head_lr
        return 1.0 if name in temporal else float(settings.layer_decay ** above[name])

    return {name: factor(name) for name, _ in model.named_parameters()}


def build_optimizer(model: CoVeR, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW or SGD over the trained parameters. Biases, norms and embeddings have no decay unless a pattern sets one.

    Fused AdamW updates all parameters in one pass over memory. It differs from plain AdamW only by rounding.
    """
    groups = parameter_groups(model, settings)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) in a run of `steps`.

    After a linear warm-up it is a cosine that falls to zero, a constant, or a constant times 0.1 for each milestone.
    """
    warmup = settings.warmup * steps
    if step + 1 < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "steps":
        return float(settings.lr * STEP_DOWN ** sum(step >= mark * steps for mark in settings.milestones))
    progress = min(1.0, max(0.0, step - warmup) / max(1.0, steps - warmup))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every parameter group to `lr` times the factor of the group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def decay_at(decay: float, step: int) -> float:
    """The decay of the average at `step` (from 0), at most (1 + step) / (10 + step).

    The limit lets the average of a short run forget the initial weights.
    """
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """The exponential moving average of the trained parameters and of the BatchNorm statistics that training changes.

    Frozen parameters are their own average. An exact resume needs only `state()`, because the decay is a function of
    the step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the current weights of `model`. `decay`: in [0, 1)."""
        self.decay = decay
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        statistics = {
            f"{name}.{part}": value
            for name, norm in batch_norms(model).items()
            for part, value in norm.named_buffers(recurse=False)
            if part in ("running_mean", "running_var")
        }
        self._weights: list[Tensor] = [*trained.values(), *statistics.values()]
        self._means = {name: value.detach().clone() for name, value in (trained | statistics).items()}
        self._trained = len(trained)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after the optimizer's `step` (from 0) to the average."""
        means, rate = list(self._means.values()), 1 - decay_at(self.decay, step)
        # Apart, because the parameters may be sharded and the statistics are not.
        for part in (slice(self._trained), slice(self._trained, None)):
            if means[part]:
                torch._foreach_lerp_(means[part], self._weights[part], rate)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the averaged weights, for evaluation and for a release.

        Afterwards it has its own weights again, bit for bit.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, mean in zip(self._weights, self._means.values(), strict=True):
            current = weight.detach().clone()  # one tensor at a time, so there is no second copy of the model
            weight.copy_(mean)
            mean.copy_(current)

    def state(self) -> dict[str, Tensor]:
        """Parameter name -> its average. These are the tensors themselves, so loading into them changes the average."""
        return self._means

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy the averages from another `state()`. Raises KeyError if a parameter is missing."""
        for name, mean in self._means.items():
            mean.copy_(state[name])


def averaged(ema: Ema | None) -> AbstractContextManager[None]:
    """`Ema.in_place`, or a context that changes nothing if there is no average."""
    return ema.in_place() if ema else nullcontext()
