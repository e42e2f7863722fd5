"""Steps of one length each hold, over a run, what the mixed steps hold."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cover.errors import UserError
from cover.mixture.alternation import Alternating
from cover.mixture.schedule import Schedule, Source, split_batch
from cover.training.recipe import Augment, Data, Recipe
from cover.training.train import train


def sources(rates: list[int]) -> list[Source]:
    """Two video sets and an image set."""
    return [
        Source(name, np.arange(50), frames, Fraction(rate, sum(rates)))
        for name, frames, rate in zip(("hills", "rivers", "photos"), (8, 8, 1), rates)
    ]


rates = st.lists(st.integers(1, 9), min_size=3, max_size=3)


@given(rates, st.integers(4, 40), st.integers(0, 60))
def test_as_many_samples_of_every_set_as_in_mixed_steps(given_rates: list[int], batch: int, steps: int) -> None:
    groups = split_batch(sources(given_rates), batch, 1)
    mixed, alternating = Schedule(0, groups), Alternating(0, groups)
    ours, theirs = alternating.drawn(steps), mixed.drawn(steps)
    assert sum(ours.values()) == sum(theirs.values()) == steps * batch
    assert all(abs(ours[name] - theirs[name]) <= batch + 1 for name in ours)
    if steps and not steps % batch:
        assert {group.frames: sum(ours[s.name] for s in group.sources) for group in groups} == {
            group.frames: steps * group.samples for group in groups
        }


@given(rates, st.integers(4, 30))
def test_a_step_is_of_one_length_and_drawn_tells_what_steps_hold(given_rates: list[int], batch: int) -> None:
    schedule = Alternating(0, split_batch(sources(given_rates), batch, 1))
    counted = dict.fromkeys(("hills", "rivers", "photos"), 0)
    for step in range(20):
        draws = schedule.step(step)
        assert sorted(map(len, draws)) == [0, batch]
        for draw in (draw for group in draws for draw in group):
            counted[draw.dataset] += 1
        assert schedule.drawn(step + 1) == counted
    assert Alternating(0, schedule.groups).step(17) == schedule.step(17), "any step first"


def test_no_clip_is_seen_again_before_all_have_been_seen() -> None:
    schedule = Alternating(0, split_batch(sources([1, 1, 2]), 10, 1))
    rows = [draw.row for step in range(40) for group in schedule.step(step) for draw in group if draw.dataset == "hills"]
    assert sorted(rows[:50]) == list(range(50))


def recipe(sandbox: Path, out: Path, **changes: object) -> Recipe:
    base = Recipe(
        Data(["ssv2", "imagenet"], str(sandbox), frames=4, batches="alternating", weights={"ssv2": 1, "imagenet": 1}), str(out), steps=6,
        batch=8, workers=0, log_every=1, evaluate_every=-1,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_run_of_alternating_steps(sandbox: Path, tmp_path: Path) -> None:
    run = train(recipe(sandbox, tmp_path / "run", accumulation=2, augment=Augment(mixup=0.8)))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = [line["seen"] for line in lines if line["event"] == "train"]
    assert [sum(each.values()) for each in seen] == [8 * (step + 1) for step in range(6)]
    assert seen[-1] == {"ssv2": 24, "imagenet": 24}
    losses = [{name for name, loss in line["loss"].items() if loss is not None} for line in lines if line["event"] == "train"]
    assert all(len(names) == 1 for names in losses)


def test_what_cannot_be_shared_out_is_said(sandbox: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="accumulation"):
        train(recipe(sandbox, tmp_path / "run", accumulation=3))
