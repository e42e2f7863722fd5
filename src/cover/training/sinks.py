"""Where else do a run's figures go? TensorBoard and Weights & Biases, each when its recipe asks for it and its package is there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from cover.errors import UserError, install
from cover.training.recipe import Log

TENSORBOARD, WANDB_ID = "tensorboard", "wandb.id"
NOT_DRAWN = ("event", "step", "seconds", "rate_wanted")


class Sink(Protocol):
    """Takes the figures of a step."""

    def put(self, step: int, figures: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def check_sinks(log: Log) -> None:
    """Raises `UserError` where a package is missing, before anything else is done."""
    if log.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UserError(f"log.tensorboard: needs the package tensorboard: {install('logs')}, or leave log.tensorboard out")
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


def figures(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of the log under the names they have there: `grad_norm`, `loss/ssv2`; those of dev as `dev/ssv2/top1`."""
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
    """One W&B run for a run folder, gone on with on resume: W&B keeps the first of two values of a step, and a resumed run repeats
    its steps exactly. WANDB_MODE=offline writes under the run's folder and sends nothing."""

    def __init__(self, project: str, run: Path, recipe: dict[str, Any]) -> None:
        import wandb

        run_id, quiet = _known_id(run), wandb.Settings(silent=True, console="off")
        wandb.setup(quiet)  # else a resumed run without network warns that `resume` has no effect
        try:
            self._run = wandb.init(project=project, id=run_id, resume="allow", name=run.name, dir=str(run), config=recipe, settings=quiet)
        except wandb.errors.Error as error:
            why = str(error).splitlines()[0]
            raise UserError(f"log.wandb: {why} (wandb login, or set WANDB_MODE=offline)") from None

    def put(self, step: int, figures: dict[str, float]) -> None:
        self._run.log(figures, step=step)

    def close(self) -> None:
        self._run.finish()


def _known_id(run: Path) -> str:
    """The id that this run folder has at W&B, made up and kept the first time."""
    file = run / WANDB_ID
    if not file.is_file():
        file.write_text(os.urandom(6).hex() + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()
