"""The network against itself sample by sample, and against two networks of the transformers library.

Every comparison first randomises every parameter: what starts at zero would hide a mistake.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbone import Groups, per_frame
from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig, TimeSformerOptions
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.layers import ConvStem, SummedPatchEmbed, attend_along, attend_over_time, rotate, rotation_of

SHAPE: dict[str, Any] = {"width": 32, "depth": 3, "attention_heads": 4, "patch": 8, "size": 24, "frames": 4}
HEADS = (Head("motion", ("up", "down", "left")), Head("things", ("cat", "dog", "cow", "owl", "bee")))
MODES = pytest.mark.parametrize(
    "mode",
    [{"time": t, "image_temporal": i} for t in ("rotary", "additive") for i in ("attend", "skip")]
    + [{"attention": a, "time": t} for a in ("joint", "space") for t in ("rotary", "additive")]
    + [{"time": "additive", "image_time": "first", "layer_scale": 0.5}]
    # not `conv` with `differences`: a GroupNorm of zeros makes gradients of its bias, which are 0, out of rounding
    + [
        {"motion": "differences"},
        {"motion": "both"},
        {"patch_embed": "conv", "motion": "both"},
        {"patch_embed": "both"},
    ],
    ids=lambda mode: "-".join(map(str, mode.values())),
)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Every parameter random and none near zero; the scales of norms around 1, so that attention is
    far from uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm_scale = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if norm_scale else 0.0, 0.2, generator=generator)


def build(heads: tuple[Head, ...] = HEADS, seed: int = 0, **changes: Any) -> CoVeR:
    model = CoVeR(TimeSformerConfig(**{**SHAPE, **changes}), heads).eval()
    randomise(model, seed)
    return model


def pixels(frames: int, seed: int = 0, size: int = SHAPE["size"]) -> Tensor:
    return torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(seed))


def close(results: Tensor, wanted: Tensor) -> None:
    """Equal up to fp32 rounding, measured against the largest entry."""
    torch.testing.assert_close(results, wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(wanted.detach().abs().max())))


def one_by_one(frames: Tensor, groups: Groups) -> list[Tensor]:
    lengths = [length for samples, length in groups for _ in range(samples)]
    return list(frames.split(lengths))


MIXED: Groups = ((2, 8), (3, 4), (1, 2), (2, 1))


@MODES
def test_a_pack_equals_its_clips_and_images_run_separately(mode: dict[str, Any]) -> None:
    model = build(**mode)
    frames = pixels(sum(samples * length for samples, length in MIXED))
    weights = {
        head.name: torch.randn(8, len(head.classes), generator=torch.Generator().manual_seed(7)) for head in HEADS
    }

    packed = model(frames, MIXED)
    sum((packed[name] * weights[name]).sum() for name in packed).backward()
    packed_gradient = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }

    model.zero_grad(set_to_none=True)
    for number, sample in enumerate(one_by_one(frames, MIXED)):
        alone = model(sample, ((1, len(sample)),))
        for name in alone:
            close(packed[name][number], alone[name][0])
        sum((alone[name] * weights[name][number]).sum() for name in alone).backward()
    assert packed_gradient.keys() == {
        name for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    for name, parameter in model.named_parameters():
        close(packed_gradient[name], parameter.grad)


@MODES
@pytest.mark.parametrize("groups", [((2, 4),), ((3, 1),), ((1, 8), (2, 4)), ((2, 4), (1, 1))], ids=str)
def test_packs_without_images_or_without_clips(mode: dict[str, Any], groups: Groups) -> None:
    model = build(**mode)
    frames = pixels(sum(samples * length for samples, length in groups))
    packed = model.forward_features(frames, groups)
    for number, sample in enumerate(one_by_one(frames, groups)):
        close(packed[number], model.forward_features(sample, ((1, len(sample)),))[0])


@MODES
def test_drop_path_factors_belong_to_their_samples(mode: dict[str, Any]) -> None:
    model = build(**mode)
    frames = pixels(sum(samples * length for samples, length in MIXED))
    drop = torch.rand(SHAPE["depth"], 3, 8, generator=torch.Generator().manual_seed(1)) * 2
    packed = model.forward_features(frames, MIXED, drop)
    for number, sample in enumerate(one_by_one(frames, MIXED)):
        close(packed[number], model.forward_features(sample, ((1, len(sample)),), drop[:, :, number : number + 1])[0])
    assert not torch.allclose(packed, model.forward_features(frames, MIXED), atol=1e-2)


@MODES
def test_dropping_every_branch_leaves_the_embedded_class_token(mode: dict[str, Any]) -> None:
    model = build(**mode)
    features = model.forward_features(pixels(9), ((2, 4), (1, 1)), torch.zeros(SHAPE["depth"], 3, 3))
    close(features, model.backbone.norm(model.backbone.cls_token + model.backbone.pos_embed[:, :1])[0].expand(3, -1))


# --- against the transformers library ---------------------------------------------------------------------------------


def copy_into(theirs: nn.Module, values: dict[str, Tensor]) -> None:
    """Fill a foreign network, leaving no parameter out."""
    theirs.load_state_dict(values, strict=True)


def vit_weights(ours: CoVeR) -> dict[str, Tensor]:
    """The non-temporal weights under the names of transformers' ViTModel."""
    state = ours.backbone.state_dict()
    values = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.bias"],
    }
    for kind in ("weight", "bias"):
        values[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for i in range(SHAPE["depth"]):
            mine, layer = f"blocks.{i}", f"layers.{i}"
            values[f"{layer}.layernorm_before.{kind}"] = state[f"{mine}.norm1.{kind}"]
            values[f"{layer}.layernorm_after.{kind}"] = state[f"{mine}.norm2.{kind}"]
            for letter, part in zip("qkv", state[f"{mine}.attn.qkv.{kind}"].chunk(3)):
                values[f"{layer}.attention.{letter}_proj.{kind}"] = part
            values[f"{layer}.attention.o_proj.{kind}"] = state[f"{mine}.attn.proj.{kind}"]
            for part in ("fc1", "fc2"):
                values[f"{layer}.mlp.{part}.{kind}"] = state[f"{mine}.mlp.{part}.{kind}"]
    return values


def timesformer_weights(ours: CoVeR) -> dict[str, Tensor]:
    """All weights under the names of transformers' TimesformerModel."""
    state = ours.backbone.state_dict()
    values = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.time_embeddings": state["time_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.bias"],
    }
    names = {
        "temporal_norm": "temporal_layernorm",
        "temporal_attn.qkv": "temporal_attention.attention.qkv",
        "temporal_attn.proj": "temporal_attention.output.dense",
        "temporal_fc": "temporal_dense",
        "norm1": "layernorm_before",
        "attn.qkv": "attention.attention.qkv",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for kind in ("weight", "bias"):
        values[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for i in range(SHAPE["depth"]):
            values |= {
                f"encoder.layer.{i}.{theirs}.{kind}": state[f"blocks.{i}.{mine}.{kind}"]
                for mine, theirs in names.items()
            }
    return values


def their_shape(size: int = SHAPE["size"]) -> dict[str, Any]:
    return {
        "hidden_size": SHAPE["width"],
        "num_hidden_layers": SHAPE["depth"],
        "num_attention_heads": SHAPE["attention_heads"],
        "intermediate_size": 4 * SHAPE["width"],
        "image_size": size,
        "patch_size": SHAPE["patch"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }


def their_timesformer(frames: int, size: int = SHAPE["size"], kind: str = "divided_space_time") -> nn.Module:
    from transformers import TimesformerConfig, TimesformerModel

    return TimesformerModel(TimesformerConfig(**their_shape(size), num_frames=frames, attention_type=kind)).eval()


def same_gradients(ours: CoVeR, theirs: nn.Module, rename: Callable[[CoVeR], dict[str, Tensor]]) -> None:
    """The gradients of `ours` under the foreign names equal those of the foreign network, parameter by parameter."""
    result = copy.deepcopy(ours)
    for name, parameter in result.named_parameters():
        gradient = ours.get_parameter(name).grad
        # none: heads, branches not taken
        parameter.data = torch.zeros_like(parameter) if gradient is None else gradient
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    renamed = rename(result)
    assert renamed.keys() == wanted.keys()
    for name, gradient in renamed.items():
        close(gradient, wanted[name])


@pytest.mark.parametrize("time", ["rotary", "additive"])
@pytest.mark.parametrize("size", [16, 24, 40])
def test_an_image_equals_transformers_vit(time: str, size: int) -> None:
    from transformers import ViTConfig, ViTModel

    ours = build(time=time, image_temporal="skip", size=size)
    theirs = ViTModel(ViTConfig(**their_shape(size)), add_pooling_layer=False).eval()
    copy_into(theirs, vit_weights(ours))
    images, weights = pixels(3, size=size), torch.randn(3, SHAPE["width"], generator=torch.Generator().manual_seed(9))
    result, wanted = ours.forward_features(images, ((3, 1),)), theirs(images).last_hidden_state[:, 0]
    close(result, wanted)
    (result * weights).sum().backward()
    (wanted * weights).sum().backward()
    same_gradients(ours, theirs, vit_weights)


@pytest.mark.parametrize("size", [16, 24, 40])
@pytest.mark.parametrize("frames", [1, 4, 8, 16])
def test_a_clip_equals_transformers_timesformer(frames: int, size: int) -> None:
    ours, theirs = build(time="additive", image_time="first", frames=frames, size=size), their_timesformer(frames, size)
    copy_into(theirs, timesformer_weights(ours))
    clips, weights = (
        pixels(2 * frames, size=size),
        torch.randn(2, SHAPE["width"], generator=torch.Generator().manual_seed(9)),
    )
    result, wanted = (
        ours.forward_features(clips, ((2, frames),)),
        theirs(clips.unflatten(0, (2, frames))).last_hidden_state[:, 0],
    )
    close(result, wanted)
    (result * weights).sum().backward()
    (wanted * weights).sum().backward()
    # a softmax over one key passes nothing to queries and keys: theirs are zero up to rounding, ours are not computed
    if frames == 1:
        for block in ours.backbone.blocks:
            assert not block.temporal_attn.qkv.weight.grad[: 2 * SHAPE["width"]].any()
    same_gradients(ours, theirs, timesformer_weights)


def test_clips_in_a_pack_equal_transformers_timesformer() -> None:
    ours, theirs = build(time="additive", frames=4), their_timesformer(4)
    copy_into(theirs, timesformer_weights(ours))
    clips = pixels(8)
    with torch.no_grad():
        wanted = theirs(clips.unflatten(0, (2, 4))).last_hidden_state[:, 0]
        in_a_pack = ours.forward_features(
            torch.cat([pixels(6, seed=5), clips, pixels(2, seed=6)]), ((3, 2), (2, 4), (2, 1))
        )
    close(in_a_pack[3:5], wanted)


def without_temporal(ours: CoVeR) -> dict[str, Tensor]:
    """Weights of joint and space attention under transformers' names."""
    state = ours.backbone.state_dict()
    values = {"embeddings.cls_token": state["cls_token"], "embeddings.position_embeddings": state["pos_embed"]}
    if "time_embed" in state:
        values["embeddings.time_embeddings"] = state["time_embed"]
    names = {
        "norm1": "layernorm_before",
        "attn.qkv": "attention.attention.qkv",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for kind in ("weight", "bias"):
        values[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.{kind}"]
        values[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for i in range(SHAPE["depth"]):
            values |= {
                f"encoder.layer.{i}.{theirs}.{kind}": state[f"blocks.{i}.{mine}.{kind}"]
                for mine, theirs in names.items()
            }
    return values


@pytest.mark.parametrize("frames", [1, 4])
def test_joint_attention_equals_transformers(frames: int) -> None:
    ours, theirs = (
        build(time="additive", image_time="first", frames=frames, attention="joint"),
        their_timesformer(frames, kind="joint_space_time"),
    )
    copy_into(theirs, without_temporal(ours))
    clips = pixels(2 * frames)
    wanted = theirs(clips.unflatten(0, (2, frames))).last_hidden_state[:, 0]
    result = ours.forward_features(clips, ((2, frames),))
    close(result, wanted)
    result.square().sum().backward()
    wanted.square().sum().backward()
    same_gradients(ours, theirs, without_temporal)


def test_space_attention_is_the_image_network_on_every_frame() -> None:
    """The class tokens of the frames are averaged before the last norm (released code)."""
    ours, theirs = build(time="additive", frames=4, attention="space"), their_timesformer(4, kind="space_only")
    copy_into(theirs, without_temporal(ours))
    clips = pixels(8)
    with torch.no_grad():
        before_norm = theirs(clips.unflatten(0, (2, 4)), output_hidden_states=True).hidden_states[-1][:, 0]
        close(ours.forward_features(clips, ((2, 4),)), theirs.layernorm(before_norm.unflatten(0, (2, 4)).mean(1)))


@pytest.mark.parametrize(("size", "frames"), [(16, 4), (40, 4), (24, 8), (24, 2), (48, 16)])
def test_another_size_or_length_equals_transformers_in_nearest_mode(size: int, frames: int) -> None:
    ours, theirs = build(time="additive", frames=4, resize="nearest"), their_timesformer(4)
    copy_into(theirs, timesformer_weights(ours))
    theirs.config.num_frames, theirs.config.image_size = frames, size  # read when it runs; the embeddings stay
    clips = pixels(2 * frames, size=size)
    with torch.no_grad():
        close(
            ours.forward_features(clips, ((2, frames),)),
            theirs(clips.unflatten(0, (2, frames))).last_hidden_state[:, 0],
        )


@pytest.mark.parametrize("size", [16, 40, 56])
def test_another_size_equals_transformers_vit_in_bicubic_mode(size: int) -> None:
    from transformers import ViTConfig, ViTModel

    ours = build(image_temporal="skip", resize="bicubic")
    theirs = ViTModel(ViTConfig(**their_shape()), add_pooling_layer=False).eval()
    copy_into(theirs, vit_weights(ours))
    images = pixels(2, size=size)
    with torch.no_grad():
        close(
            ours.forward_features(images, ((2, 1),)),
            theirs(images, interpolate_pos_encoding=True).last_hidden_state[:, 0],
        )


# --- images are single-frame videos -----------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [2, 4, 5, 16])
def test_a_clip_of_identical_frames_equals_its_image(frames: int) -> None:
    model, image = build(time="rotary", image_temporal="attend"), pixels(1)
    groups = ((1, frames), (1, 1))
    clip, still = model.forward_features(torch.cat([image.expand(frames, -1, -1, -1), image]), groups)
    close(clip, still)


def test_the_order_of_frames_matters_and_attending_differs_from_skipping() -> None:
    clip = pixels(4)
    for time in ("rotary", "additive"):
        model = build(time=time)
        forward, backward = model.forward_features(torch.cat([clip, clip.flip(0)]), ((2, 4),))
        assert (forward - backward).abs().max() > 1e-2
    attend, skip = (build(image_temporal=mode).forward_features(clip[:1], ((1, 1),)) for mode in ("attend", "skip"))
    assert (attend - skip).abs().max() > 1e-2


@pytest.mark.parametrize("time", ["rotary", "additive"])
@pytest.mark.parametrize("image_temporal", ["attend", "skip"])
@pytest.mark.parametrize("how", ["fresh", "copied"])
def test_a_fresh_temporal_branch_is_the_image_vit(
    time: str, image_temporal: str, how: Literal["fresh", "copied"]
) -> None:
    model = build(time=time, image_temporal=image_temporal)
    model.backbone.reset_temporal(how)
    image = pixels(1)
    clip = model.forward_features(image.expand(4, -1, -1, -1), ((1, 4),))
    # the same spatial weights, and a temporal branch that no image passes
    skipping = build(time=time, image_temporal="skip")
    close(clip, skipping.forward_features(image, ((1, 1),)))
    close(model.forward_features(image, ((1, 1),)), clip)
    for block in model.backbone.blocks:
        assert torch.equal(block.temporal_norm.bias, block.norm1.bias)
        if how == "copied" or time == "additive":
            assert torch.equal(block.temporal_attn.qkv.weight, block.attn.qkv.weight)


@pytest.mark.parametrize("width", [64, 256])
def test_a_new_trunk_passes_gradients_of_the_same_order_at_any_width(width: int) -> None:
    """Initial scales follow a layer's width: every layer's output and gradient stay within an order of magnitude."""
    torch.manual_seed(0)
    model = CoVeR(
        TimeSformerConfig(width=width, depth=4, attention_heads=4, patch=8, size=32, patch_embed="conv"), HEADS
    )
    intermediates: dict[str, torch.Tensor] = {}
    features = model.forward_features(torch.randn(6, 3, 32, 32), ((1, 4), (2, 1)), intermediates=intermediates)
    branches = [value.std().item() for name, value in intermediates.items() if name.endswith(("spatial", "mlp"))]
    assert all(0.05 < spread < 5 for spread in branches), branches
    model.forward_head(features)[HEADS[0].name][:, 0].sum().backward()
    first = model.backbone.patch_embed.conv0.weight.grad
    assert first is not None
    assert first.abs().mean() > 1e-6


def test_a_convolutional_stem_is_its_convolutions_one_after_another() -> None:
    """Against the same layers written out: stride-2 3x3 convolution, GroupNorm, GELU for each halving, then 1x1."""
    torch.manual_seed(0)
    stem, x = ConvStem(64, 8), torch.randn(3, 3, 32, 48)
    state, wanted = stem.state_dict(), x
    for step in range(3):
        wanted = fn.conv2d(wanted, state[f"conv{step}.weight"], state[f"conv{step}.bias"], stride=2, padding=1)
        wanted = fn.gelu(fn.group_norm(wanted, 8, state[f"norm{step}.weight"], state[f"norm{step}.bias"]))
    wanted = fn.conv2d(wanted, state["proj.weight"], state["proj.bias"])
    assert tuple(wanted.shape) == (3, 64, 4, 6)
    torch.testing.assert_close(stem(x), wanted)
    torch.testing.assert_close(stem(x[1:2]), wanted[1:2])  # one sample's output does not hang on the others
    with pytest.raises(ValueError, match="14"):
        ConvStem(64, 14)


def test_a_summed_patch_embedding_is_a_stem_plus_a_linear_map_whose_differences_are_those_of_the_frames() -> None:
    torch.manual_seed(0)
    embed, x = SummedPatchEmbed(64, 8), torch.randn(3, 3, 32, 48)
    stem = ConvStem(64, 8)
    stem.load_state_dict(
        {name.removeprefix("conv."): v for name, v in embed.state_dict().items() if "linear" not in name}
    )
    linear = embed(x) - stem(x)
    assert tuple(linear.shape) == (3, 64, 4, 6)
    # What the sum adds is linear in the pixels, apart from its bias.
    torch.testing.assert_close(
        linear[1] - linear[0], fn.conv2d(x[1:2] - x[:1], embed.state_dict()["linear.weight"], stride=8)[0]
    )
    with pytest.raises(ValueError, match="14"):
        TimeSformerConfig(patch=14, size=224, patch_embed="both").check()


@pytest.mark.parametrize("patch_embed", ["linear", "conv"])
def test_both_is_the_sum_of_an_embedding_of_frames_and_one_of_differences(patch_embed: str) -> None:
    """Of the first convolution, which is linear in its input."""
    model, clips = build(patch_embed=patch_embed, motion="both"), pixels(9)
    embed = model.backbone.patch_embed
    first = embed.conv0 if patch_embed == "conv" else embed
    outputs: list[Tensor] = []
    first.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(clips, ((2, 4), (1, 1)))
    moved = clips.clone()
    for number in range(9):
        moved[number] -= clips[number - 1] if number % 4 else clips[number]  # frame 8 is the image
    options = {"stride": first.stride, "padding": first.padding}
    wanted = fn.conv2d(clips, first.weight[:, :3], first.bias, **options)
    close(outputs[0], wanted + fn.conv2d(moved, first.weight[:, 3:], **options))


def test_differences_ignore_what_does_not_change() -> None:
    """A still clip, whatever it shows, has the feature of every image; a constant added to all frames changes none."""
    model, clip, image = build(motion="differences", patch_embed="conv"), pixels(4), pixels(1, seed=5)
    features = model.forward_features(
        torch.cat([clip, clip + 1, image.expand(4, -1, -1, -1), clip[:1]]), ((3, 4), (1, 1))
    )
    close(features[0], features[1])
    close(features[2], features[3])
    assert (features[0] - features[2]).abs().max() > 1e-2


def test_motion_follows_the_starting_checkpoint_unless_the_recipe_says_otherwise() -> None:
    theirs = TimeSformerOptions(motion="both").config(4)
    assert TimeSformerOptions().config(4).motion == "both"
    assert TimeSformerOptions(preset="B/16", size=224).config(4).motion == "frames"
    assert TimeSformerOptions().config(4, theirs).motion == "both"
    other = TimeSformerOptions(motion="differences").config(4, theirs)
    assert "model.motion" in (other.difference(theirs, temporal=False) or "")
    assert theirs.options().config(4) == theirs


def test_a_temporal_difference_branch_computes_what_changes_between_frames() -> None:
    """Before temporal_fc: nothing in a still clip, the opposite for the clip read backwards, something where things
    move.
    """
    torch.manual_seed(0)
    model = CoVeR(TimeSformerConfig(**SHAPE))  # small weights, as training begins: content hardly moves the attention
    block, clip = (
        model.backbone.blocks[0],
        torch.randn(8, 10, SHAPE["width"], generator=torch.Generator().manual_seed(3)),
    )
    rotations = model.backbone._rotations(((1, 8),), clip.device)
    still, moving, backwards = (
        block.temporal_attn.proj(block.temporal_attn.across_frames(x, ((1, 8),), rotations))
        for x in (clip[:1].expand(8, -1, -1), clip, clip.flip(0))
    )
    assert still.abs().max() < 1e-5 * moving.abs().max()
    middle = slice(2, 6)  # where a frame lies two ahead and two behind
    assert (moving[middle] + backwards.flip(0)[middle]).abs().max() < 0.25 * moving[middle].abs().max()


@pytest.mark.parametrize("patch_embed", ["linear", "conv", "both"])
def test_a_new_model_starts_as_an_image_vit_with_small_heads(patch_embed: Literal["linear", "conv", "both"]) -> None:
    torch.manual_seed(0)
    model = CoVeR(TimeSformerConfig(**SHAPE, patch_embed=patch_embed), HEADS)
    frames = pixels(5)
    assert all(0.01 < logits.std() < 0.5 for logits in model(frames, ((1, 4), (1, 1))).values())
    model.zero_head(HEADS[0].name)
    assert not model(frames, ((1, 4), (1, 1)))[HEADS[0].name].any()
    forward, backward = model.forward_features(torch.cat([frames[:4], frames[:4].flip(0)]), ((2, 4),))
    close(forward, backward)


@pytest.mark.parametrize("time", ["rotary", "additive"])
def test_every_parameter_gets_a_gradient(time: str) -> None:
    model = build(time=time, image_temporal="attend")
    sum(logits.square().sum() for logits in model(pixels(9), ((2, 4), (1, 1))).values()).backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


def test_images_alone_train_the_temporal_branch_only_when_they_attend() -> None:
    for mode, wanted in (("attend", True), ("skip", False)):
        model = build(image_temporal=mode)
        model(pixels(2), ((2, 1),))["things"].square().sum().backward()
        assert {p.grad is not None for name, p in model.named_parameters() if name.endswith("temporal_fc.weight")} == {
            wanted
        }


# --- parts ------------------------------------------------------------------------------------------------------------


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`(..., length, heads, d)` each, over the axis of length."""
    weights = torch.softmax(torch.einsum("...ihd,...jhd->...hij", q, k) / q.shape[-1] ** 0.5, dim=-1)
    return torch.einsum("...hij,...jhd->...ihd", weights, v)


@pytest.mark.parametrize("length", [1, 3, 64, 200])
def test_attention_along_tokens_is_softmax_of_scaled_products(length: int) -> None:
    qkv = torch.randn(5, length, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    close(attend_along(qkv.flatten(2), 4), by_hand(*qkv.unbind(2)).flatten(2))


@pytest.mark.parametrize("frames", [2, 8, 33])
def test_attention_over_time_is_softmax_of_scaled_products(frames: int) -> None:
    q, k, v = torch.randn(3, 2, frames, 5, 4, 8, generator=torch.Generator().manual_seed(0))
    wanted = by_hand(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    close(attend_over_time(q.flatten(3), k.flatten(3), v.flatten(3), 4), wanted.flatten(3))


def test_rotary_products_depend_on_the_distance_in_time_alone() -> None:
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    moved = [rotate(x.expand(1, 12, 1, 1, 8), rotation_of(12, 8, q.device))[0, :, 0, 0] for x in (q, k)]
    products = moved[0] @ moved[1].T
    for distance in (-5, -1, 0, 3):
        diagonal = products.diagonal(distance)
        close(diagonal, diagonal[:1].expand_as(diagonal))
    assert (products[0, 1:] - products[0, 0]).abs().min() > 1e-4
    close(moved[0].norm(dim=-1), q.norm().expand(12))


def test_per_frame_repeats_each_samples_value() -> None:
    assert per_frame(torch.tensor([1, 2, 3, 4]), ((1, 3), (1, 2), (2, 1))).tolist() == [1, 1, 1, 2, 2, 3, 4]


def test_normalise_takes_bytes_and_floats() -> None:
    model = build(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    frames = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    close(model.normalize(frames), (frames / 255 - mean) / std)
    assert torch.equal(model.normalize(frames / 255), model.normalize(frames))


# --- sizes and errors -------------------------------------------------------------------------------------------------


def classes(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def parameters(preset: str, heads: dict[str, int], **changes: Any) -> int:
    with torch.device("meta"):
        model = CoVeR(
            named_config(preset, **changes), tuple(Head(name, classes(count)) for name, count in heads.items())
        )
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("time", ["rotary", "additive"])
def test_parameters_of_the_base_model(time: str) -> None:
    assert parameters("B/16", {"k400": 400}, time=time) == pytest.approx(121.4e6, rel=0.005)


def test_parameters_of_the_large_model() -> None:
    heads = {"k400": 400, "ssv2": 174, "mit": 339, "imagenet": 1000}
    assert parameters("L/16", heads, size=448, frames=16) == pytest.approx(431e6, rel=0.005)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((7, 3, 24, 24), ((2, 4),)),
        ((8, 3, 24, 20), ((2, 4),)),
        ((8, 3, 30, 24), ((2, 4),)),
        ((8, 1, 24, 24), ((2, 4),)),
        ((8, 24, 24), ((2, 4),)),
        ((6, 3, 24, 24), ((2, 1), (1, 4))),
        ((2, 3, 24, 24), ((1, 1), (1, 1))),
    ],
    ids=str,
)
def test_wrong_shapes(shape: tuple[int, ...], groups: Groups) -> None:
    with pytest.raises(ValueError, match=r"groups|multiples of 8 px"):
        build()(torch.zeros(shape), groups)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("B/x", {}, "as in B/16"),
        ("B/0", {}, "as in B/16"),
        ("B/²", {}, "as in B/16"),
        ("Bx", {}, 'unknown model preset "Bx"'),
        ("minni", {}, 'did you mean "mini"'),
        ("B/16", {"size": 100}, "16"),
    ],
)
def test_presets_that_are_none(preset: str, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        named_config(preset, **changes)
