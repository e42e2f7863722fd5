"""Importing: a checkpoint of another library becomes a release. Every tensor of either side is accounted for, once.

cover import-weights facebook/timesformer-base-finetuned-k400 --out k400
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig, resized_positions, resized_time
from cover.model.cover import BACKBONE, CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.model.starts.checkpoint_files import ForeignCheckpoint, read_source
from cover.model.starts.conventions import ImportOptions, classes_of, network_of, pixels_of, seconds_between_frames
from cover.model.starts.formats import HEAD, TRANSFORMERS_TIMESFORMER, ForeignFormat, Translation, recognise, translate

LOADED, COPIED, RESIZED, NEW, UNUSED = "loaded", "copied to the temporal branch", "resized", "left new", "unused"
FATES = (LOADED, COPIED, RESIZED, NEW, UNUSED)
NO_HEAD = "none"
MODEL_TYPES = ("timesformer", "vit")  # of transformers
AS_IT_IS = ImportOptions()
SHOWING_SIZES = ("patch_embed.weight", "pos_embed", "blocks.0.mlp.fc1.weight")


def import_weights(source: str, out: Path, options: ImportOptions = AS_IT_IS) -> dict[str, Any]:
    """Write the release `out` from a foreign checkpoint: a file, a folder or a Hub id. Returns the report, plain JSON.

    A TimeSformer computes what it computed before. An image ViT gets a temporal branch that is a copy of its spatial
    one, with `temporal_fc` zero, so that it computes on images what it computed before. Raises `UserError` on any
    surprise: an unexpected tensor, a missing one, a wrong shape, a setting that is not this model's.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose a new folder with --out")
    result = read_source(source)
    try:
        model, report = _convert(result, options)
    except UserError as error:
        raise UserError(f"{result.path}: {error}") from None
    try:
        save_release(out, model, report.pop("metadata"))
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    return {"source": source, "out": str(out), **report}


def _convert(results: ForeignCheckpoint, options: ImportOptions) -> tuple[CoVeR, dict[str, Any]]:
    form, present, left_out = _translated(results, options)
    pixels = pixels_of(results, form)
    origin = dataclasses.replace(network_of(results, form, present, options), mean=pixels.mean, std=pixels.std)
    head, named_by = _head_of(results, form, present, options)
    if head is None:
        present, left_out = _without_head(present, left_out)
    _check_whole(form, present, origin, head)
    model, rows = _fill(present, origin, _wanted(origin, options), head)
    rows += [_row(None, (name,), UNUSED, results.tensors[name], why) for name, why in left_out.items()]
    head_facts = {"name": head.name, "classes": len(head.classes), "named_by": named_by} if head else None
    report = {
        "format": form.title,
        "model": dataclasses.asdict(model.config),
        "pixels": dataclasses.asdict(pixels),
        "head": head_facts,
        "notes": _notes(results, form, origin),
        "counts": _counts(rows),
        "tensors": rows,
        "metadata": _metadata(results, form, origin, model, named_by, options, pixels.origin),
    }
    return model, report


# --- what is in the file ----------------------------------------------------------------------------------------------


def _translated(
    results: ForeignCheckpoint, options: ImportOptions
) -> tuple[ForeignFormat, Translation, dict[str, str]]:
    """The checkpoint under our names, and the tensors left out on purpose with the reason."""
    if {"format", "heads"} <= results.config.keys():
        raise UserError("is a release of this package already; give it to the other commands as it is")
    kind = results.config.get("model_type")
    if kind not in (None, *MODEL_TYPES):
        raise UserError(f"config.json: model_type {kind}: known are {' and '.join(MODEL_TYPES)}")
    for beginning in options.unused:
        if not any(name.startswith(beginning) for name in results.tensors):
            raise UserError(f"--unused {beginning}: no tensor is called so")
    left_out = {name: "named with --unused" for name in results.tensors if name.startswith(options.unused)}
    state = {name: value for name, value in results.tensors.items() if name not in left_out}
    form = recognise(state, results.wrapping == "model_state")
    if form.title.startswith("transformers") and kind is None:
        raise UserError(f"{form.title} by its tensors, without config.json; give the folder with both")
    present = translate(form, state)
    if present.strangers:
        more = f" (and {len(present.strangers) - 1} more)" if present.strangers[1:] else ""
        stranger = present.strangers[0]
        raise UserError(
            f'unexpected tensor {stranger}{more}: no part of the format "{form.title}"; to leave it out: --unused {stranger}'
        )
    for ours in SHOWING_SIZES:
        if ours not in present.tensors:
            raise UserError(f"the tensor {form.names(1)[ours][0]} is missing")
    return form, present, left_out


