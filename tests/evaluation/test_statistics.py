"""Intervals cover what they should as often as they should, sources and seeds count as what they are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cover.evaluation.statistics import (
    Estimate,
    detectable,
    detectable_in,
    difference,
    holm,
    in_common,
    judge,
    look_levels,
    over_seeds,
    pooled,
    proportion,
    sign_flip,
    verdict,
    with_interval,
)

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "intervals.py"


@pytest.fixture(scope="module")
def simulation() -> Any:
    """benchmarks/intervals.py, which has the cells."""
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("benchmark_intervals", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]
        sys.path.remove(str(SCRIPT.parent))


# --- intervals of accuracies ---


def test_the_interval_of_independent_samples_is_the_binomials() -> None:
    right = np.random.default_rng(0).random(2000) < 0.7
    result = proportion(right, np.arange(2000))
    binomial = stats.binomtest(int(right.sum()), 2000).proportion_ci(method="wilson")
    assert result.value == right.mean()
    assert (result.low, result.high) == pytest.approx((binomial.low, binomial.high), abs=1e-3)


def test_copies_of_a_sample_add_nothing() -> None:
    right = np.random.default_rng(0).random(200) < 0.6
    alone = proportion(right, np.arange(200))
    copied = proportion(np.repeat(right, 10), np.repeat(np.arange(200), 10))
    ignoring = proportion(np.repeat(right, 10), np.arange(2000))
    width, of_copies, of_ignoring = (
        each.high - each.low for each in (alone, copied, ignoring) if each.high and each.low
    )
    assert of_copies == pytest.approx(width, rel=0.01)
    assert of_ignoring < 0.5 * of_copies


@pytest.mark.parametrize("right", [[1] * 12, [0] * 12, [1, 1, 1, 0] * 3])
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("sources", [2, 3, 12])
def test_no_interval_has_zero_width(right: list[int], runs: int, sources: int) -> None:
    """Sources that all score alike, all right and all wrong, one seed and seeds that agree."""
    result = proportion(np.tile(right, (runs, 1)), np.repeat(np.arange(sources), 12 // sources))
    assert result.low is not None
    assert result.high is not None
    assert 0 <= result.low <= result.value <= result.high <= 1
    assert result.high - result.low > 0.15
    same = difference([right] * runs, [right] * runs, np.repeat(np.arange(sources), 12 // sources))
    assert same.low is not None
    assert same.high is not None
    assert same.low < -0.03
    assert same.high > 0.03
    assert same.p == 1


def test_a_single_source_has_no_interval() -> None:
    result, gain = proportion([1, 1, 0], ["a"] * 3), difference([1, 1, 0], [0, 0, 0], ["a"] * 3)
    assert (result.low, result.high, gain.low, gain.high, gain.p) == (None, None, None, None, 1)
    assert with_interval(result.value, result.low, result.high) == "66.7% (too few sources)"
    assert judge({"": gain}, 0.02) == {"": (1, "no difference shown")}
    assert detectable_in(np.ones((3, 4)), ["a"] * 4) is None


@pytest.mark.parametrize("sources", [5, 10, 30])
@pytest.mark.parametrize("accuracy", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_intervals_contain_the_true_accuracy(
    simulation: Any, sources: int, accuracy: float, correlation: float
) -> None:
    inside, _ = simulation.AccuracyCell(sources, accuracy, correlation).coverage(400)
    assert inside >= 0.92


@pytest.mark.full
def test_intervals_contain_the_true_accuracy_in_every_cell(simulation: Any) -> None:
    covered = {cell: cell.coverage(1000)[0] for cell in simulation.accuracy_cells()}
    assert {cell: inside for cell, inside in covered.items() if inside < 0.92} == {}
    # Not by being wide: with many sources they are as narrow as their level allows.
    assert np.mean([covered[cell] for cell in covered if cell.sources == 100 and cell.accuracy <= 0.8]) < 0.97


def test_the_interval_over_seeds_and_sources_contains_the_true_accuracy() -> None:
    rng, inside = np.random.default_rng(0), 0
    for _ in range(300):
        level = 0.6 + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.15, 40)[np.repeat(np.arange(40), 3)]
        result = proportion(rng.random((5, 120)) < level, np.repeat(np.arange(40), 3))
        assert result.low is not None
        assert result.high is not None
        inside += result.low <= 0.6 <= result.high
    assert 0.92 <= inside / 300 <= 0.99


# --- differences ---


def test_a_difference_of_one_run_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 60)) < np.array([[0.7], [0.5]])
    result = difference(ours, theirs, np.arange(60))
    reference = stats.ttest_rel(ours.astype(float), theirs.astype(float))
    interval = reference.confidence_interval(0.95)
    assert (result.low, result.high, result.p) == pytest.approx((interval.low, interval.high, reference.pvalue))


def test_a_difference_of_many_clips_is_the_t_test_over_seeds() -> None:
    """Where seeds differ much and clips are many, only the seeds count."""
    means = np.array([0.2, -0.1, 0.15, -0.02, 0.1])
    gain = means[:, None] + np.random.default_rng(0).normal(0, 0.01, (5, 5000))
    result, reference = difference(gain, 0 * gain, np.arange(5000)), stats.ttest_1samp(means, 0)
    interval = reference.confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=0.02)
    assert result.p == pytest.approx(reference.pvalue, rel=0.02)


def test_the_noise_of_single_answers_counts_once() -> None:
    """Without differences between seeds and sources, the error is that of all answers together."""
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(50):
        gain = rng.normal(0, 1, (10, 200))
        result = difference(gain, 0 * gain, np.arange(200))
        assert result.high is not None
        widths.append(result.high - result.value)
    assert np.mean(widths) == pytest.approx(stats.t.ppf(0.975, 9) / 2000**0.5, rel=0.1)


def test_pairs_share_what_is_hard() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    ours, theirs = (rng.random((5, 400)) < np.clip(hard + gain, 0, 1) for gain in (0.06, 0.0))
    result = difference(ours, theirs, np.arange(400))
    assert result.value == pytest.approx(ours.mean() - theirs.mean())
    assert result.low is not None
    assert result.low > 0
    assert result.p is not None
    assert result.p < 0.05


# seeds, clips, clips of a source, spread over seeds, spread over sources
QUICK = [
    (1, 20, 1, 0.0, 0.3),
    (1, 100, 5, 0.0, 0.3),
    (3, 100, 1, 0.02, 0.0),
    (3, 100, 1, 0.2, 0.3),
    (5, 20, 1, 0.1, 0.0),
    (5, 100, 5, 0.05, 0.3),
    (10, 100, 1, 0.2, 0.0),
]


@pytest.mark.parametrize("cell", QUICK)
def test_a_true_null_is_rejected_as_often_as_the_level_says(simulation: Any, cell: tuple[Any, ...]) -> None:
    rejected, inside = simulation.NullCell(*cell).rejected(400)
    assert 0.02 <= rejected <= 0.08  # 5 %, two standard errors of 400 are 2.2 points
    assert 0.92 <= inside <= 0.98


@pytest.mark.full
def test_a_true_null_is_rejected_as_often_as_the_level_says_in_every_cell(simulation: Any) -> None:
    rejected = {cell: cell.rejected(1000)[0] for cell in simulation.null_cells()}
    assert {cell: rate for cell, rate in rejected.items() if not 0.01 <= rate <= 0.075} == {}
    assert 0.035 <= np.mean(list(rejected.values())) <= 0.055


@pytest.mark.parametrize("clips", [2, 3, 4, 5])
def test_few_sources_do_not_reject_a_true_null_more_often(simulation: Any, clips: int) -> None:
    assert simulation.NullCell(1, 5 * clips, 5, 0.0, 0.3).rejected(300)[0] <= 0.08
    assert simulation.NullCell(1, clips, 1, 0.0, 0.3).rejected(300)[0] <= 0.08


def test_signs_of_seeds_by_hand() -> None:
    gain = np.array([[3.0], [1.0], [2.0], [1.0], [4.0], [2.0]])
    assert sign_flip(gain) == 2 / 64  # only the signs of the sample itself, and all of them flipped
    assert sign_flip(gain * np.array([[1], [-1], [1], [1], [1], [1]])) == 6 / 64  # of a sum of 11 or 13 of 13
    assert sign_flip(gain[:5]) is None
    assert sign_flip(np.zeros((6, 3))) == 1
    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 1, 8)
    reference = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip(values[:, None]) == pytest.approx(reference.pvalue)


# --- two looks ---


def test_the_levels_of_two_looks_are_the_published_ones() -> None:
    """C = 1.977 for two looks (Jennison and Turnbull, Group Sequential Methods, 2000, table 2.3)."""
    early, last = look_levels(0.5)
    assert stats.norm.ppf((1 + last) / 2) == pytest.approx(1.977, abs=1e-3)
    assert stats.norm.ppf((1 + early) / 2) == pytest.approx(1.977 * 2**0.5, abs=1e-3)


@pytest.mark.parametrize("fraction", [0.4, 0.5, 0.8])
def test_two_looks_together_err_as_often_as_one_test(fraction: float) -> None:
    early, last = (stats.norm.ppf((1 + level) / 2) for level in look_levels(fraction))
    correlation = fraction**0.5
    means = stats.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]])
    within = means.cdf([early, last], lower_limit=[-early, -last])
    assert 1 - within == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("cell", [(10, 100, 1, 0.1, 0.0), (10, 100, 5, 0.05, 0.3), (6, 100, 1, 0.1, 0.3)])
def test_a_look_at_half_of_the_seeds_does_not_reject_a_true_null_more_often(
    simulation: Any, cell: tuple[Any, ...]
) -> None:
    rng, seeds = np.random.default_rng(0), cell[0] // 2
    early, last = look_levels(seeds / cell[0])
    twice = once = 0
    for _ in range(400):
        ours, theirs, sources = simulation.NullCell(*cell).study(rng)
        half, whole = (difference(ours[:count], theirs[:count], sources) for count in (seeds, cell[0]))
        assert half.p is not None
        assert whole.p is not None
        twice += half.p < 1 - early or whole.p < 1 - last
        once += whole.p < 0.05
    assert twice - once <= 4  # of 400; 1 in all is expected
    assert twice > 0


def test_a_wider_interval_at_a_higher_level() -> None:
    rng = np.random.default_rng(0)
    gain = rng.normal(0.1, 0.2, (8, 40))
    low, high = (difference(gain, 0 * gain, np.arange(40), level) for level in (0.95, 0.9948))
    assert low.p == high.p is not None
    assert high.low < low.low < low.high < high.high  # type: ignore[operator]
    assert verdict(low, 0.02, 0.5) == "better"
    assert verdict(low, 0.02, 0.5, 0.9948) == "not worse"


# --- tests ---


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_lies_between_the_raw_values_and_bonferronis(p_values: dict[str, float]) -> None:
    result = holm(p_values)
    assert all(p_values[name] <= result[name] <= min(1.0, len(p_values) * p_values[name]) + 1e-12 for name in p_values)
    assert sorted(result, key=lambda name: (result[name], p_values[name])) == sorted(
        p_values, key=lambda name: (p_values[name], p_values[name])
    )


@pytest.mark.parametrize(
    ("low", "value", "high", "p", "wanted"),
    [
        (0.01, 0.03, 0.05, 0.01, "better"),
        (-0.05, -0.03, -0.01, 0.01, "worse"),
        (-0.008, 0.01, 0.03, 0.3, "not worse"),
        (-0.02, 0.01, 0.03, 0.3, "no difference shown"),
        (0.001, 0.02, 0.05, 0.06, "not worse"),  # the correction for many comparisons took the difference away
    ],
)
def test_verdicts(low: float, value: float, high: float, p: float, wanted: str) -> None:
    assert verdict(Estimate(value, low, high), p, margin=0.01) == wanted


def test_a_detectable_difference_is_that_of_the_t_test() -> None:
    """Against the noncentral t: with 3 seeds 5.65 standard errors, where the normal distribution gives 2.80."""
    for runs in (3, 5, 10):
        power = stats.nct(runs - 1, detectable(1.0, 0.0, runs, 200) * runs**0.5).sf(stats.t.ppf(0.975, runs - 1))
        assert power == pytest.approx(0.8, abs=1e-3)
    assert detectable(0.02, 0.4, 10, 200) < detectable(0.02, 0.4, 5, 200)
    assert detectable(0.0, 0.4, 1, 1000) == pytest.approx(2.805 * 0.4 / 1000**0.5, rel=1e-3)


@pytest.mark.parametrize("cell", [(3, 100, 1, 0.1, 0.0), (5, 100, 5, 0.05, 0.3), (10, 100, 1, 0.02, 0.3)])
def test_what_a_study_can_detect_is_found_as_often_as_promised(simulation: Any, cell: tuple[Any, ...]) -> None:
    assert 0.7 <= simulation.NullCell(*cell).detected(300) <= 0.9


def test_a_family_is_judged_by_its_corrected_p_values() -> None:
    family = {
        "x": Estimate(0.1, 0.02, 0.2, 0.03),
        "y": Estimate(-0.1, -0.2, -0.02, 0.001),
        "z": Estimate(0.0, -0.01, 0.01, 0.9),
    }
    assert judge(family, 0.02) == {"x": (0.06, "not worse"), "y": (0.003, "worse"), "z": (0.9, "not worse")}


def test_samples_in_common_are_told_by_their_ids() -> None:
    mine, theirs = in_common(["a", "b", "d"], ["b", "c", "d"])
    assert (mine.tolist(), theirs.tolist()) == ([False, True, True], [True, False, True])


# --- several data sets ------------------------------------------------------------------------------------------------

# Logarithms of relative risks and their variances of 13 trials of the BCG vaccine (Colditz and others 1994), as in the
# documentation of R's metafor, which gives the mean -0.7141 and the variance of trials 0.3088 by DerSimonian-Laird.
BCG = (
    (-0.8893, 0.3256), (-1.5854, 0.1946), (-1.3481, 0.4154), (-1.4416, 0.0200), (-0.2175, 0.0512), (-0.7861, 0.0069),
    (-1.6209, 0.2230), (0.0120, 0.0040), (-0.4694, 0.0564), (-1.3713, 0.0730), (-0.3394, 0.0124), (0.4459, 0.5325),
    (-0.0173, 0.0714),
)  # fmt: skip


def test_the_mean_over_data_sets_is_that_of_a_published_example() -> None:
    mean = pooled([Estimate(value, None, None, error=variance**0.5) for value, variance in BCG])
    assert mean is not None
    assert mean.value == pytest.approx(-0.7141, abs=2e-4)
    assert mean.between**2 == pytest.approx(0.3088, rel=2e-3)
    assert mean.low < mean.value < mean.high


def test_a_mean_over_few_data_sets_that_differ_covers_the_true_one() -> None:
    """Three sets whose true differences vary by 5 points around 0, each with an error of 2 points."""
    rng = np.random.default_rng(1)
    outside = 0
    for _ in range(400):
        values = rng.normal(0, 0.05, 3) + rng.normal(0, 0.02, 3)
        mean = pooled([Estimate(value, None, None, error=0.02) for value in values])
        assert mean is not None
        outside += not mean.low <= 0 <= mean.high
    assert outside <= 0.07 * 400


def test_one_data_set_has_no_mean_over_data_sets() -> None:
    assert pooled([Estimate(0.1, 0.0, 0.2, error=0.05)]) is None


def test_differences_known_by_seed_only() -> None:
    gains = [0.02, 0.05, -0.01, 0.04, 0.03]
    estimate, expected = over_seeds(gains, 120), stats.ttest_1samp(gains, 0)
    assert estimate.p == pytest.approx(expected.pvalue)
    assert [estimate.low, estimate.high] == pytest.approx(list(expected.confidence_interval()))
    assert over_seeds([0.1], 120).low is None
    equal = over_seeds([0.0, 0.0, 0.0], 120)  # equal answers have an interval too
    assert equal.low is not None
    assert equal.low < 0
