"""Classifiers on the features of a frozen network: the features of all samples, and logistic regression on them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cover.console import Meter
from cover.datasets.catalog import Catalog
from cover.datasets.manifest import Row
from cover.datasets.splits import deal
from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.evaluation.baselines import in_own_span
from cover.evaluation.cached_views import cache_views, cached_batches
from cover.evaluation.protocol import find_tasks
from cover.hardware import pick_device
from cover.media.decode import FileProblem
from cover.media.source import Media
from cover.mixture.prefix_cache import PrefixCache
from cover.model.backbone import BackboneOptions
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.pooling import PARTS
from cover.model.release import ReleaseConfig, read_config, start_from

Kind = Literal["linear", "quarters"]

INVERSE_PENALTIES = (0.01, 0.1, 1.0, 10.0)  # scikit-learn's C; features of the known starts are between 0 and 6
INNER_FOLDS = 5  # of the cross-validation that chooses the penalty
ONE_FOLD_FROM = 1500  # samples from which on one of the folds decides, because a fit takes long
ITERATIONS = 1000  # of L-BFGS; fits of some hundred samples end after tens
ABSENT = 10.0  # how far below all others the logit of a class without training samples is


@dataclass(frozen=True)
class FrozenFeatures:
    """The features of the readable samples of a split, for all their evaluation views.

    `rows`: the manifest rows of N samples. `labels`: int64 `(N,)`. `values`: float32 `(N, V, P, D)`: V views, the
    features of P parts of the clip, 4 or, where the network pools no parts, 1. `problems`: files that are damaged or
    could not be read. `listed`: samples with a label, also those that could not be read.
    """

    rows: tuple[Row, ...]
    labels: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    problems: tuple[FileProblem, ...]
    listed: int

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The classifiers that differ on these features. An image has no parts, so its four parts are equal."""
        return ("linear", "quarters") if self.values.shape[2] > 1 else ("linear",)

    def inputs(self, kind: Kind) -> npt.NDArray[np.float32]:
        """The input of a classifier, float32 `(N, V, D)` or, of four quarters side by side, `(N, V, 4 D)`."""
        if kind == "linear":
            return np.asarray(self.values.mean(2), np.float32)
        return self.values.reshape(*self.values.shape[:2], -1)

    def taken(self, places: npt.NDArray[np.int64]) -> FrozenFeatures:
        """The samples at `places`. Of problems and listed samples it has none."""
        return FrozenFeatures(
            tuple(self.rows[place] for place in places), self.labels[places], self.values[places], (), 0
        )


def joined(parts: Sequence[FrozenFeatures]) -> FrozenFeatures:
    """The features of several splits, one after the other."""
    return FrozenFeatures(
        tuple(row for part in parts for row in part.rows),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.values for part in parts]),
        tuple(problem for part in parts for problem in part.problems),
        sum(part.listed for part in parts),
    )


def frozen_options(start: ReleaseConfig, media: Media) -> BackboneOptions:
    """The options of the frozen network for samples of a medium.

    Photographs have the size that the network was trained with. Frames of videos have at most the usual size of its
    family, because there are many of them.
    """
    options = start.backbone.options()
    usual = type(options)().size
    return replace(options, size=min(options.size, usual)) if media == "video" else options


def frozen_features(
    release: Path,
    catalog: Catalog,
    name: str,
    split: str,
    device: str = "auto",
    workers: int = 0,
    cache: str | Path = "",
) -> FrozenFeatures:
    """The features of a split by the network of `release`. Its outputs are cached in the folder `cache`.

    By default that is a folder beside the manifest. Raises `UserError` as `find_tasks` and `PrefixCache.fill`.
    """
    start, manifest = read_config(release), catalog.manifest(name, split)
    options = frozen_options(start, manifest.media)
    quartered = options.pooled_by("quarters") if manifest.media == "video" else None
    config = (quartered or options).config(start.frames, start.backbone)
    model = CoVeR(config, (Head(name, manifest.classes.names),))
    start_from(model, release, "keep")
    where = pick_device(device)
    model.to(where).eval()
    (task,) = find_tasks(catalog, model, start.frames, split, [name])
    stages, parts = len(model.backbone.stages()), PARTS if quartered else 1
    files = cache_views(PrefixCache(model, stages, ProcessGroup(where), folder=cache), model, task, workers)
    rows, problems = task.evaluated(task.manifest.usable), list[FileProblem]()
    numbers, labels, values = list[int](), [np.zeros(0, np.int64)], list[npt.NDArray[np.float32]]()
    with Meter(f"features of {name} {split}", len(rows)) as meter, torch.inference_mode():
        for own, targets, outputs in cached_batches(task, rows, files, problems, meter.advance):
            x = torch.from_numpy(np.ascontiguousarray(outputs)).to(where, torch.float32)
            samples, views, frames = x.shape[:3]
            features = model.forward_features(x.flatten(0, 2), ((samples * views, frames),), stages=stages)
            values.append(features.view(samples, views, parts, -1).cpu().numpy())
            numbers += own
            labels.append(targets.numpy())
    if not values:
        raise UserError(f"{name}: none of the {len(manifest)} samples of {split} is readable and labelled")
    return FrozenFeatures(
        tuple(manifest.row(number) for number in numbers),
        np.concatenate(labels),
        np.concatenate(values),
        tuple(problems),
        int(manifest.labelled.sum()),
    )


