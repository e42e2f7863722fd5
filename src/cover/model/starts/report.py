"""The report of an import: what became of every tensor of a checkpoint and of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

LOADED, COPIED, RESIZED, NEW, UNUSED = "loaded", "copied to the temporal branch", "resized", "left new", "unused"
FATES = (LOADED, COPIED, RESIZED, NEW, UNUSED)


def row(name: str | None, sources: Sequence[str], fate: str, value: Tensor, why: str = "") -> dict[str, Any]:
    """The entry of one tensor: our name, its names in the file, and its fate."""
    shape = {"shape": list(value.shape), "numbers": value.numel()}
    return {"tensor": name, "source": list(sources), "fate": fate, **shape, "why": why}


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Fate -> the number of tensors and of their values."""
    total = {fate: {"tensors": 0, "numbers": 0} for fate in FATES}
    for each in rows:
        total[each["fate"]]["tensors"] += 1
        total[each["fate"]]["numbers"] += each["numbers"]
    return total


def dtype_notes(tensors: Sequence[Tensor]) -> list[str]:
    """A note about tensors that are not float32, if there are any."""
    dtypes = {str(value.dtype).removeprefix("torch.") for value in tensors} - {"float32"}
    return [f"{' and '.join(sorted(dtypes))} became float32"] if dtypes else []
