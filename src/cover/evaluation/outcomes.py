"""What came of every sample that was read? Kept one by one, so that intervals, calibration and confusions can be had afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cover.evaluation.statistics import LEVEL, RESAMPLES, proportion

BINS = 15  # of the calibration error (Guo et al. 2017)


class Outcomes:
    """Single-label samples: their manifest rows, true and predicted classes and the score of the latter.

    A class is predicted where no other scores at least as high; else the prediction is -1, and wrong, as `metrics.TopK` has it.

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
        self._parts.append((np.asarray(rows, np.int64), labels.cpu().numpy(), predicted.cpu().numpy(), best.float().cpu().numpy()))

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
        """As plain data: `top1_interval`, bootstrapped over `sources` `(N,)`; `ece`, the expected calibration error; `confusions`, the ten
        commonest wrong answers as `{true, predicted, count, of}`."""
        if not len(self.rows):
            return {"top1_interval": None, "ece": None, "confusions": []}
        found = proportion(self.right, sources, seed)
        interval = {
            "low": found.low, "high": found.high, "level": LEVEL, "resamples": RESAMPLES, "sources": len(np.unique(sources)), "seed": seed,
        }  # fmt: skip
        error = round(calibration_error(self.confidence, self.right), 6)  # scores differ by less with the batches they are computed in
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
    """Expected calibration error: how far confidence and accuracy lie apart, over `BINS` equal bins of confidence, by their sizes."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence.astype(np.float64) - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))
