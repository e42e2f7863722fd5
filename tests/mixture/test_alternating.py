"""Alternating steps: over a run they hold what the mixed steps hold, and what one step holds is known to a plan and to
the log.
"""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cover.errors import UserError
from cover.hardware import find_device, make_cluster
from cover.mixture.dataset import MixtureDataset
from cover.mixture.published import planned_mixture
from cover.mixture.schedule import Alternating, Schedule, split_batch
from cover.planning.estimate import plan
from cover.planning.reading import reading_costs
from cover.training.recipe import Augment, Data, Recipe
from cover.training.train import train


def datasets(rates: list[int]) -> list[MixtureDataset]:
    """Two video sets and an image set."""
    return [
        MixtureDataset(name, np.arange(50), frames, Fraction(rate, sum(rates)))
        for name, frames, rate in zip(("hills", "rivers", "photos"), (8, 8, 1), rates)
    ]


rates = st.lists(st.integers(1, 9), min_size=3, max_size=3)


@given(rates, st.integers(4, 40), st.integers(0, 60))
def test_as_many_samples_of_every_set_as_in_mixed_steps(given_rates: list[int], batch: int, steps: int) -> None:
    groups = split_batch(datasets(given_rates), batch, 1)
    mixed, alternating = Schedule(0, groups), Alternating(0, groups)
    ours, theirs = alternating.drawn(steps), mixed.drawn(steps)
    assert sum(ours.values()) == sum(theirs.values()) == steps * batch
    assert all(abs(ours[name] - theirs[name]) <= batch + 1 for name in ours)
    if steps and not steps % batch:
        assert {group.frames: sum(ours[each.name] for each in group.datasets) for group in groups} == {
            group.frames: steps * group.samples for group in groups
        }


@given(rates, st.integers(4, 30))
def test_a_step_is_of_one_length_and_drawn_tells_what_steps_hold(given_rates: list[int], batch: int) -> None:
    schedule = Alternating(0, split_batch(datasets(given_rates), batch, 1))
    counted = dict.fromkeys(("hills", "rivers", "photos"), 0)
    for step in range(20):
        draws = schedule.step(step)
        assert sorted(map(len, draws)) == [0, batch]
        for draw in (draw for group in draws for draw in group):
            counted[draw.dataset] += 1
        assert schedule.drawn(step + 1) == counted
    assert Alternating(0, schedule.groups).step(17) == schedule.step(17), "any step first"


def test_no_clip_is_seen_again_before_all_have_been_seen() -> None:
    schedule = Alternating(0, split_batch(datasets([1, 1, 2]), 10, 1))
    rows = [
        draw.row for step in range(40) for group in schedule.step(step) for draw in group if draw.dataset == "hills"
    ]
    assert sorted(rows[:50]) == list(range(50))


def recipe(sandbox: Path, out: Path, **changes: object) -> Recipe:
    base = Recipe(
        Data(["ssv2", "imagenet"], str(sandbox), frames=4, batches="alternating", weights={"ssv2": 1, "imagenet": 1}),
        str(out),
        steps=6,
        batch=8,
        workers=0,
        log_every=1,
        evaluate_every=-1,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_run_of_alternating_steps(sandbox: Path, tmp_path: Path) -> None:
    run = train(recipe(sandbox, tmp_path / "run", augment=Augment(mixup=0.8)))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    visited = [line["seen"] for line in lines if line["event"] == "train"]
    assert [sum(each.values()) for each in visited] == [8 * (step + 1) for step in range(6)]
    assert visited[-1] == {"ssv2": 24, "imagenet": 24}
    losses = [
        {name for name, loss in line["loss"].items() if loss is not None} for line in lines if line["event"] == "train"
    ]
    assert all(len(names) == 1 for names in losses)


def test_micro_batches_and_ranks_are_refused(sandbox: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.batches") as error:
        train(recipe(sandbox, tmp_path / "run", accumulation=2))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"data\.batches"):
        planned(recipe(sandbox, tmp_path / "run"), devices=2)


# --- what a step holds ------------------------------------------------------------------------------------------------


@given(rates, st.integers(4, 40))
def test_the_mean_and_the_largest_step_are_those_of_the_draws(given_rates: list[int], batch: int) -> None:
    for kind in (Schedule, Alternating):
        schedule = kind(0, split_batch(datasets(given_rates), batch, 1))
        lengths = [group.frames for group in schedule.groups]
        frames = [
            sum(len(draws) * length for draws, length in zip(schedule.step(step), lengths, strict=True))
            for step in range(batch)
        ]
        assert sum(samples * length for samples, length in schedule.mean_step) * batch == sum(frames)
        assert sum(samples * length for samples, length in schedule.largest_step) == max(frames)


def planned(recipe: Recipe, devices: int = 1) -> dict[str, Any]:
    mixture = planned_mixture(recipe.data)
    costs = reading_costs(recipe, mixture, dict.fromkeys(recipe.data.sets, 10.0))
    return plan(recipe, make_cluster(find_device("h200"), devices, 12, 0.4, 400.0), mixture, costs)


def test_a_plan_has_the_memory_of_the_largest_step_and_the_time_of_the_mean_one(sandbox: Path, tmp_path: Path) -> None:
    data = replace(recipe(sandbox, tmp_path).data, weights={"ssv2": 2, "imagenet": 1})
    alternating = recipe(sandbox, tmp_path / "run", batch=60, data=data)
    mixed = replace(alternating, data=replace(alternating.data, batches="mixed"))
    clips = replace(mixed, data=replace(mixed.data, sets=["ssv2"], weights={}))
    in_turn, together, whole = planned(alternating), planned(mixed), planned(clips)
    assert in_turn["time"] == together["time"]
    assert in_turn["step"]["tokens"] == together["step"]["tokens"]
    assert together["step"]["groups"] == [{"samples": 40, "frames": 4}, {"samples": 20, "frames": 1}]
    assert [in_turn["step"]["holds"], together["step"]["holds"]] == [
        "60 clips of 4, or 60 images",
        "40 clips of 4 + 20 images",
    ]
    activations = [[way["activations"] for way in facts["memory"]["ways"]] for facts in (in_turn, together, whole)]
    assert activations[0] == pytest.approx(activations[2], rel=1e-3), "60 clips of 4 frames at once"  # beside a head
    assert all(ours > 1.2 * theirs for ours, theirs in zip(activations[0], activations[1], strict=True))


def test_the_log_has_the_work_of_the_mean_step(sandbox: Path, tmp_path: Path) -> None:
    run = train(recipe(sandbox, tmp_path / "run"))
    start = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    # tokens of 8 clips of 4 frames, and of 8 images, of 32 pixels
    clips_and_images = [8 * 4 * (1 + 16), 8 * 1 * (1 + 16)]
    assert start["tokens_per_step"] == sum(clips_and_images) / 2, "as many steps of each"
