"""Which samples does a data set list? One pure function per on-disk format, from annotation files to rows."""

from __future__ import annotations

from collections.abc import Callable

from cover.datasets.adapters.csv_list import csv_list
from cover.datasets.adapters.folder import folder
from cover.datasets.adapters.imagenet import imagenet
from cover.datasets.adapters.kinetics import kinetics
from cover.datasets.adapters.moments import moments
from cover.datasets.adapters.ssv2 import ssv2
from cover.datasets.catalog import DatasetSpec
from cover.datasets.listing import Listing
from cover.errors import UserError

ADAPTERS: dict[str, Callable[[DatasetSpec, str], Listing]] = {
    "kinetics": kinetics,
    "ssv2": ssv2,
    "moments": moments,
    "imagenet": imagenet,
    "folder": folder,
    "csv": csv_list,
}


def list_split(spec: DatasetSpec, split: str) -> Listing:
    """All rows of an annotated split, files that do not exist among them. Raises UserError for an unsound list, a label outside the
    class list, or a split without rows."""
    listing = ADAPTERS[spec.format](spec, split)
    if not listing.rows:
        raise UserError(f"{spec.name}: the split {split} is empty: {spec.annotations[split]} lists no sample")
    return listing
