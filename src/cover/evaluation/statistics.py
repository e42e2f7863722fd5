"""How sure is a number, and a difference between two? Bootstrap over sources and seeds, tests corrected for their number.

Clips of one source (a film, a person, a long video) resemble each other, so sources are resampled, not clips; runs of several seeds
differ by more than their clips do, so seeds are resampled too, and the same for both arms of a pair. Percentile intervals (Efron and
Tibshirani, chapter 13).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "not worse", "no difference shown"]
RESAMPLES, LEVEL = 2000, 0.95
LEAST_SOURCES = 6
_AT_ONCE = 1 << 22  # numbers of one block of resamples


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval at `LEVEL`, and of a difference the two-sided p-value of there being none (not corrected)."""

    value: float
    low: float
    high: float
    p: float | None = None


def share(right: npt.ArrayLike, sources: npt.ArrayLike, seed: int) -> Estimate:
    """The mean of `right` `(N,)` (or `(runs, N)`: of several seeds), 0 to 1 each; `sources` `(N,)` says which samples belong together."""
    means = _resampled(np.atleast_2d(np.asarray(right, np.float64)), np.asarray(sources), seed)
    return _estimate(float(np.asarray(right, np.float64).mean()), means)


def difference(ours: npt.ArrayLike, theirs: npt.ArrayLike, sources: npt.ArrayLike, seed: int) -> Estimate:
    """The mean of `ours` minus `theirs`, both `(N,)` or `(runs, N)`: the same samples, and run by run the same seed.

    Of fewer than `LEAST_SOURCES` sources p is 1: nothing is shown by so few.
    """
    gain = np.atleast_2d(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    means = _resampled(gain, np.asarray(sources), seed)
    found = _estimate(float(gain.mean()), means)
    # Of the resamples and the sample itself, how many lie on the other side of no difference.
    tail = (1 + min((means <= 0).sum(), (means >= 0).sum())) / (len(means) + 1)
    few = len(np.unique(np.asarray(sources))) < LEAST_SOURCES  # their resamples know nothing of how far sources lie apart
    return Estimate(found.value, found.low, found.high, 1.0 if few else min(1.0, 2 * float(tail)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: p-values that may be compared with one level together, each at least as large as it was."""
    adjusted, worst = {}, 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(ordered):
        worst = max(worst, min(1.0, (len(ordered) - place) * p_values[name]))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def verdict(found: Estimate, p: float, margin: float) -> Verdict:
    """What a difference shows, at `LEVEL`: `p` is its corrected p-value; "not worse": it lies above `-margin` as a whole."""
    if p < 1 - LEVEL and found.value != 0:
        return "better" if found.value > 0 else "worse"
    return "not worse" if found.low > -margin else "no difference shown"


def detectable(spread_of_runs: float, spread_of_sources: float, runs: int, sources: int, power: float = 0.8) -> float:
    """The smallest true difference that a comparison of this size finds with probability `power`, at `LEVEL`, two-sided.

    `spread_of_runs`: standard deviation between seeds of a pair's difference; `spread_of_sources`: of a source's mean difference, over
    sources. Both fall with the square root of their number (normal approximation).
    """
    error = (spread_of_runs**2 / runs + spread_of_sources**2 / sources) ** 0.5
    return float((NormalDist().inv_cdf(0.5 + LEVEL / 2) + NormalDist().inv_cdf(power)) * error)


def _resampled(values: Floats, sources: npt.NDArray[np.generic], seed: int) -> Floats:
    """The mean of `values` `(runs, N)` in each of `RESAMPLES` draws of as many runs and sources, with replacement."""
    _, codes = np.unique(sources, return_inverse=True)
    count = int(codes.max()) + 1
    sums = np.stack([np.bincount(codes, row, count) for row in values])
    sizes = np.bincount(codes, minlength=count).astype(np.float64)
    rng = np.random.default_rng(seed)
    means, block = [], max(1, _AT_ONCE // count)
    for first in range(0, RESAMPLES, block):
        draws = min(block, RESAMPLES - first)
        times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        by_run = times @ sums.T / (times @ sizes)[:, None]
        runs = rng.integers(len(values), size=(draws, len(values)))
        means.append(np.take_along_axis(by_run, runs, axis=1).mean(axis=1))
    return np.concatenate(means)


def _estimate(value: float, means: Floats) -> Estimate:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
