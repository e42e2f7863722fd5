"""Does co-training work? The whole story on generated data, in minutes: generate, index, train, compare, report.

cover demo --out demo
"""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cover import __version__, config
from cover.console import clock, say, write_json
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.evaluation.evaluate import evaluate
from cover.evaluation.protocol import read_views
from cover.evaluation.reading import Variant
from cover.evaluation.tasks import find_tasks
from cover.inference.predictor import Predictor
from cover.mixture.mixture import Mixture
from cover.model.device import pick_device
from cover.model.weights import find_release, load_release
from cover.sandbox.generate import generate
from cover.sandbox.settings import Settings
from cover.studies.report import Story, Strip, markdown_table, write_report
from cover.training.recipe import Data, Model, Optimizer, Recipe, Start
from cover.training.train import make_schedule, train

SETS = ["kinetics", "ssv2", "moments", "imagenet"]
ALONE = ("ssv2", "kinetics")  # the motion-led and the appearance-led set
COTRAINING = "co-training on all four"
PRETRAIN_STEPS, PRETRAIN_BATCH, PRETRAIN_LR = 1200, 64, 1e-3
COTRAIN_STEPS, COTRAIN_BATCH, COTRAIN_LR = 1000, 40, 1e-3
SCALED_LEAST_STEPS = 6
STRIPS_EACH = 3
REPORTED = ("top5", "mean_class", "n_read", "n_listed", "classes", "views", "split", "class_digest", "media", "step")


@dataclass
class Diary:
    """How long each stage took."""

    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        say(f"== {title}")
        began = time.perf_counter()
        yield
        self.stages.append((title, time.perf_counter() - began))


def demo(out: Path, scale: float, seed: int, device: str, workers: int) -> Path:
    """Everything from generated files to `out/report.html` and `out/results.json`; returns the report's path.

    `scale` below 1 shrinks the data sets and the number of steps. Raises `UserError` where `out` holds something else.
    """
    began, diary = time.perf_counter(), Diary()
    with diary.stage("generate four data sets"):
        catalog_path = generate(out / "sandbox", Settings(seed=seed, size=scale), workers)
    with diary.stage("index every file"):
        index(catalog_path, workers)
    catalog = load_catalog(catalog_path)
    titles = {}
    for title, recipe in recipes(out, catalog_path, scale, seed, device, workers).items():
        with diary.stage(title):
            titles[title] = run_or_reuse(recipe)
    with diary.stage("evaluate on val"):
        datasets = measure(titles, catalog, pick_device(device), workers)
    with diary.stage("predict some clips"):
        strips = predicted_strips(titles[COTRAINING], catalog)
    wall = round(time.perf_counter() - began, 1)
    results = {"wall_seconds": wall, "seed": seed, "scale": scale, "datasets": datasets}
    write_json(results, out / "results.json")
    story = Story(
        results=results, stages=diary.stages, runs={title: run / "log.jsonl" for title, run in titles.items()}, strips=strips,
        commands=next_commands(titles[COTRAINING], catalog, strips), environment=environment(out, scale, seed),
    )  # fmt: skip
    report = write_report(out, story)
    print(markdown_table(results))
    say(f"done in {clock(wall)}")
    print(f"report: {report}")
    print("next:   " + story.commands[0])
    return report


# --- the runs -------------------------------------------------------------------------------------------------------------------


def recipes(out: Path, catalog: Path, scale: float, seed: int, device: str, workers: int) -> dict[str, Recipe]:
    """The runs of the demo by title, in their order: image pre-training, co-training, and each set of `ALONE` by itself.

    The single-data-set runs start from the same weights, with the same learning rate rule, augmentation and batch of clips, and
    see as many samples of their set as the co-trained model does.
    """
    base = Recipe(Data(SETS, str(catalog)), "", 1, seed=seed, device=device, workers=workers)
    pretrain = replace(
        base, data=replace(base.data, sets=["imagenet"]), out=str(out / "runs/pretrain"), steps=_scaled(PRETRAIN_STEPS, scale),
        batch=PRETRAIN_BATCH, model=Model(image_temporal="skip"), optimizer=Optimizer(lr=PRETRAIN_LR),
    )  # fmt: skip
    start = Start(pretrain.out, "fresh")
    cotrain = replace(
        base, out=str(out / "runs/cotrain"), steps=_scaled(COTRAIN_STEPS, scale), batch=COTRAIN_BATCH, start=start,
        optimizer=Optimizer(lr=COTRAIN_LR),
    )  # fmt: skip
    drawn, clips = cotrain_draws(cotrain)
    found = {"image pre-training": pretrain, COTRAINING: cotrain}
    for name in ALONE:
        alone = replace(cotrain.data, sets=[name])
        found[_single(name)] = replace(
            cotrain, data=alone, out=str(out / f"runs/single_{name}"), batch=clips, steps=round(drawn[name] / clips)
        )
    return found


