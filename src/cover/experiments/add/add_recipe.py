"""Recipes of `cover add`, which train one more head of a released model, with the reasons for their settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cover import config
from cover.mixture.mixture import Mixture
from cover.mixture.schedule import Schedule
from cover.model.release import model_like, starts_untrained_in_time
from cover.training.recipe import Checkpoints, Data, Optimizer, Pattern, Recipe, Start
from cover.training.train import make_schedule, with_steps

AddMethod = Literal["probe", "replay", "alone"]

# A head that begins at zero needs some hundred updates whatever the size of its set, so the goal is a number of
# updates. At most 50 epochs: beyond that a set of hundreds is learned by heart (HMDB51 and UCF101 are usually
# fine-tuned for 50 to 100). At least 10: with fewer, the cosine of a large set ends too soon. A probe is a convex
# problem at a high rate and needs fewer.
UPDATES, LEAST_EPOCHS = 1000, 10
MOST_EPOCHS: dict[AddMethod, int] = {"probe": 30, "replay": 50, "alone": 50}
# Samples of the new set in a step. Where a step would be an eighth of the set or more, it holds fewer: for so small a
# set more updates are worth more than less noise.
BATCH, LEAST_BATCH, STEPS_IN_AN_EPOCH = 32, 8, 8
# Old samples for each new one under replay, so a third of a step. Rehearsal needs far less than equal amounts, and
# every old sample costs as much as a new one. Rates of the old sets follow the square root of their size: small ones
# count.
REPLAY, REPLAY_ALPHA = 0.5, 0.5
SAVES = 10  # checkpoints of a run: an interruption costs at most a tenth of it

# A probe is a convex problem over fixed features: it allows a high rate, and weight decay only makes it slower.
PROBE = Optimizer(lr=1e-2, weight_decay=0.0, warmup=0.05)
# Fine-tuning: pretrained weights move slowly, the lower layers most slowly (layer-wise decay as in BEiT and MAE), and
# the head, which begins at zero, moves fast. The warm-up is long, since Adam's second moments need some tens of steps.
FINE = Optimizer(lr=5e-4, layer_decay=0.75, head_lr=4.0, warmup=0.1)
SCRATCH = Optimizer(lr=1e-3, warmup=0.1)  # from random weights: every layer at the same rate
SMOOTHING = 0.1  # the usual value of fine-tuning; a network soon fits some hundred samples with certainty


@dataclass(frozen=True)
class AddRequest:
    """The head that `cover add` is to train: for data set `name`, on top of `release`. `epochs` of the new set; None:
    `epochs_for`.
    """

    release: Path
    name: str
    catalog: Path
    how: AddMethod
    out: Path
    epochs: float | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = -1


def batch_for(rows: int) -> int:
    """Samples of the new set in a step: 32, of a set of less than 256 rows fewer, in powers of two, at least 8."""
    return max(LEAST_BATCH, min(BATCH, 2 ** int(math.log2(max(1, rows / STEPS_IN_AN_EPOCH)))))


def epochs_for(rows: int, how: AddMethod) -> int:
    """Epochs of a set of `rows` samples: as many as make `UPDATES` steps, from `LEAST_EPOCHS` to `MOST_EPOCHS`.

    >>> epochs_for(500, "replay"), epochs_for(1500, "replay"), epochs_for(100_000, "replay")
    (50, 21, 10)
    """
    return max(LEAST_EPOCHS, min(MOST_EPOCHS[how], round(UPDATES * batch_for(rows) / rows)))


def add_recipe(request: AddRequest, rows: int, replayed: Mapping[str, int], shared: Mapping[str, list[str]]) -> Recipe:
    """The recipe that adds a head for `rows` training samples.

    `replayed`: old data set -> its number of training samples, for `replay`. `shared`: as `data.heads`, their heads of
    several sets.
    """
    batch, epochs = batch_for(rows), request.epochs or epochs_for(rows, request.how)
    model, frames = model_like(request.release)
    data = Data([request.name], str(request.catalog), frames, epochs={request.name: epochs})
    old = replay_epochs(rows * epochs, replayed) if request.how == "replay" else {}
    if old:
        data = replace(
            data,
            sets=[request.name, *old],
            epochs={request.name: epochs, **old},
            heads={head: list(sets) for head, sets in shared.items()},
        )
        batch = round(batch * (1 + REPLAY))
    optimizer, temporal = FINE, start_temporal(request.release)
    if request.how == "probe":
        optimizer, temporal = replace(PROBE, patterns={rf"^(?!heads\.{request.name}\.)": Pattern(freeze=True)}), "keep"
    recipe = Recipe(
        data,
        str(request.out),
        0,
        batch,
        model,
        Start(str(request.release), temporal, "keep"),
        optimizer=optimizer,
        label_smoothing=SMOOTHING,
        seed=request.seed,
        device=request.device,
        workers=request.workers,
        evaluate_every=-1,
        checkpoints=Checkpoints(keep=1),
    )
    steps = math.ceil(
        sum(size * epochs for size, epochs in [(rows, epochs), *((replayed[name], old[name]) for name in old)]) / batch
    )
    return replace(recipe, save_every=max(20, math.ceil(steps / SAVES)))


def replay_epochs(new_samples: float, sizes: Mapping[str, int]) -> dict[str, float]:
    """Epochs of old data sets of these `sizes` that together make `REPLAY` samples for each new one, at rates of
    size^`REPLAY_ALPHA`.
    """
    total = sum(size**REPLAY_ALPHA for size in sizes.values())
    return {
        name: float(f"{REPLAY * new_samples * size**REPLAY_ALPHA / total / size:.3g}") for name, size in sizes.items()
    }


def start_temporal(release: Path) -> Literal["fresh", "keep"]:
    """`fresh` for a release trained on images alone, whose temporal branch still has its random weights, else `keep`.

    The last matrix of such a branch is zero, so the branch adds nothing to what the network computes, and nothing is
    lost.
    """
    return "fresh" if starts_untrained_in_time(release) else "keep"


def baseline_recipe(recipe: Recipe, name: str, out: Path, checkpoint: Path | None) -> Recipe:
    """The same network on the new set alone, from `checkpoint` or from random weights: as many steps with as many of
    its samples.
    """
    steps, schedule = schedule_of(recipe)
    drawn = schedule.drawn(steps)[name]
    batch = max(1, round(drawn / steps))
    start = Start(str(checkpoint), start_temporal(checkpoint), "drop") if checkpoint else Start()
    optimizer = FINE if checkpoint else SCRATCH
    data = replace(recipe.data, sets=[name], epochs={}, heads={}, loss_weights={})
    augment = replace(recipe.augment, sets={})
    return replace(
        recipe,
        data=data,
        out=str(out),
        steps=max(1, round(drawn / batch)),
        batch=batch,
        start=start,
        optimizer=optimizer,
        augment=augment,
    )


def schedule_of(recipe: Recipe) -> tuple[int, Schedule]:
    """The steps of a run on one process and its schedule. Raises `UserError` where a data set cannot be trained on."""
    mixture = Mixture.open(recipe.data)
    whole = with_steps(recipe, mixture)
    return whole.steps, make_schedule(whole, mixture)


def in_short(recipe: Recipe) -> str:
    """A recipe as YAML, with the fields that differ from their default."""
    return config.dump(config.changed(recipe))
