"""Overhead of a run: the loop of `cover train` compared with the bare training step on the same Packs, in turns.

    python benchmarks/overhead.py                      # S/16, clips of 8 x 112 and images, on generated files
    python benchmarks/overhead.py --steps 20 --json overhead.json

At each step of a real run, the bare step (forward, backward, gradient clipping, optimizer; no tally, no checks) runs
too, on a copy of the model, in turn before or after the step of the run. The overhead is the rest of the time that the
run's clock counts as compute: logs, checks, augmentation, averaged weights. It does not include reading, evaluation and
checkpoints. The schedule and the collation of samples, which workers do, are timed separately and added.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _measure import show, where, write

import cover.training.train as loop
from cover.datasets.index import index
from cover.hardware import pick_device
from cover.machine import reuse_memory
from cover.mixture.mixture import Mixture
from cover.mixture.pack import collate
from cover.model.backbones.timesformer import TimeSformerOptions
from cover.synthetic.generate import generate
from cover.synthetic.settings import Settings
from cover.training.guards import FiniteCheck, ReadingCheck
from cover.training.logging import RunLog
from cover.training.optim import Ema, build_optimizer
from cover.training.recipe import Data, Recipe

SETS = ["kinetics", "ssv2", "moments", "imagenet"]
PIECES: dict[str, tuple[tuple[Any, str], ...]] = {
    "log": ((RunLog, "window"), (RunLog, "note"), (RunLog, "advance")),
    "averaged weights": ((Ema, "update"),),
    "checks": ((FiniteCheck, "after"), (FiniteCheck, "settle"), (ReadingCheck, "note"), (ReadingCheck, "judge")),
    "augmentation on the device": ((loop, "augment_uint8"),),
    "micro-batches": ((loop, "split_pack"),),
    "learning rate": ((loop, "set_learning_rate"), (loop, "seed_dropout")),
}


class Turns:
    """Replaces the training step of the loop: runs it and the bare step, and records the seconds of both."""

    def __init__(self, recipe: Recipe, pieces: dict[str, list[float]]) -> None:
        self.recipe, self.pieces, self.real_step = recipe, pieces, loop.train_step
        self.seconds: dict[str, list[float]] = {"run": [], "bare": []}

    def __call__(self, model: Any, optimizer: Any, micro_batches: Sequence[Any], settings: Any, *rest: Any) -> Any:
        if not self.seconds["run"]:
            self.twin = copy.deepcopy(model)
            self.twin_optimizer = build_optimizer(self.twin, self.recipe.optimizer)
        # The first window does not count, because it uses memory for the first time.
        if len(self.seconds["run"]) == self.recipe.log_every:
            for seconds in self.pieces.values():
                seconds.clear()
        for own, value in zip(self.twin_optimizer.param_groups, optimizer.param_groups, strict=True):
            own["lr"] = value["lr"]
        works: dict[str, Callable[[], Any]] = {
            "bare": lambda: self.real_step(self.twin, self.twin_optimizer, micro_batches, settings),
            "run": lambda: self.real_step(model, optimizer, micro_batches, settings, *rest),
        }
        order = sorted(works, reverse=len(self.seconds["run"]) % 2 == 0)
        return {name: timed(works[name], self.seconds[name]) for name in order}["run"]


def timed(work: Callable[[], Any], into: list[float]) -> Any:
    """The result of `work`; its seconds are appended to `into`."""
    began = time.perf_counter()
    try:
        return work()
    finally:
        into.append(time.perf_counter() - began)


def watch(pieces: dict[str, list[float]]) -> None:
    """Replace every function of `PIECES` by one that records its seconds in `pieces`."""
    for title, places in PIECES.items():
        for owner, name in places:
            setattr(owner, name, recording(getattr(owner, name), pieces[title]))


def recording(function: Callable[..., Any], into: list[float]) -> Callable[..., Any]:
    """A function that calls `function` and records its seconds."""
    return lambda *arguments, **options: timed(lambda: function(*arguments, **options), into)


def compute_seconds(run: Path, after: int) -> float:
    """The seconds that the run's clock counted as compute in the windows after step `after`."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    windows = [line for line in lines if line["event"] == "train"]
    pairs = [(before, line) for before, line in pairwise(windows) if before["step"] >= after]
    return sum(line["shares"]["compute"] * (line["seconds"] - before["seconds"]) for before, line in pairs)


def mixture_seconds(recipe: Recipe, steps: int) -> tuple[float, float]:
    """The median seconds of a step for the draws of the schedule, and for the collation of samples in memory."""
    mixture = Mixture.open(recipe.data)
    schedule, reader = loop.make_schedule(recipe, mixture), loop.make_reader(recipe, mixture)
    draws: list[float] = []
    collates: list[float] = []
    for step in range(steps):
        groups = timed(lambda step=step: schedule.rank_step(step, 0, 1), draws)
        samples = [reader.read_all(group) for group in groups]
        timed(lambda samples=samples: collate(samples), collates)
    return statistics.median(draws), statistics.median(collates)


def measure(recipe: Recipe) -> dict[str, Any]:
    """Milliseconds of a bare step, and of everything that the run adds."""
    pieces: dict[str, list[float]] = defaultdict(list)
    watch(pieces)
    window = recipe.log_every
    loop.train_step = turns = Turns(recipe, pieces)  # type: ignore[assignment]
    run = loop.train(recipe)
    bare, own = (turns.seconds[name][window:] for name in ("bare", "run"))
    steps = len(bare)
    beside = compute_seconds(run, window) - sum(bare) - sum(own)
    schedule, collating = mixture_seconds(recipe, steps)
    added = {title: sum(seconds) / steps for title, seconds in pieces.items()}
    added |= {"schedule": schedule, "collate": collating}
    mean = sum(bare) / steps
    return {
        "steps": steps,
        "bare_ms": 1000 * mean,
        "beside_ms": 1000 * (beside / steps + schedule + collating),
        "step_in_run": statistics.median(b / a for a, b in zip(bare, own, strict=True)),
        "overhead": (beside / steps + schedule + collating) / mean,
        "pieces_ms": {title: 1000 * s for title, s in added.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--window", type=int, default=4, help="steps per line of the log; the first does not count")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ema", type=float, default=0.999, help="decay of averaged weights; 0 for none")
    parser.add_argument("--tensorboard", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    reuse_memory()
    with TemporaryDirectory() as folder:
        catalog = generate(Path(folder), Settings(size=0.02), workers=0)
        index(catalog, 0)
        data, model = Data(SETS, str(catalog), frames=8), TimeSformerOptions(preset="S/16", size=112)
        settings = {"workers": 0, "device": args.device, "log_every": args.window, "evaluate_every": -1}
        recipe = Recipe(data, str(Path(folder) / "run"), args.steps, args.batch, model, ema=args.ema, **settings)
        results = {**measure(recipe), "where": where(pick_device(args.device))}
    bare = results["bare_ms"]
    rows = [[title, f"{value:.2f}", f"{value / bare:.2%}"] for title, value in results["pieces_ms"].items()]
    rows.sort(key=lambda row: -float(row[1]))
    total = ["all beside the step", f"{results['beside_ms']:.2f}", f"{results['overhead']:.2%}"]
    title = f"S/16, 8 x 112, batch {args.batch}: bare step {bare:.0f} ms"
    show(title, ["", "ms a step", "of the bare step"], [*rows, total])
    print(
        f"\nthe step of the run takes {results['step_in_run']:.3f} times the bare step, over {results['steps']} steps"
    )
    print(results["where"])
    write(results, args.json)


if __name__ == "__main__":
    main()
