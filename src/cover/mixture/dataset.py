"""The data sets of a mixture, the heads that they train, and the map from their labels to targets."""

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
from cover.mixture.balance import ClassBalance
from cover.model.heads import Head
from cover.transforms.crop import mirror_pairs

NO_CLASSES = ClassList.of((), "not known")


@dataclass(frozen=True)
class MixtureDataset:
    """One data set of a mixture, with its training rows, its sampling rate and its classes.

    `rows`: int64 `(N,)`, the manifest rows that may be drawn.
    `frames`: frames of one sample, 1 for an image.
    `rate`: sampling rate. Only the ratio to the rates of the other data sets counts.
    `crops`: random crops of every decoded clip. They are drawn one right after the other.
    `loss_weight`: factor on the loss of its samples.
    `balance`: the order in which its classes are drawn. None: each epoch is a random order of all rows.
    `class_weights`: float32 `(classes,)`, the factor of each class on the loss of its samples. None for 1.
    `source`: its catalog entry and its training manifest. None if only the size of the data set is known.
    `format`: the format in the catalog.
    `origin`: where `rows` and `classes` come from.
    `file_bytes`: mean size of a file in bytes. Only a plan sets it.

    `Mixture` sets `frames`, `rate`, `crops`, `loss_weight`, `balance` and `class_weights` from its settings.
    """

    name: str
    rows: npt.NDArray[np.int64]
    frames: int = 1
    rate: Fraction = Fraction(1)
    crops: int = 1
    loss_weight: float = 1.0
    balance: ClassBalance | None = None
    class_weights: npt.NDArray[np.float32] | None = None
    media: Media = "video"
    classes: ClassList = NO_CLASSES
    source: tuple[DatasetSpec, Manifest] | None = None
    format: str | None = None
    origin: Literal["manifest", "given", "published"] = "manifest"
    file_bytes: float | None = None

    @classmethod
    def of(cls, spec: DatasetSpec, manifest: Manifest) -> MixtureDataset:
        """A data set from its catalog entry and its training manifest. It has the usable rows of the manifest."""
        classes, source = manifest.classes, (spec, manifest)
        return cls(spec.name, manifest.usable, media=manifest.media, classes=classes, source=source, format=spec.format)

    @classmethod
    def of_size(cls, name: str, media: Media, count: float, classes: ClassList = NO_CLASSES) -> MixtureDataset:
        """A data set of `count` rows that is not on this machine. Its samples cannot be read."""
        return cls(name, rows_of_size(count), media=media, classes=classes)

    @property
    def spec(self) -> DatasetSpec:
        """The entry in the catalog."""
        assert self.source, f"{self.name} is not on this machine"
        return self.source[0]

    @property
    def manifest(self) -> Manifest:
        """The manifest of the training split."""
        assert self.source, f"{self.name} is not on this machine"
        return self.source[1]

    @property
    def labels(self) -> npt.NDArray[np.int32] | None:
        """int32 `(N,)`, the class of each row. None if only the size of the data set is known, or if it is multi-label.

        A horizontal flip that exchanges left and right (`flip: swap`) is not considered.
        """
        if self.source is None or self.origin != "manifest" or self.classes.many:
            return None
        return self.manifest.labels[self.rows]


def rows_of_size(count: float) -> npt.NDArray[np.int64]:
    """int64 `(count,)`, all 0, in the memory of one number."""
    # 14 million real row numbers would take 114 MB, and a plan uses only their count.
    return np.broadcast_to(np.int64(0), int(count))


# --- heads ---


def make_heads(classes: Mapping[str, ClassList], shared: Mapping[str, Sequence[str]]) -> tuple[Head, ...]:
    """The heads for the data sets in `classes`, in the order of the data sets.

    `classes`: data set -> its class list. `shared`: head -> the data sets that share it. Every other data set has a
    head of its own name. A shared head has the union of its data sets' class names, in order of first appearance.
    Raises `UserError` if single-label and multi-label data sets share a head.
    """
    head_of = {name: head for head, names in shared.items() for name in names}
    head_names = dict.fromkeys(head_of.get(name, name) for name in classes)
    return tuple(_make_head(head, {name: classes[name] for name in shared.get(head, (head,))}) for head in head_names)


