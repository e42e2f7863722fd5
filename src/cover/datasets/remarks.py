"""What is odd about a split that can be used all the same? Said and counted, never fatal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set

from cover.datasets.catalog import DatasetSpec
from cover.datasets.listing import Listed
from cover.datasets.manifest import ClassList

_NAMED = 5


def remarks(spec: DatasetSpec, split: str, rows: Sequence[Listed], classes: ClassList, held: Set[int]) -> list[str]:
    """One line for each oddity of a split. `held`: the labels of its usable samples."""
    found = [] if spec.root.exists() else [f"the root {spec.root} does not exist"]
    repeated = [sample for sample, count in Counter(row.sample_id for row in rows).items() if count > 1]
    if repeated:
        found.append(f"listed more than once: {_few(repeated)}")
    empty = [name for label, name in enumerate(classes.names) if label not in held]
    if empty and split != "dev" and any(row.label is not None for row in rows):  # a dev part is too small to hold every class
        found.append(f"classes without a usable sample: {_few(empty)}")
    return found


def _few(names: Sequence[str]) -> str:
    """The first names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
