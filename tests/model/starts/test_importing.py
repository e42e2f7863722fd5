"""A foreign checkpoint computes after its import what it computed before; every tensor is accounted for, every surprise
refused.

The references are the networks of the transformers library, every parameter random. TimeSformer's own names and timm's
are made by renaming theirs, by rules that are written out here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    TimesformerConfig,
    TimesformerForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from cover.cli import main
from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import load_release, read_config, save_release
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import import_weights
from cover.model.starts.report import FATES

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": 24,
    "patch_size": 8,
    "id2label": {0: "left", 1: "right", 2: "up"},
    "label2id": {"left": 0, "right": 1, "up": 2},
}
NO_CONFIG = ImportOptions(attention_heads=4, head="mine")  # of a width that does not tell


def randomised(module: nn.Module) -> Any:
    """Every parameter random and none near zero; the scales of norms around 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm_scale = "norm" in name and name.endswith("weight")
            parameter.normal_(1.0 if norm_scale else 0.0, 0.2, generator=generator)
    return module.eval()


def timesformer(frames: int = 4, **changes: Any) -> Any:
    return randomised(
        TimesformerForVideoClassification(TimesformerConfig(**{**SHAPE, "num_frames": frames, **changes}))
    )


def vit(**changes: Any) -> Any:
    return randomised(ViTForImageClassification(ViTConfig(**{**SHAPE, **changes})))


def pixels(*shape: int, size: int = 24) -> Tensor:
    return torch.randn(*shape, 3, size, size, generator=torch.Generator().manual_seed(1))


