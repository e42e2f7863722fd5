"""Checkpoints of Video Swin and of image Swins under the names of six libraries; one from the import to an export."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import SwinConfig, SwinForImageClassification

from cover.cli import main
from cover.errors import UserError
from cover.model.backbones.video_swin import IMAGENET_MEAN, VideoSwinConfig, VideoSwinOptions, video_swin_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import load_release, read_config
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import import_weights

CLASSES = ("left", "right", "up")
CONFIG = VideoSwinConfig(channels=12, depths=(2, 2), attention_heads=(2, 4), window=3, window_frames=2, size=24)
Renaming = Callable[[str], str]


def randomised(model: Any) -> Any:
    """Every parameter random and none near zero; the scales of norms around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if scale else 0.0, 0.3, generator=generator)
    return model.eval()


def network() -> CoVeR:
    return randomised(CoVeR(CONFIG, (Head("moves", CLASSES),)))


def released(name: str) -> str:
    """The name of the released code of a tensor of a network with two blocks in each of two stages."""
    name = name.replace("backbone.", "").replace("heads.moves", "cls_head.fc_cls").replace("bias_table", TABLE)
    name = re.sub(r"blocks\.2\.merge", "layers.0.downsample", name)
    return re.sub(r"blocks\.(\d)", lambda match: f"layers.{int(match[1]) // 2}.blocks.{int(match[1]) % 2}", name)


TABLE = "relative_position_bias_table"


def with_prefix(name: str) -> str:
    return name if name.startswith("cls_head") else f"backbone.{name}"


def torchvision(name: str) -> str:
    name = re.sub(r"layers\.(\d)\.blocks", lambda match: f"features.{2 * int(match[1])}", released(name))
    name = name.replace("layers.0.downsample", "features.1").replace("cls_head.fc_cls", "head")
    return name.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")


def timm(name: str) -> str:
    return released(name).replace("cls_head.fc_cls", "head.fc").replace("layers.0.downsample", "layers.1.downsample")


NAMES: dict[str, Renaming] = {
    "Video Swin, released code": lambda name: with_prefix(released(name)),
    "Video Swin, mmaction2": lambda name: with_prefix(re.sub(r"^norm\.", "norm3.", released(name))),
    "Video Swin, torchvision": torchvision,
    "Swin, Microsoft": lambda name: released(name).replace("cls_head.fc_cls", "head"),
    "Swin, timm": timm,
}


def checkpoint(path: Path, model: CoVeR, title: str, wrapping: str = "state_dict", image: bool = False) -> Path:
    """A file with the weights of the model under the names of a library; `image`: of its image network."""
    state = {NAMES[title](name): value.clone() for name, value in model.state_dict().items()}
    for name in [name for name in state if name.endswith(TABLE)]:  # buffers of integers that files have
        state[name.replace("bias_table", "index")] = torch.zeros(18, 18, dtype=torch.long)
    if image:
        patch = next(name for name in state if name.endswith("patch_embed.proj.weight"))
        state[patch] = state[patch].sum(2)
        for name in [name for name in state if name.endswith(TABLE)]:
            state[name] = state[name].view(3, 25, -1)[1].clone()  # at a distance of zero in time
    torch.save({wrapping: state, "meta": {"epoch": 30}} if wrapping else state, path)
    return path


def pixels(*shape: int, size: int = 24) -> Tensor:
    return torch.randn(*shape, 3, size, size, generator=torch.Generator().manual_seed(1))


