"""Releases: how a model is saved in a folder and loaded, and how a run starts from one.

A release folder has `model.safetensors` (weights), `config.json` (backbone, heads, metadata) and a model card.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from cover.errors import UserError
from cover.hub import CARD, check_hub_id, fetch, is_hub_id
from cover.model.backbone import BackboneOptions
from cover.model.backbones import Options
from cover.model.card import card, is_edited
from cover.model.cover import BACKBONE, CoVeR
from cover.model.heads import Head, head_of
from cover.model.json_values import parse_json
from cover.model.lora import merged
from cover.model.release_config import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    ReleaseConfig,
    import_advice,
    import_command,
    of_backbone,
    read_config,
    written_digest,
)
from cover.model.starts.checkpoint_files import ENDINGS
from cover.model.starts.known import KNOWN, cached_release, known_start, nearest_start
from cover.model.text import TEXT_FILES, start_heads
from cover.model.weight_files import digest_of, read_checked

CHECKPOINTS = "checkpoints"  # the subfolder of a run folder
PULLED = Path(".cache") / "huggingface"  # in a folder into which the Hub's client has downloaded

Temporal = Literal["fresh", "copied", "keep"]


# --- writing ----------------------------------------------------------------------------------------------------------


def save_release(
    folder: Path, model: CoVeR, metadata: dict[str, Any], weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write the weights, the configuration, the heads with their class names, `metadata` and a model card.

    Low-rank additions are merged. `weights`: copies of the weights, if training changes those of the model meanwhile.
    A model card that someone has changed is not replaced.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    whole = merged(model, weights or model.state_dict())
    state = {name: value.detach().cpu().contiguous() for name, value in whole.items()}
    save_file(state, str(folder / WEIGHTS))
    config = {
        "format": FORMAT,
        "backbone": {"family": model.config.family, **dataclasses.asdict(model.config)},
        "heads": [dataclasses.asdict(head) for head in model.head_list],
        "head_dropout": model.head_drop.p,
        "metadata": metadata,
        "weights_sha256": digest_of(folder / WEIGHTS),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets only the owner read its file
    write_card(folder, card(model, metadata))


def write_card(folder: Path, text: str) -> None:
    """Write the model card of a release, unless someone has changed the one that is there."""
    path = folder / CARD
    if not path.exists() or not is_edited(path.read_text(encoding="utf-8", errors="replace")):
        path.write_text(text, encoding="utf-8")


# --- reading ----------------------------------------------------------------------------------------------------------


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a release folder: finite float32 tensors on the CPU, in memory of their own.

    Raises `UserError` if the file cannot be read, if it is damaged (its SHA-256 is in `config.json`, or in the
    `complete.json` of a checkpoint), or if a tensor holds a NaN, an infinity or no floating-point numbers.
    """
    return read_checked(folder / WEIGHTS, written_digest(folder))


def load_release(folder: Path) -> CoVeR:
    """The model of a release folder, in evaluation mode on the CPU. Nothing is unpickled. Raises `UserError`."""
    config = read_config(folder)
    model = _on_meta(config, config.heads, folder)  # the weights are replaced below
    weights = read_weights(folder)
    _check_same(weights, model.state_dict(), folder)
    model.load_state_dict(weights, assign=True)
    model.set_pixel_statistics()
    _compute_tables(model)
    return model.eval()


def _compute_tables(model: CoVeR) -> None:
    """Give values to the buffers of the backbone that no release stores, because the network computes them itself."""
    unset = [name for name, buffer in model.backbone.named_buffers() if buffer.is_meta]
    computed = dict(model.config.build().named_buffers()) if unset else {}
    for name in unset:
        module, _, last = name.rpartition(".")
        model.backbone.get_submodule(module).register_buffer(last, computed[name], persistent=False)


def _on_meta(config: ReleaseConfig, heads: tuple[Head, ...], folder: Path) -> CoVeR:
    """The model of a release without values, which needs neither memory nor random numbers. Raises `UserError`."""
    try:
        with torch.device("meta"):
            return CoVeR(config.backbone, heads, config.head_dropout, config.metadata)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # sizes beyond those of any tensor
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder / CONFIG}: backbone: no network has these sizes: {reason}") from None


def _check_same(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], folder: Path) -> None:
    """Raises `UserError` if names or shapes of the weights differ from those of the model."""
    for name in sorted(wanted.keys() ^ weights.keys()):
        problem = f"lacks the tensor {name}" if name in wanted else f"has the tensor {name}, which this model lacks"
        raise UserError(f"{folder}: {problem}; the model settings differ from those it was trained with")
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            raise UserError(f"{folder}: {name} is {tuple(weights[name].shape)}, this model needs {tuple(value.shape)}")


