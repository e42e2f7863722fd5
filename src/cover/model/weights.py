"""Weights on disk: a release folder of `model.safetensors` and `config.json`, and how one run's weights start another."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from cover.errors import UserError
from cover.model.timesformer import Head, ModelConfig, TimeSformer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CHECKPOINTS = "checkpoints"  # of a run folder


def save_release(folder: Path, model: TimeSformer, about: dict[str, Any]) -> None:
    """Write the weights, the configuration, the heads with their class names, and `about` (plain JSON: step, data sets, ...)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(folder / WEIGHTS))
    heads = [{"name": head.name, "classes": list(head.classes)} for head in model.head_list]
    config = {"format": 1, "model": dataclasses.asdict(model.config), "heads": heads, "about": about}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a release folder. Raises `UserError`."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        dict(config["model"]), dict(config["about"]), [(head["name"], tuple(head["classes"])) for head in config["heads"]]
        return config
    except OSError as error:
        raise UserError(f"{folder}: not a checkpoint or a release: {CONFIG}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: damaged: {error}") from None


def load_release(folder: Path) -> tuple[TimeSformer, dict[str, Any]]:
    """The model of a release folder, in evaluation mode on the CPU, and its `about`. Nothing is unpickled. Raises `UserError`."""
    config = read_config(folder)
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in config["model"].items()}
    heads = tuple(Head(head["name"], tuple(head["classes"])) for head in config["heads"])
    try:
        model = TimeSformer(ModelConfig(**fields), heads)
    except (TypeError, ValueError) as error:  # a field of a later version, or one of another type
        raise UserError(f"{folder / CONFIG}: no model of this version: {error}") from None
    _copy_exactly(model, read_weights(folder), folder)
    return model.eval(), config["about"]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a release folder, on the CPU. Raises `UserError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read: {error}") from None


def start_from(model: TimeSformer, folder: Path, fresh_temporal: bool) -> list[str]:
    """Fill `model` from a release: everything but its heads, and the heads that both have with the same classes.

    `fresh_temporal`: the temporal branch is made anew as a copy of the spatial one (TimeSformer's initialisation). Returns one line
    for each kind of tensor that was not simply loaded. Raises `UserError` where the two are not the same network, or where a head
    of the same name has other classes.
    """
    theirs = {head["name"]: tuple(head["classes"]) for head in read_config(folder)["heads"]}
    for head in model.head_list:
        if theirs.get(head.name, head.classes) != head.classes:
            raise UserError(
                f'{folder}: its head "{head.name}" has other classes ({len(theirs[head.name])}) than this run ({len(head.classes)})'
            )
    ours, found = model.state_dict(), read_weights(folder)
    dropped = sorted(set(theirs) - {head.name for head in model.head_list})
    new = sorted({head.name for head in model.head_list} - set(theirs))
    wanted = {name for name in ours if not (fresh_temporal and model.is_temporal(name)) and _head_of(name) not in new}
    usable = {
        name: value for name, value in found.items() if _head_of(name) not in dropped and not (fresh_temporal and model.is_temporal(name))
    }
    _check_same(usable, {name: ours[name] for name in wanted}, folder)
    model.load_state_dict({**ours, **usable})
    if fresh_temporal:
        model.fresh_temporal_branch()
    notes = [f"{len(usable)} tensors loaded from {folder}"]
    notes += ["temporal branch fresh: a copy of the spatial attention, temporal_fc zero"] if fresh_temporal else []
    notes += [f"new heads, starting at zero: {', '.join(new)}"] if new else []
    return notes + ([f"heads left out: {', '.join(dropped)}"] if dropped else [])


def _head_of(name: str) -> str | None:
    return name.split(".")[1] if name.startswith("heads.") else None


def _copy_exactly(model: TimeSformer, found: dict[str, Tensor], folder: Path) -> None:
    _check_same(found, model.state_dict(), folder)
    model.load_state_dict(found)


def _check_same(found: dict[str, Tensor], wanted: dict[str, Tensor], folder: Path) -> None:
    for name in sorted(wanted.keys() ^ found.keys()):
        side = "lacks" if name in wanted else "has, beyond this model,"
        raise UserError(f"{folder}: {side} the tensor {name}; the model settings differ from those it was trained with")
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise UserError(f"{folder}: {name} is {tuple(found[name].shape)}, this model needs {tuple(value.shape)}")


def steps_saved(run: Path) -> list[int]:
    """The steps of the finished checkpoints of a run, ascending."""
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in (run / CHECKPOINTS).glob("step-*"))
    return sorted(int(name[1]) for name in names if name)


def find_release(path: str | Path) -> Path:
    """The release folder meant by `path`: a run (its last checkpoint), a checkpoint or a release. Raises `UserError`."""
    path = Path(path)
    if (path / CONFIG).is_file():
        return path
    saved = steps_saved(path)
    if not saved:
        reason = "has no checkpoint in it" if path.is_dir() else "does not exist"
        raise UserError(f"{path}: {reason}; give a run folder, a checkpoint or a release")
    return path / CHECKPOINTS / f"step-{saved[-1]:07d}"
