"""What does one more data set gain from a released model, and what does it cost the model's own? One command.

cover add runs/cotrain --data mine --catalog catalog.yaml --how probe --compare
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cover import config
from cover.console import say, write_json
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import Manifest, open_manifest
from cover.errors import UserError
from cover.machine import default_workers
from cover.model.weights import find_release, release_heads
from cover.experiments.add.known import Known, split_of, split_of_new, what_is_known
from cover.experiments.add.measure import accuracy, compare_old, gain_over, measure_old
from cover.experiments.add.paired import Gauge, Measured
from cover.experiments.add.recipe import Wish, add_recipe, baseline_recipe, in_short
from cover.experiments.run_log import read_log
from cover.training.checkpoint import LOG
from cover.training.distributed import started_by_torchrun
from cover.training.folder import is_begun
from cover.training.recipe import Recipe
from cover.training.train import train

BESIDE = "add"  # the folder, inside the run's own, of all that is not the run


@dataclass(frozen=True)
class Extras:
    """`compare`: also train the new set alone, from `baseline` or random weights. `split` stands before `known.SPLITS`. `only_recipe`:
    write the recipe and stop. `overrides` of the recipe, as of `cover train`."""

    compare: bool = False
    baseline: Path | None = None
    split: str | None = None
    only_recipe: bool = False
    overrides: Sequence[str] = ()


def add(wish: Wish, extras: Extras) -> dict[str, Any] | None:
    """Train the new head, as far as that has not been done, and measure it and the old ones; the results, as they are written beside the
    run. None with `only_recipe`. Raises `UserError`."""
    if started_by_torchrun():
        raise UserError("torchrun: write the recipe with cover add --only-recipe, give that to torchrun -m cover train, then run cover add")
    catalog, workers = load_catalog(wish.catalog), default_workers() if wish.workers < 0 else wish.workers
    wish, beside = replace(wish, release=find_release(wish.release)), wish.out / BESIDE
    rows = len(_new_set(wish, catalog, workers).usable)
    known = what_is_known(release_heads(wish.release), catalog)
    recipe = make_recipe(wish, rows, known, catalog, extras.overrides)
    _write_recipe(recipe, beside / "recipe.yaml")
    if extras.only_recipe:
        return None
    baseline = find_release(extras.baseline) if extras.baseline else None  # what is wrong with it is said before the work
    split = split_of_new(wish.name, catalog, extras.split)
    splits = {name: split_of(name, catalog, extras.split) for name in known.owners}
    old = measure_old(_gauge(wish.release, catalog, wish, workers), known, splits)
    run = train_missing(recipe)
    after = _gauge(find_release(run), catalog, wish, workers)
    found = after.measure(wish.name, split)
    results = {
        "checkpoint": str(wish.release), "how": wish.how, "seed": recipe.seed, "run": str(run), "recipe": str(beside / "recipe.yaml"),
        "epochs": _epochs(run), "not_replayed": known.absent if wish.how == "replay" else {},
        "old": compare_old(old, wish.release, after, known, recipe),
        "new": {"dataset": wish.name, **accuracy(found, recipe.seed)},
        "compare": None,
    }  # fmt: skip
    if extras.compare or baseline:
        write_json(results, beside / "results.json")  # the baseline takes its time
        results["compare"] = _compare(wish, recipe, found, catalog, baseline, workers)
    write_json(results, beside / "results.json")
    return results


def _gauge(release: Path, catalog: Catalog, wish: Wish, workers: int) -> Gauge:
    return Gauge(release, catalog, wish.out / BESIDE / "measured", wish.device, workers)


def _epochs(run: Path) -> dict[str, float]:
    """How often each data set was seen."""
    found: dict[str, float] = read_log(run / LOG).last().get("epochs", {})
    return found


def _new_set(wish: Wish, catalog: Catalog, workers: int) -> Manifest:
    """The training rows of the new set, indexed where that has not been done. Raises `UserError`."""
    path = catalog.manifest_path(wish.name, "train")
    for head in release_heads(wish.release):
        if wish.name in (head.name, *head.datasets):
            raise UserError(
                f'{wish.release}: its head "{head.name}" is for {wish.name} already; train that further with cover train'
                " (start.checkpoint), or give the new data another name in the catalog"
            )
    if not path.is_file():
        index(wish.catalog, workers, [wish.name])
    manifest = open_manifest(path)
    if not len(manifest.usable):
        raise UserError(f"{path.name}: none of its {len(manifest)} rows is readable and labelled; nothing to train on")
    return manifest


# --- the runs -------------------------------------------------------------------------------------------------------------------


def make_recipe(wish: Wish, rows: int, known: Known, catalog: Catalog, overrides: Sequence[str]) -> Recipe:
    """What will be run on `rows` samples of the new set. What of the old is not trained with it is said. Raises `UserError`."""
    replayed: dict[str, int] = {}
    if wish.how == "replay":
        replayed = {name: len(open_manifest(catalog.manifest_path(name, "train")).usable) for name in known.replayed}
        for name, why in known.absent.items():
            say(f"WITHOUT REPLAY: {name}: {why}; its head stays as it is while all below it moves: expect it to forget")
        if not replayed:
            raise UserError(f"--how replay: none of the release's data sets ({', '.join(known.owners)}) is here; choose probe or alone")
    if wish.how == "alone" and known.owners:
        say(f"WITHOUT REPLAY: the heads of {', '.join(known.owners)} stay as they are while all below them moves: expect them to forget")
    recipe = add_recipe(wish, rows, replayed, known.shared)
    if not overrides:
        return recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(config.dump(recipe), encoding="utf-8")
        try:
            return config.load(Recipe, path, overrides)
        except UserError as error:  # without the name of a file that nobody wrote
            raise UserError(str(error).removeprefix(f"{path}: ")) from None


def _write_recipe(recipe: Recipe, path: Path) -> None:
    """The recipe, shown and ready to be run by hand; that of a run that was begun stays."""
    text = f"# cover train {path}\n{in_short(recipe)}"
    say(text.rstrip())
    if is_begun(Path(recipe.out)):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {path}: cannot be written: {error.strerror}") from None


def train_missing(recipe: Recipe) -> Path:
    """Train, or go on with, or keep, the run of `recipe`."""
    return train(recipe, resume=is_begun(Path(recipe.out)))


def _compare(wish: Wish, recipe: Recipe, ours: Measured, catalog: Catalog, checkpoint: Path | None, workers: int) -> dict[str, Any]:
    """The same network on the new set without the release, and how much better the release makes it."""
    beside = wish.out / BESIDE
    baseline = baseline_recipe(recipe, wish.name, beside / "baseline", checkpoint)
    _write_recipe(baseline, beside / "baseline.yaml")
    run = train_missing(baseline)
    theirs = _gauge(find_release(run), catalog, wish, workers).measure(wish.name, ours.protocol["split"])
    return {
        "start": baseline.start.checkpoint or None, "run": str(run), "epochs": _epochs(run), **gain_over(ours, theirs, recipe.seed),
    }  # fmt: skip
