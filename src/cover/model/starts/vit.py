"""Importing a published plain vision transformer (`cover.model.backbones.vit`) as a model with a report."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbones.vit import Vit, VitConfig
from cover.model.cover import BACKBONE, CoVeR
from cover.model.heads import Head
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import ImportOptions, PixelStatistics, classes_of, pixels_of
from cover.model.starts.formats import TIMM, TRANSFORMERS_VIT, Translation
from cover.model.starts.report import LOADED, NEW, RESIZED, UNUSED, counts, dtype_notes, row
from cover.model.starts.vit_names import FUSED
from cover.model.starts.vit_published import FAMILIES, HEAD, Published, config_of, published, resized

NO_HEAD = "none"
NameHead = Callable[[str], str]


def convert_vit(
    checkpoint: ForeignCheckpoint, options: ImportOptions, name_head: NameHead
) -> tuple[CoVeR, dict[str, Any]]:
    """The model of a published plain vision transformer, and the report.

    `name_head`: makes a valid name for the head from the name of the checkpoint. Raises `UserError`.
    """
    found = published(checkpoint, options.unused)
    if options.head == NO_HEAD:  # before the configuration: some classifiers read features of their own
        _drop_head(found)
    origin = config_of(checkpoint, found, options)
    pixels = _pixels(checkpoint, found)
    origin = replace(origin, mean=pixels.mean, std=pixels.std)
    head, named_by = _head(checkpoint, found, options, name_head)
    _check_whole(found, origin, head)
    model, rows = _filled(found, resized(origin, options), head)
    rows += [row(None, (name,), UNUSED, checkpoint.tensors[name], why) for name, why in found.unused.items()]
    title = f"{FAMILIES[found.family].title} ({found.naming.title})"
    report = {
        "format": title,
        "model": dataclasses.asdict(model.config),
        "pixels": dataclasses.asdict(pixels),
        "head": {"name": head.name, "classes": len(head.classes), "named_by": named_by} if head else None,
        "notes": dtype_notes(list(checkpoint.tensors.values())),
        "counts": counts(rows),
        "tensors": rows,
        "metadata": _metadata(checkpoint, found, title, origin, model, named_by, options, pixels.origin),
    }
    return model, report


def _pixels(checkpoint: ForeignCheckpoint, found: Published) -> PixelStatistics:
    """Mean and standard deviation, from the files beside the weights or from the published settings."""
    if checkpoint.preprocessing:
        return pixels_of(checkpoint, TRANSFORMERS_VIT)
    timm = checkpoint.config.get("pretrained_cfg")
    if isinstance(timm, dict) and {"mean", "std"} <= timm.keys():
        return pixels_of(checkpoint, TIMM)
    family = FAMILIES[found.family]
    return PixelStatistics(
        family.settings["mean"], family.settings["std"], f"no file says it; {family.title}'s released settings"
    )


def _head(
    checkpoint: ForeignCheckpoint, found: Published, options: ImportOptions, name_head: NameHead
) -> tuple[Head | None, str]:
    """The head of the checkpoint's classifier, and where its class names come from; None without a classifier."""
    if f"{HEAD}.weight" not in found.tensors:
        return None, ""
    name = name_head(options.head or "")
    naming = TIMM if found.naming is FUSED else TRANSFORMERS_VIT
    classes, origin = classes_of(checkpoint, naming, Translation(found.tensors, found.sources, 0, ()), options)
    return Head(name, classes), origin


def _drop_head(found: Published) -> None:
    """Move the tensors of the classifier to the unused ones."""
    for name in [name for name in found.tensors if name.startswith(f"{HEAD}.")]:
        del found.tensors[name]
        found.unused.update(dict.fromkeys(found.sources.pop(name), "--head none"))


def _check_whole(found: Published, origin: VitConfig, head: Head | None) -> None:
    """Raises `UserError` if a tensor of the network is missing, has another shape, or is unexpected."""
    with torch.device("meta"):
        model = CoVeR(origin, (head,) if head else ())
    wanted, new = {_theirs(name): value for name, value in model.state_dict().items()}, _new(found, origin, model)
    for name, value in wanted.items():
        if name in found.tensors and found.tensors[name].shape != value.shape:
            sources = " + ".join(found.sources[name])
            raise UserError(f"{sources} makes {tuple(found.tensors[name].shape)}, and should make {tuple(value.shape)}")
        if name not in found.tensors and name not in new:
            raise UserError(f"the tensor {_published_name(name, found)} is missing")
    for name in found.tensors.keys() - wanted.keys():
        title = FAMILIES[found.family].title
        raise UserError(f"unexpected tensor {found.sources[name][0]}: no part of this network ({title})")


