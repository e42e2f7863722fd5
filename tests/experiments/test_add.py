"""A new head on a released model: what was known stays as promised, the figures are those of an evaluation, and nothing
is done twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cover import config
from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.evaluation.baselines import shortfalls
from cover.evaluation.evaluate import evaluate_release
from cover.evaluation.metrics import MeanAveragePrecision, TopK
from cover.evaluation.statistics import difference
from cover.experiments.add.add_recipe import (
    REPLAY,
    AddRequest,
    add_recipe,
    batch_for,
    epochs_for,
    in_short,
    replay_epochs,
)
from cover.experiments.add.measure import old_sets, right_answers
from cover.mixture.mixture import Mixture
from cover.model.backbones.timesformer import TimeSformerConfig, TimeSformerOptions
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import find_release, read_config, save_release
from cover.training.recipe import Augment, Data, Optimizer, Pattern, Recipe, SetAugment
from cover.training.train import train, with_steps

Add = Callable[..., dict[str, Any]]
MakeSet = Callable[..., Path]


@pytest.fixture(scope="module")
def release(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of co-training on clips and images; `ssv2` is left to be added."""
    data = Data(["kinetics", "imagenet"], str(sandbox), frames=4)
    recipe = Recipe(data, str(tmp_path_factory.mktemp("old") / "run"), steps=6, batch=8, workers=0, evaluate_every=-1)
    return find_release(train(recipe))


