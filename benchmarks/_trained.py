"""A small model that has learnt something, for measurements that random weights would make meaningless."""

from __future__ import annotations

import os
from pathlib import Path

from cover.datasets.index import index
from cover.synthetic.generate import generate
from cover.synthetic.settings import Settings
from cover.training.recipe import Data, Optimizer, Recipe
from cover.training.train import train

SETS = ("kinetics", "moments")
WORKERS = min(2, os.cpu_count() or 1)


def trained(folder: Path, steps: int) -> tuple[Path, Path]:
    """The run and the catalog of a `mini`, trained in `folder` on two generated data sets."""
    easy = Settings(
        clutter=0.1, shake=0.05, distractors=0, kinetics=(400, 240), moments=(400, 240), ssv2=(2, 2), imagenet=(2, 2)
    )
    catalog = generate(folder / "sandbox", easy, WORKERS)
    index(catalog, WORKERS, list(SETS))
    recipe = Recipe(
        Data(list(SETS), str(catalog)),
        str(folder / "run"),
        steps=steps,
        batch=24,
        workers=WORKERS,
        evaluate_every=-1,
        optimizer=Optimizer(lr=1e-3),
    )
    return train(recipe), catalog
