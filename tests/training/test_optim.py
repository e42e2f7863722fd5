"""The average by hand, that it can be put in the model's place and taken out again, and what a resume needs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.training.optim import (
    Ema,
    averaged,
    build_optimizer,
    decay_at,
    describe_patterns,
    freeze_matched,
    learning_rate,
    set_learning_rate,
)
from cover.training.recipe import Optimizer, Pattern


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


def rates(steps: int, **settings: Any) -> list[float]:
    return [learning_rate(Optimizer(**{"lr": 2.0, "warmup": 0.1, **settings}), step, steps) for step in range(steps)]


def test_a_linear_warm_up_then_a_cosine() -> None:
    result = rates(100)
    assert result[0] == pytest.approx(0.2)
    assert result[4] == pytest.approx(1.0)
    assert result[9] == result[10] == pytest.approx(2.0)
    assert result[55] == pytest.approx(1.0)
    assert result[99] == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    assert all(a < b for a, b in pairwise(result[:10]))
    assert all(a > b for a, b in pairwise(result[10:]))
    assert result[-1] > 0


def test_a_constant_rate_after_the_warm_up() -> None:
    result = rates(50, schedule="constant")
    assert result[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert set(result[5:]) == {2.0}


def test_a_tenth_from_each_milestone_on() -> None:
    result = rates(150, schedule="steps", milestones=[11 / 15, 14 / 15], warmup=0.0)
    assert result == pytest.approx([2.0] * 110 + [0.2] * 30 + [0.02] * 10)
    warmed = rates(100, schedule="steps", milestones=[0.5], warmup=0.1)
    assert warmed[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert warmed[10:] == pytest.approx([2.0] * 40 + [0.2] * 50)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_short_runs(steps: int, warmup: float) -> None:
    result = rates(steps, warmup=warmup)
    assert all(0 < rate <= 2 for rate in result)
    assert max(result) == pytest.approx(2)


def build_for_optimizer(time: str) -> CoVeR:
    return CoVeR(
        TimeSformerConfig(width=16, depth=2, attention_heads=2, patch=8, size=16, time=time), (Head("a", ("x", "y")),)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("time", ["rotary", "additive"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_matrices_decay_and_nothing_else(name: str, time: str) -> None:
    model = build_for_optimizer(time)
    optimizer = build_optimizer(model, Optimizer(name=name, weight_decay=0.3))  # type: ignore[arg-type]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        matrix = parameter.ndim in (2, 4)  # linear layers and the patch convolution; embeddings have three axes
        assert decay[id(parameter)] == (0.3 if matrix else 0.0), parameter_name


def test_frozen_parameters_are_left_out() -> None:
    model = build_for_optimizer("rotary")
    for name in model.temporal_parameters():
        model.get_parameter(name).requires_grad_(False)
    trained = sum(len(group["params"]) for group in build_optimizer(model, Optimizer()).param_groups)
    assert trained == sum(parameter.requires_grad for parameter in model.parameters()) < len(list(model.parameters()))


def test_every_group_gets_the_rate() -> None:
    optimizer = build_optimizer(build_for_optimizer("rotary"), Optimizer())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
    assert isinstance(optimizer, torch.optim.AdamW)


def build_for_parameters(**changes: Any) -> CoVeR:
    shape = TimeSformerConfig(width=16, depth=3, attention_heads=2, patch=8, size=16, **{"time": "additive", **changes})
    return CoVeR(shape, (Head("a", ("x", "y")), Head("b", ("x", "y"))))


def moves(model: CoVeR, **settings: Any) -> dict[str, tuple[float, float]]:
    """Parameter name -> its rate and decay when the recipe's rate is 2."""
    optimizer = build_optimizer(model, Optimizer(weight_decay=0.3, **settings))
    set_learning_rate(optimizer, 2.0)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        name_of[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_layer_decay_is_for_what_an_image_model_has() -> None:
    result = moves(build_for_parameters(), layer_decay=0.5, head_lr=5.0)
    wanted = {
        "cls_token": 2 * 0.5**4,
        "pos_embed": 2 * 0.5**4,
        "patch_embed.weight": 2 * 0.5**4,
        "blocks.0.attn.qkv.weight": 2 * 0.5**3,
        "blocks.1.mlp.fc1.bias": 2 * 0.5**2,
        "blocks.2.norm1.weight": 2 * 0.5,
        "norm.weight": 2,
        "blocks.0.temporal_attn.qkv.weight": 2,
        "blocks.0.temporal_fc.bias": 2,
        "blocks.0.temporal_norm.weight": 2,
        "time_embed": 2,
    }
    wanted = {**{f"backbone.{name}": rate for name, rate in wanted.items()}, "heads.a.weight": 10, "heads.b.bias": 10}
    assert {name: result[name][0] for name in wanted} == pytest.approx(wanted)
    assert result["backbone.blocks.0.attn.qkv.weight"][1] == 0.3
    assert result["backbone.blocks.0.attn.qkv.bias"][1] == 0


@pytest.mark.parametrize("name", ["abnormal", "scale", "temporal"])
def test_a_head_decays_and_moves_whatever_its_name(name: str) -> None:
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head(name, ("x", "y")),))
    result = moves(model, head_lr=5.0)
    assert result[f"heads.{name}.weight"] == (10.0, 0.3)
    assert result[f"heads.{name}.bias"] == (10.0, 0.0)


