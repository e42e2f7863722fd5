"""How are results shown on a terminal? The numbers with their protocol; on request class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cover.console import print_table, say

_SHARES = {
    "top1": "top-1", "top5": "top-5", "mean_class": "mean class", "top1_listed": "top-1 of listed", "ece": "ECE",
    "map": "mAP", "map_listed": "mAP of listed", "hit1": "hit at 1",
}  # fmt: skip


def print_results(results: Sequence[dict[str, Any]]) -> None:
    """A row for each data set, variant and checkpoint on stdout; what was wrong with files on stderr."""
    shown = {key: title for key, title in _SHARES.items() if any(row.get(key) is not None for row in results)}
    several = len({row["checkpoint"] for row in results}) > 1
    titles = [*["checkpoint"] * several, "data set", "frames", *shown.values(), "read", "listed", "views", "split", "step", "classes"]
    print_table(titles, [[*[row["checkpoint"]] * several, *_cells(row, list(shown))] for row in results])
    for row in results:
        if row["n_notes"] and row["variant"] == "plain":
            say(f"{row['dataset']}: {row['n_notes']} files damaged or unreadable, the first: {row['notes'][0]}")
        if row["unmapped"] and row["variant"] == "plain":
            say(f"{row['dataset']}: head {row['head']} lacks {len(row['unmapped'])} of its classes; their samples are not among the listed")


def _cells(row: dict[str, Any], keys: list[str]) -> list[Any]:
    frames = {"plain": "", "shuffled": " shuffled", "reversed": " reversed", "single": ""}[row["variant"]]
    shares = [_with_interval(row) if key == "top1" else _percent(row.get(key)) for key in keys]
    step = "-" if row["step"] is None else row["step"]  # of a model that was not trained here
    classes = f"{len(row['class_names'])} of {row['classes']}" if row["unmapped"] else str(row["classes"])
    return [
        row["dataset"], f"{row['frames']}{frames}", *shares, row["n_read"], row["n_listed"], row["views"], row["split"], step,
        f"{classes} ({row['class_digest']})",
    ]  # fmt: skip


def print_classes(results: Sequence[dict[str, Any]], most: int) -> None:
    """Of every data set its `most` weakest classes, and its commonest wrong answers."""
    for row in results:
        if row["variant"] != "plain":
            continue
        known = [(right, total, name) for (right, total), name in zip(row["per_class"], row["class_names"], strict=True) if total]
        known.sort(key=lambda entry: (_class_share(entry, row), entry[2]))
        titles = ["class", "AP" if row["multi_label"] else "right", "samples read"]
        print(f"\n{row['dataset']} {row['split']}: the weakest of {len(known)} classes")
        print_table(titles, [[name, _percent(_class_share((right, total, name), row)), total] for right, total, name in known[:most]])
        if row.get("confusions"):
            pairs = [[pair["true"], pair["predicted"], f"{pair['count']} of {pair['of']}"] for pair in row["confusions"][:most]]
            print_table(["true", "predicted", "samples"], pairs)


def _class_share(entry: tuple[float, int, str], row: dict[str, Any]) -> float:
    right, total, _ = entry
    return right if row["multi_label"] else right / total


def _with_interval(row: dict[str, Any]) -> str:
    interval = row.get("top1_interval")
    return _percent(row.get("top1")) + (f" ({interval['low']:.1%} to {interval['high']:.1%})" if interval else "")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
