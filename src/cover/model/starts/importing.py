"""Importing a checkpoint of another library as a release. The report lists every tensor of both sides once.

cover import-weights facebook/timesformer-base-finetuned-k400 --out k400
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerConfig, resized_positions, resized_time
from cover.model.cover import BACKBONE, CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.model.starts import movinet, video_swin, vidtr, vit
from cover.model.starts.checkpoint_files import AVERAGES, ForeignCheckpoint, read_source
from cover.model.starts.conventions import ImportOptions, classes_of, network_of, pixels_of, seconds_between_frames
from cover.model.starts.conversion import NO_HEAD, Conversion, Converter
from cover.model.starts.formats import (
    HEAD,
    TRANSFORMERS_TIMESFORMER,
    ForeignFormat,
    Translation,
    beginnings,
    other_function,
    recognise,
    translate,
)
from cover.model.starts.known import licence_of
from cover.model.starts.report import COPIED, LOADED, NEW, RESIZED, UNUSED, counts, dtype_notes, row
from cover.model.starts.text_networks import add_text, check_text
from cover.model.starts.vit_published import MODEL_TYPES as VIT_TYPES
from cover.model.weight_files import FLOATS, not_finite, wrong_dtype

MODEL_TYPES = ("timesformer", "vit", "swin")  # of transformers
# of the families other than TimeSformer
CONVERTERS: tuple[Converter, ...] = (vit.convert, video_swin.convert, vidtr.convert, movinet.convert)
AS_IT_IS = ImportOptions()
SHOWING_SIZES = ("patch_embed.weight", "pos_embed", "blocks.0.mlp.fc1.weight")  # `network_of` reads their shapes


def import_weights(source: str, out: Path, options: ImportOptions = AS_IT_IS) -> dict[str, Any]:
    """Write the release `out` from a foreign checkpoint: a file, a folder or a Hub id. Returns a report as plain JSON.

    The function of a TimeSformer does not change. An image ViT gets a temporal branch, a copy of its spatial one with
    `temporal_fc` zero, so its function on images does not change. Raises `UserError` for an unexpected or missing
    tensor, a wrong shape, or a setting that this model does not have.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; choose a new folder with --out")
    checkpoint = read_source(source, options.key)
    try:
        if options.text:
            check_text(checkpoint)
        model, report = convert_checkpoint(checkpoint, options)
    except UserError as error:
        raise UserError(f"{checkpoint.path}: {error}") from None
    try:
        save_release(out, model, report.pop("metadata"))
        if options.text:
            add_text(checkpoint, out, report)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    return {"source": source, "out": str(out), **report}


def convert_checkpoint(checkpoint: ForeignCheckpoint, options: ImportOptions) -> tuple[CoVeR, dict[str, Any]]:
    """The model of a foreign checkpoint, and the report, with the `metadata` of a release. Raises `UserError`."""
    state, left_out = _chosen(checkpoint, options)
    for convert in CONVERTERS:
        if conversion := convert(checkpoint, state, options):
            return _converted(checkpoint, conversion, left_out, options)
    kind = checkpoint.config.get("model_type")
    if kind in VIT_TYPES and kind not in MODEL_TYPES:
        raise UserError(f"config.json: model_type {kind}: its tensors are those of another network")
    form, translation = _translated(checkpoint, state)
    pixels = pixels_of(checkpoint, form)
    origin = dataclasses.replace(network_of(checkpoint, form, translation, options), mean=pixels.mean, std=pixels.std)
    try:
        origin.check()
    except ValueError as error:
        raise UserError(f"config.json or the options: {error}") from None
    head, named_by = _head_of(checkpoint, form, translation, options)
    if head is None:
        translation, left_out = _without_head(translation, left_out)
    _check_whole(form, translation, origin, head)
    model, rows = _fill(translation, origin, _wanted(origin, options), head)
    rows += [row(None, (name,), UNUSED, checkpoint.tensors[name], why) for name, why in left_out.items()]
    config = model.config
    assert isinstance(config, TimeSformerConfig)
    settings = f"{config.attention} attention, time {config.time}, width {config.width}, depth {config.depth}"
    report = {
        "format": form.title,
        "network": f"{settings}, {config.frames} x {config.size} px in patches of {config.patch}",
        "model": dataclasses.asdict(model.config),
        "pixels": dataclasses.asdict(pixels),
        "head": _head_facts(head, named_by),
        "notes": _notes(checkpoint, form, origin),
        "counts": counts(rows),
        "tensors": rows,
        "metadata": _metadata(
            checkpoint,
            form,
            model,
            named_by,
            pixels.origin,
            _sampling(checkpoint, form, origin, model, options),
            "1x3" if form.video else "1x1",
        ),
    }
    return model, report


