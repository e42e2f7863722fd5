"""A plan on the terminal: tables on stdout, then one line that names the bottleneck."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cover.console import clock, print_table
from cover.model.describe import gibibytes, short


def print_plan(facts: Mapping[str, Any]) -> None:
    """The figures of `plan` as tables, and the verdict."""
    print_table(
        ("data set", "samples", "classes", "known from", "of a step", "epochs", "ms to read", "which is"),
        _set_rows(facts),
    )
    print()
    print_table(
        ("memory of a device, GiB", "state", "gradients", "activations", "backward", "all", "of", "fits"),
        _memory_rows(facts),
    )
    print()
    print_table(("the run", ""), [*_step_rows(facts), *_time_rows(facts), *_reading_rows(facts), *_end_rows(facts)])
    print()
    for remark in facts["remarks"]:
        print(f"note: {remark}")
    print(facts["verdict"])


def _set_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            each["name"],
            f"{each['samples']:,}",
            f"{each['classes']:,}",
            each["origin"],
            f"{each['share']:.1%}",
            f"{each['epochs']:.3g}",
            f"{each['ms']:.3g}",
            each["ms_origin"],
        )
        for each in facts["datasets"]
    ]


def _memory_rows(facts: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [_memory_row(facts, way) for way in facts["memory"]["ways"]]


def _memory_row(facts: Mapping[str, Any], way: Mapping[str, Any]) -> tuple[str, ...]:
    chosen = (way["strategy"], way["checkpointing"]) == (facts["strategy"], facts["checkpointing"])
    name = f"{way['strategy'] if facts['devices'] > 1 else 'alone'}{', checkpointing' * way['checkpointing']}{' (the recipe)' * chosen}"
    state = way["weights"] + way["optimizer"] + way["average"]
    micro_batches = (
        state,
        way["gradients"],
        way["activations"],
        way["working"] + way["pixels"],
        way["total"],
        facts["memory"]["available"],
    )
    return name, *(f"{part / 2**30:,.1f}" for part in micro_batches), "yes" if way["fits"] else "no"


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
        (
            "  talk between devices",
            f"{_seconds(time['talk'])}, {_seconds(time['talk_hidden'])} of it while they compute",
        ),
        ("  reading", f"{_seconds(time['reading'])} with {facts['reading']['cores']} cores"),
        ("  in all", f"{_seconds(time['step'])}"),
    ]


def _reading_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    reading = facts["reading"]
    known = reading["bytes"] is not None
    return [
        ("cores to keep up with", f"{reading['cores_needed']:.1f} of {facts['cores'] * facts['devices']}"),
        (
            "read from disk",
            f"{gibibytes(round(reading['bytes']))}, {reading['bytes_per_s'] / 1e6:,.0f} MB/s"
            if known
            else "not known: --file-kb",
        ),
    ]


def _end_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("steps", f"{facts['steps']:,}"),
        ("time to the end", clock(3600 * facts["hours"])),
        (
            "device-hours to the end",
            f"{facts['device_hours']:,.1f}" if facts["device_hours"] >= 1 else f"{facts['device_hours']:.3f}",
        ),
    ]


def _seconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.2g} ms"
