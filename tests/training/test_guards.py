"""A run stops where too many files of a data set cannot be read, and names one of them; one that has too few steps to
learn is warned of.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.media.decode import FileProblem
from cover.mixture.dataset import MixtureDataset
from cover.mixture.mixture import Mixture
from cover.mixture.pack import Pack, Sample, collate
from cover.training.guards import FEW_EPOCHS, FEW_UPDATES, MIN_DRAWS, SMALL_SET, ReadingCheck, step_warnings
from cover.training.recipe import Data, Recipe, Start
from cover.training.train import train


def pack_of(problems: list[FileProblem | None]) -> Pack:
    """A Pack of one sample for each problem, None for a file without one, all of data set 0."""
    return collate(
        [
            [
                Sample(
                    frames=torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
                    dataset=0,
                    targets=torch.zeros(1, dtype=torch.int64),
                    weight=0.0 if problem and problem.kind == "unreadable" else 1.0,
                    seed=number,
                    problem=problem,
                )
                for number, problem in enumerate(problems)
            ]
        ]
    )


def test_the_file_that_is_named_is_one_that_could_not_be_read() -> None:
    """Names of files and data sets may hold whatever a message would be searched for."""
    lost = FileProblem("/data/lost.mp4", "unreadable", "empty file", "a: b")
    damaged = FileProblem("/data/x: unreadable: y.mp4", "partial", "the file ends early", "a: b")
    check = ReadingCheck(["a: b"], 0.2, ProcessGroup(torch.device("cpu")))
    check.note(pack_of([lost] * 4 + [damaged] * (MIN_DRAWS - 4)))
    with pytest.raises(
        UserError, match=rf"4 of the last {MIN_DRAWS} draws of a: b .*a: b: /data/lost.mp4: unreadable: empty file"
    ):
        check.judge(7)


def test_damaged_files_stop_no_run() -> None:
    check = ReadingCheck(["mine"], 0.0, ProcessGroup(torch.device("cpu")))
    check.note(pack_of([FileProblem("/data/cut.mp4", "partial", "the file ends early", "mine")] * MIN_DRAWS + [None]))
    check.judge(1)


# --- too few steps ----------------------------------------------------------------------------------------------------


def warnings_of(steps: int, batch: int, checkpoint: str = "", **sizes: int) -> list[str]:
    data = Data(list(sizes), "catalog.yaml")
    mixture = Mixture(data, [MixtureDataset.of_size(name, "image", size) for name, size in sizes.items()])
    recipe = Recipe(data, "runs/none", steps, batch, start=Start(checkpoint))
    return step_warnings(recipe, mixture, mixture.schedule(batch))


def test_few_updates_from_random_weights() -> None:
    (line,) = warnings_of(FEW_UPDATES - 1, 64, mine=100)
    for part in (f"{FEW_UPDATES - 1} updates", "--steps", "start.checkpoint"):
        assert part in line
    assert warnings_of(FEW_UPDATES, 64, mine=100) == []
    assert warnings_of(1, 64, checkpoint="runs/start", mine=100) == []


def test_few_epochs_of_a_small_set() -> None:
    size = 1000
    enough = size * FEW_EPOCHS // 8
    assert warnings_of(enough, 8, mine=size) == []
    (line,) = warnings_of(enough - 1, 8, mine=size)
    assert "1,000 samples of mine" in line
    assert f"--steps {enough} " in line
    assert warnings_of(FEW_UPDATES, 8, mine=SMALL_SET) == []  # a large set needs no such number of epochs


def test_training_warns_before_its_first_step(sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = Recipe(
        Data(["imagenet"], str(sandbox)), str(tmp_path / "run"), steps=2, batch=4, workers=0, evaluate_every=-1
    )
    train(recipe)
    lines = capfd.readouterr().err.splitlines()
    (warning,) = [number for number, line in enumerate(lines) if "2 updates from random weights" in line]
    assert warning < next(number for number, line in enumerate(lines) if line.startswith("step "))
    started = replace(recipe, out=str(tmp_path / "started"), start=Start(recipe.out))
    train(started)
    assert "updates from random weights" not in capfd.readouterr().err
