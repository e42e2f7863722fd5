"""Tokens that are not computed: their number in real clips, and the time of a forward pass and a training step.

    python benchmarks/tokens.py                             # generated clips, half of whose picture moves
    python benchmarks/tokens.py --data DIR                  # utinteraction6 and tennis7 in DIR (_real_sets.py)
    python benchmarks/tokens.py --data DIR --sets tennis7 --clips 4 --thresholds 0.02 0.05 --rounds 5

Every row is one network, with random weights, on the same clips. Rows take turns, round by round, and a ratio is the
median of the ratios within a round, to the row above of the same network that computes all tokens. What it does to the
accuracy is measured by `benchmarks/learning.py --plan factors`.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import in_turns, ratio, show, where, write

from cover.evaluation.protocol import ViewPlan, read_views
from cover.inference.engines import moving_textures
from cover.machine import reuse_memory
from cover.media.decode import probe
from cover.media.sampling import Sampling, Views
from cover.model.backbones import named_config
from cover.model.backbones.vit import vit_config
from cover.model.cover import CoVeR
from cover.training.step import retained_tubes

FRAMES, SIZE, PLACES = 8, 112, 49
CPU = torch.device("cpu")


def clips_of(folder: Path, count: int) -> Tensor:
    """The middle clips of the first `count` test videos of a set, uint8 `(count, FRAMES, 3, SIZE, SIZE)`."""
    with (folder / "index.csv").open(encoding="utf-8") as file:
        paths = [folder / row["path"] for row in csv.DictReader(file) if row["split"] == "test"]
    plan = ViewPlan(Sampling("whole"), Views(1, 1), FRAMES, SIZE)
    step = max(1, len(paths) // count)
    chosen = [str(path) for path in paths[::step][:count]]
    found = [read_views(path, "video", [plan], probe(path).duration) for path in chosen]
    return torch.cat([torch.from_numpy(clips[0]) for clips, _ in found])


def half_moving(count: int) -> Tensor:
    """Generated clips whose left half does not change, uint8 `(count, FRAMES, 3, SIZE, SIZE)`."""
    clips = moving_textures(count, FRAMES, SIZE)
    clips[..., : SIZE // 2] = clips[:, :1, ..., : SIZE // 2]
    return clips


class Row:
    """A network on one batch. `tubes`: fraction of the places that a training step leaves out."""

    def __init__(self, config: Any, pixels: Tensor, tubes: float = 0.0) -> None:
        torch.manual_seed(0)
        self.model = CoVeR(config).train()
        self.frames = self.model.normalize(pixels.flatten(0, 1))
        self.groups = ((len(pixels), FRAMES),)
        chosen = retained_tubes(torch.arange(len(pixels)), PLACES, tubes)
        self.options = {} if chosen is None else {"tubes": chosen}

    def forward(self) -> None:
        with torch.inference_mode():
            self.model.forward_features(self.frames, self.groups)

    def train(self) -> None:
        features = self.model.forward_features(self.frames, self.groups, **self.options)
        features.square().sum().backward()

    def tokens(self) -> int:
        """The tokens of a training step behind the embedding."""
        noted: dict[str, Tensor] = {}
        with torch.no_grad():
            self.model.backbone(self.frames, self.groups, None, noted, **self.options)
        return noted["embedded"][..., 0].numel()


def rows_of(pixels: Tensor, thresholds: Sequence[float]) -> Iterator[tuple[str, str, Row]]:
    """Name, network and row; the first row of a network computes all tokens."""
    shape = {"size": SIZE, "frames": FRAMES}
    yield "TimeSformer, all", "TimeSformer", Row(named_config("S/16", **shape), pixels)
    yield "TimeSformer, half of the places", "TimeSformer", Row(named_config("S/16", **shape), pixels, 0.5)
    for kind, time in (("joint", "additive"), ("space", "none")):
        yield f"{kind}, all", kind, Row(vit_config("vit_s16", attention=kind, time=time, **shape), pixels)
        for limit in thresholds:
            config = vit_config("vit_s16", attention=kind, time=time, static_patches=limit, **shape)
            yield f"{kind}, static patches {limit:g}", kind, Row(config, pixels)


def measure(name: str, pixels: Tensor, thresholds: Sequence[float], rounds: int) -> list[dict[str, Any]]:
    """Tokens and times of all rows on the clips of a set."""
    rows = list(rows_of(pixels, thresholds))
    base = {network: row for row, network, _ in reversed(rows)}
    works: dict[str, Callable[[], None]] = {}
    for row, _, contender in rows:
        works |= {f"{row} forward": contender.forward, f"{row} train": contender.train}
    seconds = in_turns(works, rounds, CPU)
    tokens = {row: contender.tokens() for row, _, contender in rows}
    return [
        {
            "set": name,
            "row": row,
            "tokens": tokens[row] / tokens[base[network]],
            "forward": 1 / ratio(seconds, f"{row} forward", f"{base[network]} forward"),
            "train": 1 / ratio(seconds, f"{row} train", f"{base[network]} train"),
        }
        for row, network, _ in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the real sets (default: generated clips)")
    parser.add_argument("--sets", nargs="+", default=["utinteraction6", "tennis7"])
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.02, 0.05])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    reuse_memory()
    metadata, results = where(CPU), []
    for name in args.sets if args.data else ["generated"]:
        pixels = clips_of(args.data / name, args.clips) if args.data else half_moving(args.clips)
        results += measure(name, pixels, args.thresholds, args.rounds)
    cells = [
        [row["set"], row["row"], f"{row['tokens']:.0%}", f"{row['forward']:.2f}", f"{row['train']:.2f}"]
        for row in results
    ]
    title = f"{metadata['date']}, {metadata['threads']} threads, {args.clips} clips of {FRAMES} x {SIZE} px"
    show(title, ["set", "network", "tokens", "forward, times as fast", "training step, times as fast"], cells)
    write({**metadata, "rows": results}, args.json)


if __name__ == "__main__":
    main()
