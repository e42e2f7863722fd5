"""Which rule for the rates of small data sets beside large ones? One recipe, trained with each rule.

    python benchmarks/rates.py real/catalog.yaml                        # recipes/studies/real_start.yaml's network
    python benchmarks/rates.py CATALOG --seeds 0 1 2 --steps 500

All runs have as many samples. `alpha 1` is in proportion to size, `alpha 0` equally many of each data set, and
`epochs` gives every video set the same number of epochs, and every image set the same smaller number. The answers to
all clips of all runs go into the file of `--json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measure import show, write

from cover import config
from cover.console import say
from cover.datasets.catalog import load_catalog
from cover.distributed import ProcessGroup
from cover.evaluation.answers import Answers
from cover.evaluation.cached_views import trained_cache
from cover.evaluation.evaluate import evaluate
from cover.evaluation.protocol import find_tasks
from cover.evaluation.statistics import difference, judge, proportion
from cover.experiments.run_files import read_result, write_result
from cover.experiments.study.arms import base_recipe
from cover.experiments.study.study_file import Study
from cover.mixture.mixture import Mixture
from cover.mixture.rates import Data
from cover.model.release import find_release, load_release
from cover.training.recipe import Recipe, Start
from cover.training.resume import has_started
from cover.training.train import train

STUDY = Path(__file__).parents[1] / "recipes/studies/real_start.yaml"
ARTICLE = "alpha 1"  # the rule that the others are compared with
VIDEO_EPOCHS, IMAGE_EPOCHS = 24.0, 1.0  # of the rule `epochs`: their ratio counts, as all runs have as many samples
SetAnswers = dict[str, dict[str, list[Any]]]  # data set -> ids, sources, right


def rules(study: Study) -> dict[str, Data]:
    """Rule -> the section `data` of its recipe."""
    names = [*study.videos, *study.images]
    data = Data(names, study.catalog, study.frames)
    epochs = {name: VIDEO_EPOCHS if name in study.videos else IMAGE_EPOCHS for name in names}
    by_size = {f"alpha {alpha:g}": replace(data, alpha=alpha) for alpha in (1.0, 0.5, 0.0)}
    return {**by_size, "epochs": replace(data, epochs=epochs)}


def recipe_of(study: Study, data: Data, steps: int, seed: int, out: Path) -> Recipe:
    """The recipe of one run: the network, start and cache of the study, on the data sets' own training splits."""
    (origin,) = study.origins.values()
    base = base_recipe(study, seed, study.lrs[0])
    start = Start(origin.checkpoint, origin.temporal)
    return replace(base, data=data, out=str(out), steps=steps, start=start, evaluate_every=-1, save_every=steps)


def answers(run: Path, catalog: Path, split: str, names: list[str]) -> SetAnswers:
    """The answers of a finished run to every sample of `split`. They are stored beside it and not computed again."""
    stored = run / f"answers_{split}.json"
    known = read_result(stored)
    if known is None:
        model = load_release(find_release(run))
        prefix = trained_cache(model, ProcessGroup(torch.device("cpu")), "")
        known = {}
        for task in find_tasks(load_catalog(catalog), model, model.frames, split, names):
            given: list[Answers] = []
            evaluate(model, task, torch.device("cpu"), 0, prefix=prefix, answers=given)
            (own,) = given
            rows = [task.manifest.row(number) for number in own.rows]
            known[task.spec.name] = {
                "ids": [row.sample_id for row in rows],
                "sources": [row.group_id for row in rows],
                "right": [ours == truth for ours, truth in zip(own.predicted, own.truth, strict=True)],
            }
        write_result(known, stored)
    return known


def measure(study: Study, steps: int, seeds: list[int], split: str) -> dict[str, Any]:
    """`{epochs: rule -> set -> epochs drawn, answers: rule -> answers by seed}`."""
    drawn: dict[str, dict[str, float]] = {}
    found: dict[str, list[SetAnswers]] = {}
    for rule, data in rules(study).items():
        mixture = Mixture.open(data, load_catalog(study.catalog))
        seen = mixture.schedule(study.batch, seed=seeds[0]).drawn(steps)
        drawn[rule] = {each.name: seen[each.name] / len(each.rows) for each in mixture.datasets}
        for seed in seeds:
            run = Path(study.out) / f"{rule.replace(' ', '')}.s{seed}"
            say(f"== {rule}, seed {seed}")
            train(recipe_of(study, data, steps, seed, run), resume=has_started(run))
            found.setdefault(rule, []).append(answers(run, Path(study.catalog), split, data.sets))
    return {"epochs": drawn, "answers": found}


def stacked(by_seed: list[SetAnswers], name: str) -> tuple[np.ndarray, list[str]]:
    """bool `(seeds, N)`, whether each answer is right, and the sources of the N samples."""
    first = by_seed[0][name]
    assert all(each[name]["ids"] == first["ids"] for each in by_seed), "all runs answer the same samples"
    return np.array([each[name]["right"] for each in by_seed]), first["sources"]


def table(measured: Mapping[str, Any], names: list[str], margin: float) -> list[list[str]]:
    """A row for each data set and rule: epochs, accuracy, and the difference from `ARTICLE` with Holm's p."""
    rows = []
    others = [rule for rule in measured["answers"] if rule != ARTICLE]
    differences = {}
    for name in names:
        theirs, sources = stacked(measured["answers"][ARTICLE], name)
        for rule in others:
            differences[f"{rule}|{name}"] = difference(stacked(measured["answers"][rule], name)[0], theirs, sources)
    # All comparisons are one family.
    judged = judge(differences, margin)
    for name in names:
        for rule in (ARTICLE, *others):
            right, sources = stacked(measured["answers"][rule], name)
            accuracy, epochs = proportion(right, sources), measured["epochs"][rule][name]
            cells = [name, rule, f"{epochs:.1f}", f"{100 * accuracy.value:.1f}"]
            if rule == ARTICLE:
                rows.append([*cells, "", "", ""])
                continue
            gain, (p, verdict) = differences[f"{rule}|{name}"], judged[f"{rule}|{name}"]
            between = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
            rows.append([*cells, between, f"{p:.3f}", verdict])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog", nargs="?", default="real/catalog.yaml")
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4], metavar="SEED")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", default="runs/rates")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    study = replace(config.load(Study, args.study), catalog=args.catalog, out=args.out)
    measured = measure(study, args.steps, args.seeds, args.split)
    columns = ["data set", "rule", "epochs", "top-1, %", f"against {ARTICLE}, points", "p, Holm", "verdict"]
    rows = table(measured, [*study.videos, *study.images], study.margin)
    show(f"top-1 on {args.split}, seeds {args.seeds}, {args.steps} steps of {study.batch}", columns, rows)
    write(measured, args.json)


if __name__ == "__main__":
    main()
