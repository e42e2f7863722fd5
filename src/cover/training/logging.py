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

TENSORBOARD, WANDB_ID = "tensorboard", "wandb.id"
NOT_DRAWN = ("event", "step", "seconds", "rate_wanted")


class Sink(Protocol):
    """Takes the figures of a step."""

    def put(self, step: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def check_sinks(log: Log) -> None:
    """Raises `UserError` where a package is missing, before anything else is done."""
    if log.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UserError(
            f"log.tensorboard: needs the package tensorboard: {install('logs')}, or leave log.tensorboard out"
        )
    if log.wandb and not importlib.util.find_spec("wandb"):
        raise UserError("log.wandb: needs the package wandb: pip install wandb, or leave log.wandb out")


def open_sinks(log: Log, run: Path, first: int, recipe: dict[str, Any]) -> list[Sink]:
    """What `log` asks for. `first`: the steps done before this start; what was written beyond them does not count."""
    check_sinks(log)
    sinks: list[Sink] = []
    if log.tensorboard:
        sinks.append(_TensorBoard(run, first))
    if log.wandb:
        sinks.append(_Wandb(log.wandb, run, recipe))
    return sinks


def scalars_of(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log under the names they have there: `grad_norm`, `loss/ssv2`; those of dev as
    `dev/ssv2/top1`.
    """
    if line["event"] == "dev":
        return dict(_numbers(line["datasets"], "dev/"))
    return dict(_numbers({key: value for key, value in line.items() if key not in NOT_DRAWN}, ""))


def _numbers(values: dict[str, Any], before: str) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{before}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{before}{key}", float(value)


class _TensorBoard:
    """Event files under the run's folder. On resume, the steps beyond the checkpoint are purged."""

    def __init__(self, run: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=first + 1 if first else None)

    def put(self, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """One W&B run for a run folder, gone on with on resume: W&B keeps the first of two values of a step, and a resumed
    run repeats its steps exactly. WANDB_MODE=offline writes under the run's folder and sends nothing.
    """

    def __init__(self, project: str, run: Path, recipe: dict[str, Any]) -> None:
        import wandb

        run_id, quiet = _wandb_id(run), wandb.Settings(silent=True, console="off")
        wandb.setup(quiet)  # else a resumed run without network warns that `resume` has no effect
        try:
            self._run = wandb.init(
                project=project, id=run_id, resume="allow", name=run.name, dir=str(run), config=recipe, settings=quiet
            )
        except wandb.errors.Error as error:
            why = str(error).splitlines()[0]
            raise UserError(f"log.wandb: {why} (wandb login, or set WANDB_MODE=offline)") from None

    def put(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(run: Path) -> str:
    """The id that this run folder has at W&B, made up and kept the first time."""
    file = run / WANDB_ID
    if not file.is_file():
        file.write_text(os.urandom(6).hex() + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


MAX_PROBLEMS = 5  # of the files that could not be read, in one line of the log
PHASES = ("start", "data", "communication", "evaluation", "checkpoint")  # compute is what is left
PAUSES = ("start", "evaluation", "checkpoint")  # no part of the rates

Sum = Callable[[Tensor], Tensor]


class Clock:
    """Seconds by phase since the last `take`."""

    def __init__(self) -> None:
        self._began, self._seconds = time.perf_counter(), dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def spending(self, phase: str) -> Iterator[None]:
        """A context whose time counts as `phase`, one of `PHASES`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent(phase, time.perf_counter() - began)

    def spent(self, phase: str, seconds: float) -> None:
        """Count `seconds` of the time gone by as `phase`. KeyError on a phase that there is not."""
        self._seconds[phase] += seconds

    def take(self) -> dict[str, float]:
        """Seconds of every phase and of `compute` since the last take; together, all the time."""
        now = time.perf_counter()
        results = {**self._seconds, "compute": max(0.0, now - self._began - sum(self._seconds.values()))}
        self._began, self._seconds = now, dict.fromkeys(PHASES, 0.0)
        return results


class RunLog:
    """Everything that a run says: one line of log.jsonl per window of steps, the same figures on the terminal and
    wherever the recipe wants them.

    `first`: the steps done before. `reduce`: the sum of a tensor over all ranks, as an all-reduce gives it; every rank
    calls it, twice in every window. `writes`: whether this rank, one of them, writes and shows. Raises `UserError`
    where a package that the recipe asks for is missing.
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
    ) -> None:
        self.path, self.schedule, self.reduce, self.writes = run / checkpoint.LOG, schedule, reduce, writes
        self.device = next(model.parameters()).device
        self.work, (self.peak, self.peak_from) = (
            work_of(model, schedule, recipe.model.size),
            peak_flops(self.device, recipe.precision == "bf16"),
        )
        self.many = {each.name: each.classes.many for each in mixture.datasets}
        self.tally = LossSums(len(mixture.datasets), self.device)
        self._sizes, self._wanted = mixture.sizes, schedule.rates
        self._sinks: list[Sink] = open_sinks(recipe.log, run, first, asdict(recipe)) if writes else []
        self._view = ProgressView(f"train {run.name}", recipe.steps, first, self.many)
        self._begun = self._logged = self._done = first
        self._problems: list[FileProblem] = []
        self._damaged = 0  # since this start
        self._ranks = 1.0
        self._clock, self._run_began = Clock(), time.perf_counter()
        self._totals = dict.fromkeys((*PHASES, "compute"), 0.0)

    def __enter__(self) -> RunLog:
        self._clock.take()
        if self.writes:
            self._view.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """The terminal is given back and files are closed, whatever happened; a run that was not broken off sums itself
        up.
        """
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
        """A context whose time counts as `phase`. The first wait for data is the start of the run."""
        starting = phase == "data" and self._done == self._begun
        return self._clock.spending("start" if starting else phase)

    def spent(self, phase: str, seconds: float) -> None:
        """Count `seconds` that were measured elsewhere as `phase`."""
        self._clock.spent(phase, seconds)

    def note(self, pack: Pack) -> None:
        """Remember the files of a Pack that were damaged or could not be read."""
        self._problems += pack.problems

    def advance(self) -> None:
        """Count one more step done."""
        self._done += 1
        if self.writes:
            self._view.advance()

    def metadata(self) -> dict[str, Any]:
        """What the rates are reckoned from; `peak_flops` is of one device."""
        work = {"tokens_per_step": self.work.tokens, "flops_per_step": self.work.flops}
        return {**work, "peak_flops": self.peak, "peak_from": self.peak_from}

    def window(self, step: int, loss: float, norm: float, lr: float) -> None:
        """Write the line of the steps since the last one, up to `step` done. `loss` and `norm` are those of the last
        step, of the whole batch; one that is not a number is written as null.
        """
        counts, seconds, damaged = self._gathered()
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
            **(
                {"files_damaged": damaged, "files": [str(problem) for problem in self._problems[:MAX_PROBLEMS]]}
                if damaged
                else {}
            ),
        }
        self._logged, self._problems, self._damaged = step, [], self._damaged + damaged
        self.write("train", step, **line)
        if self.writes:
            self._view.show(_finite({"step": step, **line}))

    def _gathered(self) -> tuple[list[tuple[float, float, int]], dict[str, float], int]:
        """Over all ranks: what the tally counted, the mean seconds of each phase, how many damaged files."""
        self.tally.sums = self.reduce(self.tally.sums)
        counts = self.tally.take()  # waits for the device: the clock is read after it
        seconds = self._clock.take()
        self._totals = {phase: self._totals[phase] + spent for phase, spent in seconds.items()}
        own = torch.tensor([1.0, len(self._problems), *seconds.values()], dtype=torch.float64, device=self.device)
        self._ranks, damaged, *spent = self.reduce(own).tolist()
        return counts, {phase: total / self._ranks for phase, total in zip(seconds, spent, strict=True)}, int(damaged)

    def _speed(self, steps: int, seconds: Mapping[str, float]) -> dict[str, Any]:
        """What was done in a second, and where the seconds went."""
        every = sum(seconds.values())
        pace = steps / max(every - sum(seconds[phase] for phase in PAUSES), 1e-9)
        fractions = {phase: spent / max(every, 1e-9) for phase, spent in seconds.items()}
        mfu = pace * self.work.flops / (self.peak * self._ranks) if self.peak else None
        rates = {
            "samples_per_s": pace * self.work.samples,
            "tokens_per_s": pace * self.work.tokens,
            "flops_per_s": pace * self.work.flops,
        }
        return {
            **rates,
            "mfu": mfu,
            "memory_bytes": memory_bytes(self.device),
            "wait_share": fractions["data"],
            "shares": fractions,
        }

    def _drawn(self, step: int) -> dict[str, Any]:
        """How far the mixture has come after `step` steps."""
        drawn = self.schedule.drawn(step)
        realised = {name: count / (step * self.work.samples) for name, count in drawn.items()}
        epochs = {name: count / self._sizes[name] for name, count in drawn.items()}
        return {"rate_wanted": self._wanted, "rate_realised": realised, "epochs": epochs, "seen": drawn}

    def _hits(self, read: dict[str, tuple[float, float, int]]) -> dict[str, dict[str, float]]:
        """`top1` of single-label sets; `hit1` of multi-label ones, where there are any: `step.sigmoid_hits`."""
        top1, hit1 = (
            {name: hits for name, (_, hits, _) in read.items() if self.many[name] == many} for many in (False, True)
        )
        return {"top1": top1, **({"hit1": hit1} if any(self.many.values()) else {})}

    def _sum_up(self) -> None:
        """The line `end`: the time of this start as a whole, by this rank's own clock, the last checkpoint in it."""
        seconds = {phase: self._totals[phase] + spent for phase, spent in self._clock.take().items()}
        speed = self._speed(self._done - self._begun, seconds)
        self.write("end", self._done, seconds=round(sum(seconds.values()), 3), steps=self._done - self._begun, **speed)
        steps, rate = self._done - self._begun, speed["samples_per_s"]
        pace = f"{steps} steps in {clock(sum(seconds.values()))}, {rate:.4g} samples/s"
        say(f"{pace}; time: {time_line(speed['shares'])}")
        if self._damaged:
            say(f"{self._damaged} draws were of damaged or unreadable files; {self.path} names the first of each line")

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append one line, and hand its figures on."""
        if not self.writes:
            return
        line = _finite({"event": event, "step": step, **values})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if event in ("train", "dev"):
            for sink in self._sinks:
                sink.put(step, scalars_of(line))


def _finite(value: Any) -> Any:
    """The same with None in place of what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
