"""The log of a run: log.jsonl, the terminal view, TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cover.console import clock, say
from cover.errors import UserError, install
from cover.hardware import wide_dtype
from cover.media.decode import FileProblem
from cover.mixture.mixture import Mixture
from cover.mixture.pack import Pack
from cover.mixture.schedule import Schedule
from cover.model.cover import CoVeR
from cover.training import checkpoint
from cover.training.progress import ProgressView, time_line
from cover.training.recipe import Log, Recipe
from cover.training.step import LossSums
from cover.training.throughput import memory_bytes, peak_flops, work_of

TENSORBOARD, WANDB_ID = "tensorboard", "wandb.id"  # in the run's folder
NOT_DRAWN = ("event", "step", "seconds", "rate_wanted")  # keys of a line that are not plotted
MAX_PROBLEMS = 5  # unreadable files that one line of the log names
PHASES = ("start", "data", "communication", "evaluation", "checkpoint")  # the rest of the time is `compute`
PAUSES = ("start", "evaluation", "checkpoint")  # phases that do not count for samples per second

Sum = Callable[[Tensor], Tensor]


# --- other loggers ----------------------------------------------------------------------------------------------------


class Sink(Protocol):
    """A logger that takes the figures of a step."""

    def put(self, step: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def check_sinks(log: Log) -> None:
    """Raises `UserError` if a package that `log` needs is missing."""
    if log.tensorboard and not importlib.util.find_spec("tensorboard"):
        package = f"needs the package tensorboard: {install('logs')}"
        raise UserError(f"log.tensorboard: {package}, or leave log.tensorboard out")
    if log.wandb and not importlib.util.find_spec("wandb"):
        raise UserError("log.wandb: needs the package wandb: pip install wandb, or leave log.wandb out")


def open_sinks(log: Log, run: Path, first: int, recipe: dict[str, Any]) -> list[Sink]:
    """Open the loggers of `log`. `first`: the steps done before this start; figures of later steps are replaced."""
    check_sinks(log)
    sinks: list[Sink] = []
    if log.tensorboard:
        sinks.append(_TensorBoard(run, first))
    if log.wandb:
        sinks.append(_Wandb(log.wandb, run, recipe))
    return sinks


def scalars_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log, with the keys joined: `grad_norm`, `loss/ssv2`, and of dev `dev/ssv2/top1`."""
    if line["event"] == "dev":
        return dict(_numbers(line["datasets"], "dev/"))
    return dict(_numbers({key: value for key, value in line.items() if key not in NOT_DRAWN}, ""))


