"""With which recipe does a released model learn one more data set? The settings of `cover add`, and why they are these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cover import config
from cover.mixture.mixture import Mixture
from cover.model.weights import read_weights
from cover.training.recipe import Checkpoints, Data, Optimizer, Pattern, Recipe, Start
from cover.training.starting import model_like
from cover.training.train import make_schedule, with_steps

How = Literal["probe", "replay", "alone"]

# A small set wants many epochs, since a head that begins at zero needs some hundred updates whatever the size; a large one has them in few.
# So the wish is a number of updates, and epochs are what it comes to: at most 50, beyond which a set of hundreds is learned by heart
# (HMDB51 and UCF101 are usually fine-tuned for 50 to 100), and at least 10, below which a cosine of a large set is over too soon. A probe
# is a convex problem at a high rate, and is done sooner.
UPDATES, LEAST_EPOCHS = 1000, 10
MOST_EPOCHS: dict[How, int] = {"probe": 30, "replay": 50, "alone": 50}
# Of the new set in a step. Of a set so small that a step would be an eighth of it or more, fewer: updates count for more than their noise.
BATCH, LEAST_BATCH, STEPS_IN_AN_EPOCH = 32, 8, 8
# Old samples for each new one under replay: a third of a step. Rehearsal keeps most of what was known with far less than equal shares, and
# every old sample costs as much as a new one. Among the old sets rates follow the square root of the size, so that none is forgotten.
REPLAY, REPLAY_ALPHA = 0.5, 0.5
SAVES = 10  # checkpoints of a run: what an interruption costs is at most a tenth of it

# A probe is a convex problem over features that stay: it bears a high rate, and a decay only makes it slower.
PROBE = Optimizer(lr=1e-2, weight_decay=0.0, warmup=0.05)
# Fine-tuning: what is known moves slowly, the more so the nearer to the pixels (BEiT's and MAE's decay by layers), and the head, which
# begins at zero, fast. A longer warm-up than usual: a tenth of few steps is what Adam's second moments need before they can be trusted.
FINE = Optimizer(lr=5e-4, layer_decay=0.75, head_lr=4.0, warmup=0.1)
SCRATCH = Optimizer(lr=1e-3, warmup=0.1)  # from random weights: every layer at the same rate
SMOOTHING = 0.1  # of some hundred samples a network is soon sure of each; the usual value of fine-tuning


@dataclass(frozen=True)
class Wish:
    """What is asked of `cover add`. `epochs` of the new set, None for `epochs_for`."""

    release: Path
    name: str
    catalog: Path
    how: How
    out: Path
    epochs: float | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = -1


def batch_for(rows: int) -> int:
    """Samples of the new set in a step: 32, of a set of less than 256 rows fewer, in powers of two, at least 8."""
    return max(LEAST_BATCH, min(BATCH, 2 ** int(math.log2(max(1, rows / STEPS_IN_AN_EPOCH)))))


def epochs_for(rows: int, how: How) -> int:
    """How often a set of `rows` samples is seen: what `UPDATES` come to, from `LEAST_EPOCHS` to `MOST_EPOCHS`.

    >>> epochs_for(500, "replay"), epochs_for(1500, "replay"), epochs_for(100_000, "replay")
    (50, 21, 10)
    """
    return max(LEAST_EPOCHS, min(MOST_EPOCHS[how], round(UPDATES * batch_for(rows) / rows)))


def add_recipe(wish: Wish, rows: int, replayed: Mapping[str, int], shared: Mapping[str, list[str]]) -> Recipe:
    """The run that adds a head for `rows` training samples.

    `replayed`: old data set -> its training samples, for `replay`. `shared`: of their heads those that several sets share.
    """
    batch, epochs = batch_for(rows), wish.epochs or epochs_for(rows, wish.how)
    model, frames = model_like(wish.release)
    data = Data([wish.name], str(wish.catalog), frames, epochs={wish.name: epochs})
    old = replay_epochs(rows * epochs, replayed) if wish.how == "replay" else {}
    if old:
        data = replace(
            data, sets=[wish.name, *old], epochs={wish.name: epochs, **old}, heads={head: list(sets) for head, sets in shared.items()}
        )
        batch = round(batch * (1 + REPLAY))
    optimizer, temporal = FINE, start_temporal(wish.release)
    if wish.how == "probe":
        optimizer, temporal = replace(PROBE, patterns={rf"^(?!heads\.{wish.name}\.)": Pattern(freeze=True)}), "keep"
    recipe = Recipe(
        data, str(wish.out), 0, batch, model, Start(str(wish.release), temporal, "keep"), optimizer=optimizer, label_smoothing=SMOOTHING,
        seed=wish.seed, device=wish.device, workers=wish.workers, evaluate_every=-1, checkpoints=Checkpoints(keep=1),
    )  # fmt: skip
    steps = math.ceil(sum(size * epochs for size, epochs in [(rows, epochs), *((replayed[name], old[name]) for name in old)]) / batch)
    return replace(recipe, save_every=max(20, math.ceil(steps / SAVES)))


def replay_epochs(new_samples: float, sizes: Mapping[str, int]) -> dict[str, float]:
    """Epochs of old data sets of these `sizes` that together make `REPLAY` samples for each new one, at rates of size^`REPLAY_ALPHA`."""
    total = sum(size**REPLAY_ALPHA for size in sizes.values())
    return {name: float(f"{REPLAY * new_samples * size**REPLAY_ALPHA / total / size:.3g}") for name, size in sizes.items()}


def start_temporal(release: Path) -> Literal["fresh", "keep"]:
    """`fresh` of a release that has learned from images alone: its temporal branch is still what it was at random weights. Without the last
    matrix of the branch, which is zero there, it has no part in what the network computes, so nothing is lost."""
    last = [value for name, value in read_weights(release).items() if name.endswith("temporal_fc.weight")]
    return "fresh" if last and not any(value.any() for value in last) else "keep"


def baseline_recipe(recipe: Recipe, name: str, out: Path, checkpoint: Path | None) -> Recipe:
    """The same network on the new set alone, from `checkpoint` or from random weights: as many steps with as many of its samples."""
    mixture = Mixture.open(recipe.data)
    whole = with_steps(recipe, mixture)
    drawn = make_schedule(whole, mixture).drawn(whole.steps)[name]
    batch = max(1, round(drawn / whole.steps))
    start = Start(str(checkpoint), start_temporal(checkpoint), "drop") if checkpoint else Start()
    optimizer = FINE if checkpoint else SCRATCH
    data = replace(recipe.data, sets=[name], epochs={}, heads={}, loss_weights={})
    augment = replace(recipe.augment, sets={})
    return replace(
        recipe, data=data, out=str(out), steps=max(1, round(drawn / batch)), batch=batch, start=start, optimizer=optimizer, augment=augment
    )


def in_short(recipe: Recipe) -> str:
    """A recipe as YAML, without what is as it is by default."""
    return config.dump(_differing(recipe))


def _differing(section: Any, default: Any = None) -> dict[str, Any]:
    """The fields of a section that differ from `default`, or from those of its class."""
    found: dict[str, Any] = {}
    for field in fields(section):
        own, usual = getattr(section, field.name), getattr(default, field.name) if default is not None else _default(field)
        if is_dataclass(own) and usual is not MISSING:
            own = _differing(own, usual)
            if own:
                found[field.name] = own
        elif is_dataclass(own):
            found[field.name] = _differing(own)
        elif own != usual:
            found[field.name] = own
    return found


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
