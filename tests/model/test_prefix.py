"""The first stages of a network and the rest of it, computed apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbone import Backbone, BackboneConfig, Groups, Intermediates, Pixels
from cover.model.backbones.conv3d import Conv3dConfig
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.backbones.video_swin import VideoSwinConfig
from cover.model.backbones.vidtr import VidTrConfig
from cover.model.backbones.vit import vit_config
from cover.model.cover import CoVeR
from cover.model.heads import Head

SMALL = TimeSformerConfig(size=16, patch=8, width=32, depth=3, attention_heads=4, frames=4)
CONFIGS: dict[str, BackboneConfig] = {
    "divided": SMALL,
    "additive": TimeSformerConfig(**{**vars(SMALL), "time": "additive", "patch_embed": "conv"}),
    "skip": TimeSformerConfig(**{**vars(SMALL), "image_temporal": "skip", "layer_scale": 0.5}),
    "joint": TimeSformerConfig(**{**vars(SMALL), "attention": "joint"}),
    "space": TimeSformerConfig(**{**vars(SMALL), "attention": "space", "dropout": 0.5}),
    "conv3d": Conv3dConfig(size=16, channels=(8, 16)),
    "efficientnet_lite": EfficientNetLiteConfig(size=16, depth=2),
    "video_swin": VideoSwinConfig(
        size=16, channels=8, depths=(2, 1), attention_heads=(1, 2), window=3, window_frames=2
    ),
    "vidtr": VidTrConfig(size=16, patch=8, width=16, depth=2, attention_heads=2, dropout=0.5),
    "vit_space": vit_config("vit_mini8", size=16, depth=2, width=16, hidden=32, frame_pool="attentive"),
    "vit_joint": vit_config("vit_mini8", size=16, depth=2, width=16, hidden=32, attention="joint", time="additive"),
    "vit_late": vit_config("vit_mini8", size=16, depth=2, width=16, hidden=32, attention="late"),
}
EACH = pytest.mark.parametrize("name", CONFIGS)
MIXED: Groups = ((2, 4), (1, 3), (2, 1))


def build(name: str) -> CoVeR:
    """Every parameter random, so that no branch adds zero."""
    model = CoVeR(CONFIGS[name], (Head("moves", ("up", "down")),)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in key and key.endswith("weight") else 0.0, 0.2, generator=generator)
    return model


def pixels() -> torch.Tensor:
    return torch.randn(13, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@EACH
def test_prefix_and_suffix_are_the_whole_network_for_every_number_of_stages(name: str) -> None:
    model, frames = build(name), pixels()
    whole = model.backbone(frames, MIXED)
    for stages in range(len(model.backbone.stages()) + 1):
        prefix = model.backbone.forward_prefix(frames, MIXED, stages)
        assert len(prefix) == len(frames), "one entry for each frame"
        assert torch.equal(model.backbone.forward_suffix(prefix, MIXED, stages), whole)
        assert torch.equal(model(prefix, MIXED, stages=stages)["moves"], model(frames, MIXED)["moves"])


@EACH
def test_the_prefix_of_a_sample_does_not_depend_on_the_rest_of_a_pack(name: str) -> None:
    model, frames = build(name), pixels()
    packed = model.forward_prefix(frames, MIXED, 1)
    alone = [model.forward_prefix(part, ((1, len(part)),), 1) for part in frames.split([4, 4, 3, 1, 1])]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


@EACH
def test_a_training_network_computes_its_prefix_as_in_evaluation(name: str) -> None:
    model, frames = build(name), pixels()
    wanted = model.forward_prefix(frames, MIXED, 1)
    model.train()
    assert torch.equal(model.forward_prefix(frames, MIXED, 1), wanted)
    assert all(module.training for module in model.modules()), "and it trains on"


def test_drop_path_of_the_stages_that_run_has_their_own_factors() -> None:
    model, frames = build("divided"), pixels()
    drop = torch.rand(3, 3, 5, generator=torch.Generator().manual_seed(2))
    drop[:1] = 1  # the first block drops nothing
    prefix = model.forward_prefix(frames, MIXED, 1)
    assert torch.equal(model.backbone.forward_suffix(prefix, MIXED, 1, drop), model.backbone(frames, MIXED, drop))


def test_intermediates_of_a_suffix_are_those_of_the_whole() -> None:
    model, frames = build("divided"), pixels()
    whole: dict[str, torch.Tensor] = {}
    rest: dict[str, torch.Tensor] = {}
    model.backbone(frames, MIXED, intermediates=whole)
    model.backbone.forward_suffix(model.forward_prefix(frames, MIXED, 2), MIXED, 2, intermediates=rest)
    assert set(rest) == {"blocks.2.temporal", "blocks.2.spatial", "blocks.2.mlp", "blocks.2", "features"}
    assert all(torch.equal(rest[key], whole[key]) for key in rest)


def test_the_gradient_reaches_the_suffix_alone() -> None:
    model, frames = build("divided"), pixels()
    model(model.forward_prefix(frames, MIXED, 2), MIXED, stages=2)["moves"].sum().backward()
    reached = {name.split(".")[2] for name, p in model.named_parameters() if "blocks" in name and p.grad is not None}
    assert reached == {"2"}


def test_a_family_without_separate_stages_is_named() -> None:
    class Whole(Backbone):
        config = Conv3dConfig()

        @property
        def pixels(self) -> Pixels:
            return Pixels(16)

        def forward(
            self, frames: Tensor, groups: Groups, drop: Tensor | None = None, intermediates: Intermediates | None = None
        ) -> Tensor:
            return frames.mean((2, 3))

        def stages(self) -> tuple[nn.Module, ...]:
            return ()

    with pytest.raises(UserError, match=r"cache\.stages.*conv3d"):
        Whole().forward_prefix(pixels(), MIXED, 1)


def test_layers_of_drop_path_in_a_prefix() -> None:
    divided, lite = build("divided").backbone, build("efficientnet_lite").backbone
    assert [divided.drop_layers_within(stages) for stages in range(4)] == [0, 1, 2, 3]
    assert [lite.drop_layers_within(stages) for stages in (0, 1, 8, 9, 10, 11)] == [0, 0, 0, 1, 2, 2]
