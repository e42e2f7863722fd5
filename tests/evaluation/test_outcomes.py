"""Every sample is kept as it came, whoever read it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cover.evaluation.metrics import TopK
from cover.evaluation.outcomes import Outcomes, calibration_error


def random_scores(seed: int, samples: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 4, (samples, classes)) / 4).float()  # many ties
    return scores, torch.from_numpy(rng.integers(0, classes, samples))


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 9), st.integers(1, 5))
def test_right_as_the_counters_have_it_however_it_is_split(seed: int, samples: int, classes: int, parts: int) -> None:
    scores, labels = random_scores(seed, samples, classes)
    counter = TopK(classes, samples)
    counter.update(scores, labels)
    mine, others = Outcomes(), [Outcomes() for _ in range(parts)]
    for number, other in enumerate(others):
        rows = list(range(number, samples, parts))
        other.update(rows, scores[rows], labels[rows])
    mine.merge(others)
    assert mine.rows.tolist() == list(range(samples))
    assert mine.right.mean() == counter.result()["top1"]
    assert np.array_equal(mine.labels, labels.numpy())


def test_confusions_by_hand() -> None:
    outcomes = Outcomes()
    eye = torch.eye(3)
    outcomes.update(range(6), eye[[0, 1, 1, 2, 2, 0]], torch.tensor([0, 0, 0, 0, 1, 2]))
    found = outcomes.result(np.arange(6), ["a", "b", "c"], seed=0)
    assert found["confusions"][0] == {"true": "a", "predicted": "b", "count": 2, "of": 4}
    assert {(pair["true"], pair["predicted"]) for pair in found["confusions"]} == {("a", "b"), ("a", "c"), ("b", "c"), ("c", "a")}
    assert found["top1_interval"]["low"] <= 1 / 6 <= found["top1_interval"]["high"]
    assert found["top1_interval"]["sources"] == 6


def test_a_row_that_is_not_a_number_is_wrong() -> None:
    outcomes = Outcomes()
    outcomes.update([0], torch.tensor([[float("nan"), 0.5]]), torch.tensor([0]))
    assert outcomes.predicted.tolist() == [-1]


def test_nothing_read() -> None:
    assert Outcomes().result(np.zeros(0), ["a"], 0) == {"top1_interval": None, "ece": None, "confusions": []}


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    assert calibration_error(confidence, np.array([True, True, True, False])) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert calibration_error(np.array([1.0, 0.99]), np.array([False, False])) == pytest.approx(0.995)


def test_a_calibrated_classifier_has_a_small_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 50_000)
    assert calibration_error(confidence, rng.random(50_000) < confidence) < 0.01
