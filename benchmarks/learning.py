"""How well networks learn from random weights: top-1 of short runs that differ in one setting each.

    python benchmarks/learning.py                                    # motion input on generated motions
    python benchmarks/learning.py --data DIR --plan factors          # real sets in DIR (_real_sets.py), hours
    python benchmarks/learning.py --data DIR --plan targets --seeds 0
    python benchmarks/learning.py --table                            # print the table of what has been measured

Every run is one of `cover train` with a recipe that follows from the plan, and `cover evaluate` after it. A finished
run is one JSON line in OUT/learning.jsonl and is not repeated. `factors` compares settings on a part of the training
images or on the set's own test clips; `targets` measures on the test images, or on all clips in folds of whole groups.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from _measure import show
from _real_sets import FOLDS, entry_of, real_catalogs
from torch import nn

import cover.model.cover as network
from cover import config
from cover.console import say
from cover.datasets.index import index
from cover.evaluation.evaluate import evaluate_release
from cover.synthetic.generate import generate
from cover.synthetic.settings import Settings
from cover.training.recipe import Recipe
from cover.training.train import train

T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}  # quantiles of Student's t: degrees of freedom -> 97.5 %

GENERATED = "ssv2"  # the generated set whose classes are motions
# Set -> the recipe of its runs, in part; `crop_scale` is a key of its catalog entry.
FACTOR_RUNS: dict[str, dict[str, Any]] = {
    GENERATED: {"steps": 300, "batch": 16},
    "cifar10-dev": {"steps": 300, "batch": 64, "crop_scale": [0.6, 1.0]},
    "sports22-dev": {"steps": 300, "batch": 64, "crop_scale": [0.6, 1.0]},
    "utinteraction6": {"steps": 200, "batch": 16, "crop_scale": [0.6, 1.0]},
    "tennis7": {"steps": 200, "batch": 16, "crop_scale": [0.6, 1.0]},
}
_JOINT = {"backbone": "vit", "preset": "vit_mini8", "size": 32, "attention": "joint", "time": "additive"}
_FRAMES, _CONV = {"model.motion": "frames"}, {"model.patch_embed": "conv"}
# Factor -> what it changes of the recipe; `steps` and `batch` are factors on those of the base. `initial` says which
# initial values of earlier versions are put back.
FACTORS: dict[str, dict[str, Any]] = {
    "base": {},
    "motion frames": _FRAMES,
    "patch_embed conv": _FRAMES | _CONV,
    "patch_embed linear": _FRAMES | {"model.patch_embed": "linear"},
    "initial scale 0.02": _FRAMES | _CONV | {"initial": "scale"},
    "classifiers zero": _FRAMES | _CONV | {"initial": "heads"},
    "all three": _FRAMES | {"initial": "scale and heads", "model.patch_embed": "linear"},
    "crops 0.3 to 1": {"crop_scale": [0.3, 1.0]},
    "motion differences": {"model.motion": "differences"},
    "lr 3e-4": {"optimizer.lr": 3e-4},
    "lr 2e-3": {"optimizer.lr": 2e-3},
    "half the steps": {"steps": 0.5},
    "twice the steps": {"steps": 2.0},
    "half the batch, twice the steps": {"batch": 0.5, "steps": 2.0},
    "layer_scale 0.1": {"model.layer_scale": 0.1},
    "48 px": {"model.size": 48},
    "patch 4": {"model.preset": "mini/4"},
    "16 frames": {"data.frames": 16},
    "weight decay 0.3": {"optimizer.weight_decay": 0.3},
    "warm-up 0.2": {"optimizer.warmup": 0.2},
    "no flips": {"augment.flip": False},
    "no colour": {"augment.colour": 0.0},
    "conv3d": {"model": {"backbone": "conv3d"}},
    "half of the places": {"model.drop_tubes": 0.5},
    "joint": {"model": _JOINT},
    "joint, static patches": {"model": _JOINT | {"static_patches": 0.03}},
    "joint, 4 times the steps": {"model": _JOINT, "steps": 4.0},
    "joint, static patches, 4 times the steps": {"model": _JOINT | {"static_patches": 0.03}, "steps": 4.0},
    "joint, static patches, half of the places": {"model": _JOINT | {"static_patches": 0.03, "drop_tubes": 0.5}},
}

# Set -> setting -> the recipe of its runs, in part. Both networks have the same steps, samples and pixels.
_CLIPS = {"batch": 16, "crop_scale": [0.6, 1.0]}
_IMAGES = {"batch": 64, "crop_scale": [0.6, 1.0]}
_BUDGETS: dict[str, dict[str, Any]] = {
    "utinteraction6": {"steps": 240, **_CLIPS},
    "tennis7": {"steps": 400, **_CLIPS},
    "yoga6": {"steps": 240, **_CLIPS},
    "cifar10": {"steps": 3000, **_IMAGES},
    "sports22": {"steps": 800, **_IMAGES},
    "caltech100": {"steps": 800, **_IMAGES},
}
# Steps, of images about as many as 10 minutes of one thread. After 240 steps of utinteraction6, the accuracy on the
# training clips is still only 66 to 76 %.
_LONGER = {"utinteraction6": 600, "cifar10": 5500, "sports22": 2400, "caltech100": 2400}
TARGET_RUNS: dict[str, dict[str, dict[str, Any]]] = {
    dataset: {
        "mini": shared,
        "conv3d": shared | {"model": {"backbone": "conv3d"}},
    }
    for dataset, shared in _BUDGETS.items()
}
TARGET_RUNS["tennis7"]["mini, 64 px"] = TARGET_RUNS["tennis7"]["mini"] | {"model.size": 64}
for _dataset, _steps in _LONGER.items():
    TARGET_RUNS[_dataset] |= {
        f"{_name}, longer": TARGET_RUNS[_dataset][_name] | {"steps": _steps} for _name in ("mini", "conv3d")
    }


@dataclass(frozen=True)
class Job:
    """One run. `dataset`: its set. `changes`: dotted key of a recipe -> value. `folds` of 0: the set's own split."""

    plan: str
    dataset: str
    factor: str
    seed: int
    changes: dict[str, Any]
    folds: int = 0
    fold: int = 0

    @property
    def key(self) -> str:
        """The identity of a run. A run with other changes is another run."""
        return json.dumps(asdict(self), sort_keys=True)


