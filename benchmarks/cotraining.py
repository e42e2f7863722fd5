"""Co-training against training alone, of one recipe: top-1 on a split of every data set, beside the baselines.

    python benchmarks/cotraining.py real/catalog.yaml                       # recipes/real/from_start.yaml, seed 0
    python benchmarks/cotraining.py CATALOG --recipe RECIPE --seeds 0 1 2 --split test

For each seed the recipe is trained as it is, and then with each of its data sets alone, with as many samples of that
set as in the first run. Runs are in OUT and are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from _measure import show, write

from cover.console import say
from cover.evaluation.baselines import figures
from cover.evaluation.evaluate import evaluate_release
from cover.mixture.mixture import Mixture
from cover.training.recipe import Recipe, read_recipe
from cover.training.resume import has_started
from cover.training.train import train

RECIPE = Path(__file__).parents[1] / "recipes/real/from_start.yaml"
COTRAINED = "co-trained"
RESOLVED = "recipe.yaml"  # in the folder of a run
TOGETHER = "all"  # folder of the co-trained run


def recipes(base: Recipe, out: Path) -> dict[str, Recipe]:
    """`COTRAINED` or the name of a data set -> the recipe of its run."""
    mixture = Mixture.open(base.data)
    drawn = mixture.schedule(base.batch, seed=base.seed).drawn(base.step_count)
    rows = {COTRAINED: replace(base, out=str(out / TOGETHER))}
    for name in base.data.sets:
        data = replace(base.data, sets=[name], weights={}, epochs={}, loss_weights={}, balance={}, class_weights={})
        rows[name] = replace(base, out=str(out / name), data=data, steps=max(1, round(drawn[name] / base.batch)))
    return rows


def top1(run: Path, catalog: Path, split: str, names: Sequence[str], baselines: bool) -> dict[str, dict[str, Any]]:
    """Data set -> its plain result. It is stored beside the run and not measured again."""
    stored = run / f"results_{split}.json"
    if not stored.is_file():
        cached = "" if read_recipe(run / RESOLVED).cache.stages else None
        results = evaluate_release(
            run, catalog, split, names, None, ["plain"], "cpu", 2, 0, cache=cached, with_baselines=baselines
        )
        stored.write_text(json.dumps(results), encoding="utf-8")
    return {row["dataset"]: row for row in json.loads(stored.read_text(encoding="utf-8"))}


def measure(base: Recipe, out: Path, split: str) -> dict[str, dict[str, Any]]:
    """Data set -> `{cotrained, alone, samples, baselines, n}` of one seed."""
    measured: dict[str, dict[str, Any]] = {}
    for name, recipe in recipes(base, out).items():
        say(f"== {name}, seed {recipe.seed}, {recipe.steps} steps")
        run = train(recipe, resume=has_started(Path(recipe.out)))
        measured[name] = top1(run, Path(base.data.catalog), split, recipe.data.sets, name == COTRAINED)
    rows = {}
    for name in base.data.sets:
        together, alone = measured[COTRAINED][name], measured[name][name]
        rows[name] = {
            "cotrained": together["top1"],
            "alone": alone["top1"],
            "interval": together["top1_interval"],
            "n": together["n_read"],
            "baselines": together["baselines"],
        }
    return rows


def table(by_seed: dict[int, dict[str, dict[str, Any]]]) -> list[list[str]]:
    """A row for each data set: means over seeds, and the baselines."""
    rows = []
    for name, first in next(iter(by_seed.values())).items():
        values = {key: [100 * rows_of[name][key] for rows_of in by_seed.values()] for key in ("cotrained", "alone")}
        gains = [ours - theirs for ours, theirs in zip(values["cotrained"], values["alone"], strict=True)]
        spread = f" (seeds {min(gains):+.1f} to {max(gains):+.1f})" if len(gains) > 1 else ""
        cells = [f"{statistics.fmean(values[key]):.1f}" for key in ("cotrained", "alone")]
        behind = ", ".join(first["baselines"]["behind"]) or "none"
        gain = f"{statistics.fmean(gains):+.1f}{spread}"
        rows.append([name, str(first["n"]), *cells, gain, *figures(first["baselines"]), behind])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", nargs="?", default="real/catalog.yaml")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], metavar="SEED")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, default=Path("runs/cotraining"))
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if not Path(args.catalog).is_file():
        return say(f"{args.catalog}: is not there; {RECIPE} describes it")
    fixed = ["--data.catalog", args.catalog, "--workers", "0", "--evaluate_every", "-1"]
    base = read_recipe(args.recipe, fixed)
    by_seed = {seed: measure(replace(base, seed=seed), args.out / f"seed{seed}", args.split) for seed in args.seeds}
    ladder = ["chance", "most frequent", "thumbnail", "motion", "frozen"]
    columns = ["data set", "samples", "co-trained", "alone", "gain, points", *ladder, "not above"]
    show(f"top-1 on {args.split}, %, seeds {args.seeds}", columns, table(by_seed))
    return write(by_seed, args.json)


if __name__ == "__main__":
    main()