def steps_saved(run: Path) -> list[int]:
    """The steps of the complete checkpoints of a run, in ascending order."""
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in (run / CHECKPOINTS).glob("step-*"))
    return sorted(int(name[1]) for name in names if name)


def find_release(path: str | Path, revision: str | None = None) -> Path:
    """The folder of a release, of a checkpoint, or of the last checkpoint of a run.

    `path`: a folder on this machine, or the name of a known start (`cover.model.starts.known`), or a Hub id, in this
    order. A known start is converted once, a release on the Hub is downloaded. `revision`: a branch, tag or commit on
    the Hub. Raises `UserError` if there is no release.
    """
    name, path = str(path), Path(path)  # `./a/b` is a path, and not the Hub id `a/b`
    if (path / CONFIG).is_file():
        return path
    saved = steps_saved(path)
    if saved:
        return path / CHECKPOINTS / f"step-{saved[-1]:07d}"
    if path.is_file() and path.suffix in ENDINGS:
        raise UserError(f"{path}: {import_advice(name)}")
    if path.exists():
        foreign = path.is_dir() and any(file.suffix in ENDINGS for file in path.iterdir())
        advice = f"if it is one of another library, {import_command(name)}"
        hint = advice if foreign else "give a run folder, a checkpoint or a release"
        raise UserError(f"{path}: has no checkpoint in it; {hint}")
    if start := known_start(name):
        return cached_release(start)
    if is_on_hub(name):
        return _from_hub(name, revision)
    hint = nearest_start(name) or "; give a run folder, a checkpoint or a release"
    raise UserError(f"{path}: does not exist{hint}")


def is_on_hub(name: str) -> bool:
    """Whether a name that is no path on this machine can be a Hub id. `runs/typo` cannot, if there is a folder runs."""
    return is_hub_id(name) and not Path(name).parent.exists()


def _from_hub(repo: str, revision: str | None, out: Path | None = None) -> Path:
    """Download a release, into the folder `out` or the Hub's cache. Raises `UserError` if the repository has none."""
    advice = f"{repo}: {import_advice(repo)}"
    if any(start.name == repo for start in KNOWN):
        raise UserError(advice)
    try:
        folder = fetch(repo, [WEIGHTS, CONFIG, CARD, *TEXT_FILES], revision, out)
    except UserError as error:
        raise UserError(f"{error}; if it is a checkpoint of another library, {import_command(repo)}") from None
    try:
        values = parse_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(advice) from None
    if not isinstance(values, dict) or not {"heads", "metadata"} <= values.keys():
        raise UserError(advice)
    return folder


def pull(repo: str, out: Path | None = None, revision: str | None = None) -> Path:
    """Download a release from the Hub, into the folder `out` or into the Hub's cache; returns its folder.

    An interrupted download goes on. Raises `UserError` if the Hub does not give it, if it is no release of cover, if a
    file is damaged, or if `out` has other files.
    """
    check_hub_id(repo)
    if out is not None and out.exists() and not (out / PULLED).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose a new folder with --out")
    folder = _from_hub(repo, revision, out)
    load_release(folder)
    return folder


# --- starting from a release ------------------------------------------------------------------------------------------


def start_from(model: CoVeR, folder: Path, temporal: Temporal, prompt: str = "") -> list[str]:
    """Load the weights of a release into `model`: its backbone, and the heads that both have.

    `temporal`: `keep` the temporal parameters of the release, or initialise them from the others
    (`Backbone.reset_temporal`). Embeddings of another image size or clip length are resized. New heads start at zero,
    or with a `prompt` from the texts of their classes (`cover.model.text.start_heads`).
    Returns notes for the log, the first with the number of loaded tensors. Raises `UserError` if the two networks
    differ, or if a head of the same name has other classes or another loss.
    """
    release = read_config(folder)
    _check_networks(model, release, folder, temporal)
    theirs, ours = {head.name for head in release.heads}, {head.name for head in model.head_list}
    new, left_out, reset = sorted(ours - theirs), sorted(theirs - ours), temporal != "keep"
    weights, state = read_weights(folder), model.state_dict()
    resized = _fit_embeddings(weights, model)
    # Temporal parameters that are reset may have other names or shapes in the release, or be absent. None are loaded.
    not_loaded = new_parameters(model, release, temporal)
    added = model.backbone.added_parameters(release.backbone)
    their_reset = _temporal_names(release, folder) if reset else frozenset()
    wanted = {name: value for name, value in state.items() if name not in not_loaded and head_of(name) not in new}
    usable = {
        name: value for name, value in weights.items() if name not in their_reset and head_of(name) not in left_out
    }
    _fit_heads(usable, model, release, folder)
    _check_same(usable, wanted, folder)
    model.load_state_dict({**state, **usable})
    for name in new:
        model.zero_head(name)
    if temporal != "keep":
        model.backbone.reset_temporal(temporal)
    if prompt:
        start_heads(model, folder, new, prompt)
    notes = [f"{len(usable)} tensors loaded from {folder}"]
    notes += [f"resized: {', '.join(resized)}"] if resized else []
    notes += [f"temporal branch {temporal}: made from the spatial attention, its last matrix zero"] if reset else []
    notes += [f"added parameters, which change nothing at first: {len(added)}"] if added else []
    begin = "from the texts of their classes" if prompt else "at zero"
    notes += [f"new heads, starting {begin}: {', '.join(new)}"] if new else []
    return notes + ([f"heads left out: {', '.join(left_out)}"] if left_out else [])