def factor_jobs(sets: list[str], factors: list[str], seeds: list[int]) -> Iterator[Job]:
    """The runs of the plan `factors`: for each set, all factors of the first seed, then of the next."""
    for seed, dataset, factor in itertools.product(seeds, sets, factors):
        base, change = FACTOR_RUNS[dataset], dict(FACTORS[factor])
        change |= {key: round(base[key] * change[key]) for key in ("steps", "batch") if key in change}
        yield Job("factors", dataset, factor, seed, base | change)


def target_jobs(sets: list[str], factors: list[str], seeds: list[int]) -> Iterator[Job]:
    """The runs of the plan `targets`: for each seed and set, every fold of every setting."""
    for seed, dataset in itertools.product(seeds, sets):
        folds = FOLDS.get(dataset, 0)
        for factor, changes in TARGET_RUNS[dataset].items():
            for fold in range(max(1, folds)) if not factors or factor in factors else ():
                yield Job("targets", dataset, factor, seed, changes, folds, fold)


def initial_values(which: str | None) -> ExitStack:
    """A context in which a network gets one of the initial values of earlier versions."""
    stack = ExitStack()
    if which and "scale" in which:
        stack.enter_context(patch.object(network, "initialise_by_width", _one_scale))
    if which and "heads" in which:
        stack.enter_context(patch.object(network, "HEAD_STD", 0.0))
    return stack


def _one_scale(model: nn.Module) -> None:
    """A truncated normal distribution of deviation 0.02 for all widths, as in ViT."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def recipe_tree(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections of a recipe from dotted keys."""
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = {**place.get(last, {}), **value} if isinstance(value, dict) else value
    return tree


