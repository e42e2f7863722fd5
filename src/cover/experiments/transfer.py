"""`cover transfer`: trains several checkpoints, each with a fresh head, in the same way on every target.

cover transfer --source cover=runs/cotrain --source ssv2=runs/single_ssv2 --target mine --epochs 10
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cover.errors import UserError
from cover.experiments.study.numbers import between
from cover.experiments.study.study_file import Size, Study, Transfer
from cover.model.release import model_like
from cover.training.recipe import Optimizer


def transfer_study(
    sources: Mapping[str, str],
    targets: Sequence[str],
    catalog: Path,
    out: Path,
    size: Size,
    how: Sequence[str],
    seeds: int,
    lrs: Sequence[float],
    batch: int,
    split: str,
    margin: float,
    device: str,
) -> Study:
    """A study with transfers from checkpoints only.

    Raises `UserError` if the sources differ in their network or in the number of frames.
    """
    shapes = {name: model_like(path) for name, path in sources.items()}
    (first, (model, frames)), *others = shapes.items()
    for name, shape in others:
        if shape != (model, frames):
            raise UserError(
                f"sources {first} and {name} are not of the same network and clip length, so they cannot be compared"
            )
    return Study(
        catalog=str(catalog),
        out=str(out),
        targets=list(targets),
        sizes={"all": size},
        seeds=list(range(seeds)),
        margin=margin,
        arms=[],
        split=split,
        frames=frames,
        batch=batch,
        lrs=list(lrs),
        model=model,
        device=device,
        optimizer=replace(Optimizer(), lr=lrs[0]),
        transfer=Transfer(checkpoints=dict(sources), targets=list(targets), how=list(how)),
    )


def rows_of(summary: Mapping[str, Any]) -> list[list[str]]:
    """Rows of a table: source, method, target, top-1 and its interval in per cent, clips read and clips listed."""
    return [
        [
            *row["arm"].split(":"),
            row["dataset"],
            f"{100 * row['top1']:.1f}",
            between(row),
            f"{row['n_read']} of {row['n_listed']}",
        ]
        for row in summary["transfers"]
    ]
