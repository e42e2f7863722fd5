"""A model that has left for onnxruntime or torch.export says what it said before, of any number of clips, and tells how
to ask it.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

import cover
from cover.cli import main
from cover.errors import UserError
from cover.inference.export import export_onnx, export_torch, onnx
from cover.inference.export.graph import data_of, write_then_rename
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

# Heads in no order of their names, one of them multi-label, and one called as an operation is.
HEADS = (
    Head("ssv2", ("up", "döwn", "left")),
    Head("add", ("bark", "laugh"), "sigmoid"),
    Head("imagenet", ("cat", "dog", "cup", "hat")),
)
SETS = {
    "ssv2": {"sampling": "segments", "views": "1x3"},
    "add": {"sampling": "dense@0.25", "views": "2x1"},
    "imagenet": {"sampling": "whole", "views": "1x1"},
}


def release(path: Path, heads: tuple[Head, ...] = HEADS, **changes: Any) -> CoVeR:
    """A saved mini, shortened, whose every parameter is random and whose probabilities differ widely
    from clip to clip.
    """
    model = CoVeR(
        named_config("mini", **{"frames": 4, "depth": 1, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), **changes}),
        heads,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms, biases, scales
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.normal_(0, 0.15, generator=generator)
    save_release(path, model.eval(), {"step": 7, "frames": 4, "datasets": SETS})
    return model


def noise(clips: int, frames: int, size: int = 32) -> torch.Tensor:
    """Clips of large spots, each of its own."""
    spots = torch.randint(
        0,
        256,
        (clips, frames, 3, size // 8, size // 8),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(clips),
    )
    return spots.repeat_interleave(8, 3).repeat_interleave(8, 4)


@torch.no_grad()
def said(model: CoVeR, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    """Probabilities by torch's own functions."""
    logits = model(model.normalize(clips.flatten(0, 1)), (tuple(clips.shape[:2]),))  # type: ignore[arg-type]
    return {
        head.name: (torch.sigmoid if head.loss == "sigmoid" else torch.softmax)(
            logits[head.name], *[-1][: head.loss == "softmax"]
        )
        for head in model.head_list
    }


def by_onnxruntime(path: Path, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return {
        name: torch.from_numpy(item)
        for name, item in zip(names, session.run(names, {"clips": clips.numpy()}), strict=True)
    }


def facts_of(path: Path) -> dict[str, Any]:
    return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["cover"])


@pytest.mark.parametrize(
    ("changes", "frames"),
    [
        ({}, 4),
        pytest.param({"time": "additive"}, 4, marks=pytest.mark.full),
        ({"time": "additive", "image_temporal": "skip", "layer_scale": 0.5}, 1),
        pytest.param({"attention": "joint"}, 4, marks=pytest.mark.full),
        ({"attention": "space"}, 3),
        ({"time": "additive", "patch_embed": "conv", "motion": "both"}, 4),
    ],
    ids=str,
)
def test_both_say_the_same_of_any_number_of_clips(tmp_path: Path, changes: dict[str, Any], frames: int) -> None:
    model = release(tmp_path / "run", **changes)
    export_onnx(tmp_path / "run", [], tmp_path / "model.onnx", frames)
    export_torch(tmp_path / "run", [], tmp_path / "model.pt2", frames)
    program = torch.export.load(tmp_path / "model.pt2", extra_files=(extra := {"cover.json": ""})).module()
    assert json.loads(extra["cover.json"]) == facts_of(tmp_path / "model.onnx")
    for count in (1, 5):
        clips = noise(count, frames)
        wanted = said(model, clips)
        for item in (by_onnxruntime(tmp_path / "model.onnx", clips), program(clips)):
            assert set(item) == set(wanted)
            for name, probabilities in wanted.items():
                assert item[name].dtype == torch.float32
                torch.testing.assert_close(item[name], probabilities, rtol=0, atol=1e-4)
                torch.testing.assert_close(item[name].log(), probabilities.log(), rtol=0, atol=1e-3)
    assert wanted["imagenet"].std(0).max() > 0.01  # of different clips different things are said


