"""Baselines: the accuracies that trivial methods reach on the split on which a model is evaluated.

They are fitted to the train split only. A trained model that is not above them has not learned what its network is for.

`chance`: 1 / classes. `prior`: the most frequent class of the train split. `thumbnail`: a linear classifier of the
middle frame at 12 x 16 pixels. `motion` (videos only): a linear classifier of the differences of 16 frames.
`baseline_features` defines both features.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cover.console import print_table, say
from cover.datasets.catalog import Catalog
from cover.datasets.exclusions import excluded_rows
from cover.datasets.manifest import Manifest
from cover.errors import UserError
from cover.evaluation.baseline_features import SampleFeatures, features_of
from cover.evaluation.statistics import proportion
from cover.model.starts.known import KNOWN

RUNGS = ("prior", "thumbnail", "motion")  # from the simplest on
TITLES = {"chance": "chance", "prior": "most frequent class", "thumbnail": "thumbnail", "motion": "motion"}
# Inverse strength of the L2 penalty on standardised features. It is one value for all data sets, so nothing is chosen
# on the data that are evaluated. docs/baselines.md says how it was chosen.
C = 0.01
MOST_ITERATIONS = 2000  # of L-BFGS; a fit on some thousands of samples needs 20 to 300
MOST_TRAIN, MOST_EVALUATED = 5000, 5000  # rows that are read at most
SAMPLE_SEED = 0  # of the sample of a larger split, whatever the seed of the evaluation

SUGGESTED, LEAST_SUGGESTED = 4, 1000  # times as many steps as a model has, and at least so many, are suggested

Labels = npt.NDArray[np.int64]


# --- rows -------------------------------------------------------------------------------------------------------------


def sample_rows(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """At most `most` of `rows`, ascending; always the same ones for the same rows."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(SAMPLE_SEED).choice(rows, most, replace=False))


def sample_by_class(rows: npt.NDArray[np.int64], labels: Labels, most: int) -> tuple[npt.NDArray[np.int64], int | None]:
    """At most `most` of `rows`, with at most K rows of a class, and K; all rows and None if there are not more.

    `labels`: int64 `(len(rows),)`. K is the largest number that keeps the sample within `most`, and at least 1.
    """
    if len(rows) <= most:
        return rows, None
    counts = np.bincount(labels)
    each = max(1, next(k for k in range(int(counts.max()), -1, -1) if np.minimum(counts, k).sum() <= most))
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(rows))
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    starts = np.searchsorted(shuffled[by_class], np.arange(len(counts)))
    place = np.arange(len(rows)) - starts[shuffled[by_class]]  # of a row among those of its class
    return np.sort(rows[order[by_class[place < each]]]), each


# --- fitting ----------------------------------------------------------------------------------------------------------


def most_frequent(labels: Labels) -> int:
    """The most frequent class; the first of those that are equally frequent."""
    return int(np.bincount(labels).argmax())


