"""Statistics of accuracies: intervals, paired differences, corrected tests and detectable differences.

Clips of one source (a film, a person, a long video) are similar, and so are the results of one seed. So a mean over
clips and seeds is as uncertain as its sources and its seeds are few. A source here is `manifest.Row.group_id`, which is
the catalog's group if there is one. Everything here follows from one variance with its degrees of freedom
(`_variance_of_mean`): that of seeds x sources as crossed random effects (Searle, Casella and McCulloch, Variance
Components, chapter 4), with the quantile of t of Cochran (Biometrics 20, 1964). `benchmarks/intervals.py`
measures how often the intervals contain the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "not worse", "no difference shown"]
LEVEL = 0.95
METHOD = "Agresti-Coull, effective sample size, t"  # of `proportion`
FEW_SOURCES = "too few sources"  # in place of an interval that cannot be computed
LEAST_SEEDS, MOST_SEEDS = 6, 16  # of `sign_flip`: with 5 seeds p is at least 2 / 2**5 = 0.06
# How alike samples of a source are taken to be where the samples do not show it, and the weight of that in sources.
PRIOR_CORRELATION, PRIOR_SOURCES = 0.3, 2.0
# Runs with equal means by chance have a variance of 0. The least variance of run means, as a fraction of what the noise
# of single answers gives.
LEAST_OF_NOISE = 0.05


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at `LEVEL`.

    `low`, `high`: None if the samples have a single source, which says nothing about other sources. `p`: only for
    differences, the two-sided p-value of the hypothesis "no difference", without a correction for several tests.
    `error`: only for differences, the standard error.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None = None
    error: float | None = None


# --- intervals --------------------------------------------------------------------------------------------------------


def proportion(right: npt.ArrayLike, sources: npt.ArrayLike) -> Estimate:
    """The mean of `right` with its interval.

    `right`: `(N,)`, or `(runs, N)` for several seeds, values from 0 to 1. `sources`: `(N,)`, the source of each sample.

    The interval is that of Agresti and Coull (1998) for the effective number of samples, the number of independent
    samples with the same variance (Korn and Graubard 1998), with Student's t in place of z. All right and all wrong
    have no variance, so the variance is a weighted mean of the measured one and of that of sources with
    `PRIOR_CORRELATION`. The measured one has the more weight, the more sources there are and the nearer 1/2 the mean.
    """
    values = np.atleast_2d(np.asarray(right, np.float64))
    mean, sizes = float(values.mean()), _sizes(sources)
    if len(sizes) < 2:
        return Estimate(mean, None, None)
    binomial, samples = mean * (1 - mean), sizes.sum()
    variance, freedom = _variance_of_mean(values, np.asarray(sources))
    weight = PRIOR_SOURCES / (PRIOR_SOURCES + 4 * binomial * len(sizes))
    prior = (1 + PRIOR_CORRELATION * ((sizes**2).sum() / samples - 1)) / samples
    # The variance in units of mean * (1 - mean). Averages over runs may have less than one run's.
    measured = variance / binomial if binomial > 0 else prior
    relative = float(max((1 - weight) * measured + weight * prior, 1 / (samples * len(values))))
    t = _quantile(freedom, (1 + LEVEL) / 2)
    total = 1 / relative + t * t
    centre = (mean / relative + t * t / 2) / total
    half = float(t * (centre * (1 - centre) / total) ** 0.5)
    return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half))


def difference(ours: npt.ArrayLike, theirs: npt.ArrayLike, sources: npt.ArrayLike, level: float = LEVEL) -> Estimate:
    """The mean of `ours` minus `theirs`, with its t interval at `level` and its p-value.

    `ours`, `theirs`: `(N,)` or `(runs, N)`, the same samples in the same order. Run r of both has the same seed.
    `sources`: `(N,)`. With a single source there is no interval, and p is 1.
    """
    gain = np.atleast_2d(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
    value = float(gain.mean())
    if len(_sizes(sources)) < 2:
        return Estimate(value, None, None, 1.0)
    variance, freedom = _variance_of_mean(gain, np.asarray(sources))
    error = max(variance, _least_variance(gain)) ** 0.5
    half = _quantile(freedom, (1 + level) / 2) * error
    most = max(1.0, float(np.abs(gain).max()))  # a difference of two fractions is within 1
    p = 2 * _distribution(freedom, -abs(value) / error)
    return Estimate(value, max(-most, value - half), min(most, value + half), p, error)


@dataclass(frozen=True)
class Pooled:
    """A difference over several data sets. `between`: the standard deviation of the true differences over data sets.
    `error`: the standard error that the interval has."""

    value: float
    low: float
    high: float
    p: float
    error: float
    between: float
    sets: int


def pooled(estimates: Sequence[Estimate], level: float = LEVEL) -> Pooled | None:
    """The mean difference over data sets as random effects; None for fewer than two with an error.

    The variance between data sets is that of DerSimonian and Laird (1986). The interval is that of Hartung and Knapp
    (2001), t with a degree of freedom fewer than data sets, but never with a smaller error than the usual one (Roever,
    Knapp and Friede 2015). So it holds for data sets like these, and is wide for few of them.
    """
    usable = [each for each in estimates if each.error]
    count = len(usable)
    if count < 2:
        return None
    values = np.array([each.value for each in usable])
    variances = np.array([each.error or 0.0 for each in usable]) ** 2
    fixed = 1 / variances
    heterogeneity = float((fixed * (values - (fixed @ values) / fixed.sum()) ** 2).sum())
    between = max(0.0, (heterogeneity - (count - 1)) / (fixed.sum() - (fixed**2).sum() / fixed.sum()))
    weights = 1 / (variances + between)
    value = float(weights @ values / weights.sum())
    spread = float((weights * (values - value) ** 2).sum() / (count - 1))
    error = float((max(1.0, spread) / weights.sum()) ** 0.5)
    half = _quantile(count - 1, (1 + level) / 2) * error
    p = 2 * _distribution(count - 1, -abs(value) / error)
    return Pooled(value, max(-1.0, value - half), min(1.0, value + half), p, error, float(between**0.5), count)


def over_seeds(gains: npt.ArrayLike, samples: int) -> Estimate:
    """The mean of paired differences of accuracy over seeds, `(R,)`, with its t interval over seeds alone.

    It takes the `samples` clips as given, so an interval over seeds and sources is wider. For results of which only
    the accuracy of each seed is known. With one seed there is no interval, and p is 1.
    """
    values = np.asarray(gains, np.float64)
    value, count = float(values.mean()), len(values)
    if count < 2:
        return Estimate(value, None, None, 1.0)
    error = max(float(values.var(ddof=1)) / count, 0.25 / count / samples**2) ** 0.5
    half = _quantile(count - 1, (1 + LEVEL) / 2) * error
    return Estimate(value, value - half, value + half, 2 * _distribution(count - 1, -abs(value) / error), error)


def in_common(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks of two lists of sample ids: the samples that the other list also has.

    Both lists must have the same order.
    """
    return np.isin(first, second), np.isin(second, first)


