"""What do two processes make of the cores of one, what do their messages and a checkpoint cost, and how does a step
grow with its content?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --only ranks --rounds 9 --json found.json

Everything is the step that `cover train` takes, on random pixels. `ranks`: one process with two threads, and two
processes (gloo) with one thread each, share one batch, in turns, on the same cores; what the messages cost is the same
step without them. `checkpoint`: how long the loop stands still for one, written in the background or not. `growth`: one
process, one thread; times against the first row's.
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
GROUPS = ((8, 8), (16, 1))  # of the ranks' batch: clips of eight frames, images
RANKS = 2

Groups = tuple[tuple[int, int], ...]


def make_pack(groups: Groups, size: int, heads: int = 1) -> Pack:
    """Random pixels and classes; the samples take turns with the heads."""
    output = torch.Generator().manual_seed(0)
    samples = sum(count for count, _ in groups)
    targets = torch.full((samples, heads), -1)
    targets[torch.arange(samples), torch.arange(samples) % heads] = torch.randint(
        0, CLASSES, (samples,), generator=output
    )
    return Pack(
        frames=torch.randint(
            0, 256, (sum(s * t for s, t in groups), 3, size, size), dtype=torch.uint8, generator=output
        ),
        groups=groups,
        dataset=torch.arange(samples) % heads,
        targets=targets,
        weight=torch.ones(samples),
        seed=torch.arange(samples),
    )


def make_model(size: int, frames: int, heads: int = 1) -> CoVeR:
    torch.manual_seed(0)
    named = tuple(Head(f"set{number}", tuple(map(str, range(CLASSES)))) for number in range(heads))
    return CoVeR(named_config(PRESET, size=size, frames=frames), named)


def step_of(model: CoVeR, pack: Pack, engine: LocalStep | None = None, heads: int = 1) -> Work:
    """The whole training step, again and again."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    settings = StepSettings(sum(count for count, _ in pack.groups), torch.ones(heads))
    return lambda: train_step(model, optimizer, [pack], settings, engine=engine)


# --- ranks ------------------------------------------------------------------------------------------------------------


class Silent(LocalStep):
    """An engine of several ranks that does everything but talk."""

    def __init__(self, engine: DistributedStep) -> None:
        super().__init__(engine.model)
        self.engine = engine

    def __call__(self, frames: Any, groups: Any, drop: Any) -> Any:
        return self.engine(frames, groups, drop)

    def part(self, last: bool) -> Any:
        return self.engine.part(last=False)


def measure_rank(rounds: int) -> None:
    """What each of the processes of `measure_ranks` does; rank 0 prints the seconds as JSON."""
    reuse_memory()
    with process_group(Distributed().timeout, "cpu") as group:
        alone = step_of(make_model(SIZE, 8), make_pack(GROUPS, SIZE))
        mine = make_pack(tuple((count // RANKS, frames) for count, frames in GROUPS), SIZE)
        ways: dict[str, Work] = {
            "one process, two threads": lambda: with_threads(RANKS, alone) if group.leads else None
        }
        for strategy in ("ddp", "fsdp"):
            engine = DistributedStep(make_model(SIZE, 8), group, strategy)
            ways[f"two processes, {strategy}"] = step_of(engine.model, mine, engine)
            if strategy == "ddp":
                ways["two processes, silent"] = step_of(engine.model, mine, Silent(engine))
        seconds = in_turns({name: together(work) for name, work in ways.items()}, rounds, CPU)
        if group.leads:
            print(json.dumps(seconds))


def with_threads(threads: int, work: Work) -> None:
    torch.set_num_threads(threads)
    work()
    torch.set_num_threads(1)


def together(work: Work) -> Work:
    """Begun by all ranks at once, and done when all are."""

    def all_of_it() -> None:
        dist.barrier()
        work()
        dist.barrier()

    return all_of_it


def measure_ranks(rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, and the efficiency: the time of one process over that of two, on the same cores."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, "--rank", "--rounds", str(rounds)]
    others = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    printed, *_ = [process.communicate()[0] for process in others]
    seconds = json.loads(printed)
    one = "one process, two threads"
    results = {
        name: {"milliseconds": 1e3 * statistics.median(times), "efficiency": ratio(seconds, one, name)}
        for name, times in seconds.items()
    }
    results["two processes, ddp"]["messages"] = 1 - ratio(seconds, "two processes, silent", "two processes, ddp")
    return results


# --- checkpoint -------------------------------------------------------------------------------------------------------


def measure_checkpoint(rounds: int) -> dict[str, Any]:
    """Milliseconds that the loop stands still for a checkpoint, those until it is written, and the bytes of its files."""
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
    """Per row the milliseconds of a step, and how many times the first row's of its kind it takes."""
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


# --- what is shown ----------------------------------------------------------------------------------------------------


def report(results: dict[str, Any]) -> None:
    if "ranks" in results:
        rows = [
            [name, f"{row['milliseconds']:.0f}", f"{row['efficiency']:.2f}"] for name, row in results["ranks"].items()
        ]
        show(f"{PRESET}, {SIZE} px, 8 clips of 8 + 16 images, two cores", ["row", "ms", "efficiency"], rows)
        print(f"\nmessages are {results['ranks']['two processes, ddp']['messages']:.0%} of a step under DDP")
    if "checkpoint" in results:
        rows = [
            [n, f"{r['stall_ms']:.0f}", f"{r['written_ms']:.0f}"]
            for n, r in results["checkpoint"].items()
            if n != "bytes"
        ]
        show(
            f"a checkpoint of {results['checkpoint']['bytes'] / 1e6:.0f} MB",
            ["written", "ms of standstill", "ms until written"],
            rows,
        )
    for kind, table in results.get("growth", {}).items():
        first = next(iter(table))
        rows = [
            [n, f"{r['milliseconds']:.0f}", f"{r['times']:.2f}", f"{int(n) / int(first):.0f}"] for n, r in table.items()
        ]
        show(f"a step by {kind}", [kind, "ms", "times the first", "times as many"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", choices=["ranks", "checkpoint", "growth"], help="these parts (default: all)"
    )
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
