"""What `cover plan` says, against the schedule, the data and the arithmetic that training itself uses."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cover import config
from cover.cli import main
from cover.errors import UserError
from cover.hardware import DEVICES, find_device, make_cluster
from cover.mixture.mixture import Mixture
from cover.mixture.published import planned_mixture, read_numbers
from cover.model.backbones.timesformer import TimeSformerOptions as Vit
from cover.planning.estimate import plan
from cover.planning.reading import reading_costs
from cover.training.recipe import Data, Distributed, Recipe
from cover.training.train import build_model, make_schedule, with_steps

PAGE = Path(__file__).parents[2] / "docs/planning.md"
B_224, L_112 = Vit(preset="B/16", size=224), Vit(preset="L/16", size=112)
FULL = ["kinetics400", "ssv2", "moments", "imagenet"]
EQUAL = {"kinetics400": 1.0, "ssv2": 1.0, "moments": 2.0, "imagenet": 4.0}
MakeSet = Callable[..., Path]


def full(**changes: Any) -> Recipe:
    """A full-size recipe on a machine that has none of its data."""
    data = Data(FULL, "nowhere/catalog.yaml", frames=16, weights=EQUAL)
    return replace(
        Recipe(data, "runs/full", steps=1000, batch=512, model=Vit(preset="L/16", size=448), precision="bf16"),
        **changes,
    )


def planned(
    recipe: Recipe, device: str = "h200", devices: int = 8, cores: int = 12, ms: float = 14, **cluster: Any
) -> dict[str, Any]:
    mixture = planned_mixture(recipe.data)
    costs = reading_costs(recipe, mixture, dict.fromkeys(recipe.data.sets, ms))
    options = {"mfu": 0.4, "network_gbit": 400.0, **cluster}
    return plan(recipe, make_cluster(find_device(device), devices, cores, **options), mixture, costs)


# --- what is mixed ----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(sandbox: Path) -> Recipe:
    return Recipe(Data(["kinetics", "ssv2", "imagenet"], str(sandbox), frames=4), "runs/none", steps=37, batch=24)


@pytest.mark.parametrize(
    "changes", [{}, {"alpha": 0.5}, {"crops": 2}, {"epochs": {"kinetics": 3, "ssv2": 2, "imagenet": 1}}], ids=str
)
def test_draws_are_those_of_the_schedule(recipe: Recipe, changes: dict[str, Any]) -> None:
    recipe = replace(recipe, data=replace(recipe.data, **changes), steps=0 if "epochs" in changes else 37)
    trained = Mixture.open(recipe.data)
    drawn_from = planned_mixture(recipe.data)
    steps = with_steps(recipe, trained).steps
    assert with_steps(recipe, drawn_from).steps == steps
    schedule, other = make_schedule(recipe, trained), make_schedule(recipe, drawn_from)
    assert other.mean_step == schedule.mean_step
    expected, drawn = other.expected(steps), schedule.drawn(steps)
    assert expected.keys() == drawn.keys()
    assert all(abs(expected[name] - drawn[name]) < 1 for name in drawn)


def test_a_plan_warns_of_too_few_steps(recipe: Recipe) -> None:
    (warning,) = [remark for remark in planned(recipe, "cpu", 1)["remarks"] if remark.startswith("steps: ")]
    assert "37 updates from random weights" in warning
    assert not [remark for remark in planned(full())["remarks"] if remark.startswith("steps: ")]


def test_parameters_and_heads_are_those_of_the_model(recipe: Recipe) -> None:
    recipe = replace(recipe, data=replace(recipe.data, heads={"both": ["kinetics", "ssv2"]}))
    model = build_model(recipe, Mixture.open(recipe.data), None)
    facts = planned(recipe, "cpu", 1)
    assert facts["step"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["step"]["heads"] == {head.name: len(head.classes) for head in model.head_list}
    assert all(each["origin"] == "manifest" and each["file_bytes"] > 0 for each in facts["datasets"])
    assert facts["reading"]["bytes"] == pytest.approx(
        sum(each["reads"] * each["file_bytes"] for each in facts["datasets"])
    )


def test_reading_is_measured_where_the_files_are(recipe: Recipe) -> None:
    costs = reading_costs(recipe, planned_mixture(recipe.data), {"ssv2": 30.0})
    assert {name: cost.origin for name, cost in costs.items()} == {
        "kinetics": "measured",
        "ssv2": "given",
        "imagenet": "measured",
    }
    assert costs["ssv2"].ms == 30
    assert 0 < costs["imagenet"].ms < costs["kinetics"].ms < 1000
    twice = replace(recipe, data=replace(recipe.data, crops=2))
    # a decode serves two crops
    assert reading_costs(twice, planned_mixture(twice.data), {"ssv2": 30.0})["ssv2"].ms == 15


def test_without_data_published_sizes_are_used_and_marked() -> None:
    mixture = planned_mixture(full().data)
    assert not any(each.source for each in mixture.datasets)
    assert [(len(each.rows), len(each.classes.names), each.media, each.origin) for each in mixture.datasets] == [
        (240_436, 400, "video", "published"),
        (168_913, 174, "video", "published"),
        (791_297, 339, "video", "published"),
        (1_281_167, 1000, "image", "published"),
    ]
    classes = {head.name: len(head.classes) for head in mixture.heads}
    assert classes == {"kinetics400": 400, "ssv2": 174, "moments": 339, "imagenet": 1000}
    _, ssv2, moments, _ = planned_mixture(full().data, {"ssv2": 1000}, {"moments": 305}, {"ssv2": 50}).datasets
    assert (len(ssv2.rows), len(ssv2.classes.names), ssv2.origin, ssv2.file_bytes) == (1000, 174, "given", 50_000)
    assert (len(moments.rows), len(moments.classes.names), moments.origin) == (791_297, 305, "given")


def test_a_shared_head_has_all_classes_where_their_names_are_not_known() -> None:
    data = replace(full().data, heads={"videos": ["kinetics400", "moments"]})
    assert {head.name: len(head.classes) for head in planned_mixture(data).heads} == {
        "videos": 739,
        "ssv2": 174,
        "imagenet": 1000,
    }


def test_given_classes_do_not_disturb_the_reading(recipe: Recipe) -> None:
    mixture = planned_mixture(recipe.data, classes={"kinetics": 2})
    assert reading_costs(recipe, mixture, {"ssv2": 1, "imagenet": 1})["kinetics"].origin == "measured"


def test_a_set_is_known_by_the_format_that_the_catalog_gives_it(tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text(
        "a: {format: ssv2, root: /not/here}\nb: {format: imagenet, root: /not/here}\n"
    )
    mixture = planned_mixture(Data(["a", "b"], str(tmp_path / "catalog.yaml")))
    assert [len(each.classes.names) for each in mixture.datasets] == [174, 1000]


@pytest.mark.parametrize("name", ["010", "1e3", "yes", "null", "1_0", "0x1f"])
def test_a_name_is_text_whatever_yaml_makes_of_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "catalog.yaml").write_text(f"{name}: {{format: folder, root: /not/here, media: image}}\n")
    data = Data(
        [name],
        str(tmp_path / "catalog.yaml"),
        heads={"all": [name]},
        weights={name: 2},
        epochs={},
        loss_weights={name: 0.5},
    )
    mixture = planned_mixture(data, {name: 50}, {name: 3})
    (dataset,) = mixture.datasets
    assert (dataset.name, dataset.media, dataset.frames, dataset.loss_weight) == (name, "image", 1, 0.5)
    assert mixture.heads[0].datasets == (name,)
    (draws,) = mixture.schedule(4).step(0)
    assert {draw.dataset for draw in draws} == {name}


@pytest.mark.parametrize(
    ("catalog", "sets", "sizes", "message"),
    [
        ("mine: {format: folder, root: /no}", ["mine"], {}, "mine: it has no manifest .* give --sizes mine=SAMPLES"),
        ("mine: {format: folder, root: /no}", ["mine"], {"mine": 9}, "give --classes mine=CLASSES"),
        ("imagenet12k: {format: imagenet, root: /no}", ["imagenet12k"], {}, "imagenet12k: it has no manifest"),
        ("[1]", ["ssv2"], {}, "line 1: expected keys"),
        ("ssv2: {format: ssv2, root: /no}", ["ssv2"], {"svs2": 9}, '--sizes: "svs2" is not one of'),
    ],
)
def test_what_cannot_be_known_is_asked_for(
    tmp_path: Path, catalog: str, sets: list[str], sizes: dict[str, float], message: str
) -> None:
    (tmp_path / "catalog.yaml").write_text(catalog)
    with pytest.raises(UserError, match=message) as error:
        planned_mixture(Data(sets, str(tmp_path / "catalog.yaml")), sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["ssv2", "ssv2=", "ssv2=x", "=4", "ssv2=0", "a b=3", "ssv2=4,,mit=3"])
def test_numbers_by_name_are_read_or_refused(text: str) -> None:
    assert read_numbers("--sizes", "ssv2=168913, mine=2.5") == {"ssv2": 168913, "mine": 2.5}
    with pytest.raises(UserError, match=r"^--sizes: .* is no NAME=NUMBER above 0"):
        read_numbers("--sizes", text)


# --- what it takes ----------------------------------------------------------------------------------------------------


def test_the_article_s_network_and_its_arithmetic() -> None:
    """CoVeR: 431 M parameters, 17.6 T multiply-adds for three views of 16 x 448."""
    facts = planned(full())
    assert facts["step"]["parameters"] / 1e6 == pytest.approx(431, rel=5e-3)
    clips = next(group["samples"] for group in facts["step"]["groups"] if group["frames"] == 16)
    assert clips == 256
    flop = 2 * 3 * clips * 17.6e12 / 3  # 2 per multiply-add, backward twice the forward
    assert flop < facts["step"]["flop"] < 1.10 * flop  # the images are the rest
    seconds = facts["step"]["flop"] / 8 / (0.4 * DEVICES["h200"].bf16)
    assert facts["time"]["compute"] == pytest.approx(seconds)
    assert facts["device_hours"] == pytest.approx(1000 * facts["time"]["step"] * 8 / 3600)
    again = planned(full(model=Vit(preset="L/16", size=448, checkpointing=True)))
    assert again["time"]["compute"] == pytest.approx(seconds * 4 / 3)


@pytest.mark.full
def test_the_ring_s_bytes() -> None:
    """DDP 2 (N-1) / N of the gradients, FSDP 3 (N-1) / N of the weights; over machines by the network."""
    near, far = planned(full()), planned(full(), devices=16)
    sharded = planned(full(distributed=Distributed("fsdp")))
    grads = 4 * near["step"]["parameters"]
    assert near["time"]["talk"] == pytest.approx(2 * 7 / 8 * grads / (0.7 * 450e9))
    assert far["time"]["talk"] == pytest.approx(2 * 15 / 16 * grads / (0.7 * 50e9))
    assert sharded["time"]["talk"] == pytest.approx(1.5 * near["time"]["talk"])
    assert planned(full(batch=64), devices=1)["time"]["talk"] == 0


@pytest.mark.parametrize(
    ("changes", "where", "bottleneck", "part"),
    [
        ({}, {"device": "a100-40"}, "memory", r"of 37\.6 on each device; set "),
        ({"accumulation": 4}, {"workers": 12}, "compute", "the devices are the limit"),
        (
            {"model": B_224},
            {"ms": 300.0},
            "loader",
            r"cores at 300 ms a clip and 300 ms an image, .* prepare the videos",
        ),
        ({"model": B_224}, {"ms": 20.0, "cores": 24, "workers": 2}, "loader", r"set workers: \d+ \(of each device\)"),
        (
            {"model": L_112, "batch": 64, "distributed": Distributed("fsdp")},
            {"device": "l40s", "ms": 0.1},
            "interconnect",
            "distributed.strategy: ddp",
        ),
        (
            {"model": L_112, "batch": 64},
            {"device": "l40s", "ms": 0.1, "devices": 16, "network_gbit": 25},
            "interconnect",
            "faster network",
        ),
    ],
    ids=["memory", "compute", "loader", "workers", "fsdp", "network"],
)
def test_the_verdict_names_what_the_run_waits_for(
    changes: dict[str, Any], where: dict[str, Any], bottleneck: str, part: str
) -> None:
    where = dict(where)
    facts = planned(full(**changes, workers=where.pop("workers", -1)), **where)
    assert facts["bottleneck"] == bottleneck, facts["verdict"]
    assert facts["verdict"].startswith(f"{bottleneck}: ")
    assert re.search(part, facts["verdict"])
    assert "\n" not in facts["verdict"]


def test_what_a_memory_verdict_says_does_fit() -> None:
    facts = planned(full(), "a100-40")
    match = re.search(r"set accumulation: (\d+)(.*checkpointing: true)?", facts["verdict"])
    assert match, facts["verdict"]
    model = Vit(preset="L/16", size=448, checkpointing=bool(match[2]))
    assert planned(full(accumulation=int(match[1]), model=model), "a100-40")["bottleneck"] != "memory"


def test_a_batch_that_the_devices_cannot_share_is_refused_as_training_refuses_it() -> None:
    with pytest.raises(UserError, match="not a multiple of ranks x accumulation = 24"):
        planned(full(), devices=24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h2000"}, 'unknown device "h2000"; did you mean'),
        ({"device": "cpu", "devices": 2}, "--gpus"),
        ({"mfu": 1.5}, "--mfu"),
        ({"network_gbit": 0}, "--network"),
    ],
)
def test_wrong_hardware_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(full(), **options)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "recipe.yaml", tmp_path / "plan.json"
    path.write_text(
        yaml.dump(
            {"data": {"sets": ["ssv2", "imagenet"], "catalog": str(sandbox)}, "out": "runs/x", "steps": 10, "batch": 16}
        )
    )
    assert main(["plan", str(path), "--device", "h100", "--gpus", "2", "--json", str(out), "--data.alpha", "0"]) == 0
    shown = capsys.readouterr()
    facts = json.loads(out.read_text())
    assert facts["step"]["groups"] == [{"samples": 8, "frames": 8}, {"samples": 8, "frames": 1}]
    assert shown.out.rstrip().splitlines()[-1] == facts["verdict"]
    assert "2 x NVIDIA H100 SXM" in shown.out
    assert f"next: torchrun --nproc-per-node 2 -m cover train {path} --data.alpha 0" in shown.err
    assert main(["plan", str(path), "--device", "h100", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == 1
    assert main(["plan", str(path), "--steps", "nine"]) == 2


@pytest.mark.parametrize("option", ["--decode-ms", "--image-ms"])
@pytest.mark.parametrize("text", ["nan", "inf", "-1", "x"])
def test_reading_times_that_are_none(
    tmp_path: Path, sandbox: Path, option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.dump(
            {"data": {"sets": ["ssv2", "imagenet"], "catalog": str(sandbox)}, "out": "runs/x", "steps": 10, "batch": 16}
        )
    )
    with pytest.raises(SystemExit) if option == "--image-ms" else nullcontext():
        assert main(["plan", str(path), "--device", "h100", option, text]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), option in err) == ("", 1, True), err


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of the page run, and its tables are what they print."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(Path(__file__).parents[2] / "recipes")
    text = PAGE.read_text(encoding="utf-8")
    commands = [
        shlex.split(line)[1:]
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    assert {command[0] for command in commands} == {"sandbox", "index", "plan"}
    for command in commands:
        assert main(command) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL):
        for line in filter(None, block.splitlines()):
            assert line.split() in [printed.split() for printed in shown.splitlines()], line


FULL_SIZE = sorted(path for path in (PAGE.parents[1] / "recipes/full").glob("*.yaml") if path.stem != "catalog")
SOON = ("cover_l_k700", "timesformer_b_ssv2")  # the largest, and one of a single data set


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[] if path.stem in SOON else pytest.mark.full, id=path.stem) for path in FULL_SIZE],
)
def test_full_size_recipes_can_be_planned_without_their_data(path: Path, tmp_path: Path) -> None:
    recipe = config.load(Recipe, path)
    recipe = replace(recipe, data=replace(recipe.data, catalog=str(tmp_path / "none.yaml")))
    facts = planned(recipe, "h100", devices=16)
    assert {each["origin"] for each in facts["datasets"]} == {"published"}
    assert facts["hours"] > 0
    assert facts["bottleneck"] != "memory", "what the largest of them need, by their headers"
