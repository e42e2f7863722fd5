"""Runs and evaluations from cached outputs of frozen stages: the same numbers as without, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cover import config
from cover.cli import main
from cover.errors import UserError
from cover.evaluation.evaluate import evaluate_release
from cover.model.backbone import BackboneOptions
from cover.model.backbones.conv3d import Conv3dOptions
from cover.model.backbones.timesformer import TimeSformerOptions
from cover.model.release import find_release, read_config
from cover.training.recipe import Augment, Cache, Data, Distributed, Optimizer, Pattern, Recipe
from cover.training.train import train

MakeSet = Callable[..., Path]
FROZEN = {r"^backbone\.(patch_embed|cls_token|pos_embed|blocks\.[01]\.)": Pattern(freeze=True)}


@pytest.fixture
def catalog(make_set: MakeSet) -> Path:
    """Clips whose flips change the class, and images; a part of the clips is `dev`."""
    clips = {f"{number}.mp4": ("push left", "push right", "wait")[number % 3] for number in range(12)}
    make_set(clips, name="moves", flip="swap", dev=0.3)
    return make_set({f"{number}.png": ("cat", "dog")[number % 2] for number in range(4)}, name="things", media="image")


def recipe_of(catalog: Path, out: Path, cache: Cache, **changes: Any) -> Recipe:
    """Ten steps of a network whose first two blocks are frozen, with every augmentation of single samples."""
    base = Recipe(
        Data(["moves", "things"], str(catalog), frames=3, weights={"moves": 2, "things": 1}),
        str(out),
        steps=10,
        batch=6,
        workers=0,
        log_every=1,
        augment=Augment(colour=0.4, randaugment="m7-n2", erase=0.25),
        optimizer=Optimizer(patterns=FROZEN),
        cache=cache,
    )
    return replace(base, **changes)


def lines(run: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if line["event"] == event]


def losses(run: Path) -> list[float]:
    return [line["step_loss"] for line in lines(run, "train")]


def test_a_cached_run_has_the_losses_and_results_of_one_without(catalog: Path, tmp_path: Path) -> None:
    whole = train(recipe_of(catalog, tmp_path / "whole", Cache(views=2)))
    cached = train(recipe_of(catalog, tmp_path / "cached", Cache(-1, views=2)))
    again = train(recipe_of(catalog, tmp_path / "again", Cache(2, views=2)))
    assert len(losses(whole)) == 10
    assert lines(whole, "train")[-1]["epochs"]["moves"] > 4, "every view came more than once"
    assert losses(cached) == pytest.approx(losses(whole), abs=1e-6)
    assert losses(again) == losses(cached)
    (start,), (second,) = lines(cached, "start"), lines(again, "start")
    names = [(each["dataset"], each["split"]) for each in start["caches"]]
    assert names == [("moves", "train"), ("things", "train"), ("moves", "dev")]
    assert all(each["computed"] == each["entries"] > 0 for each in start["caches"])
    assert [each["computed"] for each in second["caches"]] == [0, 0, 0]
    (dev,), (without,) = lines(cached, "dev"), lines(whole, "dev")
    assert dev["datasets"] == without["datasets"]
    assert lines(cached, "train")[-1]["flops_per_s"] is not None
    assert read_config(find_release(cached)).metadata["cache"] == {"stages": 2, "dtype": "float32"}


def test_views_without_a_limit_are_others(catalog: Path, tmp_path: Path) -> None:
    unlimited = train(recipe_of(catalog, tmp_path / "a", Cache(), evaluate_every=-1))
    one = train(recipe_of(catalog, tmp_path / "b", Cache(-1), evaluate_every=-1))
    assert losses(one)[-1] != pytest.approx(losses(unlimited)[-1], abs=1e-4)


def test_float16_changes_losses_by_less_than_a_thousandth(catalog: Path, tmp_path: Path) -> None:
    single, half = (
        train(recipe_of(catalog, tmp_path / dtype, Cache(-1, dtype=dtype), evaluate_every=-1))  # type: ignore[arg-type]
        for dtype in ("float32", "float16")
    )
    assert losses(half) == pytest.approx(losses(single), rel=1e-3)
    assert losses(half) != losses(single)


def test_a_run_goes_on_from_its_cache(catalog: Path, tmp_path: Path) -> None:
    whole = train(recipe_of(catalog, tmp_path / "whole", Cache(-1, views=2), evaluate_every=-1))
    recipe = recipe_of(catalog, tmp_path / "parts", Cache(-1, views=2), evaluate_every=-1, save_every=4)
    (run := train(recipe)) and [path.rename(path.with_name("gone")) for path in run.glob("checkpoints/step-0000010")]
    train(recipe, resume=True)
    assert losses(run) == losses(whole)
    assert [each["computed"] for each in lines(run, "start")[-1]["caches"]] == [0, 0]
    for key, cache in (("cache.views", Cache(-1, views=1)), ("cache.stages", Cache(0, views=2))):
        with pytest.raises(UserError, match=key):
            train(replace(recipe, cache=cache), resume=True)
    train(replace(recipe, cache=replace(recipe.cache, folder=str(tmp_path / "another"))), resume=True)


def test_evaluation_keeps_and_reuses_views(catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(recipe_of(catalog, tmp_path / "run", Cache(-1), evaluate_every=-1))
    wanted = evaluate_release(run, catalog, "val", [], "2x3", ["plain"], "cpu", 0, 0)
    for computed in (True, False):
        capsys.readouterr()
        assert evaluate_release(run, catalog, "val", [], "2x3", ["plain"], "cpu", 0, 0, cache="") == wanted
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cache: moves val")]
        assert [("hit" not in line, "72 outputs" in line) for line in said] == [(computed, True)]
    # other frames than those of the plain views are computed from pixels
    variants = evaluate_release(run, catalog, "val", ["moves"], None, ["plain", "reversed"], "cpu", 0, 0, cache="")
    assert [row["variant"] for row in variants] == ["plain", "reversed"]


def test_the_command_evaluates_from_a_cache(
    catalog: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(recipe_of(catalog, tmp_path / "run", Cache(-1), evaluate_every=-1))
    folder = tmp_path / "elsewhere"
    command = ["evaluate", str(run), "--catalog", str(catalog), "--workers", "0", "--cache-folder", str(folder)]
    assert main(command) == 0
    assert len(list(folder.glob("*-evaluation-*/cache.json"))) == 2
    capsys.readouterr()
    assert main(["evaluate", str(trained), "--catalog", str(catalog), "--cache"]) == 2
    assert "--cache: " in capsys.readouterr().err


def test_two_ranks_fill_a_cache_and_train_from_it(catalog: Path, tmp_path: Path, launch: Callable[..., Any]) -> None:
    even = Data(["moves", "things"], str(catalog), frames=3, weights={"moves": 1, "things": 1})
    alone = recipe_of(catalog, tmp_path / "alone", Cache(views=2), data=even, batch=8, steps=4)
    shared = replace(alone, out=str(tmp_path / "ranks"), cache=Cache(-1, views=2), distributed=Distributed("fsdp"))
    (tmp_path / "shared.yaml").write_text(config.dump(shared), encoding="utf-8")
    code, said = launch("train", tmp_path / "shared.yaml", ranks=2).ended()
    assert code == 0, said
    assert losses(tmp_path / "ranks") == pytest.approx(losses(train(alone)), abs=1e-5)
    (start,) = lines(tmp_path / "ranks", "start")
    assert all(each["computed"] == each["entries"] > 0 for each in start["caches"])


# --- what does not go together ----------------------------------------------------------------------------------------

MINI = TimeSformerOptions()
BOTTOM = r"^backbone\.(patch_embed|cls_token|pos_embed)"


@pytest.mark.parametrize(
    ("cache", "model", "patterns", "message"),
    [
        (Cache(-1), MINI, {}, "cache.stages: -1 .*backbone.cls_token is trained"),
        (Cache(-1), MINI, {r"blocks\.[01]\.": Pattern(freeze=True)}, "backbone.cls_token is trained"),
        (Cache(3), MINI, FROZEN, r"cache.stages: 3, but backbone\.blocks\.2\..* is trained.*adapt.frozen_stages"),
        (Cache(-1), MINI, {BOTTOM: Pattern(freeze=True)}, r"cache.stages: -1 .*backbone\.blocks\.0\..* is trained"),
        (Cache(5), MINI, {"backbone": Pattern(freeze=True)}, "cache.stages: 5 is not in 1 to 4"),
        (Cache(-1), replace(MINI, drop_path=0.1), FROZEN, "model.drop_path: 0.1"),
        (Cache(-1), replace(MINI, dropout=0.1), FROZEN, "model.dropout"),
        (Cache(2), Conv3dOptions(), {r"layers\.0": Pattern(freeze=True)}, r"cache.stages: 2, but .*layers\.1"),
    ],
)
def test_stages_that_change_in_training_are_refused(
    catalog: Path, tmp_path: Path, cache: Cache, model: BackboneOptions, patterns: dict[str, Pattern], message: str
) -> None:
    recipe = recipe_of(catalog, tmp_path / "run", cache, optimizer=Optimizer(patterns=patterns), model=model)
    with pytest.raises(UserError, match=message) as error:
        train(recipe)
    assert "\n" not in str(error.value)
    assert not (catalog.parent / "manifests" / "cache").exists()


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_mixed_pixels_are_refused(catalog: Path, tmp_path: Path, key: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(config.dump(recipe_of(catalog, tmp_path / "run", Cache(-1))), encoding="utf-8")
    with pytest.raises(UserError, match=rf"augment\.{key}: .*cache\.stages"):
        config.load(Recipe, path, [f"--augment.{key}", "0.5"])


def test_drop_path_of_the_other_stages_differs_from_view_to_view(catalog: Path, tmp_path: Path) -> None:
    """One frozen stage never drops (its rate is 0); the others do, and the cached run does as the one without."""
    frozen = Optimizer(patterns={r"^backbone\.(patch_embed|cls_token|pos_embed|blocks\.0\.)": Pattern(freeze=True)})
    model = replace(MINI, drop_path=0.5)
    runs = [
        train(recipe_of(catalog, tmp_path / name, cache, optimizer=frozen, model=model, evaluate_every=-1))
        for name, cache in (("whole", Cache(views=1)), ("cached", Cache(1, views=1)))
    ]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=1e-6)


def test_accumulation_and_bf16(catalog: Path, tmp_path: Path) -> None:
    shared = {"accumulation": 2, "precision": "bf16", "evaluate_every": -1, "steps": 4, "batch": 12}
    whole = train(recipe_of(catalog, tmp_path / "whole", Cache(views=1), **shared))
    cached = train(recipe_of(catalog, tmp_path / "cached", Cache(-1), **shared))
    assert losses(cached) == pytest.approx(losses(whole), abs=1e-2)