def close(result: Tensor, wanted: Tensor) -> None:
    assert float((result - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("title", [name for name in NAMES if name.startswith("Video")])
@pytest.mark.parametrize("wrapping", ["state_dict", "model", ""])
def test_a_video_network_computes_what_it_computed(tmp_path: Path, title: str, wrapping: str) -> None:
    theirs = network()
    file = checkpoint(tmp_path / "swin.pth", theirs, title, wrapping)
    report = import_weights(str(file), tmp_path / "out", ImportOptions(head="moves", size=24, frames=5))
    assert report["format"] == title
    assert report["counts"]["loaded"]["tensors"] == len(theirs.state_dict())
    assert report["counts"]["unused"]["tensors"] == 4
    assert all(row["source"] for row in report["tensors"])
    ours, clips = load_release(tmp_path / "out"), pixels(2, 5)
    assert ours.config == VideoSwinConfig(**{**vars(CONFIG), "frames": 5})
    wanted = theirs(torch.cat([clips.flatten(0, 1), pixels(1)]), ((2, 5), (1, 1)))["moves"]
    close(ours(torch.cat([clips.flatten(0, 1), pixels(1)]), ((2, 5), (1, 1)))["moves"], wanted)
    dataset = read_config(tmp_path / "out").datasets["moves"]
    assert (dataset["media"], dataset["sampling"], dataset["views"]) == ("video", "dense@0.06667", "4x3")


@torch.no_grad()
@pytest.mark.parametrize("title", [name for name in NAMES if not name.startswith("Video")])
def test_an_image_network_is_inflated(tmp_path: Path, title: str) -> None:
    theirs = network()
    file = checkpoint(tmp_path / "swin.pth", theirs, title, "model", image=True)
    report = import_weights(str(file), tmp_path / "out", ImportOptions(head="moves"))
    assert report["format"] == title
    assert {row["tensor"].split(".")[-1] for row in report["tensors"] if row["fate"] == "resized"} == {
        "weight",
        "bias_table",
    }
    assert report["counts"]["resized"]["tensors"] == 5
    ours, images = load_release(tmp_path / "out"), pixels(2)
    assert (ours.config.window_sides, ours.config.size) == ((8, 3, 3), 24)
    wanted = theirs(images, ((2, 1),))["moves"]
    close(ours(images, ((2, 1),))["moves"], wanted)
    for frames in (2, 6):
        clips = images[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        close(ours(clips, ((2, frames),))["moves"], wanted)
    dataset = read_config(tmp_path / "out").datasets["moves"]
    assert (dataset["media"], dataset["sampling"], dataset["views"]) == ("image", "segments", "1x1")


def transformers_swin(**changes: Any) -> Any:
    shape = {
        "image_size": 56,
        "embed_dim": 12,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 7,
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: number for number, name in enumerate(CLASSES)},
    }
    return randomised(SwinForImageClassification(SwinConfig(**{**shape, **changes})))


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"window_size": 14, "depths": [2], "num_heads": [3]}, {"depths": [1, 1, 2]}])
def test_transformers_swin(tmp_path: Path, changes: dict[str, Any]) -> None:
    if len(changes.get("depths", [])) == 3:
        changes = {**changes, "num_heads": [1, 2, 4], "image_size": 112}
    theirs = transformers_swin(**changes)
    theirs.save_pretrained(tmp_path / "theirs")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "do_normalize": True}
    (tmp_path / "theirs/preprocessor_config.json").write_text(json.dumps(processor))
    import_weights(str(tmp_path / "theirs"), tmp_path / "out", ImportOptions(head="moves"))
    ours, images = load_release(tmp_path / "out"), pixels(2, size=theirs.config.image_size)
    assert ours.config.size == theirs.config.image_size
    assert (ours.config.mean, ours.head_list[0].classes) == ((0.1, 0.2, 0.3), CLASSES)
    close(ours(images, ((2, 1),))["moves"], theirs(images).logits)


def test_published_names_of_pixels_and_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = checkpoint(
        tmp_path / "swin_tiny_patch244_window877_kinetics400_1k.pth", network(), "Video Swin, released code"
    )
    assert main(["import-weights", str(file), "--out", str(tmp_path / "out"), "--head", "moves"]) == 0
    assert "Apache-2.0" in capsys.readouterr().err
    release = read_config(tmp_path / "out")
    assert release.backbone.mean == IMAGENET_MEAN
    assert release.metadata["imported"]["licence"] == "Apache-2.0"


BAD: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    r"layers\.1\.blocks\.1\.mlp\.fc2\.bias": lambda state: state.pop("backbone.layers.1.blocks.1.mlp.fc2.bias"),
    r"layers\.0\.downsample\.reduction\.weight": lambda state: state.pop(
        "backbone.layers.0.downsample.reduction.weight"
    ),
    "logit_scale": lambda state: state.update({"backbone.layers.0.blocks.0.attn.logit_scale": torch.ones(2, 1, 1)}),
    "absolute_pos_embed": lambda state: state.update({"backbone.absolute_pos_embed": torch.ones(1, 9, 12)}),
    r"blocks\.0\.attn\.qkv\.weight.*\(36, 12\)": lambda state: state.update(
        {"backbone.layers.0.blocks.0.attn.qkv.weight": torch.ones(37, 12)}
    ),
    r"patch_embed\.proj\.weight.*\(12, 3, 4, 4, 4\)": lambda state: state.update(
        {"backbone.patch_embed.proj.weight": torch.ones(12, 3, 4, 4, 4)}
    ),
    r"layers\.1\.blocks\.0.*another window": lambda state: state.update(
        {f"backbone.layers.1.blocks.0.attn.{TABLE}": torch.ones(27, 4)}
    ),
    "rows": lambda state: state.update({f"backbone.layers.0.blocks.0.attn.{TABLE}": torch.ones(74, 2)}),
    r"floating": lambda state: state.update({"backbone.norm.weight": torch.ones(24, dtype=torch.long)}),
    "twice": lambda state: state.update({"norm.weight": torch.ones(24)}),
    "some lack": lambda state: (
        [state.pop(name) for name in list(state) if "layers.0.blocks." in name and "0.attn" not in name]
        and [state.pop(name) for name in list(state) if ".layers.1." in name]
        and state.update({"backbone.layers.7.blocks.0.norm1.weight": torch.ones(24)})
    ),
}


