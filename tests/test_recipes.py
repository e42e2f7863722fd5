"""The recipes that ship are valid, those of the sandbox are what the demo runs, and the full-size ones are the
published networks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cover import config
from cover.datasets.catalog import load_catalog
from cover.experiments import demo
from cover.experiments.study.study_file import Study
from cover.mixture.dataset import MixtureDataset
from cover.mixture.rates import rates_by, steps_for
from cover.mixture.schedule import split_batch
from cover.model.backbones import named_config
from cover.model.profile import count_parameters, on_meta
from cover.training.recipe import Recipe, read_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(path for path in RECIPES.rglob("*.yaml") if path.stem != "catalog")
FULL = [path for path in ALL if path.parent.name == "full"]
# Published training samples and classes (mmaction2's lists, the data sets' pages, MTV for Moments; ImageNet-21k's own
# count).
SIZES = {
    "kinetics400": (240_436, 400),
    "kinetics600": (383_393, 600),
    "kinetics700": (542_357, 700),
    "ssv2": (168_913, 174),
    "moments": (791_297, 339),
    "imagenet": (1_281_167, 1000),
    "imagenet21k": (14_197_122, 21_841),
}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_a_recipe_loads_and_its_header_says_how_to_run_it(path: Path) -> None:
    command = "study" if path.parent.name == "studies" else "train"
    if command == "study":
        config.load(Study, path)
    else:
        read_recipe(path, needs_start=False)
    assert f"cover {command} {path.relative_to(RECIPES.parent)}" in path.read_text(encoding="utf-8")


def test_the_sandbox_recipes_are_the_demo_s() -> None:
    pretrain, cotrain = (config.load(Recipe, RECIPES / "sandbox" / f"{name}.yaml") for name in ("pretrain", "cotrain"))
    assert (pretrain.steps, pretrain.batch, pretrain.optimizer.lr) == (
        demo.PRETRAIN_STEPS,
        demo.PRETRAIN_BATCH,
        demo.PRETRAIN_LR,
    )
    assert (cotrain.steps, cotrain.batch, cotrain.optimizer.lr) == (
        demo.COTRAIN_STEPS,
        demo.COTRAIN_BATCH,
        demo.COTRAIN_LR,
    )
    assert cotrain.data.sets == demo.SETS


# --- full size --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FULL, ids=name_of)
def test_a_full_size_recipe_names_sets_of_its_catalog_and_says_what_it_takes(path: Path) -> None:
    recipe, catalog = config.load(Recipe, path), load_catalog("recipes/full/catalog.yaml")
    assert recipe.data.catalog == "recipes/full/catalog.yaml"
    assert recipe.out == f"runs/{path.stem}"
    for name in recipe.data.sets:
        spec = catalog.spec(name)
        assert "train" in spec.annotations
        assert spec.media == ("image" if name.startswith("imagenet") else "video")
        assert spec.flip == ("never" if name == "ssv2" else "allow")
    header = "".join(
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.startswith("#")
    )
    for word in ("Hardware:", "Time, estimated", "Aims at", "The article's:", "ours"):
        assert word.lower() in header.lower()


def groups_of(recipe: Recipe, divisor: int) -> dict[int, int]:
    """Frames -> samples of a step, from the published sizes."""
    sizes = {name: SIZES[name][0] for name in recipe.data.sets}
    rates = rates_by(sizes, recipe.data.alpha, recipe.data.weights, recipe.data.epochs)
    frames = {name: 1 if name.startswith("imagenet") else recipe.data.frames for name in sizes}
    datasets = [MixtureDataset(name, np.arange(size), frames[name], rates[name]) for name, size in sizes.items()]
    return {group.frames: group.samples for group in split_batch(datasets, recipe.batch, divisor)}


@pytest.mark.parametrize("path", FULL, ids=name_of)
def test_the_step_is_shared_out_evenly_over_its_gpus(path: Path) -> None:
    recipe, gpus = config.load(Recipe, path), 16 if path.stem.startswith("cover_l") else 8
    assert sum(groups_of(recipe, gpus).values()) == recipe.batch


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # TimeSformer (table 3); CoVeR as UniFormerV2 counts it (tables 8 to 11). An image network has the same weights.
        ("timesformer_b_k400", 121.4),
        ("timesformer_b_ssv2", 121.4),
        ("cover_l", 431.0),
    ],
)
def test_the_networks_are_as_large_as_published(name: str, millions: float) -> None:
    recipe = config.load(Recipe, RECIPES / "full" / f"{name}.yaml")
    shape = named_config(
        recipe.model.preset,
        size=recipe.model.size,
        frames=recipe.data.frames,
        attention=recipe.model.attention,
        time=recipe.model.time,
    )
    result = count_parameters(on_meta(shape, {name: SIZES[name][1] for name in recipe.data.sets}))
    assert result.total / 1e6 == pytest.approx(millions, rel=5e-3)


def test_timesformer_s_schedule_is_the_published_one() -> None:
    recipe = config.load(Recipe, RECIPES / "full" / "timesformer_b_k400.yaml")
    steps = steps_for({"kinetics400": SIZES["kinetics400"][0]}, recipe.data.epochs, recipe.batch)
    epochs = [round(share * steps * recipe.batch / SIZES["kinetics400"][0], 2) for share in recipe.optimizer.milestones]
    assert epochs == [11.0, 14.0]
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.batch) == (0.005, 0.9, 16)


@pytest.mark.parametrize("path", [path for path in FULL if path.stem.startswith("cover_")], ids=name_of)
def test_cotraining_goes_over_kinetics_as_often_as_its_header_says(path: Path) -> None:
    recipe = config.load(Recipe, path)
    kinetics = f"kinetics{path.stem.partition('_k')[2] or 400}"
    assert recipe.data.sets == [kinetics, "ssv2", "moments", "imagenet"]
    assert sum(recipe.data.weights.values()) == pytest.approx(1)
    visited = recipe.steps * recipe.batch
    epochs = visited * recipe.data.weights[kinetics] / SIZES[kinetics][0]
    assert epochs == pytest.approx({"cover_b_k600": 24, "cover_b_k700": 20}.get(path.stem, 30), rel=2e-3)
    clips, images = (visited * samples / recipe.batch / 1e6 for samples in groups_of(recipe, 1).values())
    assert f"{clips:.1f} M clips" in path.read_text(encoding="utf-8")
    assert f"{images:.1f} M images" in path.read_text(encoding="utf-8").replace("\n# ", " ")
    proportional = rates_by({name: SIZES[name][0] for name in recipe.data.sets}, 1.0 if "cover_l" in path.stem else 0.5)
    for name, weight in recipe.data.weights.items():
        assert weight == pytest.approx(float(proportional[name]), abs=0.03)
