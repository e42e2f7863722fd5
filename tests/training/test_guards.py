"""A run stops where too many files of a data set cannot be read, and names one of them."""

from __future__ import annotations

import pytest
import torch

from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.media.decode import FileProblem
from cover.mixture.pack import Pack, Sample, collate
from cover.training.guards import MIN_DRAWS, ReadingCheck


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
