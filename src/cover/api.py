"""The library in one place: what the commands `cover fit`, `cover train` and `cover evaluate` do, as functions.

>>> fitted = cover.fit("clips/", "runs/mine")
>>> fitted.top1, fitted.report
>>> fitted.predictor()("new.mp4")["clips"].top(3)
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cover import config
from cover.datasets.index import index
from cover.evaluation.evaluate import evaluate_release
from cover.experiments.add.best_head import HeadKind
from cover.experiments.fit import START, FitRequest, Fitted
from cover.experiments.fit import fit as _fit
from cover.experiments.own_files import OwnRequest
from cover.experiments.run_report import write_run_report
from cover.machine import default_workers
from cover.media.source import Media
from cover.mixture.loader import PackDataset
from cover.mixture.mixture import Mixture
from cover.mixture.rates import Data
from cover.training.recipe import Recipe, read_recipe
from cover.training.resume import has_started
from cover.training.step import sample_losses
from cover.training.train import train as _train

__all__ = [
    "Data",
    "Fitted",
    "Mixture",
    "PackDataset",
    "Recipe",
    "evaluate",
    "fit",
    "index",
    "sample_losses",
    "train",
    "write_run_report",
]


def fit(
    data: str | Path,
    out: str | Path,
    *,
    start: str = START,
    group: str | None = None,
    media: Media | None = None,
    columns: Mapping[str, str] | None = None,
    folds: int | None = None,
    heads: Sequence[HeadKind] = (),
    together: Sequence[str] = (),
    epochs: float | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 0,
) -> Fitted:
    """A model of a folder of classes, a csv file or a list, as `cover fit` makes it, in the folder `out`.

    `group`, `media`, `columns`: as in `OwnRequest`. `folds`: 0 for a fixed split, None to choose by the number of
    samples. `together`: `CATALOG:SET` of data sets to train on too. `workers`: processes that read files, 0 for none.
    Raises `cover.errors.UserError`.
    """
    own = OwnRequest(Path(data), group, media, dict(columns or {}))
    request = FitRequest(
        own, Path(out), start, folds, tuple(heads), tuple(together), epochs, seed, device, _workers(workers)
    )
    return _fit(request)


def train(
    recipe: str | Path | Recipe | Mapping[str, Any], fields: Mapping[str, Any] | None = None, *, resume: bool = False
) -> Path:
    """Run a recipe: a YAML file, a `Recipe`, or its fields as nested mappings. Returns the run folder, a checkpoint.

    `fields`: fields to replace, as in `{"optimizer.lr": 3e-4, "out": "runs/second"}`. `resume`: go on from the last
    checkpoint if there is one. Raises `cover.errors.UserError`.
    """
    complete = _recipe(recipe, fields or {})
    return _train(complete, resume and has_started(Path(complete.out)))


def _recipe(recipe: str | Path | Recipe | Mapping[str, Any], fields: Mapping[str, Any]) -> Recipe:
    overrides = [word for key, value in fields.items() for word in (f"--{key}", _text(value))]
    if isinstance(recipe, str | Path):
        return read_recipe(Path(recipe), overrides)
    text = config.dump(recipe) if isinstance(recipe, Recipe) else yaml.safe_dump(config.plain(dict(recipe)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return read_recipe(path, overrides)


def _text(value: Any) -> str:
    """A value as an override: a text as it is, everything else as YAML on one line."""
    if isinstance(value, str | Path):
        return str(value)
    return yaml.safe_dump(config.plain(value), default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def evaluate(
    checkpoint: str | Path,
    catalog: str | Path,
    datasets: Sequence[str] = (),
    *,
    split: str = "val",
    views: str | None = None,
    baselines: bool = False,
    device: str = "auto",
    workers: int = 0,
) -> list[dict[str, Any]]:
    """The results of a checkpoint on a split, a dict for each data set (default: all that have a head).

    A result has `top1` with `top1_interval`, the other metrics and the protocol. `views`: as in `1x3`, default those of
    each data set. `baselines`: also measure trivial methods. Raises `cover.errors.UserError`.
    """
    return evaluate_release(
        checkpoint,
        Path(catalog),
        split,
        list(datasets),
        views,
        ["plain"],
        device,
        _workers(workers),
        0,
        with_baselines=baselines,
    )


def _workers(count: int) -> int:
    return default_workers() if count < 0 else count