def test_what_is_typed_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    release(tmp_path / "run")
    out = tmp_path / "new" / "two.onnx"
    heads = ["--head", "imagenet", "--head", "add", "--head", "add"]
    assert main(["export", str(tmp_path / "run"), "--format", "onnx", *heads, "--out", str(out)]) == 0
    typed = capfd.readouterr()
    assert typed.out == f"{out}\n"
    apart, then = typed.err.splitlines()
    assert apart.startswith("on clips of noise its probabilities differ from torch's by ")
    assert float(apart.split()[-1]) < 1e-4
    assert then == f'next, in Python: onnxruntime.InferenceSession("{out}")'
    check_facts(facts_of(out), tmp_path / "run/model.safetensors")
    (clips,) = onnxruntime.InferenceSession(out).get_inputs()
    assert (clips.name, clips.type, clips.shape) == ("clips", "tensor(uint8)", ["batch", 4, 3, 32, 32])
    assert {name: tuple(item.shape) for name, item in by_onnxruntime(out, noise(3, 4)).items()} == {
        "imagenet": (3, 4),
        "add": (3, 2),
    }
    for wrong in (noise(2, 5), noise(2, 4, 40)):
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="clips"):
            by_onnxruntime(out, wrong)
    assert str(Path(cover.__file__).parent).encode() not in out.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["two.onnx"]


