"""Timing of networks on this machine: contenders take turns, round by round, in one process.

The speed of a machine can drift by a factor of two within minutes, so a single time says little. Two times of one round
are seconds apart and can be compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from cover.mixture.pack import Pack
from cover.model.backbone import Groups

Work = Callable[[], object]


def in_turns(contenders: Mapping[str, Work], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """The seconds of every contender in every round. The first call of each does not count.

    The order rotates by one place each round, so that no contender is always first.
    """
    for work in contenders.values():
        work()
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(once(contenders[name], device))
    return seconds


def once(work: Work, device: torch.device) -> float:
    """The seconds of one call, including all work of the device."""
    wait_for(device)
    began = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - began


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_pack(groups: Groups, size: int, classes: int, device: torch.device) -> Pack:
    """A Pack with random pixels, and random classes of one data set."""
    generator = torch.Generator().manual_seed(0)
    samples, frames = sum(count for count, _ in groups), sum(count * length for count, length in groups)
    pack = Pack(
        frames=torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8, generator=generator),
        groups=groups,
        dataset=torch.zeros(samples, dtype=torch.int64),
        targets=torch.randint(0, classes, (samples, 1), generator=generator),
        weight=torch.ones(samples),
        seed=torch.zeros(samples, dtype=torch.int64),
    )
    return pack.to(device)
