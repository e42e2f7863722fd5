"""How the weights move: parameter groups and the learning rate of every step."""

from __future__ import annotations

import math

import torch

from cover.model.timesformer import TimeSformer
from cover.training.recipe import Optimizer


def build_optimizer(model: TimeSformer, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW or SGD over the parameters that are trained, without decay on biases, norms and embeddings."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if not model.no_weight_decay(name)], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained if model.no_weight_decay(name)], "weight_decay": 0.0},
    ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def learning_rate(settings: Optimizer, step: int, steps: int) -> float:
    """The rate of `step` (from 0) of `steps`: linear warm-up, then a cosine to zero or a constant."""
    warmup = settings.warmup * steps
    if step + 1 < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, step - warmup) / max(1.0, steps - warmup))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
