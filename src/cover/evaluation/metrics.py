"""How often is a classifier right? Exact, and the same whatever the batches: counters for one class a sample, ranks for several."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_TOP1, _TOP5, _TOTAL = range(3)


class TopK:
    """Counts right answers sample by sample; every figure is divided out of integers once, at the end.

    A label is right at k only if fewer than k *other* classes score at least as high as it: whoever ties does not win, so a
    constant classifier scores 0 %, not 100 %. A row that holds a NaN is wrong.

    `classes` is the length of the class list, `listed` the number of samples in the split, read or not. `counts` is int64
    `(3, classes)`: right at 1, right at 5, total, by true class; counters of several processes may be summed into it.

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
        """Count N samples. `scores` float `(N, classes)`, probabilities or logits; `labels` int64 `(N,)`, each in `[0, classes)`."""
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

        `top1` and `top5` over the samples read (`top5` null for five classes or fewer, where it says nothing); `mean_class`: mean
        of top-1 over the classes that occur; `top1_listed`: samples not read count as wrong; `per_class`: `[right, total]` each.
        """
        right, right5, total = self.counts.tolist()
        read = sum(total)
        assert read <= self.listed, f"{read} samples counted of {self.listed} listed"
        shares = [r / t for r, t in zip(right, total) if t]
        return {
            "top1": _share(sum(right), read),
            "top5": _share(sum(right5), read) if self.classes > 5 else None,
            "mean_class": _share(sum(shares), len(shares)),
            "top1_listed": _share(sum(right), self.listed),
            "n_read": read,
            "n_listed": self.listed,
            "per_class": [[r, t] for r, t in zip(right, total)],
        }


class MeanAveragePrecision:
    """Ranks the samples of a multi-label split class by class; the scores are kept until the end.

    Average precision is the sum over the distinct scores, from the highest, of precision times the recall gained: samples that tie are
    taken together, so that a constant classifier scores the share of positives, whatever the order. A row that holds a NaN ranks last.

    `positives`: int64 `(classes,)`, the samples of each class in the split, read or not. `listed`: the samples in the split.

    >>> ranks = MeanAveragePrecision(positives=np.array([1, 1]), listed=2)
    >>> ranks.update(torch.tensor([[0.9, 0.2], [0.1, 0.3]]), torch.tensor([[1, 1], [0, 0]]))
    >>> ranks.result()["map"]
    0.75
    """

    def __init__(self, positives: np.ndarray, listed: int) -> None:
        self.positives, self.listed = positives, listed
        self._scores = [np.zeros((0, len(positives)), np.float32)]
        self._hot = [np.zeros((0, len(positives)), bool)]

    def update(self, scores: torch.Tensor, hot: torch.Tensor) -> None:
        """Take N samples. `scores` float `(N, classes)`, probabilities; `hot` `(N, classes)`, not zero where a sample has the class."""
        assert scores.shape == hot.shape == (len(hot), len(self.positives)), (tuple(scores.shape), tuple(hot.shape), len(self.positives))
        unreadable = scores.isnan().any(dim=1, keepdim=True)
        self._scores.append(scores.float().masked_fill(unreadable, -torch.inf).cpu().numpy())
        self._hot.append(hot.cpu().numpy() > 0)

    def merge(self, other: MeanAveragePrecision) -> None:
        """Take what another process has kept."""
        self._scores += other._scores
        self._hot += other._hot

    def result(self) -> dict[str, Any]:
        """The figures as plain data, shares between 0 and 1, null where there is nothing to divide by.

        `map`: mean of the average precision over the classes that a sample read has; `map_listed`: over those that a sample listed has,
        where samples not read are never found. `hit1`: how often the best-scored class, alone in first place, is one of the sample's, or,
        of a sample of no class, none reaches 0.5. `per_class`: `[average precision, positives read]` each.
        """
        scores, hot = np.concatenate(self._scores), np.concatenate(self._hot)
        assert len(scores) <= self.listed, f"{len(scores)} samples counted of {self.listed} listed"
        found, precisions = hot.sum(0), [average_precision(scores[:, place], hot[:, place]) for place in range(hot.shape[1])]
        read = [precision for precision in precisions if precision is not None]
        kept = [(p or 0.0) * int(n) / int(of) for p, n, of in zip(precisions, found, self.positives, strict=True) if of]
        return {
            "map": _share(sum(read), len(read)),
            "map_listed": _share(sum(kept), len(kept)),
            "hit1": _share(int(_hits(scores, hot).sum()), len(scores)),
            "n_read": len(scores),
            "n_listed": self.listed,
            "per_class": [[precision, int(n)] for precision, n in zip(precisions, found)],
        }


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The average precision of one class over samples `(N,)`, equal scores taken together; None without a positive."""
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    right = np.cumsum(positive[order])[last_of_ties]
    taken = np.flatnonzero(last_of_ties) + 1
    return float((np.diff(right, prepend=0) * right / taken).sum() / right[-1])


def _hits(scores: np.ndarray, hot: np.ndarray) -> np.ndarray:
    """bool `(N,)`: `hit1` of each sample."""
    own, others = (np.where(mask, scores, -np.inf).max(1, initial=-np.inf) for mask in (hot, ~hot))
    return np.where(hot.any(1), own > others, others < 0.5)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