def test_without_settings_there_are_two_groups_at_one_rate() -> None:
    groups = build_optimizer(build_for_parameters(), Optimizer(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.3, 1.0), (0.0, 1.0)]


def test_the_first_pattern_that_finds_a_parameter_decides() -> None:
    patterns = {
        r"^backbone\.blocks\.0\.temporal": Pattern(lr=3.0),
        "temporal": Pattern(lr=0.5, decay=0.01),
        "^heads": Pattern(decay=0.0),
    }
    result = moves(build_for_parameters(), patterns=patterns, layer_decay=0.5)
    assert result["backbone.blocks.0.temporal_fc.weight"] == (6.0, 0.3)
    assert result["backbone.blocks.1.temporal_fc.weight"] == (1.0, 0.01)
    assert result["backbone.blocks.1.temporal_fc.bias"] == (1.0, 0.01), "a decay is for all that the pattern finds"
    assert result["heads.a.weight"] == (2.0, 0.0)
    assert result["backbone.blocks.2.attn.qkv.weight"] == (1.0, 0.3), "no pattern's"


def test_a_pattern_multiplies_what_the_place_says() -> None:
    result = moves(build_for_parameters(), patterns={"attn.qkv.weight": Pattern(lr=0.1)}, layer_decay=0.5, head_lr=4.0)
    assert result["backbone.blocks.2.attn.qkv.weight"][0] == pytest.approx(2 * 0.5 * 0.1)
    assert result["backbone.blocks.2.temporal_attn.qkv.weight"][0] == pytest.approx(0.2)


def test_frozen_parameters_do_not_move() -> None:
    model, patterns = build_for_parameters(), {"patch_embed|_embed$|cls_token": Pattern(freeze=True)}
    freeze_matched(model, patterns)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, Optimizer(patterns=patterns))
    frames = torch.randn(4, 3, 16, 16)
    sum(logits.sum() for logits in model(frames, ((1, 4),)).values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert {
        f"backbone.{name}"
        for name in ("patch_embed.weight", "patch_embed.bias", "pos_embed", "time_embed", "cls_token")
    } <= still
    assert "heads.a.bias" not in still


def test_one_line_for_each_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    model, patterns = (
        build_for_parameters(),
        {"^heads": Pattern(lr=5.0), "temporal_norm": Pattern(freeze=True), "pos_embed": Pattern(decay=0.1)},
    )
    freeze_matched(model, patterns)
    lines = describe_patterns(model, patterns)
    assert lines == [
        'pattern "^heads": lr x 5: 4 parameters (68 numbers): heads.a.weight, heads.a.bias, heads.b.weight, ...',
        'pattern "temporal_norm": frozen: 6 parameters (96 numbers): backbone.blocks.0.temporal_norm.weight,'
        " backbone.blocks.0.temporal_norm.bias, backbone.blocks.1.temporal_norm.weight, ...",
        'pattern "pos_embed": lr x 1, decay 0.1: 1 parameter (80 numbers): backbone.pos_embed',
    ]
    assert [line for line in capsys.readouterr().err.splitlines() if "pattern" in line] == lines


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"temporal_atn": Pattern()}, '"temporal_atn" finds no parameter'),
        ({"backbone.blocks.0.temporal_fc.wieght": Pattern()}, 'did you mean "backbone.blocks.0.temporal_fc.weight"'),
        (
            {"temporal": Pattern(), "temporal_fc": Pattern()},
            'all that "temporal_fc" finds is decided by "temporal" before it',
        ),
        ({"heads(": Pattern()}, '"heads\\(" is no regular expression'),
        ({".": Pattern(freeze=True)}, "nothing is left to train"),
    ],
)
def test_patterns_that_do_nothing(patterns: dict[str, Pattern], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        freeze_matched(build_for_parameters(), patterns)
    assert "\n" not in str(error.value)
    assert "optimizer.patterns" in str(error.value)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_at_a_lower_rate_moves_less(name: Any) -> None:
    model = build_for_parameters()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    twin = build_for_parameters()
    twin.load_state_dict(model.state_dict())
    started = {key: value.clone() for key, value in model.state_dict().items()}
    for net, lr in ((model, 1.0), (twin, 0.1)):
        settings = Optimizer(name, weight_decay=0.0, patterns={"mlp": Pattern(lr=lr)})
        optimizer = build_optimizer(net, settings)
        set_learning_rate(optimizer, 1e-2)
        sum(logits.sum() for logits in net(torch.ones(2, 3, 16, 16), ((1, 2),)).values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    for key, before in started.items():
        whole, part = (net.state_dict()[key] - before for net in (model, twin))
        torch.testing.assert_close(part, whole * (0.1 if "mlp" in key else 1), rtol=2e-2, atol=2e-7)
