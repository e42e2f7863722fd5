"""Statistics of accuracies: intervals, paired differences, corrected tests and detectable differences.

Clips of one source (a film, a person, a long video) are similar, so the bootstrap resamples sources and not clips. A
source here is `manifest.Row.group_id`, which is the catalog's group if there is one. The results of several seeds
differ too, so the bootstrap also resamples seeds, with the same draw for both arms of a pair. Intervals are percentile
intervals (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).
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
LEAST_SOURCES = 6  # with fewer sources `difference` gives no p-value below 1
STANDARD_ERRORS = 2.0  # of intervals and tests without a bootstrap; 2 standard errors are about 95 %
_AT_ONCE = 1 << 22  # numbers in one block of resamples, which limits the memory


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at `LEVEL`.

    `p`: only for differences, the two-sided p-value of the hypothesis "no difference", without a correction for several
    tests.
    """

    value: float
    low: float
    high: float
    p: float | None = None


# --- bootstrap ---


def proportion(right: npt.ArrayLike, sources: npt.ArrayLike, seed: int) -> Estimate:
    """The mean of `right` with its bootstrap interval.

    `right`: `(N,)`, or `(runs, N)` for several seeds, values from 0 to 1. `sources`: `(N,)`, the source of each sample.
    `seed`: of the resampling.
    """
    values = np.asarray(right, np.float64)
    return _estimate(float(values.mean()), _resampled(np.atleast_2d(values), np.asarray(sources), seed))


def difference(ours: npt.ArrayLike, theirs: npt.ArrayLike, sources: npt.ArrayLike, seed: int) -> Estimate:
    """The mean of `ours` minus `theirs`, with its bootstrap interval and p-value.

    `ours`, `theirs`: `(N,)` or `(runs, N)`, the same samples in the same order. Run r of both has the same seed.
    `sources`: `(N,)`. With fewer than `LEAST_SOURCES` sources p is 1, because so few sources do not show how much
    sources differ.
    """
    gain = np.atleast_2d(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    means = _resampled(gain, np.asarray(sources), seed)
    estimate = _estimate(float(gain.mean()), means)
    # The fraction of resamples on the other side of 0. The sample itself counts as one, so p is never 0.
    tail = (1 + min((means <= 0).sum(), (means >= 0).sum())) / (len(means) + 1)
    few = len(np.unique(np.asarray(sources))) < LEAST_SOURCES
    return Estimate(estimate.value, estimate.low, estimate.high, 1.0 if few else min(1.0, 2 * float(tail)))


def in_common(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks of two lists of sample ids: the samples that the other list also has.

    Both lists must have the same order.
    """
    return np.isin(first, second), np.isin(second, first)


def _resampled(values: Floats, sources: npt.NDArray[Any], seed: int) -> Floats:
    """float64 `(RESAMPLES,)`: the mean of `values` `(runs, N)` in each resample.

    A resample draws as many runs and as many sources as there are, with replacement.
    """
    _, codes = np.unique(sources, return_inverse=True)
    count = int(codes.max()) + 1
    # A mean over samples is a ratio of sums over sources, so only the sums (runs, sources) and sizes are resampled.
    sums = np.stack([np.bincount(codes, row, count) for row in values])
    sizes = np.bincount(codes, minlength=count).astype(np.float64)
    rng = np.random.default_rng(seed)
    means, block = [], max(1, _AT_ONCE // count)
    for first in range(0, RESAMPLES, block):
        draws = min(block, RESAMPLES - first)
        # (draws, sources): how often each source is in a draw
        times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        # (draws, runs): the mean of every run on the drawn sources. Then the mean over the drawn runs.
        by_run = times @ sums.T / (times @ sizes)[:, None]
        runs = rng.integers(len(values), size=(draws, len(values)))
        means.append(np.take_along_axis(by_run, runs, axis=1).mean(axis=1))
    return np.concatenate(means)


def _estimate(value: float, means: Floats) -> Estimate:
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


# --- tests ---


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p-values after Holm's step-down correction. Each can be compared with the level of a single test."""
    adjusted, largest = {}, 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for place, name in enumerate(ordered):
        # The smallest p-value is multiplied by the number of tests, the next by one less, and so on. The running
        # maximum preserves the order of the p-values.
        largest = max(largest, min(1.0, (len(ordered) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def verdict(estimate: Estimate, p: float, margin: float) -> Verdict:
    """The verdict on a difference at `LEVEL`.

    `p`: its corrected p-value. `margin`: a difference is "not worse" if its whole interval is above `-margin`.
    """
    if p < 1 - LEVEL and estimate.value != 0:
        return "better" if estimate.value > 0 else "worse"
    return "not worse" if estimate.low > -margin else "no difference shown"


def judge(differences: Mapping[str, Estimate], margin: float) -> dict[str, tuple[float, Verdict]]:
    """Name -> corrected p-value and verdict, for several differences that are tested together."""
    corrected = holm({name: 0.0 if each.p is None else each.p for name, each in differences.items()})
    return {name: (p, verdict(differences[name], p, margin)) for name, p in corrected.items()}


# --- intervals and tests without a bootstrap ---


def wilson(fraction: float, samples: int) -> tuple[float, float]:
    """Wilson's score interval at `STANDARD_ERRORS` for a fraction of `samples`. Its width is not 0 at 0 and 1."""
    z = STANDARD_ERRORS
    centre = (fraction + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z * math.sqrt(fraction * (1 - fraction) / samples + z * z / (4 * samples * samples)) / (1 + z * z / samples)
    return max(0.0, centre - half), min(1.0, centre + half)


def compare_fractions(ours: float, theirs: float, samples: int) -> Verdict:
    """The verdict on two fractions of `samples` samples each, at `STANDARD_ERRORS` of their difference.

    One hit and one miss are added to each (Agresti and Caffo 2000), so that fractions of 0 and 1 have an error too. If
    both fractions are of the same clips, the test is conservative.
    """
    first, second = ((fraction * samples + 1) / (samples + 2) for fraction in (ours, theirs))
    error = math.sqrt((first * (1 - first) + second * (1 - second)) / (samples + 2))
    if abs(first - second) <= STANDARD_ERRORS * error:
        return "no difference shown"
    return "better" if ours > theirs else "worse"


# --- detectable differences ---


def detectable(spread_of_runs: float, spread_of_sources: float, runs: int, sources: int, power: float = 0.8) -> float:
    """The smallest true difference that a two-sided test at `LEVEL` detects with probability `power`.

    `spread_of_runs`: standard deviation of the difference over the seeds. `spread_of_sources`: standard deviation of
    the mean difference of a source, over the sources. Normal approximation.
    """
    error = (spread_of_runs**2 / runs + spread_of_sources**2 / sources) ** 0.5
    return float((NormalDist().inv_cdf(0.5 + LEVEL / 2) + NormalDist().inv_cdf(power)) * error)


def detectable_in(gain: Floats, sources: Sequence[str]) -> float | None:
    """`detectable` with the spread of a measured difference `gain` `(runs, N)`. None for a single run."""
    if len(gain) < 2:
        return None
    names, codes = np.unique(np.asarray(sources), return_inverse=True)
    by_source = np.bincount(codes, gain.mean(0)) / np.bincount(codes)
    spread_of_sources = float(by_source.std(ddof=1)) if len(names) > 1 else 0.0
    return detectable(float(gain.mean(1).std(ddof=1)), spread_of_sources, len(gain), len(names))
