"""Video Swin: the outputs of the released code, clips beside images, windows of any size, and its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity import close, golden_cases, strong
from torch import Tensor

from cover.errors import UserError
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.backbones.video_swin import (
    Division,
    VideoSwin,
    VideoSwinConfig,
    VideoSwinOptions,
    relative_places,
    resized_table,
    video_swin_config,
    window_of_table,
)
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.profile import count_parameters, forward_cost, on_meta
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.video_swin import convert

MIXED: Groups = ((2, 5), (1, 4), (2, 1))
SMALL = {"channels": 16, "depths": (2, 2), "attention_heads": (2, 4), "window": 3, "window_frames": 2, "size": 40}


def build(**changes: Any) -> CoVeR:
    config = VideoSwinConfig(**{**SMALL, **changes})
    return strong(CoVeR(config, (Head("moves", ("up", "down")),)), embeddings="bias_table")


def pixels(count: int, height: int = 40, width: int = 52) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def network(weights: dict[str, Tensor], **changes: Any) -> VideoSwin:
    """The network of a checkpoint, by the converter."""
    conversion = convert(ForeignCheckpoint(path=None, name="", tensors=weights), weights, ImportOptions())  # type: ignore[arg-type]
    assert conversion is not None
    config = VideoSwinConfig(**{**vars(conversion.config), **changes})
    backbone = config.build().eval()
    state = {name: value for name, value in conversion.translation.tensors.items() if not name.startswith("head.")}
    backbone.fit_embeddings(state)
    backbone.load_state_dict(state)
    return backbone


# --- the released code ------------------------------------------------------------------------------------------------

RELEASED = [
    ("video_swin.json", "tiny_t16_112_strong"),
    ("video_swin.json", "tiny_t5_56x70_strong"),
    ("video_swin.json", "tiny_t18_64x36_strong"),
    ("video_swin.json", "tiny_t1_112_strong"),
    ("video_swin.json", "tiny_t2_30x50_strong"),
    ("video_swin.json", "tiny_t5_56x70_faint"),
    ("video_swin.json", "tiny_t5_56x70_brief"),
    ("video_swin.json", "tiny_window1677_strong"),
    ("video_swin_T.json", "swin_T_8x112_strong"),
    ("video_swin_T.json", "swin_T_8x112_brief"),
]


@torch.no_grad()
@pytest.mark.parametrize(("file", "name"), RELEASED, ids=[name for _, name in RELEASED])
def test_outputs_of_the_released_code(file: str, name: str) -> None:
    case = golden_cases(file)[name]
    # The released code completes the pair of a single frame with zeros.
    backbone = network(case.weights(), image_frames="zeros")
    assert backbone.config.window_sides == tuple(case.arguments["window_size"])
    assert sum(parameter.numel() for parameter in backbone.parameters()) == case.facts["parameters"]
    clips, found = case.input(), {}
    samples, _, frames = clips.shape[:3]
    features = backbone(clips.transpose(1, 2).flatten(0, 1), ((samples, frames),), intermediates=found)
    case.check("pooled", features)
    case.check("features", found["map"].unflatten(0, (samples, -1)).transpose(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("name", ["inflate_w7_image_224_strong", "inflate_w12_to_w7_bicubic_strong"])
def test_an_inflated_image_network(name: str) -> None:
    case = golden_cases("video_swin_inflation.json")[name]
    weights = case.weights()
    backbone, images = network(weights, window=7), case.input()
    for key, wanted in case.facts["inflated"].items():
        ours = {
            "patch_embed.proj.weight": "patch_embed.proj.weight",
            "layers.0.blocks.0.attn.relative_position_bias_table": "blocks.0.attn.bias_table",
            "layers.1.blocks.1.attn.relative_position_bias_table": "blocks.3.attn.bias_table",
        }[key]
        value = backbone.get_parameter(ours)
        assert list(value.shape) == wanted["shape"]
        torch.testing.assert_close(value.flatten()[:4], torch.tensor(wanted["first"]), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(value.flatten()[-2:], torch.tensor(wanted["last"]), rtol=1e-5, atol=1e-6)
    case.check("image_repeated_to_2", backbone(images, ((2, 1),)))
    for frames in (2, 8):
        clips = images[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        case.check(f"image_repeated_to_{frames}", backbone(clips, ((2, frames),)))
    # The file does not say how the clip was made; its output of the patch embedding shows it.
    moving = torch.stack([images, images.flip(-1), images.flip(-2), -images], 1).flatten(0, 1)
    case.check("moving_clip_4_frames", backbone(moving, ((2, 4),)))
    zeros = network(weights, window=7, image_frames="zeros")
    case.check("one_frame_zero_padded_by_the_reference", zeros(images, ((2, 1),)))
    if reference := case.facts.get("two_d_reference"):
        wanted = torch.tensor(reference["pooled"]["values"])
        close(backbone(images, ((2, 1),)).flatten(), wanted)


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny_strong", "tiny_faint"])
def test_images_of_transformers_swin(name: str) -> None:
    case = golden_cases("swin2d_hf.json")[name]
    weights, images = case.weights(), case.input()
    for groups, frames in ((((2, 1),), images), (((2, 4),), images[:, None].expand(-1, 4, -1, -1, -1).flatten(0, 1))):
        features = network(weights)(frames, groups)
        logits = torch.nn.functional.linear(features, weights["classifier.weight"], weights["classifier.bias"])
        case.check("logits", logits)


@pytest.mark.parametrize(
    ("preset", "window_frames", "classes", "parameters", "multiply_adds", "published"),
    [
        ("T", 8, 400, 28_158_070, 87.764e9, 87.9e9),
        ("S", 8, 400, 49_816_678, 165.682e9, 165.9e9),
        ("B", 8, 400, 88_048_984, 281.333e9, 281.6e9),
        ("L", 8, 400, 196_953_916, 603.269e9, 604e9),
        ("B", 16, 174, 88_834_038, 320.356e9, 320.6e9),
    ],
)
def test_published_sizes(
    preset: str, window_frames: int, classes: int, parameters: int, multiply_adds: float, published: float
) -> None:
    model = on_meta(video_swin_config(preset, window_frames=window_frames), {"kinetics": classes})
    assert count_parameters(model).total == parameters
    cost = forward_cost(model, ((1, 32),), 224)
    assert cost.multiply_adds == pytest.approx(multiply_adds, rel=1e-5)
    assert cost.multiply_adds == pytest.approx(published, rel=2e-3)
    assert cost.tokens == 16 * 7 * 7


# --- Packs ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_pack_equals_its_samples_alone_in_any_order() -> None:
    model, frames = build(), pixels(16)
    packed = model.forward_features(frames, MIXED)
    parts = frames.split([5, 5, 4, 1, 1])
    close(packed, torch.stack([model.forward_features(part, ((1, len(part)),))[0] for part in parts]))
    assert packed.std(0).max() > 0.05 * packed.abs().max()
    swapped = torch.cat([parts[1], parts[0], parts[2], parts[4], parts[3]])
    close(model.forward_features(swapped, MIXED), packed[[1, 0, 2, 4, 3]])


@torch.no_grad()
def test_the_order_of_frames_matters() -> None:
    clip = pixels(8)
    forward, backward = build().forward_features(torch.cat([clip, clip.flip(0)]), ((2, 8),))
    assert (forward - backward).abs().max() > 1e-2 * forward.abs().max()


@torch.no_grad()
def test_an_image_is_a_repeated_frame_or_a_frame_and_zeros() -> None:
    image = pixels(1)
    for image_frames, second in (("repeat", image), ("zeros", torch.zeros_like(image))):
        model = build(image_frames=image_frames)
        clip, alone = model.forward_features(torch.cat([image, second, image]), ((1, 2), (1, 1)))
        close(alone, clip)


@torch.no_grad()
def test_prefix_and_suffix_are_the_whole() -> None:
    backbone, frames = build().backbone, pixels(16)
    drop = torch.rand(4, 2, 5, generator=torch.Generator().manual_seed(3))
    drop[:2] = 1
    whole = backbone(frames, MIXED)
    for stages in range(5):
        prefix = backbone.forward_prefix(frames, MIXED, stages)
        assert len(prefix) == 16
        assert torch.equal(backbone.forward_suffix(prefix, MIXED, stages), whole)
        if stages <= 2:
            close(backbone.forward_suffix(prefix, MIXED, stages, drop), backbone(frames, MIXED, drop))
    assert prefix.shape == (16, 32, 5, 7)


def test_intermediates_are_maps_of_pairs() -> None:
    backbone, found = build().backbone, {}
    features = backbone(pixels(16), MIXED, intermediates=found)
    assert list(found) == ["embedded", *(f"blocks.{number}" for number in range(4)), "map", "features"]
    assert found["embedded"].shape == found["blocks.1"].shape == (2 * 3 + 2 + 2, 16, 10, 13)
    assert found["map"].shape == (10, 32, 5, 7)
    assert found["features"] is features


def test_drop_path_of_one_sample_leaves_the_others() -> None:
    model, frames = build(), pixels(16)
    drop = torch.ones(*model.backbone.drop_shape(), 5)
    drop[:, :, 0] = 0
    dropped, whole = model.forward_features(frames, MIXED, drop), model.forward_features(frames, MIXED)
    close(dropped[1:], whole[1:])
    assert (dropped[0] - whole[0]).abs().max() > 0.1 * whole.abs().max()


@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_reach_every_parameter(bf16: bool) -> None:
    result = []
    for on in (False, True):
        model = build().train()
        model.set_checkpointing(on)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            model(pixels(16), MIXED)["moves"].float().square().sum().backward()
        result.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in result[0].items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
        assert torch.equal(gradient, result[1][name]), name


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(16, 56, 56), (3, 14, 18), (8, 7, 7), (1, 4, 20), (18, 16, 9)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_divide_and_join_a_map(sides: tuple[int, int, int], shifted: bool) -> None:
    division = Division.of(sides, (8, 7, 7), shifted)
    assert all(padded % window == 0 for padded, window in zip(division.padded, division.window))
    assert [shift > 0 for shift in division.shift] == [
        shifted and side > window for side, window in zip(sides, (8, 7, 7))
    ]
    x = torch.arange(2 * sides[0] * sides[1] * sides[2]).view(2, *sides, 1).float()
    windows = division.divide(division.roll(division.pad(x)))
    assert windows.shape[2] == division.window[0] * division.window[1] * division.window[2]
    back = division.roll(division.join(windows), back=True)
    assert torch.equal(back[:, : sides[0], : sides[1], : sides[2]], x)
    mask = division.mask(x.device)
    assert (mask is None) == (not any(division.shift))
    if mask is not None:  # tokens of a window that come from both ends of an axis are further apart than a window
        places = torch.stack(torch.meshgrid(*(torch.arange(side) for side in division.padded), indexing="ij"), -1)
        tokens = division.divide(division.roll(places[None].float()))[0]
        apart = (tokens[:, :, None] - tokens[:, None]).abs()
        far = (apart >= torch.tensor(division.window)).any(-1)
        assert torch.equal(mask != 0, far)


def test_relative_places_of_a_window_and_of_a_shorter_clip() -> None:
    window, device = (4, 3, 3), torch.device("cpu")
    places = relative_places(36, window, device)
    assert (int(places.min()), int(places.max())) == (0, 7 * 5 * 5 - 1)
    assert places.diagonal().unique().tolist() == [(3 * 5 + 2) * 5 + 2]
    assert torch.equal(places + places.T, torch.full((36, 36), 7 * 5 * 5 - 1))
    torch.testing.assert_close(relative_places(18, window, device), places[:18, :18])


@pytest.mark.parametrize("sides", [(8, 7, 7), (16, 7, 7), (8, 12, 12), (2, 3, 3), (8, 5, 5), (4, 2, 2), (8, 8, 8)])
def test_the_window_of_a_table(sides: tuple[int, int, int]) -> None:
    rows = (2 * sides[0] - 1) * (2 * sides[1] - 1) ** 2
    assert window_of_table(rows, sides[1]) == sides
    assert window_of_table(rows, 7) == sides
    assert window_of_table(2 * rows, 7) is None


def test_a_table_of_another_window_is_resized() -> None:
    table = torch.randn(3 * 5 * 5, 2).repeat_interleave(1, 0)
    still = table[:25].repeat(3, 1)  # equal at all distances in time
    wider = resized_table(still, (2, 3, 3), (4, 5, 5))
    assert wider.shape == (7 * 9 * 9, 2)
    torch.testing.assert_close(wider.view(7, 81, 2), wider[:81].expand(7, -1, -1))
    image = torch.nn.functional.interpolate(still[:25].T.view(1, 2, 5, 5), size=(9, 9), mode="bicubic")
    torch.testing.assert_close(wider[:81].T.view(1, 2, 9, 9), image)
    assert torch.equal(resized_table(table, (2, 3, 3), (2, 3, 3)), table)
    middle = resized_table(table, (2, 3, 3), (3, 3, 3)).view(5, 25, 2)
    torch.testing.assert_close(middle[::2], table.view(3, 25, 2))


def test_a_start_of_another_window_notes_its_tables() -> None:
    theirs, ours = build(window=4, window_frames=3).backbone, build().backbone
    weights = theirs.state_dict()
    notes = ours.fit_embeddings(weights)
    assert notes == ["4 bias tables from windows of 3x4x4 to 2x3x3"]
    ours.load_state_dict(weights)
    assert ours.fit_embeddings(dict(ours.state_dict())) == []


# --- parameters and configuration -------------------------------------------------------------------------------------


def test_parameters_by_their_place() -> None:
    backbone = build().backbone
    assert (backbone.width, backbone.drop_shape(), backbone.temporal_parameters()) == (32, (4, 2), frozenset())
    places = {
        "patch_embed.proj.weight": 0,
        "patch_embed.norm.bias": 0,
        "blocks.0.attn.bias_table": 1,
        "blocks.2.merge.reduction.weight": 3,
        "blocks.3.mlp.fc2.bias": 4,
        "norm.weight": 5,
    }
    assert {name: backbone.layer_of(name) for name in places} == places
    free = backbone.no_decay_parameters()
    assert {"blocks.0.attn.bias_table", "norm.weight", "blocks.1.attn.qkv.bias"} <= free
    assert "blocks.2.merge.reduction.weight" not in free


def test_options_and_presets() -> None:
    for preset in ("mini", "T", "S", "B", "L"):
        options = VideoSwinOptions(preset=preset, size=112, window_frames=16)
        assert options.config(16).options() == options
    assert named_config("video_swin/B", frames=16) == video_swin_config("B", frames=16)
    assert named_config("video_swin") == VideoSwinConfig()
    with pytest.raises(UserError, match="video_swin"):
        VideoSwinOptions(preset="XL").config(8)
    with pytest.raises(UserError, match=r"model\.window_frames"):
        VideoSwinOptions(window_frames=0).check()
    with pytest.raises(UserError, match="no preset"):
        VideoSwinConfig(channels=100).options()
    larger = video_swin_config("S").difference(video_swin_config("T"), temporal=False)
    assert larger is not None
    assert "depths" in larger
    assert video_swin_config("T", window=12).difference(video_swin_config("T"), temporal=False) is None


def test_heat_is_input_times_gradient() -> None:
    heat = build().heat(pixels(4), "moves", 1)
    assert heat.method == "input x gradient"
    assert float(heat.heat.sum()) == pytest.approx(1)