@pytest.fixture
def add(sandbox: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Add:
    """add("probe", "--compare") -> the results of adding `ssv2` in one epoch, and under `said` what was said."""

    def typed(
        how: str, *more: object, catalog: Path = sandbox, origin: Path = release, out: str = "run"
    ) -> dict[str, Any]:
        words = [
            origin,
            "--data",
            "ssv2",
            "--catalog",
            catalog,
            "--how",
            how,
            "--epochs",
            1,
            "--workers",
            0,
            "--out",
            tmp_path / out,
        ]
        code = main([str(word) for word in ("add", *words, *more)])
        output = capsys.readouterr()
        assert code == 0, output.err
        result: dict[str, Any] = json.loads((tmp_path / out / "add" / "results.json").read_text(encoding="utf-8"))
        return {**result, "said": output.err, "shown": output.out}

    return typed


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def typed(*words: object) -> str:
        code = main(["add", *map(str, words), "--workers", "0"])
        output = capsys.readouterr()
        assert (code, output.out) == (2, ""), output.err
        last = output.err.splitlines()[-1]
        assert last.startswith("cover add: ")
        return last

    return typed


def moved(before: Path, after: Path) -> set[str]:
    """The parts of a release that another has otherwise: names of heads, and "" for all the rest."""
    theirs, ours = (load_file(find_release(path) / "model.safetensors") for path in (before, after))
    names = [name for name, value in theirs.items() if not torch.equal(value, ours[name])]
    return {name.split(".")[1] if name.startswith("heads.") else "" for name in names}


def top1(run: Path, catalog: Path) -> dict[str, float]:
    return {
        row["dataset"]: row["top1"] for row in evaluate_release(run, catalog, "val", (), None, ("plain",), "cpu", 0, 0)
    }


def without(catalog: Path, name: str, tmp_path: Path) -> Path:
    """The same catalog on a machine that lacks a data set."""
    lines, retained, keep = catalog.read_text(encoding="utf-8").splitlines(), [], True
    for line in lines:
        keep = keep if line.startswith((" ", "#")) else not line.startswith(f"{name}:")
        retained += [line.replace("root: ", f"root: {catalog.parent}/")] if keep else []
    (tmp_path / "less.yaml").write_text("\n".join(retained), encoding="utf-8")
    index(tmp_path / "less.yaml", 0)
    return tmp_path / "less.yaml"


# --- the three ways ---------------------------------------------------------------------------------------------------


def test_a_probe_leaves_all_that_was_known_as_it_is(add: Add, release: Path, sandbox: Path, tmp_path: Path) -> None:
    result = add("probe", "--compare")
    run = tmp_path / "run"
    assert moved(release, run) == set()
    assert read_config(find_release(run)).metadata["default_head"] == "ssv2"
    before, after = top1(release, sandbox), top1(run, sandbox)
    assert {name: after[name] for name in before} == before, (
        "what is said to be unchanged is not measured again: here it is"
    )
    assert {row["dataset"]: row["after"]["value"] for row in result["old"]} == before
    assert all(row["unchanged"] and row["difference"]["low"] == row["difference"]["high"] == 0 for row in result["old"])
    assert result["new"]["value"] == after["ssv2"]
    assert result["new"]["low"] <= after["ssv2"] <= result["new"]["high"]
    assert result["shown"].count("unchanged, bit for bit") == 2
    found = result["baselines"]
    assert found["n"] == result["new"]["n_read"]
    assert found["behind"] == shortfalls(found, result["new"]["value"], result["new"]["low"])
    assert f"motion {found['motion']['top1']:.1%}" in result["shown"]
    assert ("ssv2: " in result["said"]) == bool(found["behind"])

    alone = result["compare"]
    assert alone["start"] is None
    assert alone["alone"]["value"] == top1(run / "add" / "baseline", sandbox)["ssv2"]
    assert alone["difference"]["value"] == pytest.approx(after["ssv2"] - alone["alone"]["value"])
    assert alone["epochs"] == result["epochs"]
    assert f"ssv2 alone, from random weights, as many epochs: {alone['alone']['value']:.1%}" in result["shown"]


def test_alone_moves_all_but_the_old_heads(add: Add, release: Path, sandbox: Path, tmp_path: Path) -> None:
    result = add("alone", "--optimizer.lr", "3e-3")
    assert moved(release, tmp_path / "run") == {""}
    assert "WITHOUT REPLAY: the heads of kinetics, imagenet stay the same" in result["said"]
    before, after = top1(release, sandbox), top1(tmp_path / "run", sandbox)
    for row in result["old"]:
        assert (row["before"]["value"], row["after"]["value"]) == (before[row["dataset"]], after[row["dataset"]])
        assert not row["trained"]
        assert not row["unchanged"]
    assert result["compare"] is None

    retained = {path.name.partition("-val-")[0]: [] for path in (tmp_path / "run/add/measured").glob("*.json")}
    for path in sorted((tmp_path / "run/add/measured").glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        retained[path.name.partition("-val-")[0]].append(json.loads(path.read_text(encoding="utf-8")))
    (row,) = (row for row in result["old"] if row["dataset"] == "imagenet")
    first, second = retained["imagenet"]
    sources = open_manifest(load_catalog(sandbox).manifest_path("imagenet", "val")).sources(np.array(first["rows"]))
    wanted = difference(second["right"], first["right"], sources)
    assert (row["difference"]["value"], row["difference"]["low"], row["difference"]["high"]) == (
        wanted.value,
        wanted.low,
        wanted.high,
    )


def test_replay_goes_over_what_is_here_and_names_what_is_not(
    add: Add, release: Path, sandbox: Path, tmp_path: Path
) -> None:
    less = without(sandbox, "imagenet", tmp_path)
    result = add("replay", catalog=less)
    assert (
        "WITHOUT REPLAY: imagenet: not in less.yaml; its head "
        "stays the same, but the backbone changes" in result["said"]
    )
    assert result["not_replayed"] == {"imagenet": "not in less.yaml"}
    assert moved(release, tmp_path / "run") == {"", "kinetics"}
    kinetics, imagenet = result["old"]
    assert (kinetics["trained"], imagenet["trained"]) == (True, False)
    assert imagenet["why_not"] == "not in less.yaml"
    assert "kept; not measured: not in less.yaml" in result["shown"]
    sizes = {
        name: len(open_manifest(load_catalog(sandbox).manifest_path(name, "train")).usable)
        for name in ("ssv2", "kinetics")
    }
    visited = {name: epochs * sizes[name] for name, epochs in result["epochs"].items()}
    assert visited["kinetics"] == pytest.approx(REPLAY * visited["ssv2"], abs=2)


def test_a_head_that_several_sets_share_is_replayed_as_one(add: Add, sandbox: Path, tmp_path: Path) -> None:
    data = Data(["kinetics", "moments", "imagenet"], str(sandbox), frames=4, heads={"actions": ["kinetics", "moments"]})
    origin = train(Recipe(data, str(tmp_path / "shared"), steps=2, batch=8, workers=0, evaluate_every=-1))
    result = add("replay", origin=origin)
    assert moved(origin, tmp_path / "run") == {"", "actions", "imagenet"}
    assert [(row["dataset"], row["head"]) for row in result["old"]] == [
        ("kinetics", "actions"),
        ("moments", "actions"),
        ("imagenet", "imagenet"),
    ]
    heads = (Head("actions", ("x",), serves=("kinetics", "elsewhere")),)
    known = old_sets(heads, load_catalog(sandbox))
    assert known.absent == {
        "elsewhere": "not in catalog.yaml",
        "kinetics": 'it shares the head "actions" with one that is absent',
    }
    known = old_sets((Head("kinetics", ("x",)),), load_catalog(sandbox))
    assert known.absent == {"kinetics": 'its classes are not those of the head "kinetics"'}
    assert known.replayable == []


def test_an_old_head_of_any_number_of_classes(sandbox: Path, make_set: MakeSet, add: Add, tmp_path: Path) -> None:
    catalog = make_set({"a.mp4": "left|up", "b.mp4": "up", "c.mp4": "left", "d.mp4": ""}, column="labels", name="homes")
    data = Data(["homes"], str(catalog), frames=4)
    origin = train(Recipe(data, str(tmp_path / "homes_run"), steps=2, batch=4, workers=0, evaluate_every=-1))
    whole = catalog.read_text(encoding="utf-8") + sandbox.read_text(encoding="utf-8").replace(
        "root: ", f"root: {sandbox.parent}/"
    )
    catalog.write_text(whole, encoding="utf-8")
    (row,) = add("alone", origin=origin, catalog=catalog)["old"]  # ssv2 is indexed on the way
    assert (row["dataset"], row["measure"], row["n_read"]) == ("homes", "hit1", 4)
    (wanted,) = evaluate_release(tmp_path / "run", catalog, "val", ["homes"], None, ("plain",), "cpu", 0, 0)
    assert (row["after"]["value"], row["map"]) == (wanted["hit1"], wanted["map"])


# --- once and no more -------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(add: Add, tmp_path: Path) -> None:
    first = add("probe")
    files = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run").rglob("*")
        if path.suffix in (".safetensors", ".json")
    }
    files = {path: when for path, when in files.items() if path.name not in ("results.json", "answers.json")}
    lost = next(path for path in files if path.parent.name == "measured" and path.name.startswith("ssv2"))
    lost.unlink()
    again = add("probe", "--compare")
    assert {key: again[key] for key in ("old", "new", "epochs")} == {
        key: first[key] for key in ("old", "new", "epochs")
    }
    assert {path for path, when in files.items() if path.stat().st_mtime_ns != when} == {lost}
    assert again["compare"] is not None


def test_the_recipe_can_be_run_by_hand_and_is_then_measured(
    add: Add, sandbox: Path, release: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "run", ["--catalog", str(sandbox), "--how", "replay", "--workers", "0", "--epochs", "1"]
    assert main(["add", str(release), "--data", "ssv2", "--out", str(out), *words, "--only-recipe"]) == 0
    assert [path.name for path in out.rglob("[!.]*")] == ["add", "recipe.yaml"]
    assert main(["train", str(out / "add" / "recipe.yaml"), "--save_every", "20"]) == 0
    written, resolved = config.load(Recipe, out / "add" / "recipe.yaml"), config.load(Recipe, out / "recipe.yaml")
    assert with_steps(written, Mixture.open(written.data)) == resolved
    weights = find_release(out) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    result = add("replay")
    assert (weights.stat().st_mtime_ns, result["epochs"].keys()) == (before, {"ssv2", "kinetics", "imagenet"})


def test_an_interrupted_run_goes_on_where_it_was(add: Add, sandbox: Path, release: Path, tmp_path: Path) -> None:
    whole = add("alone", "--save_every", 1, "--checkpoints.keep", 9, out="whole")
    torn = add("alone", "--save_every", 1, "--checkpoints.keep", 9)
    last = find_release(tmp_path / "run")
    steps = int(last.name.removeprefix("step-"))
    assert steps > 1
    for path in last.rglob("*"):
        path.unlink() if path.is_file() else None
    again = add("alone", "--save_every", 1, "--checkpoints.keep", 9)
    assert moved(tmp_path / "whole", tmp_path / "run") == set()
    assert f"damaged-{last.name}" in {path.name for path in last.parent.iterdir()}
    assert again["new"] == torn["new"] == whole["new"]


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_epochs_and_batch_follow_the_size() -> None:
    assert [batch_for(rows) for rows in (1, 63, 64, 127, 128, 256, 10**6)] == [8, 8, 8, 8, 16, 32, 32]
    assert [epochs_for(rows, "alone") for rows in (20, 500, 640, 1000, 3200, 10**6)] == [50, 50, 50, 32, 10, 10]
    assert [epochs_for(rows, "probe") for rows in (20, 1000, 10**6)] == [30, 30, 10]
    sizes = {"large": 10_000, "small": 100}
    epochs = replay_epochs(2000, sizes)
    drawn = {name: epochs[name] * size for name, size in sizes.items()}
    assert sum(drawn.values()) == pytest.approx(REPLAY * 2000, rel=0.01)
    assert drawn["large"] / drawn["small"] == pytest.approx(10, rel=0.01)


def test_a_release_of_images_begins_to_look_in_time_unless_only_its_features_are_used(
    sandbox: Path, tmp_path: Path
) -> None:
    images = train(
        Recipe(
            Data(["imagenet"], str(sandbox), frames=4),
            str(tmp_path / "i"),
            steps=1,
            batch=8,
            workers=0,
            evaluate_every=-1,
        )
    )
    starts = {}
    for how in ("probe", "alone"):
        request = AddRequest(find_release(images), "ssv2", sandbox, how, tmp_path / how)  # type: ignore[arg-type]
        starts[how] = add_recipe(request, 100, {}, {}).start
    assert {how: (start.temporal, start.heads) for how, start in starts.items()} == {
        "probe": ("keep", "keep"),
        "alone": ("fresh", "keep"),
    }


def test_the_network_is_the_release_s(sandbox: Path, tmp_path: Path) -> None:
    shape = TimeSformerConfig(
        width=192, depth=12, attention_heads=3, patch=16, size=64, frames=2, time="additive", image_temporal="skip"
    )
    save_release(
        tmp_path / "release", CoVeR(shape, (Head("old", ("a", "b")),)), {"step": 1, "frames": 2, "datasets": {}}
    )
    recipe = add_recipe(AddRequest(tmp_path / "release", "ssv2", sandbox, "probe", tmp_path / "run", 2.5), 100, {}, {})
    assert (recipe.model, recipe.data.frames) == (
        TimeSformerOptions(
            preset="Ti/16",
            size=64,
            time="additive",
            image_temporal="skip",
            patch_embed="linear",
            motion="frames",
        ),
        2,
    )
    assert recipe.data.epochs == {"ssv2": 2.5}


def test_a_recipe_in_short_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = Recipe(
        Data(["a"], frames=16, epochs={"a": 3}),
        "run",
        0,
        model=TimeSformerOptions(),
        augment=Augment(sets={"a": SetAugment(erase=0.2)}),
        optimizer=Optimizer(lr=1e-2, patterns={"x": Pattern(freeze=True), "y": Pattern()}),
    )
    (tmp_path / "short.yaml").write_text(in_short(recipe), encoding="utf-8")
    assert config.load(Recipe, tmp_path / "short.yaml") == recipe
    assert set(in_short(recipe).split()) & {"catalog:", "precision:", "momentum:"} == set()


def test_right_answers_are_those_that_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (200, 5), generator=generator) / 3  # many ties
    labels, multi_hot = (
        torch.randint(0, 5, (200,), generator=generator),
        torch.randint(0, 2, (200, 5), generator=generator),
    )
    counter, ranks = TopK(5, 200), MeanAveragePrecision(np.ones(5, np.int64), 200)
    counter.update(scores, labels)
    ranks.update(scores, multi_hot)
    assert right_answers(scores, labels).float().mean() == pytest.approx(counter.result()["top1"])
    assert right_answers(scores, multi_hot).float().mean() == pytest.approx(ranks.result()["hit1"])


# --- what cannot be done ----------------------------------------------------------------------------------------------


def test_wrong_use_is_one_line(
    refused: Callable[..., str], release: Path, sandbox: Path, tmp_path: Path, add: Add
) -> None:
    here = ["--catalog", sandbox, "--out", tmp_path / "x"]
    assert 'its head "kinetics" is for kinetics already' in refused(release, "--data", "kinetics", *here)
    assert 'no data set "sv2"; did you mean "ssv2"?' in refused(release, "--data", "sv2", *here)
    assert "--epochs: 0 is no number of epochs" in refused(release, "--data", "ssv2", "--epochs", 0, *here)
    assert 'unknown key "optimizer.rate"' in refused(release, "--data", "ssv2", *here, "--optimizer.rate", "1")
    assert "nowhere: does not exist" in refused(tmp_path / "nowhere", "--data", "ssv2", *here)
    assert "nowhere: does not exist" in refused(release, "--data", "ssv2", *here, "--baseline", tmp_path / "nowhere")
    assert "--split test: ssv2 has no split test; it could be measured on val" in refused(
        release, "--data", "ssv2", *here, "--split", "test"
    )
    assert not (tmp_path / "x" / "checkpoints").exists()
    elsewhere = tmp_path / "elsewhere"
    save_release(
        elsewhere,
        CoVeR(TimeSformerConfig(width=128, depth=4, attention_heads=4, patch=8, size=32), (Head("k700", ("a", "b")),)),
        {"step": 1, "frames": 4, "datasets": {}},
    )
    assert "none of the release's data sets (k700) is here" in refused(
        elsewhere, "--data", "ssv2", "--how", "replay", *here
    )
    add("probe")
    line = refused(
        release, "--data", "ssv2", "--how", "alone", "--epochs", 1, "--catalog", sandbox, "--out", tmp_path / "run"
    )
    assert "was begun with adapt.method probe, not full" in line


def test_a_set_without_samples_to_measure_on(
    refused: Callable[..., str], release: Path, make_set: MakeSet, tmp_path: Path
) -> None:
    catalog = make_set({"a.mp4": "left", "b.mp4": "right"}, annotations="{train: list.csv}")
    line = refused(release, "--data", "mine", "--catalog", catalog, "--out", tmp_path / "x")
    assert "mine: no readable and labelled sample in val, dev, test" in line
    assert not (tmp_path / "x" / "checkpoints").exists()
