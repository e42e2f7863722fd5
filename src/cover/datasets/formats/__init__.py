"""The formats of data sets on disk: one function per format, from annotation files to listed samples."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from cover.datasets.annotations import Listing
from cover.datasets.catalog import PREPARED, DatasetSpec
from cover.datasets.files import unpack_hint
from cover.datasets.formats.folder import folder
from cover.datasets.formats.imagenet import imagenet
from cover.datasets.formats.kinetics import kinetics
from cover.datasets.formats.lists import csv_list, csv_multi_label, path_list
from cover.datasets.formats.moments import moments
from cover.datasets.formats.ssv2 import ssv2
from cover.datasets.formats.ucf_hmdb import ucf_hmdb
from cover.errors import UserError, nearest

Adapter = Callable[[DatasetSpec, str], Listing]
ADAPTERS: dict[str, Adapter] = {
    "kinetics": kinetics,
    "ssv2": ssv2,
    "moments": moments,
    "imagenet": imagenet,
    "folder": folder,
    "csv": csv_list,
    "list": path_list,
    "splits": ucf_hmdb,
}


def list_split(spec: DatasetSpec, split: str) -> Listing:
    """All samples of an annotated split, also those without a file on disk.

    Raises UserError for an invalid list, a label outside the class list, or a split without samples.
    """
    if spec.format == PREPARED:
        raise UserError(
            f"{spec.name}: prepared data need no index: their manifests came with them;"
            " `cover prepare` checks and renews them"
        )
    return _not_empty(spec, split, _listing(spec, split))


def _listing(spec: DatasetSpec, split: str) -> Listing:
    if spec.format not in ADAPTERS:
        return _grouped(spec, split, _from_file(spec)(spec, split))
    try:
        return ADAPTERS[spec.format](spec, split)
    except PermissionError as error:
        raise UserError(
            f"{spec.name}: {error.filename} cannot be read: {error.strerror}; is its folder readable?"
        ) from None


def list_splits(spec: DatasetSpec) -> dict[str, Listing]:
    """Split -> listing of every annotated split. A csv file that serves several splits is read once."""
    if spec.format == "csv":
        return {split: _not_empty(spec, split, listing) for split, listing in csv_multi_label(spec).items()}
    return {split: list_split(spec, split) for split in spec.annotations}


def _not_empty(spec: DatasetSpec, split: str, listing: Listing) -> Listing:
    if not listing.rows:
        place = spec.annotations[split]
        why = f"{place} {'lists no sample' if Path(place).exists() else 'does not exist'}"
        hint = unpack_hint(place if os.path.isdir(place) else spec.root)
        raise UserError(
            f"{spec.name}: the split {split} is empty: {'; '.join(filter(None, [why, *listing.warnings, hint]))}"
        )
    return listing


def _grouped(spec: DatasetSpec, split: str, listing: Listing) -> Listing:
    """The listing of a user's format, with groups by the catalog's pattern where the format gave none."""
    rule = spec.group
    if rule is None:
        return listing
    root, where = f"{spec.root}{os.sep}", spec.annotations[split]
    rows = [
        row
        if row.group is not None
        else replace(row, group=rule.of_path(row.path.removeprefix(root), f"{where}, {row.sample_id}", spec.name))
        for row in listing.rows
    ]
    return replace(listing, rows=rows)


def _from_file(spec: DatasetSpec) -> Adapter:
    """The function of a `FILE.py:FUNCTION` format. An error inside this file gets a full traceback, for its author."""
    file, _, function = spec.format.rpartition(":")
    module_spec = spec_from_file_location(f"cover_format_{Path(file).stem}", file)
    assert module_spec
    assert module_spec.loader
    module = module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses search for their module here
    module_spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        known = [name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))]
        raise UserError(f'{spec.name}.format: {file} has no function "{function}"{nearest(function, known)}')
    adapter: Adapter = getattr(module, function)
    return adapter
