"""The arithmetic of a training step, the peak speed of the device, and the memory in use."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from functools import cache, lru_cache

import torch

from cover.errors import UserError
from cover.hardware import MATMUL_SIDE, find_device, matmul_rate
from cover.mixture.schedule import Schedule
from cover.model.backbone import BackboneConfig, Groups
from cover.model.cover import CoVeR
from cover.model.profile import ForwardCost, forward_cost, on_meta

PASSES = 3  # the forward pass, and two products in the backward pass for each of its products


@dataclass(frozen=True)
class StepWork:
    """The work in the scheduled global batch of one step.

    `samples`: number of samples. `tokens`: number of tokens in one layer. `flops`: floating-point operations of the
    forward and backward pass, two for each multiply-add of the published function (`model.profile`). As usual for an
    MFU, they include neither what checkpointing computes again nor what frozen layers save. Cached stages do not run,
    so they are not included.
    """

    samples: int
    tokens: int
    flops: int


def work_of(model: CoVeR, schedule: Schedule, size: int, stages: int = 0) -> StepWork:
    """The mean work of a step of `schedule` with frames of `size` pixels.

    `stages`: the number of first stages that do not run, because their output is cached.
    """
    groups = schedule.mean_step
    heads = tuple((head.name, len(head.classes)) for head in model.head_list)
    cost = _cost(model.config, heads, groups, size, stages)
    return StepWork(sum(samples for samples, _ in groups), cost.tokens, 2 * PASSES * cost.multiply_adds)


@lru_cache(maxsize=64)  # a study has many runs of the same shapes
def _cost(
    config: BackboneConfig, heads: tuple[tuple[str, int], ...], groups: Groups, size: int, stages: int
) -> ForwardCost:
    return forward_cost(on_meta(config, dict(heads)), groups, size, stages)


def peak_flops(device: torch.device, bf16: bool) -> tuple[float | None, str]:
    """The peak speed of one device in FLOP/s, and the source of the number; None for a GPU that is not in the table.

    The speed of a CPU is that of a product of float32 matrices, measured once in a process. Few CPUs are faster with
    bfloat16.
    """
    if device.type == "cpu":
        threads = torch.get_num_threads()
        matrices = f"{MATMUL_SIDE} x {MATMUL_SIDE} matrices"
        return _cpu_rate(threads), f"measured: fp32 product of {matrices}, {threads} threads"
    if device.type != "cuda":
        return None, "unknown device"
    try:
        gpu = find_device("auto")
    except UserError:
        return None, "unknown device"
    return gpu.peak(bf16), f"{gpu.title}, dense {'bf16' if bf16 else 'fp32'} by its data sheet"


@cache
def _cpu_rate(threads: int) -> float:  # the argument is the key of the cache
    return matmul_rate(torch.float32)


def memory_bytes(device: torch.device) -> int:
    """The largest memory use so far in bytes: of tensors on a GPU, or of this process without its workers on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux
