"""Recipes of `cover add`, which train one more head on a released model, with the reasons for their settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cover import config
from cover.mixture.mixture import Mixture
from cover.mixture.schedule import Schedule
from cover.model.release import model_like, starts_untrained_in_time
from cover.training.budget import FROM_START, HEAD_ONLY, Budget
from cover.training.recipe import Adapt, Checkpoints, Data, Optimizer, Recipe, Start
from cover.training.train import make_schedule, with_steps

AddMethod = Literal["best", "probe", "replay", "alone"]
BESIDE = "add"  # folder, in that of the run, for recipes, results, the baseline and the folds

BUDGETS: dict[AddMethod, Budget] = {"best": HEAD_ONLY, "probe": HEAD_ONLY, "replay": FROM_START, "alone": FROM_START}
# Samples of the new data set in a step. A small data set has at least 8 steps in an epoch, because more updates help it
# more than less noise.
BATCH, LEAST_BATCH, STEPS_IN_AN_EPOCH = 32, 8, 8
# Old samples for each new sample under replay; this is a third of a step. Rehearsal needs fewer old samples than new
# ones, and every old sample costs as much as a new one. The rates of the old data sets follow the square root of their
# sizes, so that small data sets are not neglected.
REPLAY, REPLAY_ALPHA = 0.5, 0.5
SAVES = 10  # checkpoints of a run; an interruption costs at most a tenth of the run

# A probe is a convex problem on fixed features. It allows a high learning rate, and weight decay only slows it down.
PROBE = Optimizer(lr=1e-2, weight_decay=0.0, warmup=0.05)
# Fine-tuning: pretrained weights have a low rate, the lower layers the lowest (layer-wise decay as in BEiT and MAE).
# The head begins at zero and has a high rate. The warm-up is long, because Adam's second moments need tens of steps.
FINE = Optimizer(lr=5e-4, layer_decay=0.75, head_lr=4.0, warmup=0.1)
SCRATCH = Optimizer(lr=1e-3, warmup=0.1)  # from random weights: all layers have the same rate
SMOOTHING = 0.1  # the usual value in fine-tuning; without it, a network soon fits some hundreds of samples exactly


@dataclass(frozen=True)
class AddRequest:
    """The request to train a head for the data set `name` on top of `release`.

    `epochs`: epochs of the new data set; None: those of `epochs_for`.
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
    """Samples of the new data set in a step: 32. With fewer than 256 rows, a smaller power of two, at least 8."""
    return max(LEAST_BATCH, min(BATCH, 2 ** int(math.log2(max(1, rows / STEPS_IN_AN_EPOCH)))))


def epochs_for(rows: int, how: AddMethod) -> int:
    """Whole epochs of a data set of `rows` samples in steps of `batch_for(rows)`, by the budget of the method.

    >>> epochs_for(500, "replay"), epochs_for(1500, "replay"), epochs_for(100_000, "replay")
    (50, 21, 10)
    """
    return round(BUDGETS[how].epochs(rows, batch_for(rows)))


def add_recipe(request: AddRequest, rows: int, replayed: Mapping[str, int], shared: Mapping[str, list[str]]) -> Recipe:
    """The recipe that adds a head for a data set of `rows` training samples.

    `replayed`: for `replay`, the number of training samples of each old data set. `shared`: their heads with several
    data sets, in the form of `data.heads`.
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
    probing = request.how == "probe"
    recipe = Recipe(
        data,
        str(request.out),
        0,
        batch,
        model,
        Start(str(request.release), "keep" if probing else start_temporal(request.release), "keep"),
        default_head=request.name,
        adapt=Adapt("probe" if probing else "full"),
        optimizer=PROBE if probing else FINE,
        label_smoothing=SMOOTHING,
        seed=request.seed,
        device=request.device,
        workers=request.workers,
        evaluate_every=-1,
        checkpoints=Checkpoints(keep=1),
    )
    sizes = [(rows, epochs), *((replayed[name], old[name]) for name in old)]
    steps = math.ceil(sum(size * epochs for size, epochs in sizes) / batch)
    return replace(recipe, save_every=max(20, math.ceil(steps / SAVES)))


def replay_epochs(new_samples: float, sizes: Mapping[str, int]) -> dict[str, float]:
    """The epochs of each old data set under replay, from their `sizes`.

    Together they give `REPLAY` samples for each new sample, at rates proportional to size^`REPLAY_ALPHA`.
    """
    total = sum(size**REPLAY_ALPHA for size in sizes.values())
    samples = REPLAY * new_samples
    return {name: float(f"{samples * size**REPLAY_ALPHA / total / size:.3g}") for name, size in sizes.items()}


def start_temporal(release: Path) -> Literal["fresh", "keep"]:
    """`fresh` for a release that was trained on images only, else `keep`.

    The temporal branch of such a release has its initial weights, and its last matrix is zero. So a fresh branch does
    not change the function of the network.
    """
    return "fresh" if starts_untrained_in_time(release) else "keep"


def baseline_recipe(recipe: Recipe, name: str, out: Path, checkpoint: Path | None) -> Recipe:
    """The recipe of the same network on the new data set only, from `checkpoint` or from random weights (None).

    It draws as many samples of the new data set as `recipe`, in about as many steps.
    """
    steps, schedule = schedule_of(recipe)
    drawn = schedule.drawn(steps)[name]
    batch = max(1, round(drawn / steps))
    start = Start(str(checkpoint), start_temporal(checkpoint), "drop") if checkpoint else Start()
    optimizer = FINE if checkpoint else SCRATCH
    balance, weights = _of_one(recipe.data.balance, name), _of_one(recipe.data.class_weights, name)
    data = replace(
        recipe.data, sets=[name], epochs={}, heads={}, loss_weights={}, balance=balance, class_weights=weights
    )
    augment = replace(recipe.augment, sets={})
    return replace(
        recipe,
        data=data,
        out=str(out),
        steps=max(1, round(drawn / batch)),
        batch=batch,
        start=start,
        default_head="",
        adapt=Adapt(),
        optimizer=optimizer,
        augment=augment,
    )


def _of_one(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key == name}


def schedule_of(recipe: Recipe) -> tuple[int, Schedule]:
    """The number of steps of a run and its schedule. Raises `UserError` if a data set has no training samples."""
    mixture = Mixture.open(recipe.data)
    complete = with_steps(recipe, mixture)
    return complete.step_count, make_schedule(complete, mixture)


def in_short(recipe: Recipe) -> str:
    """A recipe as YAML, with only those fields that differ from their defaults."""
    return config.dump(config.changed(recipe))