def _converted(
    checkpoint: ForeignCheckpoint, conversion: Conversion, left_out: dict[str, str], options: ImportOptions
) -> tuple[CoVeR, dict[str, Any]]:
    """The model and the report of a checkpoint of another family than TimeSformer."""
    form, translation, pixels = conversion.form, conversion.translation, conversion.pixels
    config = dataclasses.replace(conversion.config, mean=pixels.mean, std=pixels.std)
    head, named_by = _head_of(checkpoint, conversion.labels or form, translation, options)
    left_out = {**conversion.unused, **left_out}
    if head is None:
        translation, left_out = _without_head(translation, left_out)
    model = CoVeR(config, (head,) if head else ()).eval()
    _check_complete(conversion, translation, model)
    rows = _load(model, translation, conversion)
    rows += [row(None, (name,), UNUSED, checkpoint.tensors[name], why) for name, why in left_out.items()]
    settings = ", ".join(f"{name} {value}" for name, value in config.summary().items())
    report = {
        "format": form.title,
        "network": f"{config.family}, {settings}, {config.frames} x {config.size} px",
        "model": dataclasses.asdict(config),
        "pixels": dataclasses.asdict(pixels),
        "head": _head_facts(head, named_by),
        "notes": [*_file_notes(checkpoint), *conversion.notes],
        "counts": counts(rows),
        "tensors": rows,
        "metadata": _metadata(
            checkpoint,
            form,
            model,
            named_by,
            pixels.origin,
            _checked_sampling(options.sampling or conversion.sampling),
            conversion.views,
        ),
    }
    return model, report


def _check_complete(conversion: Conversion, translation: Translation, model: CoVeR) -> None:
    """Raises `UserError` if a tensor of the network is missing, has another shape or no floats."""
    for name, value in model.state_dict().items():
        ours = _foreign_name(name)
        if ours in conversion.new:
            continue
        if ours not in translation.tensors:
            raise UserError(f"the tensor {conversion.wanted.get(ours, (ours,))[0]} is missing")
        _check_tensor(translation, ours, value)


def _load(model: CoVeR, translation: Translation, conversion: Conversion) -> list[dict[str, Any]]:
    """Load the tensors of a translation into the model; returns a row of the report for each of the model's."""
    state, rows = model.state_dict(), []
    for name in state:
        ours = _foreign_name(name)
        if ours in conversion.new:
            continue
        state[name] = translation.tensors[ours].float()
        if problem := not_finite(state[name]):
            raise UserError(f"{' + '.join(translation.sources[ours])} {problem}")
    model.load_state_dict(state)
    if model.backbone.temporal_parameters() & conversion.new.keys():
        model.backbone.reset_temporal("fresh")
    for name, value in model.state_dict().items():
        ours = _foreign_name(name)
        if ours in conversion.new:
            rows.append(row(name, (), NEW, value, conversion.new[ours]))
        else:
            change = conversion.changes.get(ours, "")
            rows.append(row(name, translation.sources[ours], RESIZED if change else LOADED, value, change))
    return rows


# --- the tensors of the checkpoint ------------------------------------------------------------------------------------


def _check_unused(checkpoint: ForeignCheckpoint, options: ImportOptions) -> None:
    """Raises `UserError` for a release of this package, and for an option `--unused` that names no tensor."""
    if {"format", "heads"} <= checkpoint.config.keys():
        raise UserError("is a release of this package already; give it to the other commands as it is")
    for beginning in options.unused:
        if not any(name.startswith(beginning) for name in checkpoint.tensors):
            raise UserError(f"--unused {beginning}: no tensor is called so")


