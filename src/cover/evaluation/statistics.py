"""Statistics of accuracies: intervals, paired differences, corrected tests, and the difference that a comparison can
find.

Clips of one source (a film, a person, a long video) resemble each other, so the bootstrap resamples sources, not clips.
Runs of several seeds differ by more than their clips do, so it resamples seeds too, with the same draw for both arms of
a pair. Intervals are percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "not worse", "no difference shown"]
RESAMPLES, LEVEL = 2000, 0.95
LEAST_SOURCES = 6
STANDARD_ERRORS = 2.0  # of the intervals and tests without a bootstrap: about 95 % of repeated draws of as many samples
_AT_ONCE = 1 << 22  # numbers of one block of resamples


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at `LEVEL`. `p`: of a difference, the two-sided p-value of there being none, not
    corrected.
    """

    value: float
    low: float
    high: float
    p: float | None = None


# --- bootstrap ---


def proportion(right: npt.ArrayLike, sources: npt.ArrayLike, seed: int) -> Estimate:
    """The mean of `right`, each 0 to 1, with its interval.

    `right`: `(N,)`, or `(runs, N)` of several seeds. `sources`: `(N,)`; samples of equal value belong together.
    """
    values = np.asarray(right, np.float64)
    return _estimate(float(values.mean()), _resampled(np.atleast_2d(values), np.asarray(sources), seed))


def difference(ours: npt.ArrayLike, theirs: npt.ArrayLike, sources: npt.ArrayLike, seed: int) -> Estimate:
    """The mean of `ours` minus `theirs`, both `(N,)` or `(runs, N)`: the same samples, and run by run the same seed.

    Of fewer than `LEAST_SOURCES` sources p is 1: their resamples do not show how far sources lie apart.
    """
    gain = np.atleast_2d(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    means = _resampled(gain, np.asarray(sources), seed)
    estimate = _estimate(float(gain.mean()), means)
    # Of the resamples and the sample itself, how many lie on the other side of no difference.
    tail = (1 + min((means <= 0).sum(), (means >= 0).sum())) / (len(means) + 1)
    few = len(np.unique(np.asarray(sources))) < LEAST_SOURCES
    return Estimate(estimate.value, estimate.low, estimate.high, 1.0 if few else min(1.0, 2 * float(tail)))


def in_common(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks of two lists of sample ids, each in the same order: which of their samples the other list has too."""
    return np.isin(first, second), np.isin(second, first)


def _resampled(values: Floats, sources: npt.NDArray[Any], seed: int) -> Floats:
    """The mean of `values` `(runs, N)` in each of `RESAMPLES` draws of as many runs and sources, with replacement."""
    _, codes = np.unique(sources, return_inverse=True)
    count = int(codes.max()) + 1
    sums = np.stack([np.bincount(codes, row, count) for row in values])
    sizes = np.bincount(codes, minlength=count).astype(np.float64)
    rng = np.random.default_rng(seed)
    means, block = [], max(1, _AT_ONCE // count)
    for first in range(0, RESAMPLES, block):
        draws = min(block, RESAMPLES - first)
        # (draws, sources): how often each is drawn
        times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        by_run = times @ sums.T / (times @ sizes)[:, None]
        runs = rng.integers(len(values), size=(draws, len(values)))
        means.append(np.take_along_axis(by_run, runs, axis=1).mean(axis=1))
    return np.concatenate(means)


def _estimate(value: float, means: Floats) -> Estimate:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


# --- tests ---


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction. The corrected p-values can be compared with one level together."""
    adjusted, largest = {}, 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def verdict(estimate: Estimate, p: float, margin: float) -> Verdict:
    """The verdict on a difference at `LEVEL`. `p`: its corrected p-value; "not worse": its whole interval lies above
    `-margin`.
    """
    if p < 1 - LEVEL and estimate.value != 0:
        return "better" if estimate.value > 0 else "worse"
    return "not worse" if estimate.low > -margin else "no difference shown"


def judge(differences: Mapping[str, Estimate], margin: float) -> dict[str, tuple[float, Verdict]]:
    """The corrected p-value and the verdict of each of several differences that are tested together."""
    corrected = holm({name: 0.0 if each.p is None else each.p for name, each in differences.items()})
    return {name: (p, verdict(differences[name], p, margin)) for name, p in corrected.items()}


# --- without a bootstrap ---


def wilson(fraction: float, samples: int) -> tuple[float, float]:
    """Wilson's score interval at `STANDARD_ERRORS` for a fraction of `samples`; it is never empty, not even at 0 and 1."""
    z = STANDARD_ERRORS
    centre = (fraction + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z * math.sqrt(fraction * (1 - fraction) / samples + z * z / (4 * samples * samples)) / (1 + z * z / samples)
    return max(0.0, centre - half), min(1.0, centre + half)


def compare_fractions(ours: float, theirs: float, samples: int) -> Verdict:
    """The verdict on two fractions of `samples` each: a difference is shown where it exceeds `STANDARD_ERRORS`.

    One hit and one miss are added to each (Agresti and Caffo 2000), so that fractions of 0 and 1 do not look certain.
    Where both are of the same clips, the test is cautious.
    """
    first, second = ((fraction * samples + 1) / (samples + 2) for fraction in (ours, theirs))
    error = math.sqrt((first * (1 - first) + second * (1 - second)) / (samples + 2))
    if abs(first - second) <= STANDARD_ERRORS * error:
        return "no difference shown"
    return "better" if ours > theirs else "worse"


# --- what can be found ---


def detectable(spread_of_runs: float, spread_of_sources: float, runs: int, sources: int, power: float = 0.8) -> float:
    """The smallest true difference that a comparison of this size finds with probability `power`, at `LEVEL`,
    two-sided.

    `spread_of_runs`: standard deviation between seeds of a pair's difference; `spread_of_sources`: of a source's mean
    difference, over sources. Both fall with the square root of their number (normal approximation).
    """
    error = (spread_of_runs**2 / runs + spread_of_sources**2 / sources) ** 0.5
    return float((NormalDist().inv_cdf(0.5 + LEVEL / 2) + NormalDist().inv_cdf(power)) * error)


def detectable_in(gain: Floats, sources: Sequence[str]) -> float | None:
    """`detectable` from the spread of a difference `(runs, N)` that was measured; None for one run."""
    if len(gain) < 2:
        return None
    names, codes = np.unique(np.asarray(sources), return_inverse=True)
    by_source = np.bincount(codes, gain.mean(0)) / np.bincount(codes)
    spread_of_sources = float(by_source.std(ddof=1)) if len(names) > 1 else 0.0
    return detectable(float(gain.mean(1).std(ddof=1)), spread_of_sources, len(gain), len(names))