def new_parameters(model: CoVeR, release: ReleaseConfig, temporal: Temporal) -> frozenset[str]:
    """The parameters of the backbone of `model` that `start_from` does not load."""
    added = frozenset(f"{BACKBONE}{name}" for name in model.backbone.added_parameters(release.backbone))
    return added | (model.temporal_parameters() if temporal != "keep" else frozenset())


def starts_untrained_in_time(folder: Path) -> bool:
    """Whether a release was trained on images alone, so that its temporal parameters do not change its output yet."""
    backbone = _on_meta(read_config(folder), (), folder).backbone
    return backbone.temporal_is_new(of_backbone(read_weights(folder)))


def _temporal_names(release: ReleaseConfig, folder: Path) -> frozenset[str]:
    """The names of the temporal parameters in the weights of a release."""
    return _on_meta(release, (), folder).temporal_parameters()


def _fit_embeddings(weights: dict[str, Tensor], model: CoVeR) -> list[str]:
    """Resize embeddings to the sizes of `model`, in place; returns a note for each."""
    backbone = of_backbone(weights)
    notes = model.backbone.fit_embeddings(backbone)
    weights |= {f"{BACKBONE}{name}": value for name, value in backbone.items()}
    return notes


def _fit_heads(weights: dict[str, Tensor], model: CoVeR, release: ReleaseConfig, folder: Path) -> None:
    """Change the classifiers among `weights` for the features of `model`, in place. Raises `UserError`."""
    for head in model.head_list:
        name = f"heads.{head.name}.weight"
        if name in weights:
            try:
                weights[name] = model.backbone.fitted_head(weights[name], release.backbone)
            except UserError as error:
                raise UserError(f"{folder}: {error}") from None


def _check_networks(model: CoVeR, release: ReleaseConfig, folder: Path, temporal: Temporal) -> None:
    """Raises `UserError` if the release has another family, other settings or other heads than the model.

    Tensors of equal shapes would compute another function with other settings, so shapes alone cannot show this.
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
            counts = f"({len(other.classes)}) than this run ({len(head.classes)})"
            raise UserError(f'{folder}: its head "{head.name}" has other classes {counts}')
        if other.loss != head.loss:
            losses = f"is a {other.loss}, this run's a {head.loss}"
            raise UserError(f'{folder}: its head "{head.name}" {losses}; name this run\'s in data.heads')


# --- properties of a release ------------------------------------------------------------------------------------------


def model_like(checkpoint: str | Path) -> tuple[Options, int]:
    """The model options with which a run can start from a checkpoint, and the frames of its clips.

    Raises `UserError` if there is no checkpoint, or if no options produce its network.
    """
    folder = find_release(checkpoint)
    release = read_config(folder)
    try:
        return release.backbone.options(), release.frames
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def start_options(checkpoint: str | Path) -> BackboneOptions | None:
    """The model options of a run that starts from a checkpoint and names no others.

    None if no options produce its network. Raises `UserError` if there is no checkpoint.
    """
    backbone = read_config(find_release(checkpoint)).backbone
    try:
        return cast(Options, backbone.start_options())
    except UserError:
        return None


def weights_digest(checkpoint: str | Path) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of a checkpoint's weights. Raises `UserError` if there is none."""
    return digest_of(find_release(checkpoint) / WEIGHTS)[:12]


def trained_on(checkpoint: str | Path) -> list[str]:
    """The names of the data sets in the metadata of a checkpoint."""
    return list(read_config(find_release(checkpoint)).datasets)