def _chosen(checkpoint: ForeignCheckpoint, options: ImportOptions) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of the checkpoint without those that `--unused` leaves out, and these: name -> reason."""
    _check_unused(checkpoint, options)
    kind = checkpoint.config.get("model_type")
    if options.backbone == "timesformer" and kind in VIT_TYPES and kind not in MODEL_TYPES:
        raise UserError(f"--backbone timesformer: a {kind} has parts that a TimeSformer lacks; leave it out")
    if kind not in (None, *MODEL_TYPES, *VIT_TYPES):
        known = ", ".join(sorted({*MODEL_TYPES, *VIT_TYPES}))
        raise UserError(f"config.json: model_type {kind}: known are {known}")
    left_out = {name: "named with --unused" for name in checkpoint.tensors if name.startswith(options.unused)}
    return {name: value for name, value in checkpoint.tensors.items() if name not in left_out}, left_out


def _translated(checkpoint: ForeignCheckpoint, state: Mapping[str, Tensor]) -> tuple[ForeignFormat, Translation]:
    """The format of a TimeSformer or an image ViT, and its tensors under our names."""
    if problem := other_function(state):
        raise UserError(problem)
    form = recognise(state, checkpoint.wrapping == "model_state")
    if form.title.startswith("transformers") and checkpoint.config.get("model_type") is None:
        raise UserError(f"{form.title} by its tensors, without config.json; give the folder with both")
    translation = translate(form, state)
    if translation.strangers:
        more = f" (and {len(translation.strangers) - 1} more)" if translation.strangers[1:] else ""
        unexpected = f'unexpected tensor {translation.strangers[0]}{more}: no part of the format "{form.title}"'
        used = [name for names in translation.sources.values() for name in names]
        options_ = " ".join(f"--unused {name}" for name in beginnings(translation.strangers, used))
        raise UserError(f"{unexpected}; to leave {'them' if more else 'it'} out: {options_}")
    for ours in SHOWING_SIZES:
        if ours not in translation.tensors:
            raise UserError(f"the tensor {form.names(1)[ours][0]} is missing")
    return form, translation


def _head_of(
    checkpoint: ForeignCheckpoint, form: ForeignFormat, translation: Translation, options: ImportOptions
) -> tuple[Head | None, str]:
    """The head of the checkpoint's classifier, and where its class names come from; None without a classifier."""
    if options.head == NO_HEAD or f"{HEAD}.weight" not in translation.tensors:
        return None, ""
    name = _head_name(options.head or "", checkpoint)
    classes, origin = classes_of(checkpoint, form, translation, options)
    return Head(name, classes), origin


def _head_name(wanted: str, checkpoint: ForeignCheckpoint) -> str:
    """The name that is wanted, or else one made from the name of the checkpoint. Raises `UserError`."""
    name = wanted or _valid_name(checkpoint.name.rsplit("/", 1)[-1])
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII) or hasattr(nn.ModuleDict, name):
        raise UserError(f'--head: "{name}" cannot name a head: use letters, digits, _ and -')
    return name


