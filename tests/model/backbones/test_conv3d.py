"""The 3-D convolutional baseline: what it computes, images beside clips, and one run from a recipe to an exported
graph.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.cli import main
from cover.errors import UserError
from cover.model.backbone import Groups
from cover.model.backbones.conv3d import Conv3dConfig, Conv3dOptions
from cover.model.cover import CoVeR
from cover.model.heads import Head

MOTIONS = pytest.mark.parametrize("motion", ["frames", "differences", "both"])
MIXED: Groups = ((2, 5), (1, 3), (2, 1))


def build(**changes: Any) -> CoVeR:
    """Every parameter random; the scales of norms around 1."""
    model = CoVeR(Conv3dConfig(**{"size": 16, "channels": (8, 16), **changes}), (Head("moves", ("up", "down")),)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2, generator=generator)
    return model


def pixels(count: int, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def by_hand(model: CoVeR, clip: Tensor) -> Tensor:
    """The feature of one clip `(T, 3, H, W)` by 2-D convolutions, one for each frame that a kernel reaches."""
    weights, motion = model.backbone.state_dict(), model.config.summary()["motion"]
    before = torch.cat([clip[:1], clip[:-1]])
    x = {"frames": clip, "differences": clip - before, "both": torch.cat([clip, clip - before], 1)}[motion]
    for layer in range(2):
        kernel, last = weights[f"layers.{layer}.conv.weight"], len(x) - 1
        rows = []
        for frame in range(len(x)):
            reach = [x[min(max(frame + step, 0), last)][None] for step in (-1, 0, 1)]
            rows.append(sum(fn.conv2d(each, kernel[:, :, tap], stride=2, padding=1) for tap, each in enumerate(reach)))
        y = torch.cat(rows) + weights[f"layers.{layer}.conv.bias"][:, None, None]
        y = fn.group_norm(
            y.transpose(0, 1)[None], 8, weights[f"layers.{layer}.norm.weight"], weights[f"layers.{layer}.norm.bias"]
        )
        x = fn.gelu(y)[0].transpose(0, 1)
    return x.mean((0, 2, 3))


@MOTIONS
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_feature_by_hand(motion: str, frames: int) -> None:
    model, clip = build(motion=motion), pixels(frames, 16, 24)
    torch.testing.assert_close(
        model.forward_features(clip, ((1, frames),))[0], by_hand(model, clip), rtol=1e-5, atol=1e-6
    )


@MOTIONS
def test_a_pack_equals_its_samples_alone(motion: str) -> None:
    model, frames = build(motion=motion), pixels(15)
    packed = model.forward_features(frames, MIXED)
    alone = [model.forward_features(part, ((1, len(part)),))[0] for part in frames.split([5, 5, 3, 1, 1])]
    torch.testing.assert_close(packed, torch.stack(alone), rtol=1e-5, atol=1e-6)


@MOTIONS
def test_an_image_is_a_still_clip(motion: str) -> None:
    model, image = build(motion=motion), pixels(1)
    clip, still = model.forward_features(torch.cat([image.expand(6, -1, -1, -1), image]), ((1, 6), (1, 1)))
    torch.testing.assert_close(clip, still, rtol=1e-5, atol=1e-6)


def test_the_order_of_frames_matters_where_differences_enter() -> None:
    model, clip = build(motion="both"), pixels(5)
    forward, backward = model.forward_features(torch.cat([clip, clip.flip(0)]), ((2, 5),))
    assert (forward - backward).abs().max() > 1e-3


def test_checkpointing_changes_no_gradient() -> None:
    model, result = build().train(), []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        model(pixels(15), MIXED)["moves"].square().sum().backward()
        result.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(result[1][name], gradient) for name, gradient in result[0].items())


def test_parameters_by_their_place() -> None:
    model = build(channels=(8, 16, 24))
    assert model.config.summary() == {"channels": "8-16-24", "motion": "both"}
    assert (model.backbone.width, len(model.backbone.stages()), model.backbone.drop_shape()) == (24, 3, (0, 0))
    assert model.temporal_parameters() == frozenset()
    decayed = {name for name, _ in model.named_parameters()} - model.no_decay_parameters()
    assert decayed == {*(f"backbone.layers.{layer}.conv.weight" for layer in range(3)), "heads.moves.weight"}
    assert [model.layers_above()[f"backbone.layers.{layer}.conv.weight"] for layer in range(3)] == [3, 2, 1]


def test_heat_is_input_times_gradient() -> None:
    model, clip = build(), pixels(3)
    with torch.inference_mode():
        result = model.heat(clip, "moves", 1)
    assert (tuple(result.heat.shape), result.method) == ((3, 14, 14), "input x gradient")
    assert float(result.heat.sum()) == pytest.approx(1)
    inputs = clip.clone().requires_grad_()
    model(inputs, ((1, 3),))["moves"][0, 1].backward()
    wanted = fn.adaptive_avg_pool2d((inputs.grad * clip).sum(1).clamp_min(0), 14)
    torch.testing.assert_close(result.heat, wanted / wanted.sum(), rtol=1e-4, atol=1e-7)
    with pytest.raises(UserError, match="conv3d"):
        model.heat(clip)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"channels": ()}, "model.channels"),
        ({"channels": (8, 0)}, "model.channels"),
        ({"drop_path": 0.1}, "model.drop_path"),
    ],
)
def test_options_that_make_no_network(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        Conv3dOptions(**changes).check()


def test_the_options_of_a_configuration_ask_for_it() -> None:
    options = Conv3dOptions(size=48, channels=(8, 8), motion="frames")
    assert options.config(4).options() == options


def test_from_a_recipe_to_an_exported_graph(sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 4}}\nmodel: "
        f"{{backbone: conv3d, channels: [8, 16]}}\n"
        f"out: {run}\nsteps: 3\nbatch: 8\nworkers: 0\nevaluate_every: -1\nema: 0.5\naccumulation: 2\n"
    )
    assert main(["train", str(recipe), "--model.motion", "differences"]) == 0
    assert (
        main(
            ["evaluate", str(run), "--catalog", str(sandbox), "--workers", "0", "--json", str(tmp_path / "found.json")]
        )
        == 0
    )
    assert {item["dataset"] for item in json.loads((tmp_path / "found.json").read_text())} == {"ssv2", "imagenet"}
    model = CoVeR.from_pretrained(run)
    assert model.config == Conv3dConfig(size=32, frames=4, channels=(8, 16), motion="differences")

    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(model.normalize(clips.flatten(0, 1)), ((3, 4),))
    for form, file in (("onnx", "m.onnx"), ("torch", "m.pt2")):
        assert main(["export", str(run), "--format", form, "--out", str(tmp_path / file)]) == 0
    (result,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["ssv2"], {"clips": clips.numpy()})
    np.testing.assert_allclose(result, logits["ssv2"].softmax(-1), atol=1e-5)
    program = torch.export.load(tmp_path / "m.pt2").module()
    torch.testing.assert_close(program(clips)["ssv2"], logits["ssv2"].softmax(-1))

    capsys.readouterr()
    assert (
        main(["export", str(run), "--format", "transformers", "--head", "ssv2", "--out", str(tmp_path / "theirs")]) == 2
    )
    assert "conv3d" in capsys.readouterr().err
    again = ["train", str(recipe), "--out", str(tmp_path / "other"), "--start.checkpoint", str(run)]
    assert main([*again, "--model", "{backbone: timesformer}"]) == 2
    assert "model.backbone" in capsys.readouterr().err
    assert main([*again, "--model.motion", "frames"]) == 2
    assert "model.motion" in capsys.readouterr().err
    assert main([*again, "--model.motion", "differences", "--start.temporal", "fresh"]) == 2
    assert "start.temporal" in capsys.readouterr().err