def fit_and_predict(
    train: npt.NDArray[np.float32], labels: Labels, evaluated: npt.NDArray[np.float32]
) -> tuple[Labels, bool]:
    """The classes that logistic regression predicts for `evaluated` `(M, D)`, and whether its fit converged.

    `train`: `(N, D)` with `labels` int64 `(N,)`. Features are standardised by the mean and deviation of `train`.
    """
    # imported here, because it takes a second
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(labels)) < 2:
        return np.full(len(evaluated), labels[0]), True
    scaler = StandardScaler().fit(train.astype(np.float64))
    model = LogisticRegression(C=C, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result says it
        model.fit(scaler.transform(train.astype(np.float64)), labels)
    predicted: Labels = model.predict(scaler.transform(evaluated.astype(np.float64)))
    return predicted, bool(model.n_iter_.max() < MOST_ITERATIONS)


# --- the baselines of one split ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Split:
    """The samples of a split that are used, with labels int64 `(N,)`, and their features."""

    manifest: Manifest
    features: SampleFeatures
    labels: Labels


def baselines(
    catalog: Catalog,
    name: str,
    split: str,
    workers: int,
    seed: int = 0,
    rows: npt.NDArray[np.int64] | None = None,
    relabel: npt.NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """The baselines of a split of a data set, as plain data.

    `rows`: int64, the manifest rows that the model was evaluated on (default: all usable ones). `relabel`: int64
    `(classes,)`, the index of each class among the evaluated ones, -1 for a class that is not evaluated. `seed`: of the
    bootstrap. `workers`: processes that read files, 0 for none.

    Returns `chance`; for each of `RUNGS` that applies `{top1, low, high, converged}` with its interval over sources;
    `train_rows`, `train_rows_per_class` (the limit of a class in a sample of a large split, else null), `n` of
    `n_evaluated` rows, and `unreadable`, the numbers of rows that could not be read. If only chance is known, `why_not`
    has the reason.
    """
    manifest = catalog.manifest(name, split)
    relabel = np.arange(len(manifest.classes.names)) if relabel is None else np.asarray(relabel, np.int64)
    many = manifest.classes.many
    result: dict[str, Any] = {"chance": None if many else 1 / int((relabel >= 0).sum()), "why_not": ""}
    evaluated = manifest.usable if rows is None else np.sort(np.asarray(rows, np.int64))
    try:
        train = _train_manifest(catalog, name, split, manifest)
    except UserError as error:
        return {**result, "why_not": str(error)}
    evaluated = evaluated[relabel[manifest.labels[evaluated]] >= 0]
    fitted = train.usable[relabel[train.labels[train.usable]] >= 0]
    if not len(evaluated) or not len(fitted):
        return {**result, "why_not": "no readable sample to fit or to evaluate"}
    fitted, limit = sample_by_class(fitted, relabel[train.labels[fitted]], MOST_TRAIN)
    ours = _open_split(train, fitted, relabel, workers)
    theirs = _open_split(manifest, sample_rows(evaluated, MOST_EVALUATED), relabel, workers)
    facts = {
        "train_rows": len(ours.labels),
        "train_rows_per_class": limit,
        "n": len(theirs.labels),
        "n_evaluated": len(evaluated),
        "unreadable": {"train": len(ours.features.unreadable), split: len(theirs.features.unreadable)},
    }
    if not len(ours.labels) or not len(theirs.labels):
        return {**result, **facts, "why_not": "no readable sample to fit or to evaluate"}
    return {**result, **_rungs(ours, theirs, seed), **facts}


def _train_manifest(catalog: Catalog, name: str, split: str, manifest: Manifest) -> Manifest:
    """The train split, without the rows that `cover overlap` excludes. Raises UserError if there is nothing to fit."""
    if manifest.classes.many:
        raise UserError("several classes a sample: the baselines are for sets of one class a sample")
    if split == "train":
        raise UserError("the baselines are fitted to train, so they cannot be measured on it")
    if "train" not in catalog.spec(name).splits:
        raise UserError("no train split, to which the baselines could be fitted")
    path = catalog.manifest_path(name, "train")
    excluded = excluded_rows(catalog, [name]) if path.is_file() else None
    train = catalog.manifest(name, "train", excluded[name] if excluded else None)
    if train.classes.names != manifest.classes.names:
        raise UserError(f"{path.name} has other classes than {manifest.path.name}")
    return train


def _open_split(manifest: Manifest, rows: npt.NDArray[np.int64], relabel: Labels, workers: int) -> _Split:
    features = features_of(manifest, rows, workers)
    return _Split(manifest, features, relabel[manifest.labels[features.rows]])


def _rungs(train: _Split, evaluated: _Split, seed: int) -> dict[str, Any]:
    predictions = {"prior": (np.full(len(evaluated.labels), most_frequent(train.labels)), True)}
    for name, column in train.features.values.items():
        predictions[name] = fit_and_predict(column, train.labels, evaluated.features.values[name])
    sources = evaluated.manifest.sources(evaluated.features.rows)
    rungs = {}
    for name, (predicted, converged) in predictions.items():
        accuracy = proportion(predicted == evaluated.labels, sources, seed)
        values = {"top1": accuracy.value, "low": accuracy.low, "high": accuracy.high}
        rungs[name] = {**values, "converged": converged}
    return rungs


# --- a model against the baselines ------------------------------------------------------------------------------------


def shortfalls(found: Mapping[str, Any], top1: float, low: float) -> list[str]:
    """The baselines that a model with the accuracy `top1` is not above, by their names.

    `low`: the lower end of its interval, which has to be above chance. Another baseline counts if its accuracy is
    higher than `top1`.
    """
    names = ["chance"] if found["chance"] is not None and low <= found["chance"] else []
    return names + [name for name in RUNGS if name in found and found[name]["top1"] > top1]


def figures(found: Mapping[str, Any]) -> list[str]:
    """Chance and each of `RUNGS` as texts in per cent with their intervals, `-` for those that do not apply."""
    chance = "-" if found["chance"] is None else f"{found['chance']:.1%}"
    return [chance, *(_with_interval(found[name]) if name in found else "-" for name in RUNGS)]


def _with_interval(rung: Mapping[str, Any]) -> str:
    text = f"{rung['top1']:.1%} ({rung['low']:.1%} to {rung['high']:.1%})"
    return text if rung["converged"] else f"{text}, fit stopped early"


def sizes(found: Mapping[str, Any]) -> str:
    """The numbers of samples behind the baselines, or the reason why there are none."""
    if found["why_not"]:
        return str(found["why_not"])
    limit = found["train_rows_per_class"]
    train = f"{found['train_rows']:,}" + ("" if limit is None else f", at most {limit} of a class")
    some = found["n"] < found["n_evaluated"]
    evaluated = f"{found['n']:,}" + (f" of {found['n_evaluated']:,}" if some else "")
    lost = sum(found["unreadable"].values())
    return f"{train}; {evaluated}" + (f"; {lost} unreadable" if lost else "")


def standing(names: Sequence[str]) -> str:
    """The result of `shortfalls` as text; empty if there are none."""
    others = [TITLES[name] for name in names if name != "chance"]
    parts = ["not above chance"] if "chance" in names else []
    return ", ".join([*parts, *([f"below {' and '.join(others)}"] if others else [])])


def advice(name: str, names: Sequence[str], catalog: Path, step: int | None) -> str:
    """One line about a model that is not above the baselines `names`: the likely causes, and commands to try."""
    few = "too few steps" + (f" (it has {step:,})" if step else "")
    more = ["cover", "train", "RECIPE", "--steps", str(max(LEAST_SUGGESTED, SUGGESTED * (step or 0)))]
    # A start that is installed can be typed as it is.
    start = next((each.name for each in KNOWN if each.weights() is not None), "START")
    add = ["cover", "add", start, "--data", name, "--catalog", str(catalog)]
    causes = f"likely causes: {few}, or no start from trained weights"
    return f"{name}: {standing(names)}; {causes}; try {shlex.join(add)}, or {shlex.join(more)}"


def print_baselines(results: Sequence[dict[str, Any]]) -> None:
    """Print what trivial methods reach on the same samples, a row for each data set and checkpoint with `baselines`.

    A model that is not above them is named on stderr, with the likely causes.
    """
    compared = [row for row in results if row.get("baselines")]
    if not compared:
        return
    several = len({row["checkpoint"] for row in compared}) > 1
    titles = [*["checkpoint"] * several, "trivial methods", *TITLES.values(), "trained; measured on", "the model"]
    rows = []
    for row in compared:
        found = row["baselines"]
        model = standing(found["behind"]) or ("above all" if "prior" in found else "")
        names = [*[row["checkpoint"]] * several, f"{row['dataset']} {row['split']}"]
        rows.append([*names, *figures(found), sizes(found), model])
    print()
    print_table(titles, rows)
    for row in compared:
        if behind := row["baselines"]["behind"]:
            say(advice(row["dataset"], behind, Path(row["catalog"]), row["step"]))
