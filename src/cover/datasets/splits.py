"""Splits of a data set that keep groups together: a dev split carved out of train, and folds.

A group is what must stay on one side of a split, such as a person, a scene or a session (the catalog's key `group`). By
default it is the source of a sample. Both splits are pure functions of the rows, without regard to their order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, Protocol, TypeVar

import numpy as np

from cover.datasets.files import few
from cover.errors import UserError


class Grouped(Protocol):
    """What a split reads of a row; `ListedSample` and `manifest.Row` have it."""

    @property
    def source_id(self) -> str: ...
    @property
    def group_id(self) -> str: ...
    @property
    def group(self) -> str | None: ...
    @property
    def label(self) -> int | None: ...
    @property
    def labels(self) -> list[int] | None: ...


R = TypeVar("R", bound=Grouped)

_DEV_SALT = "cover dev split"  # a change would move rows between train and dev
_ENOUGH_FOR_DEV = 20  # rows from which on there is always a dev split
_ATTEMPTS = 20  # other orders of the groups that `folds` tries


@dataclass(frozen=True)
class CarvedDev(Generic[R]):
    """The rows of train and dev, in the order of the original rows, and lines about what was not possible."""

    train: list[R]
    dev: list[R]
    warnings: tuple[str, ...] = ()


# --- dev ---


def carve_by_hash(rows: Sequence[R], fraction: float) -> CarvedDev[R]:
    """Divide rows into train and dev by group, without regard to classes.

    The hash of a group decides, so new rows do not move other rows. With 20 rows or more, dev has at least one group.
    Train always has at least one.
    """
    place = {group: _place(group) for group in {row.group_id for row in rows}}
    chosen = {group for group in place if place[group] < fraction}
    if not chosen and len(place) > 1 and len(rows) >= _ENOUGH_FOR_DEV:
        chosen = {min(place, key=lambda group: place[group])}
    if len(chosen) == len(place):
        chosen.discard(max(place, key=lambda group: place[group]))
    return CarvedDev(
        [row for row in rows if row.group_id not in chosen], [row for row in rows if row.group_id in chosen]
    )


def carve_dev(rows: Sequence[R], fraction: float, classes: Sequence[str]) -> CarvedDev[R]:
    """Divide rows into train and dev by group, so that dev has about `fraction` of the samples of every class.

    `classes`: the class names, for the warnings. The groups are taken in the order of a hash of their names. A group
    goes to dev if this brings the classes of its samples nearer to their fraction. A class that has no sample in dev
    then gets the group that costs the others least. The last group of a class always stays in train. So a class of two
    groups or more is on both sides, unless groups of several classes forbid it. Rows that are added later move few
    others: only groups at the edge of the fraction change sides.

    Fewer than 20 rows have no dev split if `fraction` of them is less than one row.
    """
    if len(rows) < _ENOUGH_FOR_DEV and fraction * len(rows) < 1:
        warning = f"no dev split: {fraction:g} of {len(rows)} samples is less than one; raise dev, or use --folds"
        return CarvedDev(list(rows), [], (warning,))
    table = _GroupTable(rows, len(classes) + 1)
    chosen = _choose(table, fraction)
    names = {table.names[group] for group in chosen}
    dev = [row for row in rows if row.group_id in names]
    train = [row for row in rows if row.group_id not in names]
    return CarvedDev(train, dev, tuple(_dev_warnings(table, chosen, fraction, classes)))


def _place(group: str) -> float:
    """A pseudo-random number in [0, 1) from the name of a group alone."""
    return int.from_bytes(hashlib.sha256(f"{_DEV_SALT}\n{group}".encode()).digest()[:6]) / 2**48


def _strata(row: Grouped) -> Sequence[int]:
    """The classes of a row, none if they are not known. -1 stands for a multi-label row of no class."""
    if row.labels is not None:
        return row.labels or (-1,)
    return () if row.label is None else (row.label,)


class _GroupTable:
    """The number of samples of each stratum in each group. `names`: the groups in the order of their hashes.

    There may be millions of groups, so the numbers are in flat lists. A stratum is a class number plus 1, or 0 for no
    class. The entries `first[g]` to `first[g + 1]` of `stratum` and `count` are those of group g. `totals` and `groups`
    are the samples and the groups of each stratum.
    """

    def __init__(self, rows: Sequence[Grouped], strata: int) -> None:
        ids = [row.group_id for row in rows]
        names = sorted(set(ids))
        order = np.argsort(np.fromiter(map(_place, names), np.float64, len(names)), kind="stable").tolist()
        self.names = [names[place] for place in order]
        number = {name: place for place, name in enumerate(self.names)}
        pairs = (number[name] * strata + label + 1 for name, row in zip(ids, rows) for label in _strata(row))
        keys, counts = np.unique(np.fromiter(pairs, np.int64), return_counts=True)
        group, stratum = np.divmod(keys, strata)
        self.first: list[int] = np.searchsorted(group, np.arange(len(names) + 1)).tolist()
        self.stratum: list[int] = stratum.tolist()
        self.count: list[int] = counts.tolist()
        self.totals = np.bincount(stratum, counts, minlength=strata)
        self.groups = np.bincount(stratum, minlength=strata)
        self._by_stratum = group[np.argsort(stratum, kind="stable")]

    def entries(self, group: int) -> list[tuple[int, int]]:
        """`(stratum, samples)` pairs of a group."""
        own = slice(self.first[group], self.first[group + 1])
        return list(zip(self.stratum[own], self.count[own]))

    def groups_of(self, stratum: int) -> list[int]:
        """The groups of a stratum, ascending."""
        end = int(self.groups[: stratum + 1].sum())
        return self._by_stratum[end - int(self.groups[stratum]) : end].tolist()


def _choose(table: _GroupTable, fraction: float) -> list[int]:
    """The groups of the dev split."""
    wanted: list[float] = (fraction * table.totals).tolist()
    need, left = wanted.copy(), table.groups.tolist()
    chosen = []

    def gain(group: int) -> float:
        """How much nearer the strata come to their targets: the fall of the chi-squared distance."""
        return sum(count * (2 * need[stratum] - count) / wanted[stratum] for stratum, count in table.entries(group))

    def may_leave(group: int) -> bool:
        """Whether train keeps a group of every class."""
        return all(left[stratum] > 1 for stratum, _ in table.entries(group))

    def take(group: int) -> None:
        chosen.append(group)
        for stratum, count in table.entries(group):
            if need[stratum] > 0.5 >= need[stratum] - count:
                unfilled.discard(stratum)
            need[stratum] -= count
            left[stratum] -= 1

    # A group has at least one sample of a class, so it is a gain only where more than half a sample is needed.
    unfilled = {stratum for stratum, count in enumerate(need) if count > 0.5}
    for group in range(len(table.names)):
        if not unfilled:
            break
        if gain(group) > 0 and may_leave(group):
            take(group)
    for stratum in np.argsort(table.groups, kind="stable").tolist():
        if not table.groups[stratum] or need[stratum] < wanted[stratum]:  # no sample at all, or one in dev already
            continue
        if candidates := [group for group in table.groups_of(stratum) if may_leave(group)]:
            take(max(candidates, key=lambda group: (gain(group), -group)))
    return chosen


def _dev_warnings(table: _GroupTable, chosen: Sequence[int], fraction: float, classes: Sequence[str]) -> Iterator[str]:
    entries = [entry for group in chosen for entry in table.entries(group)]
    present, samples, total = {stratum for stratum, _ in entries}, sum(n for _, n in entries), int(table.totals.sum())
    absent = [stratum for stratum in np.flatnonzero(table.totals).tolist() if stratum not in present]
    names = few([_stratum_name(stratum, classes) for stratum in absent])
    if not chosen:
        yield f"no dev split: no class can be on both sides, for each is in one group, or has one sample: {names}"
    elif absent:
        yield f"dev has no sample of classes whose groups cannot be on both sides, which stay in train: {names}"
    if samples > max(2 * fraction * total, fraction * total + 1):
        yield (
            f"dev holds {samples} of {total} samples, more than the fraction {fraction:g}: groups are large,"
            " or classes have few samples"
        )


def _stratum_name(stratum: int, classes: Sequence[str]) -> str:
    return classes[stratum - 1] if stratum else "(no class)"


def group_warnings(splits: Mapping[str, Sequence[Grouped]]) -> Iterator[str]:
    """Warnings about groups that are in two of the given splits, and about sources that are in two groups."""
    groups = {split: {row.group for row in rows if row.group is not None} for split, rows in splits.items()}
    for one, other in combinations(splits, 2):
        if both := sorted(name for name in groups[one] & groups[other] if name is not None):
            yield f"groups in {one} and in {other}, so that figures on {other} flatter: {few(both)}"
    known: dict[str, str] = {}
    torn = {
        row.source_id
        for rows in splits.values()
        for row in rows
        if row.group is not None and known.setdefault(row.source_id, row.group) != row.group
    }
    if torn:
        yield f"sources that are in more than one group: {few(sorted(torn))}"


# --- folds ---


def folds(rows: Sequence[R], count: int, seed: int, classes: Sequence[str]) -> list[tuple[list[R], list[R]]]:
    """`(train rows, test rows)` of each of `count` folds. Every row is a test row of exactly one fold.

    `rows` have one class each. `classes`: the class names, for messages. The rows of a group are in the same fold, and
    each fold has about the same number of samples of every class. Every class of a fold's test rows is among its train
    rows. Raises UserError if the rows do not allow this.
    """
    check_folds(rows, count, classes)
    for attempt in range(_ATTEMPTS):
        place = deal(rows, count, seed if attempt == 0 else (seed, attempt))
        parts = [[row for row in rows if place[row.group_id] == fold] for fold in range(count)]
        apart = _classes_in_one_part(parts)
        if all(parts) and not apart:
            return [([row for row in rows if place[row.group_id] != fold], parts[fold]) for fold in range(count)]
    names = few([classes[label] for label in sorted(apart)])
    raise UserError(
        f"groups put classes into one fold alone in {_ATTEMPTS} divisions into {count} folds ({names});"
        " other folds, smaller groups or more samples are needed"
    )


def check_folds(rows: Sequence[Grouped], count: int, classes: Sequence[str]) -> None:
    """Raises UserError if rows cannot make `count` folds in which every tested class is trained on."""
    groups_of: dict[int, set[str]] = {}
    samples = Counter[int]()
    for row in rows:
        if row.label is not None:
            groups_of.setdefault(row.label, set()).add(row.group_id)
            samples[row.label] += 1
    if not groups_of:
        raise UserError("no sample is readable and labelled; folds need samples of two classes or more")
    if len(groups_of) == 1:
        (label,) = groups_of
        raise UserError(f'all {samples[label]} samples are of the class "{classes[label]}"; folds need two classes')
    for label in sorted(groups_of):
        if samples[label] == 1:
            raise UserError(
                f'the class "{classes[label]}" has one sample; a fold that measures it could not train on it:'
                " add samples, or leave the class out"
            )
        if len(groups_of[label]) == 1:
            (group,) = groups_of[label]
            raise UserError(
                f'groups put the class "{classes[label]}" into one split alone: all its {samples[label]} samples are'
                f' in the group "{group}"; add samples of another group, or leave the class out'
            )
    groups = len(set().union(*groups_of.values()))
    if groups < count:
        raise UserError(f"{groups} groups cannot make {count} folds; ask for {groups} or fewer")


def _classes_in_one_part(parts: Sequence[Sequence[Grouped]]) -> set[int]:
    """The classes that only one part has."""
    present = Counter(label for part in parts for label in {row.label for row in part} if label is not None)
    return {label for label, count in present.items() if count == 1}


def deal(rows: Sequence[Grouped], count: int, seed: int | tuple[int, int] = 0) -> dict[str, int]:
    """The fold of each group, 0 to `count` - 1.

    The largest groups come first, groups of one size in a random order. Each goes to the fold with the fewest samples
    of its classes, but not to the fold that has all other groups of one of its classes already. Raises UserError if
    there are fewer groups than folds.
    """
    by_group: dict[str, list[int]] = {}
    for row in rows:
        by_group.setdefault(row.group_id, []).append(row.label or 0)
    if len(by_group) < count:
        raise UserError(f"{len(by_group)} groups cannot make {count} folds")
    names = sorted(by_group)
    order = np.random.default_rng(seed).permutation(len(names))
    samples = np.zeros((count, 1 + max(max(labels) for labels in by_group.values())))
    open_groups = Counter(label for labels in by_group.values() for label in set(labels))
    folds_of: dict[int, set[int]] = {label: set() for label in open_groups}
    place = {}
    for number in sorted(order, key=lambda number: -len(by_group[names[number]])):
        labels = by_group[names[number]]
        last = [folds_of[label] for label in set(labels) if open_groups[label] == 1]
        avoided = Counter(fold for own in last if len(own) == 1 for fold in own)
        of_classes, of_all = samples[:, labels].sum(1), samples.sum(1)
        fold = min(range(count), key=lambda fold: (avoided[fold], of_classes[fold], of_all[fold], fold))
        np.add.at(samples[fold], labels, 1)
        for label in set(labels):
            folds_of[label].add(fold)
            open_groups[label] -= 1
        place[names[number]] = fold
    return place