def close(results: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(results, wanted, rtol=1e-5, atol=1e-5 * max(1.0, float(wanted.abs().max())))


@torch.no_grad()
def same_clips(release: Path, theirs: nn.Module, frames: int, size: int = 24) -> None:
    """Both give the same logits for two clips."""
    model, clips = load_release(release), pixels(2, frames, size=size)
    ((_, result),) = model(clips.flatten(0, 1), ((2, frames),)).items()
    close(result, theirs(clips).logits)


@torch.no_grad()
def same_images(release: Path, theirs: nn.Module) -> None:
    """Both give the same logits for images, and ours for clips that repeat an image."""
    model, images = load_release(release), pixels(2)
    ((_, result),) = model(torch.cat([images[:1].expand(3, -1, -1, -1), images]), ((1, 3), (2, 1))).items()
    close(result[1:], theirs(images).logits)
    if model.config.attention != "joint":  # where a token that is there thrice weighs more
        close(result[:1], result[1:2])


# --- names by other rules ---------------------------------------------------------------------------------------------

TO_OFFICIAL = (
    (r"^timesformer\.", ""),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.time_embeddings", "time_embed"),
    (r"encoder\.layer\.", "blocks."),
    (r"temporal_layernorm", "temporal_norm1"),
    (r"temporal_attention\.attention\.qkv", "temporal_attn.qkv"),
    (r"temporal_attention\.output\.dense", "temporal_attn.proj"),
    (r"temporal_dense", "temporal_fc"),
    (r"attention\.attention\.qkv", "attn.qkv"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head"),
)


def renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def official(theirs: nn.Module, prefix: str = "model.") -> dict[str, Tensor]:
    """The weights of a TimesformerForVideoClassification under the names of the released TimeSformer code."""
    return {prefix + renamed(name, TO_OFFICIAL): value.clone() for name, value in theirs.state_dict().items()}


def timm(theirs: nn.Module) -> dict[str, Tensor]:
    """The weights of a ViTForImageClassification under timm's names."""
    state = theirs.state_dict()
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        for old, new in (("q_proj", "qkv"), ("o_proj", "proj")):
            if f".{old}." in name:
                whole = (
                    value
                    if old == "o_proj"
                    else torch.cat([state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
                )
                named[re.sub(r"^vit\.layers", "blocks", name).replace(f"attention.{old}", f"attn.{new}")] = (
                    whole.clone()
                )
        if "_proj." not in name:
            named[renamed(name, ((r"^vit\.layers\.", "blocks."), (r"^vit\.", ""), *TO_OFFICIAL[1:]))] = value.clone()
    return named


def folder(path: Path, theirs: Any, **saving: Any) -> Path:
    theirs.save_pretrained(path, **saving)
    return path


# --- the same function ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 4, 8])
def test_a_transformers_timesformer(tmp_path: Path, frames: int) -> None:
    theirs = timesformer(frames)
    import_weights(str(folder(tmp_path / "theirs", theirs)), tmp_path / "ours")
    same_clips(tmp_path / "ours", theirs, frames)


@pytest.mark.parametrize(("kind", "frames"), [("joint_space_time", 1), ("joint_space_time", 4), ("space_only", 1)])
def test_other_attention(tmp_path: Path, kind: str, frames: int) -> None:
    theirs = timesformer(frames, attention_type=kind)
    report = import_weights(str(folder(tmp_path / "theirs", theirs)), tmp_path / "ours")
    assert kind.startswith(report["model"]["attention"])
    same_clips(tmp_path / "ours", theirs, frames)
    torch.save({"model_state": official(theirs)}, tmp_path / "x.pyth")
    import_weights(str(tmp_path / "x.pyth"), tmp_path / "released", NO_CONFIG)
    same_clips(tmp_path / "released", theirs, frames)


@pytest.mark.parametrize("saving", ["shards", "pickle"])
def test_other_ways_of_saving(tmp_path: Path, saving: str) -> None:
    theirs = timesformer()
    folder(tmp_path / "theirs", theirs, **({"max_shard_size": "20KB"} if saving == "shards" else {}))
    if saving == "pickle":
        (tmp_path / "theirs" / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "theirs" / "pytorch_model.bin")
    else:
        assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    same_clips(tmp_path / "ours", theirs, 4)


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "module.", ""])
def test_the_official_names(tmp_path: Path, prefix: str) -> None:
    theirs = timesformer()
    torch.save({"epoch": 3, "model_state": official(theirs, prefix), "optimizer_state": {}}, tmp_path / "K400.pyth")
    report = import_weights(str(tmp_path / "K400.pyth"), tmp_path / "ours", ImportOptions(attention_heads=4))
    assert (report["head"]["name"], report["pixels"]["mean"], report["pixels"]["std"]) == (
        "K400",
        (0.45,) * 3,
        (0.225,) * 3,
    )
    same_clips(tmp_path / "ours", theirs, 4)


@pytest.mark.parametrize("time", ["rotary", "additive"])
@pytest.mark.parametrize("attention", ["divided", "joint", "space"])
def test_a_transformers_vit(tmp_path: Path, time: Any, attention: Any) -> None:
    theirs = vit()
    report = import_weights(
        str(folder(tmp_path / "theirs", theirs)), tmp_path / "ours", ImportOptions(time=time, attention=attention)
    )
    assert (report["model"]["norm_eps"], report["model"]["time"]) == (1e-12, time)
    same_images(tmp_path / "ours", theirs)


def test_a_vit_under_the_names_it_has_in_memory(tmp_path: Path) -> None:
    theirs = vit()
    folder(tmp_path / "theirs", theirs)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file(
        tmp_path / "theirs" / "model.safetensors"
    )
    assert "vit.layers.0.attention.q_proj.weight" in theirs.state_dict()
    save_file(theirs.state_dict(), tmp_path / "theirs" / "model.safetensors")
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    same_images(tmp_path / "ours", theirs)


@pytest.mark.parametrize("file", ["vit.safetensors", "vit.bin", "vit.pth"])
def test_the_names_of_timm(tmp_path: Path, file: str) -> None:
    theirs = vit(layer_norm_eps=1e-6)
    save_file(timm(theirs), tmp_path / file) if file.endswith("s") else torch.save(
        {"model": timm(theirs)}, tmp_path / file
    )
    report = import_weights(str(tmp_path / file), tmp_path / "ours", NO_CONFIG)
    assert (report["format"], report["model"]["time"], report["model"]["resize"]) == ("timm ViT", "rotary", "bicubic")
    same_images(tmp_path / "ours", theirs)


def test_layer_scale_is_a_factor_on_the_branches(tmp_path: Path) -> None:
    theirs = vit(layer_norm_eps=1e-6)
    state, generator = timm(theirs), torch.Generator().manual_seed(2)
    # the reference has the factors multiplied into its last projections
    for number, layer in enumerate(theirs.vit.layers):
        for key, last in (("ls1", layer.attention.o_proj), ("ls2", layer.mlp.fc2)):
            gamma = torch.rand(32, generator=generator) + 0.5
            state[f"blocks.{number}.{key}.gamma"] = gamma
            last.weight.data *= gamma[:, None]
            last.bias.data *= gamma
    save_file(state, tmp_path / "vit.safetensors")
    report = import_weights(str(tmp_path / "vit.safetensors"), tmp_path / "ours", NO_CONFIG)
    same_images(tmp_path / "ours", theirs)
    assert {row["fate"] for row in report["tensors"] if row["tensor"].endswith("temporal_scale")} == {
        "copied to the temporal branch"
    }


@pytest.mark.parametrize(("frames", "size"), [(4, 48), (8, 24), (3, 24), (8, 48)])
def test_another_size_and_length_as_transformers_resizes_when_it_runs(tmp_path: Path, frames: int, size: int) -> None:
    theirs = timesformer()
    import_weights(str(folder(tmp_path / "theirs", theirs)), tmp_path / "ours", ImportOptions(size=size, frames=frames))
    config = load_release(tmp_path / "ours").config
    assert (config.size, config.frames, config.resize) == (size, frames, "nearest")
    theirs.config.num_frames = frames  # its layers read the length there, its embedding stays as long as it is
    same_clips(tmp_path / "ours", theirs, frames, size)


def test_another_size_of_an_image_vit_is_bicubic(tmp_path: Path) -> None:
    theirs = vit()
    import_weights(str(folder(tmp_path / "theirs", theirs)), tmp_path / "ours", ImportOptions(size=40))
    model, images = load_release(tmp_path / "ours"), pixels(2, size=40)
    with torch.no_grad():
        close(model(images, ((2, 1),))["theirs"], theirs(images, interpolate_pos_encoding=True).logits)


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    theirs = timesformer()
    folder(tmp_path / "theirs", theirs.half())
    report = import_weights(str(tmp_path / "theirs"), tmp_path / "ours")
    assert report["notes"] == ["float16 became float32"]
    same_clips(tmp_path / "ours", theirs.float(), 4)


# --- what is reported -------------------------------------------------------------------------------------------------


def test_every_tensor_of_both_sides_is_listed_once(tmp_path: Path) -> None:
    save_file({**timm(vit()), "fc_norm.weight": torch.ones(32)}, tmp_path / "vit.safetensors")
    wishes = ImportOptions(attention_heads=4, size=32, time="additive", head="none", unused=("fc_norm",))
    report = import_weights(str(tmp_path / "vit.safetensors"), tmp_path / "ours", wishes)
    rows = report["tensors"]
    ours = [row["tensor"] for row in rows if row["tensor"]]
    assert sorted(ours) == sorted(load_file(tmp_path / "ours" / "model.safetensors"))
    assert sorted(name for row in rows for name in row["source"]) == sorted(load_file(tmp_path / "vit.safetensors"))
    fates = {row["tensor"] or row["source"][0]: row["fate"] for row in rows}
    assert fates["backbone.pos_embed"] == "resized"
    for name in ("blocks.1.temporal_attn.qkv.weight", "blocks.0.temporal_norm.bias"):
        assert fates[f"backbone.{name}"] == "copied to the temporal branch"
    assert fates["backbone.blocks.0.temporal_fc.weight"] == fates["backbone.time_embed"] == "left new"
    assert fates["fc_norm.weight"] == fates["head.weight"] == "unused"
    assert {row["why"] for row in rows if row["fate"] == "unused"} == {"named with --unused", "--head none"}
    assert {fate: count["tensors"] for fate, count in report["counts"].items()} == {
        fate: sum(row["fate"] == fate for row in rows) for fate in FATES
    }
    assert load_release(tmp_path / "ours").head_list == ()


def test_the_new_temporal_branch_is_a_copy(tmp_path: Path) -> None:
    folder(tmp_path / "theirs", vit())
    for time in ("additive", "rotary"):
        report = import_weights(str(tmp_path / "theirs"), tmp_path / time, ImportOptions(time=time))
        model = load_release(tmp_path / time)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.backbone.reset_temporal("fresh")
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert not any(block.temporal_fc.weight.any() for block in model.backbone.blocks)
        for row in report["tensors"]:
            if row["fate"] == "copied to the temporal branch" and "differences" not in row["why"]:
                assert torch.equal(before[row["tensor"]], before[row["why"].removeprefix("of ")])


@pytest.mark.parametrize("file", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_class_names_and_pixels_of_a_transformers_folder(tmp_path: Path, file: str) -> None:
    source = folder(tmp_path / "a model, fine-tuned", timesformer())
    report = import_weights(str(source), tmp_path / "plain")
    assert (report["pixels"]["mean"], report["pixels"]["std"]) == ((0.45,) * 3, (0.225,) * 3)
    (source / file).write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}))
    import_weights(str(source), tmp_path / "told", ImportOptions(head="moves"))
    model = load_release(tmp_path / "told")
    assert model.head_list == (Head("moves", ("left", "right", "up")),)
    assert (model.config.mean, model.config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load_release(tmp_path / "plain").head_list[0].name == "a_model_fine-tuned"
    assert (model.metadata["frames"], model.metadata["step"], model.metadata["datasets"]["moves"]["media"]) == (
        4,
        0,
        "video",
    )


@pytest.mark.parametrize(
    ("source_frames", "frames", "recipe", "sampling"),
    [
        (8, None, "", "dense@1.067"),
        (16, None, "", "dense@0.5333"),
        (8, 16, "", "dense@0.5333"),
        (4, None, "", "dense@2.133"),
        (8, None, "DATA: {SAMPLING_RATE: 3, MEAN: [0.1, 0.1, 0.1], STD: [0.2, 0.2, 0.2]}", "dense@0.1"),
        (8, None, "no: [yaml", "dense@1.067"),
    ],
)
def test_how_clips_are_taken(
    tmp_path: Path, source_frames: int, frames: int | None, recipe: str, sampling: str
) -> None:
    torch.save({"model_state": official(timesformer(source_frames)), "cfg": recipe}, tmp_path / "k.pyth")
    report = import_weights(
        str(tmp_path / "k.pyth"), tmp_path / "ours", ImportOptions(attention_heads=4, frames=frames)
    )
    record = read_config(tmp_path / "ours").datasets["k"]
    assert (record["sampling"], record["views"]) == (sampling, "1x3")
    assert (report["pixels"]["mean"][0] == 0.1) == ("MEAN" in recipe)
    assert read_config(tmp_path / "ours").frames == (frames or source_frames)


def test_a_timm_folder(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    save_file(timm(vit()), tmp_path / "theirs" / "model.safetensors")
    record = {
        "architecture": "vit",
        "global_pool": "token",
        "label_names": ["crane", "dog", "crane"],
        "model_args": {"num_heads": 8},
    }
    (tmp_path / "theirs" / "config.json").write_text(
        json.dumps({**record, "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3}})
    )
    import_weights(str(tmp_path / "theirs"), tmp_path / "ours", ImportOptions(head="things"))
    model = load_release(tmp_path / "ours")
    assert (model.config.attention_heads, model.config.mean, model.config.std) == (8, (0.1,) * 3, (0.2,) * 3)
    assert model.head_list == (Head("things", ("crane", "dog", "crane (2)")),)
    assert model.metadata["datasets"]["things"]["views"] == "1x1"


def test_class_names_from_a_file(tmp_path: Path) -> None:
    save_file(timm(vit()), tmp_path / "v.safetensors")
    (tmp_path / "names.txt").write_text("cat\ndog\ncow\n")
    wishes = ImportOptions(attention_heads=4, classes=tmp_path / "names.txt", sampling="whole")
    import_weights(str(tmp_path / "v.safetensors"), tmp_path / "ours", wishes)
    model = load_release(tmp_path / "ours")
    assert model.head_list[0].classes == ("cat", "dog", "cow")
    assert model.metadata["datasets"]["v"]["sampling"] == "whole"
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"names\.txt has 1 class names, but head\.weight has 3 outputs"):
        import_weights(str(tmp_path / "v.safetensors"), tmp_path / "again", wishes)


# --- surprises --------------------------------------------------------------------------------------------------------


class Runs:
    """Something whose unpickling runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def refusal(source: Path, out: Path, wishes: ImportOptions = NO_CONFIG) -> str:
    with pytest.raises(UserError) as error:
        import_weights(str(source), out, wishes)
    assert "\n" not in str(error.value)
    assert str(source) in str(error.value)
    assert not out.exists()
    return str(error.value)


def test_a_pickle_with_code_in_it(tmp_path: Path) -> None:
    torch.save({"model_state": official(timesformer()), "extra": Runs(tmp_path / "trace")}, tmp_path / "bad.pyth")
    assert "refused: it asks for posix.mkdir" in refusal(tmp_path / "bad.pyth", tmp_path / "ours")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [b"", b"nothing" * 30, b"PK\x03\x04" + b"x" * 100])
@pytest.mark.parametrize("name", ["x.pyth", "x.safetensors"])
def test_a_file_that_holds_no_tensors(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert "cannot be read" in refusal(tmp_path / name, tmp_path / "ours")


def without(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: state.pop(f"model.{name}")


def put(name: str, *shape: int) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: state.update({f"model.{name}": torch.ones(*shape)})


def put_nan(name: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda state: state[f"model.{name}"].view(-1)[3:4].fill_(float("nan"))


SURPRISES: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "unexpected": (
        put("blocks.0.attn.gate", 3),
        'model.blocks.0.attn.gate: no part of the format "official TimeSformer"',
    ),
    "fc_norm": (put("fc_norm.weight", 32), "model.fc_norm.weight: its classifier reads the mean of the patches"),
    "distilled": (put("dist_token", 1, 1, 32), "model.dist_token: a distilled network reads a second token"),
    "registers": (put("reg_token", 1, 4, 32), "model.reg_token: its network reads register tokens"),
    "norms of queries": (put("blocks.1.attn.q_norm.weight", 8), "its attention normalises queries and keys"),
    "several": (
        lambda state: (put("decoder.0.weight", 3)(state), put("decoder.0.bias", 3)(state), put("x", 3)(state)),
        "to leave them out: --unused model.decoder --unused model.x",
    ),
    "not a number": (put_nan("blocks.1.norm1.weight"), "model.blocks.1.norm1.weight has NaN or infinity in 1 of 32"),
    "a block too many": (put("blocks.2.norm1.weight", 32), "the tensor blocks.2."),
    "a block far off": (put("blocks.99999999.norm1.weight", 32), "a block has the number 99999999"),
    "missing": (without("blocks.1.mlp.fc2.bias"), "the tensor blocks.1.mlp.fc2.bias is missing"),
    "missing temporal": (without("blocks.1.temporal_fc.bias"), "the tensor blocks.1.temporal_fc.bias is missing"),
    "missing time": (without("time_embed"), "the tensor time_embed is missing"),
    "missing place": (without("pos_embed"), "the tensor pos_embed is missing"),
    "missing head bias": (without("head.bias"), "the tensor head.bias is missing"),
    "shape": (put("blocks.1.norm1.weight", 31), "model.blocks.1.norm1.weight is (31,), and should be (32,)"),
    "dimensions": (put("pos_embed", 10, 32), "model.pos_embed is (10, 32), and should have 3 dimensions"),
    "no square": (put("pos_embed", 1, 12, 32), "model.pos_embed has 12 entries"),
    "colours": (put("patch_embed.proj.weight", 32, 1, 8, 8), "takes 1 colours"),
    "integers": (
        lambda state: state.update({"model.norm.bias": torch.ones(32, dtype=torch.long)}),
        "holds int64",
    ),
    "twice": (
        lambda state: state.update({"norm.bias": torch.ones(32)}),
        "model.norm.bias and norm.bias are the same tensor twice",
    ),
    "no tensor": (lambda state: state.update({"model.x": 3}), "model.x is no tensor but int"),
    "foreign": (lambda state: (state.clear(), state.update({"conv1.weight": torch.ones(3)})), "are of no known format"),
}


WRAPPED: dict[str, Callable[[str], str]] = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP and torch.compile": lambda name: f"module._orig_mod.{name}",
    "torch.compile and DDP": lambda name: f"_orig_mod.module.{name}",
    "FSDP": lambda name: re.sub(r"(blocks\.\d+)", r"\1._fsdp_wrapped_module", f"_fsdp_wrapped_module.{name}"),
    "checkpointing": lambda name: re.sub(r"(blocks\.\d+)", r"\1._checkpoint_wrapped_module", name),
    "compiled blocks": lambda name: re.sub(r"(blocks\.\d+)", r"\1._orig_mod", name),
    "a script": lambda name: f"network.backbone.{name}",
}


@pytest.mark.parametrize("rename", WRAPPED.values(), ids=WRAPPED.keys())
def test_names_with_wrappers_in_them(tmp_path: Path, rename: Callable[[str], str]) -> None:
    theirs = timesformer()
    torch.save({rename(name): value for name, value in official(theirs, "").items()}, tmp_path / "x.pth")
    import_weights(str(tmp_path / "x.pth"), tmp_path / "ours", NO_CONFIG)
    same_clips(tmp_path / "ours", theirs, 4)


def test_a_wrapped_model_of_transformers(tmp_path: Path) -> None:
    theirs, folder = vit(), tmp_path / "theirs"
    theirs.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    state = {f"module._orig_mod.{name}": value for name, value in theirs.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    import_weights(str(folder), tmp_path / "ours", ImportOptions(head="mine"))
    same_images(tmp_path / "ours", theirs)


@pytest.mark.parametrize(
    "keys",
    ["model_state_dict", "module", "model_ema", "state_dict_ema", "network", "state_dict", "model", "model.state_dict"],
)
def test_weights_under_a_key(tmp_path: Path, keys: str) -> None:
    theirs = timesformer()
    content: Any = official(theirs)
    for key in reversed(keys.split(".")):
        content = {"epoch": 3, key: content}
    torch.save(content, tmp_path / "x.pth")
    report = import_weights(str(tmp_path / "x.pth"), tmp_path / "ours", NO_CONFIG)
    same_clips(tmp_path / "ours", theirs, 4)
    (note,) = report["notes"]
    assert f"weights under {keys}" in note
    assert ("average" in note) == ("ema" in keys)


def test_an_average_beside_the_weights_is_taken_and_named(tmp_path: Path) -> None:
    theirs = timesformer()
    raw = {name: value + 1 for name, value in official(theirs).items()}
    torch.save({"state_dict": raw, "state_dict_ema": official(theirs)}, tmp_path / "x.pth")
    report = import_weights(str(tmp_path / "x.pth"), tmp_path / "ours", NO_CONFIG)
    same_clips(tmp_path / "ours", theirs, 4)
    assert report["notes"] == [
        "weights under state_dict_ema, an average over training; "
        "not those under state_dict (--key state_dict takes them)"
    ]
    import_weights(
        str(tmp_path / "x.pth"), tmp_path / "raw", ImportOptions(attention_heads=4, head="mine", key="state_dict")
    )
    assert torch.equal(
        load_release(tmp_path / "raw").backbone.cls_token,
        raw["model.cls_token"],  # type: ignore[arg-type]
    )


def test_weights_under_an_unknown_key_are_named_by_the_user(tmp_path: Path) -> None:
    theirs = timesformer()
    torch.save({"epoch": 3, "teacher": {"net": official(theirs)}, "loss": {}}, tmp_path / "x.pth")
    line = refusal(tmp_path / "x.pth", tmp_path / "ours")
    assert "model_ema" in line
    assert "--key can name teacher, loss" in line
    options = ImportOptions(attention_heads=4, head="mine", key="teacher.net")
    import_weights(str(tmp_path / "x.pth"), tmp_path / "ours", options)
    same_clips(tmp_path / "ours", theirs, 4)
    wrong = ImportOptions(attention_heads=4, head="mine", key="student")
    assert "--key student" in refusal(tmp_path / "x.pth", tmp_path / "again", wrong)


def test_the_hint_of_a_pooler_leads_to_an_import(tmp_path: Path) -> None:
    theirs = ViTModel(ViTConfig(**SHAPE))
    theirs.save_pretrained(tmp_path / "theirs")
    line = refusal(tmp_path / "theirs", tmp_path / "ours", ImportOptions())
    hint = line.partition("--unused ")[2].split(" --unused ")
    report = import_weights(str(tmp_path / "theirs"), tmp_path / "ours", ImportOptions(unused=tuple(hint)))
    assert report["counts"]["unused"]["tensors"] == 2


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0, 1, 100, -1000, -1])
def test_a_file_that_is_cut_short(tmp_path: Path, keep: int, old: bool) -> None:
    torch.save(official(timesformer()), tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data[:keep])
    assert "cut short or damaged" in refusal(tmp_path / "x.pth", tmp_path / "ours")


@pytest.mark.parametrize(("change", "part"), SURPRISES.values(), ids=SURPRISES.keys())
def test_a_surprise_in_the_tensors(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], part: str) -> None:
    state = official(timesformer())
    change(state)
    torch.save({"model_state": state}, tmp_path / "x.pyth")
    assert part in refusal(tmp_path / "x.pyth", tmp_path / "ours")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_act": "relu"}, "hidden_act: relu"),
        ({"num_frames": 8}, "config.json: num_frames is 8, but the tensors say 4"),
        ({"image_size": 32}, "config.json: image_size is 32, but the tensors say 24"),
        ({"num_hidden_layers": 3}, "config.json: num_hidden_layers is 3"),
        ({"attention_type": "space_only"}, "attention_type is space_only, but by its tensors it is divided"),
        ({"num_attention_heads": 5}, "does not divide into 5 heads"),
        ({"num_attention_heads": "many"}, "num_attention_heads: expected a number"),
        ({"num_attention_heads": float("nan")}, "num_attention_heads: expected a number"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps: expected a number"),
        ({"layer_norm_eps": 0}, "norm_eps: 0 is not a finite number above 0"),
        ({"num_hidden_layers": [[[]]] * 3}, "config.json: num_hidden_layers is"),
        ({"id2label": {"0": "a", "1": "\ud800", "2": "c"}}, "the name of class 1"),
        ({"id2label": {"0": "a"}}, "config.json: id2label has 1 class names"),
        ({"id2label": {"a": "a"}}, "its keys are no class numbers"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "do not run from 0 to 2"),
        ({"model_type": "videomae"}, "model_type videomae"),
        ({"model_type": None}, "without config.json"),
        ({"problem_type": "multi_label_classification"}, "problem_type: multi_label_classification"),
    ],
    ids=str,
)
def test_a_surprise_in_the_configuration(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    source = folder(tmp_path / "theirs", timesformer())
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changes}))
    assert part in refusal(source, tmp_path / "ours", ImportOptions())


@pytest.mark.parametrize(
    ("wishes", "part"),
    [
        (ImportOptions(time="rotary"), "--time rotary"),
        (ImportOptions(attention="joint"), "--attention joint"),
        (ImportOptions(size=30), "--size 30 is not a multiple of the patch, 8 px"),
        (ImportOptions(attention_heads=8), "--attention-heads 8: config.json says 4"),
        (ImportOptions(head="a.b"), '"a.b" cannot name a head'),
        (ImportOptions(head="keys"), '"keys" cannot name a head'),
        (ImportOptions(unused=("nothing",)), "--unused nothing: no tensor is called so"),
        (ImportOptions(sampling="dens"), 'did you mean "dense"'),
        (ImportOptions(classes=Path("nowhere.txt")), "nowhere.txt: cannot be read"),
    ],
    ids=str,
)
def test_a_wish_that_cannot_be_had(tmp_path: Path, wishes: ImportOptions, part: str) -> None:
    assert part in refusal(folder(tmp_path / "theirs", timesformer()), tmp_path / "ours", wishes)


def test_how_many_heads(tmp_path: Path) -> None:
    save_file(timm(vit()), tmp_path / "v.safetensors")
    assert "give --attention-heads" in refusal(tmp_path / "v.safetensors", tmp_path / "ours", ImportOptions())


@pytest.mark.parametrize(
    ("told", "part"),
    [
        ({"global_pool": "avg"}, "global_pool: avg"),
        ({"model_args": {"act_layer": "quick_gelu"}}, "model_args.act_layer"),
        ({"pretrained_cfg": {"mean": "grey", "std": [1, 1, 1]}}, "pretrained_cfg.mean"),
    ],
    ids=str,
)
def test_a_timm_configuration_of_another_function(tmp_path: Path, told: dict[str, Any], part: str) -> None:
    (tmp_path / "theirs").mkdir()
    save_file(timm(vit()), tmp_path / "theirs" / "pytorch_model.safetensors")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(told))
    assert part in refusal(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize(
    ("told", "part"),
    [
        ({"do_rescale": False}, "do_rescale"),
        ({"rescale_factor": 0.5}, "rescale_factor"),
        ({"image_std": None}, "image_std"),
        ({"image_std": [0.2, 0, 0.2]}, "std: [0.2, 0.0, 0.2] are not all above 0"),
        ({"image_mean": [0.1, float("nan"), 0.1]}, "mean: [0.1, nan, 0.1] are not finite"),
    ],
    ids=str,
)
def test_pixels_that_are_read_otherwise(tmp_path: Path, told: dict[str, Any], part: str) -> None:
    source = folder(tmp_path / "theirs", timesformer())
    (source / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3, **told})
    )
    assert part in refusal(source, tmp_path / "ours", ImportOptions())


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no weights" in refusal(tmp_path / "empty", tmp_path / "ours")
    for name in ("a.pth", "b.bin"):
        (tmp_path / "empty" / name).write_bytes(b"")
    assert "has 2 files of weights" in refusal(tmp_path / "empty", tmp_path / "ours")
    (tmp_path / "empty" / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 10_000)
    assert "model.safetensors.index.json: cannot be read: nested" in refusal(tmp_path / "empty", tmp_path / "ours")
    (tmp_path / "empty" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    assert "names ../a.safetensors, which is not beside it" in refusal(tmp_path / "empty", tmp_path / "ours")
    save_release(
        tmp_path / "release", CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16)), {}
    )
    assert "is a release of this package already" in refusal(tmp_path / "release", tmp_path / "ours")


# --- typed ------------------------------------------------------------------------------------------------------------


def test_what_is_typed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "theirs", timesformer())
    typed = [
        "import-weights",
        str(source),
        "--out",
        str(tmp_path / "ours"),
        "--head",
        "moves",
        "--json",
        str(tmp_path / "report.json"),
    ]
    assert main(typed) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[0].split() == ["outcome", "tensors", "numbers"]
    assert out.splitlines()[-1] == str(tmp_path / "ours")
    assert err.splitlines()[-1] == f"next: cover predict {tmp_path / 'ours'} clip.mp4"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"]["loaded"]["tensors"] == len(report["tensors"]) == len(timesformer().state_dict())
    assert main(typed) == 2
    assert (
        capfd.readouterr().err
        == f"cover import-weights: {tmp_path / 'ours'}: is there already; choose a new folder with --out\n"
    )


@pytest.mark.parametrize("name", ["nowhere", "nowhere.pyth", "runs/nowhere.pyth", "a/b/c", "./a/b"])
def test_no_such_source(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["import-weights", name, "--out", str(tmp_path / "ours")]) == 2
    assert capfd.readouterr().err.splitlines() == [
        f"cover import-weights: {name}: does not exist; give a file, a folder or a Hub id such as owner/name"
    ]


def test_an_imported_folder_predicts_and_starts_a_run(
    tmp_path: Path, sandbox: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mini = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 512, "image_size": 32}
    source = folder(tmp_path / "theirs", timesformer(2, **mini, layer_norm_eps=1e-5))
    assert main(["import-weights", str(source), "--out", str(tmp_path / "ours"), "--head", "moves"]) == 0
    clip, image = (next(sandbox.parent.rglob(f"*.{ending}")) for ending in ("mp4", "JPEG"))
    capfd.readouterr()
    assert main(["predict", str(tmp_path / "ours"), str(clip), str(image), "--top", "3", "--json", "-"]) == 0
    for item in json.loads(capfd.readouterr().out):
        assert sorted(name for name, _ in item["heads"]["moves"]) == ["left", "right", "up"]
        assert sum(share for _, share in item["heads"]["moves"]) == pytest.approx(1, abs=1e-5)
    data = f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 2}}\nmodel: {{time: additive}}"
    (tmp_path / "recipe.yaml").write_text(
        f"{data}\nstart: {{checkpoint: {tmp_path / 'ours'}}}\nout: {tmp_path / 'run'}\nsteps: "
        f"1\nbatch: 4\nworkers: 0\nevaluate_every: -1\n"
    )
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    config = read_config(tmp_path / "run" / "checkpoints" / "step-0000001").backbone
    assert (config.mean, config.std, config.norm_eps, config.resize) == ((0.45,) * 3, (0.225,) * 3, 1e-5, "nearest")


def test_a_release_without_a_head_has_nothing_to_predict(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "theirs", vit())
    assert main(["import-weights", str(source), "--out", str(tmp_path / "ours"), "--head", "none"]) == 0
    assert capfd.readouterr().err.splitlines()[-1] == f"next: cover train RECIPE --start.checkpoint {tmp_path / 'ours'}"
    assert main(["predict", str(tmp_path / "ours"), "clip.mp4"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "has no head" in line


# --- from the Hub's cache ---------------------------------------------------------------------------------------------


def test_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, commit = timesformer(), "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--them--moves"
    folder(repository / "snapshots" / commit, theirs)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    report = import_weights("them/moves", tmp_path / "ours")
    assert report["head"]["name"] == "moves"
    assert read_config(tmp_path / "ours").metadata["imported"]["weights"] == "them/moves"
    same_clips(tmp_path / "ours", theirs, 4)
    shutil.rmtree(repository)
    with pytest.raises(UserError, match="them/moves: no such folder here, and it is not in the Hub's cache") as error:
        import_weights("them/moves", tmp_path / "again")
    assert "\n" not in str(error.value)