def run(job: Job, catalog: Path, folder: Path) -> dict[str, Any]:
    """Train and measure one job in `folder`, which is removed afterwards; returns its line."""
    changes = dict(job.changes)
    initial, crops = changes.pop("initial", None), changes.pop("crop_scale", None)
    entry, split = entry_of(catalog, job.dataset, job.folds, job.fold, folder.parent / "folds")
    entry |= {"crop_scale": crops} if crops else {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    own_catalog, recipe_file = folder / "catalog.yaml", folder / "recipe.yaml"
    own_catalog.write_text(yaml.safe_dump({job.dataset: entry}), encoding="utf-8")
    fixed = {"out": str(folder / "run"), "seed": job.seed, "workers": 0, "evaluate_every": -1}
    fixed |= {"data.catalog": str(own_catalog), "data.sets": [job.dataset]}
    recipe_file.write_text(yaml.safe_dump(recipe_tree(changes | fixed)), encoding="utf-8")
    recipe, began = config.load(Recipe, recipe_file), time.perf_counter()
    with initial_values(initial):
        trained = train(recipe)
    seconds = time.perf_counter() - began
    (result,) = evaluate_release(trained, own_catalog, split, [job.dataset], None, ["plain"], "cpu", 0, 0)
    measured = {key: result[key] for key in ("split", "views", "frames", "top1", "n_read", "n_listed", "classes")}
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    loss = next((line["loss"] for line in reversed(log) if "loss" in line), None)
    shutil.rmtree(folder)
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    return {**asdict(job), **measured, "loss": loss, "seconds": round(seconds, 1), **machine}


def finished(file: Path) -> list[dict[str, Any]]:
    """The lines of all finished runs."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def key_of(line: Mapping[str, Any]) -> str:
    """The identity of the run of a line."""
    return Job(**{name: line[name] for name in Job.__dataclass_fields__}).key


def table(lines: list[dict[str, Any]]) -> list[list[str]]:
    """One row for each plan, set and factor with the same changes: top-1 over all folds, mean and interval of seeds."""
    groups: dict[tuple[str, str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        groups[line["plan"], line["dataset"], line["factor"], json.dumps(line["changes"])].append(line)
    rows = []
    for (plan, dataset, factor, _), own in groups.items():
        by_seed: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for line in own:
            by_seed[line["seed"]].append(line)
        complete = [runs for runs in by_seed.values() if len(runs) == max(1, runs[0]["folds"])]
        if complete:
            values = [
                100 * sum(r["top1"] * r["n_read"] for r in runs) / sum(r["n_read"] for r in runs) for runs in complete
            ]
            count = sum(line["n_read"] for line in complete[0])
            minutes = statistics.fmean(line["seconds"] for line in own) / 60
            rows.append([plan, dataset, factor, *_interval(values), str(count), f"{minutes:.1f}"])
    return rows


def _interval(values: list[float]) -> list[str]:
    """The mean, its 95 % interval by Student's t (empty for one seed), and the values."""
    mean, low_high = statistics.fmean(values), ""
    if len(values) > 1:
        half = T_975[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
        low_high = f"{mean - half:.1f} to {mean + half:.1f}"
    return [f"{mean:.1f}", low_high, ", ".join(f"{value:.1f}" for value in values)]


def generated_catalog(out: Path, workers: int) -> dict[str, Path]:
    """The generated set of motions, written and indexed once."""
    catalog = out / "sandbox" / "catalog.yaml"
    if not catalog.is_file():
        few = (1, 1)  # files of the other sets, which are raised to one for each class
        generate(out / "sandbox", Settings(kinetics=few, moments=few, imagenet=few), workers)
        index(catalog, workers, [GENERATED])
    return {GENERATED: catalog}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real sets (default: generated motions alone)")
    parser.add_argument("--plan", choices=("factors", "targets"), default="factors")
    parser.add_argument("--only", nargs="*", default=[], metavar="SET", help="sets (default: all of the plan)")
    parser.add_argument(
        "--factors", nargs="*", default=[], metavar="FACTOR", help="settings (default: all with --data)"
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], metavar="SEED")
    parser.add_argument("--folds", nargs="*", type=int, default=[], metavar="FOLD", help="folds (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare the data; training has none")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table")
    args = parser.parse_args()
    log = args.out / "learning.jsonl"
    if not args.table:
        catalogs = real_catalogs(args.data, args.out / "real", args.workers) if args.data else {}
        if not args.only or GENERATED in args.only:
            catalogs |= generated_catalog(args.out, args.workers)
        measure(jobs_of(args, list(catalogs)), catalogs, args.out, log)
    columns = ["plan", "set", "setting", "top-1, %", "95 % interval", "seeds", "samples", "minutes a run"]
    show("Learning from random weights", columns, table(finished(log)))


def jobs_of(args: argparse.Namespace, available: list[str]) -> list[Job]:
    """The runs that the arguments ask for, of the sets that there are."""
    runs = FACTOR_RUNS if args.plan == "factors" else TARGET_RUNS
    sets = [name for name in runs if name in (args.only or available) and name in available]
    if args.plan == "targets":
        jobs = list(target_jobs(sets, args.factors, args.seeds))
        return [job for job in jobs if not args.folds or job.fold in args.folds]
    # `make bench` has no real sets, and not the hours that all settings take.
    usual = list(FACTORS) if args.data else ["base", "motion frames"]
    return list(factor_jobs(sets, args.factors or usual, args.seeds))


def measure(jobs: list[Job], catalogs: Mapping[str, Path], out: Path, log: Path) -> None:
    """Run the jobs that `log` does not have yet, and append a line for each."""
    done = {key_of(line) for line in finished(log)}
    for number, job in enumerate(jobs, 1):
        if job.key in done:
            continue
        say(f"run {number} of {len(jobs)}: {job.dataset}, {job.factor}, seed {job.seed}, fold {job.fold}")
        line = run(job, catalogs[job.dataset], out / "current")
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        say(f"top-1 {line['top1']:.1%} of {line['n_read']} after {line['seconds']:.0f} s, loss {line['loss']}")


if __name__ == "__main__":
    main()
