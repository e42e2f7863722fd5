"""One data set of a mixture, the heads that it trains, and how its labels become their targets."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, chain
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from cover.datasets.catalog import DatasetSpec
from cover.datasets.manifest import ClassList, Manifest
from cover.errors import UserError
from cover.media.source import Media
from cover.model.heads import Head
from cover.transforms.crop import mirror_pairs

NO_CLASSES = ClassList.of((), "not known")


@dataclass(frozen=True)
class MixtureDataset:
    """One data set of a mixture: what is drawn from it, how often, and how it is read.

    `rows`: int64, the manifest rows that may be drawn. `frames`: of a sample; 1 for an image. `rate`: its sampling
    rate, relative to the other data sets. `crops`: how many are taken of every clip, one right after the other.
    `loss_weight`: factor on its loss. `source`: its entry in the catalog and its manifest, None where its size alone is
    known; `format` is that of the catalog. `origin`: where `rows` and `classes` come from. `file_bytes`: of a file on
    average, where a plan has asked for it.

    `Mixture` sets `frames`, `rate`, `crops` and `loss_weight` from its settings.
    """

    name: str
    rows: npt.NDArray[np.int64]
    frames: int = 1
    rate: Fraction = Fraction(1)
    crops: int = 1
    loss_weight: float = 1.0
    media: Media = "video"
    classes: ClassList = NO_CLASSES
    source: tuple[DatasetSpec, Manifest] | None = None
    format: str | None = None
    origin: Literal["manifest", "given", "published"] = "manifest"
    file_bytes: float | None = None

    @classmethod
    def of(cls, spec: DatasetSpec, manifest: Manifest) -> MixtureDataset:
        """The rows of a manifest that may be drawn."""
        classes, source = manifest.classes, (spec, manifest)
        return cls(spec.name, manifest.usable, media=manifest.media, classes=classes, source=source, format=spec.format)

    @classmethod
    def of_size(cls, name: str, media: Media, count: float, classes: ClassList = NO_CLASSES) -> MixtureDataset:
        """A data set of which only the number of its rows is known."""
        return cls(name, rows_of_size(count), media=media, classes=classes)

    @property
    def spec(self) -> DatasetSpec:
        """Its entry in the catalog."""
        assert self.source, f"{self.name} is not on this machine"
        return self.source[0]

    @property
    def manifest(self) -> Manifest:
        """The manifest of its training split."""
        assert self.source, f"{self.name} is not on this machine"
        return self.source[1]


def rows_of_size(count: float) -> npt.NDArray[np.int64]:
    """`count` rows in the memory of one."""
    return np.broadcast_to(np.int64(0), int(count))


# --- heads ------------------------------------------------------------------------------------------------------------


def make_heads(classes: Mapping[str, ClassList], shared: Mapping[str, Sequence[str]]) -> tuple[Head, ...]:
    """The heads of the data sets of `classes`, in the order in which these first need them.

    A data set has a head of its own name, unless it is in the list of a head in `shared`. The classes of a shared head
    are the union of its data sets' classes by name, in order of first appearance. Raises `UserError` where single-label
    and multi-label sets share a head.
    """
    head_of = {name: head for head, names in shared.items() for name in names}
    wanted = dict.fromkeys(head_of.get(name, name) for name in classes)
    return tuple(_make_head(head, {name: classes[name] for name in shared.get(head, (head,))}) for head in wanted)


def _make_head(name: str, served: Mapping[str, ClassList]) -> Head:
    kinds = {each.many: dataset for dataset, each in served.items()}
    if len(kinds) > 1:
        raise UserError(
            f"data.heads.{name}: a sample of {kinds[False]} has one class, one of {kinds[True]} any number;"
            " give each a head of its own"
        )
    union = dict.fromkeys(chain.from_iterable(each.names for each in served.values()))
    return Head(
        name, tuple(union), "sigmoid" if True in kinds else "softmax", () if list(served) == [name] else tuple(served)
    )


def with_retained(heads: Sequence[Head], theirs: Sequence[Head]) -> tuple[Head, ...]:
    """The heads that a mixture trains, then the other heads of `theirs`, a checkpoint's: `start.heads: keep`.

    The trained heads come first, because they are the columns of `Pack.targets`. Raises `UserError` where a data set
    would have two heads.
    """
    owner = {name: head.name for head in heads for name in head.datasets}
    retained = [head for head in theirs if head.name not in {ours.name for ours in heads}]
    for head in retained:
        for name in owner.keys() & set(head.datasets):
            raise UserError(
                f'start.heads: {name} is trained under the head "{owner[name]}", and the checkpoint has "{head.name}"'
                " for it; share that one as the checkpoint does"
                f" (data.heads.{head.name}: [{', '.join(head.datasets)}]),"
                " or set start.heads to drop"
            )
    return (*heads, *retained)


def retained_heads(heads: Sequence[Head], trained: Container[str]) -> list[Head]:
    """The heads of a network that a run does not change: none of their data sets is `trained`."""
    return [head for head in heads if not any(name in trained for name in head.datasets)]


def retained_metadata(heads: Sequence[Head], trained: Container[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata of a checkpoint says of the data sets of the retained heads, where it says something."""
    names = [name for head in retained_heads(heads, trained) for name in head.datasets]
    return {name: {**metadata[name], "kept": True} for name in names if name in metadata}


# --- targets ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelMap:
    """How the labels of one data set become targets of the heads of a mixture.

    `targets`: int64 `(classes, heads)`, the class in each head, -1 in heads that the data set does not train. In the
    heads of a multi-label set it is 0, and `multi_hot`, int64 `(classes,)`, has the column of `Pack.multi_hot` of each
    label; None for other sets. `width`: the columns of `Pack.multi_hot`, the classes of all sigmoid heads together.
    `mirror`: int32 `(classes,)`, the label after a horizontal flip, -1 where a sample must not be flipped; None where
    flips change no label.
    """

    targets: npt.NDArray[np.int64]
    multi_hot: npt.NDArray[np.int64] | None
    width: int
    mirror: npt.NDArray[np.int32] | None = None

    @classmethod
    def of(cls, dataset: str, classes: ClassList, heads: Sequence[Head], swap: bool = False) -> LabelMap:
        """The map of a data set. `swap`: a flip exchanges left and right in its class names."""
        targets = np.full((len(classes.names), len(heads)), -1)
        for column, head in enumerate(heads):
            if dataset in head.datasets:
                targets[:, column] = 0 if classes.many else head.places(classes.names)
        widths = [len(head.classes) if head.loss == "sigmoid" else 0 for head in heads]
        mirror = mirror_pairs(classes.names) if swap else None
        return cls(targets, _multi_hot_columns(dataset, classes, heads, widths), sum(widths), mirror)

    def rows_of(self, labels: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The rows of `Pack.targets` and `Pack.multi_hot` of a sample with these labels."""
        targets = torch.from_numpy(self.targets[labels[0] if self.multi_hot is None else 0])
        if not self.width:
            return targets, None
        row = torch.zeros(self.width, dtype=torch.uint8)
        if self.multi_hot is not None:
            row[self.multi_hot[list(labels)]] = 1
        return targets, row


def _multi_hot_columns(
    dataset: str, classes: ClassList, heads: Sequence[Head], widths: Sequence[int]
) -> npt.NDArray[np.int64] | None:
    if not classes.many:
        return None
    firsts = accumulate(widths, initial=0)
    first, head = next((first, head) for first, head in zip(firsts, heads) if dataset in head.datasets)
    return first + np.array(head.places(classes.names))
