"""How often is a classifier right? Exact integer counters, the same whatever the batches."""

from __future__ import annotations

from typing import Any

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


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
