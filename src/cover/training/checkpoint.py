"""What survives a stop: checkpoints written beside and renamed, and the run folder they lie in.

A checkpoint holds a release (`model.safetensors`, `config.json`) for everyone, and under `state/` the training state through
torch.distributed.checkpoint, whose metadata is pickle: a local file that only the run that wrote it should read.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from cover.errors import UserError
from cover.model.timesformer import TimeSformer
from cover.model.weights import CHECKPOINTS, save_release, steps_saved

KEPT = 2
STATE, LOG = "state", "log.jsonl"


def save(run: Path, step: int, model: TimeSformer, optimizer: torch.optim.Optimizer, about: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` (steps done) and drop all but the last two. Raises `UserError` where the disk is full."""
    final = run / CHECKPOINTS / f"step-{step:07d}"
    beside = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        save_release(beside, model, {**about, "step": step})
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments, "rng": torch.get_rng_state()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is what is meant
            dcp.save(state, checkpoint_id=beside / STATE, no_dist=True)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
    except OSError as error:
        raise UserError(f"{final}: cannot be written: {error.strerror}; the checkpoint before it is intact") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for old in steps_saved(run)[:-KEPT]:
        shutil.rmtree(run / CHECKPOINTS / f"step-{old:07d}")
    return final


def restore(run: Path, step: int, model: TimeSformer, optimizer: torch.optim.Optimizer) -> None:
    """Load the training state of `step` into `model` and `optimizer`, in place."""
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments, "rng": torch.get_rng_state()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, checkpoint_id=run / CHECKPOINTS / f"step-{step:07d}" / STATE, no_dist=True)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])  # type: ignore[arg-type]
    torch.set_rng_state(state["rng"])  # type: ignore[arg-type]


def cut_log(run: Path, step: int) -> None:
    """Drop the lines of a run's log that lie beyond `step`, a torn last one among them."""
    log = run / LOG
    if not log.is_file():
        return
    kept = [line for line in log.read_text(encoding="utf-8").splitlines() if _logged_step(line) <= step]
    beside = log.with_name(f".{log.name}.{os.getpid()}")
    beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    beside.replace(log)


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
