"""A network with BatchNorm: the same run in one process, in micro-batches and on several ranks, also after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cover import config
from cover.model.backbones.movinet import MoViNetOptions
from cover.model.release import find_release
from cover.training.recipe import Data, Optimizer, Recipe
from cover.training.train import train

Launch = Callable[..., Any]
STEPS = 2


@pytest.fixture(scope="module")
def recipe(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(
        Data(["ssv2", "imagenet"], str(sandbox), frames=4, weights={"ssv2": 1, "imagenet": 1}),
        str(tmp_path_factory.mktemp("statistics") / "alone"),
        steps=STEPS,
        batch=8,
        workers=0,
        log_every=1,
        evaluate_every=-1,
        save_every=1,
        ema=0.5,
        optimizer=Optimizer("sgd", lr=0.02),
        # a last map of 2 x 2 places: of one, two images have two values
        model=MoViNetOptions(size=48, norm_samples=2),
    )


@pytest.fixture(scope="module")
def alone(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The weights of the run in one process, without accumulation."""
    return weights_of(train(recipe))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_release(run) / "model.safetensors")


def assert_same(weights: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        # Absolute too: where one BatchNorm follows another, means and biases are zero up to rounding.
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=f"{name} differs")


def test_statistics_are_learnt(alone: dict[str, torch.Tensor]) -> None:
    """The first norm sees the pixels, so every channel of its statistics has left zero and one."""
    mean, variance = (alone[f"backbone.stem.norm.running_{part}"] for part in ("mean", "var"))
    assert (mean != 0).all()
    assert (variance != 1).all()
    assert int(alone["backbone.stem.norm.updates"]) == STEPS


def test_micro_batches_train_as_one(recipe: Recipe, alone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    code_of = config.load(Recipe, written(recipe, tmp_path), ["--accumulation", "2", "--out", str(tmp_path / "run")])
    assert_same(weights_of(train(code_of)), alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(
    recipe: Recipe, alone: dict[str, torch.Tensor], tmp_path: Path, launch: Launch, strategy: str
) -> None:
    file, run = written(recipe, tmp_path), tmp_path / "run"
    code, said = launch("train", file, "--out", run, "--distributed.strategy", strategy, ranks=2).ended()
    assert code == 0, said
    assert_same(weights_of(run), alone)


def test_a_resumed_run_is_bit_equal(recipe: Recipe, alone: dict[str, torch.Tensor]) -> None:
    run = Path(recipe.out)
    last = run / "checkpoints" / f"step-{STEPS:07d}"
    (last / "complete.json").unlink()  # the last checkpoint is torn: the run goes on from the one before
    resumed = weights_of(train(recipe, resume=True))
    assert all(torch.equal(resumed[name], value) for name, value in alone.items())


def written(recipe: Recipe, folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(config.dump(recipe), encoding="utf-8")
    return file
