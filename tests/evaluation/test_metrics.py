"""Counts against hand counts, and that batches, ties and NaN change nothing they should not."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cover.evaluation.metrics import (
    TEMPERATURES,
    MeanAveragePrecision,
    Outcomes,
    TopK,
    average_precision,
    calibration_error,
    temperature,
)


def counted(scores: list[list[float]], labels: list[int], listed: int | None = None) -> dict:
    counter = TopK(len(scores[0]), len(labels) if listed is None else listed)
    counter.update(torch.tensor(scores), torch.tensor(labels))
    return counter.result()


def test_hand_count() -> None:
    scores = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]
    assert counted(scores, [0, 1, 1, 2], listed=5) == {
        "top1": 0.75,
        "top5": None,
        "mean_class": (1 + 0.5 + 1) / 3,
        "top1_listed": 0.6,
        "n_read": 4,
        "n_listed": 5,
        "per_class": [[1, 1], [1, 2], [1, 1]],
    }


def test_top5_takes_the_fifth_and_not_the_sixth() -> None:
    descending = [[float(-c) for c in range(7)]] * 7
    assert counted(descending, list(range(7)))["top5"] == 5 / 7
    assert counted(descending, list(range(7)))["top1"] == 1 / 7


def test_mean_class_leaves_out_classes_that_do_not_occur() -> None:
    result = counted([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [0, 0, 1])
    assert result["mean_class"] == 0.5
    assert result["per_class"][2] == [0, 0]


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, math.inf, -math.inf, math.nan])
def test_a_constant_classifier_is_never_right(value: float) -> None:
    result = counted([[value] * 8] * 8, list(range(8)))
    assert result["top1"] == result["top5"] == 0


def test_a_tie_for_fifth_place_is_lost_a_tie_below_it_is_not() -> None:
    assert counted([[9, 8, 7, 6, 5, 5, 0.0]], [5])["top5"] == 0
    assert counted([[9, 8, 7, 5, 5, 0, 0.0]], [4])["top5"] == 1


def test_nan_counts_as_wrong_wherever_it_stands() -> None:
    nan = math.nan
    assert counted([[nan, 1.0], [1.0, nan], [1.0, 0.0]], [1, 0, 0])["top1"] == 1 / 3


def test_nothing_read_gives_null_not_a_number() -> None:
    result = TopK(4, 3).result()
    assert (result["top1"], result["mean_class"], result["top1_listed"]) == (None, None, 0)
    assert TopK(4, 0).result()["top1_listed"] is None
    json.dumps(result, allow_nan=False)


def test_wrong_use_is_caught() -> None:
    counter = TopK(3, 1)
    with pytest.raises(AssertionError, match="class list"):
        counter.update(torch.zeros(1, 3), torch.tensor([-1]))
    with pytest.raises(AssertionError):
        counter.update(torch.zeros(1, 4), torch.tensor([0]))
    counter.update(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(AssertionError, match="listed"):
        counter.result()


def rank_by_sorting(scores: torch.Tensor, labels: torch.Tensor, k: int) -> int:
    """Right at k, counted the slow way for scores without ties."""
    order = scores.argsort(dim=1, descending=True)[:, :k]
    return sum(int(label) in row for row, label in zip(order.tolist(), labels))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 60),
    classes=st.integers(2, 12),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_batches_change_nothing(seed: int, samples: int, classes: int, cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.stack([torch.randperm(classes, generator=generator) for _ in range(samples)]).float()
    labels = torch.randint(classes, (samples,), generator=generator)
    cuts = sorted(min(cut, samples) for cut in cuts)
    whole, parts = TopK(classes, samples), TopK(classes, samples)
    whole.update(scores, labels)
    for first, last in zip([0, *cuts], [*cuts, samples]):
        parts.update(scores[first:last], labels[first:last])
    assert parts.result() == whole.result()
    assert whole.result()["n_read"] == samples
    assert whole.result()["top1"] == rank_by_sorting(scores, labels, 1) / samples
    if classes > 5:
        assert whole.result()["top5"] == rank_by_sorting(scores, labels, 5) / samples


# --- any number of classes --------------------------------------------------------------------------------------------


def ranked(
    scores: list[list[float]], multi_hot: list[list[int]], listed: int | None = None, positives: list[int] | None = None
) -> dict[str, Any]:
    present = np.array(multi_hot).sum(0) if positives is None else np.array(positives)
    counter = MeanAveragePrecision(present, len(multi_hot) if listed is None else listed)
    counter.update(torch.tensor(scores), torch.tensor(multi_hot))
    return counter.result()


def test_average_precision_by_hand() -> None:
    scores = [[0.9, 0.1, 0.5], [0.8, 0.9, 0.5], [0.7, 0.8, 0.5], [0.6, 0.2, 0.5]]
    multi_hot = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]
    first = (1 / 1 + 2 / 3) / 2  # right at ranks 1 and 3
    second = (1 / 1 + 2 / 3) / 2  # ranks: 0.9 right, 0.8 wrong, 0.2 right, 0.1 wrong
    assert ranked(scores, multi_hot) == {
        "map": pytest.approx((first + second) / 2),
        "map_listed": pytest.approx((first + second) / 2),
        "hit1": 0.5,
        "n_read": 4,
        "n_listed": 4,
        "per_class": [[pytest.approx(first), 2], [pytest.approx(second), 2], [None, 0]],
    }


def test_ties_are_taken_together_whatever_their_order() -> None:
    """Of four alike one is right: the constant classifier has the share of positives."""
    for place in range(4):
        assert average_precision(np.zeros(4), np.arange(4) == place) == 0.25
    scores, positive = np.array([3.0, 2, 2, 1]), np.array([True, True, False, True])
    wanted = 1 / 3 * (1 / 1) + 1 / 3 * (2 / 3) + 1 / 3 * (3 / 4)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        assert average_precision(scores[order], positive[order]) == pytest.approx(wanted)


def test_files_not_read_are_never_found() -> None:
    result = ranked([[0.9, 0.1], [0.2, 0.8]], [[1, 0], [0, 0]], listed=5, positives=[2, 1])
    assert (result["n_read"], result["n_listed"]) == (2, 5)
    assert result["map"] == 1.0, "over the one class that a sample read has"
    assert result["map_listed"] == pytest.approx((1 * 1 / 2 + 0) / 2)


def test_rows_that_hold_a_nan_rank_last() -> None:
    nan = math.nan
    assert ranked([[nan, 0.9], [0.1, 0.1]], [[1, 1], [0, 0]])["per_class"] == [[0.5, 1], [0.5, 1]]
    assert ranked([[nan, nan]], [[1, 0]])["hit1"] == 0
    json.dumps(ranked([[nan, nan]], [[1, 0]]), allow_nan=False)


def test_hit_at_one() -> None:
    assert ranked([[0.6, 0.4]], [[1, 1]])["hit1"] == 1
    assert ranked([[0.6, 0.4]], [[0, 1]])["hit1"] == 0
    assert ranked([[0.5, 0.5]], [[0, 1]])["hit1"] == 0, "a tie for the first place is lost"
    assert ranked([[0.5, 0.4]], [[0, 0]])["hit1"] == 0
    assert ranked([[0.4, 0.4]], [[0, 0]])["hit1"] == 1, "of no class, and none is claimed"


def test_no_positives_or_nothing_read_gives_null() -> None:
    assert ranked([[0.5, 0.4]], [[0, 0]])["map"] is None
    result = MeanAveragePrecision(np.array([1, 0]), 2).result()
    assert (result["map"], result["map_listed"], result["hit1"], result["n_read"]) == (None, 0, None, 0)
    json.dumps(result, allow_nan=False)
    with pytest.raises(AssertionError, match="listed"):
        ranked([[0.5], [0.5]], [[0], [1]], listed=1)


def slow_average_precision(scores: list[float], positive: list[bool]) -> float:
    """The area under the steps of the precision-recall curve, threshold by threshold."""
    area = recall_before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [right for score, right in zip(scores, positive) if score >= threshold]
        recall = sum(chosen) / sum(positive)
        area += (recall - recall_before) * sum(chosen) / len(chosen)
        recall_before = recall
    return area


@settings(max_examples=60, deadline=None)
@given(data=st.data(), samples=st.integers(1, 30), classes=st.integers(1, 4), levels=st.integers(1, 12))
def test_against_a_slow_count_and_in_any_batches(data: st.DataObject, samples: int, classes: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    scores = torch.randint(levels, (samples, classes), generator=generator).float() / levels
    multi_hot = torch.randint(2, (samples, classes), generator=generator)
    whole, parts = (MeanAveragePrecision(multi_hot.sum(0).numpy(), samples) for _ in range(2))
    whole.update(scores, multi_hot)
    order, cut = torch.randperm(samples, generator=generator), data.draw(st.integers(0, samples))
    for rows in (order[:cut], order[cut:]):
        parts.update(scores[rows], multi_hot[rows])
    assert parts.result() == whole.result()
    occurring = [place for place in range(classes) if multi_hot[:, place].any()]
    slow = [
        slow_average_precision(scores[:, place].tolist(), multi_hot[:, place].bool().tolist()) for place in occurring
    ]
    assert [whole.result()["per_class"][place][0] for place in occurring] == pytest.approx(slow)
    assert (
        whole.result()["map"]
        == whole.result()["map_listed"]
        == (pytest.approx(sum(slow) / len(slow)) if slow else None)
    )


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
    value = outcomes.result(np.arange(6), ["a", "b", "c"])
    assert value["confusions"][0] == {"true": "a", "predicted": "b", "count": 2, "of": 4}
    assert {(pair["true"], pair["predicted"]) for pair in value["confusions"]} == {
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
        ("c", "a"),
    }
    assert value["top1_interval"]["low"] <= 1 / 6 <= value["top1_interval"]["high"]
    assert value["top1_interval"]["sources"] == 6


def test_a_row_that_is_not_a_number_is_wrong() -> None:
    outcomes = Outcomes()
    outcomes.update([0], torch.tensor([[float("nan"), 0.5]]), torch.tensor([0]))
    assert outcomes.predicted.tolist() == [-1]


def test_nothing_read() -> None:
    assert Outcomes().result(np.zeros(0), ["a"]) == {"top1_interval": None, "ece": None, "confusions": []}


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    assert calibration_error(confidence, np.array([True, True, True, False])) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert calibration_error(np.array([1.0, 0.99]), np.array([False, False])) == pytest.approx(0.995)


def test_a_calibrated_classifier_has_a_small_error() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 50_000)
    assert calibration_error(confidence, rng.random(50_000) < confidence) < 0.01


# --- the temperature --------------------------------------------------------------------------------------------------


def one_view(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(-1)[:, None]


@pytest.mark.parametrize("factor", [0.05, 1.0, 4.0])
def test_a_known_temperature_is_found(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    assert temperature(one_view(factor * logits), labels) == pytest.approx(factor, rel=0.03)


def test_the_temperature_is_the_best_with_one_more_error() -> None:
    """The error: every sample once more, with the weight 1 / N and with its second class as the right one."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(12, 4, generator=generator), torch.arange(12) % 4
    logits[torch.arange(12), labels] += 0.8
    candidates = np.geomspace(0.05, 20, 6_000)
    second = logits.argsort(1, descending=True)[:, 1]
    losses = [
        float(
            torch.nn.functional.cross_entropy(logits.double() / each, labels, reduction="sum")
            + torch.nn.functional.cross_entropy(logits.double() / each, second)
        )
        for each in candidates
    ]
    assert temperature(one_view(logits), labels) == pytest.approx(candidates[np.argmin(losses)], rel=2e-3)


