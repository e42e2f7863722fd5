"""MoViNet: published outputs, images beside clips, streams in chunks, one run from an import to an exported graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import GoldenCase, close, golden_cases, strong
from torch import Tensor

from cover.cli import main
from cover.errors import UserError
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.backbones.movinet import MoViNet, MoViNetConfig, MoViNetOptions
from cover.model.batch_norm import update_statistics
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.profile import count_parameters, forward_cost, on_meta
from cover.model.starts.formats import HEAD
from cover.model.starts.movinet import published_names

CASES = golden_cases("movinet_base.json") | golden_cases("movinet_stream.json")
TINY = [name for name in CASES if not name.endswith("172_strong")]
STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["base", "stream"])
MIXED: Groups = ((2, 5), (1, 3), (2, 1))


# --- published outputs ------------------------------------------------------------------------------------------------


def imported(case: GoldenCase, folder: Path) -> CoVeR:
    """The release that an import makes of the case's state dict."""
    file = folder / "modelA0_statedict_v3"
    torch.save(case.weights(), file)
    assert main(["import-weights", str(file), "--out", str(folder / "release"), "--head", "k600"]) == 0
    return CoVeR.from_pretrained(folder / "release")


def logits_of(model: CoVeR, clips: Tensor) -> Tensor:
    return model(clips.flatten(0, 1), ((clips.shape[0], clips.shape[1]),))["k600"]


