"""The loss by hand, what counts for nothing, micro-batches, and where drop-path comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cover.mixture.pack import Pack, split_pack
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.training.step import LossSums, StepSettings, drop_path_factors, forward_backward, sample_losses, train_step
from cover.transforms.colour import ColourJitter

HEADS = (Head("a", ("0", "1", "2")), Head("b", ("0", "1", "2", "3", "4")))
TARGETS = [[2, -1], [0, -1], [-1, 3], [-1, 4], [-1, 0], [1, -1]]
DATASET = [0, 0, 1, 1, 1, 0]
WEIGHT = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
FACTORS = [0.5, 2.0]
BATCH = 10  # more than the Pack holds: the rest is on other ranks


def build(depth: int = 2) -> CoVeR:
    model = CoVeR(TimeSformerConfig(width=16, depth=depth, attention_heads=2, patch=8, size=16), HEADS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model


def make_pack() -> Pack:
    """Two clips of 4 frames, two of 2 and two images."""
    generator = torch.Generator().manual_seed(1)
    return Pack(
        frames=torch.randint(0, 256, (14, 3, 16, 16), dtype=torch.uint8, generator=generator),
        groups=((2, 4), (2, 2), (2, 1)),
        dataset=torch.tensor(DATASET),
        targets=torch.tensor(TARGETS),
        weight=torch.tensor(WEIGHT),
        seed=torch.arange(6) * 7919,
        drawn={ColourJitter: torch.eye(3, 4).expand(6, 3, 4) + 0.05 * torch.rand(6, 3, 4, generator=generator)},
    )


def make_settings(**changes: Any) -> StepSettings:
    return StepSettings(**{"batch": BATCH, "loss_weights": torch.tensor(FACTORS), "max_grad_norm": 0.0, **changes})


def gradients(model: CoVeR) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@torch.no_grad()
def logits_by_sample(model: CoVeR, pack: Pack) -> list[dict[str, Tensor]]:
    """Every sample of a Pack by itself, its colours changed by hand."""
    lengths = [length for samples, length in pack.groups for _ in range(samples)]
    results = []
    for number, frames in enumerate(pack.frames.split(lengths)):
        matrix, offset = pack.drawn[ColourJitter][number].split([3, 1], 1)
        lit = (torch.einsum("ij,fjhw->fihw", matrix, frames / 255) + offset[:, :, None]).clamp(0, 1)
        results.append(model((lit - 0.5) / 0.5, ((1, len(frames)),)))
    return results


def loss_by_hand(model: CoVeR, pack: Pack, smoothing: float) -> float:
    total = 0.0
    for number, logits in enumerate(logits_by_sample(model, pack)):
        name, target = ("a", TARGETS[number][0]) if TARGETS[number][0] >= 0 else ("b", TARGETS[number][1])
        log_p = logits[name][0].double() - logits[name][0].double().exp().sum().log()
        goal = torch.full_like(log_p, smoothing / len(log_p))
        goal[target] += 1 - smoothing
        total += FACTORS[DATASET[number]] * WEIGHT[number] * float(-(goal * log_p).sum())
    return total / BATCH


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_by_hand(smoothing: float) -> None:
    model, pack = build(), make_pack()
    loss = forward_backward(model, pack, make_settings(label_smoothing=smoothing))
    assert float(loss) == pytest.approx(loss_by_hand(model, pack, smoothing), rel=1e-5)


def test_a_sample_of_weight_0_contributes_nothing() -> None:
    model, pack = build(), make_pack()
    forward_backward(model, pack, make_settings())
    first = gradients(model)
    model.zero_grad(set_to_none=True)
    other = pack.frames.clone()
    other[10:12] = 255 - other[10:12]  # the frames of sample 3
    targets = pack.targets.clone()
    targets[3, 1] = 1
    forward_backward(model, replace(pack, frames=other, targets=targets), make_settings())
    assert all(torch.equal(first[name], value) for name, value in gradients(model).items())


def test_every_parameter_is_trained_by_a_pack_of_both_kinds() -> None:
    model = build()
    forward_backward(model, make_pack(), make_settings())
    assert [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ] == []


def test_heads_that_a_pack_does_not_train_get_zeros_not_nothing() -> None:
    model, pack = build(), make_pack()
    forward_backward(model, replace(pack, targets=torch.tensor([[1, -1]] * 6)), make_settings())
    assert model.heads["b"].weight.grad is not None
    assert not model.heads["b"].weight.grad.any()
    assert model.heads["a"].weight.grad.any()


def test_accumulation_changes_nothing() -> None:
    pack, settings = make_pack(), make_settings(drop_path=0.4)
    losses, result = [], []
    for parts in (1, 2):
        model = build()
        losses.append(sum(float(forward_backward(model, micro, settings)) for micro in split_pack(pack, parts)))
        result.append(gradients(model))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, whole in result[0].items():
        torch.testing.assert_close(result[1][name], whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()) + 1e-9)


def test_micro_batches_hold_equal_shares_of_every_group() -> None:
    pack = make_pack()
    parts = split_pack(pack, 2)
    assert [part.groups for part in parts] == [((1, 4), (1, 2), (1, 1))] * 2
    assert [part.seed.tolist() for part in parts] == [[0, 2 * 7919, 4 * 7919], [7919, 3 * 7919, 5 * 7919]]
    assert torch.equal(parts[1].frames, torch.cat([pack.frames[4:8], pack.frames[10:12], pack.frames[13:14]]))


def test_tally_counts_what_was_read() -> None:
    model, pack, tally = build(), make_pack(), LossSums(3, "cpu")
    forward_backward(model, pack, make_settings(), tally)
    losses, right = [[], [], []], [[], [], []]
    for number, logits in enumerate(logits_by_sample(model, pack)):
        if WEIGHT[number]:
            head, target = (("a", TARGETS[number][0]), ("b", TARGETS[number][1]))[DATASET[number]]
            losses[DATASET[number]].append(
                float(torch.nn.functional.cross_entropy(logits[head], torch.tensor([target])))
            )
            right[DATASET[number]].append(int(logits[head].argmax()) == target)
    for number, (loss, top1, visited) in enumerate(tally.take()):
        assert visited == len(losses[number])
        assert loss == pytest.approx(sum(losses[number]) / max(visited, 1), rel=1e-5)
        assert top1 == pytest.approx(sum(right[number]) / max(visited, 1))
    assert tally.take() == [(0, 0, 0)] * 3


def test_a_sample_with_two_heads_adds_their_losses_and_is_right_where_both_are() -> None:
    logits = {
        "verb": torch.tensor([[3.0, 0], [3, 0], [0, 3]]),
        "noun": torch.tensor([[0, 2.0, 0], [0, 2, 0], [0, 2, 0]]),
    }
    loss, hit = sample_losses(logits, torch.tensor([[0, 1], [0, 2], [0, -1]]), 0.0)
    verb, noun = torch.tensor([3.0, 0]).log_softmax(0), torch.tensor([0, 2.0, 0]).log_softmax(0)
    assert loss.tolist() == pytest.approx([-float(verb[0] + noun[1]), -float(verb[0] + noun[2]), -float(verb[1])])
    assert hit.tolist() == [1, 0, 0]


# --- drop-path --------------------------------------------------------------------------------------------------------


def test_drop_path_depends_on_the_draw_and_the_layer_alone() -> None:
    seeds = torch.tensor([5, 2**62 + 11, 0, 77, 2**63 - 1])
    whole = drop_path_factors(seeds, (6, 3), 0.5)
    assert whole is not None
    assert whole.shape == (6, 3, 5)
    for place, seed in enumerate(seeds):
        assert torch.equal(whole[:, :, [place]], drop_path_factors(seed[None], (6, 3), 0.5))
    torch.manual_seed(1)
    assert torch.equal(whole, drop_path_factors(seeds, (6, 3), 0.5))
    assert drop_path_factors(seeds, (6, 3), 0.0) is None


def test_drop_path_rates_grow_to_the_last_layer_and_keep_the_mean() -> None:
    seeds = torch.cat([torch.arange(4000), torch.randint(2**62, (4000,), generator=torch.Generator().manual_seed(0))])
    factors = drop_path_factors(seeds, (5, 3), 0.4)
    assert factors is not None
    assert (factors[0] == 1).all()
    for layer, rate in enumerate([0, 0.1, 0.2, 0.3, 0.4]):
        assert set(factors[layer].unique().tolist()) <= {0.0, float(torch.tensor(1 / (1 - rate)))}
        for half in factors[layer].chunk(2, dim=1):
            assert (half == 0).double().mean(1).tolist() == pytest.approx([rate] * 3, abs=0.035)


def test_branches_layers_and_neighbouring_seeds_are_dropped_independently() -> None:
    dropped = (drop_path_factors(torch.arange(6000), (4, 3), 0.5)[2:] == 0).double().flatten(0, 1)  # type: ignore[index]
    neighbours = torch.cat([dropped[:, :-1], dropped[:, 1:]])
    correlation = torch.corrcoef(neighbours) - torch.eye(12)
    assert correlation.abs().max() < 0.06


# --- the update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.01])
def test_a_step_moves_the_weights_by_the_clipped_gradient(max_grad_norm: float) -> None:
    model, pack = build(), make_pack()
    forward_backward(model, pack, make_settings())
    wanted = gradients(model)
    norm = torch.stack([value.double().norm() for value in wanted.values()]).norm()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    result = train_step(model, optimizer, [pack], make_settings(max_grad_norm=max_grad_norm)).norm
    assert float(result) == pytest.approx(float(norm), rel=1e-5)
    scale = max_grad_norm / float(norm) if max_grad_norm else 1.0
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.5 * scale * wanted[name], rtol=1e-4, atol=1e-6)


def test_gradients_of_the_step_before_are_forgotten() -> None:
    results = []
    for stale in (False, True):
        model = build()
        if stale:
            forward_backward(model, make_pack(), make_settings())
        train_step(model, torch.optim.SGD(model.parameters(), lr=0.5), [make_pack()], make_settings())
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 1])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(name: str, before: int) -> None:
    results = []
    for broken in (True, False):
        model = build()
        optimizer = OPTIMIZERS[name](model.parameters())
        for number in range(before + 2):
            with torch.no_grad():
                model.heads["a"].bias[0] += torch.inf if broken and number == before else 0
            if broken or number != before:
                outcome = train_step(model, optimizer, [make_pack()], make_settings())
                assert bool(outcome.summary.isfinite().all()) == (not broken or number != before)
            with torch.no_grad():
                model.heads["a"].bias.nan_to_num_(posinf=0.5)
                model.heads["a"].bias[0] = 0.5
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_under_a_finite_loss_changes_nothing(name: str, value: float) -> None:
    weights = []
    for broken in (True, False):
        model = build()
        optimizer = OPTIMIZERS[name](model.parameters())
        train_step(model, optimizer, [make_pack()], make_settings(max_grad_norm=1.0))
        if broken:
            hook = model.heads["b"].weight.register_hook(lambda gradient: gradient * value)
            outcome = train_step(model, optimizer, [make_pack()], make_settings(max_grad_norm=1.0))
            hook.remove()
            assert math.isfinite(outcome.loss)
            assert not math.isfinite(outcome.norm)
        train_step(model, optimizer, [make_pack()], make_settings(max_grad_norm=1.0))
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_losses_of_the_samples_come_with_their_seeds() -> None:
    model, pack = build(), make_pack()
    with torch.no_grad():
        model.heads["a"].bias[0] = torch.inf
    outcome = train_step(model, torch.optim.SGD(model.parameters(), lr=0.5), split_pack(pack, 2), make_settings())
    lost = {
        seed
        for seeds, losses in outcome.samples
        for seed, loss in zip(seeds.tolist(), losses.tolist())
        if not math.isfinite(loss)
    }
    assert lost == {seed for seed, (target, _) in zip(pack.seed.tolist(), TARGETS) if target >= 0}


def test_bf16_is_close_to_fp32() -> None:
    losses = [float(forward_backward(build(), make_pack(), make_settings(bf16=bf16))) for bf16 in (False, True)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