@pytest.mark.parametrize("wanted", BAD)
def test_surprises_are_refused_in_one_line(tmp_path: Path, wanted: str) -> None:
    file = checkpoint(tmp_path / "swin.pth", network(), "Video Swin, released code", "")
    state = torch.load(file, weights_only=True)
    BAD[wanted](state)
    torch.save(state, file)
    with pytest.raises(UserError, match=wanted) as caught:
        import_weights(str(file), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_absolute_embeddings", True), ("hidden_act", "relu"), ("num_heads", [3, 6]), ("window_size", 6)],
)
def test_a_configuration_of_another_function_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    transformers_swin().save_pretrained(tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    (tmp_path / "theirs/config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(UserError, match=key):
        import_weights(str(tmp_path / "theirs"), tmp_path / "out")


def test_options_of_other_families_are_refused(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "swin.pth", network(), "Video Swin, released code")
    for name, value in (("attention", "joint"), ("time", "rotary"), ("attention_heads", 3), ("resize", "nearest")):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')}"):
            import_weights(str(file), tmp_path / "out", ImportOptions(**{name: value}))


def test_a_part_can_be_left_out(tmp_path: Path) -> None:
    file = checkpoint(tmp_path / "swin.pth", network(), "Swin, Microsoft", "model", image=True)
    tensors = torch.load(file, weights_only=True)["model"]
    tensors["decoder.0.weight"] = torch.ones(3)
    save_file({name: value.contiguous() for name, value in tensors.items()}, str(tmp_path / "more.safetensors"))
    with pytest.raises(UserError, match="--unused decoder"):
        import_weights(str(tmp_path / "more.safetensors"), tmp_path / "out")
    options = ImportOptions(head="none", unused=("decoder.",))
    report = import_weights(str(tmp_path / "more.safetensors"), tmp_path / "out", options)
    assert (report["head"], report["counts"]["unused"]["tensors"]) == (None, 1 + 4 + 2)


def test_from_an_import_to_an_exported_graph(sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Import, two steps of training with another window, resume, the release and torch.export."""
    config = video_swin_config("mini", window=3, window_frames=2, size=32, frames=4)
    torch.manual_seed(0)
    theirs = CoVeR(config, (Head("moves", CLASSES),))
    file, run, recipe = tmp_path / "swin.pth", tmp_path / "run", tmp_path / "recipe.yaml"
    checkpoint(file, theirs, "Swin, Microsoft", "model", image=True)
    assert main(["import-weights", str(file), "--out", str(tmp_path / "start"), "--head", "none"]) == 0
    recipe.write_text(
        f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 4}}\n"
        f"start: {{checkpoint: {tmp_path / 'start'}}}\n"
        "model: {size: 32, window: 4, window_frames: 2, drop_path: 0.1}\n"
        f"out: {run}\nsteps: 2\nbatch: 8\nworkers: 0\nevaluate_every: -1\nsave_every: 1\n"
    )
    assert main(["train", str(recipe)]) == 0
    assert "4 bias tables from windows of 8x3x3 to 2x4x4" in capsys.readouterr().err
    weights = CoVeR.from_pretrained(run).state_dict()
    shutil.rmtree(run / "checkpoints/step-0000002")
    assert main(["train", str(recipe), "--resume"]) == 0
    model = CoVeR.from_pretrained(run)
    assert model.config.options() == VideoSwinOptions(preset="mini", size=32, window=4, window_frames=2)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    check_export(run, model, tmp_path, "torch")


@pytest.mark.full
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_exported_graphs(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    config = video_swin_config("mini", window=4, window_frames=2, size=32, frames=4)
    datasets = {"ssv2": {"media": "video", "sampling": "segments", "views": "1x1"}}
    model = CoVeR(config, (Head("ssv2", CLASSES),), metadata={"frames": 4, "datasets": datasets}).eval()
    with torch.no_grad():
        model.heads["ssv2"].weight.normal_()
    model.save_pretrained(tmp_path / "release")
    check_export(tmp_path / "release", model, tmp_path, form)


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
