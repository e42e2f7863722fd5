"""The list of exclusions: training rows that are also in an evaluation split, in a file beside the manifests.

`cover overlap` writes the file and `cover train` reads it. It stores the digests of the manifests that were compared.
The list is out of date as soon as one of these manifests changes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cover.datasets.catalog import Catalog
from cover.datasets.manifest import open_manifest
from cover.datasets.phash import write_arrow
from cover.errors import UserError

EXCLUSIONS_FILE = "exclusions.arrow"


@dataclass(frozen=True)
class Exclusion:
    """Row `row` of the train manifest of `dataset` matches a row of another split.

    `reason`: the kind of match, `source`, `file` or `frames`.
    """

    dataset: str
    row: int
    sample_id: str
    reason: str
    matched_dataset: str
    matched_split: str
    matched_sample_id: str


_TYPES = {"row": pa.int64()}


def exclusions_path(catalog: Catalog) -> Path:
    """The path at which `cover train` reads the list."""
    return catalog.path.parent / "manifests" / EXCLUSIONS_FILE


def write_exclusions(
    path: Path, exclusions: Iterable[Exclusion], digests: Mapping[str, str], kinds: Sequence[str]
) -> None:
    """Write the list. `digests`: file name -> digest of every compared manifest. `kinds`: the kinds of match."""
    metadata = {"exclusions": 1, "manifests": dict(digests), "kinds": list(kinds)}
    names = [field.name for field in fields(Exclusion)]
    types = [(name, _TYPES.get(name, pa.string())) for name in names]
    schema = pa.schema(types, metadata={"cover": json.dumps(metadata)})
    columns = list(zip(*(vars(item).values() for item in exclusions))) or [()] * len(names)
    write_arrow(path, pa.table([pa.array(c, field.type) for c, field in zip(columns, schema)], schema=schema))


def read_exclusions(path: Path) -> tuple[list[Exclusion], dict[str, Any]]:
    """The list and its metadata: `manifests` (file name -> digest) and `kinds`. Raises UserError for another file."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        metadata = json.loads(table.schema.metadata[b"cover"])
        rows = [Exclusion(*values) for values in zip(*(column.to_pylist() for column in table.columns))]
        return rows, {"manifests": metadata["manifests"], "kinds": metadata["kinds"]}
    except (pa.ArrowInvalid, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a list of exclusions ({error}); run `cover overlap` again") from None


def excluded_rows(catalog: Catalog, names: Iterable[str]) -> dict[str, npt.NDArray[np.int64]] | None:
    """Data set -> excluded rows of its train manifest, int64 ascending. None if there is no list.

    Raises UserError if a manifest changed after the list was written, or if the list lacks one of the data sets.
    """
    path = exclusions_path(catalog)
    if not path.exists():
        return None
    exclusions, metadata = read_exclusions(path)
    again = f"run `{_command(catalog, metadata['kinds'])}` again, or train with --data.exclusions ignore"
    places = {
        manifest.name: manifest
        for spec in catalog.specs.values()
        for manifest in (catalog.manifest_path(spec.name, split) for split in spec.splits)
    }
    for file, digest in metadata["manifests"].items():
        manifest = places.get(file, path.parent / file)  # those of prepared data may be in other folders
        if not manifest.is_file() or open_manifest(manifest).digest() != digest:
            raise UserError(f"{path}: stale: {file} has changed since it was made; {again}")
    rows: dict[str, list[int]] = {name: [] for name in names}
    for name in rows:
        if f"{name}-train.arrow" not in metadata["manifests"]:
            raise UserError(f"{path}: made without {name}; {again}")
    for item in exclusions:
        if item.dataset in rows:
            rows[item.dataset].append(item.row)
    return {name: np.unique(np.array(numbers, np.int64)) for name, numbers in rows.items()}


def _command(catalog: Catalog, kinds: Sequence[str]) -> str:
    return shlex.join(["cover", "overlap", str(catalog.path), *(["--frames"] if "frames" in kinds else [])])