def _numbers(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


class _TensorBoard:
    """Event files in the run's folder. A resume deletes the steps after the checkpoint."""

    def __init__(self, run: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=first + 1 if first else None)

    def put(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run at Weights & Biases, one for each run folder. A resume continues it.

    W&B keeps the first of two values of a step, which is right, because a resumed run repeats its steps exactly. With
    WANDB_MODE=offline, it writes into the run's folder and sends nothing.
    """

    def __init__(self, project: str, run: Path, recipe: dict[str, Any]) -> None:
        import wandb

        run_id, quiet = _wandb_id(run), wandb.Settings(silent=True, console="off")
        wandb.setup(quiet)  # or else a resumed run without network warns that `resume` has no effect
        try:
            self._run = wandb.init(
                project=project, id=run_id, resume="allow", name=run.name, dir=str(run), config=recipe, settings=quiet
            )
        except wandb.errors.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"log.wandb: {reason} (wandb login, or set WANDB_MODE=offline)") from None

    def put(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(run: Path) -> str:
    """The id of this run folder at W&B. The first call draws it and stores it in the folder."""
    file = run / WANDB_ID
    if not file.is_file():
        file.write_text(os.urandom(6).hex() + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


# --- the log ----------------------------------------------------------------------------------------------------------


class Clock:
    """The seconds in each phase since the last `take`."""

    def __init__(self) -> None:
        self._began, self._seconds = time.perf_counter(), dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def spending(self, phase: str) -> Iterator[None]:
        """A context that counts its time as `phase`, one of `PHASES`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent(phase, time.perf_counter() - began)

    def spent(self, phase: str, seconds: float) -> None:
        """Count `seconds` of the past time as `phase`. Raises KeyError for an unknown phase."""
        self._seconds[phase] += seconds

    def take(self) -> dict[str, float]:
        """The seconds of every phase and of `compute` since the last call. Their sum is the whole time."""
        now = time.perf_counter()
        seconds = {**self._seconds, "compute": max(0.0, now - self._began - sum(self._seconds.values()))}
        self._began, self._seconds = now, dict.fromkeys(PHASES, 0.0)
        return seconds


class RunLog:
    """The log of a run: a line of log.jsonl for each window of steps, also shown on the terminal and in other loggers.

    `first`: the steps done before. `reduce`: sums a tensor over all ranks, as an all-reduce; every rank calls it twice
    in every window. `writes`: whether this rank writes and shows the log; one rank does. `cached_stages`: stages that
    do not run, because their output is cached. Raises `UserError` if a package that the recipe needs is missing.
    """

    def __init__(
        self,
        run: Path,
        recipe: Recipe,
        mixture: Mixture,
        schedule: Schedule,
        model: CoVeR,
        first: int,
        reduce: Sum = lambda tensor: tensor,
        writes: bool = True,
        cached_stages: int = 0,
    ) -> None:
        self.path, self.schedule, self.reduce, self.writes = run / checkpoint.LOG, schedule, reduce, writes
        self.device = next(model.parameters()).device
        self.work = work_of(model, schedule, recipe.model.size, cached_stages)
        self.peak, self.peak_from = peak_flops(self.device, recipe.precision == "bf16")
        self.many = {each.name: each.classes.many for each in mixture.datasets}
        self.tally = LossSums(len(mixture.datasets), self.device)
        self._sizes, self._wanted = mixture.sizes, schedule.rates
        self._sinks: list[Sink] = open_sinks(recipe.log, run, first, asdict(recipe)) if writes else []
        self._view = ProgressView(f"train {run.name}", recipe.step_count, first, self.many)
        self._begun = self._logged = self._done = first
        self._problems: list[FileProblem] = []
        self._damaged = 0  # draws with damaged files since this start
        self._ranks = 1.0  # number of ranks, from the last reduction
        self._clock, self._run_began = Clock(), time.perf_counter()
        self._totals = dict.fromkeys((*PHASES, "compute"), 0.0)

    def __enter__(self) -> RunLog:
        self._clock.take()
        if self.writes:
            self._view.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Release the terminal and close files in any case; write the line `end` unless an error ended the run."""
        if not self.writes:
            return
        self._view.__exit__()
        try:
            if self._done > self._begun and kind in (None, SystemExit):
                self._sum_up()
        finally:
            for sink in self._sinks:
                sink.close()

    def spending(self, phase: str) -> AbstractContextManager[None]:
        """A context that counts its time as `phase`. The first wait for data counts as the start of the run."""
        starting = phase == "data" and self._done == self._begun
        return self._clock.spending("start" if starting else phase)

    def spent(self, phase: str, seconds: float) -> None:
        """Count `seconds` that were measured elsewhere as `phase`."""
        self._clock.spent(phase, seconds)

    def note(self, pack: Pack) -> None:
        """Note the damaged and unreadable files of a Pack."""
        self._problems += pack.problems

    def advance(self) -> None:
        """Count a finished step."""
        self._done += 1
        if self.writes:
            self._view.advance()

    def metadata(self) -> dict[str, Any]:
        """The numbers behind the rates: tokens and FLOPs of a step, and the peak FLOP/s of one device."""
        work = {"tokens_per_step": self.work.tokens, "flops_per_step": self.work.flops}
        return {**work, "peak_flops": self.peak, "peak_from": self.peak_from}

    def window(self, step: int, loss: float, norm: float, lr: float) -> None:
        """Write the line of the steps since the last line. Every rank must call it, after `step` steps.

        `loss`, `norm`: of the whole batch of the last step. A value that is not finite is written as null.
        """
        counts, seconds, damaged = self._reduced()
        files = [str(problem) for problem in self._problems[:MAX_PROBLEMS]]
        read = {name: count for name, count in zip(self.many, counts, strict=True) if count[2]}
        line = {
            "seconds": round(time.perf_counter() - self._run_began, 3),
            "loss": {name: mean for name, (mean, _, _) in read.items()},
            **self._hits(read),
            "step_loss": loss,
            "grad_norm": norm,
            "lr": lr,
            **self._drawn(step),
            **self._speed(step - self._logged, seconds),
            **({"files_damaged": damaged, "files": files} if damaged else {}),
        }
        self._logged, self._problems, self._damaged = step, [], self._damaged + damaged
        self.write("train", step, **line)
        if self.writes:
            self._view.show(_finite({"step": step, **line}))

    def _reduced(self) -> tuple[list[tuple[float, float, int]], dict[str, float], int]:
        """Over all ranks: the counts of the tally, the mean seconds of each phase, the number of damaged files."""
        self.tally.sums = self.reduce(self.tally.sums)
        counts = self.tally.take()  # waits for the device, so the clock is read after it
        seconds = self._clock.take()
        self._totals = {phase: self._totals[phase] + spent for phase, spent in seconds.items()}
        own = torch.tensor(
            [1.0, len(self._problems), *seconds.values()], dtype=wide_dtype(self.device), device=self.device
        )
        self._ranks, damaged, *spent = self.reduce(own).tolist()
        return counts, {phase: total / self._ranks for phase, total in zip(seconds, spent, strict=True)}, int(damaged)

    def _speed(self, steps: int, seconds: Mapping[str, float]) -> dict[str, Any]:
        """The work per second without pauses, the MFU, the memory, and the fraction of the time in each phase."""
        total = sum(seconds.values())
        pace = steps / max(total - sum(seconds[phase] for phase in PAUSES), 1e-9)  # steps per second
        fractions = {phase: spent / max(total, 1e-9) for phase, spent in seconds.items()}
        return {
            "samples_per_s": pace * self.work.samples,
            "tokens_per_s": pace * self.work.tokens,
            "flops_per_s": pace * self.work.flops,
            "mfu": self._mfu(pace * self.work.flops),
            "memory_bytes": memory_bytes(self.device),
            "wait_share": fractions["data"],
            "shares": fractions,
        }

    def _mfu(self, flops_per_s: float) -> float | None:
        """The fraction of the peak of all devices; None if the peak is not known.

        The peak of a CPU is measured, and beside other work the measurement is too low. A run that is faster shows it.
        """
        if not self.peak:
            return None
        mfu = flops_per_s / (self.peak * self._ranks)
        return None if mfu > 1 and self.device.type == "cpu" else mfu

    def _drawn(self, step: int) -> dict[str, Any]:
        """The draws of each data set after `step` steps: as rates, as epochs and as counts."""
        drawn = self.schedule.drawn(step)
        realised = {name: count / (step * self.work.samples) for name, count in drawn.items()}
        epochs = {name: count / self._sizes[name] for name, count in drawn.items()}
        return {"rate_wanted": self._wanted, "rate_realised": realised, "epochs": epochs, "seen": drawn}

    def _hits(self, read: dict[str, tuple[float, float, int]]) -> dict[str, dict[str, float]]:
        """`top1` of single-label data sets, and `hit1` of multi-label ones if there are any (`step.sigmoid_hits`)."""
        top1, hit1 = (
            {name: hits for name, (_, hits, _) in read.items() if self.many[name] == many} for many in (False, True)
        )
        return {"top1": top1, **({"hit1": hit1} if any(self.many.values()) else {})}

    def _sum_up(self) -> None:
        """Write the line `end` about the time since this start, by the clock of this rank, with the last checkpoint."""
        seconds = {phase: self._totals[phase] + spent for phase, spent in self._clock.take().items()}
        speed = self._speed(self._done - self._begun, seconds)
        self.write("end", self._done, seconds=round(sum(seconds.values()), 3), steps=self._done - self._begun, **speed)
        steps, rate = self._done - self._begun, speed["samples_per_s"]
        pace = f"{steps} steps in {clock(sum(seconds.values()))}, {rate:.4g} samples/s"
        say(f"{pace}; time: {time_line(speed['shares'])}")
        if self._damaged:
            say(f"{self._damaged} draws were of damaged or unreadable files; {self.path} names the first of each line")

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append a line to log.jsonl, and pass its figures to the other loggers."""
        if not self.writes:
            return
        line = _finite({"event": event, "step": step, **values})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if event in ("train", "dev"):
            for sink in self._sinks:
                sink.put(step, scalars_of(line))


def _finite(value: Any) -> Any:
    """The same value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
