"""Scaling of the training step: with the number of processes, with its content, and the time of a checkpoint.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only ranks --rounds 9 --json scaling.json

All parts run the step of `cover train` on random pixels. `ranks`: one process with two threads, and two processes
(gloo) with one thread each, compute the same batch in turns on the same cores. The cost of messages is the difference
to the same step without them. `checkpoint`: how long the loop waits for a checkpoint, in the background or not.
`growth`: one process with one thread; times are divided by the time of the first row.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _measure import Work, in_turns, ratio, show, where, write

from cover.distributed import DistributedStep, LocalStep, ProcessGroup, process_group
from cover.machine import reuse_memory
from cover.mixture.pack import Pack
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.training.checkpoint import Saver, Trained
from cover.training.recipe import Checkpoints, Distributed
from cover.training.step import StepSettings, train_step

CPU = torch.device("cpu")
CLASSES = 100
PRESET, SIZE = "mini", 32
GROUPS = ((8, 8), (16, 1))  # the batch of all ranks: 8 clips of 8 frames, 16 images
RANKS = 2
ONE_PROCESS = "one process, two threads"

Groups = tuple[tuple[int, int], ...]


def make_pack(groups: Groups, size: int, heads: int = 1) -> Pack:
    """A Pack with random pixels and classes. Sample i belongs to head i modulo the number of heads."""
    generator = torch.Generator().manual_seed(0)
    samples, frames = sum(count for count, _ in groups), sum(count * length for count, length in groups)
    targets = torch.full((samples, heads), -1)
    classes = torch.randint(0, CLASSES, (samples,), generator=generator)
    targets[torch.arange(samples), torch.arange(samples) % heads] = classes
    return Pack(
        frames=torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8, generator=generator),
        groups=groups,
        dataset=torch.arange(samples) % heads,
        targets=targets,
        weight=torch.ones(samples),
        seed=torch.arange(samples),
    )


def make_model(size: int, frames: int, heads: int = 1) -> CoVeR:
    """A model with random weights and `heads` heads."""
    torch.manual_seed(0)
    head_list = tuple(Head(f"set{number}", tuple(map(str, range(CLASSES)))) for number in range(heads))
    return CoVeR(named_config(PRESET, size=size, frames=frames), head_list)


def step_of(model: CoVeR, pack: Pack, engine: LocalStep | None = None, heads: int = 1) -> Work:
    """A function that runs one whole training step."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    settings = StepSettings(sum(count for count, _ in pack.groups), torch.ones(heads))
    return lambda: train_step(model, optimizer, [pack], settings, engine=engine)


# --- ranks ------------------------------------------------------------------------------------------------------------


class Silent(LocalStep):
    """The step of several ranks without their communication."""

    def __init__(self, engine: DistributedStep) -> None:
        super().__init__(engine.model)
        self.engine = engine

    def __call__(self, frames: Any, groups: Any, drop: Any, stages: int = 0) -> Any:
        return self.engine(frames, groups, drop, stages)

    def part(self, last: bool) -> Any:
        return self.engine.part(last=False)


