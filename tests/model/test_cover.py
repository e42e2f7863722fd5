"""What others ask of a network: what it computed on the way, layer groups, less memory, compiled blocks, an exported
graph.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cover.model.backbone import Groups
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head

SHAPE: dict[str, Any] = {"width": 32, "depth": 3, "attention_heads": 4, "patch": 8, "size": 24, "frames": 4}
MIXED: Groups = ((2, 4), (3, 1))
KINDS = pytest.mark.parametrize("attention", ["divided", "joint", "space"])


def build(head_dropout: float = 0.0, **changes: Any) -> CoVeR:
    """Every parameter random and none near zero."""
    model = CoVeR(TimeSformerConfig(**{**SHAPE, **changes}), (Head("things", ("cat", "dog", "cow")),), head_dropout)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return model


def pixels(groups: Groups = MIXED, size: int = 24) -> Tensor:
    return torch.randn(sum(s * t for s, t in groups), 3, size, size, generator=torch.Generator().manual_seed(1))


def gradients(model: CoVeR, frames: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    model(frames, MIXED)["things"].square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- intermediates ----------------------------------------------------------------------------------------------------


@KINDS
def test_what_was_computed_on_the_way_adds_up_to_the_features(attention: str) -> None:
    model, intermediates = build(attention=attention).eval(), {}
    features = model.forward_features(pixels(), MIXED, intermediates=intermediates)
    assert torch.equal(intermediates["features"], features)
    branches = ("temporal", "spatial", "mlp") if attention == "divided" else ("spatial", "mlp")
    steps = [f"blocks.{i}{part}" for i in range(3) for part in [*(f".{b}" for b in branches), ""]]
    assert list(intermediates) == ["embedded", *steps, "features"]
    before = intermediates["embedded"]
    for number in range(3):
        added = {branch: intermediates[f"blocks.{number}.{branch}"].clone() for branch in branches}
        if attention == "divided":
            added["temporal"][:, 0] = 0  # the class token takes no part in temporal attention
        before = before + sum(added.values())
        torch.testing.assert_close(intermediates[f"blocks.{number}"], before, rtol=1e-5, atol=1e-4)
    assert intermediates["blocks.2"].shape == (11, 10, 32)


def test_asking_for_them_changes_nothing() -> None:
    model = build().eval()
    assert torch.equal(
        model.forward_features(pixels(), MIXED, intermediates={}), model.forward_features(pixels(), MIXED)
    )


# --- parameters -------------------------------------------------------------------------------------------------------


def test_every_parameter_has_a_layer_and_layers_go_up_with_depth() -> None:
    model = build(layer_scale=0.1, time="additive")
    layers = {name: model.backbone.layer_of(name) for name, _ in model.backbone.named_parameters()}
    assert {
        layers[name] for name in ("cls_token", "pos_embed", "time_embed", "patch_embed.weight", "patch_embed.bias")
    } == {0}
    for block in range(3):
        assert {layer for name, layer in layers.items() if name.startswith(f"blocks.{block}.")} == {block + 1}
    assert {layers[name] for name in ("norm.weight", "norm.bias")} == {4}
    below = {name: model.layers_above()[name] for name, _ in model.named_parameters()}
    assert below == {
        **{f"backbone.{name}": 4 - layer for name, layer in layers.items()},
        "heads.things.weight": 0,
        "heads.things.bias": 0,
    }


def test_weight_decay_is_for_matrices_alone() -> None:
    model = build(layer_scale=0.1, time="additive")
    decayed = {name for name, _ in model.named_parameters()} - model.no_decay_parameters()
    embeddings = {f"backbone.{name}" for name in ("cls_token", "pos_embed", "time_embed")}
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.ndim > 1} - embeddings


def test_temporal_parameters_are_what_an_image_vit_does_not_have() -> None:
    model, image = build(layer_scale=0.1, time="additive"), build(layer_scale=0.1, attention="space")
    both = {name for name, _ in image.named_parameters()}
    assert model.temporal_parameters() == {name for name, _ in model.named_parameters()} - both
    assert image.temporal_parameters() == frozenset()
    assert build(attention="joint", time="additive").temporal_parameters() == {"backbone.time_embed"}


@pytest.mark.parametrize("name", ["temporal", "time_embed", "abnormal", "scale", "norm", "backbone", "bias"])
def test_the_name_of_a_head_says_nothing_of_its_parameters(name: str) -> None:
    model = CoVeR(TimeSformerConfig(**SHAPE), (Head(name, ("a", "b")),))
    assert f"heads.{name}.weight" not in model.temporal_parameters() | model.no_decay_parameters()
    assert f"heads.{name}.bias" in model.no_decay_parameters()
    assert model.layers_above()[f"heads.{name}.weight"] == 0


def test_layer_scale_starts_every_branch_at_its_value() -> None:
    torch.manual_seed(0)
    model = CoVeR(TimeSformerConfig(**SHAPE, layer_scale=0.25)).eval()
    scaled, plain = {}, {}
    model.forward_features(pixels(), MIXED, intermediates=scaled)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scale" in name:
                assert bool((parameter == 0.25).all())
                parameter.fill_(1.0)
    model.forward_features(pixels(), MIXED, intermediates=plain)
    torch.testing.assert_close(scaled["blocks.0.spatial"], plain["blocks.0.spatial"] * 0.25)


@pytest.mark.parametrize("where", ["dropout", "head_dropout"])
def test_dropout_is_for_training_alone(where: str) -> None:
    model, plain = build(**{where: 0.5}), build()
    plain.eval()
    assert not torch.equal(model(pixels(), MIXED)["things"], model(pixels(), MIXED)["things"])
    model.eval()
    assert torch.equal(model(pixels(), MIXED)["things"], plain(pixels(), MIXED)["things"])


# --- the same function, computed otherwise ----------------------------------------------------------------------------


@KINDS
def test_checkpointing_changes_no_gradient_and_keeps_less(attention: str) -> None:
    model, frames = build(attention=attention).train(), pixels()
    retained = []

    def note(tensor: Tensor) -> Tensor:
        retained.append(tensor.nbytes)
        return tensor

    result, memory = {}, {}
    for on in (False, True):
        model.set_checkpointing(on)
        retained.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(frames, MIXED)["things"].square().sum()
        memory[on] = sum(retained)
        loss.backward()
        result[on] = {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }
        model.zero_grad(set_to_none=True)
    assert all(torch.equal(result[True][name], gradient) for name, gradient in result[False].items())
    assert memory[True] < memory[False] / 3


@pytest.mark.parametrize(
    "mode", [{}, {"time": "additive"}, {"image_temporal": "skip"}, {"attention": "joint"}], ids=str
)
def test_compiled_blocks_share_one_graph_for_a_pack_layout(mode: dict[str, Any]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, frames = build(**mode), pixels()
    wanted = gradients(model, frames)
    model.compile_stages(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        result = gradients(model, frames)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for name, gradient in wanted.items():
        torch.testing.assert_close(result[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@KINDS
def test_an_exported_graph_computes_the_same(attention: str) -> None:
    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = build(attention=attention).eval()

        def forward(self, frames: Tensor) -> Tensor:
            return self.model(frames, MIXED)["things"]

    alone = Alone()
    exported = torch.export.export(alone, (pixels(),)).module()
    torch.testing.assert_close(exported(pixels()), alone(pixels()), rtol=1e-5, atol=1e-5)


# --- sizes ------------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(("height", "width", "frames"), [(24, 24, 4), (32, 16, 4), (8, 40, 3), (24, 24, 33)])
def test_any_number_of_frames_and_any_multiple_of_the_patch(
    attention: str, height: int, width: int, frames: int
) -> None:
    model, groups = build(attention=attention, time="additive").eval(), ((1, frames), (2, 1))
    features = model.forward_features(torch.randn(frames + 2, 3, height, width), groups)
    assert features.shape == (3, 32)
    assert bool(features.isfinite().all())
