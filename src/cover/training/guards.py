"""The guards of a run: against losses and gradients that are not finite, unreadable files, and too few steps.

`step.train_step` skips the update if the loss or the gradient norm of the whole step is not finite. The device decides
this, with the same numbers on every rank. `FiniteCheck` reads the decision on the host: at once on a CPU, one step
later on a GPU, because an earlier read would make the host wait for the device. A skipped update changes nothing, so
one step later is early enough.
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
from cover.training.recipe import NonFinite, Recipe
from cover.training.step import StepResult

NONFINITE_FILE = "nonfinite.jsonl"
LOW_63 = 2**63 - 1  # a Pack stores the lowest 63 bits of a draw's seed
# From random weights, a network has hardly learned after so few updates, because the learning rate is low in the first
# and the last of them. A small data set also needs so many epochs, because an epoch of it is few updates. Figures:
# docs/baselines.md.
FEW_UPDATES, FEW_EPOCHS, SMALL_SET = 200, 20, 5000  # updates; epochs, and samples of a small data set
MIN_DRAWS = 16  # smallest number of draws of a data set that are judged together


class FiniteCheck:
    """Reads the result of every step and handles losses and gradients that are not finite.

    `skipped`: the number of skipped updates so far. `leaving`: whether a rank received a signal to stop. `saving`:
    whether a rank has asked for a checkpoint; whoever writes it sets this to False.
    """

    def __init__(
        self, run: Path, policy: NonFinite, group: ProcessGroup, schedule: Schedule, mixture: Mixture, skipped: int = 0
    ) -> None:
        self.path, self.policy, self.group, self.schedule = run / NONFINITE_FILE, policy, group, schedule
        self.manifests = {each.name: each.manifest for each in mixture.datasets}
        self.skipped, self.leaving, self.saving = skipped, False, False
        self._pending: tuple[int, StepResult] | None = None

    def after(self, step: int, outcome: StepResult) -> None:
        """Note the result of `step` (from 0). Raises `UserError` as `settle` does; on a GPU for the step before."""
        if self.group.device.type != "cpu":
            self.settle()
        self._pending = (step, outcome)
        if self.group.device.type == "cpu":
            self.settle()

    def settle(self) -> None:
        """Read the results that have not been read yet.

        Raises `UserError` on every rank if an update was skipped and the policy is `stop`, or if the budget of skipped
        updates is used up.
        """
        if self._pending is None:
            return
        (step, outcome), self._pending = self._pending, None
        loss, norm, leaving, saving = outcome.summary.tolist()
        self.leaving, self.saving = self.leaving or leaving > 0, self.saving or saving > 0
        if math.isfinite(loss) and math.isfinite(norm):
            return
        self.skipped += 1
        draws = self._record(step, outcome, loss, norm)
        summary = (
            f"step {step + 1}: the loss is {loss} and the gradient norm {norm}; the update was left out,"
            f" {draws} in {self.path}"
        )
        if self.policy.policy == "stop":
            raise UserError(f"{summary}: lower optimizer.lr, raise optimizer.warmup, or set nonfinite.policy to skip")
        if self.skipped > self.policy.budget:
            raise UserError(
                f"{summary}: {self.skipped} updates left out, more than nonfinite.budget ({self.policy.budget})"
            )
        say(summary)

    def _record(self, step: int, outcome: StepResult, loss: float, norm: float) -> str:
        """Append a line about a step to nonfinite.jsonl; returns which draws it lists, as text."""
        own = [
            (int(seed), float(value))
            for seeds, losses in outcome.samples
            for seed, value in zip(seeds.tolist(), losses.tolist())
        ]
        loss_of = dict(pair for rank in self.group.gather(own) for pair in rank)  # seed -> loss, of all ranks
        # If no loss of a sample is at fault, the gradient is, and any sample may be the cause.
        of_samples = any(not math.isfinite(value) for value in loss_of.values())
        draws = [
            {**self._named(draw), "loss": value if math.isfinite(value) else str(value)}
            for draw, value in self._with_losses(step, loss_of)
            if not (of_samples and math.isfinite(value))
        ]
        cause = "loss" if of_samples else "gradient"
        if self.group.leads:
            line = {"step": step + 1, "cause": cause, "loss": str(loss), "grad_norm": str(norm), "draws": draws}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if of_samples:
            return f"its {len(draws)} draws"
        return f"all {len(draws)} draws of the step (their losses are finite)"

    def _with_losses(self, step: int, loss_of: Mapping[int, float]) -> Iterator[tuple[Draw, float]]:
        """The draws of a step with their losses; NaN for an unknown loss."""
        for group in self.schedule.step(step):
            for draw in group:
                yield draw, loss_of.get(draw.step_seed & LOW_63, math.nan)

    def _named(self, draw: Draw) -> dict[str, Any]:
        """The sample of a draw as plain JSON."""
        row = self.manifests[draw.dataset].row(draw.row)
        sample = {"dataset": draw.dataset, "sample": row.sample_id, "path": row.path}
        return {**sample, "epoch": draw.epoch, "seed": draw.seed}


class ReadingCheck:
    """Counts unreadable files in the Packs of this rank, and ends the run if all ranks together have too many."""

    def __init__(self, names: Sequence[str], allowed: float, group: ProcessGroup) -> None:
        """`allowed`: the largest allowed fraction of unreadable draws of a data set."""
        self.names, self.allowed, self.group = list(names), allowed, group
        # rows: draws, unreadable draws; a column for each data set
        self._own = torch.zeros(2, len(names))  # of this rank since the last `judge`
        self._all = torch.zeros(2, len(names))  # of all ranks since the data set was last judged
        self._examples: dict[str, FileProblem] = {}  # data set -> an unreadable file

    def note(self, pack: Pack) -> None:
        """Count the samples of a Pack whose tensors are on the CPU."""
        self._own.index_add_(1, pack.dataset, torch.stack([torch.ones_like(pack.weight), pack.weight == 0]))
        self._examples |= {problem.dataset: problem for problem in pack.problems if problem.kind == "unreadable"}

    def judge(self, step: int) -> None:
        """Judge the draws of all ranks after `step` steps. Every rank must call it.

        Raises `UserError` on every rank if more than the allowed fraction of the last draws of a data set (at least
        `MIN_DRAWS`) could not be read.
        """
        gathered = self.group.gather((self._own, self._examples))
        self._all += torch.stack([counts for counts, _ in gathered]).sum(0)
        examples = {name: problem for _, item in gathered for name, problem in item.items()}
        self._own = torch.zeros_like(self._own)
        for column, name in enumerate(self.names):
            drawn, unreadable = self._all[:, column].int().tolist()
            if drawn >= MIN_DRAWS and unreadable > self.allowed * drawn:
                raise UserError(
                    f"step {step}: {unreadable} of the last {drawn} draws of {name} could not be read, more than"
                    f" data.unreadable ({self.allowed:g}) allows; {examples.get(name, name)};"
                    " put the files back and go on with --resume"
                )
            if drawn >= MIN_DRAWS:
                self._all[:, column] = 0


# --- too few steps ----------------------------------------------------------------------------------------------------


def step_warnings(recipe: Recipe, mixture: Mixture, schedule: Schedule) -> list[str]:
    """One line for each reason why a run from random weights will probably learn little; none for a run with a start.

    `recipe`: with its number of steps. The reasons are fewer than `FEW_UPDATES` updates, and fewer than `FEW_EPOCHS`
    epochs of a data set with fewer than `SMALL_SET` samples. Each line names the key to change.
    """
    if recipe.start.checkpoint:
        return []
    key = "data.epochs or steps" if recipe.data.epochs else "steps"
    way = ", or start from trained weights (start.checkpoint, or cover fit DIR for files of your own)"
    if recipe.step_count < FEW_UPDATES:
        text = f"steps: {recipe.step_count} updates from random weights: a network learns little in fewer than about"
        return [f"{text} {FEW_UPDATES}; raise {key} (--steps {FEW_UPDATES} or more){way}"]
    drawn, lines = schedule.expected(recipe.step_count), []
    for name, size in mixture.sizes.items():
        epochs = drawn[name] / size
        if size < SMALL_SET and epochs < FEW_EPOCHS:
            text = f"steps: {epochs:.1f} epochs of the {size:,} samples of {name} from random weights: a network learns"
            steps = math.ceil(recipe.step_count * FEW_EPOCHS / epochs)
            few = f"little in fewer than about {FEW_EPOCHS} of a small set"
            lines.append(f"{text} {few}; raise {key} (--steps {steps} or more){way}")
    return lines
