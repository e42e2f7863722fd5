"""The training step beside other work: steps a second with k busy neighbours, for each way in which threads wait.

    python benchmarks/shared_machine.py                # k = 0, 1, 2, 4; about 6 minutes
    python benchmarks/shared_machine.py --neighbours 0 1 --seconds 6 --rounds 3

The threads of an operation wait for each other at its end. If they spin, a thread that waits for its time slice holds
the others and their cores. Every way is an environment of its own process, because the library reads it when it is
loaded. Processes take turns, so that all ways see the same machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# cover sets how threads wait, unless torch, which `_measure` imports, is there already.
if not os.environ.get("COVER_AS_TORCH"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
    importlib.import_module("cover")

from _measure import show, write

DEFAULT = "default of cover"
WAYS: dict[str, dict[str, str]] = {
    "default of torch": {"COVER_AS_TORCH": "1"},
    DEFAULT: {},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
OURS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")  # variables that a way may set
CLIPS, FRAMES, SIZE = 16, 8, 32
NEIGHBOUR = "while True: pass"


def child(seconds: float) -> None:
    """Train `mini` on random pixels for some seconds, and print the steps a second."""
    import torch

    from cover.machine import reuse_memory
    from cover.model.backbones import named_config
    from cover.model.cover import CoVeR
    from cover.model.heads import Head
    from cover.planning.timing import random_pack
    from cover.training.step import StepSettings
    from model import CLASSES, HEAD, Contender, randomised

    reuse_memory()
    device = torch.device("cpu")
    config = named_config("mini", size=SIZE, frames=FRAMES)
    network = randomised(CoVeR(config, (Head(HEAD, tuple(map(str, range(CLASSES)))),)))
    pack = random_pack(((CLIPS, FRAMES),), SIZE, CLASSES, device)
    row = Contender(network, [pack], StepSettings(CLIPS, torch.ones(1)))
    for _ in range(3):
        row.train()
    steps, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        row.train()
        steps += 1
    print(json.dumps({"steps": steps / spent, "threads": torch.get_num_threads()}))


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """A context in which `count` other processes are busy."""
    busy = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def steps_a_second(way: str, seconds: float) -> float:
    """The steps a second of one process with the environment of a way."""
    # The parent's own cover has set variables of OURS too.
    environment = {name: value for name, value in os.environ.items() if name not in OURS} | WAYS[way]
    command = [sys.executable, __file__, "--child", str(seconds)]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return float(json.loads(printed)["steps"])


def measure(counts: Sequence[int], seconds: float, rounds: int) -> dict[str, dict[int, list[float]]]:
    """Way -> neighbours -> the steps a second of each round."""
    results: dict[str, dict[int, list[float]]] = {way: {count: [] for count in counts} for way in WAYS}
    for _ in range(rounds):
        for count in counts:
            with neighbours(count):
                for way in WAYS:
                    results[way][count].append(steps_a_second(way, seconds))
    return results


def table(results: dict[str, dict[int, list[float]]], counts: Sequence[int]) -> list[list[str]]:
    """Rows of steps a second, medians over rounds, with the fraction of the quiet rate of torch's own default."""
    quiet = statistics.median(results["default of torch"][counts[0]])
    rows = []
    for way, by_count in results.items():
        rates = [statistics.median(by_count[count]) for count in counts]
        rows.append([way, *(f"{rate:.1f} ({rate / quiet:.0%})" for rate in rates)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neighbours", nargs="*", type=int, default=[0, 1, 2, 4], metavar="K")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.child:
        return child(args.child)
    counts: list[int] = args.neighbours
    results: dict[str, Any] = measure(counts, args.seconds, args.rounds)
    titles = [f"{count} busy neighbours" if count != 1 else "1 busy neighbour" for count in counts]
    show(f"training steps a second, {os.cpu_count()} cores", ["way to wait", *titles], table(results, counts))
    return write(results, args.json)


if __name__ == "__main__":
    main()