def test_the_temperature_is_that_of_the_mean_over_views() -> None:
    rng = np.random.default_rng(0)
    labels, logits = np.arange(40) % 3, rng.normal(size=(40, 3, 3))
    logits[np.arange(40), :, labels] += 1

    def loss(t: float) -> float:
        powers = np.exp(logits / t)
        means = (powers / powers.sum(-1, keepdims=True)).mean(1)
        second = np.sort(means, 1)[:, 1]
        return float(-np.log(means[np.arange(40), labels]).sum() - np.log(second).mean())

    found = temperature(torch.from_numpy(logits).softmax(-1), torch.from_numpy(labels))
    assert loss(found) <= min(loss(found * factor) for factor in (0.1, 0.5, 0.9, 0.99, 1.01, 1.1, 2, 10))


@pytest.mark.parametrize("samples", [4, 12, 400])
def test_all_right_is_not_certain(samples: int) -> None:
    """A classifier that is right on all N samples becomes as sure as N of N + 1, and not surer for its own scale."""
    labels = torch.arange(samples) % 4
    logits = torch.nn.functional.one_hot(labels).float()
    found = temperature(one_view(logits), labels)
    confidence = (logits / found).softmax(-1).amax(1)
    torch.testing.assert_close(confidence, torch.full_like(confidence, samples / (samples + 1)), atol=1e-4, rtol=0)
    assert temperature(one_view(2 * logits), labels) == pytest.approx(2 * found, rel=1e-3)


def test_temperatures_have_bounds() -> None:
    labels = torch.arange(50) % 2
    wrong = 5 * torch.nn.functional.one_hot(1 - labels).float()
    assert temperature(one_view(wrong), labels) == TEMPERATURES[1]
    assert temperature(one_view(1e-5 * -wrong), labels) == TEMPERATURES[0]
    assert temperature(torch.zeros(0, 1, 3), torch.zeros(0, dtype=torch.int64)) == 1
