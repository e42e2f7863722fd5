"""Checkpoints of a run: writing and reading them, and which ones are kept.

A checkpoint holds a release (`model.safetensors`, `config.json`) for everyone, and under `state/` the training state
through torch.distributed.checkpoint, whose metadata is pickle: a local file that only the run that wrote it should
read. The file `complete.json`, written last, has the size and the digest of all others: a checkpoint without it, or
unlike it, is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from cover.console import say
from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.model.cover import CoVeR
from cover.model.release import CHECKPOINTS, save_release, steps_saved
from cover.training.optim import Ema
from cover.training.recipe import Checkpoints
from cover.training.retention import best_step, dev_scores, mark_best, remove_others

STATE, LOG, COMPLETE = "state", "log.jsonl", "complete.json"

# Where one process writes, that is what is meant.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


@dataclass(frozen=True)
class Trained:
    """What training moves."""

    model: CoVeR
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None

    def state(self) -> dict[str, Any]:
        """The very tensors, under names that do not depend on how many ranks share them."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        means = {"ema": dict(self.ema.state())} if self.ema else {}
        return {"model": weights, "optimizer": moments, **means}

    def whole_weights(self) -> dict[str, Tensor]:
        """The weights of a release: the averages where there are any, whole, on the CPU, apart from the model's own; on
        rank 0 where the model is sharded. Every rank has to call it.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        if self.ema is None:
            return apart(get_model_state_dict(self.model, options=options))
        with self.ema.in_place():
            return apart(get_model_state_dict(self.model, options=options))


def apart(state: Any) -> Any:
    """The same tree with copies of its tensors on the CPU, which training no longer changes."""
    if isinstance(state, Tensor):
        return state.detach().clone() if state.device.type == "cpu" else state.detach().cpu()
    if isinstance(state, Mapping):
        return {key: apart(value) for key, value in state.items()}
    return [apart(value) for value in state] if isinstance(state, list) else state


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaveJob:
    """A checkpoint to be written: copies of all that goes into it, and the steps whose checkpoints may stay."""

    step: int
    model: CoVeR  # for its shape and heads alone
    weights: dict[str, Tensor]
    state: dict[str, Any]
    metadata: dict[str, Any]
    facts: dict[str, Any]
    keep: int
    best: int | None


class Saver:
    """Writes a run's checkpoints, one at a time. A fault of one is raised by the next `save`, or by `wait`, on every
    rank.

    Where every rank holds everything, rank 0 writes alone; where the state is sharded, each writes its share.
    """

    def __init__(self, run: Path, group: ProcessGroup, sharded: bool, settings: Checkpoints) -> None:
        self.run, self.group, self.sharded, self.settings = run, group, sharded, settings
        self._thread: threading.Thread | None = None
        self._problem: str | None = None

    def save(self, step: int, trained: Trained, metadata: dict[str, Any], facts: dict[str, Any]) -> None:
        """Take a copy of `step` (steps done) and hand it to the background. `facts`: plain JSON that a resume reads.
        Raises `UserError` where this one or the one before could not be written. Every rank has to call it.
        """
        self.wait()
        weights = trained.whole_weights()
        if self.sharded or self.group.leads:
            job = SaveJob(
                step,
                trained.model,
                weights,
                apart(trained.state()),
                {**metadata, "step": step},
                {**facts, "step": step},
                self.settings.keep,
                best_step(dev_scores(self.run / LOG), [*steps_saved(self.run), step], self.settings.best),
            )
            self._thread = threading.Thread(target=self._run_job, args=(job,), name=f"checkpoint-{step}")
            self._thread.start()
        if not self.settings.background:
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint under way is written. Raises `UserError`; every rank has to call it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problems = [problem for problem in self.group.gather(self._problem) if problem]
        self._problem = None
        if problems:
            raise UserError(problems[0])

    def _run_job(self, job: SaveJob) -> None:
        final = folder_of(self.run, job.step)
        self._problem = f"{final}: was not written"  # whatever ends this thread
        try:
            self._write(job, final)
            self._problem = None
        # a full disk comes as one of half a dozen; `wait` raises it on every rank
        except (Exception, CheckpointException) as error:
            self._problem = f"{final}: cannot be written: {_reason(error)}; the checkpoint before it is intact"

    def _write(self, job: SaveJob, final: Path) -> None:
        beside = final.with_name(f".{final.name}.writing")
        try:
            self._agree(_make_empty, beside)
            dcp.save(
                job.state, checkpoint_id=beside / STATE, process_group=self.group.background, no_dist=not self.sharded
            )
            self._agree(_finish, job, beside, final, self.run)
        finally:
            if self.group.leads:
                shutil.rmtree(beside, ignore_errors=True)

    def _agree(self, work: Any, *arguments: Any) -> None:
        """`work` on rank 0; where several ranks write, its error is raised on all of them."""
        problem: OSError | RuntimeError | None = None
        if self.group.leads:
            try:
                work(*arguments)
            except Exception as error:
                problem = error if isinstance(error, OSError) else RuntimeError(_first_line(error))
        if self.sharded:
            lines = [problem]
            dist.broadcast_object_list(lines, src=0, group=self.group.background)
            problem = lines[0]
        if problem is not None:
            raise problem


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(job: SaveJob, beside: Path, final: Path, run: Path) -> None:
    """The release, the digests, the rename; then what is no longer kept goes."""
    save_release(beside, job.model, job.metadata, job.weights)
    files = {str(path.relative_to(beside)): _print_of(path) for path in sorted(beside.rglob("*")) if path.is_file()}
    _write_synced(beside / COMPLETE, json.dumps({**job.facts, "files": files}, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    _sync_folder(final.parent)
    mark_best(run, job.best)
    remove_others(run, job.keep, job.best)


def _print_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest}


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """The operating system's own word for it, from wherever it is wrapped."""
    if isinstance(error, CheckpointException):
        return _reason(next(iter(error.failures.values()))[0])
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    text = _first_line(error)  # of another rank there is no more than this
    return "a file was cut short (is the disk full?)" if "inline_container" in text else text


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- reading ----------------------------------------------------------------------------------------------------------


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return run / CHECKPOINTS / f"step-{step:07d}"


def last_whole(run: Path) -> int:
    """The step of the last checkpoint that is what was written, 0 without any; later ones that are not are set aside
    and named.

    Raises `UserError` where there are checkpoints and none of them is whole.
    """
    saved = steps_saved(run)
    problem = ""
    for step in reversed(saved):
        folder = folder_of(run, step)
        problem = problem_of(folder)
        if not problem:
            return step
        if step != saved[0]:
            say(f"{folder}: {problem}; set aside, the checkpoint before it is used")
            folder.rename(folder.with_name(f"damaged-{folder.name}"))
    if saved:
        raise UserError(
            f"{folder_of(run, saved[0])}: {problem}; no other checkpoint to go on from: begin another run with --out"
        )
    return 0


def problem_of(folder: Path) -> str:
    """What is wrong with the files of a checkpoint, empty where nothing is."""
    try:
        listed = read_facts(folder)["files"]
        for name, wanted in listed.items():
            if (folder / name).stat().st_size != wanted["bytes"]:
                return f"{name} is cut short or changed"
            if _print_of(folder / name) != wanted:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        return f"has no {COMPLETE}: torn, or of an earlier version" if missing == COMPLETE else f"{missing} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{COMPLETE} cannot be read: {_first_line(error)}"
    return ""


def read_facts(folder: Path) -> dict[str, Any]:
    """What `Saver.save` was told beside the tensors."""
    facts: dict[str, Any] = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    return facts


def restore(run: Path, step: int, trained: Trained, group: ProcessGroup) -> dict[str, Any]:
    """Load the state of `step` into what training moves, in place, however many ranks wrote it; returns the facts saved
    with it.
    """
    folder = folder_of(run, step)
    state = trained.state()
    dcp.load(state, checkpoint_id=folder / STATE, process_group=group.background, no_dist=group.ranks == 1)
    set_state_dict(
        trained.model, trained.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    if trained.ema:
        trained.ema.load(state["ema"])
    return read_facts(folder)


def cut_log(run: Path, step: int) -> None:
    """Drop the lines of a run's log that lie beyond `step`, a torn last one among them."""
    cut_lines(run / LOG, step)


def cut_lines(log: Path, step: int) -> None:
    """Drop the lines of a file of JSON lines whose `step` lies beyond `step`, a torn last one among them."""
    if not log.is_file():
        return
    retained = [line for line in log.read_text(encoding="utf-8").splitlines() if _logged_step(line) <= step]
    beside = log.with_name(f".{log.name}.{os.getpid()}")
    beside.write_text("".join(line + "\n" for line in retained), encoding="utf-8")
    beside.replace(log)


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
