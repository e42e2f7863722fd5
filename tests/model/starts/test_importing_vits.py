"""Plain vision transformers as their libraries save them: the whole way from a folder or a file to a release and a run.

The references are the networks of the transformers library, every parameter random.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cover.cli import main
from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.backbones.vit import VitConfig, vit_config
from cover.model.cover import CoVeR
from cover.model.release import load_release, read_config, start_from
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import import_weights

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {name: value for name, value in SHAPE.items() if name != "intermediate_size"}
LABELS = {"id2label": {0: "left", 1: "right", 2: "up"}, "label2id": {"left": 0, "right": 1, "up": 2}}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 10}
CLIP: dict[str, Any] = {**SHAPE, "num_frames": 4, "tubelet_size": 2}


def randomised(module: nn.Module) -> Any:
    """Every parameter random and none near zero; the scales of norms around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = name.endswith("weight") and parameter.ndim == 1
            parameter.normal_(1.0 if scale else 0.0, 0.2, generator=generator)
    return module.eval()


def vjepa2() -> Any:
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pred_hidden_size": 24}
    config = tf.VJEPA2Config(
        crop_size=32, patch_size=8, frames_per_clip=4, pred_num_attention_heads=2, pred_num_hidden_layers=1, **settings
    )
    return randomised(tf.VJEPA2Model(config))


# Name -> the network, and what of it equals our logits (with a classifier) or our feature.
NETWORKS: dict[str, tuple[Any, Any]] = {
    "dinov2": (
        lambda: tf.Dinov2ForImageClassification(tf.Dinov2Config(**DINO, **LABELS, mlp_ratio=2)),
        lambda model, x: model(x).logits,
    ),
    "dinov2_registers": (
        lambda: tf.Dinov2WithRegistersForImageClassification(
            tf.Dinov2WithRegistersConfig(**DINO, **LABELS, mlp_ratio=2, num_register_tokens=3)
        ),
        lambda model, x: model(x).logits,
    ),
    "dinov3": (
        lambda: tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**SHAPE, num_register_tokens=2)),
        lambda model, x: model(x).pooler_output,
    ),
    "clip": (
        lambda: tf.CLIPModel(tf.CLIPConfig(vision_config={**SHAPE, "projection_dim": 8}, text_config=TEXT)),
        lambda model, x: model.vision_model(x).pooler_output,
    ),
    "siglip": (
        lambda: tf.SiglipModel(tf.SiglipConfig(vision_config=SHAPE, text_config=TEXT)),
        lambda model, x: model.vision_model(x).pooler_output,
    ),
    "deit": (
        lambda: tf.DeiTForImageClassification(tf.DeiTConfig(**SHAPE, **LABELS)),
        lambda model, x: model(x).logits,
    ),
    "ijepa": (
        lambda: tf.IJepaForImageClassification(tf.IJepaConfig(**SHAPE, **LABELS)),
        lambda model, x: model(x).logits,
    ),
    "videomae": (
        lambda: tf.VideoMAEForVideoClassification(tf.VideoMAEConfig(**CLIP, **LABELS)),
        lambda model, x: model(x).logits,
    ),
    "vivit": (
        lambda: tf.VivitForVideoClassification(tf.VivitConfig(**{**CLIP, "tubelet_size": [2, 8, 8]}, **LABELS)),
        lambda model, x: model(x).logits,
    ),
    "vjepa2": (vjepa2, lambda model, x: model(x, skip_predictor=True).last_hidden_state.mean(1)),
}
VIDEO = ("videomae", "vivit", "vjepa2")


def theirs(name: str) -> Any:
    return randomised(NETWORKS[name][0]())


def saved(folder: Path, model: Any) -> str:
    model.save_pretrained(folder)
    return str(folder)


def ours(folder: Path, x: Tensor) -> Tensor:
    """The logits of a release for images `(N, 3, H, W)` or clips `(N, T, 3, H, W)`; its features without a head."""
    model = load_release(folder)
    groups = ((x.shape[0], x.shape[1] if x.ndim == 5 else 1),)
    features = model.forward_features(x.flatten(0, -4), groups)
    return next(iter(model.forward_head(features).values()), features)


