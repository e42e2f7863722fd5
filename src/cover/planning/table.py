"""A plan as tables on stdout, with a last line that names the bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cover.console import clock, print_table, tell
from cover.model.describe import gibibytes, short


def print_plan(facts: Mapping[str, Any]) -> None:
    """Print the figures of `plan` as tables, then its notes and the bottleneck."""
    set_columns = ("data set", "samples", "classes", "sizes", "of a step", "epochs", "ms to read", "times")
    print_table(set_columns, [_set_row(each) for each in facts["datasets"]])
    print()
    memory_columns = ("memory of a device, GiB", "state", "gradients", "activations", "backward", "all", "of", "fits")
    print_table(memory_columns, [_memory_row(facts, way) for way in facts["memory"]["ways"]])
    print()
    print_table(("the run", ""), [*_step_rows(facts), *_time_rows(facts), *_reading_rows(facts), *_end_rows(facts)])
    print()
    for remark in facts["remarks"]:
        tell(f"note: {remark}")
    tell(facts["verdict"])


def _set_row(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = (dataset["name"], f"{dataset['samples']:,}", f"{dataset['classes']:,}", dataset["origin"])
    rates = (f"{dataset['share']:.1%}", f"{dataset['epochs']:.3g}")
    return *sizes, *rates, f"{dataset['ms']:.3g}", dataset["ms_origin"]


def _memory_row(facts: Mapping[str, Any], way: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = (way["strategy"], way["checkpointing"]) == (facts["strategy"], facts["checkpointing"])
    name = way["strategy"] if facts["devices"] > 1 else "alone"
    name += ", checkpointing" * way["checkpointing"] + " (the recipe)" * chosen
    state, backward = way["weights"] + way["optimizer"] + way["average"], way["working"] + way["pixels"]
    sizes = (state, way["gradients"], way["activations"], backward, way["total"], facts["memory"]["available"])
    return name, *(f"{size / 2**30:,.1f}" for size in sizes), "yes" if way["fits"] else "no"


def _step_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    step = facts["step"]
    peak = f"{facts['share']:.0%} of its peak, {'assumed' if facts['share_assumed'] else 'given'}"
    return [
        ("on", f"{facts['devices']} x {facts['device']}, {facts['precision']}, {peak}"),
        ("parameters", f"{short(step['parameters'])}, {short(step['parameters_trained'])} of them trained"),
        ("a step", step["holds"]),
        ("  tokens", f"{step['tokens']:,}"),
        ("  FLOP, forward and backward", short(step["flop"])),
    ]


def _time_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    time = facts["time"]
    return [
        ("  computing", _seconds(time["compute"])),
        ("  communication", f"{_seconds(time['talk'])}, {_seconds(time['talk_hidden'])} of it during computing"),
        ("  reading", f"{_seconds(time['reading'])} with {facts['reading']['cores']} cores"),
        ("  the whole step", f"{_seconds(time['step'])}"),
    ]


def _reading_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    reading = facts["reading"]
    size = "unknown: --file-kb"
    if reading["bytes"] is not None:
        size = f"{gibibytes(round(reading['bytes']))}, {reading['bytes_per_s'] / 1e6:,.0f} MB/s"
    cores = f"{reading['cores_needed']:.1f} of {facts['cores'] * facts['devices']}"
    return [("cores needed for reading", cores), ("read from disk", size)]


def _end_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    hours = facts["device_hours"]
    return [
        ("steps", f"{facts['steps']:,}"),
        ("time to the end", clock(3600 * facts["hours"])),
        ("device-hours to the end", f"{hours:,.1f}" if hours >= 1 else f"{hours:.3f}"),
    ]


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.2g} ms"
