"""Quotas hold exactly at every step, whatever the mixture; any step can be asked for first, on any number of ranks."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cover.errors import UserError
from cover.mixture.dataset import MixtureDataset
from cover.mixture.rates import rates_by, steps_for
from cover.mixture.schedule import Group, Quotas, Schedule, draw_seed, split_batch

STEPS = 24


def make_datasets(
    sizes: list[int], frames: list[int], alpha: float = 1.0, weights: list[float] | None = None
) -> list[MixtureDataset]:
    """Sets s0, s1, … whose usable rows are 3, 10, 17, …: not all rows of a manifest can be drawn."""
    names = [f"s{number}" for number in range(len(sizes))]
    rates = rates_by(dict(zip(names, sizes)), alpha, dict(zip(names, weights)) if weights else None)
    return [
        MixtureDataset(name, 3 + 7 * np.arange(size), length, rates[name])
        for name, size, length in zip(names, sizes, frames)
    ]


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[int, tuple[Group, ...]]:
    """A seed and the groups of a random mixture of one to six data sets."""
    count = draw(st.integers(1, 6))
    each = {"min_size": count, "max_size": count}
    sizes = draw(st.lists(st.integers(1, 400), **each))
    frames = draw(st.lists(st.sampled_from([1, 4, 8, 16]), **each))
    weights = draw(st.none() | st.lists(st.floats(1e-3, 1e3), **each))
    batch = draw(st.integers(len(set(frames)), 120))
    datasets = make_datasets(sizes, frames, draw(st.floats(0, 1.5)), weights)
    return draw(st.integers(0, 2**32)), split_batch(datasets, batch, 1)


@settings(max_examples=60, deadline=None)
@given(mixtures())
def test_quotas_hold_at_every_step(mixture: tuple[int, tuple[Group, ...]]) -> None:
    seed, groups = mixture
    schedule, drawn = Schedule(seed, groups), Counter[str]()
    for step in range(STEPS):
        draws = schedule.step(step)
        assert [len(group) for group in draws] == [group.samples for group in groups]
        drawn.update(draw.dataset for group in draws for draw in group)
        for group in groups:
            total = sum(dataset.rate for dataset in group.datasets)
            for dataset in group.datasets:
                wanted = (step + 1) * group.samples * dataset.rate / total
                assert isinstance(wanted, Fraction)
                assert abs(drawn[dataset.name] - wanted) < 1
        assert schedule.drawn(step + 1) == {
            dataset.name: drawn[dataset.name] for group in groups for dataset in group.datasets
        }


@settings(max_examples=30, deadline=None)
@given(mixtures(), st.permutations(range(8)))
def test_any_step_first(mixture: tuple[int, tuple[Group, ...]], order: list[int]) -> None:
    seed, groups = mixture
    in_order = Schedule(seed, groups)
    wanted = [in_order.step(step) for step in range(8)]
    jumping = Schedule(seed, groups)
    assert {step: jumping.step(step) for step in order} == dict(enumerate(wanted))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 400), min_size=2, max_size=4), st.integers(1, 12))
def test_the_ranks_share_one_global_batch(seed: int, sizes: list[int], quarter: int) -> None:
    frames = [16, 8, 1, 1][: len(sizes)]
    groups = tuple(
        replace(group, samples=4 * group.samples) for group in split_batch(make_datasets(sizes, frames), quarter + 2, 1)
    )
    schedule = Schedule(seed, groups)
    for step in (0, 5):
        whole = schedule.step(step)
        for ranks in (1, 2, 4):
            slices = [schedule.rank_step(step, rank, ranks) for rank in range(ranks)]
            assert tuple(sum((part[group] for part in slices), ()) for group in range(len(groups))) == whole
            assert {tuple(map(len, part)) for part in slices} == {tuple(group.samples // ranks for group in groups)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(4, 30))
def test_every_set_walks_whole_epochs(seed: int, sizes: list[int], batch: int) -> None:
    datasets = make_datasets(sizes, [8, 1, 4, 1][: len(sizes)])
    schedule = Schedule(seed, split_batch(datasets, batch, 1))
    draws = [draw for step in range(30) for group in schedule.step(step) for draw in group]
    for dataset in datasets:
        mine = [draw for draw in draws if draw.dataset == dataset.name]
        whole, rest = divmod(len(mine), len(dataset.rows))
        for epoch in range(whole + 1):
            rows = [draw.row for draw in mine if draw.epoch == epoch]
            assert len(rows) == len(set(rows)) == (len(dataset.rows) if epoch < whole else rest)
            assert set(rows) <= set(dataset.rows.tolist())


def test_epochs_are_shuffled_each_its_own_way() -> None:
    schedule = Schedule(0, split_batch(make_datasets([40], [8]), 1, 1))
    draws = [schedule.step(step)[0][0] for step in range(120)]
    orders = [tuple(draw.row for draw in draws if draw.epoch == epoch) for epoch in range(3)]
    assert len({*orders, tuple(sorted(orders[0]))}) == 4


def test_the_data_sets_of_a_group_are_mixed_over_the_ranks() -> None:
    schedule = Schedule(0, split_batch(make_datasets([100, 100], [8, 8]), 32, 2))
    for step in range(5):
        first, second = (schedule.rank_step(step, rank, 2)[0] for rank in (0, 1))
        assert {draw.dataset for draw in first} == {draw.dataset for draw in second} == {"s0", "s1"}
    orders = {tuple(draw.dataset for draw in schedule.step(step)[0]) for step in range(5)}
    assert len(orders) == 5, "no place of a step belongs to a data set"


def test_seeds_tell_everything_apart() -> None:
    places = [
        (seed, name, epoch, row) for seed in (0, 1) for name in ("a", "b") for epoch in range(4) for row in range(50)
    ]
    seeds = {draw_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert max(seeds).bit_length() == 64
    schedule = Schedule(3, split_batch(make_datasets([9, 5], [8, 1]), 8, 1))
    for draw in (draw for step in range(6) for group in schedule.step(step) for draw in group):
        assert draw.seed == draw_seed(3, draw.dataset, draw.epoch, draw.row)


def test_another_seed_is_another_order() -> None:
    groups = split_batch(make_datasets([50], [8]), 10, 1)
    assert Schedule(0, groups).step(0) != Schedule(1, groups).step(0)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**7), min_size=1), st.floats(0, 1.5))
def test_rates_follow_size_to_the_alpha(sizes: dict[str, int], alpha: float) -> None:
    rates = rates_by(sizes, alpha)
    total = sum(size**alpha for size in sizes.values())
    assert sum(rates.values()) == 1
    assert {name: float(rate) for name, rate in rates.items()} == pytest.approx(
        {n: s**alpha / total for n, s in sizes.items()}, abs=1e-8
    )


def test_explicit_weights_replace_sizes() -> None:
    assert rates_by({"a": 10, "b": 10_000}, weights={"a": 3, "b": 1}) == {"a": Fraction(3, 4), "b": Fraction(1, 4)}


def test_longest_clips_first_and_images_last_at_least_one_each() -> None:
    datasets = make_datasets([1, 100_000, 1, 1], [4, 8, 1, 16])
    groups = split_batch(datasets, 8, 1)
    assert [(group.frames, group.samples) for group in groups] == [(16, 1), (8, 5), (4, 1), (1, 1)]
    assert [(group.frames, group.samples) for group in split_batch(datasets, 64, 1)] == [
        (16, 1),
        (8, 61),
        (4, 1),
        (1, 1),
    ]
    wanted = Schedule(0, groups).rates
    assert sum(wanted.values()) == pytest.approx(1)
    assert wanted["s1"] == 0.625


def test_rates_by_wanted_epochs_and_the_steps_that_make_them() -> None:
    sizes, epochs = {"a": 100, "b": 1000}, {"a": 30, "b": 1.5}
    assert rates_by(sizes, epochs=epochs) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    steps = steps_for(sizes, epochs, batch=32)
    assert steps == math.ceil(4500 / 32)
    datasets = [
        MixtureDataset(name, np.arange(size), 1, rates_by(sizes, epochs=epochs)[name]) for name, size in sizes.items()
    ]
    drawn = Schedule(0, split_batch(datasets, 32, 1)).drawn(steps)
    assert {name: drawn[name] / sizes[name] for name in sizes} == pytest.approx(epochs, rel=0.01)
    with pytest.raises(UserError, match=r"^data\.epochs\.b: a positive number of epochs is needed[^\n]*$"):
        rates_by(sizes, epochs={"a": 1})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_positive_number(weight: float) -> None:
    with pytest.raises(UserError, match=r"^data\.weights\.b: a positive weight is needed[^\n]*$"):
        rates_by({"a": 1, "b": 2}, weights={"a": 1.0, "b": weight})


@pytest.mark.parametrize(
    ("batch", "divisor", "message"),
    [
        (2, 1, "batch: 2 is too small: samples of 3 lengths need at least one each"),
        (4, 2, "holds 1 samples of 4 frames, not a multiple of ranks x accumulation = 2"),
        (9, 2, "not a multiple of"),
    ],
)
def test_batches_that_cannot_be_shared_out(batch: int, divisor: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        split_batch(make_datasets([5, 5, 5], [8, 4, 1]), batch, divisor)
    assert "\n" not in str(caught.value)


@settings(max_examples=40, deadline=None)
@given(mixtures(), st.integers(1, 4))
def test_crops_of_a_clip_are_drawn_together(mixture: tuple[int, tuple[Group, ...]], crops: int) -> None:
    """A clip is drawn `crops` times in a row under as many seeds, and what is drawn of it otherwise is what one crop
    would draw.
    """
    seed, groups = mixture
    several = tuple(replace(g, datasets=tuple(replace(dataset, crops=crops) for dataset in g.datasets)) for g in groups)
    draws = [draw for step in range(STEPS) for group in Schedule(seed, several).step(step) for draw in group]
    assert len({draw.seed for draw in draws}) == len(draws)
    by_clip = Counter(draw.clip for draw in draws)
    assert max(by_clip.values()) <= crops
    # each set's last
    assert sum(count < crops for count in by_clip.values()) <= sum(len(group.datasets) for group in groups)
    for draw in draws:
        first = draw_seed(seed, draw.dataset, draw.epoch, draw.row)
        assert (draw.seed == first) if draw.clip_seed is None else (draw.clip_seed == first != draw.seed)
    for step in range(STEPS):
        for group in Schedule(seed, several).step(step):
            clips = [draw.clip for draw in group]
            assert all(clips[place] == clips[place + 1] for clip in set(clips) for place in _places(clips, clip)[:-1])


def _places(clips: list[tuple[str, int, int]], clip: tuple[str, int, int]) -> list[int]:
    return [place for place, other in enumerate(clips) if other == clip]


def test_steps_far_ahead_and_back() -> None:
    groups = split_batch(make_datasets([300, 70, 11], [8, 8, 1]), 10, 1)
    played, jumping = Schedule(1, groups), Schedule(1, groups)
    wanted = {step: played.step(step) for step in range(5000)}
    for step in (4999, 0, 2048, 1024, 1023, 4100, 3, 2049):
        assert jumping.step(step) == wanted[step]


def counted(group: Group, last: int) -> list[tuple[int, ...]]:
    """The counts after each of the first `last` steps, one step after the other, by the rule as it is published."""
    rates = [group.samples * fraction for fraction in group.fractions]
    counts, result = [0] * len(rates), []
    for step in range(1, last + 1):
        for _ in range(group.samples):
            # one more must not exceed the ceiling; the earliest deadline first, then the first data set
            open_ = [i for i, rate in enumerate(rates) if counts[i] < step * rate]
            counts[min(open_, key=lambda i: (math.ceil((counts[i] + 1) / rates[i]), i))] += 1
        result.append(tuple(counts))
    return result


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8), st.integers(1, 40), st.integers(0, 10**6))
def test_a_step_far_ahead_is_the_one_that_counting_finds(sizes: list[int], samples: int, seed: int) -> None:
    group = Group(
        8, samples, tuple(MixtureDataset(str(size), np.zeros(0, np.int64), rate=Fraction(size)) for size in sizes)
    )
    wanted = counted(group, 700)
    for step in np.random.default_rng(seed).integers(40, 700, 3).tolist():
        assert Quotas(group).after(step) == wanted[step - 1]


def test_the_millionth_step_needs_no_million_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [240_436, 168_913, 791_297, 383_393]
    group = Group(8, 48, tuple(MixtureDataset(str(size), np.zeros(0, np.int64), rate=Fraction(size)) for size in sizes))
    steps: list[int] = []
    real = Quotas._next
    monkeypatch.setattr(Quotas, "_next", lambda self, drawn, step: steps.append(step) or real(self, drawn, step))
    counts = Quotas(group).after(10**6)
    assert sum(counts) == 48 * 10**6
    assert all(abs(count - 48 * 10**6 * size / sum(sizes)) < 1 for count, size in zip(counts, sizes, strict=True))
    assert len(steps) < 1000
