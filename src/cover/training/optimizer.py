"""How the weights move: the optimizer and the learning rate of every step."""

from __future__ import annotations

import math

import torch

from cover.model.cover import CoVeR
from cover.training.parameters import parameter_groups
from cover.training.recipe import Optimizer

STEP_DOWN = 0.1  # the factor at each milestone of the schedule `steps`


def build_optimizer(model: CoVeR, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that are trained, without decay on biases, norms and embeddings unless a pattern says so.

    Fused AdamW updates all parameters in one pass; against the plain one only the last bits differ, from the order of its products.
    """
    groups = parameter_groups(model, settings)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of `step` (from 0) of `steps`: linear warm-up, then a cosine to zero, a constant, or a tenth from each milestone on."""
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
