"""The guards of a run: losses and gradients that are not finite, and files that cannot be read.

An update is left out where the loss or the gradient norm of the whole step is not finite. The device decides that, and
the numbers are the same on every rank: `step.train_step`. `FiniteCheck` reads the decision: at once on a CPU, one step
later on a GPU, where the host would wait for the device to read it any sooner. An update that was left out has changed
nothing, so a step later is early enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cover.console import say
from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.media.decode import FileProblem
from cover.mixture.mixture import Mixture
from cover.mixture.pack import Pack
from cover.mixture.schedule import Draw, Schedule
from cover.training.recipe import NonFinite
from cover.training.step import StepResult

NONFINITE_FILE = "nonfinite.jsonl"
LOW_63 = 2**63 - 1  # what a Pack keeps of a draw's seed
MIN_DRAWS = 16  # draws of a data set that are judged together


class FiniteCheck:
    """Reads what came of every step. `skipped`: the updates left out so far. `leaving`: whether a rank was told to
    leave.
    """

    def __init__(
        self, run: Path, policy: NonFinite, group: ProcessGroup, schedule: Schedule, mixture: Mixture, skipped: int = 0
    ) -> None:
        self.path, self.policy, self.group, self.schedule = run / NONFINITE_FILE, policy, group, schedule
        self.manifests = {each.name: each.manifest for each in mixture.datasets}
        self.skipped, self.leaving = skipped, False
        self._pending: tuple[int, StepResult] | None = None

    def after(self, step: int, outcome: StepResult) -> None:
        """Take note of `step` (from 0). Raises `UserError` as `settle` does, on a GPU for the step before."""
        if self.group.device.type != "cpu":
            self.settle()
        self._pending = (step, outcome)
        if self.group.device.type == "cpu":
            self.settle()

    def settle(self) -> None:
        """Read what has not been read yet. Raises `UserError`, on every rank, where an update had to be left out and
        the policy is to stop, or its budget is used up.
        """
        if self._pending is None:
            return
        (step, outcome), self._pending = self._pending, None
        loss, norm, leaving = outcome.summary.tolist()
        self.leaving = self.leaving or leaving > 0
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.skipped += 1
        result = self._record(step, outcome, loss, norm)
        summary = (
            f"step {step + 1}: the loss is {loss} and the gradient norm {norm}; the update was left out,"
            f" {result} in {self.path}"
        )
        if self.policy.policy == "stop":
            raise UserError(f"{summary}: lower optimizer.lr, raise optimizer.warmup, or set nonfinite.policy to skip")
        if self.skipped > self.policy.budget:
            raise UserError(
                f"{summary}: {self.skipped} updates left out, more than nonfinite.budget ({self.policy.budget})"
            )
        say(summary)

    def _record(self, step: int, outcome: StepResult, loss: float, norm: float) -> str:
        """Append the line of a step; returns what it lists."""
        own = [
            (int(seed), float(value))
            for seeds, losses in outcome.samples
            for seed, value in zip(seeds.tolist(), losses.tolist())
        ]
        lost = dict(pair for rank in self.group.gather(own) for pair in rank)
        of_samples = any(not math.isfinite(value) for value in lost.values())
        draws = [
            {**self._named(draw), "loss": value if math.isfinite(value) else str(value)}
            for draw, value in self._with_losses(step, lost)
            if not (of_samples and math.isfinite(value))
        ]
        cause = "loss" if of_samples else "gradient"
        if self.group.leads:
            line = {"step": step + 1, "cause": cause, "loss": str(loss), "grad_norm": str(norm), "draws": draws}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return (
            f"its {len(draws)} draws" if of_samples else f"all {len(draws)} draws of the step (their losses are finite)"
        )

    def _with_losses(self, step: int, lost: Mapping[int, float]) -> Iterator[tuple[Draw, float]]:
        for group in self.schedule.step(step):
            for draw in group:
                yield draw, lost.get(draw.seed & LOW_63, math.nan)

    def _named(self, draw: Draw) -> dict[str, Any]:
        row = self.manifests[draw.dataset].row(draw.row)
        return {
            "dataset": draw.dataset,
            "sample": row.sample_id,
            "path": row.path,
            "epoch": draw.epoch,
            "seed": draw.seed,
        }


class ReadingCheck:
    """Looks at every Pack of this rank, on the host, and at certain steps, with the other ranks, at all of them."""

    def __init__(self, names: Sequence[str], allowed: float, group: ProcessGroup) -> None:
        """`allowed`: the fraction of a data set's draws that may be unreadable."""
        self.names, self.allowed, self.group = list(names), allowed, group
        self._own = torch.zeros(2, len(names))
        self._all = torch.zeros(2, len(names))
        self._examples: dict[str, FileProblem] = {}  # by data set

    def note(self, pack: Pack) -> None:
        """Count a Pack that has not left the host."""
        self._own.index_add_(1, pack.dataset, torch.stack([torch.ones_like(pack.weight), pack.weight == 0]))
        self._examples |= {problem.dataset: problem for problem in pack.problems if problem.kind == "unreadable"}

    def judge(self, step: int) -> None:
        """Raises `UserError`, on every rank, where more than the allowed fraction of the last draws (at least `LEAST`)
        of a data set could not be read. Every rank has to call it, after `step` steps.
        """
        gathered = self.group.gather((self._own, self._examples))
        self._all += torch.stack([counts for counts, _ in gathered]).sum(0)
        examples = {name: problem for _, item in gathered for name, problem in item.items()}
        self._own = torch.zeros_like(self._own)
        for place, name in enumerate(self.names):
            drawn, lost = self._all[:, place].int().tolist()
            if drawn >= MIN_DRAWS and lost > self.allowed * drawn:
                raise UserError(
                    f"step {step}: {lost} of the last {drawn} draws of {name} could not be read, more than"
                    f" data.unreadable ({self.allowed:g}) allows; {examples.get(name, name)};"
                    " put the files back and go on with --resume"
                )
            if drawn >= MIN_DRAWS:
                self._all[:, place] = 0