def measure_rank(rounds: int) -> None:
    """The work of each process of `measure_ranks`; rank 0 prints the seconds as JSON."""
    reuse_memory()
    with process_group(Distributed().timeout, "cpu") as group:
        alone = step_of(make_model(SIZE, 8), make_pack(GROUPS, SIZE))
        own = make_pack(tuple((count // RANKS, frames) for count, frames in GROUPS), SIZE)
        works: dict[str, Work] = {ONE_PROCESS: lambda: with_threads(RANKS, alone) if group.leads else None}
        for strategy in ("ddp", "fsdp"):
            engine = DistributedStep(make_model(SIZE, 8), group, strategy)
            works[f"two processes, {strategy}"] = step_of(engine.model, own, engine)
            if strategy == "ddp":
                works["two processes, silent"] = step_of(engine.model, own, Silent(engine))
        seconds = in_turns({name: together(work) for name, work in works.items()}, rounds, CPU)
        if group.leads:
            print(json.dumps(seconds))


def with_threads(threads: int, work: Work) -> None:
    torch.set_num_threads(threads)
    work()
    torch.set_num_threads(1)


def together(work: Work) -> Work:
    """`work` between two barriers, so that all ranks start together and end together."""

    def with_barriers() -> None:
        dist.barrier()
        work()
        dist.barrier()

    return with_barriers


def measure_ranks(rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, and its efficiency.

    The efficiency is the time of one process divided by the time of two processes on the same cores.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    sizes = {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS), "OMP_NUM_THREADS": "1"}
    shared = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": port, **sizes}
    command = [sys.executable, __file__, "--rank", "--rounds", str(rounds)]
    environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(RANKS)]
    processes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for env in environments]
    of_rank_0, *_ = [process.communicate()[0] for process in processes]
    seconds = json.loads(of_rank_0)
    results = {
        name: {"milliseconds": 1e3 * statistics.median(times), "efficiency": ratio(seconds, ONE_PROCESS, name)}
        for name, times in seconds.items()
    }
    results["two processes, ddp"]["messages"] = 1 - ratio(seconds, "two processes, silent", "two processes, ddp")
    return results


# --- checkpoint -------------------------------------------------------------------------------------------------------


def measure_checkpoint(rounds: int) -> dict[str, Any]:
    """Milliseconds that the loop waits for a checkpoint, those until it is written, and the bytes of its files."""
    model = make_model(SIZE, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    train_step(model, optimizer, [make_pack(((2, 8),), SIZE)], StepSettings(2, torch.ones(1)))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for background in (True, False):
            saver = Saver(Path(folder), ProcessGroup(CPU), False, Checkpoints(1, "", background))
            stall, whole = [], []
            for step in range(1, rounds + 1):
                began = time.perf_counter()
                saver.save(step, Trained(model, optimizer), {"datasets": {}, "frames": 8, "steps": rounds}, {})
                stall.append(time.perf_counter() - began)
                saver.wait()
                whole.append(time.perf_counter() - began)
            name = "in the background" if background else "at once"
            results[name] = {"stall_ms": 1e3 * statistics.median(stall), "written_ms": 1e3 * statistics.median(whole)}
        results["bytes"] = sum(
            file.stat().st_size for file in Path(folder).rglob("*") if file.is_file() and not file.is_symlink()
        )
    return results


# --- growth -----------------------------------------------------------------------------------------------------------


def measure_growth(rounds: int) -> dict[str, Any]:
    """The milliseconds of a step for each row, and its time divided by the time of the first row of its kind."""
    kinds: dict[str, dict[str, Callable[[], Work]]] = {
        "frames of a clip": {
            str(n): lambda n=n: step_of(make_model(SIZE, n), make_pack(((4, n),), SIZE)) for n in (4, 8, 16, 32)
        },
        "size, pixels": {str(n): lambda n=n: step_of(make_model(n, 8), make_pack(((4, 8),), n)) for n in (32, 64, 96)},
        "images beside 4 clips of 8": {
            str(n): lambda n=n: step_of(make_model(SIZE, 8), make_pack(((4, 8), (n, 1)), SIZE)) for n in (8, 16, 32, 64)
        },
        "data sets of 100 classes, 24 clips of 8": {
            str(n): lambda n=n: step_of(make_model(SIZE, 8, n), make_pack(((24, 8),), SIZE, n), heads=n)
            for n in (1, 4, 8, 24)
        },
    }
    results = {}
    for kind, rows in kinds.items():
        works = {name: make() for name, make in rows.items()}
        seconds = in_turns(works, rounds, CPU)
        first = next(iter(rows))
        results[kind] = {
            name: {"milliseconds": 1e3 * statistics.median(times), "times": ratio(seconds, name, first)}
            for name, times in seconds.items()
        }
    return results


# --- the report -------------------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> None:
    """Print the results as tables."""
    if "ranks" in results:
        table = results["ranks"].items()
        rows = [[name, f"{row['milliseconds']:.0f}", f"{row['efficiency']:.2f}"] for name, row in table]
        show(f"{PRESET}, {SIZE} px, 8 clips of 8 + 16 images, two cores", ["row", "ms", "efficiency"], rows)
        print(f"\nmessages are {results['ranks']['two processes, ddp']['messages']:.0%} of a step with DDP")
    if "checkpoint" in results:
        table = [(name, row) for name, row in results["checkpoint"].items() if name != "bytes"]
        rows = [[name, f"{row['stall_ms']:.0f}", f"{row['written_ms']:.0f}"] for name, row in table]
        title = f"a checkpoint of {results['checkpoint']['bytes'] / 1e6:.0f} MB"
        show(title, ["written", "ms of waiting", "ms until written"], rows)
    for kind, by_count in results.get("growth", {}).items():
        first, rows = next(iter(by_count)), []
        for count, row in by_count.items():
            more = f"{int(count) / int(first):.0f}"
            rows.append([count, f"{row['milliseconds']:.0f}", f"{row['times']:.2f}", more])
        show(f"a step by {kind}", [kind, "ms", "times the first", "times as many"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=["ranks", "checkpoint", "growth"], help="parts (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return measure_rank(args.rounds)
    torch.set_num_threads(1)
    reuse_memory()
    parts = {"ranks": measure_ranks, "checkpoint": measure_checkpoint, "growth": measure_growth}
    results = {name: measure(args.rounds) for name, measure in parts.items() if not args.only or name in args.only}
    report(results)
    write({**where(CPU), **results}, args.json)
    return None


if __name__ == "__main__":
    main()