def _valid_name(text: str) -> str:
    """A valid name for a head, from the name of the checkpoint."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_-") or "imported"
    return f"{name}_head" if hasattr(nn.ModuleDict, name) or name == NO_HEAD else name


def _without_head(translation: Translation, left_out: dict[str, str]) -> tuple[Translation, dict[str, str]]:
    """Move the tensors of the classifier to the tensors that are left out."""
    heads = [name for name in translation.tensors if name.startswith(f"{HEAD}.")]
    why = {source: "--head none" for name in heads for source in translation.sources[name]}
    retained = {name: value for name, value in translation.tensors.items() if name not in heads}
    return dataclasses.replace(translation, tensors=retained), {**left_out, **why}


def _check_whole(form: ForeignFormat, translation: Translation, origin: TimeSformerConfig, head: Head | None) -> None:
    """Raises `UserError` if a tensor of the network is missing, has another shape or no floats, or is unexpected."""
    with torch.device("meta"):
        model = CoVeR(origin, (head,) if head else ())
    wanted, temporal = model.state_dict(), model.temporal_parameters()
    names = form.names(translation.depth)
    for name, value in wanted.items():
        ours = _foreign_name(name)
        if ours in translation.tensors:
            _check_tensor(translation, ours, value)
        elif form.video or name not in temporal:  # an image model has no temporal branch
            raise UserError(f"the tensor {names[ours][0] if ours in names else ours} is missing")
    for ours in translation.tensors.keys() - {_foreign_name(name) for name in wanted}:
        raise UserError(
            f"unexpected tensor {translation.source(ours)}: no part of a network of {origin.attention} attention"
        )


def _check_tensor(translation: Translation, ours: str, wanted: Tensor) -> None:
    """Raises `UserError` if a tensor has another shape than `wanted`, or no floats."""
    tensor = translation.tensors[ours]
    if tensor.shape != wanted.shape:
        sources = " + ".join(translation.sources[ours])
        raise UserError(f"{sources} is {tuple(tensor.shape)}, and should be {tuple(wanted.shape)}")
    if tensor.dtype not in FLOATS:
        raise UserError(f"{translation.source(ours)} {wrong_dtype(tensor)}")


def _foreign_name(name: str) -> str:
    """The name of a parameter of the model in a `Translation`: the backbone has no prefix, the only head no name."""
    if name.startswith(BACKBONE):
        return name.removeprefix(BACKBONE)
    return f"{HEAD}.{name.rpartition('.')[2]}"


# --- the new model ----------------------------------------------------------------------------------------------------


def _wanted(origin: TimeSformerConfig, options: ImportOptions) -> TimeSformerConfig:
    """The configuration at the size and length of the options."""
    size = options.size or origin.size
    if size % origin.patch:
        raise UserError(f"--size {size} is not a multiple of the patch, {origin.patch} px")
    return dataclasses.replace(origin, size=size, frames=options.frames or origin.frames)


def _fill(
    translation: Translation, origin: TimeSformerConfig, config: TimeSformerConfig, head: Head | None
) -> tuple[CoVeR, list[dict[str, Any]]]:
    """The model with the weights of the checkpoint, and a row of the report for each of its tensors."""
    model = CoVeR(config, (head,) if head else ()).eval()
    state, rows = model.state_dict(), []
    for name in state:
        ours = _foreign_name(name)
        if ours not in translation.tensors:
            continue
        value = translation.tensors[ours].float()
        if problem := not_finite(value):
            raise UserError(f"{' + '.join(translation.sources[ours])} {problem}")
        fitted = _fitted(ours, value, config)
        change = ""
        if fitted is not value:
            change = f"from {tuple(value.shape)}, {'nearest' if ours == 'time_embed' else config.resize}"
        state[name] = fitted
        rows.append(row(name, translation.sources[ours], RESIZED if change else LOADED, fitted, change))
    model.load_state_dict(state)
    return model, rows + _initialise_rest(model, {each["tensor"] for each in rows})


def _fitted(name: str, value: Tensor, config: TimeSformerConfig) -> Tensor:
    """An embedding, resized for `config`; any other tensor unchanged."""
    if name == "pos_embed":
        side = config.size // config.patch
        return resized_positions(value, (side, side), config.resize)
    return resized_time(value, config.frames) if name == "time_embed" else value


@torch.no_grad()
def _initialise_rest(model: CoVeR, loaded: set[str]) -> list[dict[str, Any]]:
    """Initialise the temporal branch of an image ViT from its spatial weights; returns a row for each tensor."""
    missing = [name for name in model.state_dict() if name not in loaded]
    if not missing:
        return []
    model.backbone.reset_temporal("fresh")
    parameters = dict(model.named_parameters())
    rows = []
    for name in missing:
        origin = name.replace("temporal_norm", "norm1").replace("temporal_attn", "attn")
        origin = origin.replace("temporal_scale", "scale1")
        if origin == name or "temporal_fc" in name:
            rows.append(row(name, (), NEW, parameters[name], "zero: the model begins as its image ViT"))
            continue
        changed = not torch.equal(parameters[name], parameters[origin])
        why = f"of {origin}" + (", set to the differences between the frames before and after" if changed else "")
        rows.append(row(name, (), COPIED, parameters[name], why))
    return rows


# --- the report -------------------------------------------------------------------------------------------------------


def _head_facts(head: Head | None, named_by: str) -> dict[str, Any] | None:
    return {"name": head.name, "classes": len(head.classes), "named_by": named_by} if head else None


def _file_notes(checkpoint: ForeignCheckpoint) -> list[str]:
    """What the report says about the tensors of a file: which of several sets they are, and their dtypes."""
    notes = []
    if checkpoint.wrapping:
        average = any(key in AVERAGES for key in checkpoint.wrapping.split("."))
        notes.append(f"weights under {checkpoint.wrapping}{', an average over training' if average else ''}")
    if checkpoint.others:
        others = ", ".join(checkpoint.others)
        notes[-1] += f"; not those under {others} (--key {checkpoint.others[0]} takes them)"
    if licence := licence_of(checkpoint.name):
        notes.append(f"licence of the weights: {licence}")
    return [*notes, *dtype_notes([value for value in checkpoint.tensors.values() if value.is_floating_point()])]


def _notes(checkpoint: ForeignCheckpoint, form: ForeignFormat, config: TimeSformerConfig) -> list[str]:
    notes = _file_notes(checkpoint)
    if form is TRANSFORMERS_TIMESFORMER and config.attention == "space":
        notes.append(
            "space attention: transformers gives logits for each frame; here the features of the frames are averaged "
            "(released code)"
        )
    return notes


def _sampling(
    checkpoint: ForeignCheckpoint, form: ForeignFormat, origin: TimeSformerConfig, model: CoVeR, options: ImportOptions
) -> str:
    """The clip sampling of the head of a TimeSformer or an image ViT, as text."""
    if options.sampling:
        return _checked_sampling(options.sampling)
    if not form.video:  # an image head was trained without clips, and segments cover a video of any length
        return "segments"
    return f"dense@{seconds_between_frames(checkpoint, origin.frames, model.config.frames):.4g}"


def _checked_sampling(text: str) -> str:
    """The text in its usual form. Raises `UserError` if it is no clip sampling."""
    from cover.media.sampling import Sampling

    return str(Sampling.parse(text))


def _metadata(
    checkpoint: ForeignCheckpoint,
    form: ForeignFormat,
    model: CoVeR,
    classes_source: str,
    pixels: str,
    sampling: str,
    views: str,
) -> dict[str, Any]:
    """The metadata of the release: frames of a clip, and for each head its media, clip sampling and views."""
    from cover import __version__
    from cover.datasets.manifest import class_digest

    media = "video" if form.video else "image"
    views_of_set = {"media": media, "sampling": sampling, "views": views, "classes_source": classes_source}
    sets = {head.name: {**views_of_set, "class_digest": class_digest(head.classes)} for head in model.head_list}
    origins = {"weights": checkpoint.name, "format": form.title, "pixels": pixels}
    if licence := licence_of(checkpoint.name):
        origins["licence"] = licence
    return {"cover": __version__, "step": 0, "frames": model.config.frames, "datasets": sets, "imported": origins}


def print_report(report: dict[str, Any]) -> None:
    """Print the report: the counts of tensors as a table on stdout, the rest on stderr."""
    from cover.console import print_table, say

    pixels, head = report["pixels"], report["head"]
    say(f"{report['format']}: {report['network']}")
    say(f"pixels: mean {_brief(pixels['mean'])}, std {_brief(pixels['std'])} ({pixels['origin']})")
    say(f'head "{head["name"]}": {head["classes"]} classes ({head["named_by"]})' if head else "no head")
    for note in report["notes"]:
        say(note)
    for fate in (RESIZED, NEW, UNUSED):
        for why, names in _by_reason(report["tensors"], fate).items():
            say(f"{fate}: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {why}")
    rows = [(fate, count["tensors"], f"{count['numbers']:,}") for fate, count in report["counts"].items()]
    print_table(("outcome", "tensors", "numbers"), rows)


def _brief(values: Sequence[float]) -> str:
    """The numbers as text; a single number if all are equal."""
    return f"{values[0]:.4g}" if len(set(values)) == 1 else ", ".join(f"{value:.4g}" for value in values)


def _by_reason(rows: Sequence[dict[str, Any]], fate: str) -> dict[str, list[str]]:
    """Reason -> the names of the tensors with this fate and reason."""
    reasons: dict[str, list[str]] = {}
    for each in rows:
        if each["fate"] == fate:
            reasons.setdefault(each["why"], []).append(each["tensor"] or each["source"][0])
    return reasons
