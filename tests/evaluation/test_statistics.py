"""Intervals cover what they should as often as they should, sources and seeds count as what they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cover.evaluation.statistics import (
    Estimate,
    compare_fractions,
    detectable,
    difference,
    holm,
    in_common,
    judge,
    proportion,
    verdict,
    wilson,
)


def test_the_interval_of_independent_samples_is_the_binomials() -> None:
    right = np.random.default_rng(0).random(2000) < 0.7
    result = proportion(right, np.arange(2000), seed=1)
    error = 1.96 * (0.7 * 0.3 / 2000) ** 0.5
    assert result.value == right.mean()
    assert result.high - result.low == pytest.approx(2 * error, rel=0.08)
    assert result.low < result.value < result.high


def test_copies_of_a_sample_add_nothing() -> None:
    right = np.random.default_rng(0).random(200) < 0.6
    alone = proportion(right, np.arange(200), seed=0)
    copied = proportion(np.repeat(right, 10), np.repeat(np.arange(200), 10), seed=0)
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    ignoring = proportion(np.repeat(right, 10), np.arange(2000), seed=0)
    assert ignoring.high - ignoring.low < 0.5 * (copied.high - copied.low)


def test_intervals_cover_the_truth() -> None:
    """Of 100 studies of clustered samples, about 95 in 100 intervals hold the true share; those that take clips for
    sources far fewer.
    """
    rng, hits, naive = np.random.default_rng(5), 0, 0
    for study in range(100):
        levels = rng.beta(2, 2, size=60)  # a source's own share; 0.5 on average
        right = rng.random((60, 8)) < levels[:, None]
        sources = np.repeat(np.arange(60), 8)
        result, flat = proportion(right.ravel(), sources, study), proportion(right.ravel(), np.arange(480), study)
        hits += result.low <= 0.5 <= result.high
        naive += flat.low <= 0.5 <= flat.high
    assert 88 <= hits <= 99
    assert naive < 85


def test_pairs_share_what_is_hard() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    ours, theirs = (rng.random((5, 400)) < np.clip(hard + gain, 0, 1) for gain in (0.06, 0.0))
    result = difference(ours, theirs, np.arange(400), seed=0)
    assert result.value == pytest.approx(ours.mean() - theirs.mean())
    assert result.low > 0
    assert result.p is not None
    assert result.p < 0.05


def test_seeds_that_disagree_widen_the_interval() -> None:
    gains = np.array([[0.2], [-0.1], [0.15], [-0.2], [0.1]]) * np.ones((5, 1000))
    result = difference(gains, np.zeros((5, 1000)), np.arange(1000), seed=0)
    assert result.low < 0 < result.high
    assert result.p is not None
    assert result.p > 0.3


def test_no_difference_is_found_about_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(1)
    p_values = [
        difference(rng.random(300) < 0.5, rng.random(300) < 0.5, np.arange(300), study).p for study in range(100)
    ]
    assert 1 <= sum(p is not None and p < 0.05 for p in p_values) <= 11


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


def test_what_a_study_can_detect_is_found_as_often_as_promised() -> None:
    runs, sources, rng = 5, 200, np.random.default_rng(0)
    smallest = detectable(0.0, 0.4, runs, sources)
    result = 0
    for study in range(100):
        gains = np.tile(rng.normal(smallest, 0.4, sources), (runs, 1))  # what a source gains is the same in all runs
        p = difference(gains, np.zeros_like(gains), np.arange(sources), study).p
        result += p is not None and p < 0.05
    assert 68 <= result <= 92
    assert detectable(0.02, 0.4, 10, sources) < detectable(0.02, 0.4, 5, sources)


def test_a_family_is_judged_by_its_corrected_p_values() -> None:
    family = {
        "x": Estimate(0.1, 0.02, 0.2, 0.03),
        "y": Estimate(-0.1, -0.2, -0.02, 0.001),
        "z": Estimate(0.0, -0.01, 0.01, 0.9),
    }
    assert judge(family, 0.02) == {"x": (0.06, "not worse"), "y": (0.003, "worse"), "z": (0.9, "not worse")}


def test_wilsons_interval() -> None:
    low, high = wilson(0.0, 96)
    assert low == 0.0
    assert high == pytest.approx(0.04)
    assert wilson(0.5, 100) == pytest.approx((0.40194, 0.59806), abs=1e-4)


def test_few_samples_show_no_difference_between_fractions() -> None:
    assert compare_fractions(1.0, 0.0, 1) == "no difference shown"
    assert compare_fractions(1.0, 0.0, 100) == "better"
    assert compare_fractions(0.6, 0.62, 398) == "no difference shown"
    assert compare_fractions(0.7, 0.9, 398) == "worse"


def test_samples_in_common_are_told_by_their_ids() -> None:
    mine, theirs = in_common(["a", "b", "d"], ["b", "c", "d"])
    assert (mine.tolist(), theirs.tolist()) == ([False, True, True], [True, False, True])