def _head_of(
    results: ForeignCheckpoint, form: ForeignFormat, present: Translation, options: ImportOptions
) -> tuple[Head | None, str]:
    if options.head == NO_HEAD or f"{HEAD}.weight" not in present.tensors:
        return None, ""
    name = options.head or _valid_name(results.name.rsplit("/", 1)[-1])
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII) or hasattr(nn.ModuleDict, name):
        raise UserError(f'--head: "{name}" cannot name a head: use letters, digits, _ and -')
    classes, origin = classes_of(results, form, present, options)
    return Head(name, classes), origin


def _valid_name(text: str) -> str:
    """The source's name with all that a head's name may not have replaced."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-") or "imported"
    return f"{name}_head" if hasattr(nn.ModuleDict, name) or name == NO_HEAD else name


def _without_head(present: Translation, left_out: dict[str, str]) -> tuple[Translation, dict[str, str]]:
    heads = [name for name in present.tensors if name.startswith(f"{HEAD}.")]
    why = {source: "--head none" for name in heads for source in present.sources[name]}
    retained = {name: value for name, value in present.tensors.items() if name not in heads}
    return dataclasses.replace(present, tensors=retained), {**left_out, **why}


def _check_whole(form: ForeignFormat, present: Translation, origin: TimeSformerConfig, head: Head | None) -> None:
    """Refuse a checkpoint that lacks a tensor of its network, or has one of another shape."""
    with torch.device("meta"):
        model = CoVeR(origin, (head,) if head else ())
    wanted, temporal = model.state_dict(), model.temporal_parameters()
    names = form.names(present.depth)
    for name, value in wanted.items():
        ours = _foreign_name(name)
        if ours in present.tensors:
            shape = tuple(present.tensors[ours].shape)
            if shape != tuple(value.shape):
                raise UserError(f"{' + '.join(present.sources[ours])} is {shape}, and should be {tuple(value.shape)}")
            if not present.tensors[ours].is_floating_point():
                raise UserError(
                    f"{present.source(ours)} holds {present.tensors[ours].dtype}, no floating-point numbers"
                )
        elif form.video or name not in temporal:
            raise UserError(f"the tensor {names[ours][0] if ours in names else ours} is missing")
    for ours in present.tensors.keys() - {_foreign_name(name) for name in wanted}:
        raise UserError(
            f"unexpected tensor {present.source(ours)}: no part of a network of {origin.attention} attention"
        )


def _foreign_name(name: str) -> str:
    """The name of one of our parameters in a translation, where the backbone has no prefix and the one head no name."""
    if name.startswith(BACKBONE):
        return name.removeprefix(BACKBONE)
    return f"{HEAD}.{name.rpartition('.')[2]}"


# --- what becomes of it -----------------------------------------------------------------------------------------------


def _wanted(origin: TimeSformerConfig, options: ImportOptions) -> TimeSformerConfig:
    size = options.size or origin.size
    if size % origin.patch:
        raise UserError(f"--size {size} is not a multiple of the patch, {origin.patch} px")
    return dataclasses.replace(origin, size=size, frames=options.frames or origin.frames)


def _fill(
    present: Translation, origin: TimeSformerConfig, config: TimeSformerConfig, head: Head | None
) -> tuple[CoVeR, list[dict[str, Any]]]:
    """The model with the checkpoint in it, and what became of every tensor."""
    model = CoVeR(config, (head,) if head else ()).eval()
    state, rows = model.state_dict(), []
    for name in state:
        ours = _foreign_name(name)
        if ours not in present.tensors:
            continue
        value = present.tensors[ours].float()
        fitted = _fitted(ours, value, config)
        change = (
            ""
            if fitted is value
            else f"from {tuple(value.shape)}, {'nearest' if ours == 'time_embed' else config.resize}"
        )
        state[name] = fitted
        rows.append(_row(name, present.sources[ours], RESIZED if change else LOADED, fitted, change))
    model.load_state_dict(state)
    return model, rows + _make_rest(model, {row["tensor"] for row in rows})


def _fitted(name: str, value: Tensor, config: TimeSformerConfig) -> Tensor:
    """An embedding at the size and length of `config`; any other tensor as it is."""
    if name == "pos_embed":
        side = config.size // config.patch
        return resized_positions(value, (side, side), config.resize)
    return resized_time(value, config.frames) if name == "time_embed" else value


@torch.no_grad()
def _make_rest(model: CoVeR, value: set[str]) -> list[dict[str, Any]]:
    """The temporal branch of an image ViT, from the spatial weights that are in the model by now."""
    missing = [name for name in model.state_dict() if name not in value]
    if not missing:
        return []
    model.backbone.reset_temporal("fresh")
    parameters = dict(model.named_parameters())
    rows = []
    for name in missing:
        origin = (
            name.replace("temporal_norm", "norm1").replace("temporal_attn", "attn").replace("temporal_scale", "scale1")
        )
        if origin == name or "temporal_fc" in name:
            rows.append(_row(name, (), NEW, parameters[name], "zero: the model begins as its image ViT"))
            continue
        changed = not torch.equal(parameters[name], parameters[origin])
        why = f"of {origin}" + (", set to the differences between the frames before and after" if changed else "")
        rows.append(_row(name, (), COPIED, parameters[name], why))
    return rows


def _row(name: str | None, sources: Sequence[str], fate: str, value: Tensor, why: str = "") -> dict[str, Any]:
    return {
        "tensor": name,
        "source": list(sources),
        "fate": fate,
        "shape": list(value.shape),
        "numbers": value.numel(),
        "why": why,
    }


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {
        fate: {
            "tensors": sum(row["fate"] == fate for row in rows),
            "numbers": sum(row["numbers"] for row in rows if row["fate"] == fate),
        }
        for fate in FATES
    }


def _notes(results: ForeignCheckpoint, form: ForeignFormat, config: TimeSformerConfig) -> list[str]:
    notes = []
    if kinds := {
        str(value.dtype).removeprefix("torch.") for value in results.tensors.values() if value.dtype != torch.float32
    }:
        notes.append(f"{' and '.join(sorted(kinds))} became float32")
    if form is TRANSFORMERS_TIMESFORMER and config.attention == "space":
        notes.append(
            "space attention: transformers gives logits for each frame, here the frames' features are averaged (released code)"
        )
    return notes


def _metadata(
    results: ForeignCheckpoint,
    form: ForeignFormat,
    origin: TimeSformerConfig,
    model: CoVeR,
    classes_source: str,
    options: ImportOptions,
    pixels: str,
) -> dict[str, Any]:
    """What the other commands have to know: how long a clip is, and how each head's videos are looked at."""
    from cover import __version__
    from cover.datasets.manifest import class_digest
    from cover.media.sampling import Sampling

    dense = Sampling("dense", seconds_between_frames(results, origin.frames, model.config.frames))
    # An image head has no clips of its own; parts of equal length cover a video of any length.
    sampling = Sampling.parse(options.sampling) if options.sampling else dense if form.video else Sampling("segments")
    media, views = ("video", "1x3") if form.video else ("image", "1x1")
    sets = {
        head.name: {
            "media": media,
            "sampling": str(sampling),
            "views": views,
            "classes_source": classes_source,
            "class_digest": class_digest(head.classes),
        }
        for head in model.head_list
    }
    origins = {"weights": results.name, "format": form.title, "pixels": pixels}
    return {"cover": __version__, "step": 0, "frames": model.config.frames, "datasets": sets, "imported": origins}


