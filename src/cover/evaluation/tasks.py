"""What is to be measured? A split of a data set, how it is looked at, and the head that scores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cover.datasets.catalog import Catalog, DatasetSpec
from cover.datasets.manifest import ClassList, Manifest, open_manifest
from cover.errors import UserError, nearest
from cover.media.clips import Views
from cover.media.decode import Decoder
from cover.model.cover import CoVeR
from cover.model.heads import Head


@dataclass(frozen=True)
class Task:
    """One data set to be evaluated: its manifest, how it is looked at, and its head.

    `classes`: those that are told apart, in the data set's order: all of them, but where the head is another data set's and lacks some.
    `columns`: int64 `(classes,)`, the place of each in the head: of a head that several sets share, a set uses its own classes alone, so
    that its number is comparable with that of a head of its own. `relabel`: int64, for each class of the manifest its place in `classes`,
    -1 where it is not there: such samples are not evaluated.
    """

    spec: DatasetSpec
    manifest: Manifest
    views: Views
    frames: int
    head: Head
    classes: tuple[str, ...]
    columns: Tensor
    relabel: np.ndarray
    decoder: Decoder = "pyav"

    @property
    def mapped(self) -> bool:
        """Whether the head is of another class list, used by the names that both have."""
        return len(self.classes) < len(self.manifest.classes.names) or self.spec.name not in self.head.datasets

    def those(self, rows: np.ndarray) -> np.ndarray:
        """Of manifest rows, those whose class is told apart."""
        return rows if self.manifest.classes.many else rows[self.relabel[self.manifest.labels[rows]] >= 0]


def find_tasks(
    catalog: Catalog,
    model: CoVeR,
    frames: int,
    split: str,
    names: Sequence[str] = (),
    views: Views | None = None,
    decoder: Decoder = "pyav",
    other_heads: Mapping[str, str] | None = None,
) -> list[Task]:
    """The data sets that `model` has a head for, or those of `names`.

    `other_heads`: data set -> the head that is to score it, by the class names that both have. Raises `UserError` where heads and
    classes do not match.
    """
    other_heads = other_heads or {}
    heads = {name: head for head in model.head_list for name in head.datasets}
    by_name = {head.name: head for head in model.head_list}
    tasks = []
    for name in [*(names or [name for name in heads if name in catalog.specs]), *(name for name in other_heads if name not in names)]:
        spec, wanted = catalog.spec(name), other_heads.get(name)
        if wanted is not None and wanted not in by_name:
            raise UserError(f'the checkpoint has no head "{wanted}"{nearest(wanted, by_name)}')
        if wanted is None and name not in heads:
            raise UserError(f'the checkpoint has no head "{name}"; its heads: {", ".join(heads)}')
        manifest = open_manifest(catalog.manifest_path(name, split))
        head = by_name[wanted] if wanted else heads[name]
        classes, columns, relabel = _by_names(head, manifest) if wanted else _own(head, manifest)
        tasks.append(Task(spec, manifest, views or spec.views, frames, head, classes, columns, relabel, decoder))
    if not tasks:
        raise UserError(f"{catalog.path.name} has none of the checkpoint's heads: {', '.join(heads)}")
    return tasks


def _own(head: Head, manifest: Manifest) -> tuple[tuple[str, ...], Tensor, np.ndarray]:
    """Classes, columns and relabelling of a set that the head was trained on. Raises `UserError` where they do not match."""
    ours, file = manifest.classes, manifest.path.name
    _check_kind(head, manifest)
    if len(head.datasets) == 1 and ours.names != head.classes:
        digest = ClassList.of(head.classes, "checkpoint").digest
        raise UserError(f'head "{head.name}" was trained on class list {digest}, but {file} has {ours.digest}')
    unknown = [name for name in ours.names if name not in set(head.classes)]
    if unknown:
        raise UserError(f'head "{head.name}" lacks {len(unknown)} classes of {file}, the first: "{unknown[0]}"')
    return ours.names, torch.tensor(head.places(ours.names)), np.arange(len(ours.names))


def _by_names(head: Head, manifest: Manifest) -> tuple[tuple[str, ...], Tensor, np.ndarray]:
    """The same of a set that it was not trained on: the classes whose names both have, but for case and underscores."""
    ours, file = manifest.classes, manifest.path.name
    _check_kind(head, manifest)
    if ours.many:
        raise UserError(f"{file}: a class map by name is for sets of one class a sample")
    places = {_plain(name): place for place, name in enumerate(head.classes)}
    shared = [name for name in ours.names if _plain(name) in places]
    if len(shared) < 2:
        raise UserError(f'head "{head.name}" has {len(shared)} of the {len(ours.names)} class names of {file}; two or more are needed')
    relabel = np.full(len(ours.names), -1)
    relabel[[ours.names.index(name) for name in shared]] = np.arange(len(shared))
    return tuple(shared), torch.tensor([places[_plain(name)] for name in shared]), relabel


def _check_kind(head: Head, manifest: Manifest) -> None:
    if manifest.classes.many != (head.loss == "sigmoid"):
        theirs, there = ("any number of classes", "one") if head.loss == "sigmoid" else ("one class", "any number")
        raise UserError(f'head "{head.name}" was trained on samples of {theirs}, but {manifest.path.name} has {there} for each')


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()