def with_interval(value: float, low: float | None, high: float | None) -> str:
    """A fraction and its interval as text.

    >>> with_interval(0.375, 0.25, 0.5), with_interval(0.375, None, None)
    ('37.5% (25.0% to 50.0%)', '37.5% (too few sources)')
    """
    interval = FEW_SOURCES if low is None or high is None else f"{low:.1%} to {high:.1%}"
    return f"{value:.1%} ({interval})"


def _sizes(sources: npt.ArrayLike) -> Floats:
    """float64 `(sources,)`: the number of samples of each source."""
    return np.unique(np.asarray(sources), return_counts=True)[1].astype(np.float64)


def _variance_of_mean(values: Floats, sources: npt.NDArray[Any]) -> tuple[float, float]:
    """The variance of the mean of `values` `(runs, N)`, and its degrees of freedom. At least two sources.

    With one run, this is the variance over sources. With several, it is (MS_runs + MS_sources - MS_rest) / (runs x
    sources) from the mean squares of runs x sources, so that the noise of single answers, which is in both of the first
    two, counts once. A mean over samples is a ratio of sums over sources, and is linearised (Cochran, Sampling
    Techniques, section 9A). Sources of unequal size count as fewer, (sum of sizes)^2 / sum of squared sizes.
    """
    _, codes = np.unique(sources, return_inverse=True)
    sizes = np.bincount(codes).astype(np.float64)
    runs, count = len(values), len(sizes)
    sums = np.stack([np.bincount(codes, row, count) for row in values])
    # (runs, sources): deviations from the mean, such that a row's mean is the mean of the run minus that of all runs.
    table = (sums - values.mean() * sizes) * (count / sizes.sum())
    by_run, by_source = table.mean(1), table.mean(0)
    of_sources, freedom_of_sources = count - 1.0, max(1.0, sizes.sum() ** 2 / (sizes**2).sum() - 1)
    ms_sources = runs * float((by_source**2).sum()) / of_sources
    if runs == 1:
        return ms_sources / count, freedom_of_sources
    ms_runs = count * float((by_run**2).sum()) / (runs - 1)
    ms_rest = float(((table - by_run[:, None] - by_source) ** 2).sum()) / ((runs - 1) * of_sources)
    by_runs = max(ms_runs, LEAST_OF_NOISE * ms_rest) / (runs * count)
    by_sources = max(0.0, ms_sources - ms_rest) / (runs * count)  # what sources add to the noise of single answers
    return by_runs + by_sources, _freedom(by_runs, runs - 1.0, by_sources, freedom_of_sources)


