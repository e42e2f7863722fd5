"""What is odd about a split that can be used all the same? Said and counted, never fatal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import few, unpack_hint
from cover.datasets.listing import Listed
from cover.datasets.manifest import ClassList


def remarks(spec: DatasetSpec, split: str, rows: Sequence[Listed], classes: ClassList, held: Set[int]) -> list[str]:
    """One line for each oddity of a split. `held`: the labels of its usable samples."""
    found = [] if spec.root.exists() else [f"the root {spec.root} does not exist"]
    found += _repeated(rows)
    unlabelled = sum(row.label is None and row.labels is None for row in rows)
    if unlabelled and split != "test":  # of a test split that is usual
        found.append(f"{unlabelled} of {len(rows)} samples have no label: they are neither trained on nor evaluated")
    empty = [name for label, name in enumerate(classes.names) if label not in held]
    if empty and split != "dev" and any(row.label is not None or row.labels for row in rows):  # a dev part is too small to hold every class
        found.append(f"classes without a usable sample: {few(empty)}")
    return found


def _repeated(rows: Sequence[Listed]) -> Iterator[str]:
    seen: set[str] = set()
    classes_of: dict[str, set[object]] = {}
    for row in rows:
        if row.sample_id in seen:
            classes_of[row.sample_id] = set()
        seen.add(row.sample_id)
    if not classes_of:
        return
    for row in rows:
        if row.sample_id in classes_of:
            classes_of[row.sample_id].add(row.label if row.labels is None else tuple(row.labels))
    yield f"listed more than once: {few(list(classes_of))}"
    if torn := [sample for sample, classes in classes_of.items() if len(classes) > 1]:
        yield f"listed more than once, with different labels: {few(torn)}"


def packed(root: Path) -> list[str]:
    """One line where archives or unfinished downloads lie in a root some of whose files are missing."""
    hint = unpack_hint(root)
    return [f"files are missing, and {hint}"] if hint else []
