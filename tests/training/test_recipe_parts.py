"""Every part of a recipe at once on real files: a run that is stopped and goes on ends with the same weights; and what
recipes refuse.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cover import config
from cover.errors import UserError
from cover.model.release import find_release, steps_saved
from cover.training.recipe import Augment, Data, Optimizer, Pattern, Recipe, SetAugment
from cover.training.train import train

SETS = ["kinetics", "ssv2", "moments", "imagenet"]
EVERYTHING = Augment(
    colour=0.3,
    randaugment="m7-n4-std0.5",
    erase=0.25,
    mixup=0.8,
    cutmix=1.0,
    mix=0.7,
    sets={"imagenet": SetAugment(randaugment="", mix=1.0), "ssv2": SetAugment(erase=0.0)},
)
LAYERED = Optimizer(
    layer_decay=0.75,
    head_lr=5.0,
    schedule="steps",
    milestones=[0.5],
    patterns={"temporal": Pattern(lr=2.0, decay=0.01)},
    warmup=0,
)


def make_recipe(catalog: Path, out: Path, **changes: Any) -> Recipe:
    data = Data(SETS, str(catalog), frames=4, weights=dict.fromkeys(SETS, 1.0))
    base = Recipe(data, str(out), steps=6, batch=16, workers=0, log_every=1, evaluate_every=-1, save_every=2)
    return replace(base, **changes)


def log_of(run: Path, event: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def losses_of(run: Path) -> list[float]:
    return [line["step_loss"] for line in log_of(run)]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_release(run) / "model.safetensors")


@pytest.fixture(scope="module")
def whole(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parts") / "whole"
    return train(make_recipe(sandbox, out, augment=EVERYTHING, optimizer=LAYERED, ema=0.9))


def test_a_run_that_goes_on_ends_with_the_same_weights(whole: Path, sandbox: Path, tmp_path: Path) -> None:
    recipe = make_recipe(sandbox, tmp_path / "run", augment=EVERYTHING, optimizer=LAYERED, ema=0.9)
    first = train(recipe)
    shutil.rmtree(first / "checkpoints" / "step-0000006")  # as if it had been stopped after step 4
    assert steps_saved(first) == [4]
    again = train(recipe, resume=True)
    assert losses_of(again) == losses_of(whole)
    result, wanted = weights_of(again), weights_of(whole)
    assert [name for name in wanted if not torch.equal(result[name], wanted[name])] == []


def test_micro_batches_and_workers_make_the_same_run(whole: Path, sandbox: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        sandbox, tmp_path / "run", augment=EVERYTHING, optimizer=LAYERED, ema=0.9, accumulation=2, workers=1
    )
    assert losses_of(train(recipe)) == pytest.approx(losses_of(whole), rel=1e-4)


@pytest.mark.parametrize("off", ["flip", "randaugment", "erase", "mixup"])
def test_every_augmentation_changes_the_run(whole: Path, sandbox: Path, tmp_path: Path, off: str) -> None:
    without = {"flip": False, "randaugment": "", "erase": 0.0, "mixup": 0.0}
    sets = {} if off == "erase" else EVERYTHING.sets
    augment = replace(EVERYTHING, **{off: without[off]}, sets=sets)  # type: ignore[arg-type]
    run = train(make_recipe(sandbox, tmp_path / "run", augment=augment, optimizer=LAYERED, steps=3))
    assert losses_of(run) != losses_of(whole)[:3]


def test_the_average_is_released_and_the_run_itself_is_the_same_without(sandbox: Path, tmp_path: Path) -> None:
    plain, averaged = (
        train(make_recipe(sandbox, tmp_path / str(ema), ema=ema, steps=3, save_every=1)) for ema in (0.0, 0.9)
    )
    assert losses_of(plain) == losses_of(averaged)
    decay = (1 + 2) / (10 + 2)  # of the third update
    last, before = (load_file(averaged / "checkpoints" / f"step-{step:07d}" / "model.safetensors") for step in (3, 2))
    for name, own in weights_of(plain).items():
        torch.testing.assert_close(last[name], decay * before[name] + (1 - decay) * own, rtol=1e-5, atol=1e-7)
    assert not torch.equal(last["heads.ssv2.weight"], weights_of(plain)["heads.ssv2.weight"])


def test_wanted_epochs_fix_rates_and_steps(sandbox: Path, tmp_path: Path) -> None:
    data = Data(["ssv2", "moments"], str(sandbox), frames=4, epochs={"ssv2": 0.5, "moments": 1.5})
    run = train(make_recipe(sandbox, tmp_path / "run", data=data, steps=0, batch=8, save_every=0))
    (start,), last = log_of(run, "start"), log_of(run)[-1]
    sizes = {name: metadata["train_samples"] for name, metadata in start["datasets"].items()}
    samples = 0.5 * sizes["ssv2"] + 1.5 * sizes["moments"]
    assert start["rate_wanted"]["ssv2"] == pytest.approx(0.5 * sizes["ssv2"] / samples)
    assert last["step"] == -(-samples // 8)
    for name, wanted in data.epochs.items():
        assert abs(last["epochs"][name] - wanted) <= 8 / sizes[name], "to within a step"
    assert config.load(Recipe, run / "recipe.yaml").steps == last["step"]


def test_a_run_of_wanted_epochs_is_resumed_with_its_recipe(sandbox: Path, tmp_path: Path) -> None:
    data = Data(["imagenet"], str(sandbox), frames=4, epochs={"imagenet": 0.3})
    recipe = make_recipe(sandbox, tmp_path / "run", data=data, steps=0, batch=16, save_every=0)
    run = train(recipe)
    before = losses_of(run)
    assert losses_of(train(recipe, resume=True)) == before


def test_a_pattern_that_finds_nothing_ends_the_run_before_it_begins(sandbox: Path, tmp_path: Path) -> None:
    recipe = make_recipe(sandbox, tmp_path / "run", optimizer=Optimizer(patterns={"temporl": Pattern()}))
    with pytest.raises(UserError, match=r'optimizer\.patterns: "temporl" finds no parameter'):
        train(recipe)


def test_a_recipe_with_everything_is_the_same_after_a_file(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path / "catalog.yaml", tmp_path / "run", augment=EVERYTHING, optimizer=LAYERED, ema=0.99)
    (tmp_path / "recipe.yaml").write_text(config.dump(recipe), encoding="utf-8")
    assert config.load(Recipe, tmp_path / "recipe.yaml") == recipe


def test_patterns_and_sets_are_written_as_sections(tmp_path: Path) -> None:
    text = (
        "data: {sets: [ssv2], epochs: {ssv2: 30}}\nout: runs/x\nsteps: 0\n"
        'optimizer: {patterns: {"^blocks\\\\.0\\\\.": {lr: 0.1}, temporal: {decay: 0.1, freeze: true}}}\n'
        "augment: {sets: {ssv2: {randaugment: m7-n4}}}\n"
    )
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = config.load(Recipe, tmp_path / "recipe.yaml")
    assert recipe.optimizer.patterns == {r"^blocks\.0\.": Pattern(lr=0.1), "temporal": Pattern(decay=0.1, freeze=True)}
    assert recipe.augment.of("ssv2").randaugment == "m7-n4"
    assert recipe.augment.of("other") == recipe.augment


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: 0 is as many as data.epochs needs"),
        (
            {"data": Data(["ssv2"], epochs={"ssv2": 1.0}, weights={"ssv2": 1.0})},
            "data.epochs: rates come from data.weights or from",
        ),
        ({"data": Data(["ssv2"], epochs={"ssv3": 1.0})}, 'data.epochs: "ssv3" is not one of data.sets'),
        ({"ema": 1.0}, r"ema: 1.0 is not in \[0, 1\)"),
        ({"augment": Augment(erase=1.5)}, "augment.erase: 1.5"),
        ({"augment": Augment(mixup=-1)}, "augment.mixup: -1"),
        ({"augment": Augment(randaugment="m7")}, 'augment.randaugment: "m7" is no RandAugment: write mM-nN'),
        (
            {"augment": Augment(sets={"ssv3": SetAugment()})},
            'augment.sets: "ssv3" is not one of data.sets; did you mean "ssv2"',
        ),
        ({"augment": Augment(sets={"ssv2": SetAugment(mix=2.0)})}, "augment.sets.ssv2.mix: 2.0 is not in"),
        (
            {"augment": Augment(sets={"ssv2": SetAugment(randaugment="x")})},
            'augment.sets.ssv2.randaugment: "x" is no RandAugment',
        ),
        ({"optimizer": Optimizer(schedule="steps")}, "optimizer.milestones: needed by the schedule steps"),
        ({"optimizer": Optimizer(milestones=[0.5])}, "optimizer.milestones: only for the schedule steps"),
        ({"optimizer": Optimizer(schedule="steps", milestones=[0.9, 0.5])}, "optimizer.milestones: .* ascending"),
        (
            {"optimizer": Optimizer(schedule="steps", milestones=[11, 14])},
            "optimizer.milestones: .* fractions of the run",
        ),
        ({"optimizer": Optimizer(layer_decay=1.5)}, "optimizer.layer_decay: 1.5"),
        ({"optimizer": Optimizer(patterns={"x": Pattern(lr=-1)})}, 'optimizer.patterns: "x": lr: -1 is not 0 or more'),
    ],
)
def test_what_a_recipe_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Recipe(**{"data": Data(["ssv2"]), "out": "runs/x", "steps": 1, **changes})
    assert "\n" not in str(error.value)
