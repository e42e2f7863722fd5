"""How is what came of a new head shown on a terminal?"""

from __future__ import annotations

from typing import Any

from cover.console import print_table

TITLES = ["data set", "head", "split", "read", "before", "after", "difference", ""]


def print_added(results: dict[str, Any]) -> None:
    """What came of it, on stdout."""
    print_table(TITLES, [*(_old_cells(row) for row in results["old"]), _new_cells(results["new"])])
    compared, new = results["compare"], results["new"]
    if compared:
        start = f"from {compared['start']}" if compared["start"] else "from random weights"
        told = f"{_points(compared['difference'])}: {compared['verdict']} (one seed)"
        print(f"{new['dataset']} alone, {start}, as many epochs: {_percent(compared['alone'])}; with the release {told}")


def _old_cells(row: dict[str, Any]) -> list[str]:
    kind = "replayed" if row["trained"] else "kept"
    if "why_not" in row:
        return [row["dataset"], row["head"], "-", "-", "-", "-", "-", f"{kind}; not measured: {row['why_not']}"]
    what = "unchanged, bit for bit" if row["unchanged"] else f"{kind}: {row['verdict']}"
    return [*_place(row), _percent(row["before"]), _percent(row["after"]), _points(row["difference"]), what]


def _new_cells(row: dict[str, Any]) -> list[str]:
    return [*_place(row), "-", _percent(row), "-", f"new, chance {1 / row['classes']:.1%}" if row["measure"] == "top1" else "new"]


def _place(row: dict[str, Any]) -> list[str]:
    measure = "" if row["measure"] == "top1" else f" ({row['measure']})"
    return [row["dataset"], row["head"] + measure, row["split"], f"{row['n_read']} of {row['n_listed']}"]


def _percent(found: dict[str, Any]) -> str:
    return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def _points(found: dict[str, Any]) -> str:
    return f"{100 * found['value']:+.1f} points ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})"
