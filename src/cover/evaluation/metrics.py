"""Metrics: top-k accuracy, mean average precision, accuracy per class, confusions, and calibration.

The results do not depend on the division into batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cover.evaluation.statistics import LEVEL, METHOD, proportion

_TOP1, _TOP5, _TOTAL = range(3)  # rows of `TopK.counts`


class TopK:
    """Counters of right answers. All figures are computed from integers at the end.

    A sample is right at k if fewer than k *other* classes have at least the score of its class. So ties are wrong, and
    a constant classifier has an accuracy of 0 and not 1. A sample with a NaN among its scores is wrong.

    `classes`: length of the class list. `listed`: number of samples in the split, read or not. `counts`: int64
    `(3, classes)`, for each true class the samples right at 1, right at 5, and all.

    >>> counter = TopK(classes=3, listed=2)
    >>> counter.update(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([1]))
    >>> counter.result()["top1"], counter.result()["top1_listed"]
    (1.0, 0.5)
    """

    def __init__(self, classes: int, listed: int) -> None:
        assert min(classes - 1, listed) >= 0, (classes, listed)
        self.classes, self.listed = classes, listed
        self.counts = torch.zeros(3, classes, dtype=torch.int64)

    def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Count N samples. `scores`: float `(N, classes)`, probabilities or logits. `labels`: int64 `(N,)`."""
        assert scores.shape == (len(labels), self.classes), (tuple(scores.shape), len(labels), self.classes)
        if len(labels) == 0:
            return
        labels = labels.to(scores.device)
        assert bool(((labels >= 0) & (labels < self.classes)).all()), "a label outside the class list"
        own = scores.gather(1, labels[:, None])
        rivals = (scores >= own).sum(dim=1) - 1
        readable = ~scores.isnan().any(dim=1)
        self._add(_TOP1, labels[readable & (rivals < 1)])
        self._add(_TOP5, labels[readable & (rivals < 5)])
        self._add(_TOTAL, labels)

    def _add(self, row: int, labels: torch.Tensor) -> None:
        self.counts[row] += torch.bincount(labels, minlength=self.classes).cpu()

    def merge(self, other: TopK) -> None:
        """Add the counts of another process."""
        self.counts += other.counts

    def result(self) -> dict[str, Any]:
        """The figures as plain data. Fractions are between 0 and 1, or None if there is no sample.

        `top1`, `top5`: accuracy over the samples read (`top5` is None for up to five classes). `mean_class`: mean of
        the top-1 accuracy over the classes that occur. `top1_listed`: accuracy over all listed samples, where samples
        not read are wrong. `n_read`, `n_listed`: numbers of samples. `per_class`: `[right, total]` of each class.
        """
        right, right5, total = self.counts.tolist()
        read = sum(total)
        assert read <= self.listed, f"{read} samples counted of {self.listed} listed"
        accuracies = [r / t for r, t in zip(right, total) if t]
        return {
            "top1": _fraction(sum(right), read),
            "top5": _fraction(sum(right5), read) if self.classes > 5 else None,
            "mean_class": _fraction(sum(accuracies), len(accuracies)),
            "top1_listed": _fraction(sum(right), self.listed),
            "n_read": read,
            "n_listed": self.listed,
            "per_class": [[r, t] for r, t in zip(right, total)],
        }


