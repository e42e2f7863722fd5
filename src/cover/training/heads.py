"""Which heads does a mixture train, which does it keep as they are, and where in them is each class of its data sets?"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np

from cover.datasets.manifest import ClassList
from cover.errors import UserError
from cover.model.heads import Head


def make_heads(classes: Mapping[str, ClassList], shared: Mapping[str, Sequence[str]]) -> tuple[Head, ...]:
    """The heads of the data sets of `classes`, in the order in which these first need them.

    A data set has a head of its own name, unless it is in the list of a head in `shared`, whose classes are the union of its data
    sets' classes by name, in order of first appearance. Raises `UserError` where single-label and multi-label sets share one.
    """
    head_of = {name: head for head, names in shared.items() for name in names}
    wanted = dict.fromkeys(head_of.get(name, name) for name in classes)
    return tuple(_make_head(head, {name: classes[name] for name in shared.get(head, (head,))}) for head in wanted)


def _make_head(name: str, served: Mapping[str, ClassList]) -> Head:
    kinds = {each.many: dataset for dataset, each in served.items()}
    if len(kinds) > 1:
        raise UserError(
            f"data.heads.{name}: a sample of {kinds[False]} has one class, one of {kinds[True]} any number; give each a head of its own"
        )
    union = dict.fromkeys(chain.from_iterable(each.names for each in served.values()))
    return Head(name, tuple(union), "sigmoid" if True in kinds else "softmax", () if list(served) == [name] else tuple(served))


def with_kept(heads: Sequence[Head], theirs: Sequence[Head]) -> tuple[Head, ...]:
    """The heads that a mixture trains, then those of `theirs`, a checkpoint's, that it does not: `start.heads: keep`.

    Those that are trained come first, so that they are the columns of `Pack.targets`. Raises `UserError` where a data set would have two.
    """
    owner = {name: head.name for head in heads for name in head.datasets}
    kept = [head for head in theirs if head.name not in {ours.name for ours in heads}]
    for head in kept:
        for name in owner.keys() & set(head.datasets):
            raise UserError(
                f'start.heads: {name} is trained under the head "{owner[name]}", and the checkpoint has "{head.name}" for it;'
                f" share that one as the checkpoint does (data.heads.{head.name}: [{', '.join(head.datasets)}]), or set start.heads to drop"
            )
    return (*heads, *kept)


def kept_heads(heads: Sequence[Head], trained: Container[str]) -> list[Head]:
    """Of the heads of a network those that are kept as they are: none of their data sets is `trained`."""
    return [head for head in heads if not any(name in trained for name in head.datasets)]


def kept_facts(heads: Sequence[Head], trained: Container[str], told: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint has `told` of the data sets of the heads that are kept, where it has: it goes with them."""
    names = [name for head in kept_heads(heads, trained) for name in head.datasets]
    return {name: {**told[name], "kept": True} for name in names if name in told}


def targets_of(dataset: str, classes: ClassList, heads: Sequence[Head]) -> np.ndarray:
    """int64 `(classes, heads)` for `Member.targets`: the class in each head of every label of a data set, -1 in heads not its own.

    In the heads of a multi-label set it is 0, that they are trained: which classes a sample has is for `hot_places`.
    """
    targets = np.full((len(classes.names), len(heads)), -1)
    for column, head in enumerate(heads):
        if dataset in head.datasets:
            targets[:, column] = 0 if classes.many else head.places(classes.names)
    return targets


def hot_places(dataset: str, classes: ClassList, heads: Sequence[Head]) -> np.ndarray | None:
    """int64 `(classes,)` for `Member.hot`: the column of `Pack.hot` of every label of a multi-label set; None for other sets."""
    if not classes.many:
        return None
    firsts = accumulate((hot_width([head]) for head in heads), initial=0)
    first, head = next((first, head) for first, head in zip(firsts, heads) if dataset in head.datasets)
    return first + np.array(head.places(classes.names))


def hot_width(heads: Sequence[Head]) -> int:
    """The columns of `Pack.hot`: the classes of all sigmoid heads together."""
    return sum(len(head.classes) for head in heads if head.loss == "sigmoid")