# --- logistic regression ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A kind of classifier and a penalty, with the accuracy in cross-validation that chose them.

    `accuracy`: the fraction of right answers. `likelihood`: the mean log-probability of the right class.
    """

    kind: Kind
    c: float
    accuracy: float
    likelihood: float


@dataclass(frozen=True)
class LogisticHead:
    """A fitted classifier: `weight` float32 `(classes, D)` and `bias` float32 `(classes,)`, for inputs of `kind`.

    `converged`: whether the fit ended before its limit of iterations.
    """

    kind: Kind
    weight: Tensor
    bias: Tensor
    converged: bool = True

    def probabilities(self, features: FrozenFeatures) -> Tensor:
        """The class probabilities of every sample, averaged over its views, float32 `(N, classes)`."""
        logits = torch.from_numpy(features.inputs(self.kind)) @ self.weight.T + self.bias
        return logits.softmax(-1).mean(1)


def fit(features: FrozenFeatures, classes: int, kind: Kind, c: float) -> LogisticHead:
    """Fit a softmax regression with an L2 penalty; every view is a sample of its own.

    `c`: inverse strength of the penalty. A class without samples never wins. Raises ValueError if all samples have one
    class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    inputs = features.inputs(kind)
    views = inputs.shape[1]
    # The penalty is on the sum over samples, so more views of the same samples would weaken it.
    model = LogisticRegression(C=c / views, max_iter=ITERATIONS)
    x = inputs.reshape(-1, inputs.shape[-1])
    centre = x.mean(0)  # the bias has no penalty, so centred inputs have the same solution, and it is found sooner
    x, basis = in_own_span(x - centre)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says it
        model.fit(x, np.repeat(features.labels, views))
    weight = model.coef_ if basis is None else model.coef_ @ basis
    bias = model.intercept_ - weight @ centre
    if len(model.classes_) == 2:  # one row for both classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    all_weights, all_biases = np.zeros((classes, weight.shape[1])), np.full(classes, bias.min() - ABSENT)
    all_weights[model.classes_], all_biases[model.classes_] = weight, bias
    converged = int(model.n_iter_.max()) < ITERATIONS
    return LogisticHead(
        kind, torch.tensor(all_weights, dtype=torch.float32), torch.tensor(all_biases).float(), converged
    )


def choose(features: FrozenFeatures, classes: int, seed: int) -> list[Choice]:
    """All kinds with their best penalty, by cross-validation over whole groups, the best kind first.

    Five folds, or as many as there are groups; of a large set, one of the five decides.
    """
    place = deal(features.rows, min(INNER_FOLDS, len({row.group_id for row in features.rows})), seed)
    fold_of = np.array([place[row.group_id] for row in features.rows])
    folds = sorted(set(fold_of))[: 1 if len(features.rows) >= ONE_FOLD_FROM else None]
    best = [
        max((_tried(features, classes, kind, c, fold_of, folds) for c in INVERSE_PENALTIES), key=_merit)
        for kind in features.kinds
    ]
    return sorted(best, key=_merit, reverse=True)


def _merit(choice: Choice) -> tuple[float, float]:
    return choice.accuracy, choice.likelihood


def _tried(
    features: FrozenFeatures,
    classes: int,
    kind: Kind,
    c: float,
    fold_of: npt.NDArray[np.int64],
    folds: Sequence[int],
) -> Choice:
    right, likelihood, count = 0, 0.0, 0
    for fold in folds:
        train, test = (features.taken(np.flatnonzero(fold_of != fold)), features.taken(np.flatnonzero(fold_of == fold)))
        if len(set(train.labels.tolist())) < 2:
            continue
        probabilities = fit(train, classes, kind, c).probabilities(test)
        labels = torch.from_numpy(test.labels)
        right += int((probabilities.argmax(1) == labels).sum())
        likelihood += float(probabilities.gather(1, labels[:, None]).clamp_min(1e-9).log().sum())
        count += len(labels)
    return Choice(kind, c, right / max(1, count), likelihood / max(1, count))