class MeanAveragePrecision:
    """Mean average precision of a multi-label split. All scores stay in memory until the end.

    Average precision is a sum over the distinct scores from the highest down: precision times the gain in recall.
    Samples with equal scores are taken together, so the average precision of a constant classifier is the fraction of
    positives in any order of the samples. A sample with a NaN among its scores ranks last.

    `positives`: int64 `(classes,)`, samples of each class in the split, read or not. `listed`: number of samples in the
    split, read or not.

    >>> ranks = MeanAveragePrecision(positives=np.array([1, 1]), listed=2)
    >>> ranks.update(torch.tensor([[0.9, 0.2], [0.1, 0.3]]), torch.tensor([[1, 1], [0, 0]]))
    >>> ranks.result()["map"]
    0.75
    """

    def __init__(self, positives: np.ndarray, listed: int) -> None:
        self.positives, self.listed = positives, listed
        self._scores = [np.zeros((0, len(positives)), np.float32)]
        self._hot = [np.zeros((0, len(positives)), bool)]

    def update(self, scores: torch.Tensor, multi_hot: torch.Tensor) -> None:
        """Add N samples. `scores`: float `(N, classes)`, probabilities.

        `multi_hot`: `(N, classes)`, not 0 if a sample has the class.
        """
        shapes = (tuple(scores.shape), tuple(multi_hot.shape), len(self.positives))
        assert scores.shape == multi_hot.shape == (len(multi_hot), len(self.positives)), shapes
        unreadable = scores.isnan().any(dim=1, keepdim=True)
        self._scores.append(scores.float().masked_fill(unreadable, -torch.inf).cpu().numpy())
        self._hot.append(multi_hot.cpu().numpy() > 0)

    def merge(self, other: MeanAveragePrecision) -> None:
        """Add the samples of another process."""
        self._scores += other._scores
        self._hot += other._hot

    def result(self) -> dict[str, Any]:
        """The figures as plain data. Fractions are between 0 and 1, or None if there is no sample.

        `map`: mean of the average precision over the classes of the samples read. `map_listed`: mean over the classes
        of all listed samples, where samples not read have no recall. `hit1`: fraction of samples whose best class,
        without a tie, is one of its classes; a sample of no class is a hit if no score reaches 0.5. `n_read`,
        `n_listed`: numbers of samples. `per_class`: `[average precision, positives read]` of each class.
        """
        scores, multi_hot = np.concatenate(self._scores), np.concatenate(self._hot)
        assert len(scores) <= self.listed, f"{len(scores)} samples counted of {self.listed} listed"
        counts = multi_hot.sum(0)  # (classes,): positives read
        precisions = [average_precision(*columns) for columns in zip(scores.T, multi_hot.T, strict=True)]
        read = [precision for precision in precisions if precision is not None]
        # Positives that were not read only lower the recall: by the factor read / listed.
        in_split = zip(precisions, counts, self.positives, strict=True)
        listed = [(precision or 0.0) * int(n) / int(of) for precision, n, of in in_split if of]
        return {
            "map": _fraction(sum(read), len(read)),
            "map_listed": _fraction(sum(listed), len(listed)),
            "hit1": _fraction(int(_hits(scores, multi_hot).sum()), len(scores)),
            "n_read": len(scores),
            "n_listed": self.listed,
            "per_class": [[precision, int(n)] for precision, n in zip(precisions, counts)],
        }


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The average precision of one class over N samples. Equal scores are taken together.

    `scores`: float `(N,)`. `positive`: bool `(N,)`. None if there is no positive.
    """
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    # Only the last sample of each tie counts: there `right` positives are among the first `chosen` samples.
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    right = np.cumsum(positive[order])[last_of_ties]
    chosen = np.flatnonzero(last_of_ties) + 1
    return float((np.diff(right, prepend=0) * right / chosen).sum() / right[-1])


def _hits(scores: np.ndarray, multi_hot: np.ndarray) -> np.ndarray:
    """bool `(N,)`: `hit1` of each sample."""
    own, others = (np.where(mask, scores, -np.inf).max(1, initial=-np.inf) for mask in (multi_hot, ~multi_hot))
    return np.where(multi_hot.any(1), own > others, others < 0.5)


def _fraction(part: float, whole: int) -> float | None:
    return part / whole if whole else None


BINS = 15  # of the calibration error (Guo et al. 2017)


class Outcomes:
    """The predictions of single-label samples: manifest rows, true classes, predicted classes and their scores.

    The predicted class is the one with the highest score. If two classes share the highest score, the prediction is -1,
    which is wrong, as in `TopK`.

    >>> outcomes = Outcomes()
    >>> outcomes.update([7], torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([1]))
    >>> outcomes.rows.tolist(), outcomes.predicted.tolist()
    ([7], [1])
    """

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def update(self, rows: Sequence[int], scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Add N samples: manifest `rows`, probabilities `scores` `(N, classes)`, and `labels` int64 `(N,)`."""
        if not len(rows):
            return
        best, predicted = scores.max(1)
        alone = ((scores >= best[:, None]).sum(1) == 1) & ~scores.isnan().any(1)
        predicted = torch.where(alone, predicted, -1)
        tensors = (labels.cpu().numpy(), predicted.cpu().numpy(), best.float().cpu().numpy())
        self._parts.append((np.asarray(rows, np.int64), *tensors))

    def merge(self, others: Sequence[Outcomes]) -> None:
        """Add the samples of other processes, and sort all samples by manifest row."""
        self._parts += [part for other in others for part in other._parts]
        order = np.argsort(self.rows, kind="stable")
        self._parts = [(self.rows[order], self.labels[order], self.predicted[order], self.confidence[order])]

    @property
    def rows(self) -> np.ndarray:
        """int64 `(N,)`, the manifest rows."""
        return self._column(0, np.int64)

    @property
    def labels(self) -> np.ndarray:
        """int64 `(N,)`, the true classes."""
        return self._column(1, np.int64)

    @property
    def predicted(self) -> np.ndarray:
        """int64 `(N,)`, the predicted classes, -1 if two classes share the highest score."""
        return self._column(2, np.int64)

    @property
    def confidence(self) -> np.ndarray:
        """float32 `(N,)`, the highest score."""
        return self._column(3, np.float32)

    @property
    def right(self) -> np.ndarray:
        """bool `(N,)`, whether the prediction is the true class."""
        return self.predicted == self.labels

    def _column(self, place: int, kind: type[np.generic]) -> np.ndarray:
        return np.concatenate([np.zeros(0, kind), *(part[place] for part in self._parts)])

    def result(self, sources: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
        """The figures as plain data.

        `sources`: int64 `(N,)`, the source of each sample. `classes`: class names. Returns `top1_interval`, over
        sources, with null ends for a single source; `ece`, the expected calibration error; `confusions`, the ten most
        frequent wrong answers as `{true, predicted, count, of}`.
        """
        if not len(self.rows):
            return {"top1_interval": None, "ece": None, "confusions": []}
        top1 = proportion(self.right, sources)
        interval = {"low": top1.low, "high": top1.high, "level": LEVEL, "method": METHOD}
        interval["sources"] = len(np.unique(sources))
        # Rounded, because scores differ in their last bits with the batch size.
        error = round(calibration_error(self.confidence, self.right), 6)
        return {"top1_interval": interval, "ece": error, "confusions": self._confusions(classes)}

    def _confusions(self, classes: Sequence[str], most: int = 10) -> list[dict[str, Any]]:
        wrong = (self.predicted != self.labels) & (self.predicted >= 0)
        pairs, counts = np.unique(np.stack([self.labels[wrong], self.predicted[wrong]], 1), axis=0, return_counts=True)
        totals = np.bincount(self.labels, minlength=len(classes))
        order = np.argsort(-counts, kind="stable")[:most]
        return [
            {"true": classes[true], "predicted": classes[other], "count": int(counts[place]), "of": int(totals[true])}
            for place in order
            for true, other in [pairs[place]]
        ]


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error (Guo et al. 2017): the mean of |confidence - accuracy| over `BINS` bins.

    `confidence`: float `(N,)`, 0 to 1. `right`: bool `(N,)`. The bins are equally wide, and weighted by their samples.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence.astype(np.float64) - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


TEMPERATURES = (0.01, 100.0)  # the range of `temperature`
_GRID = 60  # temperatures that are tried before the best is refined: the mean over views may have several minima


def temperature(scores: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that calibrates a softmax classifier: the number to divide its logits by, four digits of it.

    It minimises the negative log-likelihood of held-out samples (Guo et al. 2017, section 4.2), of the mean over their
    views. To N samples it adds one error: an average sample of which the second most probable class is the right one.
    Without it, the best confidence of a classifier that is right on all of them would be 1; with it, it is about
    N / (N + 1); the smoothed targets of Platt (1999, section 2.2) do the same.

    `scores`: the probabilities of each view, float `(N, V, classes)`. `labels`: int64 `(N,)`. The order of the classes
    in a view does not change; in the mean over views that disagree it can. 1.0 if there is nothing to fit.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels) or scores.shape[2] < 2:
        return 1.0
    logits = scores.double().clamp_min(torch.finfo(torch.float32).tiny).log()

    def loss(log_temperature: float) -> float:
        likelihoods = (logits / math.exp(log_temperature)).log_softmax(-1).logsumexp(1) - math.log(scores.shape[1])
        own = likelihoods.gather(1, labels[:, None])
        return -float(own.sum() + likelihoods.topk(2).values[:, 1].mean())

    grid = np.log(np.geomspace(*TEMPERATURES, _GRID))
    best = int(np.argmin([loss(each) for each in grid]))
    bounds = (grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)])
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    return float(f"{math.exp(found):.4g}")
