"""Plain vision transformers: every preset's size and cost, clips beside images, what an image is, and how a new
temporal part begins. `tests/model/starts/test_published_vits.py` holds them against the published networks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.backbones.vit import Vit, VitConfig, VitOptions, vit_config
from cover.model.backbones.vit_presets import PRESETS
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.profile import count_parameters, forward_cost, on_meta
from cover.model.release import start_from

TINY: dict[str, Any] = {"width": 32, "depth": 2, "attention_heads": 2, "hidden": 64, "frames": 8}
MIXED: Groups = ((2, 8), (1, 4), (2, 1))
KINDS = [
    {"attention": "joint"},
    {"attention": "joint", "time": "additive"},
    {"attention": "space"},
    {"attention": "space", "frame_pool": "quarters"},
    {"attention": "late"},
    {"attention": "divided", "time": "rotary"},
    {"attention": "divided", "time": "additive", "layer_scale": 0.1},
    {"attention": "joint", "learned_tokens": 3, "learner_after": 1},
    {"attention": "late", "learned_tokens": 3, "learner": "v1.0"},
    {"attention": "joint", "learned_tokens": 3, "fuser": True},
    {"attention": "space", "added_blocks": 1},
    {"attention": "joint", "added_blocks": 1},
]


def tiny(preset: str, **changes: Any) -> VitConfig:
    """The configuration of a preset at a small size, two patches along a side."""
    table = {"position_grid": ()} if "position_grid" in PRESETS[preset] else {}
    return vit_config(preset, **{**TINY, **table, "size": 2 * PRESETS[preset].get("patch", 16), **changes})


def build(config: VitConfig) -> CoVeR:
    """Every parameter moved away from its initial value."""
    model = CoVeR(config, (Head("moves", ("up", "down")),)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def pixels(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


# --- sizes and costs: published, or counted on the published code -----------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "changes", "classes", "parameters", "giga"),
    [
        ("vit_b16", {}, 0, 85_798_656, 17.56),
        ("vit_l16", {}, 0, 303_301_632, 61.55),
        ("vit_b16", {"size": 384, "class_token": False, "pool": "mean"}, 0, 86_088_960, 55.38),
        ("dinov2_b14", {}, 0, 86_579_712, 151.57),
        ("dinov2_b14_reg4", {}, 0, 86_582_784, 152.12),
        ("dinov3_s16", {"qkv_bias": "none"}, 0, 21_586_944, 6.25),
        ("dinov3_b16", {"qkv_bias": "none"}, 0, 85_641_216, 23.57),
        ("dinov3_l16", {"qkv_bias": "none"}, 0, 303_079_424, 82.37),
        ("clip_b16", {}, 0, 85_799_424, 17.56),
        ("siglip2_b16", {}, 0, 92_884_224, None),
        ("eva02_b14", {}, 0, 85_758_720, 23.16),
        ("eva02_l14", {}, 0, 303_268_800, 81.00),
        ("videomae_b16", {}, 400, 86_534_800, 180.34),
        ("videomae_l16", {}, 400, 304_270_736, 596.83),
        ("videomae_h16", {}, 400, 632_119_440, 1190.99),
        ("vjepa2_l16", {}, 0, 303_885_312, 827.9),
        ("vjepa2_h16", {}, 0, 631_648_000, 1636.1),
        ("vjepa2_g16", {}, 0, 1_012_173_952, 2543.8),
        ("vjepa2_l16", {"pool": "attentive"}, 174, 303_885_312 + 49_514_670, None),
        ("vivit1_b16x2", {}, 400, 88_954_000, 451.5),
        ("vivit2_b16x2", {}, 400, 115_062_928, 283.3),
        ("vivit2_l16x2", {}, 400, 354_903_440, 988.2),
        ("vivit3_b16x2", {}, 400, 117_319_312, 371.1),
        ("vivit4_b16x2", {}, 400, 88_952_464, None),
        ("vatt_base", {}, 400, 87_753_616, 182.3),
        ("vatt_medium", {}, 400, 154_753_424, 302.3),
        ("vatt_large", {}, 400, 305_908_112, 599.8),
    ],
)
def test_parameters_and_multiply_adds(
    preset: str, changes: dict[str, Any], classes: int, parameters: int, giga: float | None
) -> None:
    config = vit_config(preset, **changes)
    model = on_meta(config, {"k400": classes} if classes else {})
    assert count_parameters(model).total == parameters
    if giga:
        groups = ((1, 1),) if config.attention == "space" else ((1, config.frames),)
        assert forward_cost(model, groups, config.size).multiply_adds / 1e9 == pytest.approx(giga, rel=1e-3)


# --- a Pack -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("preset", "kind"), [(preset, {}) for preset in PRESETS] + [("dinov2_b14", k) for k in KINDS])
def test_a_pack_equals_its_samples_alone(preset: str, kind: dict[str, Any]) -> None:
    """Also from the stored output of every number of stages, and with the samples in another order."""
    model = build(tiny(preset, **kind))
    frames = pixels(22, model.config.size)
    packed = model.forward_features(frames, MIXED)
    alone = [model.forward_features(part, ((1, len(part)),))[0] for part in frames.split([8, 8, 4, 1, 1])]
    torch.testing.assert_close(packed, torch.stack(alone), rtol=1e-5, atol=1e-5)
    for stages in (1, 2):
        stored = model.forward_prefix(frames, MIXED, stages)
        assert stored.shape[0] == len(frames)
        torch.testing.assert_close(model.forward_features(stored, MIXED, stages=stages), packed, rtol=1e-5, atol=1e-5)
    swapped = torch.cat([frames[8:16], frames[:8], frames[16:20], frames[21:], frames[20:21]])
    torch.testing.assert_close(model.forward_features(swapped, MIXED), packed[[1, 0, 2, 4, 3]], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["videomae_b16", "vjepa2_l16", "vivit1_b16x2", "vivit2_b16x2", "vatt_base"])
def test_an_image_is_repeated_to_one_tubelet(preset: str) -> None:
    model = build(tiny(preset))
    image, tubelet = pixels(1, model.config.size), model.backbone.pixels.tubelet
    still = model.forward_features(image.expand(tubelet, -1, -1, -1), ((1, tubelet),))
    torch.testing.assert_close(model.forward_features(image, ((1, 1),)), still, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="multiple of"):
        model.forward_features(pixels(tubelet + 1, model.config.size), ((1, tubelet + 1),))


@torch.no_grad()
def test_an_inflated_vivit_computes_on_an_image_what_the_image_network_computes() -> None:
    """For both published inflations of the kernel: its central frame alone, and equal parts in all frames."""
    image_model = build(tiny("vit_b16", mlp="gelu_tanh"))
    weights, image = image_model.backbone.state_dict(), pixels(2, 32)
    wanted = image_model.forward_features(image, ((2, 1),))
    for parts in ((0.0, 1.0), (0.5, 0.5)):
        model = CoVeR(tiny("vivit1_b16x2"))
        kernel = torch.stack([part * weights["embed.patches.weight"] for part in parts], 2)
        table = weights["embed.pos_embed"].expand(4, -1, -1, -1)
        model.backbone.load_state_dict({**weights, "embed.patches.weight": kernel, "embed.pos_embed": table})
        torch.testing.assert_close(model.forward_features(image, ((2, 1),)), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["vit_b16", "dinov2_b14_reg4", "dinov3_b16", "clip_b16", "siglip2_b16", "eva02_b14"])
def test_a_new_temporal_part_adds_nothing(preset: str) -> None:
    """On an image every video network computes what its image network computes; divided attention also on clips."""
    image_model = build(tiny(preset))
    weights, frames = image_model.backbone.state_dict(), pixels(17, image_model.config.size)
    groups: Groups = ((2, 8), (1, 1))
    wanted = image_model.forward_features(frames, groups)
    for kind in ({"attention": "divided", "time": "rotary"}, {"attention": "divided", "time": "additive"}):
        model = CoVeR(tiny(preset, **kind))
        model.backbone.load_state_dict({**model.backbone.state_dict(), **weights})
        for how in ("fresh", "copied"):
            model.backbone.reset_temporal(how)
            assert model.backbone.temporal_is_new(model.backbone.state_dict())
            torch.testing.assert_close(model.forward_features(frames, groups), wanted, rtol=1e-5, atol=1e-5)
    joint = CoVeR(tiny(preset, attention="joint", time="additive"))
    joint.backbone.load_state_dict({**joint.backbone.state_dict(), **weights})
    torch.testing.assert_close(joint.forward_features(frames, groups)[2], wanted[2], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"start\.temporal"):
        image_model.backbone.reset_temporal("fresh")


@torch.no_grad()
def test_the_order_of_frames_counts_where_time_has_positions() -> None:
    frames = pixels(8, 32)
    for kind in KINDS:
        model = build(tiny("vit_b16", **kind))
        one, other = (model.forward_features(x, ((1, 8),)) for x in (frames, frames.flip(0)))
        own = {"time", "frame_pool"} | ({"added_blocks"} if kind["attention"] == "space" else set())
        blind = kind["attention"] in ("joint", "space") and not own & kind.keys()
        assert torch.allclose(one, other, atol=1e-5) == blind, kind


@torch.no_grad()
def test_the_tokens_of_vatt_by_hand() -> None:
    """Positions of slots, rows and columns are summed and normalised; the class token has none."""
    model = build(tiny("vatt_base", size=32)).double()
    weights, clip = model.backbone.state_dict(), pixels(8, 32).double()
    seen: dict[str, Tensor] = {}
    model.forward_features(clip, ((1, 8),), intermediates=seen)
    rows = [weights["embed.cls_token"][0]]
    for slot in range(2):
        for row in range(2):
            for column in range(2):
                place = clip[4 * slot : 4 * slot + 4, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
                kernel = weights["embed.patches.weight"].flatten(1)
                patch = kernel @ place.transpose(0, 1).flatten() + weights["embed.patches.bias"]
                tables = ("pos_slots", slot), ("pos_rows", row), ("pos_columns", column)
                position = sum(weights[f"embed.{name}"][number] for name, number in tables)
                scale, shift = weights["embed.pos_norm.weight"], weights["embed.pos_norm.bias"]
                rows.append(patch + torch.nn.functional.layer_norm(position, (32,), scale, shift, 1e-6))
    torch.testing.assert_close(seen["embedded"], torch.stack(rows), rtol=1e-5, atol=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradients_reach_every_parameter_with_and_without_checkpointing(kind: dict[str, Any]) -> None:
    model = build(tiny("dinov2_b14_reg4", **kind)).train()
    gradients = []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        model(pixels(22, 28), MIXED)["moves"].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients[-1].values())
    for name, grad in gradients[0].items():
        torch.testing.assert_close(grad, gradients[1][name], msg=name)


@torch.no_grad()
def test_drop_path_factors_belong_to_samples() -> None:
    for kind in ({"attention": "joint"}, {"attention": "divided", "time": "rotary"}):
        model = build(tiny("vit_b16", **kind))
        frames, (layers, branches) = pixels(22, 32), model.backbone.drop_shape()
        assert (layers, branches) == (2, 3 if kind["attention"] == "divided" else 2)
        plain = model.forward_features(frames, MIXED)
        drop = torch.ones(layers, branches, 5)
        assert torch.equal(model.forward_features(frames, MIXED, drop), plain)
        drop[:, :, 1] = 0  # the second sample has its embedding alone
        dropped = model.forward_features(frames, MIXED, drop)
        assert torch.equal(dropped[[0, 2, 3, 4]], plain[[0, 2, 3, 4]])
        assert not torch.allclose(dropped[1], plain[1])


def test_dropped_tokens() -> None:
    model = build(tiny("vatt_base", size=64))
    frames, lengths = pixels(22, 64), []
    model.backbone.stages()[0].register_forward_hook(lambda _m, inputs, _o: lengths.append(inputs[1].samples))
    model(frames, MIXED)
    model.train()
    torch.manual_seed(0)
    first = model.forward_features(frames, MIXED)
    torch.manual_seed(0)
    assert torch.equal(first, model.forward_features(frames, MIXED))  # the same patches for the whole Pack
    torch.manual_seed(1)
    assert not torch.allclose(first, model.forward_features(frames, MIXED))
    assert lengths[0] == ((2, 1 + 2 * 16), (1, 1 + 16), (2, 1 + 16))
    assert lengths[1] == ((2, 1 + 16), (1, 1 + 8), (2, 1 + 8))
    assert torch.equal(model.forward_prefix(frames, MIXED, 1), model.eval().forward_prefix(frames, MIXED, 1))


def test_parameters_by_their_place() -> None:
    backbone = build(tiny("vit_b16", attention="divided", time="additive")).backbone
    places = {"embed.patches.weight": 0, "embed.time_embed": 0, "blocks.1.mlp.fc1.weight": 2, "norm.weight": 3}
    assert {name: backbone.layer_of(name) for name in places} == places
    temporal = backbone.temporal_parameters()
    assert "embed.time_embed" in temporal
    assert {name.split(".")[2] for name in temporal if name.startswith("blocks")} == {"temporal_norm", "temporal_attn"}
    assert {"embed.cls_token", "embed.pos_embed", "embed.pos_before"} <= backbone.no_decay_parameters()
    late = build(tiny("vivit2_b16x2")).backbone
    assert {name.split(".")[0] for name in late.temporal_parameters()} == {"late"}
    assert {"late.cls_token", "late.pos_embed"} <= late.no_decay_parameters()
    assert "pool.query" in build(tiny("siglip2_b16")).backbone.no_decay_parameters()


# --- other sizes and starts -------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("preset", "attention"), [("dinov2_b14", "space"), ("eva02_b14", "divided"), ("videomae_b16", "joint")]
)
def test_added_blocks_begin_as_nothing(preset: str, attention: str, tmp_path: Path) -> None:
    """A start without them gives the same features, and clips of another order differ as soon as they are trained."""
    before = build(tiny(preset, attention=attention))
    before.save_pretrained(tmp_path)
    options = before.config.options().with_late_block()
    assert isinstance(options, VitOptions)
    model = CoVeR(replace(options, frame_pool=None).config(8, before.config), before.head_list).eval()
    start_from(model, tmp_path, "keep")
    frames = pixels(22, model.config.size)
    torch.testing.assert_close(model(frames, MIXED), before(frames, MIXED))
    assert model.backbone.prefix_state(2).keys() == before.backbone.prefix_state(2).keys()
    assert model.config.prefix_values() == before.config.prefix_values()
    random = torch.Generator().manual_seed(0)
    for name in model.backbone.added_parameters(before.config):
        model.backbone.get_parameter(name).normal_(std=0.2, generator=random)
    assert not model(frames, MIXED)["moves"].allclose(before(frames, MIXED)["moves"], atol=1e-3)
    clip = frames[:8].double()
    turned = model.double()(clip.flip(0), ((1, 8),))["moves"] - model(clip, ((1, 8),))["moves"]
    assert turned.abs().max() > 1e-8  # rounding, all that is left where the order changes nothing, is below 1e-13
    model.float()
    model.save_pretrained(tmp_path / "added")
    with pytest.raises(UserError, match=r"model\.added_blocks is 1, this run's 0"):
        start_from(before, tmp_path / "added", "keep")


def test_tables_of_another_size_or_length() -> None:
    for preset, attention in (
        ("vivit1_b16x2", None),
        ("vatt_base", None),
        ("vivit2_b16x2", None),
        ("vit_b16", "joint"),
    ):
        joint = {"attention": "joint", "time": "additive"} if attention else {}
        small, large = build(tiny(preset, **joint)), CoVeR(tiny(preset, **{**joint, "size": 64, "frames": 16})).eval()
        weights = dict(small.backbone.state_dict())
        notes = large.backbone.fit_embeddings(weights)
        assert notes
        assert all(" to " in note for note in notes)
        large.backbone.load_state_dict(weights)
        # The smaller network resizes its tables when it sees larger clips.
        frames = pixels(16, 64)
        assert isinstance(small.backbone, Vit)
        if preset != "vivit2_b16x2":
            other = small.forward_features(frames, ((1, 16),))
            torch.testing.assert_close(large.forward_features(frames, ((1, 16),)), other, rtol=1e-4, atol=1e-5)


def test_a_fixed_table_stays_that_of_its_own_grid() -> None:
    config = tiny("videomae_b16")
    own = replace(config, position_grid=config.grid, size=64)
    frames = pixels(8, 64)
    small, large = build(config), build(own)
    large.load_state_dict(small.state_dict())
    torch.testing.assert_close(small.forward_features(frames, ((1, 8),)), large.forward_features(frames, ((1, 8),)))


@torch.no_grad()
def test_a_head_for_quarters() -> None:
    mean, quarters = build(tiny("dinov2_b14")), build(tiny("dinov2_b14", frame_pool="quarters"))
    quarters.backbone.load_state_dict(mean.backbone.state_dict())
    weight = mean.heads["moves"].weight
    fitted = quarters.backbone.fitted_head(weight, mean.config)
    frames = pixels(9, 28)
    groups: Groups = ((1, 8), (1, 1))
    torch.testing.assert_close(
        quarters.forward_features(frames, groups) @ fitted.T, mean.forward_features(frames, groups) @ weight.T
    )
    assert VitOptions(preset="dinov2_b14").pooled_by("quarters") == VitOptions(
        preset="dinov2_b14", frame_pool="quarters"
    )
    assert VitOptions(preset="vjepa2_l16").pooled_by("quarters") is None


@pytest.mark.parametrize(
    ("ours", "theirs", "temporal", "key"),
    [
        ({"mlp": "gelu_quick"}, {}, True, "model.mlp"),
        ({"attention_heads": 4}, {}, True, "model.attention_heads"),
        ({"rotary": "halves"}, {}, False, "model.rotary"),
        ({"attention": "joint"}, {}, True, "start.temporal"),
        ({"attention": "divided", "time": "rotary"}, {}, False, None),
        ({"layer_scale": 0.1}, {}, True, "model.layer_scale"),
        ({"layer_scale": 0.1}, {"layer_scale": 1.0}, True, None),
        ({"frame_pool": "quarters", "size": 64, "frames": 4}, {}, True, None),
        ({}, {"frame_pool": "attentive"}, True, "model.frame_pool"),
    ],
)
def test_starts_that_would_compute_something_else(
    ours: dict[str, Any], theirs: dict[str, Any], temporal: bool, key: str | None
) -> None:
    reason = tiny("vit_b16", **ours).difference(tiny("vit_b16", **theirs), temporal)
    assert reason is None if key is None else reason is not None and key in reason


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"attention_heads": 5}, "model.attention_heads"),
        ({"size": 30}, "model.size"),
        ({"tubelet": 3}, "model.frames"),
        ({"attention": "dot_product"}, "model.attention"),
        ({"time": "rotary"}, "model.time"),
        ({"time": "additive"}, "model.time"),
        ({"rotary": "pairs", "attention_heads": 16}, "model.rotary"),
        ({"pool": "class_distillation"}, "model.pool"),
        ({"attention": "late", "pool": "class_mean"}, "model.pool"),
        ({"drop_tokens": 0.5}, "model.drop_tokens"),
        ({"learned_tokens": 3, "rotary": "halves"}, "model.learned_tokens"),
        ({"learned_tokens": 3, "learner_after": 2}, "model.learner_after"),
    ],
)
def test_settings_that_make_no_network(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        tiny("vit_b16", **changes)


def test_presets_and_options() -> None:
    for preset in PRESETS:
        config = vit_config(preset)
        options = config.options()
        assert {**vars(options.config(config.frames)), "mean": None, "std": None} == {
            **vars(config),
            "mean": None,
            "std": None,
        }
    options = tiny("dinov3_b16", attention="late", late_depth=2).options()
    assert (options.preset, options.width, options.late_depth) == ("dinov3_s16", 32, 2)
    assert named_config("dinov2_b14", size=224) == vit_config("dinov2_b14", size=224)
    assert named_config("vit") == vit_config("vit_b16")
    with pytest.raises(UserError, match="dinov2_b14"):
        vit_config("dinov2_b15")
    with pytest.raises(UserError, match=r"model\.drop_tokens"):
        VitOptions(drop_tokens=1.5).check()
    with pytest.raises(UserError, match="--attention late"):
        named_config("B/16", attention="late")
    with pytest.raises(ValueError, match="attention_heads"):
        VitConfig(width=30, attention_heads=4)
