"""Metrics: exact top-k counters, mean average precision, per-class accuracy, confusions and calibration.

The results do not depend on how samples are batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cover.evaluation.statistics import LEVEL, RESAMPLES, proportion

_TOP1, _TOP5, _TOTAL = range(3)


class TopK:
    """Counts right answers sample by sample; every figure is divided out of integers once, at the end.

    A label is right at k only if fewer than k *other* classes score at least as high as it: whoever ties does not win,
    so a constant classifier scores 0 %, not 100 %. A row that holds a NaN is wrong.

    `classes` is the length of the class list, `listed` the number of samples in the split, read or not. `counts` is
    int64 `(3, classes)`: right at 1, right at 5, total, by true class; counters of several processes may be summed into
    it.

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
        """Count N samples. `scores` float `(N, classes)`, probabilities or logits; `labels` int64 `(N,)`, each in `[0,
        classes)`.
        """
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
        """Take what another process has counted."""
        self.counts += other.counts

    def result(self) -> dict[str, Any]:
        """The figures as plain data, shares between 0 and 1, null where there is nothing to divide by.

        `top1` and `top5` over the samples read (`top5` null for five classes or fewer, where it says nothing);
        `mean_class`: mean of top-1 over the classes that occur; `top1_listed`: samples not read count as wrong;
        `per_class`: `[right, total]` each.
        """
        right, right5, total = self.counts.tolist()
        read = sum(total)
        assert read <= self.listed, f"{read} samples counted of {self.listed} listed"
        shares = [r / t for r, t in zip(right, total) if t]
        return {
            "top1": _fraction(sum(right), read),
            "top5": _fraction(sum(right5), read) if self.classes > 5 else None,
            "mean_class": _fraction(sum(shares), len(shares)),
            "top1_listed": _fraction(sum(right), self.listed),
            "n_read": read,
            "n_listed": self.listed,
            "per_class": [[r, t] for r, t in zip(right, total)],
        }


class MeanAveragePrecision:
    """Ranks the samples of a multi-label split class by class; the scores are kept until the end.

    Average precision is the sum over the distinct scores, from the highest, of precision times the recall gained:
    samples that tie are taken together, so that a constant classifier scores the share of positives, whatever the
    order. A row that holds a NaN ranks last.

    `positives`: int64 `(classes,)`, the samples of each class in the split, read or not. `listed`: the samples in the
    split.

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
        """Take N samples. `scores` float `(N, classes)`, probabilities; `multi_hot` `(N, classes)`, not zero where a
        sample has the class.
        """
        assert scores.shape == multi_hot.shape == (len(multi_hot), len(self.positives)), (
            tuple(scores.shape),
            tuple(multi_hot.shape),
            len(self.positives),
        )
        unreadable = scores.isnan().any(dim=1, keepdim=True)
        self._scores.append(scores.float().masked_fill(unreadable, -torch.inf).cpu().numpy())
        self._hot.append(multi_hot.cpu().numpy() > 0)

    def merge(self, other: MeanAveragePrecision) -> None:
        """Take what another process has kept."""
        self._scores += other._scores
        self._hot += other._hot

    def result(self) -> dict[str, Any]:
        """The figures as plain data, shares between 0 and 1, null where there is nothing to divide by.

        `map`: mean of the average precision over the classes that a sample read has; `map_listed`: over those that a
        sample listed has, where samples not read are never found. `hit1`: how often the best-scored class, alone in
        first place, is one of the sample's, or, of a sample of no class, none reaches 0.5. `per_class`: `[average
        precision, positives read]` each.
        """
        scores, multi_hot = np.concatenate(self._scores), np.concatenate(self._hot)
        assert len(scores) <= self.listed, f"{len(scores)} samples counted of {self.listed} listed"
        value, precisions = (
            multi_hot.sum(0),
            [average_precision(scores[:, place], multi_hot[:, place]) for place in range(multi_hot.shape[1])],
        )
        read = [precision for precision in precisions if precision is not None]
        retained = [
            (p or 0.0) * int(n) / int(of) for p, n, of in zip(precisions, value, self.positives, strict=True) if of
        ]
        return {
            "map": _fraction(sum(read), len(read)),
            "map_listed": _fraction(sum(retained), len(retained)),
            "hit1": _fraction(int(_hits(scores, multi_hot).sum()), len(scores)),
            "n_read": len(scores),
            "n_listed": self.listed,
            "per_class": [[precision, int(n)] for precision, n in zip(precisions, value)],
        }


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The average precision of one class over samples `(N,)`, equal scores taken together; None without a positive."""
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
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
    """Single-label samples: their manifest rows, true and predicted classes and the score of the latter.

    A class is predicted where no other scores at least as high; else the prediction is -1, and wrong, as `metrics.TopK`
    has it.

    >>> outcomes = Outcomes()
    >>> outcomes.update([7], torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([1]))
    >>> outcomes.rows.tolist(), outcomes.predicted.tolist()
    ([7], [1])
    """

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []

    def update(self, rows: Sequence[int], scores: torch.Tensor, labels: torch.Tensor) -> None:
        """Take N samples. `scores` float `(N, classes)`, probabilities; `labels` int64 `(N,)`."""
        if not len(rows):
            return
        best, predicted = scores.max(1)
        alone = ((scores >= best[:, None]).sum(1) == 1) & ~scores.isnan().any(1)
        predicted = torch.where(alone, predicted, -1)
        self._parts.append(
            (np.asarray(rows, np.int64), labels.cpu().numpy(), predicted.cpu().numpy(), best.float().cpu().numpy())
        )

    def merge(self, others: Sequence[Outcomes]) -> None:
        """Take what other processes have seen; the order of rows becomes that of the manifest."""
        self._parts += [part for other in others for part in other._parts]
        order = np.argsort(self.rows, kind="stable")
        self._parts = [(self.rows[order], self.labels[order], self.predicted[order], self.confidence[order])]

    @property
    def rows(self) -> np.ndarray:
        """int64 `(N,)`."""
        return self._column(0, np.int64)

    @property
    def labels(self) -> np.ndarray:
        """int64 `(N,)`, the true classes."""
        return self._column(1, np.int64)

    @property
    def predicted(self) -> np.ndarray:
        """int64 `(N,)`, -1 where two classes share the first place."""
        return self._column(2, np.int64)

    @property
    def confidence(self) -> np.ndarray:
        """float32 `(N,)`, the highest score."""
        return self._column(3, np.float32)

    @property
    def right(self) -> np.ndarray:
        """bool `(N,)`."""
        return self.predicted == self.labels

    def _column(self, place: int, kind: type[np.generic]) -> np.ndarray:
        return np.concatenate([np.zeros(0, kind), *(part[place] for part in self._parts)])

    def result(self, sources: np.ndarray, classes: Sequence[str], seed: int) -> dict[str, Any]:
        """As plain data: `top1_interval`, bootstrapped over `sources` `(N,)`; `ece`, the expected calibration error;
        `confusions`, the ten commonest wrong answers as `{true, predicted, count, of}`.
        """
        if not len(self.rows):
            return {"top1_interval": None, "ece": None, "confusions": []}
        value = proportion(self.right, sources, seed)
        interval = {
            "low": value.low,
            "high": value.high,
            "level": LEVEL,
            "resamples": RESAMPLES,
            "sources": len(np.unique(sources)),
            "seed": seed,
        }
        # scores differ by less with the batches they are computed in
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
    """Expected calibration error: how far confidence and accuracy lie apart, over `BINS` equal bins of confidence, by
    their sizes.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence.astype(np.float64) - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))