# --- what is said of it -----------------------------------------------------------------------------------------------


def print_report(report: dict[str, Any]) -> None:
    """What was read and what became of the tensors: a table on stdout, the rest as narration."""
    from cover.console import print_table, say

    config, pixels, head = report["model"], report["pixels"], report["head"]
    say(
        f"{report['format']}: {config['attention']} attention, time {config['time']}, width {config['width']}, depth {config['depth']}, "
        f"{config['frames']} x {config['size']} px in patches of {config['patch']}"
    )
    say(f"pixels: mean {_brief(pixels['mean'])}, std {_brief(pixels['std'])} ({pixels['origin']})")
    say(f'head "{head["name"]}": {head["classes"]} classes ({head["named_by"]})' if head else "no head")
    for note in report["notes"]:
        say(note)
    for fate in (RESIZED, NEW, UNUSED):
        for why, names in _by_reason(report["tensors"], fate).items():
            say(f"{fate}: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}")
    rows = [(fate, count["tensors"], f"{count['numbers']:,}") for fate, count in report["counts"].items()]
    print_table(("what became of it", "tensors", "numbers"), rows)


def _brief(values: Sequence[float]) -> str:
    return f"{values[0]:.4g}" if len(set(values)) == 1 else ", ".join(f"{value:.4g}" for value in values)


def _by_reason(rows: Sequence[dict[str, Any]], fate: str) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["fate"] == fate:
            reasons.setdefault(row["why"], []).append(row["tensor"] or row["source"][0])
    return reasons
