"""A release comes back as it was written, starts another model, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from cover.cli import main
from cover.errors import UserError
from cover.model.backbones.conv3d import Conv3dConfig
from cover.model.backbones.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import find_release, load_release, save_release, start_from, steps_saved

SHAPE: dict[str, Any] = {"width": 16, "depth": 2, "attention_heads": 2, "patch": 8, "size": 16, "frames": 4}
MOTION, THINGS, OTHERS = (
    Head("motion", ("up", "döwn")),
    Head("things", ("cat", "dog", "cow")),
    Head("others", ("x", "y")),
)


def build(*heads: Head, seed: int = 0, **changes: Any) -> CoVeR:
    """A model whose every parameter is random."""
    model, generator = CoVeR(TimeSformerConfig(**{**SHAPE, **changes}), heads), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return model


@pytest.fixture
def release(tmp_path: Path) -> Path:
    save_release(tmp_path / "release", build(MOTION, THINGS), {"step": 7, "frames": 4})
    return tmp_path / "release"


def copied(model: CoVeR) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("time", ["rotary", "additive"])
def test_a_release_comes_back_as_it_was_written(tmp_path: Path, time: str) -> None:
    model = build(MOTION, THINGS, time=time, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), image_temporal="skip")
    save_release(tmp_path, model, {"step": 7, "note": "ü"})
    result = load_release(tmp_path)
    assert result.config == model.config
    assert result.head_list == model.head_list
    assert result.metadata == {"step": 7, "note": "ü"}
    assert not result.training
    assert result.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(result.state_dict()[name], value) for name, value in model.state_dict().items())
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    for name, logits in model.eval()(model.normalize(pixels), ((1, 4), (1, 1))).items():
        assert torch.equal(result(result.normalize(pixels), ((1, 4), (1, 1)))[name], logits)


def test_keep_takes_everything_but_heads_that_are_not_shared(release: Path) -> None:
    theirs = load_release(release)
    ours = build(THINGS, OTHERS, seed=1)
    before = copied(ours)
    notes = start_from(ours, release, "keep")
    for name, value in ours.state_dict().items():
        # on a trained trunk a new head starts at zero
        new = torch.zeros_like(before[name]) if name.endswith("weight") else before[name]
        wanted = new if name.startswith("heads.others") else theirs.state_dict()[name]
        assert torch.equal(value, wanted), name
    assert any("others" in note and "new" in note for note in notes)
    assert any("motion" in note and "left out" in note for note in notes)


def test_copied_is_the_published_start(release: Path) -> None:
    theirs, ours = load_release(release).state_dict(), build(MOTION, THINGS, seed=1)
    start_from(ours, release, "copied")
    for name, value in ours.state_dict().items():
        if "temporal_fc" in name:
            assert not value.any()
        else:
            assert torch.equal(
                value, theirs[name.replace("temporal_attn", "attn").replace("temporal_norm", "norm1")]
            ), name


def test_fresh_differs_from_copied_in_the_temporal_attention_alone(release: Path) -> None:
    fresh, copied_branch = build(MOTION, THINGS, seed=1), build(MOTION, THINGS, seed=1)
    start_from(fresh, release, "fresh")
    start_from(copied_branch, release, "copied")
    changed = {
        name for name, value in fresh.state_dict().items() if not torch.equal(value, copied_branch.state_dict()[name])
    }
    parts = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")
    assert changed == {
        f"backbone.blocks.{block}.temporal_attn.{part}" for block in range(fresh.config.depth) for part in parts
    }


def test_fresh_changes_the_kind_of_time(release: Path) -> None:
    ours = build(MOTION, time="additive")
    start_from(ours, release, "fresh")
    assert not ours.backbone.time_embed.any()
    assert torch.equal(ours.backbone.pos_embed, load_release(release).backbone.pos_embed)
    with pytest.raises(UserError, match=r"its model\.time is rotary, this run's additive"):
        start_from(build(MOTION, time="additive"), release, "keep")


def test_a_head_of_other_classes(release: Path) -> None:
    ours = build(Head("things", ("cat", "cow", "dog")))
    before = copied(ours)
    with pytest.raises(UserError, match='its head "things" has other classes') as error:
        start_from(ours, release, "keep")
    one_line(error)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in before.items())


def test_a_head_of_another_loss(release: Path) -> None:
    ours = build(Head("things", THINGS.classes, "sigmoid"))
    with pytest.raises(UserError, match='its head "things" is a softmax, this run\'s a sigmoid') as error:
        start_from(ours, release, "keep")
    one_line(error)


@pytest.mark.parametrize("temporal", ["fresh", "copied", "keep"])
@pytest.mark.parametrize("name", ["temporal", "time_embed"])
def test_a_head_that_is_called_as_the_temporal_branch_is_taken_over(
    tmp_path: Path, temporal: Literal["fresh", "copied", "keep"], name: str
) -> None:
    head = Head(name, ("up", "down"))
    theirs, ours = build(head), build(head, seed=1)
    save_release(tmp_path / "release", theirs, {"step": 7})
    notes = start_from(ours, tmp_path / "release", temporal)
    assert torch.equal(ours.heads[name].weight, theirs.heads[name].weight)
    assert not any("new heads" in note or "left out" in note for note in notes)


def test_another_family_of_networks(release: Path) -> None:
    with pytest.raises(UserError, match=r"is a timesformer, this run's a conv3d: set model\.backbone"):
        start_from(CoVeR(Conv3dConfig(size=16), (MOTION,)), release, "keep")


def test_what_a_head_is_comes_back(tmp_path: Path) -> None:
    heads = (
        Head("all", ("a", "b", "c"), "sigmoid", ("homes", "sounds")),
        Head("both", ("x",), serves=("left", "right")),
        THINGS,
    )
    save_release(tmp_path, build(*heads), {"step": 0})
    assert load_release(tmp_path).head_list == heads


def test_a_new_sigmoid_head_keeps_its_start(release: Path) -> None:
    ours = CoVeR(TimeSformerConfig(**SHAPE), (THINGS, Head("sounds", tuple("abcde"), "sigmoid")))
    notes = start_from(ours, release, "keep")
    assert "new heads, starting at zero: sounds" in notes
    assert not ours.heads["sounds"].weight.any()
    assert torch.allclose(ours.heads["sounds"].bias.sigmoid(), torch.tensor(0.2))


@pytest.mark.parametrize("changes", [{"width": 32}, {"depth": 3}, {"depth": 1}, {"patch": 4}], ids=str)
def test_another_network(release: Path, changes: dict[str, int]) -> None:
    ours = build(MOTION, **changes)
    before = copied(ours)
    with pytest.raises(UserError, match=re.escape(str(release))) as error:
        start_from(ours, release, "keep")
    one_line(error)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_a_release_with_a_file_missing(release: Path, missing: str) -> None:
    (release / missing).unlink()
    with pytest.raises(UserError, match=missing) as error:
        load_release(release)
    one_line(error)


@pytest.mark.parametrize("keep", [0, 4, 200, -20])
def test_weights_cut_short(release: Path, keep: int) -> None:
    weights = release / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors") as error:
        load_release(release)
    one_line(error)


WHOLE = {"backbone": {"family": "timesformer"}, "heads": [], "head_dropout": 0.0, "metadata": {}}
HOLED = {
    "not json": "{",
    "a list": "[]",
    "a number": "3",
    "empty": "{}",
    "heads that are none": json.dumps({**WHOLE, "heads": [3]}),
    "a backbone that is none": json.dumps({**WHOLE, "backbone": 3}),
    "a family that is none": json.dumps({**WHOLE, "backbone": {"family": "resnet"}}),
    "a newer network": json.dumps({**WHOLE, "backbone": {"family": "timesformer", "gate": 1}}),
    "a network with the wrong types": json.dumps({**WHOLE, "backbone": {"family": "timesformer", "width": "wide"}}),
}


@pytest.mark.parametrize("text", HOLED.values(), ids=HOLED.keys())
def test_a_damaged_configuration(release: Path, text: str) -> None:
    (release / "config.json").write_text(text)
    for use in (lambda: load_release(release), lambda: start_from(build(THINGS, width=32), release, "keep")):
        with pytest.raises(UserError, match=re.escape(str(release))) as error:
            use()
        one_line(error)


def test_a_release_of_an_earlier_version_is_refused_by_name(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (release / "config.json").write_text(
        json.dumps({"format": 1, "model": {"width": 16}, "heads": [], "metadata": {"step": 7}})
    )
    assert main(["predict", str(release), "clip.mp4"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(release / "config.json") in line
    assert "earlier version" in line


def test_a_configuration_of_another_size_than_its_weights(release: Path) -> None:
    config = json.loads((release / "config.json").read_text())
    config["backbone"]["width"] = 32
    (release / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"backbone\.width: 32, but the tensors"):
        load_release(release)


def test_a_run_means_its_last_checkpoint(release: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (9, 10, 100):
        shutil.copytree(release, run / "checkpoints" / f"step-{step:07d}")
    (run / "checkpoints" / ".step-0000101.77").mkdir()
    assert steps_saved(run) == [9, 10, 100]
    assert find_release(run).name == "step-0000100"
    assert find_release(run / "checkpoints" / "step-0000009").name == "step-0000009"
    assert find_release(str(release)) == release


def test_no_checkpoint_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as error:
        find_release(tmp_path / "nowhere")
    one_line(error)
    with pytest.raises(UserError, match="no checkpoint in it") as error:
        find_release(tmp_path)
    one_line(error)


def test_tables_that_a_network_computes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release does not store them, and a network without values does not have them."""

    class WithTable(EfficientNetLite):
        def __init__(self, config: EfficientNetLiteConfig) -> None:
            super().__init__(config)
            self.last.register_buffer("table", torch.linspace(0, 1, 1280), persistent=False)

        def forward(self, *arguments: Any) -> torch.Tensor:
            return super().forward(*arguments) * self.last.table

    monkeypatch.setattr("cover.model.backbones.efficientnet_lite.EfficientNetLite", WithTable)
    model = CoVeR(EfficientNetLiteConfig(size=32), (Head("moves", ("up", "down")),)).eval()
    model.save_pretrained(tmp_path)
    frames = torch.randn(2, 3, 32, 32)
    loaded = CoVeR.from_pretrained(tmp_path)
    assert loaded(frames, ((2, 1),))["moves"].equal(model(frames, ((2, 1),))["moves"])
