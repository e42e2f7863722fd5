"""Class balance inside a data set: how often each class is drawn, and what a sample of it weighs in the loss.

A class of n samples is drawn at a rate proportional to n^(1 - balance): 0 is the data set as it is, 1 draws all classes
equally often (square-root sampling is 0.5). The draws of a data set are exact at every length: after k draws, a class
with the rate r has been drawn floor or ceil of k * r times. This is the rule of `schedule.Quotas`, earliest deadline
first, with one sample in each step. Rates are fractions with one denominator, so the classes come in a cycle that is
computed once, and any draw can be looked up without those before it.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

LEAST_IN_A_CYCLE = 200  # draws of the rarest class in a cycle, so that rounding changes no rate by more than 0.5 %
LARGEST_CYCLE = 2**20  # draws; this limit comes first, and a cycle of this length takes two seconds to compute


@dataclass(frozen=True, eq=False)
class ClassBalance:
    """The order in which the classes of a data set are drawn.

    `rows_of`: for each class with rows, in ascending order, the places of its rows in `MixtureDataset.rows`, int64.
    `per_cycle`: int64 `(K,)`, draws of each of these K classes in a cycle.
    """

    rows_of: tuple[npt.NDArray[np.int64], ...]
    per_cycle: npt.NDArray[np.int64]

    @classmethod
    def of(cls, labels: npt.NDArray[np.integer], balance: float) -> ClassBalance:
        """The order for rows with these `labels` (`(rows,)`, at least one) and a balance in [0, 1]."""
        by_class = np.argsort(labels, kind="stable").astype(np.int64)
        counts = np.unique(labels, return_counts=True)[1]
        return cls(tuple(np.split(by_class, np.cumsum(counts)[:-1])), draws_per_cycle(counts, balance))

    @property
    def cycle(self) -> int:
        """The draws of a cycle."""
        return len(self._sequence)

    @property
    def rates(self) -> npt.NDArray[np.float64]:
        """float64 `(K,)`: the fraction of the draws of each class with rows. The sum is 1."""
        return self.per_cycle / self.per_cycle.sum()

    def draw(self, number: int) -> tuple[int, int]:
        """The class of a draw (an index into `rows_of`), and how often it was drawn before. `number`: from 0."""
        cycles, place = divmod(number, self.cycle)
        index = int(self._sequence[place])
        return index, cycles * int(self.per_cycle[index]) + int(self._earlier[place])

    def drawn(self, draws: int) -> npt.NDArray[np.int64]:
        """int64 `(K,)`: how often each class with rows is drawn in the first `draws` draws of the data set."""
        cycles, rest = divmod(draws, self.cycle)
        return cycles * self.per_cycle + np.bincount(self._sequence[:rest], minlength=len(self.per_cycle))

    @cached_property
    def _sequence(self) -> npt.NDArray[np.int32]:
        """int32 `(cycle,)`: the class of each draw."""
        return earliest_deadline_first(self.per_cycle)

    @cached_property
    def _earlier(self) -> npt.NDArray[np.int32]:
        """int32 `(cycle,)`: how often the class of each draw came earlier in the cycle."""
        earlier = np.empty(self.cycle, np.int32)
        earlier[np.argsort(self._sequence, kind="stable")] = _count_up(self.per_cycle)
        return earlier


def draws_per_cycle(counts: npt.NDArray[np.int64], balance: float) -> npt.NDArray[np.int64]:
    """int64 `(K,)`: the draws of each class in a cycle, proportional to `counts`^(1 - `balance`), at least 1.

    Without the limit of `LARGEST_CYCLE`, the rarest class is drawn `LEAST_IN_A_CYCLE` times before common divisors are
    taken out.
    """
    wanted = counts.astype(np.float64) ** (1 - balance)
    scale = min(LEAST_IN_A_CYCLE / wanted.min(), LARGEST_CYCLE / wanted.sum())
    draws = np.maximum(1, np.rint(wanted * scale)).astype(np.int64)
    return draws // np.gcd.reduce(draws)


def earliest_deadline_first(per_cycle: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """int32 `(cycle,)`: an order of `per_cycle[c]` draws of each class c, as even as whole draws can be.

    After k draws, every class has been drawn floor or ceil of k * per_cycle[c] / cycle times. Draw j of a class (from
    0) must not come before the place floor(j / rate), or its count would be above the ceiling. It must not come after
    the place ceil((j + 1) / rate) - 1, or its count would be below the floor. Of the draws that may come, the one with
    the earliest deadline is next (Steiner and Yeomans 1993), and of equal deadlines the one of the first class.
    """
    kinds, length = len(per_cycle), int(per_cycle.sum())
    classes, number = np.repeat(np.arange(kinds), per_cycle), _count_up(per_cycle)
    allowed = number * length // per_cycle[classes]
    deadline = -(-(number + 1) * length // per_cycle[classes])
    in_order = np.argsort(allowed, kind="stable")
    jobs, first_places = (deadline * kinds + classes)[in_order].tolist(), allowed[in_order].tolist()
    sequence, heap, next_job = np.empty(length, np.int32), list[int](), 0
    for place in range(length):
        while next_job < length and first_places[next_job] <= place:
            heapq.heappush(heap, jobs[next_job])
            next_job += 1
        sequence[place] = heapq.heappop(heap) % kinds
    return sequence


def _count_up(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0 to counts[0] - 1, then 0 to counts[1] - 1, and so on, int64 `(sum of counts,)`."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def class_weights(
    counts: npt.NDArray[np.int64], exponent: float, rates: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float32]:
    """float32 `(classes,)`: the factor on the loss of a sample of each class, 0 for a class without samples.

    It is (mean count / count)^`exponent`, divided by its mean over the draws of the data set. So the mean factor of the
    drawn samples is 1, and the data set as a whole counts as without class weights. `rates`: float64 `(classes,)`, the
    fraction of the draws of each class, by default that of the counts.
    """
    present = counts > 0
    fractions = counts / counts.sum() if rates is None else rates
    weights = np.zeros(len(counts))
    weights[present] = (counts[present].mean() / counts[present]) ** exponent
    return (weights / (fractions * weights).sum()).astype(np.float32)
