"""The average by hand, that it can be put in the model's place and taken out again, and what a resume needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cover.training.ema import Ema, averaged, decay_at


def build() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def move(model: nn.Module, step: int) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))


def test_the_decay_rises_to_its_value() -> None:
    assert [decay_at(0.9, step) for step in (0, 1, 9)] == pytest.approx([1 / 10, 2 / 11, 10 / 19])
    assert decay_at(0.9, 10**6) == 0.9
    assert decay_at(0.0, 5) == 0


def test_the_average_by_hand() -> None:
    model = build()
    ema, wanted = Ema(model, 0.5), model.weight.detach().double().clone()
    for step in range(20):
        move(model, step)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        wanted = decay * wanted + (1 - decay) * model.weight.detach().double()
    torch.testing.assert_close(ema.state()["weight"].double(), wanted, rtol=1e-5, atol=1e-6)


def test_in_place_the_model_holds_the_average_and_then_its_own_weights_again() -> None:
    model = build()
    ema = Ema(model, 0.9)
    start = model.weight.detach().clone()
    move(model, 0)
    own = model.weight.detach().clone()
    with ema.in_place():
        assert torch.equal(model.weight, start)
    assert torch.equal(model.weight, own)
    with pytest.raises(ZeroDivisionError), ema.in_place():
        raise ZeroDivisionError
    assert torch.equal(model.weight, own)
    with averaged(None):
        assert torch.equal(model.weight, own)
    with averaged(ema):
        assert torch.equal(model.weight, start)


def test_frozen_weights_are_their_own_average() -> None:
    model = build()
    model.bias.requires_grad_(False)
    assert set(Ema(model, 0.9).state()) == {"weight"}


def test_going_on_from_a_state_is_the_same_as_never_stopping() -> None:
    model = build()
    unbroken = Ema(model, 0.8)
    for step in range(4):
        move(model, step)
        unbroken.update(step)
    state = {name: mean.clone() for name, mean in unbroken.state().items()}
    resumed = Ema(model, 0.8)
    resumed.load(state)
    for step in range(4, 8):
        move(model, step)
        unbroken.update(step)
        resumed.update(step)
    assert all(torch.equal(resumed.state()[name], mean) for name, mean in unbroken.state().items())
    with pytest.raises(KeyError):
        resumed.load({})
