"""Media files that were replaced after their data set was indexed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cover.console import say
from cover.datasets.catalog import PREPARED, Catalog
from cover.datasets.manifest import Manifest
from cover.errors import UserError

ALLOWED = 0.01  # largest fraction of changed samples; labels, lengths and splits of more are not to be trusted


@dataclass(frozen=True)
class ChangedFiles:
    """The samples of a split whose files changed after they were indexed: `changed` of `checked`; `first`: a file."""

    name: str
    split: str
    checked: int
    changed: int = 0
    first: str = ""

    @property
    def too_many(self) -> bool:
        """Whether they are more than the allowed fraction."""
        return self.changed > ALLOWED * self.checked

    def __str__(self) -> str:
        count = f"{self.changed} of {self.checked} files changed since they were indexed"
        return f"{self.name} {self.split}: {count}, the first: {self.first}"

    def joined(self, other: ChangedFiles) -> ChangedFiles:
        """The samples of two parts of a split."""
        checked, changed = self.checked + other.checked, self.changed + other.changed
        return ChangedFiles(self.name, self.split, checked, changed, self.first or other.first)


def changed_files(manifest: Manifest, rows: npt.NDArray[np.int64]) -> ChangedFiles:
    """The changed files of `rows` (int64). The files are not read; their size and time of change are compared."""
    changed = manifest.changed_rows(rows)
    first = manifest.row(int(changed[0])).path if len(changed) else ""
    return ChangedFiles(manifest.name, manifest.split, len(rows), len(changed), first)


def report_changed(result: ChangedFiles, catalog: Catalog) -> None:
    """Print changed files, if there are any. Raises `UserError`, with the command to run, if there are too many."""
    again = renew(catalog, result.name)
    if result.too_many:
        raise UserError(f"{result}; {again}")
    if result.changed:
        say(f"warning: {result}; {again}")


def renew(catalog: Catalog, name: str) -> str:
    """How the manifests of a data set are written anew."""
    if catalog.spec(name).format == PREPARED:
        return "run the command again that wrote its catalog (cover prepare)"
    return f"run `{catalog.index_command(name)}`"
