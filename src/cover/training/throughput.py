"""The work of a training step, what the device could do in a second, and the memory that is taken."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from functools import cache

import torch

from cover.errors import UserError
from cover.hardware import MATMUL_SIDE, find_device, matmul_rate
from cover.mixture.schedule import Schedule
from cover.model.cover import CoVeR
from cover.model.profile import forward_cost, on_meta

PASSES = 3  # forward, and the backward pass's two products for each of its own


@dataclass(frozen=True)
class StepWork:
    """What the scheduled global batch of one step holds: `samples`, `tokens` of one layer, and `flops`, two for each
    multiply-add.

    The multiply-adds are those of the published function, forward and backward (`model.profile`); what checkpointing
    computes again and what frozen layers save is left out, as everybody leaves it out of an MFU.
    """

    samples: int
    tokens: int
    flops: int


def work_of(model: CoVeR, schedule: Schedule, size: int) -> StepWork:
    """The mean work of a step of `schedule` with frames of `size` pixels."""
    groups = schedule.mean_step
    without_numbers = on_meta(model.config, {head.name: len(head.classes) for head in model.head_list})
    cost = forward_cost(without_numbers, groups, size)
    return StepWork(sum(samples for samples, _ in groups), cost.tokens, 2 * PASSES * cost.multiply_adds)


def peak_flops(device: torch.device, bf16: bool) -> tuple[float | None, str]:
    """What one device could do in a second at most, and where the figure comes from; None of a GPU that is in no table.

    A CPU's is a product of float32 matrices, measured once per process: few CPUs multiply bfloat16 any faster.
    """
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return _cpu_rate(
            threads
        ), f"measured: fp32 product of {MATMUL_SIDE} x {MATMUL_SIDE} matrices, {threads} threads"
    try:
        known = find_device("auto")
    except UserError:
        return None, "unknown device"
    return known.peak(bf16), f"{known.title}, dense {'bf16' if bf16 else 'fp32'} by its data sheet"


@cache
def _cpu_rate(threads: int) -> float:
    return matmul_rate(torch.float32)


def memory_bytes(device: torch.device) -> int:
    """The most that has been taken so far: by tensors on a GPU, by this process without its workers on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
