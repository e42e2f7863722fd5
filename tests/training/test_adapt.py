"""What a run trains of its start: additions of low rank, first stages that stay, nothing but heads."""

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
from cover.cli import main
from cover.errors import UserError
from cover.model.backbones.movinet import MoViNetOptions
from cover.model.backbones.timesformer import TimeSformerOptions, timesformer_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import find_release
from cover.training.recipe import RECIPE, Adapt, Cache, Checkpoints, Data, Recipe, Start
from cover.training.train import train

MakeSet = Callable[..., Path]
LORA = Adapt("lora", rank=2, alpha=4, targets="both")


@pytest.fixture
def catalog(make_set: MakeSet) -> Path:
    make_set({f"{number}.mp4": ("push left", "push right")[number % 2] for number in range(6)}, name="moves")
    return make_set({f"{number}.png": ("cat", "dog")[number % 2] for number in range(4)}, name="things", media="image")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A release of space attention, so a temporal branch is new to it."""
    torch.manual_seed(0)
    model = CoVeR(timesformer_config("mini", attention="space", frames=3), (Head("old", ("a", "b")),))
    model.save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def recipe_of(catalog: Path, start: Path, out: Path, adapt: Adapt, **changes: Any) -> Recipe:
    base = Recipe(
        Data(["moves", "things"], str(catalog), frames=3, weights={"moves": 1, "things": 1}),
        str(out),
        steps=4,
        batch=4,
        workers=0,
        log_every=1,
        evaluate_every=-1,
        save_every=2,
        start=Start(str(start)),
        adapt=adapt,
        model=TimeSformerOptions(attention="space"),
        checkpoints=Checkpoints(keep=9),
    )
    return replace(base, **changes)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(find_release(folder) / "model.safetensors")


def log_of(run: Path, event: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def changed(run: Path, start: Path) -> set[str]:
    """The tensors of a run that the start does not have, or with other values."""
    before = weights_of(start)
    return {name for name, value in weights_of(run).items() if name not in before or not value.equal(before[name])}


def cut_after(run: Path, step: int) -> None:
    """Delete all checkpoints of a run after a step, as if it had been killed then."""
    for folder in (run / "checkpoints").iterdir():
        if folder.name > f"step-{step:07d}":
            shutil.rmtree(folder)


# --- additions of low rank --------------------------------------------------------------------------------------------


def test_low_rank_additions_are_merged_into_their_layers(catalog: Path, start: Path, tmp_path: Path) -> None:
    run = train(recipe_of(catalog, start, tmp_path / "run", LORA))
    names = {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    adapted = {f"backbone.blocks.{block}.{name}.weight" for block in range(4) for name in names}
    heads = {f"heads.{name}.{part}" for name in ("moves", "things") for part in ("weight", "bias")}
    assert changed(run, start) == adapted | heads
    before, after = weights_of(start), weights_of(run)
    for name in adapted:
        values = torch.linalg.svdvals(after[name] - before[name])
        assert values[2] < 1e-4 * values[0], "the change is of rank 2"
    first, *_ = log_of(run)
    zeroed = Adapt("probe")
    assert first["step_loss"] == log_of(train(recipe_of(catalog, start, tmp_path / "probe", zeroed)))[0]["step_loss"]


def test_a_run_goes_on_bit_for_bit_without_its_start(catalog: Path, start: Path, tmp_path: Path) -> None:
    """Also with a temporal branch that is new to the start, and is trained as a whole."""
    recipe = recipe_of(catalog, start, tmp_path / "run", LORA, ema=0.9)
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    # its network is that of the start, with these changes
    model = {"attention": "divided", "dropout": 0.1}
    changes = {**config.plain(recipe), "model": model, "start": {"checkpoint": str(start), "temporal": "fresh"}}
    file.write_text(config.dump(changes), encoding="utf-8")
    assert main(["train", str(file)]) == 0
    whole, temporal = weights_of(run), CoVeR.from_pretrained(run).temporal_parameters()
    assert len(temporal) == 32
    assert temporal <= changed(run, start)
    cut_after(run, 2)
    shutil.rmtree(start)
    assert main(["train", str(file), "--resume"]) == 0
    again = weights_of(run)
    assert again.keys() == whole.keys()
    assert all(again[name].equal(value) for name, value in whole.items())
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4]


def test_additions_above_frozen_stages_use_one_cache(catalog: Path, start: Path, tmp_path: Path) -> None:
    """A resumed run reads the cache of the first one, so the weights of the frozen stages have the same digest."""
    settings = replace(LORA, frozen_stages=2)
    run = train(recipe_of(catalog, start, tmp_path / "run", settings, cache=Cache(stages=-1)))
    assert all(name.startswith(("backbone.blocks.2.", "backbone.blocks.3.", "heads.")) for name in changed(run, start))
    cut_after(run, 2)
    train(config.load(Recipe, run / RECIPE), resume=True)
    (begun,) = log_of(run, "start")[:1]
    assert [(each["stages"], each["computed"]) for each in log_of(run, "start")[-1]["caches"]] == [(2, 0), (2, 0)]
    assert begun["adapt"] == {"method": "lora", "frozen_stages": 2, "rank": 2, "alpha": 4, "targets": "both"}


@pytest.mark.parametrize(
    ("strategy", "more"),
    [
        ("fsdp", "--model.checkpointing true"),
        pytest.param("ddp", "--accumulation 2 --compile true", marks=pytest.mark.full),
    ],
)
def test_two_ranks_train_additions_as_one(
    catalog: Path, start: Path, tmp_path: Path, launch: Callable[..., Any], strategy: str, more: str
) -> None:
    file, recipe = tmp_path / "recipe.yaml", recipe_of(catalog, start, tmp_path / "alone", LORA, batch=8)
    file.write_text(config.dump(recipe), encoding="utf-8")
    alone, run = train(recipe), tmp_path / "run"
    words = ["train", file, "--out", run, "--distributed.strategy", strategy, *more.split()]
    code, said = launch(*words, ranks=2).ended()
    assert code == 0, said
    losses = [line["step_loss"] for line in log_of(alone)]
    assert [line["step_loss"] for line in log_of(run)] == pytest.approx(losses, rel=1e-4)
    assert changed(run, start) == changed(alone, start)


def test_plan_and_describe_count_what_is_trained(catalog: Path, start: Path, tmp_path: Path) -> None:
    file, facts = tmp_path / "recipe.yaml", tmp_path / "facts.json"
    file.write_text(config.dump(recipe_of(catalog, start, tmp_path / "run", LORA)), encoding="utf-8")
    width, hidden, blocks, rank = 128, 512, 4, 2
    attention = rank * (width + 3 * width) + rank * (width + width)
    mlp, heads = 2 * rank * (width + hidden), 2 * (2 * width + 2)
    assert main(["plan", str(file), "--decode-ms", "1", "--image-ms", "1", "--json", str(facts)]) == 0
    step = json.loads(facts.read_text(encoding="utf-8"))["step"]
    assert step["parameters_trained"] == blocks * (attention + mlp) + heads
    assert main(["describe", "mini", "--lora", "2", "--json", str(facts)]) == 0
    assert json.loads(facts.read_text(encoding="utf-8"))["parameters_trained"] == blocks * 2 * attention


# --- nothing but heads, and further parameters ------------------------------------------------------------------------


def test_a_probe_trains_heads_and_what_is_named(catalog: Path, start: Path, tmp_path: Path) -> None:
    settings = Adapt("probe", train=r"backbone\.norm\.")
    run = train(recipe_of(catalog, start, tmp_path / "run", settings))
    heads = {f"heads.{name}.{part}" for name in ("moves", "things") for part in ("weight", "bias")}
    assert changed(run, start) == heads | {"backbone.norm.weight", "backbone.norm.bias"}


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (LORA, {"start": Start()}, r"adapt\.method: lora .* start\.checkpoint is empty"),
        (Adapt("probe", train="nowhere"), {}, r'adapt\.train: "nowhere" finds no parameter'),
        (Adapt("probe", train="("), {}, r'adapt\.train: "\(" is no regular expression'),
        (Adapt(train="norm"), {}, r"adapt\.train: is for the methods lora and probe"),
        (Adapt(frozen_stages=5), {}, r"adapt\.frozen_stages: 5, but this network has 4 stages"),
        (replace(LORA, frozen_stages=4), {}, r"adapt\.method: lora: all its layers are frozen"),
        (Adapt("lora", rank=0), {}, r"adapt\.rank: 0"),
    ],
)
def test_settings_that_do_not_fit(
    catalog: Path, start: Path, tmp_path: Path, settings: Adapt, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(replace(recipe_of(catalog, start, tmp_path / "run", LORA), adapt=settings, **changes))


def test_a_family_without_projections(catalog: Path, tmp_path: Path) -> None:
    options = MoViNetOptions(size=32)
    CoVeR(options.config(3), (Head("old", ("a", "b")),)).save_pretrained(tmp_path / "movinet")
    recipe = recipe_of(catalog, tmp_path / "movinet", tmp_path / "run", LORA, model=options)
    with pytest.raises(UserError, match=r"adapt\.method: lora: a movinet network has no projections"):
        train(recipe)
