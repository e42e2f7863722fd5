"""A training step with its first stages frozen: with and without the cache of their outputs.

    python benchmarks/caching.py
    python benchmarks/caching.py --preset S/16 --size 112 --frozen 11 --clips 4 --rounds 3

All read the same samples of the sandbox, with RandAugment, in turns in one process, and take the same steps. A time is
the median over rounds, of the processor time of reading and step together. The files of the cache are in memory after
they are computed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import show

from cover.datasets.index import index
from cover.machine import reuse_memory
from cover.mixture.loader import packs
from cover.mixture.mixture import Mixture
from cover.mixture.pack import Pack, augment_uint8
from cover.mixture.prefix_cache import PrefixCache
from cover.mixture.rates import Data
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.synthetic.generate import generate
from cover.synthetic.settings import Settings
from cover.training.step import StepSettings, train_step
from cover.transforms.colour import ColourJitter
from cover.transforms.randaugment import RandAugment

WITHOUT, SINGLE, HALF = "without", "float32", "float16"


def frozen_model(preset: str, size: int, mixture: Mixture, frozen: int) -> CoVeR:
    """A network whose embedding and first `frozen` stages are not trained."""
    torch.manual_seed(0)
    model = CoVeR(named_config(preset, size=size, frames=mixture.data.frames), mixture.heads)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(model.backbone.layer_of(name) > frozen)
    return model.train()


class Training:
    """Steps of one network, and the losses of its steps."""

    def __init__(self, model: CoVeR, batch: int, sets: int, source: Iterator[Pack]) -> None:
        self.model, self.source, self.losses = model, source, list[float]()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        self.settings = StepSettings(batch, torch.ones(sets))

    def step(self) -> None:
        pack = augment_uint8(next(self.source))
        self.losses.append(float(train_step(self.model, self.optimizer, [pack], self.settings).loss))


def measure(args: argparse.Namespace, folder: Path) -> list[list[str]]:
    """A row for each way: bytes of a clip, seconds to compute all, time of a step, and the largest loss difference."""
    catalog = generate(folder, Settings(size=args.data), workers=0)
    index(catalog, workers=0)
    mixture = Mixture.open(
        Data(["ssv2", "imagenet"], str(catalog), frames=args.frames, weights={"ssv2": 3, "imagenet": 1})
    )
    schedule = mixture.schedule(args.clips * 4 // 3, views=1)
    reader = mixture.reader(args.size, [ColourJitter(0.2), RandAugment.parse("m7-n2")])
    ways: dict[str, Training] = {}
    facts: dict[str, tuple[str, str]] = {}
    for way in (WITHOUT, SINGLE, HALF):
        model = frozen_model(args.preset, args.size, mixture, args.frozen)
        source, facts[way] = reader, ("", "")
        if way != WITHOUT:
            cache = PrefixCache(model, args.frozen, dtype=way, folder=folder / way)  # type: ignore[arg-type]
            source = cache.training_reader(model, schedule, reader, args.rounds, workers=0)
            clips = cache.reports[0]
            facts[way] = (f"{clips.bytes_each / 1e3:.1f} kB", f"{sum(each.seconds for each in cache.reports):.1f}")
        batches = packs(schedule, source, 0, args.rounds, workers=0)
        ways[way] = Training(model, schedule.batch, len(mixture.datasets), batches)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, training in ways.items():
            before = time.process_time()
            training.step()
            seconds[way].append(time.process_time() - before)
    rows = []
    for way, training in ways.items():
        ratio = statistics.median(own / plain for own, plain in zip(seconds[way], seconds[WITHOUT], strict=True))
        apart = max(abs(own - plain) for own, plain in zip(training.losses, ways[WITHOUT].losses, strict=True))
        median = f"{1e3 * statistics.median(seconds[way]):.0f}"
        rows.append([way, *facts[way], median, f"{1 / ratio:.1f}", f"{apart:.1e}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--frozen", type=int, default=3, help="number of frozen stages")
    parser.add_argument("--clips", type=int, default=12, help="clips of a step; a third as many images")
    parser.add_argument("--data", type=float, default=0.02, help="size of the sandbox")
    parser.add_argument("--rounds", type=int, default=10, help="steps of each way")
    args = parser.parse_args()
    reuse_memory()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(args, Path(folder))
    title = f"{args.preset}, {args.size} px, {args.frozen} frozen stages, {args.clips} clips of {args.frames}"
    columns = ["cache", "a clip", "s to compute", "processor ms of a step", "times as fast", "loss differs by"]
    show(f"{title}, {torch.get_num_threads()} threads", columns, rows)


if __name__ == "__main__":
    main()
