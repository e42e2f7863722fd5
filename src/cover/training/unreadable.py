"""Counts the draws of each data set whose file could not be read, and stops a run where they are too many."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cover.errors import UserError
from cover.media.decode import FileProblem
from cover.mixture.pack import Pack
from cover.training.distributed import Team

LEAST = 16  # draws of a data set that are judged together


class ReadingCheck:
    """Looks at every Pack of this rank, on the host, and at certain steps, with the other ranks, at all of them."""

    def __init__(self, names: Sequence[str], allowed: float, team: Team) -> None:
        """`allowed`: the share of a data set's draws that may be unreadable."""
        self.names, self.allowed, self.team = list(names), allowed, team
        self._own = torch.zeros(2, len(names))
        self._all = torch.zeros(2, len(names))
        self._examples: dict[str, FileProblem] = {}  # by data set

    def note(self, pack: Pack) -> None:
        """Count a Pack that has not left the host."""
        self._own.index_add_(1, pack.dataset, torch.stack([torch.ones_like(pack.weight), pack.weight == 0]))
        self._examples |= {problem.dataset: problem for problem in pack.problems if problem.kind == "unreadable"}

    def judge(self, step: int) -> None:
        """Raises `UserError`, on every rank, where more than the allowed share of the last draws (at least `LEAST`) of a data set could not
        be read. Every rank has to call it, after `step` steps."""
        told = self.team.gather((self._own, self._examples))
        self._all += torch.stack([counts for counts, _ in told]).sum(0)
        examples = {name: problem for _, found in told for name, problem in found.items()}
        self._own = torch.zeros_like(self._own)
        for place, name in enumerate(self.names):
            drawn, lost = self._all[:, place].int().tolist()
            if drawn >= LEAST and lost > self.allowed * drawn:
                raise UserError(
                    f"step {step}: {lost} of the last {drawn} draws of {name} could not be read, more than data.unreadable"
                    f" ({self.allowed:g}) allows; {examples.get(name, name)}; put the files back and go on with --resume"
                )
            if drawn >= LEAST:
                self._all[:, place] = 0
