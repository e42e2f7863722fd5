"""Checkpoints of a run: writing and reading them.

A checkpoint is a folder. It contains a release (`model.safetensors`, `config.json`) for everyone. The subfolder `state`
has the training state in the format of torch.distributed.checkpoint, which `cover.training.state_reader` reads. The
file `complete.json` is written last. It has the size and the digest of all other files but the model card. A checkpoint
without it, or with other files than it lists, is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
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
from cover.hub import CARD
from cover.model.cover import CoVeR
from cover.model.json_values import parse_json
from cover.model.release import CHECKPOINTS, save_release, steps_saved
from cover.model.release_config import COMPLETE
from cover.training.optim import Ema
from cover.training.recipe import Checkpoints
from cover.training.retention import best_step, dev_scores, mark_best, remove_others
from cover.training.state_reader import load_state

STATE, LOG = "state", "log.jsonl"

# A single process writes its state with `no_dist`, on purpose.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")


@dataclass(frozen=True)
class Trained:
    """The objects that training changes: the model, the optimizer and the average of the weights."""

    model: CoVeR
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None

    def state(self) -> dict[str, Any]:
        """The tensors themselves, not copies, under names that do not depend on the number of ranks."""
        weights, moments = get_state_dict(self.model, self.optimizer)
        means = {"ema": dict(self.ema.state())} if self.ema else {}
        return {"model": weights, "optimizer": moments, **means}

    def whole_weights(self) -> dict[str, Tensor]:
        """Copies on the CPU of the weights of a release: the average of the weights, or else the weights.

        Every rank must call it. If the model is sharded, rank 0 gets the whole tensors.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        if self.ema is None:
            return apart(get_model_state_dict(self.model, options=options))
        with self.ema.in_place():
            return apart(get_model_state_dict(self.model, options=options))


def apart(state: Any) -> Any:
    """A nested structure with copies of its tensors on the CPU, which training does not change."""
    if isinstance(state, Tensor):
        return state.detach().clone() if state.device.type == "cpu" else state.detach().cpu()
    if isinstance(state, Mapping):
        return {key: apart(value) for key, value in state.items()}
    return [apart(value) for value in state] if isinstance(state, list) else state


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaveJob:
    """A checkpoint to write, with copies of all its tensors, so that training can go on meanwhile."""

    step: int
    model: CoVeR  # only its configuration, its heads and the factors of low-rank additions are read
    weights: dict[str, Tensor]  # of the release
    state: dict[str, Any]  # of `Trained.state`
    metadata: dict[str, Any]  # of the release
    facts: dict[str, Any]  # plain JSON for `restore`
    keep: int  # how many of the last checkpoints stay
    best: int | None  # the step of the best checkpoint, which stays too


class SaveClock:
    """Says when a checkpoint is due by time: every `minutes`, 0 for never.

    Ranks have different clocks, so only one of them may ask (`leads`); the others learn of it from the step.
    """

    def __init__(self, minutes: float, leads: bool) -> None:
        self._seconds, self._leads = 60 * minutes, leads
        self._began, self._asked = time.monotonic(), False

    def due(self) -> bool:
        """Whether this rank asks for a checkpoint now. It asks once until `restart` is called."""
        late = self._leads and self._seconds > 0 and time.monotonic() - self._began >= self._seconds
        due, self._asked = late and not self._asked, self._asked or late
        return due

    def restart(self) -> None:
        """Start the next interval, after a checkpoint."""
        self._began, self._asked = time.monotonic(), False