def _published_name(ours: str, found: Published) -> str:
    """The name in a published file of one of our tensors; our own if the table has none."""
    block = next((part for part in ours.split(".") if part.isdecimal()), "")
    in_file = [name for names in found.sources.values() for name in names]

    def has_sibling(name: str) -> bool:
        """Whether the file has the other tensor of the layer, or the same of the first block."""
        stem = name.rpartition(".")[0]
        siblings = f"{stem}.weight", f"{stem}.bias", re.sub(r"\d+", "0", name)
        return any(each.endswith(siblings) for each in in_file)

    names = [theirs[0].format(block) for row, theirs in found.naming.rows if row.format(block) == ours]
    return next((name for name in names if has_sibling(name)), (names or [ours])[0])


def _theirs(name: str) -> str:
    """The name of a parameter of the model in `Published`: the backbone has no prefix, the only head no name."""
    return name.removeprefix(BACKBONE) if name.startswith(BACKBONE) else f"{HEAD}.{name.rpartition('.')[2]}"


def _new(found: Published, config: VitConfig, model: CoVeR) -> set[str]:
    """The tensors that the checkpoint may lack: what an image network gets for clips, and a norm for a new head."""
    new = set() if FAMILIES[found.family].video else set(model.backbone.temporal_parameters())
    if config.pool == "mean_norm" and "norm.weight" not in found.sources:  # VideoMAE before its fine-tuning
        new |= {"norm.weight", "norm.bias"}
    return new


def _filled(found: Published, config: VitConfig, head: Head | None) -> tuple[CoVeR, list[dict[str, Any]]]:
    """The model with the weights of the checkpoint, and a row of the report for each of its tensors."""
    model = CoVeR(config, (head,) if head else ()).eval()
    backbone = model.backbone
    assert isinstance(backbone, Vit)
    fitted: dict[str, Tensor] = dict(found.tensors)
    backbone.fit_embeddings(fitted)
    state, rows, temporal = model.state_dict(), [], model.temporal_parameters()
    for name in state:
        ours = _theirs(name)
        if ours not in fitted:
            continue
        before, value = found.tensors[ours], fitted[ours]
        change = "" if value is before else f"from {tuple(before.shape)}, bicubic in space and linear in time"
        state[name] = value
        rows.append(row(name, found.sources[ours], RESIZED if change else LOADED, value, change))
    model.load_state_dict(state)
    loaded = {each["tensor"] for each in rows}
    if temporal and not temporal & loaded:
        backbone.reset_temporal("fresh")
    for name, value in model.state_dict().items():
        if name not in loaded:
            why = "adds nothing yet: the model begins as its image network" if name in temporal else "a new norm"
            rows.append(row(name, (), NEW, value, why))
    return model, rows


def _metadata(
    checkpoint: ForeignCheckpoint,
    found: Published,
    title: str,
    origin: VitConfig,
    model: CoVeR,
    classes_source: str,
    options: ImportOptions,
    pixels: str,
) -> dict[str, Any]:
    """The metadata of the release: frames of a clip, and for the head its media, clip sampling and views."""
    from cover import __version__
    from cover.datasets.manifest import class_digest
    from cover.media.sampling import Sampling

    family, segments = FAMILIES[found.family], Sampling("segments")
    sampling = segments
    if family.interval:
        sampling = Sampling("dense", family.interval * origin.frames / model.config.frames)
    if options.sampling:
        sampling = Sampling.parse(options.sampling)
    media, views = ("video", "1x3") if family.video else ("image", "1x1")
    views_of_set = {"media": media, "sampling": str(sampling), "views": views, "classes_source": classes_source}
    sets = {head.name: {**views_of_set, "class_digest": class_digest(head.classes)} for head in model.head_list}
    origins = {"weights": checkpoint.name, "format": title, "pixels": pixels}
    return {"cover": __version__, "step": 0, "frames": model.config.frames, "datasets": sets, "imported": origins}