def _freedom(by_runs: float, of_runs: float, by_sources: float, of_sources: float) -> float:
    """The degrees of freedom of t for a sum of two variances, which have `of_runs` and `of_sources` themselves.

    Cochran's quantile is the mean of both quantiles, weighted by the variances. It rejects a true null less often than
    the degrees of freedom of Satterthwaite (1946) do where a few runs agree by chance.
    """
    from scipy.special import stdtridf

    if not by_runs or not by_sources:
        return of_sources if by_sources else of_runs
    level = (1 + LEVEL) / 2
    t = (by_runs * _quantile(of_runs, level) + by_sources * _quantile(of_sources, level)) / (by_runs + by_sources)
    few, many = sorted((of_runs, of_sources))
    return min(many, max(few, float(stdtridf(level, t))))


def _least_variance(gain: Floats) -> float:
    """The least variance of a mean difference, so that two methods with equal answers have an interval too.

    For one run it is that of one sample better and one worse (Bonett and Price 2012). The means of several runs show
    their spread themselves, up to half a sample.
    """
    runs, samples = gain.shape
    return (2.0 if runs == 1 else 0.25 / runs) / samples**2


def _quantile(freedom: float, level: float) -> float:
    """A quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, level))


def _distribution(freedom: float, t: float) -> float:
    """The distribution function of Student's t."""
    from scipy.special import stdtr

    return float(stdtr(freedom, t))


# --- tests ------------------------------------------------------------------------------------------------------------


def sign_flip(gain: npt.ArrayLike) -> float | None:
    """The exact two-sided p-value of the mean gain over runs, from all signs of the runs' mean gains (Fisher 1935).

    `gain`: `(runs, N)`. It assumes nothing but that a seed favours both methods equally often, and takes the clips as
    given. None with fewer than `LEAST_SEEDS` runs, where it cannot be below 0.05, and with more than `MOST_SEEDS`.
    """
    means = np.asarray(gain, np.float64).mean(1)
    if not LEAST_SEEDS <= len(means) <= MOST_SEEDS:
        return None
    patterns = (np.arange(1 << len(means))[:, None] >> np.arange(len(means))) & 1
    flipped = np.abs((1 - 2 * patterns) @ means)
    return float((flipped >= abs(means.sum()) - 1e-9).mean())


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


