"""Weights on disk: a release folder of `model.safetensors` and `config.json`, and how one run's weights start another."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.card import card
from cover.model.timesformer import Head, ModelConfig, TimeSformer, resized_positions, resized_time

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
CHECKPOINTS = "checkpoints"  # of a run folder
INHERITED = frozenset(["mean", "std", "norm_eps", "resize", "image_time", "patch_embed"])

Temporal = Literal["fresh", "copied", "keep"]

Network = TypeVar("Network", bound=TimeSformer)


def save_release(folder: Path, model: TimeSformer, about: dict[str, Any], weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the weights (`weights`, where the model's own are on the move), the configuration, the heads with their class names, and
    `about` (plain JSON: step, data sets, ...).

    A model card goes with them, unless the folder has one: that may be its owner's text by now.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in (weights or model.state_dict()).items()}
    save_file(state, str(folder / WEIGHTS))
    heads = [dataclasses.asdict(head) for head in model.head_list]
    config = {"format": 1, "model": dataclasses.asdict(model.config), "heads": heads, "about": about}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors writes for the owner's eyes alone
    if not (folder / CARD).exists():
        (folder / CARD).write_text(card(model.config, model.head_list, about), encoding="utf-8")


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
    return load_as(TimeSformer, folder)


def load_as(network: Callable[[ModelConfig, tuple[Head, ...]], Network], folder: Path) -> tuple[Network, dict[str, Any]]:
    """`load_release` for a network of another class."""
    config = read_config(folder)
    try:
        with torch.device("meta"):  # weights that are replaced at once need neither memory nor random numbers
            model = network(_settings(config), tuple(map(_head, config["heads"])))
    except (TypeError, ValueError) as error:  # a field of a later version, or one of another type
        raise UserError(f"{folder / CONFIG}: no model of this version: {error}") from None
    _take_exactly(model, read_weights(folder), folder)
    return model.eval(), config["about"]


def _settings(config: dict[str, Any]) -> ModelConfig:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in config["model"].items()}
    return ModelConfig(**fields)


def _head(told: dict[str, Any]) -> Head:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    return Head(**fields)


def release_heads(folder: Path) -> tuple[Head, ...]:
    """The heads of a release folder, without its weights. Raises `UserError`."""
    try:
        return tuple(map(_head, read_config(folder)["heads"]))
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: no heads of this version: {error}") from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a release folder, on the CPU. Raises `UserError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read: {error}") from None


def inherited_settings(folder: Path) -> dict[str, Any]:
    """The settings of a release that go with its weights into whatever starts from them: preprocessing and how embeddings are read."""
    config = read_config(folder)["model"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items() if name in INHERITED}


def start_from(model: TimeSformer, folder: Path, temporal: Temporal) -> list[str]:
    """Fill `model` from a release: everything but its heads, and the heads that both have with the same classes.

    `temporal`: `keep` the release's branch, or make it anew from the spatial weights: `copied` as TimeSformer does, `fresh` with heads
    that look around in time besides (`TimeSformer.fresh_temporal_branch`). Embeddings of another image size or clip length are resized.
    Returns one line for each kind of tensor that was not simply loaded. Raises `UserError` where the two are not the same network, or
    where a head of the same name has other classes or another loss.
    """
    _check_function(model, folder, temporal)
    theirs = {head["name"]: head for head in read_config(folder)["heads"]}
    for head in model.head_list:
        _check_head(head, theirs.get(head.name), folder)
    anew = temporal != "keep"
    ours, found = model.state_dict(), read_weights(folder)
    resized = _resize_embeddings(found, model)
    dropped = sorted(set(theirs) - {head.name for head in model.head_list})
    new = sorted({head.name for head in model.head_list} - set(theirs))
    wanted = {name for name in ours if not (anew and model.is_temporal(name)) and _head_of(name) not in new}
    usable = {name: value for name, value in found.items() if _head_of(name) not in dropped and not (anew and model.is_temporal(name))}
    _check_same(usable, {name: ours[name] for name in wanted}, folder)
    model.load_state_dict({**ours, **usable})
    for name in new:
        model.zero_head(name)
    if anew:
        model.fresh_temporal_branch(looking=temporal == "fresh")
    notes = [f"{len(usable)} tensors loaded from {folder}"]
    notes += [f"resized: {', '.join(resized)}"] if resized else []
    notes += [f"temporal branch {temporal}: made from the spatial attention, temporal_fc zero"] if anew else []
    notes += [f"new heads, starting at zero: {', '.join(new)}"] if new else []
    return notes + ([f"heads left out: {', '.join(dropped)}"] if dropped else [])


def _resize_embeddings(found: dict[str, Tensor], model: TimeSformer) -> list[str]:
    """Fit position and time embeddings of the same width to `model`, in place; returns what was changed, in words."""
    config, changed = model.config, []
    side = config.size // config.patch
    fitted = {"pos_embed": lambda embed: resized_positions(embed, (side, side), config.resize)}
    if model.has_time_embedding:
        fitted["time_embed"] = lambda embed: resized_time(embed, config.frames)
    for name, fit in fitted.items():
        before = found.get(name)
        if before is not None and before.ndim == 3 and before.shape[-1] == config.width:
            found[name] = fit(before)
            if found[name].shape != before.shape:
                changed.append(f"{name} from {before.shape[1]} to {found[name].shape[1]} entries")
    return changed


def _check_function(model: TimeSformer, folder: Path, temporal: Temporal) -> None:
    """The settings under which the same tensors would compute another function, or whose tensors alone would not say which is meant."""
    theirs = read_config(folder)["model"]
    heads = model.config.attention_heads
    if theirs.get("attention_heads", heads) != heads:
        raise UserError(
            f"{folder}: its network has {theirs['attention_heads']} attention heads, this run's has {heads}; choose another model.preset"
        )
    for name in ("patch_embed", *(("attention", "time") if temporal == "keep" else ())):
        ours = getattr(model.config, name)
        if theirs.get(name, ours) != ours:
            or_fresh = "" if name == "patch_embed" else ", or start.temporal to fresh"
            raise UserError(f"{folder}: its model.{name} is {theirs[name]}, this run's {ours}: set model.{name}{or_fresh}")


def _check_head(head: Head, theirs: dict[str, Any] | None, folder: Path) -> None:
    if theirs is None:
        return
    if tuple(theirs["classes"]) != head.classes:
        raise UserError(
            f'{folder}: its head "{head.name}" has other classes ({len(theirs["classes"])}) than this run ({len(head.classes)})'
        )
    if (loss := theirs.get("loss", "softmax")) != head.loss:
        raise UserError(f"{folder}: its head \"{head.name}\" is a {loss}, this run's a {head.loss}; name this run's in data.heads")


def _head_of(name: str) -> str | None:
    return name.split(".")[1] if name.startswith("heads.") else None


def _take_exactly(model: TimeSformer, found: dict[str, Tensor], folder: Path) -> None:
    """Give a model on the meta device its weights, as copies: those of a mapped file would go with the file."""
    wanted = model.state_dict()
    _check_same(found, wanted, folder)
    model.load_state_dict({name: value.to(wanted[name].dtype, copy=True) for name, value in found.items()}, assign=True)
    for name in ("mean", "std"):
        model.register_buffer(name, torch.tensor(getattr(model.config, name)).view(3, 1, 1), persistent=False)


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
