"""Which of the data sets behind a release are on this machine, to be replayed or measured?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cover.datasets.catalog import Catalog
from cover.datasets.manifest import open_manifest
from cover.errors import UserError
from cover.mixture.dataset import make_heads
from cover.model.timesformer import Head

SPLITS = ("val", "dev", "test")  # that are measured, in the order of preference


@dataclass(frozen=True)
class Known:
    """What a release can do. `owners`: data set -> the head that is for it. `absent`: data set -> why it cannot be replayed here."""

    owners: dict[str, Head]
    absent: dict[str, str]

    @property
    def replayed(self) -> list[str]:
        """The data sets of the heads that can be trained further here."""
        return [name for name in self.owners if name not in self.absent]

    @property
    def shared(self) -> dict[str, list[str]]:
        """`data.heads` of those that can be replayed: the heads that are not simply called as their one data set."""
        return {head.name: list(head.datasets) for name, head in self.owners.items() if head.serves and name not in self.absent}


def what_is_known(heads: Sequence[Head], catalog: Catalog) -> Known:
    """The data sets of `heads`, and which of them have their training rows on this machine. A head that several sets share can be trained
    further only with all of them, or its classes would be others."""
    absent: dict[str, str] = {}
    for head in heads:
        reasons = {name: why for name in head.datasets if (why := why_absent(name, catalog))}
        if not reasons and not _same_classes(head, catalog):
            reasons = dict.fromkeys(head.datasets, f'its classes are not those of the head "{head.name}"')
        if reasons:
            absent |= {**dict.fromkeys(head.datasets, f'it shares the head "{head.name}" with one that is absent'), **reasons}
    return Known({name: head for head in heads for name in head.datasets}, absent)


def why_absent(name: str, catalog: Catalog, split: str = "train") -> str:
    """Why no row of a split can be read; empty where some can."""
    if name not in catalog.specs:
        return f"not in {catalog.path.name}"
    if split not in catalog.specs[name].splits:
        return f"has no split {split}"
    path = catalog.manifest_path(name, split)
    if not path.is_file():
        return f"not indexed (cover index {catalog.path.name} {name})"
    return "" if len(open_manifest(path).usable) else "none of its files is here and readable"


def _same_classes(head: Head, catalog: Catalog) -> bool:
    """Whether the head's data sets, as they are here, make the very head."""
    classes = {name: open_manifest(catalog.manifest_path(name, "train")).classes for name in head.datasets}
    if len({each.many for each in classes.values()}) > 1:
        return False
    (ours,) = make_heads(classes, {head.name: head.datasets})
    return (ours.classes, ours.loss) == (head.classes, head.loss)


def split_of(name: str, catalog: Catalog, wanted: str | None) -> str | None:
    """The split that a data set is measured on, None where there is none: `wanted` if it has that, else the first of `SPLITS`."""
    order = [wanted, *SPLITS] if wanted else SPLITS
    return next((split for split in order if split and not why_absent(name, catalog, split)), None)


def split_of_new(name: str, catalog: Catalog, wanted: str | None) -> str:
    """The split that the new data set is measured on: `wanted`, or the first of `SPLITS` that it has. Raises `UserError`."""
    split = split_of(name, catalog, wanted)
    if split is None:
        raise UserError(f"{name}: no readable and labelled sample in {', '.join(SPLITS)} to measure it on; does the catalog say dev: 0?")
    if wanted and split != wanted:
        raise UserError(f"--split {wanted}: {name} {why_absent(name, catalog, wanted)}; it could be measured on {split}")
    return split
