"""Baselines: the accuracies that trivial methods reach on the split on which a model is evaluated.

They are fitted to the train split only. A trained model that is not above them has not learned what its network is for.

`chance`: 1 / classes. `prior`: the most frequent class of the train split. `thumbnail`: a linear classifier of the
middle frame at 12 x 16 pixels. `motion` (videos only): a linear classifier of the differences of 16 frames. `frozen`
(where its package is installed): a linear classifier of what an ImageNet network with frozen weights makes of 4 frames
of a video, or of an image. `baseline_features` and `start_features` define the features.
"""

from __future__ import annotations

import shlex
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cover.console import print_table, say
from cover.datasets.catalog import Catalog
from cover.datasets.exclusions import excluded_rows
from cover.datasets.manifest import Manifest
from cover.errors import UserError
from cover.evaluation.baseline_features import EXTRACTORS, Extractor, features_of
from cover.evaluation.start_features import START, start_features, start_is_installed
from cover.evaluation.statistics import proportion, with_interval
from cover.model.starts.known import KNOWN

RUNGS = ("prior", "thumbnail", "motion", "frozen")  # from the simplest on
TITLES = {
    "chance": "chance",
    "prior": "most frequent class",
    "thumbnail": "thumbnail",
    "motion": "motion",
    "frozen": f"frozen {START}",
}
# Inverse strength of the L2 penalty on standardised features. It is one value for all data sets, so nothing is chosen
# on the data that are evaluated. docs/baselines.md says how it was chosen.
C = 0.01
MOST_ITERATIONS = 2000  # of L-BFGS; a fit on some thousands of samples needs 20 to 300
MOST_TRAIN, MOST_EVALUATED = 5000, 5000  # rows that are read at most
MOST_FROZEN = 2000  # rows of each split from which a network computes features, which takes longer
START_FEATURES: tuple[Extractor, ...] = (start_features,)
SAMPLE_SEED = 0  # of the sample of a larger split, whatever the seed of the evaluation

SUGGESTED, LEAST_SUGGESTED = 4, 1000  # times as many steps as a model has, and at least so many, are suggested