def pixels(video: bool, side: int = 32) -> Tensor:
    return torch.randn(2, *([4] if video else []), 3, side, side, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_of_transformers(tmp_path: Path, name: str) -> None:
    model, x = theirs(name), pixels(name in VIDEO)
    source = saved(tmp_path / "theirs", model)
    report = import_weights(source, tmp_path / "ours", ImportOptions(head="moves"))
    wanted = NETWORKS[name][1](model, x)
    torch.testing.assert_close(ours(tmp_path / "ours", x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    files = load_file(f"{source}/model.safetensors")
    listed = [each for row in report["tensors"] for each in row["source"]]
    assert set(listed) == set(files)
    unused = {row["source"][0].split(".")[0] for row in report["tensors"] if row["fate"] == "unused"}
    assert unused == {
        "clip": {"text_model", "text_projection", "visual_projection", "logit_scale"},
        "siglip": {"text_model", "logit_scale", "logit_bias"},
        "vjepa2": {"predictor"},
        "dinov3": {"embeddings"},
        "dinov2": {"dinov2"},
        "dinov2_registers": {"dinov2_with_registers"},
    }.get(name, set())
    config = read_config(tmp_path / "ours").backbone
    assert isinstance(config, VitConfig)
    assert config.attention == ("joint" if name in VIDEO else "space")


@torch.no_grad()
def test_videomae_before_its_fine_tuning_gets_a_new_norm(tmp_path: Path) -> None:
    sizes = {"decoder_num_attention_heads": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    model = randomised(tf.VideoMAEForPreTraining(tf.VideoMAEConfig(**CLIP, **sizes, decoder_intermediate_size=16)))
    report = import_weights(saved(tmp_path / "theirs", model), tmp_path / "ours")
    assert [row["tensor"] for row in report["tensors"] if row["fate"] == "left new"] == [
        "backbone.norm.weight",
        "backbone.norm.bias",
    ]
    x = pixels(True)
    wanted = nn.functional.layer_norm(model.videomae(x).last_hidden_state.mean(1), (32,), eps=1e-5)
    torch.testing.assert_close(ours(tmp_path / "ours", x), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_files_of_the_original_releases(tmp_path: Path) -> None:
    """Under the keys that they have: `module` in VideoMAE's, `target_encoder` with two prefixes in V-JEPA's."""
    model = theirs("videomae")
    state = {
        name.replace("videomae.", "")
        .replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        .replace("encoder.layer.", "blocks.")
        .replace("layernorm_before", "norm1")
        .replace("layernorm_after", "norm2")
        .replace("attention.output.dense", "attn.proj")
        .replace("intermediate.dense", "mlp.fc1")
        .replace("output.dense", "mlp.fc2")
        .replace("attention.attention.", "attn.")
        .replace("classifier", "head"): value
        for name, value in load_file(f"{saved(tmp_path / 'theirs', model)}/model.safetensors").items()
    }
    for block in range(2):
        parts = [state.pop(f"blocks.{block}.attn.{part}.weight") for part in ("query", "key", "value")]
        state[f"blocks.{block}.attn.qkv.weight"] = torch.cat(parts)
    torch.save({"module": state, "epoch": 3}, tmp_path / "mae.pth")
    # No file says the sizes, so they are the published ones: 4 frames are a mistake here, and 16 x 32 is no table.
    options = ImportOptions(attention_heads=4, size=32, frames=4, head="moves")
    report = import_weights(str(tmp_path / "mae.pth"), tmp_path / "mae", options)
    assert "VideoMAE" in report["format"]
    assert report["model"]["position_grid"] == (8, 28, 28)
    x = pixels(True)
    config = read_config(tmp_path / "mae").backbone
    assert isinstance(config, VitConfig)
    assert (config.norm_eps, config.pool_eps, config.qkv_bias) == (1e-6, 0.0, "qv")
    assert torch.isfinite(ours(tmp_path / "mae", x)).all()

    jepa = theirs("vjepa2")
    saved(tmp_path / "jepa", jepa)
    fused = {}
    for name, value in load_file(str(tmp_path / "jepa/model.safetensors")).items():
        new = name.removeprefix("encoder.").replace("embeddings.patch_embeddings", "patch_embed")
        new = new.replace("layernorm.", "norm.").replace("layer.", "blocks.").replace("attention.", "attn.")
        fused |= {} if name.startswith("predictor") else {new: value}
    for block in range(2):
        for kind in ("weight", "bias"):
            parts = [fused.pop(f"blocks.{block}.attn.{part}.{kind}") for part in ("query", "key", "value")]
            fused[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    wrapped = {f"module.backbone.{name}": value for name, value in fused.items()}
    torch.save({"target_encoder": wrapped, "epoch": 1}, tmp_path / "jepa.pt")
    options = ImportOptions(attention_heads=2, size=32, frames=4)
    import_weights(str(tmp_path / "jepa.pt"), tmp_path / "jepa_ours", options)
    wanted = NETWORKS["vjepa2"][1](jepa, x)
    torch.testing.assert_close(ours(tmp_path / "jepa_ours", x), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["space", "joint", "divided", "late"])
def test_an_image_network_gets_a_way_over_time(tmp_path: Path, attention: Any) -> None:
    source = saved(tmp_path / "theirs", theirs("dinov3"))
    report = import_weights(source, tmp_path / "ours", ImportOptions(attention=attention, frames=4))
    assert report["model"]["time"] == ("rotary" if attention == "divided" else "none")
    image, clip = pixels(False), pixels(True)
    assert ours(tmp_path / "ours", clip).shape == (2, 32)
    assert (report["counts"]["left new"]["tensors"] > 0) == (attention in ("divided", "late"))
    if attention != "late":
        wanted = NETWORKS["dinov3"][1](theirs("dinov3"), image)
        torch.testing.assert_close(ours(tmp_path / "ours", image), wanted, rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"attention": "divided", "time": "rotary"}, {"attention": "joint"}, {"size": 48}])
def test_a_run_that_begins_its_way_over_time_anew(tmp_path: Path, changes: dict[str, Any]) -> None:
    """`start.temporal: fresh` with another `model.attention` than the release's; also a late encoder."""
    model = theirs("dinov3")
    import_weights(saved(tmp_path / "theirs", model), tmp_path / "ours", ImportOptions(frames=4))
    config = read_config(tmp_path / "ours").backbone
    assert isinstance(config, VitConfig)
    temporal: Any = "fresh" if "attention" in changes else "keep"
    new = CoVeR(replace(config, **changes)).eval()
    start_from(new, tmp_path / "ours", temporal)
    image = pixels(False, new.config.size)
    wanted = NETWORKS["dinov3"][1](model, image)
    torch.testing.assert_close(new.forward_features(image, ((2, 1),)), wanted, rtol=1e-5, atol=1e-4)
    late = CoVeR(replace(config, attention="late", frame_pool="mean")).eval()
    start_from(late, tmp_path / "ours", "fresh")
    same = late.backbone.state_dict()["blocks.1.mlp.fc1.weight"]
    assert torch.equal(same, new.backbone.state_dict()["blocks.1.mlp.fc1.weight"])
    with pytest.raises(UserError, match=r"start\.temporal"):
        start_from(late, tmp_path / "ours", "keep")


@torch.no_grad()
def test_a_size_that_patches_do_not_cover(tmp_path: Path) -> None:
    """SigLIP so400m has images of 384 px and patches of 14: its last pixels are not read."""
    settings = {**SHAPE, "image_size": 36}
    model = randomised(tf.SiglipVisionModel(tf.SiglipVisionConfig(**settings)))
    import_weights(saved(tmp_path / "theirs", model), tmp_path / "ours")
    assert load_release(tmp_path / "ours").config.size == 32
    image = pixels(False, 36)
    wanted = model(image).pooler_output
    torch.testing.assert_close(ours(tmp_path / "ours", image[..., :32, :32]), wanted, rtol=1e-5, atol=1e-4)
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    (tmp_path / "theirs/config.json").write_text(json.dumps({**config, "image_size": 48}))
    with pytest.raises(UserError, match="image_size"):
        import_weights(str(tmp_path / "theirs"), tmp_path / "again")


def test_networks_under_the_names_of_another(tmp_path: Path) -> None:
    """EVA-02's small sizes have no tensor for their rotary positions; other networks with such are refused."""
    model = CoVeR(vit_config("vit_mini8", size=16, depth=2, width=32, hidden=24, qkv_bias="qv", mlp="swiglu"))
    state = {}
    for name, value in model.backbone.state_dict().items():
        short = name.removeprefix("embed.").replace("patches.", "patch_embed.proj.").replace("norm.w", "fc_norm.w")
        state[short.replace("norm.b", "fc_norm.b") if name.startswith("norm") else short] = value
    state["pos_embed"] = torch.cat([state.pop("pos_before"), state["pos_embed"].flatten(0, 2)])[None]
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "model.safetensors")
    report = import_weights(str(tmp_path / "model.safetensors"), tmp_path / "eva", ImportOptions(attention_heads=4))
    assert "EVA-02" in report["format"]
    assert (report["model"]["rotary"], report["model"]["mlp"], report["model"]["pool"]) == (
        "pairs",
        "swiglu",
        "mean_norm",
    )
    arguments = {"architecture": "vit_small_patch16_rope_224", "model_args": {"num_heads": 4}}
    (tmp_path / "config.json").write_text(json.dumps(arguments))
    with pytest.raises(UserError, match="vit_small_patch16_rope_224"):
        import_weights(str(tmp_path), tmp_path / "rope")


def test_an_image_vit_becomes_what_is_asked_for(tmp_path: Path) -> None:
    source = saved(tmp_path / "theirs", randomised(tf.ViTForImageClassification(tf.ViTConfig(**SHAPE, **LABELS))))
    import_weights(source, tmp_path / "timesformer")
    import_weights(source, tmp_path / "vit", ImportOptions(backbone="vit"))
    assert isinstance(read_config(tmp_path / "timesformer").backbone, TimeSformerConfig)
    assert isinstance(read_config(tmp_path / "vit").backbone, VitConfig)
    image = pixels(False)
    torch.testing.assert_close(
        ours(tmp_path / "vit", image), ours(tmp_path / "timesformer", image), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(UserError, match="--backbone vit"):
        import_weights(source, tmp_path / "late", ImportOptions(attention="late"))


@torch.no_grad()
def test_another_size_and_length(tmp_path: Path) -> None:
    """As transformers resizes the positions of an image network; a video network resizes its own."""
    model = theirs("dinov2")
    report = import_weights(saved(tmp_path / "theirs", model), tmp_path / "ours", ImportOptions(size=48, head="moves"))
    assert [row["tensor"] for row in report["tensors"] if row["fate"] == "resized"] == ["backbone.embed.pos_embed"]
    image = pixels(False, 48)
    torch.testing.assert_close(ours(tmp_path / "ours", image), model(image).logits, rtol=1e-4, atol=1e-5)
    vivit = saved(tmp_path / "vivit", theirs("vivit"))
    report = import_weights(vivit, tmp_path / "longer", ImportOptions(frames=8, head="moves"))
    assert report["model"]["frames"] == 8
    assert load_release(tmp_path / "longer").backbone.get_parameter("embed.pos_embed").shape[0] == 4


REFUSED = [
    ("dinov2", {}, {"layer.7.extra": torch.zeros(2)}, {}, "layer.7.extra"),
    ("clip", {}, {"classifier.weight": torch.zeros(3, 32)}, {}, "classifier.weight"),
    ("dinov3", {"rope_theta": 10.0}, {}, {}, "rope_theta"),
    ("dinov2", {"hidden_act": "relu"}, {}, {}, "hidden_act"),
    ("vivit", {"num_frames": 6}, {}, {}, "position_embeddings"),
    ("videomae", {"tubelet_size": 1}, {}, {}, "tubelet_size"),
    ("dinov2", {"num_attention_heads": 5}, {}, {}, "attention-heads"),
    ("dinov2", {"model_type": "beit"}, {}, {}, "beit: known are .*dinov2.*timesformer"),
    ("dinov2", {}, {}, {"backbone": "timesformer"}, "--backbone timesformer"),
    ("videomae", {}, {}, {"attention": "space"}, "--attention"),
    ("videomae", {}, {}, {"frames": 5}, "--frames"),
    ("dinov2", {}, {}, {"size": 36}, "--size"),
]


@pytest.mark.parametrize(("name", "settings", "tensors", "options", "part"), REFUSED)
def test_what_is_refused_in_one_line(
    tmp_path: Path, name: str, settings: dict[str, Any], tensors: dict[str, Tensor], options: dict[str, Any], part: str
) -> None:
    folder = Path(saved(tmp_path / "theirs", theirs(name)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    if tensors:
        save_file({**load_file(folder / "model.safetensors"), **tensors}, folder / "model.safetensors")
    with pytest.raises(UserError, match=part) as error:
        import_weights(str(folder), tmp_path / "ours", ImportOptions(**options))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    "missing", ["encoder.layer.1.norm1.weight", "embeddings.patch_embeddings.projection.weight", "layernorm.bias"]
)
def test_a_missing_tensor_is_named(tmp_path: Path, missing: str) -> None:
    folder = Path(saved(tmp_path / "theirs", theirs("dinov2")))
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in state.items() if name != f"dinov2.{missing}"}, folder / "model.safetensors"
    )
    with pytest.raises(UserError, match=missing):
        import_weights(str(folder), tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("dinov2", ["--attention", "late"]),
        ("dinov3", ["--attention", "divided"]),
        ("videomae", []),
    ],
)
def test_from_published_weights_to_a_run_and_its_graph(
    tmp_path: Path, sandbox: Path, capfd: pytest.CaptureFixture[str], name: str, changes: list[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    source, start, run = saved(tmp_path / "theirs", theirs(name)), tmp_path / "start", tmp_path / "run"
    assert main(["import-weights", source, "--out", str(start), "--head", "none", "--frames", "4", *changes]) == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 4}}\nstart: {{checkpoint: {start}}}\n"
        f"out: {run}\nsteps: 2\nbatch: 4\nworkers: 0\nevaluate_every: -1\nsave_every: 1\n"
    )
    assert main(["train", str(recipe)]) == 0
    wanted_weights = CoVeR.from_pretrained(run).state_dict()
    shutil.rmtree(run / "checkpoints/step-0000002")
    assert main(["train", str(recipe), "--resume"]) == 0
    model = CoVeR.from_pretrained(run)
    assert all(torch.equal(value, wanted_weights[name]) for name, value in model.state_dict().items())
    assert (model.metadata["step"], model.config) == (2, read_config(start).backbone)
    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(model.normalize(clips.flatten(0, 1)), ((3, 4),))["ssv2"].softmax(-1)
    for form, file in (("onnx", "m.onnx"), ("torch", "m.pt2")):
        assert main(["export", str(run), "--format", form, "--out", str(tmp_path / file)]) == 0, capfd.readouterr().err
    (result,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["ssv2"], {"clips": clips.numpy()})
    np.testing.assert_allclose(result, wanted, atol=1e-5)
    torch.testing.assert_close(torch.export.load(tmp_path / "m.pt2").module()(clips)["ssv2"], wanted)


def test_the_licence_of_known_weights_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "MCG-NJU/videomae-base-finetuned-kinetics"
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
    saved(repository / "snapshots" / commit, theirs("videomae"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    report = import_weights(name, tmp_path / "ours")
    assert "licence of the weights: CC-BY-NC-4.0" in report["notes"]
    assert read_config(tmp_path / "ours").metadata["imported"]["licence"] == "CC-BY-NC-4.0"
    assert "CC-BY-NC-4.0" in (tmp_path / "ours" / "README.md").read_text()
