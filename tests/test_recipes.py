"""The recipes that ship are valid, and those of the sandbox are what the demo runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cover import config
from cover.studies import demo
from cover.training.recipe import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_loads_and_its_header_says_how_to_run_it(path: Path) -> None:
    config.load(Recipe, path)
    assert f"cover train {path.relative_to(RECIPES.parent)}" in path.read_text(encoding="utf-8")


def test_the_sandbox_recipes_are_the_demo_s() -> None:
    pretrain, cotrain = (config.load(Recipe, RECIPES / "sandbox" / f"{name}.yaml") for name in ("pretrain", "cotrain"))
    assert (pretrain.steps, pretrain.batch, pretrain.optimizer.lr) == (demo.PRETRAIN_STEPS, demo.PRETRAIN_BATCH, demo.PRETRAIN_LR)
    assert (cotrain.steps, cotrain.batch, cotrain.optimizer.lr) == (demo.COTRAIN_STEPS, demo.COTRAIN_BATCH, demo.COTRAIN_LR)
    assert cotrain.data.sets == demo.SETS