Labels = npt.NDArray[np.int64]
Float = TypeVar("Float", np.float32, np.float64)


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
    x, basis = in_own_span(scaler.transform(train.astype(np.float64)))
    model = LogisticRegression(C=C, max_iter=MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result says it
        model.fit(x, labels)
    y = scaler.transform(evaluated.astype(np.float64))
    predicted: Labels = model.predict(y if basis is None else y @ basis.T)
    return predicted, bool(model.n_iter_.max() < MOST_ITERATIONS)


def in_own_span(x: npt.NDArray[Float]) -> tuple[npt.NDArray[Float], npt.NDArray[Float] | None]:
    """Inputs `(n, D)` in a basis `(n, D)` of their own span, if n < D, so that a fit has n columns and not D.

    The best weights of a problem with an L2 penalty lie in the span of its inputs, and a rotation changes no penalty.
    """
    if x.shape[0] >= x.shape[1]:
        return x, None
    u, sizes, basis = np.linalg.svd(x, full_matrices=False)
    return u * sizes, basis


# --- the baselines of one split ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """The readable samples that a baseline is fitted to or measured on.

    `rows`: int64 `(N,)`, their rows in the manifest. `values`: name of a feature -> float32 `(N, D)`. `labels`: int64
    `(N,)`. `sources`: int64 `(N,)`, equal for samples of one source. `unreadable`: the number of samples that could not
    be read.
    """

    rows: npt.NDArray[np.int64]
    values: Mapping[str, npt.NDArray[np.float32]]
    labels: Labels
    sources: npt.NDArray[np.int64]
    unreadable: int = 0

    def of(self, chosen: npt.NDArray[np.bool_]) -> Samples:
        """The samples where `chosen` `(N,)` is true. Unreadable ones are not counted."""
        values = {name: column[chosen] for name, column in self.values.items()}
        return Samples(self.rows[chosen], values, self.labels[chosen], self.sources[chosen])


def baselines(
    catalog: Catalog,
    name: str,
    split: str,
    workers: int,
    rows: npt.NDArray[np.int64] | None = None,
    relabel: npt.NDArray[np.int64] | None = None,
    frozen: bool = True,
) -> dict[str, Any]:
    """The baselines of a split of a data set, as plain data.

    `rows`: int64, the manifest rows that the model was evaluated on (default: all usable ones). `relabel`: int64
    `(classes,)`, the index of each class among the evaluated ones, -1 for a class that is not evaluated.
    `workers`: processes that read files, 0 for none. `frozen`: whether the baseline of this name, which takes longest,
    is among them if its package is installed.

    Returns `chance`; for each of `RUNGS` that applies `{top1, low, high, converged}` with its interval over sources;
    `train_rows`, `train_rows_per_class` (the limit of a class in a sample of a large split, else null), `n` of
    `n_evaluated` rows, and `unreadable`, the numbers of rows that could not be read. `frozen` has its own `train_rows`
    and `n`. If only chance is known, `why_not` has the reason.
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
    usable = train.usable[relabel[train.labels[train.usable]] >= 0]
    if not len(evaluated) or not len(usable):
        return {**result, "why_not": "no readable sample to fit or to evaluate"}
    fitted, limit = sample_by_class(usable, relabel[train.labels[usable]], MOST_TRAIN)
    ours = _read(train, fitted, relabel, workers)
    theirs = _read(manifest, sample_rows(evaluated, MOST_EVALUATED), relabel, workers)
    facts = {
        "train_rows": len(ours.labels),
        "train_rows_per_class": limit,
        "n": len(theirs.labels),
        "n_evaluated": len(evaluated),
        "unreadable": {"train": ours.unreadable, split: theirs.unreadable},
    }
    if not len(ours.labels) or not len(theirs.labels):
        return {**result, **facts, "why_not": "no readable sample to fit or to evaluate"}
    rungs = _rungs([(ours, theirs)])
    if frozen and start_is_installed():
        fitted, _ = sample_by_class(usable, relabel[train.labels[usable]], MOST_FROZEN)
        ours = _read(train, fitted, relabel, workers, START_FEATURES)
        theirs = _read(manifest, sample_rows(evaluated, MOST_FROZEN), relabel, workers, START_FEATURES)
        if len(ours.labels) and len(theirs.labels):
            sizes_of = {"train_rows": len(ours.labels), "n": len(theirs.labels)}
            rungs["frozen"] = {**_rungs([(ours, theirs)])["frozen"], **sizes_of}
    return {**result, **rungs, **facts}


def fold_baselines(
    manifest: Manifest, folds: Sequence[npt.NDArray[np.int64]], workers: int, frozen: bool = True
) -> dict[str, Any]:
    """The baselines over folds: each fold is predicted by classifiers that are fitted to all the others.

    `manifest`: of all samples, with one class each. `folds`: int64, the rows of each fold. Returns the same as
    `baselines`, with `folds`, their number. Of a set with more than 5,000 samples only chance is known.
    """
    count = len(manifest.classes.names)
    result: dict[str, Any] = {"chance": 1 / count, "why_not": "", "folds": len(folds)}
    rows = np.intersect1d(manifest.usable, np.concatenate(folds))
    if len(rows) > MOST_TRAIN:
        return {**result, "why_not": f"more than {MOST_TRAIN:,} samples in folds"}
    relabel = np.arange(count)
    samples = _read(manifest, rows, relabel, workers)
    if not len(samples.labels):
        return {**result, "why_not": "no readable sample to fit or to evaluate"}
    rungs = _rungs(_by_fold(samples, folds))
    if frozen and start_is_installed() and len(rows) <= MOST_FROZEN:
        features = _read(manifest, rows, relabel, workers, START_FEATURES)
        rungs["frozen"] = _rungs(_by_fold(features, folds))["frozen"]
    facts = {"n": len(samples.labels), "n_evaluated": len(rows), "unreadable": {"all": samples.unreadable}}
    return {**result, **rungs, **facts}


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


def _by_fold(samples: Samples, folds: Sequence[npt.NDArray[np.int64]]) -> list[tuple[Samples, Samples]]:
    """For each fold the samples of all others, and its own. Folds without readable samples are left out."""
    inside = [np.isin(samples.rows, fold) for fold in folds]
    return [(samples.of(~own), samples.of(own)) for own in inside if own.any() and not own.all()]


def _read(
    manifest: Manifest,
    rows: npt.NDArray[np.int64],
    relabel: Labels,
    workers: int,
    extractors: Sequence[Extractor] = EXTRACTORS,
) -> Samples:
    """The features of `rows` (int64, ascending), and their labels after `relabel`."""
    features = features_of(manifest, rows, workers, extractors)
    labels = relabel[manifest.labels[features.rows]]
    sources = manifest.sources(features.rows)
    return Samples(features.rows, features.values, labels, sources, len(features.unreadable))


def _rungs(parts: Sequence[tuple[Samples, Samples]]) -> dict[str, Any]:
    """The accuracies over all `parts`, each of samples to fit a classifier to and of samples to measure it on."""
    right: dict[str, list[npt.NDArray[np.bool_]]] = defaultdict(list)
    stopped: set[str] = set()
    for train, evaluated in parts:
        right["prior"].append(evaluated.labels == most_frequent(train.labels))
        for name, column in train.values.items():
            predicted, converged = fit_and_predict(column, train.labels, evaluated.values[name])
            right[name].append(predicted == evaluated.labels)
            stopped |= set() if converged else {name}
    sources = np.concatenate([evaluated.sources for _, evaluated in parts])
    rungs = {}
    for name, own in right.items():
        accuracy = proportion(np.concatenate(own), sources)
        values = {"top1": accuracy.value, "low": accuracy.low, "high": accuracy.high}
        rungs[name] = {**values, "converged": name not in stopped}
    return rungs


# --- a model against the baselines ------------------------------------------------------------------------------------


def shortfalls(found: Mapping[str, Any], top1: float, low: float | None) -> list[str]:
    """The baselines that a model with the accuracy `top1` is not above, by their names.

    `low`: the lower end of its interval, which has to be above chance; `top1` itself has to be if it is None. Another
    baseline counts if its accuracy is higher than `top1`.
    """
    least = top1 if low is None else low
    names = ["chance"] if found["chance"] is not None and least <= found["chance"] else []
    return names + [name for name in RUNGS if name in found and found[name]["top1"] > top1]


def figures(found: Mapping[str, Any]) -> list[str]:
    """Chance and each of `RUNGS` as texts in per cent with their intervals, `-` for those that do not apply."""
    chance = "-" if found["chance"] is None else f"{found['chance']:.1%}"
    return [chance, *(_with_interval(found[name]) if name in found else "-" for name in RUNGS)]


def _with_interval(rung: Mapping[str, Any]) -> str:
    text = with_interval(rung["top1"], rung["low"], rung["high"])
    return text if rung["converged"] else f"{text}, fit stopped early"


def sizes(found: Mapping[str, Any]) -> str:
    """The numbers of samples behind the baselines, or the reason why there are none."""
    if found["why_not"]:
        return str(found["why_not"])
    if "folds" in found:
        lost = found["unreadable"]["all"]
        return f"{found['n']:,} in {found['folds']} folds" + (f"; {lost} unreadable" if lost else "")
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
