"""Tokens that are not computed: patches and frames that do not change, and places that training leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cover.model.backbone import Backbone
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.backbones.vit import Vit, VitConfig, VitOptions
from cover.model.cover import CoVeR
from cover.training.step import retained_tubes

SHAPE: dict[str, Any] = {
    "width": 24,
    "depth": 2,
    "attention_heads": 2,
    "hidden": 48,
    "patch": 4,
    "size": 12,
    "frames": 4,
}


def network(config: VitConfig | TimeSformerConfig) -> Backbone:
    """A network whose every parameter is random."""
    backbone = CoVeR(config).backbone.eval()
    with torch.no_grad():
        for number, parameter in enumerate(backbone.parameters()):
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(number))
    return backbone


def vit(static: float | None = None, **changes: Any) -> Vit:
    backbone = network(VitConfig(**{**SHAPE, "static_patches": static, **changes}))
    assert isinstance(backbone, Vit)
    return backbone


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("changes", [{}, {"pool": "mean"}, {"pool": "class_mean"}, {"rotary": "halves"}], ids=str)
@pytest.mark.parametrize("attention", ["joint", "space", "late"])
@torch.no_grad()
def test_with_equal_patches_the_result_is_that_of_the_whole_network(attention: Any, changes: dict[str, Any]) -> None:
    if attention == "late" and changes.get("pool") == "class_mean":
        pytest.skip("a late encoder reads one feature of a slot")
    whole, static = vit(None, attention=attention, **changes), vit(0.0, attention=attention, **changes)
    still, moving = pictures(1).repeat(4, 1, 1, 1), pictures(1, 1).repeat(4, 1, 1, 1)
    moving[2:, :, 4:8, :4] += 0.5  # one patch of the last two frames
    frames, groups = torch.cat([still, moving, pictures(4, 2), pictures(2, 3)]), ((3, 4), (2, 1))
    torch.testing.assert_close(static(frames, groups), whole(frames, groups), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_pack_is_as_each_sample_alone_and_repeated_patches_are_no_tokens() -> None:
    static = vit(0.02, attention="joint", time="additive")
    still = pictures(1).repeat(4, 1, 1, 1) + 0.01 * pictures(4, 5)  # noise below the threshold: 0.01 * 0.5 of the range
    frames, noted = torch.cat([still, pictures(4, 2), pictures(1, 3)]), {}
    packed = static(frames, ((2, 4), (1, 1)), None, noted)
    alone = [static(frames[:4], ((1, 4),)), static(frames[4:8], ((1, 4),)), static(frames[8:], ((1, 1),))]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert len(noted["embedded"]) == (1 + 9) + (1 + 4 * 9) + (1 + 9)


@torch.no_grad()
def test_a_slow_change_is_not_lost() -> None:
    """Each frame differs from the one before by less than the threshold, and the last one from the first by more."""
    slow = pictures(1).repeat(4, 1, 1, 1) + torch.tensor([0.0, 0.03, 0.06, 0.09])[:, None, None, None]
    noted: dict[str, Tensor] = {}
    vit(0.02, attention="joint")(slow, ((1, 4),), None, noted)
    assert len(noted["embedded"]) == 1 + 2 * 9


def test_a_roll_out_has_every_patch() -> None:
    static, frames = vit(0.5, attention="joint"), pictures(1).repeat(4, 1, 1, 1)
    torch.testing.assert_close(static.heat(frames, None).heat, vit(None, attention="joint").heat(frames, None).heat)
    assert static.embed.static == 0.5


@torch.no_grad()
def test_tubelets_that_do_not_change() -> None:
    changes = {"attention": "joint", "tubelet": 2}
    frames = pictures(1).repeat(4, 1, 1, 1)
    packed, image = torch.cat([frames, frames[:1]]), ((1, 4), (1, 1))
    torch.testing.assert_close(vit(0.0, **changes)(packed, image), vit(None, **changes)(packed, image))


def test_gradients_reach_the_network_and_the_frames() -> None:
    static, frames = vit(0.0, attention="space"), pictures(2).repeat_interleave(2, 0).requires_grad_()
    static(frames, ((1, 4),)).sum().backward()
    assert all(parameter.grad is not None for parameter in static.parameters())
    assert frames.grad is not None
    assert frames.grad[[0, 2]].abs().sum() > 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"static_patches": 2.0}, "static_patches"),
        ({"static_patches": 0.1, "attention": "divided"}, "divided"),
        ({"static_patches": 0.1, "attention": "joint", "pool": "probe"}, "probe"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        VitConfig(**{**SHAPE, **changes})


# --- tube dropping


NETWORKS = {
    "timesformer": TimeSformerConfig(width=24, depth=2, attention_heads=2, patch=4, size=12, frames=4),
    "timesformer, additive": TimeSformerConfig(
        width=24, depth=2, attention_heads=2, patch=4, size=12, frames=4, time="additive"
    ),
    **{
        f"vit, {kind}": VitConfig(**{**SHAPE, "attention": kind, "rotary": rotary})
        for kind, rotary in (("joint", "halves"), ("joint", "none"), ("space", "halves"), ("divided", "none"))
    },
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_all_places_are_the_whole_network_and_a_place_that_is_left_out_has_no_effect(name: str) -> None:
    backbone, groups = network(NETWORKS[name]), ((2, 4), (1, 1))
    frames, everything = pictures(9), torch.arange(9).expand(3, -1)
    torch.testing.assert_close(backbone(frames, groups, tubes=everything), backbone(frames, groups))

    tubes = torch.tensor([[0, 4, 5], [1, 2, 8], [0, 1, 2]])
    features = backbone(frames, groups, tubes=tubes)
    changed = frames.clone()
    changed[:4, :, :4, 4:8] += 1.0  # place 1, which the first clip leaves out and the second retains
    changed[4:8, :, 4:8, 4:8] += 1.0  # place 4, the other way round
    torch.testing.assert_close(backbone(changed, groups, tubes=tubes), features)
    changed[4:8, :, :4, 4:8] += 1.0
    again = backbone(changed, groups, tubes=tubes)
    assert not torch.allclose(again[1], features[1])
    torch.testing.assert_close(again[[0, 2]], features[[0, 2]])


def test_places_are_those_of_the_draw() -> None:
    seeds = torch.tensor([5, 6, -(2**62)])
    tubes = retained_tubes(seeds, 49, 0.5)
    assert tubes is not None
    assert tubes.shape == (3, 24)
    assert torch.equal(tubes, torch.cat([retained_tubes(seed[None], 49, 0.5) for seed in seeds]))  # type: ignore
    assert all(len(set(row)) == 24 and row == sorted(row) for row in tubes.tolist())
    many = retained_tubes(torch.arange(4000), 49, 0.5)
    assert many is not None
    counts = torch.bincount(many.flatten(), minlength=49) / 4000  # every place is as likely
    assert (counts - 24 / 49).abs().max() < 0.04
    assert retained_tubes(seeds, 49, 0.0) is None


def test_a_recipe_asks_for_both() -> None:
    options = VitOptions(preset="vit_s16", size=32, attention="joint", static_patches=0.05, drop_tubes=0.5)
    options.check()
    assert options.config(8).static_patches == 0.05
    with pytest.raises(ValueError, match=r"model\.drop_tubes"):
        VitOptions(drop_tubes=1.0).check()
