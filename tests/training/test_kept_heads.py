"""Heads of the starting checkpoint that a run does not train travel along, bit for bit, and are ready to be used in
what it writes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cover import config
from cover.errors import UserError
from cover.evaluation.evaluate import evaluate_release
from cover.hardware import find_device, make_cluster
from cover.inference.predictor import Predictor
from cover.mixture.dataset import retained_heads, retained_metadata, with_retained
from cover.mixture.published import planned_mixture
from cover.model.heads import Head
from cover.model.release import find_release, read_config
from cover.planning.estimate import plan
from cover.planning.reading import reading_costs
from cover.training.recipe import Checkpoints, Data, Distributed, Optimizer, Pattern, Recipe, Start
from cover.training.train import train

Launch = Callable[..., Any]
MakeSet = Callable[..., Path]
OLD = ("kinetics", "homes", "imagenet")
PROBE = Optimizer(patterns={r"^(?!heads\.ssv2\.)": Pattern(freeze=True)})


def make_recipe(catalog: Path, out: Path, origin: Path, **changes: Any) -> Recipe:
    base = Recipe(
        Data(["ssv2"], str(catalog), frames=4),
        str(out),
        steps=4,
        batch=8,
        workers=0,
        log_every=1,
        evaluate_every=-1,
        save_every=2,
        start=Start(str(origin), heads="keep"),
        label_smoothing=0.1,
        checkpoints=Checkpoints(5),
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def catalog(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sandbox, and `homes`: some of its clips with any number of classes."""
    from cover.datasets.index import index

    folder = tmp_path_factory.mktemp("sets")
    clips = sorted((sandbox.parent / "kinetics_like").rglob("*.mp4"))[:6]
    rows = [
        f"{clip},{labels}"
        for clip, labels in zip(clips, ("sit|eat", "eat", "", "sit", "eat|read", "read"), strict=True)
    ]
    (folder / "homes.csv").write_text("\n".join(["path,labels", *rows]), encoding="utf-8")
    text = "".join(
        line for line in sandbox.read_text(encoding="utf-8").splitlines(keepends=True) if not line.startswith("#")
    )
    homes = "homes: {format: csv, root: ., media: video, dev: 0, annotations: {train: homes.csv, val: homes.csv}}\n"
    (folder / "catalog.yaml").write_text(text.replace("root: ", f"root: {sandbox.parent}/") + homes, encoding="utf-8")
    index(folder / "catalog.yaml", 0)
    return folder / "catalog.yaml"