def _make_head(name: str, class_lists: Mapping[str, ClassList]) -> Head:
    example_of = {classes.many: dataset for dataset, classes in class_lists.items()}  # multi-label or not -> a data set
    if len(example_of) > 1:
        raise UserError(
            f"data.heads.{name}: a sample of {example_of[False]} has one class, one of {example_of[True]} any number;"
            " give each a head of its own"
        )
    union = dict.fromkeys(chain.from_iterable(classes.names for classes in class_lists.values()))
    loss: Literal["softmax", "sigmoid"] = "sigmoid" if True in example_of else "softmax"
    return Head(name, tuple(union), loss, () if list(class_lists) == [name] else tuple(class_lists))


def with_retained(heads: Sequence[Head], theirs: Sequence[Head]) -> tuple[Head, ...]:
    """The heads that a mixture trains, then the other heads of a checkpoint, `theirs` (`start.heads: keep`).

    The trained heads come first because they are the columns of `Pack.targets`. Raises `UserError` if a data set would
    have two heads.
    """
    owner = {name: head.name for head in heads for name in head.datasets}
    retained = [head for head in theirs if head.name not in {ours.name for ours in heads}]
    for head in retained:
        for name in owner.keys() & set(head.datasets):
            raise UserError(
                f'start.heads: {name} is trained under the head "{owner[name]}", and the checkpoint has "{head.name}"'
                " for it; share that one as the checkpoint does"
                f" (data.heads.{head.name}: [{', '.join(head.datasets)}]), or set start.heads to drop"
            )
    return (*heads, *retained)


def retained_heads(heads: Sequence[Head], trained: Container[str]) -> list[Head]:
    """The heads of a network that a run does not change, because it trains none of their data sets."""
    return [head for head in heads if not any(name in trained for name in head.datasets)]


def retained_metadata(heads: Sequence[Head], trained: Container[str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's `metadata` of the data sets of its retained heads. Data sets without metadata are left out."""
    names = [name for head in retained_heads(heads, trained) for name in head.datasets]
    return {name: {**metadata[name], "kept": True} for name in names if name in metadata}


# --- targets ---


@dataclass(frozen=True)
class LabelMap:
    """The map from the labels of one data set to the targets of all heads of a mixture.

    `targets`: int64 `(classes, heads)`, the class index in each head. It is -1 in heads that the data set does not
    train, and 0 in the head of a multi-label data set.
    `multi_hot`: int64 `(classes,)`, the column of `Pack.multi_hot` for each label. None for a single-label data set.
    `width`: columns of `Pack.multi_hot`, which is the number of classes of all sigmoid heads together.
    `mirror`: int32 `(classes,)`, the label after a horizontal flip, -1 where a sample must not be flipped. None if
    flips change no label.
    """

    targets: npt.NDArray[np.int64]
    multi_hot: npt.NDArray[np.int64] | None
    width: int
    mirror: npt.NDArray[np.int32] | None = None

    @classmethod
    def of(cls, dataset: str, classes: ClassList, heads: Sequence[Head], swap: bool = False) -> LabelMap:
        """The map of one data set. `swap`: a horizontal flip exchanges left and right in the class names."""
        targets = np.full((len(classes.names), len(heads)), -1)
        for column, head in enumerate(heads):
            if dataset in head.datasets:
                targets[:, column] = 0 if classes.many else head.places(classes.names)
        widths = [len(head.classes) if head.loss == "sigmoid" else 0 for head in heads]
        mirror = mirror_pairs(classes.names) if swap else None
        return cls(targets, _multi_hot_columns(dataset, classes, heads, widths), sum(widths), mirror)

    def rows_of(self, labels: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The targets of a sample: its rows of `Pack.targets`, int64 `(heads,)`, and `Pack.multi_hot`, uint8 `(K,)`."""
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
    starts = accumulate(widths, initial=0)  # first column of each head
    start, head = next((start, head) for start, head in zip(starts, heads) if dataset in head.datasets)
    return start + np.array(head.places(classes.names))
