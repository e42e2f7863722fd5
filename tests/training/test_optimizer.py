"""The learning rate at its turning points, and which parameters decay."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from cover.training.recipe import Optimizer


def rates(steps: int, **settings: Any) -> list[float]:
    return [learning_rate(Optimizer(**{"lr": 2.0, "warmup": 0.1, **settings}), step, steps) for step in range(steps)]


def test_a_linear_warm_up_then_a_cosine() -> None:
    found = rates(100)
    assert found[0] == pytest.approx(0.2)
    assert found[4] == pytest.approx(1.0)
    assert found[9] == found[10] == pytest.approx(2.0)
    assert found[55] == pytest.approx(1.0)
    assert found[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert all(a < b for a, b in pairwise(found[:10]))
    assert all(a > b for a, b in pairwise(found[10:]))
    assert found[-1] > 0


def test_a_constant_rate_after_the_warm_up() -> None:
    found = rates(50, schedule="constant")
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert set(found[5:]) == {2.0}


def test_a_tenth_from_each_milestone_on() -> None:
    found = rates(150, schedule="steps", milestones=[11 / 15, 14 / 15], warmup=0.0)
    assert found == pytest.approx([2.0] * 110 + [0.2] * 30 + [0.02] * 10)
    warmed = rates(100, schedule="steps", milestones=[0.5], warmup=0.1)
    assert warmed[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert warmed[10:] == pytest.approx([2.0] * 40 + [0.2] * 50)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_runs(steps: int, warmup: float) -> None:
    found = rates(steps, warmup=warmup)
    assert all(0 < rate <= 2 for rate in found)
    assert max(found) == pytest.approx(2)


def build(time: str) -> CoVeR:
    return CoVeR(TimeSformerConfig(width=16, depth=2, attention_heads=2, patch=8, size=16, time=time), (Head("a", ("x", "y")),))  # type: ignore[arg-type]


@pytest.mark.parametrize("time", ["rotary", "additive"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_matrices_decay_and_nothing_else(name: str, time: str) -> None:
    model = build(time)
    optimizer = build_optimizer(model, Optimizer(name=name, weight_decay=0.3))  # type: ignore[arg-type]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        matrix = parameter.ndim in (2, 4)  # linear layers and the patch convolution; embeddings have three axes
        assert decay[id(parameter)] == (0.3 if matrix else 0.0), parameter_name


def test_frozen_parameters_are_left_out() -> None:
    model = build("rotary")
    for name in model.temporal_parameters():
        model.get_parameter(name).requires_grad_(False)
    trained = sum(len(group["params"]) for group in build_optimizer(model, Optimizer()).param_groups)
    assert trained == sum(parameter.requires_grad for parameter in model.parameters()) < len(list(model.parameters()))


def test_every_group_gets_the_rate() -> None:
    optimizer = build_optimizer(build("rotary"), Optimizer())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
    assert isinstance(optimizer, torch.optim.AdamW)