@pytest.mark.parametrize("name", [*TINY, *(pytest.param(n, marks=pytest.mark.full) for n in CASES if n not in TINY)])
def test_published_outputs(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, clips = imported(case, tmp_path), case.input().transpose(1, 2)
    assert count_parameters(model).total == case.facts["parameters"]
    with torch.no_grad():
        case.check("logits", logits_of(model, clips))
        done, state, backbone = 0, None, model.backbone
        assert isinstance(backbone, MoViNet)
        for length in case.facts.get("chunks", ()):
            features, state = backbone.stream(clips[:, done : done + length], state)
            done += length
            case.check(f"logits_after_{done}_frames", model.forward_head(features)["k600"])


@pytest.mark.parametrize("name", ["A0_base_t5_64_strong", "A0_stream_t8_64_strong"])
def test_published_maps(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model, clips, seen = imported(case, tmp_path), case.input().transpose(1, 2), {}
    with torch.no_grad():
        model.forward_features(clips.flatten(0, 1), ((len(clips), clips.shape[1]),), None, seen)
    names = {"conv1": "stem", "conv7": "last"}
    blocks = [key for key in case.keys if key.endswith(".alpha")]
    names |= {key.removesuffix(".alpha"): f"blocks.{number}" for number, key in enumerate(blocks)}
    compared = case.facts["stages"].keys() & names.keys()
    assert len(compared) >= 8
    for theirs in compared:
        wanted, ours = case.facts["stages"][theirs], seen[names[theirs]]
        ours = ours.unflatten(0, (len(clips), -1)).transpose(1, 2)
        assert list(ours.shape) == wanted["shape"]
        got = [*ours.flatten()[:4].tolist(), *ours.flatten()[-2:].tolist(), float(ours.std(correction=0))]
        assert got == pytest.approx([*wanted["first"], *wanted["last"], wanted["std"]], abs=1e-5 * wanted["max_abs"])


# Parameters and multiply-adds (G) of 50 frames, counted on the port that published the weights.
@pytest.mark.parametrize(
    ("name", "parameters", "adds"),
    [
        ("movinet_a0", 3_111_799, 2.63),
        ("movinet_a1", 4_690_296, 5.87),
        ("movinet_a2", 5_249_562, 11.56),
        ("movinet_a0_stream", 3_748_031, 2.43),
        ("movinet_a1_stream", 6_447_352, 5.54),
        ("movinet_a2_stream", 7_326_962, 10.70),
    ],
)
def test_sizes(name: str, parameters: int, adds: float) -> None:
    config = named_config(name)
    model = on_meta(config, {"k600": 600})
    assert count_parameters(model).total == parameters
    assert forward_cost(model, ((1, 50),), config.size).multiply_adds / 1e9 == pytest.approx(adds, rel=2e-3)


# --- clips, images and streams ----------------------------------------------------------------------------------------


def build(stream: bool, **changes: Any) -> CoVeR:
    model = CoVeR(MoViNetConfig(stream=stream, **changes), (Head("k", ("a", "b")),))
    return strong(model, embeddings="^$", gain=1.2)


def pixels(count: int, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


@STREAMS
@pytest.mark.parametrize("sides", [(32, 32), (45, 50)])
def test_a_pack_equals_its_samples_alone(stream: bool, sides: tuple[int, int]) -> None:
    model, frames = build(stream), pixels(15, *sides)
    with torch.no_grad():
        packed = model.forward_features(frames, MIXED)
        alone = [model.forward_features(part, ((1, len(part)),))[0] for part in frames.split([5, 5, 3, 1, 1])]
        swapped = model.forward_features(torch.cat([frames[5:10], frames[:5], frames[10:]]), MIXED)
    close(packed, torch.stack(alone))
    close(swapped, packed[[1, 0, 2, 3, 4]])


@STREAMS
def test_prefix_and_suffix_are_the_whole(stream: bool) -> None:
    model, frames = build(stream), pixels(15)
    with torch.no_grad():
        wanted = model.forward_features(frames, MIXED)
        for stages in (0, 1, 5, len(model.backbone.stages())):
            prefix = model.forward_prefix(frames, MIXED, stages)
            assert len(prefix) == 15
            close(model.forward_features(prefix, MIXED, stages=stages), wanted)


@STREAMS
def test_gradients_are_finite_and_checkpointing_changes_none(stream: bool) -> None:
    """The second forward pass of checkpointing does not count twice in the statistics of BatchNorm either."""
    gradients, states = [], []
    for on in (False, True):
        model = build(stream).train()
        model.set_checkpointing(on)
        model(pixels(15), MIXED)["k"].square().sum().backward()
        update_statistics(model)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        states.append(model.state_dict())
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients[0].values())
    assert all(torch.allclose(gradients[1][name], gradient) for name, gradient in gradients[0].items())
    before = build(stream).state_dict()
    assert all((value != before[name]).any() for name, value in states[0].items() if "running_mean" in name)
    assert all(torch.allclose(states[1][name], value) for name, value in states[0].items())


@pytest.mark.parametrize("lengths", [[1] * 8, [3, 3, 2], [8], [5, 1, 2]], ids=str)
def test_a_stream_in_chunks_is_the_whole_clip(lengths: list[int]) -> None:
    model = build(True)
    backbone, frames = model.backbone, pixels(16)
    assert isinstance(backbone, MoViNet)
    clips, state, done = frames.unflatten(0, (2, 8)), None, 0
    for chunk in clips.split(lengths, dim=1):
        features, state = backbone.stream(chunk, state)
        done += chunk.shape[1]
        so_far = clips[:, :done].flatten(0, 1)
        with torch.no_grad():
            close(features, model.forward_features(so_far, ((2, done),)))
    assert state is not None
    assert state.count == 8


def test_an_image_is_the_first_frame_of_a_stream() -> None:
    model, image = build(True), pixels(1)
    assert isinstance(model.backbone, MoViNet)
    with torch.no_grad():
        wanted = model.forward_features(image, ((1, 1),))
    assert torch.equal(model.backbone.stream(image[None])[0], wanted)


def test_an_image_of_a_base_network_has_zeros_around_it() -> None:
    """By a network without the taps that see them."""
    model, flat, image = build(False), build(False), pixels(1)
    with torch.no_grad():
        for value in (v for v in flat.state_dict().values() if v.ndim == 5):
            value[:, :, [tap for tap in range(value.shape[2]) if tap != value.shape[2] // 2]] = 0
        wanted = flat.forward_features(torch.cat([image, image]), ((1, 2),))
        close(model.forward_features(image, ((1, 1),)), wanted)
        with pytest.raises(AssertionError):
            close(model.forward_features(torch.cat([image, image]), ((1, 2),)), wanted)


def test_a_stream_forgets_nothing_and_trains_nothing() -> None:
    model = build(True).train()
    assert isinstance(model.backbone, MoViNet)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features, state = model.backbone.stream(pixels(4)[None])
    assert model.backbone.stem.norm.pending.any() == 0
    assert not features.requires_grad
    assert not state.total.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_what_is_no_stream() -> None:
    base, stream = build(False).backbone, build(True).backbone
    assert isinstance(base, MoViNet)
    assert isinstance(stream, MoViNet)
    with pytest.raises(UserError, match=r"model\.stream"):
        base.stream(pixels(4)[None])
    with pytest.raises(ValueError, match="frames are"):
        stream.stream(pixels(4))
    _, state = stream.stream(pixels(4)[None])
    with pytest.raises(ValueError, match="state is of 1"):
        stream.stream(pixels(4).unflatten(0, (2, 2)), state)


def test_drop_path() -> None:
    model, frames = build(True), pixels(4)
    groups: Groups = ((1, 2), (2, 1))
    shape = (*model.backbone.drop_shape(), 3)
    assert shape == (15, 1, 3)
    drop = torch.ones(shape)
    with torch.no_grad():
        plain = model.forward_features(frames, groups)
        assert torch.equal(model.forward_features(frames, groups, drop), plain)
        drop[:, :, 1] = 0
        dropped = model.forward_features(frames, groups, drop)
        close(dropped[[0, 2]], plain[[0, 2]])
        with pytest.raises(AssertionError):
            close(dropped[1], plain[1])
    assert [model.backbone.drop_layers_within(stages) for stages in (0, 1, 2, 17)] == [0, 0, 1, 15]


def test_parameters_by_their_place() -> None:
    model = build(True)
    assert model.config.summary() == {"variant": "a0", "network": "stream", "statistics": "batch"}
    assert (model.backbone.width, len(model.backbone.stages())) == (2048, 17)
    assert model.temporal_parameters() == frozenset()
    undecayed = model.no_decay_parameters()
    assert {"backbone.blocks.3.alpha", "backbone.stem.norm.weight", "backbone.dense.bias"} <= undecayed
    assert not {"backbone.blocks.3.depthwise.time.weight", "backbone.dense.weight"} & undecayed
    places = ("stem.conv.weight", "blocks.0.alpha", "blocks.14.project.conv.weight", "last.conv.weight", "dense.weight")
    assert [model.backbone.layer_of(place) for place in places] == [1, 2, 16, 17, 18]


def test_a_new_network_begins_as_its_shortcuts() -> None:
    model = CoVeR(MoViNetConfig())
    assert not any(value.any() for name, value in model.named_parameters() if name.endswith("alpha"))
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("changes", "key"), [({"norm_samples": -1}, "model.norm_samples"), ({"drop_path": 1.0}, "model.drop_path")]
)
def test_options_that_make_no_network(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        MoViNetOptions(**changes).check()


def test_the_options_of_a_configuration_ask_for_it() -> None:
    options = MoViNetOptions(size=48, variant="a2", stream=True, statistics="batch", norm_samples=4)
    assert options.config(4).options() == options
    assert options.config(4).start_options().statistics == "frozen"


# --- weights of others ------------------------------------------------------------------------------------------------

BASE = CASES["A0_base_t5_64_strong"]


def saved(state: dict[str, Tensor], folder: Path) -> str:
    torch.save(state, folder / "weights.pth")
    return str(folder / "weights.pth")


def test_the_report_of_an_import(tmp_path: Path) -> None:
    state = {f"module.{name}": value for name, value in BASE.weights().items()}
    source = saved({"state_dict": state}, tmp_path)
    command = ["import-weights", source, "--out", str(tmp_path / "release"), "--json", str(tmp_path / "report.json")]
    assert main([*command, "--head", "none", "--size", "64", "--frames", "8"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["counts"]["loaded"]["tensors"] == len(state) - 2
    unused = [row["source"][0] for row in report["tensors"] if row["fate"] == "unused"]
    assert unused == ["module.classifier.3.conv_1.conv3d.weight", "module.classifier.3.conv_1.conv3d.bias"]
    config = CoVeR.from_pretrained(tmp_path / "release").config
    assert config == MoViNetConfig(size=64, frames=8, statistics="frozen")
    assert (config.mean, config.std) == ((0, 0, 0), (1, 1, 1))


def test_a_variant_is_seen_by_its_tensors(tmp_path: Path) -> None:
    """A state dict of another variant under the published names, by the inverse of the import's table."""
    for number, name in enumerate(("movinet_a1", "movinet_a2_stream")):
        config = named_config(name, size=32)
        ours = {**config.build().state_dict(), f"{HEAD}.weight": torch.zeros(3, 2048), f"{HEAD}.bias": torch.zeros(3)}
        kind = "conv2d" if config.stream else "conv3d"
        theirs: dict[str, Tensor] = {}
        for our_name, their_name in published_names(config).items():
            value = ours[our_name]
            axes = {"conv2d": 4, "conv3d": 5}[kind] if f"{kind}.weight" in their_name else value.ndim
            theirs[their_name] = value.reshape([*value.shape, *[1] * (axes - value.ndim)])
        source, out = saved(theirs, tmp_path), tmp_path / f"release{number}"
        assert main(["import-weights", source, "--out", str(out), "--head", "k"]) == 0
        model = CoVeR.from_pretrained(out)
        assert (model.config.variant, model.config.stream) == (config.variant, config.stream)
        loaded = model.backbone.state_dict()
        assert all(torch.equal(loaded[name], ours[name]) for name in loaded if not name.endswith("updates"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.b1_l0.alpha"), "blocks.b1_l0.alpha is missing"),
        (lambda s: s.pop("conv7.conv_1.norm.running_var"), "conv7.conv_1.norm.running_var is missing"),
        (
            lambda s: s.update({"blocks.b1_l1.res.1.conv_1.conv3d.weight": torch.ones(32, 32, 1, 1, 1)}),
            "unexpected tensor blocks.b1_l1.res.1.conv_1.conv3d.weight",
        ),
        (lambda s: s.update({"blocks.b1_l0.beta": torch.ones(())}), "unexpected tensor blocks.b1_l0.beta"),
        (lambda s: s.update({"blocks.b9_l0.alpha": torch.ones(())}), "a MoViNet of 16 blocks; A0, A1, A2 are read"),
        (
            lambda s: s.update({"blocks.b1_l0.deep.conv_1.conv3d.weight": torch.ones(80, 1, 5, 3, 3)}),
            "blocks.b1_l0.deep.conv_1.conv3d.weight is (80, 1, 5, 3, 3), and should be (80, 1, 3, 3, 3)",
        ),
        (lambda s: s.update({"conv1.conv_1.norm.bias": torch.ones(8, dtype=torch.int64)}), "conv1.conv_1.norm.bias"),
    ],
)
def test_weights_that_do_not_fit(change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = BASE.weights()
    change(state)
    assert main(["import-weights", saved(state, tmp_path), "--out", str(tmp_path / "release")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("option", ["--attention=joint", "--time=rotary", "--resize=nearest", "--attention-heads=2"])
def test_options_of_transformers(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(BASE.weights(), tmp_path)
    assert main(["import-weights", source, "--out", str(tmp_path / "release"), option]) == 2
    assert option.split("=", maxsplit=1)[0] in capsys.readouterr().err


# --- from an import to an exported graph ------------------------------------------------------------------------------


@pytest.mark.full
@STREAMS
@pytest.mark.timeout(900)
def test_from_an_import_to_an_exported_graph(
    stream: bool, sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stream network to ONNX, a base network to torch.export: both take long."""
    case = CASES["A0_stream_t8_64_strong" if stream else "A0_base_t5_64_strong"]
    begin, recipe, run = imported(case, tmp_path), tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 4}}\nmodel: {{size: 32}}\nout: {run}\n"
        f"start: {{checkpoint: {tmp_path / 'release'}}}\nsteps: 2\nbatch: 8\nworkers: 0\nevaluate_every: -1\n"
        f"save_every: 1\nema: 0.5\noptimizer: {{lr: 1.e-4}}\n"
    )
    assert main(["train", str(recipe), "--model.drop_path", "0.1"]) == 0
    (run / "checkpoints/step-0000002/complete.json").unlink()
    assert main(["train", str(recipe), "--model.drop_path", "0.1", "--resume"]) == 0
    model = CoVeR.from_pretrained(run)
    assert model.config == MoViNetConfig(size=32, frames=4, stream=stream, statistics="frozen")
    before, after = begin.backbone.state_dict(), model.backbone.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert "stem.conv.weight" in changed
    assert not any("running" in name for name in changed), "statistics of imported weights are frozen"

    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(model.normalize(clips.flatten(0, 1)), ((3, 4),))
    if stream:
        onnxruntime = pytest.importorskip("onnxruntime")
        assert main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]) == 0
        (result,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(["ssv2"], {"clips": clips.numpy()})
    else:
        assert main(["export", str(run), "--format", "torch", "--out", str(tmp_path / "m.pt2")]) == 0
        result = torch.export.load(tmp_path / "m.pt2").module()(clips)["ssv2"].detach().numpy()
    np.testing.assert_allclose(result, logits["ssv2"].softmax(-1), atol=1e-5)

    capsys.readouterr()
    again = ["train", str(recipe), "--out", str(tmp_path / "other")]
    assert main([*again, "--model.variant", "a1"]) == 2
    assert "model.variant" in capsys.readouterr().err
    assert main([*again, "--model.stream", str(not stream).lower()]) == 2
    assert "model.stream" in capsys.readouterr().err
    assert main([*again, "--start.temporal", "fresh"]) == 2
    assert "start.temporal" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "transformers", "--head", "ssv2", "--out", str(tmp_path / "t")]) == 2
    assert "movinet" in capsys.readouterr().err
