"""Class balance: exact quotas of every class at every draw, epochs of its own for every class, weights with mean 1."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cover.errors import UserError
from cover.mixture.balance import ClassBalance, class_weights, draws_per_cycle
from cover.mixture.dataset import MixtureDataset
from cover.mixture.loader import packs
from cover.mixture.mixture import Mixture
from cover.mixture.rates import Data
from cover.mixture.schedule import Draw, Group, Quotas, Schedule, draw_seed, split_batch

MakeSet = Callable[..., Path]
COUNTS = st.lists(st.integers(1, 60), min_size=1, max_size=8)
BALANCE = st.floats(0.01, 1) | st.just(1.0)


def labels_of(counts: list[int], seed: int = 0) -> np.ndarray:
    """Labels 0, 3, 6, … in a random order: some classes have no rows."""
    return np.random.default_rng(seed).permutation(np.repeat(3 * np.arange(len(counts)), counts))


def balanced_set(counts: list[int], balance: float, **changes: Any) -> MixtureDataset:
    labels = labels_of(counts)
    rows = 5 + 2 * np.arange(len(labels))
    return replace(MixtureDataset("a", rows, 8, balance=ClassBalance.of(labels, balance)), **changes)


def draws_of(schedule: Schedule, step: int) -> list[Draw]:
    return [draw for group in schedule.step(step) for draw in group]


# --- quotas -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(COUNTS, BALANCE)
def test_every_class_is_within_one_draw_of_its_rate_at_every_draw(counts: list[int], balance: float) -> None:
    order, drawn = ClassBalance.of(labels_of(counts), balance), [0] * len(counts)
    per_cycle = order.per_cycle.tolist()
    assert sum(per_cycle) == order.cycle
    for number in range(min(order.cycle + 200, 2000)):
        kind, earlier = order.draw(number)
        assert earlier == drawn[kind]
        drawn[kind] += 1
        # |drawn - draws * rate| < 1, times the cycle so that all numbers are integers
        errors = [count * order.cycle - (number + 1) * rate for count, rate in zip(drawn, per_cycle)]
        assert max(map(abs, errors)) < order.cycle
    assert order.drawn(number + 1).tolist() == drawn


@settings(max_examples=60)
@given(COUNTS, BALANCE)
def test_rates_follow_the_size_of_the_class(counts: list[int], balance: float) -> None:
    wanted = np.array(counts, float) ** (1 - balance)
    np.testing.assert_allclose(ClassBalance.of(labels_of(counts), balance).rates, wanted / wanted.sum(), rtol=0.006)


def test_at_1_the_rates_are_equal_whatever_the_number_of_classes() -> None:
    for kinds in (1, 7, 700, 6000, 21_841):
        assert draws_per_cycle(np.arange(1, kinds + 1), 1.0).tolist() == [1] * kinds


def test_a_long_cycle_is_limited() -> None:
    draws = draws_per_cycle(np.array([1, 10**9]), 0.1)
    assert draws.min() >= 1
    assert draws.sum() <= 2**20 + 1


@settings(max_examples=40)
@given(COUNTS, st.sampled_from([0.25, 0.5, 1.0]))
def test_the_order_is_that_of_the_quotas_between_data_sets(counts: list[int], balance: float) -> None:
    order = ClassBalance.of(labels_of(counts), balance)
    no_rows = np.zeros(0, np.int64)
    sets = (MixtureDataset(str(place), no_rows, rate=Fraction(int(n))) for place, n in enumerate(order.per_cycle))
    quotas = Quotas(Group(1, 1, tuple(sets)))
    before = np.array(quotas.after(0))
    for number in range(min(order.cycle, 400)):
        after = np.array(quotas.after(number + 1))
        assert (after - before).argmax() == order.draw(number)[0]
        before = after


# --- the schedule -----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(COUNTS, BALANCE, st.integers(2, 24), st.integers(1, 3), st.integers(0, 2**32))
def test_classes_walk_their_own_shuffled_epochs(
    counts: list[int], balance: float, batch: int, crops: int, seed: int
) -> None:
    dataset = balanced_set(counts, balance, crops=crops, rate=Fraction(2, 3))
    other = MixtureDataset("b", np.arange(20), 8, Fraction(1, 3))
    class_of = dict(zip(dataset.rows.tolist(), labels_of(counts).tolist()))
    rates = dict(zip(sorted(set(class_of.values())), dataset.balance.rates))  # type: ignore[union-attr]
    schedule, clips = Schedule(seed, split_batch([dataset, other], batch, 1)), dict[tuple[int, int], Draw]()
    for step in range(12):
        clips |= {(draw.row, draw.epoch): draw for draw in draws_of(schedule, step) if draw.dataset == "a"}
        drawn = Counter(class_of[row] for row, _ in clips)
        assert all(abs(drawn[kind] - len(clips) * rate) < 1 for kind, rate in rates.items())
        assert len(clips) == -(-schedule.drawn(step + 1)["a"] // crops)
    for kind in rates:
        rows = [row for row, label in class_of.items() if label == kind]
        whole, rest = divmod(drawn[kind], len(rows))
        epochs = Counter(epoch for row, epoch in clips if class_of[row] == kind)
        assert [epochs[epoch] for epoch in range(whole + 1)] == [len(rows)] * whole + [rest]
    assert all((draw.clip_seed or draw.seed) == draw_seed(seed, "a", draw.epoch, draw.row) for draw in clips.values())


def test_each_epoch_of_a_class_has_another_order() -> None:
    schedule = Schedule(0, split_batch([balanced_set([30, 30], 1.0)], 1, 1))
    draws = [draws_of(schedule, step)[0] for step in range(180)]
    labels = dict(zip(schedule.groups[0].datasets[0].rows.tolist(), labels_of([30, 30]).tolist()))
    orders = {
        (kind, epoch): tuple(draw.row for draw in draws if draw.epoch == epoch and labels[draw.row] == kind)
        for kind in (0, 3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == 6
    ranks = {key: tuple(np.argsort(np.argsort(order))) for key, order in orders.items()}
    assert len(set(ranks.values())) == 6, "two classes of one size do not share an order"


def test_any_step_first_and_in_another_process() -> None:
    groups = split_batch([balanced_set([40, 9, 3], 0.5), MixtureDataset("b", np.arange(50), 1)], 8, 1)
    played = Schedule(1, groups)
    wanted = [played.step(step) for step in range(60)]
    jumping, copied = Schedule(1, groups), pickle.loads(pickle.dumps(Schedule(1, groups)))
    for step in (59, 0, 31, 30, 7):
        assert jumping.step(step) == copied.step(step) == wanted[step]


def test_without_balance_the_draws_are_those_of_whole_epochs() -> None:
    """The order of the rows of an epoch is a permutation from the seed of the epoch, as before class balance."""
    datasets = [MixtureDataset("a", 3 * np.arange(11), 8), MixtureDataset("b", np.arange(7), 1)]
    schedule, drawn = Schedule(9, split_batch(datasets, 5, 1)), Counter[str]()
    for step in range(20):
        for group, dataset in zip(schedule.step(step), datasets):
            numbers = range(drawn[dataset.name], drawn[dataset.name] + len(group))
            drawn[dataset.name] += len(group)
            wanted = set()
            for epoch, place in (divmod(number, len(dataset.rows)) for number in numbers):
                generator = np.random.default_rng(draw_seed(9, dataset.name, epoch, 2**64 - 1))
                row = int(dataset.rows[generator.permutation(len(dataset.rows))[place]])
                wanted.add(Draw(dataset.name, row, epoch, draw_seed(9, dataset.name, epoch, row)))
            assert set(group) == wanted


# --- weights ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(COUNTS, st.floats(0, 1), st.floats(0, 1))
def test_class_weights_have_mean_1_over_the_draws(counts: list[int], exponent: float, balance: float) -> None:
    order, sizes = ClassBalance.of(labels_of(counts), balance), np.array([*counts, 0])
    for rates in (None, np.append(order.rates, 0)):
        weights = class_weights(sizes, exponent, rates)
        drawn = sizes / sizes.sum() if rates is None else rates
        assert float((weights * drawn).sum()) == pytest.approx(1, rel=1e-5)
        scaled = weights[:-1] * np.array(counts) ** exponent
        np.testing.assert_allclose(scaled, scaled[0], rtol=1e-5)
        assert weights[-1] == 0


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    """`class_weight="balanced"` of scikit-learn: rows / (classes * count)."""
    counts = np.array([10, 30, 60])
    np.testing.assert_allclose(class_weights(counts, 1.0), 100 / (3 * counts), rtol=1e-6)


# --- a mixture --------------------------------------------------------------------------------------------------------

FILES = {f"{kind}{number}.png": kind for kind, count in (("x", 7), ("y", 2), ("z", 1)) for number in range(count)}


def test_a_mixture_balances_the_sets_that_it_names(make_set: MakeSet) -> None:
    make_set({"a.png": "x", "b.png": "y", "c.png": "y"}, name="other")
    catalog = make_set(FILES)
    data = Data(["mine", "other"], str(catalog), weights={"mine": 3, "other": 1}, balance={"mine": 1})
    mixture = Mixture.open(replace(data, class_weights={"other": "balanced"}))
    mine, other = mixture.datasets
    assert (mine.class_weights, other.balance) == (None, None)
    schedule = mixture.schedule(8)
    rows = [draw.row for step in range(10) for draw in draws_of(schedule, step) if draw.dataset == "mine"]
    labels = Counter(mine.manifest.row(row).label for row in rows)
    assert (len(rows), labels) == (60, {0: 20, 1: 20, 2: 20})
    facts = mixture.describe_classes()
    assert facts["mine"] == {
        "classes": 3,
        "rates": pytest.approx([1 / 3, 1 / 3]),
        "row_epochs": pytest.approx([10 / 21, 10 / 3]),
        "weights": [1, 1],
    }
    assert facts["other"]["weights"] == pytest.approx([3 / 4, 3 / 2])
    pack = next(packs(schedule, mixture.reader(16), 0, 1, workers=0))
    assert pack.class_weight is not None
    for number, place in enumerate(pack.dataset.tolist()):
        wanted = [1.5, 0.75][int(pack.targets[number, 1])] if place else 1
        assert float(pack.class_weight[number]) == pytest.approx(wanted)


def test_after_a_flip_that_exchanges_classes_the_class_in_the_manifest_counts(make_set: MakeSet) -> None:
    """Both classes get as much weight: each is the target of half of the left and of half of the right rows."""
    catalog = make_set({"a.png": "go left", "b.png": "go right", "c.png": "go right"}, flip="swap")
    mixture = Mixture.open(Data(["mine"], str(catalog), class_weights={"mine": "balanced"}))
    reader, row = mixture.reader(16), 0
    samples = [reader.read(Draw("mine", row, 0, seed)) for seed in range(16)]
    assert {int(sample.targets[0]) for sample in samples} == {0, 1}
    assert {sample.class_weight for sample in samples} == {1.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"balance": {"mime": 1}}, r'data\.balance: "mime" is not one of data\.sets; did you mean "mine"'),
        ({"class_weights": {"x": "balanced"}}, r'data\.class_weights: "x" is not one of data\.sets'),
        ({"balance": {"mine": 1.5}}, r"data\.balance\.mine: 1\.5 is not in \[0, 1\]"),
        ({"balance": {"mine": float("nan")}}, r"data\.balance\.mine: nan is not in"),
        ({"class_weights": {"mine": -0.1}}, r"data\.class_weights\.mine: -0\.1 is not in \[0, 1\]"),
    ],
)
def test_refused_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Data(["mine"], **changes).check()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["balance", "class_weights"])
def test_a_multi_label_set_is_refused(make_set: MakeSet, key: str) -> None:
    catalog = make_set({"a.png": "x|y", "b.png": "y"}, column="labels")
    Mixture.open(Data(["mine"], str(catalog), **{key: {"mine": 0.0}}))
    with pytest.raises(UserError, match=rf"^data\.{key}\.mine: [^\n]*any number of classes[^\n]*$"):
        Mixture.open(Data(["mine"], str(catalog), **{key: {"mine": 1.0}}))