@pytest.fixture(scope="module")
def release(catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a head for each of `OLD`, one of them multi-label."""
    data = Data(list(OLD), str(catalog), frames=4)
    return find_release(
        train(Recipe(data, str(tmp_path_factory.mktemp("old") / "run"), steps=4, batch=8, workers=0, evaluate_every=-1))
    )


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_release(run) / "model.safetensors")


def moved(before: Path, after: Path) -> set[str]:
    """The tensors of a release that another has otherwise."""
    ours = weights_of(after)
    return {name for name, value in weights_of(before).items() if not torch.equal(ours[name], value)}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- which heads ------------------------------------------------------------------------------------------------------


def test_trained_heads_come_first_and_kept_ones_in_the_checkpoint_s_order() -> None:
    ours = (Head("new", ("a", "b")), Head("both", ("x", "y"), serves=("left", "right")))
    theirs = (
        Head("z", ("p",)),
        Head("both", ("x", "y"), serves=("left", "right")),
        Head("c", ("q",), "sigmoid", ("one", "two")),
    )
    heads = with_retained(ours, theirs)
    assert [head.name for head in heads] == ["new", "both", "z", "c"]
    assert retained_heads(heads, ["new", "left", "right"]) == [theirs[0], theirs[2]]
    assert with_retained(heads[:2], heads) == heads, "what a run has written begins it again as it was"
    record = {"z": {"views": "1x3"}, "one": {"views": "1x1"}, "left": {"views": "4x3"}}
    assert retained_metadata(heads, ["new", "left", "right"], record) == {
        "z": {"views": "1x3", "kept": True},
        "one": {"views": "1x1", "kept": True},
    }


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Head("k400", ("a",)), Head("kinetics", ("a", "b"), serves=("k400", "k600"))),
        (Head("kinetics", ("a",), serves=("k400",)), Head("k400", ("a",))),
    ],
)
def test_a_data_set_has_one_head(ours: Head, theirs: Head) -> None:
    with pytest.raises(
        UserError, match=f'k400 is trained under the head "{ours.name}", and the checkpoint has "{theirs.name}"'
    ) as error:
        with_retained([ours], [theirs])
    one_line(error)


def test_keeping_needs_a_checkpoint() -> None:
    with pytest.raises(UserError, match=r"start\.heads: keep needs a start\.checkpoint") as error:
        Recipe(Data(["a"]), "out", 1, start=Start(heads="keep"))
    one_line(error)


# --- what a run makes of them -----------------------------------------------------------------------------------------


def test_old_heads_travel_along_and_can_be_used(catalog: Path, release: Path, tmp_path: Path) -> None:
    run = train(make_recipe(catalog, tmp_path / "run", release, ema=0.9))
    before, after = read_config(release), read_config(find_release(run))
    assert [head.name for head in after.heads] == ["ssv2", *OLD]
    assert after.heads[1:] == before.heads
    moving = moved(release, run)
    assert not any(name.startswith("heads.") for name in moving)
    assert {name for name in weights_of(release) if name not in moving} == {
        name for name in weights_of(release) if name[:6] == "heads."
    }
    assert weights_of(run)["heads.ssv2.weight"].any()
    for name in OLD:
        assert after.datasets[name] == {**before.datasets[name], "kept": True}
    plans, old_plans = Predictor.load(run).plans(), Predictor.load(release).plans()
    assert {name: plans[name] for name in OLD} == old_plans
    results = {row["dataset"] for row in evaluate_release(run, catalog, "val", (), None, ("plain",), "cpu", 0, 0)}
    assert results == {"ssv2", *OLD}


def test_a_trained_head_is_no_kept_one(catalog: Path, release: Path, tmp_path: Path) -> None:
    data = Data(["ssv2", "kinetics"], str(catalog), frames=4)
    run = train(make_recipe(catalog, tmp_path / "run", release, data=data))
    heads = {name.split(".")[1] for name in moved(release, run) if name.startswith("heads.")}
    assert heads == {"kinetics"}
    facts = read_config(find_release(run)).datasets
    assert {name for name, item in facts.items() if item.get("kept")} == {"homes", "imagenet"}


def test_the_rest_of_the_run_is_as_without_them(catalog: Path, release: Path, tmp_path: Path) -> None:
    with_them = train(make_recipe(catalog, tmp_path / "keep", release))
    without = train(make_recipe(catalog, tmp_path / "drop", release, start=Start(str(release))))
    theirs = weights_of(with_them)
    assert all(torch.equal(theirs[name], value) for name, value in weights_of(without).items())


def test_a_probe_moves_its_own_head_alone(catalog: Path, release: Path, tmp_path: Path) -> None:
    run = train(make_recipe(catalog, tmp_path / "run", release, optimizer=PROBE))
    assert moved(release, run) == set()
    assert weights_of(run)["heads.ssv2.weight"].any()


def test_images_do_not_set_them_free(catalog: Path, release: Path, tmp_path: Path) -> None:
    """Where there is no clip the temporal branch is left alone, and so are the heads."""
    data = Data(["imagenet"], str(catalog), frames=4)
    run = train(make_recipe(catalog, tmp_path / "run", release, data=data))
    heads = {name.split(".")[1] for name in moved(release, run) if name.startswith("heads.")}
    assert heads == {"imagenet"}
    assert not any("temporal" in name for name in moved(release, run))


@pytest.mark.parametrize("optimizer", [Optimizer(), PROBE], ids=["all", "probe"])
def test_a_run_goes_on_to_the_same_weights_without_the_checkpoint_it_began_with(
    catalog: Path, release: Path, tmp_path: Path, optimizer: Optimizer
) -> None:
    start = shutil.copytree(release, tmp_path / "start")
    recipe = make_recipe(catalog, tmp_path / "run", start, optimizer=optimizer, ema=0.9)
    wanted = weights_of(train(recipe))
    shutil.rmtree(start)
    shutil.rmtree(tmp_path / "run/checkpoints/step-0000004")
    result = weights_of(train(recipe, resume=True))
    assert result.keys() == wanted.keys()
    assert all(torch.equal(result[name], value) for name, value in wanted.items())
    facts = read_config(find_release(tmp_path / "run")).datasets
    assert {name for name, item in facts.items() if item.get("kept")} == set(OLD)


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [
        ("fsdp", PROBE),
        pytest.param("ddp", PROBE, marks=pytest.mark.full),
        pytest.param("fsdp", Optimizer(), marks=pytest.mark.full),
        pytest.param("ddp", Optimizer(), marks=pytest.mark.full),
    ],
    ids=["fsdp-probe", "ddp-probe", "fsdp-all", "ddp-all"],
)
def test_two_ranks_train_as_one(
    catalog: Path, release: Path, tmp_path: Path, launch: Launch, strategy: Any, optimizer: Optimizer
) -> None:
    optimizer = replace(optimizer, name="sgd", lr=0.02)  # Adam makes steps of what is rounding in gradients that cancel
    alone = make_recipe(catalog, tmp_path / "one", release, optimizer=optimizer)
    together = replace(alone, out=str(tmp_path / "two"), distributed=Distributed(strategy))
    (tmp_path / "two.yaml").write_text(config.dump(together), encoding="utf-8")
    code, said = launch("train", tmp_path / "two.yaml", ranks=2).ended()
    assert code == 0, said
    one, two = weights_of(train(alone)), weights_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-3 * float(value.abs().max()) + 1e-5)
    assert not any(name.startswith("heads.") for name in moved(release, tmp_path / "two"))
    if optimizer.patterns:
        assert moved(release, tmp_path / "two") == set()


# --- what a plan makes of them ----------------------------------------------------------------------------------------


def planned(recipe: Recipe) -> dict[str, Any]:
    mixture = planned_mixture(recipe.data)
    cluster = make_cluster(find_device("h100"), 1, None, None, 400)
    return plan(recipe, cluster, mixture, reading_costs(recipe, mixture, dict.fromkeys(mixture.sizes, 1.0)))


def test_a_plan_counts_them_and_does_not_train_them(catalog: Path, release: Path, tmp_path: Path) -> None:
    retained, dropped = (
        planned(make_recipe(catalog, tmp_path / "x", release, start=Start(str(release), heads=how)))
        for how in ("keep", "drop")
    )
    numbers = sum(value.numel() for name, value in weights_of(release).items() if name.startswith("heads."))
    assert list(retained["step"]["heads"]) == ["ssv2", *OLD]
    assert retained["step"]["parameters"] == dropped["step"]["parameters"] + numbers
    assert (
        retained["step"]["parameters_trained"] == dropped["step"]["parameters_trained"] == dropped["step"]["parameters"]
    )
    probe = planned(make_recipe(catalog, tmp_path / "x", release, optimizer=PROBE))
    classes = retained["step"]["heads"]["ssv2"]
    assert probe["step"]["parameters_trained"] == classes * (weights_of(release)["backbone.norm.weight"].numel() + 1)
    elsewhere = planned(make_recipe(catalog, tmp_path / "x", tmp_path / "not here"))
    assert elsewhere["step"]["parameters"] == dropped["step"]["parameters"]


def test_the_log_names_what_is_kept(
    catalog: Path, release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(make_recipe(catalog, tmp_path / "run", release, steps=1))
    assert "heads kept as they are: kinetics, homes, imagenet" in capsys.readouterr().err
    start = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert {name for name, item in start["datasets"].items() if item.get("kept")} == set(OLD)
