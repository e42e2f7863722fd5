"""Which rate, decay and freezing each parameter gets, and what is said where a pattern does nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.training.optimizer import build_optimizer, set_learning_rate
from cover.training.parameters import describe_patterns, freeze_matched
from cover.training.recipe import Optimizer, Pattern


def build(**changes: Any) -> CoVeR:
    shape = TimeSformerConfig(width=16, depth=3, attention_heads=2, patch=8, size=16, **{"time": "additive", **changes})
    return CoVeR(shape, (Head("a", ("x", "y")), Head("b", ("x", "y"))))


def moves(model: CoVeR, **settings: Any) -> dict[str, tuple[float, float]]:
    """Parameter name -> its rate and decay when the recipe's rate is 2."""
    optimizer = build_optimizer(model, Optimizer(weight_decay=0.3, **settings))
    set_learning_rate(optimizer, 2.0)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name_of[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}


def test_layer_decay_is_for_what_an_image_model_has() -> None:
    found = moves(build(), layer_decay=0.5, head_lr=5.0)
    wanted = {
        "cls_token": 2 * 0.5**4, "pos_embed": 2 * 0.5**4, "patch_embed.weight": 2 * 0.5**4, "blocks.0.attn.qkv.weight": 2 * 0.5**3,
        "blocks.1.mlp.fc1.bias": 2 * 0.5**2, "blocks.2.norm1.weight": 2 * 0.5, "norm.weight": 2,
        "blocks.0.temporal_attn.qkv.weight": 2, "blocks.0.temporal_fc.bias": 2, "blocks.0.temporal_norm.weight": 2, "time_embed": 2,
    }  # fmt: skip
    wanted = {**{f"backbone.{name}": rate for name, rate in wanted.items()}, "heads.a.weight": 10, "heads.b.bias": 10}
    assert {name: found[name][0] for name in wanted} == pytest.approx(wanted)
    assert found["backbone.blocks.0.attn.qkv.weight"][1] == 0.3
    assert found["backbone.blocks.0.attn.qkv.bias"][1] == 0


@pytest.mark.parametrize("name", ["abnormal", "scale", "temporal"])
def test_a_head_decays_and_moves_whatever_its_name(name: str) -> None:
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head(name, ("x", "y")),))
    found = moves(model, head_lr=5.0)
    assert found[f"heads.{name}.weight"] == (10.0, 0.3)
    assert found[f"heads.{name}.bias"] == (10.0, 0.0)


def test_without_settings_there_are_two_groups_at_one_rate() -> None:
    groups = build_optimizer(build(), Optimizer(weight_decay=0.3)).param_groups
    assert [(group["weight_decay"], group["lr_scale"]) for group in groups] == [(0.3, 1.0), (0.0, 1.0)]


def test_the_first_pattern_that_finds_a_parameter_decides() -> None:
    patterns = {r"^backbone\.blocks\.0\.temporal": Pattern(lr=3.0), "temporal": Pattern(lr=0.5, decay=0.01), "^heads": Pattern(decay=0.0)}
    found = moves(build(), patterns=patterns, layer_decay=0.5)
    assert found["backbone.blocks.0.temporal_fc.weight"] == (6.0, 0.3)
    assert found["backbone.blocks.1.temporal_fc.weight"] == (1.0, 0.01)
    assert found["backbone.blocks.1.temporal_fc.bias"] == (1.0, 0.01), "a decay is for all that the pattern finds"
    assert found["heads.a.weight"] == (2.0, 0.0)
    assert found["backbone.blocks.2.attn.qkv.weight"] == (1.0, 0.3), "no pattern's"


def test_a_pattern_multiplies_what_the_place_says() -> None:
    found = moves(build(), patterns={"attn.qkv.weight": Pattern(lr=0.1)}, layer_decay=0.5, head_lr=4.0)
    assert found["backbone.blocks.2.attn.qkv.weight"][0] == pytest.approx(2 * 0.5 * 0.1)
    assert found["backbone.blocks.2.temporal_attn.qkv.weight"][0] == pytest.approx(0.2)


def test_frozen_parameters_do_not_move() -> None:
    model, patterns = build(), {"patch_embed|_embed$|cls_token": Pattern(freeze=True)}
    freeze_matched(model, patterns)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, Optimizer(patterns=patterns))
    frames = torch.randn(4, 3, 16, 16)
    sum(logits.sum() for logits in model(frames, ((1, 4),)).values()).backward()  # type: ignore[union-attr]
    optimizer.step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert {f"backbone.{name}" for name in ("patch_embed.weight", "patch_embed.bias", "pos_embed", "time_embed", "cls_token")} <= still
    assert "heads.a.bias" not in still


def test_one_line_for_each_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    model, patterns = build(), {"^heads": Pattern(lr=5.0), "temporal_norm": Pattern(freeze=True), "pos_embed": Pattern(decay=0.1)}
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
        ({"temporal": Pattern(), "temporal_fc": Pattern()}, 'all that "temporal_fc" finds is decided by "temporal" before it'),
        ({"heads(": Pattern()}, '"heads\\(" is no regular expression'),
        ({".": Pattern(freeze=True)}, "nothing is left to train"),
    ],
)
def test_patterns_that_do_nothing(patterns: dict[str, Pattern], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        freeze_matched(build(), patterns)
    assert "\n" not in str(error.value)
    assert "optimizer.patterns" in str(error.value)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_at_a_lower_rate_moves_less(name: Any) -> None:
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    twin = build()
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
