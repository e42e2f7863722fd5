"""What is odd about a split that can be used all the same? Said and counted, never fatal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import entries
from cover.datasets.listing import Listed
from cover.datasets.manifest import ClassList

_NAMED = 5
_PACKED = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip", ".7z", ".rar", ".part", ".crdownload", ".aria2", ".filepart")


def remarks(spec: DatasetSpec, split: str, rows: Sequence[Listed], classes: ClassList, held: Set[int]) -> list[str]:
    """One line for each oddity of a split. `held`: the labels of its usable samples."""
    found = [] if spec.root.exists() else [f"the root {spec.root} does not exist"]
    repeated = [sample for sample, count in Counter(row.sample_id for row in rows).items() if count > 1]
    if repeated:
        found.append(f"listed more than once: {_few(repeated)}")
    empty = [name for label, name in enumerate(classes.names) if label not in held]
    if empty and split != "dev" and any(row.label is not None or row.labels for row in rows):  # a dev part is too small to hold every class
        found.append(f"classes without a usable sample: {_few(empty)}")
    return found


def packed(root: Path) -> list[str]:
    """One line where archives or unfinished downloads lie at the top of a root some of whose files are missing."""
    names = [entry.name for entry in entries(root) if entry.name.lower().endswith(_PACKED)]
    return [f"files are missing, and {root} holds {_few(names)}: fetch them whole and unpack them"] if names else []


def _few(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
