"""How is a comparison measured? Contenders take turns, round by round, in one process; what is quoted is a median or a
ratio of one round.

A machine's speed drifts by a factor of two over minutes, so a time alone says little: two times of one round, taken
seconds apart, do.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}

Work = Callable[[], object]


def in_turns(contenders: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every contender in every round, the order turning by one place each round; the first call of each is
    not counted.
    """
    for work in contenders.values():
        work()
    names, seconds = list(contenders), {name: [] for name in contenders}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds[name].append(once(contenders[name], device))
    return seconds


def once(work: Work, device: torch.device) -> float:
    """Seconds of one call, the device's queue emptied before and after."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def ratio(seconds: Mapping[str, list[float]], name: str, to: str) -> float:
    """How many times as long `name` takes as `to`: the median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def matmul(device: torch.device, dtype: torch.dtype) -> tuple[Work, float]:
    """A large square product as the measure of what the machine can do, and its floating-point operations."""
    side = MATMUL_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * side**3


def peak_bytes(work: Work, device: torch.device) -> int:
    """The most memory that tensors take up during `work`, above what they take up before it, by the allocator's own
    account.
    """
    gc.collect()
    _wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    present = peak = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            present += event.nbytes()
            peak = max(peak, present)
    return peak


KINDS = {  # of operations, by what their names hold
    "matrix products": ("mm", "gemm", "matmul"),
    "attention": ("attention", "flash", "fmha", "softmax"),
    "GELU": ("gelu",),
    "norms": ("norm",),
    "copies, biases among them": ("copy", "cat", "fill", "clone"),
    "sums": ("sum",),
    "optimizer": ("adamw",),
    "patches": ("conv",),
}


def by_operation(work: Work, device: torch.device) -> dict[str, float]:
    """Where the time of one call goes: the share of each kind of operation in the device's own time, from a profile."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]) as recorded:
        once(work, device)
    seconds: dict[str, float] = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in recorded.key_averages():
        kind = next(
            (kind for kind, words in KINDS.items() if any(word in event.key.lower() for word in words)), "the rest"
        )
        seconds[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {kind: spent / sum(seconds.values()) for kind, spent in seconds.items()}


def where(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": card,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table in Markdown."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    print(f"\n### {title}\n")
    for number, row in enumerate([columns, *rows]):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if not number:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def write(results: Any, target: str | None) -> None:
    """As JSON into a file, where one was asked for."""
    if target:
        Path(target).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