class Saver:
    """Writes the checkpoints of a run in a background thread, one at a time.

    If a checkpoint cannot be written, the next call of `save` or `wait` raises the error on every rank. If every rank
    has the whole state, only rank 0 writes. If the state is sharded, each rank writes its shard.
    """

    def __init__(self, run: Path, group: ProcessGroup, sharded: bool, settings: Checkpoints) -> None:
        self.run, self.group, self.sharded, self.settings = run, group, sharded, settings
        self._thread: threading.Thread | None = None
        self._problem: str | None = None

    def save(self, step: int, trained: Trained, metadata: dict[str, Any], facts: dict[str, Any]) -> None:
        """Copy the state after `step` steps and start to write it. Every rank must call it.

        `metadata`: of the release. `facts`: plain JSON for a resume. Raises `UserError` if this checkpoint or the one
        before could not be written.
        """
        self.wait()
        weights = trained.whole_weights()
        if self.sharded or self.group.leads:
            state, metadata, facts = apart(trained.state()), {**metadata, "step": step}, {**facts, "step": step}
            saved = [*steps_saved(self.run), step]
            best = best_step(dev_scores(self.run / LOG), saved, self.settings.best)
            job = SaveJob(step, trained.model, weights, state, metadata, facts, self.settings.keep, best)
            self._thread = threading.Thread(target=self._run_job, args=(job,), name=f"checkpoint-{step}")
            self._thread.start()
        if not self.settings.background:
            self.wait()

    def wait(self) -> None:
        """Wait until the current checkpoint is written. Every rank must call it. Raises `UserError` if that failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problems = [problem for problem in self.group.gather(self._problem) if problem]
        self._problem = None
        if problems:
            raise UserError(problems[0])

    def _run_job(self, job: SaveJob) -> None:
        final = folder_of(self.run, job.step)
        self._problem = f"{final}: was not written"  # stays, if something else than an exception ends this thread
        try:
            self._write(job, final)
            self._problem = None
        # A full disk can cause any of half a dozen exceptions. `wait` raises the error on every rank.
        except (Exception, CheckpointException) as error:
            before = [step for step in steps_saved(self.run) if step < job.step]
            state = "the checkpoint before it is intact" if before else "the run has no checkpoint before it"
            self._problem = f"{final}: cannot be written: {_reason(error)}; {state}"

    def _write(self, job: SaveJob, final: Path) -> None:
        """Write into a temporary folder, then rename it: an interrupted checkpoint never has the final name."""
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
        """Run `work` on rank 0. If several ranks write, all of them wait for it and raise its error."""
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
    """Write the release and the digests, rename the folder, then delete old checkpoints."""
    save_release(beside, job.model, job.metadata, job.weights)
    paths = [path for path in sorted(beside.rglob("*")) if path.is_file() and path != beside / CARD]
    files = {str(path.relative_to(beside)): _print_of(path) for path in paths}
    _write_synced(beside / COMPLETE, json.dumps({**job.facts, "files": files}, indent=1) + "\n")
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    _sync_folder(final.parent)  # the rename must be on the disk before older checkpoints are deleted
    mark_best(run, job.best)
    remove_others(run, job.keep, job.best)


def _print_of(path: Path) -> dict[str, Any]:
    """The size and the digest of a file, after its data has reached the disk."""
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
    """The message of the operating system, from the innermost exception that has one."""
    if isinstance(error, CheckpointException):
        return _reason(next(iter(error.failures.values()))[0])
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    text = _first_line(error)  # an error of another rank has no cause here
    # torch's file writer raises this error if a write to the file is incomplete.
    return "a file was cut short (is the disk full?)" if "inline_container" in text else text


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


# --- reading ----------------------------------------------------------------------------------------------------------


def folder_of(run: Path, step: int) -> Path:
    """The folder of the checkpoint of `step`."""
    return run / CHECKPOINTS / f"step-{step:07d}"


def last_whole(run: Path) -> int:
    """The step of the last complete checkpoint, 0 if the run has no checkpoint.

    Damaged checkpoints after it are renamed and reported. Raises `UserError` if all checkpoints are damaged.
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
    """The problem with the files of a checkpoint; empty if they are complete and unchanged.

    The model card is text that people may edit. Earlier versions listed it too.
    """
    try:
        listed = read_facts(folder)["files"]
        for name, wanted in listed.items():
            if name == CARD:
                continue
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
    """The `facts` that `Saver.save` stored with a checkpoint, and its list of files."""
    facts: dict[str, Any] = parse_json((folder / COMPLETE).read_text(encoding="utf-8"))
    return facts


def new_in(run: Path, step: int) -> frozenset[str]:
    """The parameters that the start of the run did not have, from its checkpoint of `step`."""
    return frozenset(read_facts(folder_of(run, step)).get("new", ()))


def restore(run: Path, step: int, trained: Trained, group: ProcessGroup) -> dict[str, Any]:
    """Load the state of `step` in place; returns the facts that were saved with it.

    The checkpoint may come from another number of ranks. Every rank must call it. Raises `UserError` as `load_state`.
    """
    folder = folder_of(run, step)
    state = trained.state()
    load_state(state, folder / STATE, group.background, single=group.ranks == 1)
    set_state_dict(
        trained.model, trained.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    if trained.ema:
        trained.ema.load(state["ema"])
    return read_facts(folder)


def cut_log(run: Path, step: int) -> None:
    """Delete the lines of a run's log after `step`, and an incomplete last line."""
    cut_lines(run / LOG, step)


def cut_lines(log: Path, step: int) -> None:
    """Delete the lines of a file of JSON lines after `step`, and an incomplete last line."""
    if not log.is_file():
        return
    retained = [line for line in log.read_bytes().splitlines() if _logged_step(line) <= step]
    beside = log.with_name(f".{log.name}.{os.getpid()}")
    beside.write_bytes(b"".join(line + b"\n" for line in retained))
    beside.replace(log)


def _logged_step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
