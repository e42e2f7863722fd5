"""Importing a published plain vision transformer (`cover.model.backbones.vit`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.backbones.vit import VitConfig
from cover.model.cover import BACKBONE, CoVeR
from cover.model.heads import Head
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import ImportOptions, PixelStatistics, pixels_of
from cover.model.starts.conversion import NO_HEAD, Conversion, named_format
from cover.model.starts.formats import TIMM, TRANSFORMERS_VIT, Translation
from cover.model.starts.vit_names import FUSED
from cover.model.starts.vit_published import (
    FAMILIES,
    HEAD,
    Published,
    config_of,
    is_published_vit,
    published,
    resized,
)


def convert(checkpoint: ForeignCheckpoint, state: Mapping[str, Tensor], options: ImportOptions) -> Conversion | None:
    """A plain vision transformer from a checkpoint; None if it is of another family.

    An image ViT that can become a TimeSformer is none unless the options say so. Raises `UserError` if it is no network
    of this package.
    """
    from cover.media.sampling import Sampling

    if not is_published_vit(checkpoint, options):
        return None
    found = published(checkpoint, options.unused)
    if options.head == NO_HEAD:  # before the configuration: some classifiers read features of their own
        _drop_head(found)
    origin, family = config_of(checkpoint, found, options), FAMILIES[found.family]
    new = _check_whole(found, origin)
    config = resized(origin, options)
    fitted, changes = _fitted(found, config)
    sampling = Sampling("segments")
    if family.interval:
        sampling = Sampling("dense", family.interval * origin.frames / config.frames)
    return Conversion(
        named_format(f"{family.title} ({found.naming.title})", family.video),
        Translation(fitted, found.sources, config.depth, ()),
        config,
        {},
        _pixels(checkpoint, found),
        str(sampling),
        "1x3" if family.video else "1x1",
        changes,
        found.unused,
        new=new,
        labels=TIMM if found.naming is FUSED else TRANSFORMERS_VIT,
    )


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


def _drop_head(found: Published) -> None:
    """Move the tensors of the classifier to the unused ones."""
    for name in [name for name in found.tensors if name.startswith(f"{HEAD}.")]:
        del found.tensors[name]
        found.unused.update(dict.fromkeys(found.sources.pop(name), "--head none"))


def _check_whole(found: Published, origin: VitConfig) -> dict[str, str]:
    """The tensors that the network has and the checkpoint need not have -> what becomes of them.

    Raises `UserError` if another tensor is missing, has another shape, or is unexpected.
    """
    classes = found.tensors.get(f"{HEAD}.weight", torch.empty(0)).shape[0]
    with torch.device("meta"):
        model = CoVeR(origin, (Head(HEAD, ("",) * classes),) if classes else ())
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
    return {name: why for name, why in new.items() if name not in found.tensors}


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


def _new(found: Published, config: VitConfig, model: CoVeR) -> dict[str, str]:
    """What the checkpoint may lack: what an image network gets for clips, and a norm for a new head."""
    temporal = frozenset[str]() if FAMILIES[found.family].video else model.backbone.temporal_parameters()
    new = dict.fromkeys(temporal, "adds nothing yet: the model begins as its image network")
    if config.pool == "mean_norm" and "norm.weight" not in found.sources:  # VideoMAE before its fine-tuning
        new |= {"norm.weight": "a new norm", "norm.bias": "a new norm"}
    return new


def _fitted(found: Published, config: VitConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors with tables of positions of the size of `config`, and how those were changed."""
    with torch.device("meta"):  # only its shapes are used
        network = config.build()
    fitted = dict(found.tensors)
    network.fit_embeddings(fitted)
    changes = {
        name: f"from {tuple(before.shape)}, bicubic in space and linear in time"
        for name, before in found.tensors.items()
        if fitted[name] is not before
    }
    return fitted, changes
