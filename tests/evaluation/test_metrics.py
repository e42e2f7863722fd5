"""Counts against hand counts, and that batches, ties and NaN change nothing they should not."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cover.evaluation.metrics import TopK


def counted(scores: list[list[float]], labels: list[int], listed: int | None = None) -> dict:
    counter = TopK(len(scores[0]), len(labels) if listed is None else listed)
    counter.update(torch.tensor(scores), torch.tensor(labels))
    return counter.result()


def test_hand_count() -> None:
    scores = [[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]
    assert counted(scores, [0, 1, 1, 2], listed=5) == {
        "top1": 0.75, "top5": None, "mean_class": (1 + 0.5 + 1) / 3, "top1_listed": 0.6, "n_read": 4, "n_listed": 5,
        "per_class": [[1, 1], [1, 2], [1, 1]],
    }  # fmt: skip


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
@given(seed=st.integers(0, 2**31), samples=st.integers(1, 60), classes=st.integers(2, 12), cuts=st.lists(st.integers(0, 60), max_size=5))
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
