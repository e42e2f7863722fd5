"""Measurements of time and memory, with the turns of `cover.planning.timing`.

Results are medians of times, and medians of the ratios within a round.
"""

from __future__ import annotations

import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from cover.planning.timing import Work, in_turns, once, wait_for

__all__ = ["Work", "by_operation", "in_turns", "matmul", "once", "peak_bytes", "ratio", "show", "where", "write"]

MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}


def ratio(seconds: Mapping[str, list[float]], name: str, to: str) -> float:
    """The time of `name` divided by the time of `to`: the median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def matmul(device: torch.device, dtype: torch.dtype) -> tuple[Work, float]:
    """A large square matrix product, which measures the peak of the machine, and its floating-point operations."""
    side = MATMUL_SIDE[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2 * side**3


def peak_bytes(work: Work, device: torch.device) -> int:
    """The largest memory of tensors during `work` minus their memory before it, in bytes, as the allocator counts."""
    gc.collect()
    wait_for(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    current = peak = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            current += event.nbytes()  # negative for a release
            peak = max(peak, current)
    return peak


KINDS = {  # kind of operation -> parts of the names of its kernels
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
    """The fraction of each kind of operation in the device's time of one call, from a profile."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]) as recorded:
        once(work, device)
    seconds: dict[str, float] = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in recorded.key_averages():
        key = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in key for word in words)), "the rest")
        seconds[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {kind: spent / sum(seconds.values()) for kind, spent in seconds.items()}


def where(device: torch.device) -> dict[str, Any]:
    """The machine, the version of torch and the date of a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    software = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"device": name, **software, "date": time.strftime("%Y-%m-%d")}


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    print(f"\n### {title}\n")
    for number, row in enumerate([columns, *rows]):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        if not number:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def write(results: Any, target: str | None) -> None:
    """Write the results as JSON into the file `target`; nothing if it is None."""
    if target:
        Path(target).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