def check_facts(text: dict[str, Any], weights: Path) -> None:
    assert text["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (text["cover"], text["step"], text["precision"], text["input"]) == (cover.__version__, 7, "float32", "clips")
    assert (text["frames"], text["size"], text["resize"]["short_side"]) == (4, 32, 32)
    assert (text["normalisation"]["mean"], text["normalisation"]["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    keys = ("classes", "loss", "sampling", "interval", "views")
    assert {name: [head[key] for key in keys] for name, head in text["heads"].items()} == {
        "imagenet": [["cat", "dog", "cup", "hat"], "softmax", "whole", None, "1x1"],
        "add": [["bark", "laugh"], "sigmoid", "dense", 0.25, "2x1"],
    }


def test_weights_of_8_bits(tmp_path: Path) -> None:
    model = release(tmp_path / "run", width=256)
    apart = export_onnx(tmp_path / "run", [], tmp_path / "int8.onnx", int8=True)
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * (tmp_path / "run/model.safetensors").stat().st_size
    assert facts_of(tmp_path / "int8.onnx")["precision"] == "int8"
    clips = noise(6, 4)
    wanted, result = said(model, clips), by_onnxruntime(tmp_path / "int8.onnx", clips)
    differences = [float((result[name] - wanted[name]).abs().max()) for name in wanted]
    assert 1e-5 < max(differences) < 0.2
    assert 1e-5 < apart < 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "run"]


def test_large_weights_lie_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = release(tmp_path / "run")
    monkeypatch.setattr("cover.inference.export.onnx.LARGEST", 1000)
    export_onnx(tmp_path / "run", ["ssv2"], tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size > (tmp_path / "model.onnx").stat().st_size
    clips = noise(2, 4)
    torch.testing.assert_close(
        by_onnxruntime(tmp_path / "model.onnx", clips)["ssv2"], said(model, clips)["ssv2"], rtol=0, atol=1e-4
    )
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(UserError, match=r"model\.onnx\.data: is there already"):
        export_onnx(tmp_path / "run", ["ssv2"], tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("head", "int8"), [("ssv2", True), pytest.param("imagenet", False, marks=pytest.mark.full)]
)  # the first and the last that are compared
def test_probabilities_that_are_no_numbers(tmp_path: Path, head: str, int8: bool) -> None:
    model = release(tmp_path / "run")
    torch.nn.init.constant_(model.heads[head].weight, 3e38)  # finite, and its products are not
    save_release(tmp_path / "run", model, {"step": 7, "frames": 4, "datasets": SETS})
    with pytest.raises(
        UserError,
        match=f"model.onnx: not written: on noise the checkpoint's probabilities of {head} are not all finite",
    ):
        export_onnx(tmp_path / "run", [], tmp_path / "model.onnx", int8=int8)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


class Disturbed(torch.nn.Module):
    """A classifier whose first clip of a batch is named right, and all behind it wrong, by `share`
    (NaN: not at all).
    """

    def __init__(self, classifier: Any, share: float) -> None:
        super().__init__()
        self.inner, self.share, self.example = classifier, share, classifier.example

    def forward(self, clips: torch.Tensor) -> dict[str, torch.Tensor]:
        behind = (torch.arange(clips.shape[0]) > 0)[:, None]
        return {name: torch.where(behind, item + self.share, item) for name, item in self.inner(clips).items()}


@pytest.mark.parametrize(
    ("share", "part"),
    [
        (0.002, "differ from torch's by 0.002, more than 0.0001; --format torch"),
        pytest.param(float("nan"), "its probabilities of ssv2 are not all finite", marks=pytest.mark.full),
    ],
)
def test_a_graph_that_is_wrong_for_several_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, part: str
) -> None:
    release(tmp_path / "run")
    right = onnx.trace
    monkeypatch.setattr(onnx, "trace", lambda classifier: right(Disturbed(classifier, share)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"model.onnx: not written: .*{part}"):
        export_onnx(tmp_path / "run", [], tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def write_two(out: Path, meanwhile: str | None = None) -> None:
    """A model and its weights, during which somebody else writes a file called `meanwhile`."""
    with write_then_rename(out) as path:
        path.write_text("model")
        data_of(path).write_text("weights")
        if meanwhile:
            (out.parent / meanwhile).write_text("mine")


def no_links(*args: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_file_that_comes_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(UserError, match=f"{name}: has appeared meanwhile and does not change"):
        write_two(tmp_path / "model.onnx", name)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("links", [True, False])
def test_a_model_comes_after_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    placed: list[str] = []
    link, rename, there = os.link if links else no_links, Path.rename, Path.iterdir

    def linked(output: Path, out: Path) -> None:
        link(output, out)
        placed.append(out.name)

    def renamed(output: Path, out: Path) -> Path:
        placed.append(out.name)
        return rename(output, out)

    monkeypatch.setattr(os, "link", linked)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(there(folder))))  # as a file system may list them
    write_two(tmp_path / "model.onnx")
    assert placed == ["model.onnx.data", "model.onnx"]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["model", "weights"]


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (["onnx", "--out", "there.onnx"], "there.onnx: is there already; choose a new file with --out"),
        (["torch", "--out", "there.pt2"], "there.pt2: is there already; choose a new file with --out"),
        (["onnx", "--out", "model"], "model: name it .onnx, as in --out model.onnx"),
        (["onnx", "--out", "."], ".: name it .onnx, as in --out model.onnx"),
        (["torch", "--out", "/"], "/: name it .pt2, as in --out /model.pt2"),
        (["onnx", "--out", "run"], "run: name it .onnx, as in --out run/model.onnx"),
        (["torch", "--out", "model.pt"], "model.pt: name it .pt2, as in --out model.pt2"),
        (["onnx", "--out", "new.onnx", "--head", "ssv"], 'run: has no head "ssv"; did you mean "ssv2"?'),
        (["torch", "--out", "new.pt2", "--int8"], "--int8: goes with --format onnx, not torch"),
        (["transformers", "--out", "new", "--int8"], "--int8: goes with --format onnx, not transformers"),
        (["transformers", "--out", "new", "--frames", "1"], "--frames: goes with --format onnx or torch"),
        (["transformers", "--out", "new", "--head", "ssv2", "--head", "add"], "--head: transformers takes one head"),
        (["onnx", "--out", "there.onnx/new.onnx"], "there.onnx/new.onnx: cannot be written: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], typed: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    release(Path("run"))
    for name in ("there.onnx", "there.pt2"):
        Path(name).write_text("mine")
    assert main(["export", "run", "--format", *typed]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"cover export: {part}")
    assert (Path("there.onnx").read_text(), Path("there.pt2").read_text()) == ("mine", "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there.onnx", "there.pt2"]


def test_a_head_called_as_the_input(tmp_path: Path) -> None:
    model = release(tmp_path / "run", (Head("ssv2", ("a", "b")), Head("clips", ("a", "b"))))
    save_release(
        tmp_path / "run", model, {"step": 0, "frames": 4, "datasets": {"ssv2": SETS["ssv2"], "clips": SETS["ssv2"]}}
    )
    with pytest.raises(UserError, match='the head "clips" has the name of the input'):
        export_onnx(tmp_path / "run", [], tmp_path / "model.onnx")


def test_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "onnxscript" else there(name, *more)
    )
    with pytest.raises(
        UserError, match=r"needs the package onnxscript: pip install -c constraints\.txt -e '\.\[export\]'$"
    ):
        export_onnx(tmp_path / "run", [], tmp_path / "model.onnx")
