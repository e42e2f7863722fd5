"""What is exported computes the same in its new library, and what would not is refused by the name of the setting."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TimesformerForVideoClassification

from cover.cli import main
from cover.errors import UserError
from cover.inference.export import export_transformers
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import load_release, save_release
from cover.model.starts.conventions import ImportOptions
from cover.model.starts.importing import import_weights

SHAPE: dict[str, Any] = {
    "width": 32,
    "depth": 2,
    "attention_heads": 4,
    "mlp_ratio": 2.5,
    "patch": 8,
    "size": 24,
    "frames": 4,
    "time": "additive",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "norm_eps": 1e-5,
    "image_time": "first",
    "resize": "nearest",
}
MOVES, THINGS = Head("moves", ("up", "döwn", "left")), Head("things", ("cat", "dog"))


def release(path: Path, *heads: Head, **changes: Any) -> CoVeR:
    """A saved model whose every parameter is random."""
    model, generator = CoVeR(TimeSformerConfig(**{**SHAPE, **changes}), heads).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    save_release(path, model, {"step": 0, "frames": 4, "datasets": {}})
    return model


@pytest.mark.parametrize(
    "changes", [{}, {"frames": 1}, {"attention": "joint"}, {"image_time": "none", "resize": "bicubic"}], ids=str
)
def test_transformers_computes_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = release(tmp_path / "ours", MOVES, THINGS, **changes)
    export_transformers(tmp_path / "ours", "things", tmp_path / "theirs")
    theirs, record = TimesformerForVideoClassification.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(record[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == {0: "cat", 1: "dog"}
    clips = torch.randn(2, model.config.frames, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(clips.flatten(0, 1), ((2, model.config.frames),))["things"]
        torch.testing.assert_close(theirs.eval()(clips).logits, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["divided", "joint"])
def test_there_and_back_every_bit_is_the_same(tmp_path: Path, attention: str) -> None:
    release(tmp_path / "ours", MOVES, attention=attention)
    export_transformers(tmp_path / "ours", None, tmp_path / "theirs")
    TimesformerForVideoClassification.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "preprocessor_config.json").write_bytes(
        (tmp_path / "theirs" / "preprocessor_config.json").read_bytes()
    )
    import_weights(str(tmp_path / "again"), tmp_path / "back", ImportOptions(head="moves"))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ours, back = (load_release(tmp_path / name) for name in ("ours", "back"))
    assert (back.config, back.head_list) == (ours.config, ours.head_list)


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_a_folder_that_could_not_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """The weights are written, then the disk is full: nothing is left, and the same command works when
    there is room.
    """
    release(tmp_path / "ours", MOVES)
    out = tmp_path / "theirs"
    if there:
        out.mkdir()

    def full(path: Path, *args: Any, **more: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match=r"theirs.*: cannot be written: No space left on device"):
            export_transformers(tmp_path / "ours", "moves", out)
    assert sorted(path.name for path in tmp_path.rglob("*") if "ours" not in path.parts) == (
        ["theirs"] if there else []
    )
    export_transformers(tmp_path / "ours", "moves", out)
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}


def test_a_folder_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release(tmp_path / "ours", MOVES)
    out, inside = tmp_path / "theirs", Path.write_text

    def meanwhile(path: Path, *args: Any, **more: Any) -> int:
        assert out not in path.parents, "a folder gets its name when it is whole"
        (out / "mine").mkdir(parents=True, exist_ok=True)
        return inside(path, *args, **more)

    monkeypatch.setattr(Path, "write_text", meanwhile)
    with pytest.raises(UserError, match="theirs: has appeared meanwhile and does not change"):
        export_transformers(tmp_path / "ours", "moves", out)
    assert [path.name for path in out.rglob("*")] == ["mine"]


def test_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    release(tmp_path / "ours", MOVES)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["export", "../ours", "--format", "transformers", "--out", "."]) == 0
    assert {path.name for path in Path().iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert main(["export", "../ours", "--format", "transformers", "--out", "."]) == 2
    assert ".: is there already" in capfd.readouterr().err


def test_the_pixels_go_along(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    release(tmp_path / "ours", MOVES)
    export_transformers(tmp_path / "ours", "moves", tmp_path / "theirs")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (SHAPE["mean"], SHAPE["std"])
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == 24


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"time": "rotary"}, "time rotary"),
        ({"attention": "space"}, "attention space"),
        ({"layer_scale": 0.1}, "layer_scale 0.1"),
        ({"motion": "both"}, "motion both"),
        ({"image_temporal": "skip"}, "image_temporal skip"),
        ({"image_time": "none", "frames": 1}, "image_time none"),
        ({"image_time": "none", "attention": "joint"}, "image_time none"),
    ],
    ids=str,
)
def test_what_stands_in_the_way(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    release(tmp_path / "ours", MOVES, **changes)
    with pytest.raises(UserError) as error:
        export_transformers(tmp_path / "ours", "moves", tmp_path / "theirs")
    assert str(error.value).startswith(f"{tmp_path / 'ours'}: {part}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "theirs").exists()


def test_which_head(tmp_path: Path) -> None:
    release(tmp_path / "two", MOVES, THINGS)
    for head, part in (
        (None, "--head .*moves, things"),
        ("move", 'has no head "move"; did you mean "moves"'),
    ):
        with pytest.raises(UserError, match=part):
            export_transformers(tmp_path / "two", head, tmp_path / "theirs")
    release(tmp_path / "none")
    with pytest.raises(UserError, match="has no head"):
        export_transformers(tmp_path / "none", None, tmp_path / "theirs")


def test_what_is_typed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    release(tmp_path / "ours", MOVES)
    typed = [
        "export",
        str(tmp_path / "ours"),
        "--format",
        "transformers",
        "--head",
        "moves",
        "--out",
        str(tmp_path / "theirs"),
    ]
    assert main(typed) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'theirs'}\n"
    assert err.startswith("next, in Python: ")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text(encoding="utf-8"))["id2label"]["1"] == "döwn"
    assert main(typed) == 2
    assert (
        capfd.readouterr().err
        == f"cover export: {tmp_path / 'theirs'}: is there already; choose a new folder with --out\n"
    )
    assert main(["export", str(tmp_path / "nowhere"), "--format", "transformers", "--out", str(tmp_path / "x")]) == 2
    assert "nowhere: does not exist" in capfd.readouterr().err


def test_a_multi_label_head_says_so(tmp_path: Path) -> None:
    release(tmp_path / "ours", Head("sounds", ("bark", "laugh"), "sigmoid"), THINGS)
    for head, wanted in (("sounds", "multi_label_classification"), ("things", None)):
        export_transformers(tmp_path / "ours", head, tmp_path / head)
        assert TimesformerForVideoClassification.from_pretrained(tmp_path / head).config.problem_type == wanted