def cotrain_draws(recipe: Recipe) -> tuple[dict[str, int], int]:
    """How many samples of each data set a run holds, and how many clips one of its steps."""
    schedule = make_schedule(recipe, Mixture.open(recipe.data))
    return schedule.drawn(recipe.steps), sum(group.samples for group in schedule.groups if group.frames > 1)


def _single(name: str) -> str:
    return f"single: {name} alone"


def _scaled(steps: int, scale: float) -> int:
    return max(SCALED_LEAST_STEPS, round(steps * scale))


def run_or_reuse(recipe: Recipe) -> Path:
    """Train, or go on with, or keep, the run of `recipe`; its recipe lies beside the runs, ready to be run by hand."""
    run = Path(recipe.out)
    written = run.parent.parent / "recipes" / f"{run.name}.yaml"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(f"# cover train {written}\n{config.dump(recipe)}", encoding="utf-8")
    return train(recipe, resume=run.exists())


# --- the numbers ----------------------------------------------------------------------------------------------------------------


def measure(runs: dict[str, Path], catalog: Catalog, device: torch.device, workers: int) -> dict[str, dict[str, Any]]:
    """One row per data set: chance, the model trained on it alone, the co-trained one, and what the order of frames is worth."""
    cotrained = _top1(runs[COTRAINING], SETS, catalog, device, workers, ("plain", "shuffled", "single"))
    rows: dict[str, dict[str, Any]] = {}
    for name in SETS:
        found = cotrained[name]
        plain = found["plain"]
        rows[name] = {
            "chance": 1 / plain["classes"], "single": None, "cotrained": plain["top1"],
            "cotrained_shuffled": found.get("shuffled", {}).get("top1"), "cotrained_single_frame": found.get("single", {}).get("top1"),
            **{key: plain[key] for key in REPORTED},
        }  # fmt: skip
    for name in ALONE:
        rows[name]["single"] = _top1(runs[_single(name)], [name], catalog, device, workers, ("plain",))[name]["plain"]["top1"]
    return rows


def _top1(
    run: Path, names: list[str], catalog: Catalog, device: torch.device, workers: int, variants: tuple[Variant, ...]
) -> dict[str, dict[Variant, dict[str, Any]]]:
    model, about = load_release(find_release(run))
    model.to(device)
    found = {}
    for task in find_tasks(catalog, model, about["frames"], "val", names):
        wanted = variants if task.manifest.media == "video" else ("plain",)
        results = evaluate(model, task, device, workers, wanted)
        found[task.spec.name] = {variant: {**result, "step": about["step"]} for variant, result in results.items()}
    return found


def predicted_strips(run: Path, catalog: Catalog) -> list[Strip]:
    """A few clips of every validation split with what the co-trained model says of them, chosen by their place in the list."""
    predictor = Predictor.load(run)
    strips = []
    for name in SETS:
        manifest = open_manifest(catalog.manifest_path(name, "val"))
        for row_number in manifest.usable[np.linspace(0, len(manifest.usable) - 1, STRIPS_EACH).astype(int)]:
            row = manifest.row(int(row_number))
            assert row.label is not None
            frames = read_views(row.path, manifest.media, [predictor.plan(name)], row.seconds, row.start or 0.0)[0][0]
            pixels = frames[len(frames) // 2].transpose(0, 2, 3, 1)
            top = predictor(row.path, [name])[name].top(3)
            strips.append(Strip(name, row.path, pixels, manifest.classes.names[row.label], top))
    return strips


def next_commands(run: Path, catalog: Catalog, strips: list[Strip]) -> list[str]:
    """What can be typed after the demo."""
    recipe = run.parent.parent / "recipes" / "cotrain.yaml"
    commands: list[list[Any]] = [
        ["predict", run, strips[0].path],
        ["evaluate", run, "--catalog", catalog.path, "--shuffle-frames"],
        ["train", recipe, "--out", run.parent / "mine", "--optimizer.lr", "5e-4"],
    ]
    return [shlex.join(["cover", *map(str, words)]) for words in commands]


def environment(out: Path, scale: float, seed: int) -> dict[str, str]:
    """What the numbers were made with."""
    return {
        "command": f"cover demo --out {shlex.quote(str(out))} --scale {scale:g} --seed {seed}", "seed": str(seed), "cover": __version__,
        "torch": torch.__version__, "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }  # fmt: skip
