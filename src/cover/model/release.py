"""A release on disk: a folder of `model.safetensors`, `config.json` and a model card, and how a run starts from one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbones import Config, Options, config_from
from cover.model.cover import BACKBONE, CoVeR
from cover.model.heads import Head, head_of
from cover.model.hub import CARD, card, fetch, is_hub_id

WEIGHTS, CONFIG = "model.safetensors", "config.json"
CHECKPOINTS = "checkpoints"  # of a run folder
FORMAT = 2

Temporal = Literal["fresh", "copied", "keep"]


@dataclass(frozen=True)
class ReleaseConfig:
    """The `config.json` of a release. `metadata`: plain JSON (frames of a clip, data sets, step, ...)."""

    backbone: Config
    heads: tuple[Head, ...]
    head_dropout: float
    metadata: dict[str, Any]

    @property
    def frames(self) -> int:
        """Frames of a clip, as trained."""
        return int(self.metadata.get("frames", self.backbone.frames))

    @property
    def datasets(self) -> dict[str, Any]:
        """Data set -> what is known of it: its media, its clip sampling, its views, ..."""
        return dict(self.metadata.get("datasets", {}))


# --- writing ----------------------------------------------------------------------------------------------------------


def save_release(
    folder: Path, model: CoVeR, metadata: dict[str, Any], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write weights (`weights`, where those of the model itself are moving), configuration, heads with their class
    names, and `metadata`.

    A model card goes with them, unless the folder has one: that may be its owner's text by now.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in (weights or model.state_dict()).items()}
    save_file(state, str(folder / WEIGHTS))
    config = {
        "format": FORMAT,
        "backbone": {"family": model.config.family, **dataclasses.asdict(model.config)},
        "heads": [dataclasses.asdict(head) for head in model.head_list],
        "head_dropout": model.head_drop.p,
        "metadata": metadata,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors makes its file readable to its owner alone
    if not (folder / CARD).exists():
        (folder / CARD).write_text(card(model, metadata), encoding="utf-8")


# --- reading ----------------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> ReleaseConfig:
    """The configuration of a release folder, without its weights. Raises `UserError`."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: not a checkpoint or a release: {CONFIG}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if isinstance(values, dict) and "model" in values and "backbone" not in values:
        raise UserError(
            f"{path}: was written by an earlier version of cover, which this one does not read; train or import again"
        )
    try:
        heads = tuple(Head(**_with_tuples(head)) for head in values["heads"])
        metadata = dict(values["metadata"])
        return ReleaseConfig(config_from(values["backbone"]), heads, float(values["head_dropout"]), metadata)
    except KeyError as error:
        raise UserError(f"{path}: damaged: it has no {error}") from None
    except (TypeError, ValueError, AttributeError) as error:  # a field of a later version, or one of another type
        raise UserError(f"{path}: damaged, or of another version: {error}") from None


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a release folder, on the CPU. Raises `UserError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read: {error}") from None


def load_release(folder: Path) -> CoVeR:
    """The model of a release folder, in evaluation mode on the CPU. Nothing is unpickled. Raises `UserError`."""
    config = read_config(folder)
    try:
        with torch.device("meta"):  # weights that are replaced at once need neither memory nor random numbers
            model = CoVeR(config.backbone, config.heads, config.head_dropout, config.metadata)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{folder / CONFIG}: no model of this version: {error}") from None
    wanted, result = model.state_dict(), read_weights(folder)
    _check_same(result, wanted, folder)
    # Copies: tensors of a mapped file would go with the file.
    model.load_state_dict(
        {name: value.to(wanted[name].dtype, copy=True) for name, value in result.items()}, assign=True
    )
    model.set_pixel_statistics()
    return model.eval()


def _check_same(results: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    for name in sorted(wanted.keys() ^ results.keys()):
        side = "lacks" if name in wanted else "has, beyond this model,"
        raise UserError(f"{folder}: {side} the tensor {name}; the model settings differ from those it was trained with")
    for name, value in wanted.items():
        if results[name].shape != value.shape:
            raise UserError(f"{folder}: {name} is {tuple(results[name].shape)}, this model needs {tuple(value.shape)}")


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


def release_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of what `find_release` finds, or of a release that is downloaded from the Hub by its id. Raises
    `UserError`.
    """
    here = Path(source).exists() or not is_hub_id(str(source))
    return find_release(source) if here else fetch(str(source), [WEIGHTS, CONFIG, CARD], revision)


# --- starting from one ------------------------------------------------------------------------------------------------


def start_from(model: CoVeR, folder: Path, temporal: Temporal) -> list[str]:
    """Fill `model` from a release: everything but its heads, and the heads that both have with the same classes.

    `temporal`: `keep` the temporal parameters of the release, or make them anew (`Backbone.reset_temporal`). Embeddings
    of another image size or clip length are resized. Returns one line for each kind of tensor that was not simply
    loaded. Raises `UserError` where the two are not the same network, or where a head of the same name has other
    classes or another loss.
    """
    release = read_config(folder)
    _check_networks(model, release, folder, temporal)
    theirs, ours = {head.name for head in release.heads}, {head.name for head in model.head_list}
    new, left_out, anew = sorted(ours - theirs), sorted(theirs - ours), temporal != "keep"
    remade = model.temporal_parameters() if anew else frozenset()
    result, state = read_weights(folder), model.state_dict()
    resized = _fit_embeddings(result, model)
    wanted = {name: value for name, value in state.items() if name not in remade and head_of(name) not in new}
    # Temporal parameters that are made anew may be of another kind, or absent: none of theirs are used.
    theirs_remade = _temporal_names(release) if anew else frozenset()
    usable = {
        name: value for name, value in result.items() if name not in theirs_remade and head_of(name) not in left_out
    }
    _check_same(usable, wanted, folder)
    model.load_state_dict({**state, **usable})
    for name in new:
        model.zero_head(name)
    if temporal != "keep":
        model.backbone.reset_temporal(temporal)
    notes = [f"{len(usable)} tensors loaded from {folder}"]
    notes += [f"resized: {', '.join(resized)}"] if resized else []
    notes += [f"temporal branch {temporal}: made from the spatial attention, temporal_fc zero"] if anew else []
    notes += [f"new heads, starting at zero: {', '.join(new)}"] if new else []
    return notes + ([f"heads left out: {', '.join(left_out)}"] if left_out else [])


def starts_untrained_in_time(folder: Path) -> bool:
    """Whether a release has learned from images alone: its temporal parameters have no part yet in what it computes."""
    with torch.device("meta"):
        backbone = read_config(folder).backbone.build()
    return backbone.temporal_is_new(_of_backbone(read_weights(folder)))


def _temporal_names(release: ReleaseConfig) -> frozenset[str]:
    with torch.device("meta"):
        return CoVeR(release.backbone).temporal_parameters()


def _of_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}


def _fit_embeddings(weights: dict[str, Tensor], model: CoVeR) -> list[str]:
    """Resize embeddings to `model`, in place; returns a note for each."""
    backbone = _of_backbone(weights)
    notes = model.backbone.fit_embeddings(backbone)
    weights |= {f"{BACKBONE}{name}": value for name, value in backbone.items()}
    return notes


def _check_networks(model: CoVeR, release: ReleaseConfig, folder: Path, temporal: Temporal) -> None:
    """The settings under which the same tensors would compute another function, or whose tensors alone would not say
    which is meant.
    """
    ours, theirs = model.config, release.backbone
    if ours.family != theirs.family:
        raise UserError(f"{folder}: its network is a {theirs.family}, this run's a {ours.family}: set model.backbone")
    if difference := ours.difference(theirs, temporal == "keep"):
        raise UserError(f"{folder}: {difference}")
    heads = {head.name: head for head in release.heads}
    for head in model.head_list:
        other = heads.get(head.name, head)
        if other.classes != head.classes:
            raise UserError(
                f'{folder}: its head "{head.name}" has other classes ({len(other.classes)}) than this run ({len(head.classes)})'
            )
        if other.loss != head.loss:
            raise UserError(
                f"{folder}: its head \"{head.name}\" is a {other.loss}, this run's a {head.loss}; name this run's in data.heads"
            )


# --- what a recipe or a study asks of one -----------------------------------------------------------------------------


def model_like(checkpoint: str | Path) -> tuple[Options, int]:
    """The model options under which a run can start from a checkpoint, and the frames of its clips.

    Raises `UserError` where there is none, or no options ask for its network.
    """
    folder = find_release(checkpoint)
    release = read_config(folder)
    try:
        return release.backbone.options(), release.frames
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def weights_digest(checkpoint: str | Path) -> str:
    """12 hex digits over the weights of a checkpoint. Raises `UserError` where there is none."""
    with (find_release(checkpoint) / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def trained_on(checkpoint: str | Path) -> list[str]:
    """The data sets whose training a checkpoint remembers."""
    return list(read_config(find_release(checkpoint)).datasets)