def verdict(estimate: Estimate, p: float, margin: float, level: float = LEVEL) -> Verdict:
    """The verdict on a difference at `level`.

    `p`: its corrected p-value. `margin`: a difference is "not worse" if its whole interval is above `-margin`.
    """
    if p < 1 - level and estimate.value != 0:
        return "better" if estimate.value > 0 else "worse"
    return "not worse" if estimate.low is not None and estimate.low > -margin else "no difference shown"


def judge(differences: Mapping[str, Estimate], margin: float, level: float = LEVEL) -> dict[str, tuple[float, Verdict]]:
    """Name -> corrected p-value and verdict at `level`, for several differences that are tested together."""
    corrected = holm({name: 1.0 if each.p is None else each.p for name, each in differences.items()})
    return {name: (p, verdict(differences[name], p, margin, level)) for name, p in corrected.items()}


@lru_cache
def look_levels(fraction: float) -> tuple[float, float]:
    """The levels of two tests of the same difference, early and at the end, which together err as often as one.

    `fraction`: of all seeds that the early test has, in (0, 1). The bounds are those of O'Brien and Fleming (Biometrics
    35, 1979): c / sqrt(fraction) and c, where the chance that a standard normal mean exceeds one of them is that of a
    single test at `LEVEL`. At one half they are 0.9948 and 0.9520, so the end loses next to nothing. Where two tests
    share their clips, they are more alike than this, and err less often.
    """
    from scipy.integrate import quad
    from scipy.optimize import brentq
    from scipy.stats import norm

    rest = (1 - fraction) ** 0.5

    def surplus(c: float) -> float:
        """The chance that neither bound is exceeded, above `LEVEL`. z: the early mean, in standard errors."""
        early = c / fraction**0.5

        def within(z: float) -> float:
            drift = fraction**0.5 * z
            return float(norm.pdf(z) * (norm.cdf((c - drift) / rest) - norm.cdf((-c - drift) / rest)))

        return float(quad(within, -early, early)[0]) - LEVEL

    c = brentq(surplus, norm.ppf((1 + LEVEL) / 2), 4.0)
    early, last = (float(2 * norm.cdf(bound) - 1) for bound in (c / fraction**0.5, c))
    return early, last


# --- detectable differences -------------------------------------------------------------------------------------------


def detectable(spread_of_runs: float, spread_of_sources: float, runs: int, sources: int, power: float = 0.8) -> float:
    """The smallest true difference that the test of `difference` detects with probability `power`.

    `spread_of_runs`: standard deviation of the difference over the seeds. `spread_of_sources`: standard deviation of
    the mean difference of a source, over the sources, without what the seeds add to it.
    """
    by_runs, by_sources = spread_of_runs**2 / runs, spread_of_sources**2 / sources
    of_runs, of_sources = max(1.0, runs - 1.0), max(1.0, sources - 1.0)
    # A test of a single run has the degrees of freedom of its sources.
    freedom = of_sources if runs == 1 else _freedom(by_runs, of_runs, by_sources, of_sources)
    return _detectable(by_runs + by_sources, freedom, power)


def detectable_in(gain: Floats, sources: Sequence[str], power: float = 0.8) -> float | None:
    """`detectable` with the spread of a measured difference `gain` `(runs, N)`.

    None for a single run or a single source.
    """
    if len(gain) < 2 or len(_sizes(sources)) < 2:
        return None
    variance, freedom = _variance_of_mean(gain, np.asarray(sources))
    return _detectable(max(variance, _least_variance(gain)), freedom, power)


def detectable_over_seeds(gains: npt.ArrayLike, power: float = 0.8) -> float | None:
    """`detectable_in` for differences of accuracy of each seed, `(R,)`, with the clips taken as given."""
    values = np.asarray(gains, np.float64)
    if len(values) < 2 or not values.any():
        return None
    return _detectable(float(values.var(ddof=1)) / len(values), len(values) - 1, power)


def _detectable(variance: float, freedom: float, power: float) -> float:
    """The difference at which t with this variance of its mean exceeds its critical value with probability `power`."""
    from scipy.special import nctdtrinc

    return float(nctdtrinc(freedom, 1 - power, _quantile(freedom, (1 + LEVEL) / 2)) * variance**0.5)
