"""Steps computed by hand equal their plain formulas, gradients too, and keep less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.layers import gelu_linear, share_class_token, turn_pairs

GROUPS = ((2, 4), (1, 2), (3, 1))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def same(items: Callable[..., Tensor], wanted: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and the gradients of every input, under an uneven weighting of the outputs."""
    results = []
    for function in (items, wanted):
        out = function(*inputs)
        weights = torch.arange(out.numel(), dtype=out.dtype).view(out.shape).cos()
        results.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gelu_and_linear() -> None:
    inputs = random(3, 5, 8), random(4, 8, seed=1), random(4, seed=2)
    same(lambda h, w, b: gelu_linear(h, w, b, nn.Dropout(0.0)), lambda h, w, b: fn.linear(fn.gelu(h), w, b), *inputs)


def test_gelu_and_linear_keep_the_hidden_layer_once() -> None:
    hidden, retained = random(3, 5, 8), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: retained.append(x) or x, lambda x: x):
        gelu_linear(hidden, random(4, 8), random(4), nn.Dropout(0.0))
    assert [x.data_ptr() for x in retained if x.shape == hidden.shape] == [hidden.data_ptr()]


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: int) -> None:
    inputs = [random(3, 5, 8), random(4, 8, seed=1), random(4, seed=2)]
    inputs[frozen].requires_grad_(False)
    free = [x for x in inputs if x.requires_grad]
    result = torch.autograd.grad(gelu_linear(*inputs, nn.Dropout(0.0)).square().sum(), free)
    wanted = torch.autograd.grad(fn.linear(fn.gelu(inputs[0]), *inputs[1:]).square().sum(), free)
    for one, other in zip(result, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_dropout_between_them_still_drops() -> None:
    hidden, weight, bias = random(3, 5, 8), random(4, 8), random(4)
    torch.manual_seed(0)
    one, other = (gelu_linear(hidden, weight, bias, nn.Dropout(0.5)) for _ in range(2))
    assert not torch.equal(one, other)


def test_the_class_token_is_shared_by_the_frames_of_a_clip() -> None:
    def by_hand(x: Tensor) -> Tensor:
        frames = []
        for clip in x.split([4, 4, 2, 1, 1, 1]):
            token = clip[:, :1].mean(0, keepdim=True).expand(len(clip), -1, -1)
            frames.append(torch.cat([token, clip[:, 1:]], 1))
        return torch.cat(frames)

    same(lambda x: share_class_token(x * 1, GROUPS), by_hand, random(13, 3, 5))


def test_pairs_of_channels_are_turned() -> None:
    angle = torch.arange(4, dtype=torch.float64)[:, None, None] * torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)

    def by_hand(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    same(lambda x: turn_pairs(x, angle.cos(), angle.sin()), by_hand, random(2, 4, 5, 6))


def network(merging: bool, **changes: object) -> tuple[CoVeR, Tensor]:
    """A network wide of tokens, so that merging sets in, every parameter random."""
    torch.manual_seed(0)
    model = CoVeR(
        TimeSformerConfig(width=16, depth=2, attention_heads=2, patch=8, size=32, **changes), (Head("a", tuple("xyz")),)
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.backbone.set_merging(merging)
    return model, torch.randn(10, 3, 32, 32)


def test_merged_projections_are_the_same_function() -> None:
    results = []
    for merging in (True, False):
        model, frames = network(merging)
        model(frames, ((2, 4), (2, 1)))["a"].square().sum().backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("time", ["rotary", "additive"])
def test_gradients_under_autocast_are_those_of_fp32_up_to_its_rounding(time: str) -> None:
    results = []
    for enabled in (False, True):
        model, frames = network(merging=True, time=time)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(frames, ((2, 4), (2, 1)))["a"]
        logits.float().square().sum().backward()
        results.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in results[0].items():
        assert results[1][name].dtype == torch.float32
        assert float((results[1][name] - gradient).norm() / gradient.norm()) < 0.2, name
