"""A small trained model, for measurements that make no sense with random weights."""

from __future__ import annotations

import os
from pathlib import Path

from cover.datasets.index import index
from cover.synthetic.generate import generate
from cover.synthetic.settings import Settings, dials
from cover.training.recipe import Data, Optimizer, Recipe
from cover.training.train import train

SETS = ("kinetics", "moments")
WORKERS = min(2, os.cpu_count() or 1)


def trained(folder: Path, steps: int) -> tuple[Path, Path]:
    """Train a `mini` on two generated data sets in `folder`; returns its run folder and its catalog."""
    sizes = {"kinetics": (400, 240), "moments": (400, 240), "ssv2": (2, 2), "imagenet": (2, 2)}
    easy = Settings(**dials("easy", clutter=0.1, shake=0.05, distractors=0), **sizes)
    catalog = generate(folder / "sandbox", easy, WORKERS)
    index(catalog, WORKERS, list(SETS))
    data, out = Data(list(SETS), str(catalog)), str(folder / "run")
    settings = {"batch": 24, "workers": WORKERS, "evaluate_every": -1, "optimizer": Optimizer(lr=1e-3)}
    return train(Recipe(data, out, steps, **settings)), catalog
