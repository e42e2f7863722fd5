"""Checkpoints of VidTr under the names of gluonmm, its inflated image ViT, and a run from an import to an export."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cover.cli import main
from cover.errors import UserError
from cover.model.backbones.vidtr import VidTrConfig, VidTrOptions, vidtr_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import load_release, read_config
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import import_weights

CLASSES = ("left", "right", "up")
SMALL = {"width": 16, "depth": 7, "attention_heads": 2, "patch": 2, "size": 28}
HEADS = ImportOptions(head="moves", attention_heads=2)
CONFIGS: dict[str, VidTrConfig] = {
    "grid": VidTrConfig(**SMALL, frames=4),
    "grid of 16": VidTrConfig(**SMALL, frames=16, positions="every"),
    "C-S": VidTrConfig(**SMALL, frames=8, tokens="class", pool_layers=(1, 3, 5), pool_frames=(2, 2, 2)),
    "C-M": VidTrConfig(**SMALL, frames=16, tokens="class", pool_layers=(1, 2, 4), pool_frames=(8, 4, 2)),
}


def network(config: VidTrConfig) -> CoVeR:
    """Every parameter random and none near zero; the scales of norms around 1."""
    model = CoVeR(config, (Head("moves", CLASSES),)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if scale else 0.0, 0.3, generator=generator)
    return model


RULES = (
    (r"^backbone\.", ""),
    (r"^heads\.moves", "fc"),
    (r"^patch_embed", "conv_stem"),
    (r"^blocks", "encoder.layers"),
    (r"^norm\.", "encoder.norm."),
    (r"attn\.qkv\.", "self_attn.in_proj_"),
    (r"attn\.proj", "self_attn.out_proj"),
    (r"mlp\.fc", "linear"),
)


def gluonmm(model: CoVeR, prefix: str = "module.") -> dict[str, Tensor]:
    """The weights of a model under the names and in the shapes of gluonmm."""
    state = {name.removeprefix("backbone."): value.clone() for name, value in model.state_dict().items()}
    named = {}
    for name, value in state.items():
        theirs = name
        for pattern, replacement in RULES:
            theirs = re.sub(pattern, replacement, theirs)
        named[theirs] = value
    named["conv_stem.weight"] = named["conv_stem.weight"][:, :, None]
    position = named.pop("pos_embed").flatten(0, 1)[None]
    if "frame_tokens" in named:
        named["cls_s"], named["cls_t"] = named.pop("frame_tokens").transpose(0, 1), named.pop("place_tokens")
    else:
        position = torch.cat([named.pop("cls_pos"), position], 1)
        named["cls"] = named.pop("cls_token")
    named["pos_embedding"] = position
    return {prefix + name: value.contiguous() for name, value in named.items()}


def saved(path: Path, state: dict[str, Tensor], wrapping: str = "model") -> Path:
    torch.save({wrapping: state, "epoch": 50} if wrapping else state, path)
    return path


def pixels(*shape: int, size: int = 28) -> Tensor:
    return torch.randn(*shape, 3, size, size, generator=torch.Generator().manual_seed(1))


def close(result: Tensor, wanted: Tensor) -> None:
    assert float((result - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_network_computes_what_it_computed(tmp_path: Path, kind: str) -> None:
    theirs = network(CONFIGS[kind])
    file = saved(tmp_path / "vidtr_s_8x8_patch16_224_k400.pth", gluonmm(theirs))
    report = import_weights(str(file), tmp_path / "out", HEADS)
    assert report["counts"]["loaded"]["tensors"] == len(theirs.state_dict()) == len(report["tensors"])
    ours, frames = load_release(tmp_path / "out"), CONFIGS[kind].frames
    assert ours.config == CONFIGS[kind]
    inputs, groups = pixels(2 * frames + 3 + 1), ((2, frames), (1, 3), (1, 1))
    close(ours(inputs, groups)["moves"], theirs(inputs, groups)["moves"])
    release = read_config(tmp_path / "out")
    assert release.metadata["imported"]["licence"] == "Apache-2.0"
    wanted = f"dense@{64 / frames / 30:.4g}"
    assert (release.datasets["moves"]["sampling"], release.datasets["moves"]["views"]) == (wanted, "10x3")


@torch.no_grad()
def test_another_size_and_length(tmp_path: Path) -> None:
    theirs = network(CONFIGS["grid"])
    file = saved(tmp_path / "vidtr.pth", gluonmm(theirs), "")
    options = ImportOptions(head="moves", attention_heads=2, size=24, frames=8)
    report = import_weights(str(file), tmp_path / "out", options)
    assert report["counts"]["resized"]["tensors"] == 3
    ours = load_release(tmp_path / "out")
    assert (ours.config.size, ours.config.frames) == (24, 8)
    clip = pixels(8, size=24)
    close(ours(clip, ((1, 8),))["moves"], theirs(clip, ((1, 8),))["moves"])
    with pytest.raises(UserError, match="--size 25"):
        import_weights(str(file), tmp_path / "odd", ImportOptions(attention_heads=2, size=25))


@torch.no_grad()
@pytest.mark.parametrize("frames", [None, 3])
def test_the_image_network_is_inflated(tmp_path: Path, frames: int | None) -> None:
    state = gluonmm(network(VidTrConfig(**SMALL, frames=1, tokens="class")), "")
    state.pop("fc.weight"), state.pop("fc.bias")
    file = saved(tmp_path / "vit_inflate.pth", state, "")
    report = import_weights(str(file), tmp_path / "out", ImportOptions(attention_heads=2, frames=frames))
    assert (report["head"], report["counts"]["resized"]["tensors"]) == (None, 3)
    backbone, length = load_release(tmp_path / "out").backbone, frames or 8
    assert backbone.config.frames == length
    position = backbone.get_parameter("pos_embed")
    assert position.shape == (1 + length, 197, 16)
    assert torch.equal(position, state["pos_embedding"].expand(1 + length, -1, -1))
    for name in ("frame_tokens", "place_tokens"):
        tokens = backbone.get_parameter(name)
        assert torch.equal(tokens, state["cls"].expand_as(tokens))
    clip = pixels(1).expand(length, -1, -1, -1)
    still = backbone(clip, ((1, length),))
    close(backbone(clip.roll(1, 0), ((1, length),)), still)


def without(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: state.pop(name)


def with_tensor(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: state.update({name: value})


BAD: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    r"encoder\.layers\.2\.linear2\.bias": without("encoder.layers.2.linear2.bias"),
    "cls_t": without("cls_t"),
    "conv_stem.weight": without("conv_stem.weight"),
    r"gamma.*--unused": with_tensor("encoder.layers.0.gamma", torch.ones(16)),
    r"conv_stem\.weight.*\(16, 3, 2, 2, 2\)": with_tensor("conv_stem.weight", torch.ones(16, 3, 2, 2, 2)),
    r"pos_embedding.*986": with_tensor("pos_embedding", torch.ones(1, 986, 16)),
    r"cls_s.*": with_tensor("cls_s", torch.ones(5, 1, 16)),
    r"in_proj_weight is \(40, 16\)": with_tensor("encoder.layers.0.self_attn.in_proj_weight", torch.ones(40, 16)),
    r"number 99": with_tensor("encoder.layers.99.norm1.bias", torch.ones(16)),
}


@pytest.mark.parametrize("wanted", BAD)
def test_surprises_are_refused_in_one_line(tmp_path: Path, wanted: str) -> None:
    state = gluonmm(network(CONFIGS["grid"]), "")
    BAD[wanted](state)
    file = saved(tmp_path / "vidtr.pth", state)
    with pytest.raises(UserError, match=wanted) as caught:
        import_weights(str(file), tmp_path / "out", HEADS)
    assert "\n" not in str(caught.value)


def test_a_compact_network_of_unknown_layers_is_refused(tmp_path: Path) -> None:
    config = VidTrConfig(**SMALL, frames=6, tokens="class", pool_layers=(1,), pool_frames=(2,))
    file = saved(tmp_path / "vidtr.pth", gluonmm(network(config)))
    with pytest.raises(UserError, match="6 frames"):
        import_weights(str(file), tmp_path / "out", HEADS)


def test_options_that_have_no_meaning_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "vidtr.pth", gluonmm(network(CONFIGS["grid"])))
    for name, value in (("attention", "joint"), ("time", "rotary"), ("resize", "nearest")):
        with pytest.raises(UserError, match=f"--{name}"):
            import_weights(str(file), tmp_path / "out", ImportOptions(attention_heads=2, **{name: value}))
    with pytest.raises(UserError, match="--attention-heads"):
        import_weights(str(file), tmp_path / "out", ImportOptions(attention_heads=3))


def test_from_an_import_to_an_exported_graph(sandbox: Path, tmp_path: Path) -> None:
    """Import, two steps of training with another length, resume, the release and torch.export."""
    run, recipe, start = tmp_path / "run", tmp_path / "recipe.yaml", tmp_path / "start"
    torch.manual_seed(0)
    theirs = CoVeR(vidtr_config("mini", frames=2), (Head("moves", CLASSES),))
    file = saved(tmp_path / "vidtr.pth", gluonmm(theirs))
    assert main(["import-weights", str(file), "--out", str(start), "--head", "none", "--attention-heads", "4"]) == 0
    recipe.write_text(
        f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 4}}\nstart: {{checkpoint: {start}}}\n"
        "model: {size: 32, drop_path: 0.1}\n"
        f"out: {run}\nsteps: 2\nbatch: 8\nworkers: 0\nevaluate_every: -1\nsave_every: 1\n"
    )
    assert main(["train", str(recipe)]) == 0
    weights = CoVeR.from_pretrained(run).state_dict()
    shutil.rmtree(run / "checkpoints/step-0000002")
    assert main(["train", str(recipe), "--resume"]) == 0
    model = CoVeR.from_pretrained(run)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.config.options() == VidTrOptions(preset="mini", size=32)
    check_export(run, model, tmp_path, "torch")


@pytest.mark.full
@pytest.mark.parametrize("preset", ["mini", "C-mini"])
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_exported_graphs(tmp_path: Path, preset: str, form: str) -> None:
    torch.manual_seed(0)
    model = CoVeR(vidtr_config(preset), (Head("ssv2", CLASSES),), metadata={"frames": 4, "datasets": DATASETS}).eval()
    with torch.no_grad():
        model.heads["ssv2"].weight.normal_()
    model.save_pretrained(tmp_path / "release")
    check_export(tmp_path / "release", model, tmp_path, form)


DATASETS = {"ssv2": {"media": "video", "sampling": "segments", "views": "1x1"}}


def check_export(folder: Path, model: CoVeR, out: Path, form: str) -> None:
    """Export a release and assert that the graph computes what the model computes."""
    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(model.normalize(clips.flatten(0, 1)), ((3, 4),))["ssv2"].softmax(-1)
    file = out / ("m.onnx" if form == "onnx" else "m.pt2")
    assert main(["export", str(folder), "--format", form, "--out", str(file)]) == 0
    if form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(file))
        (result,) = session.run(["ssv2"], {"clips": clips.numpy()})
    else:
        result = torch.export.load(file).module()(clips)["ssv2"].detach().numpy()
    np.testing.assert_allclose(result, wanted, atol=1e-5)
