"""The ten ratios of speed that matter, compared with those in `regress.json`; under 5 minutes on a quiet machine.

    python benchmarks/regress.py                 # the table; exit code 1 if a ratio is more than a fifth below its own
    python benchmarks/regress.py --only decode views
    python benchmarks/regress.py --update        # write the ratios of this machine into regress.json

A ratio says how many times as fast ours is as something else in the same process, in turns. It moves less from machine
to machine than a time does. Run it before and after a change of a hot path.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _clips import KINDS, make_clip
from _measure import in_turns, ratio, show, where
from attention import over_time, over_time_by_products
from loading import SAMPLINGS, Clips, by_cover, by_pyav, by_turns
from loading import ratio as cpu_ratio
from tokens import Row, half_moving

from cover.inference.predictor import Predictor
from cover.machine import reuse_memory
from cover.model.backbones import named_config
from cover.model.backbones.vit import vit_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release
from cover.training.step import StepSettings
from model import OURS, PACKED, WORKLOADS, networks
from model import Contender as Step

KEPT = Path(__file__).with_suffix(".json")
SLOWER = 0.8  # of the kept ratio; less is a regression
CPU = torch.device("cpu")
ROUNDS = 5
Work = Callable[[], object]


def times_as_fast(ours: Work, other: Work, rounds: int = ROUNDS) -> float:
    """The time of `other` divided by that of `ours`."""
    return ratio(in_turns({"ours": ours, "other": other}, rounds, CPU), "other", "ours")


# --- the model --------------------------------------------------------------------------------------------------------


def steps(workload: str, name: str) -> Step:
    """A row of `model.py`."""
    build, packs = networks(WORKLOADS[workload], CPU)[name]
    return Step(build(), packs, StepSettings(sum(len(pack.seed) for pack in packs), torch.ones(1)))


def forward() -> float:
    return times_as_fast(steps("small", OURS).forward, steps("small", "plain, fused attention").forward)


def step() -> float:
    return times_as_fast(steps("small", OURS).train, steps("small", "plain, fused attention").train, 3)


def mixed_step() -> float:
    other = steps("mixed", "plain, fused attention, two passes")
    return times_as_fast(steps("mixed", PACKED).train, other.train, 3)


def temporal_attention() -> float:
    qkv, heads = torch.randn(3, 8, 8, 50, 192, requires_grad=True), 3
    ones = torch.ones_like(over_time(qkv, heads))
    both = [lambda f=f: torch.autograd.grad(f(qkv, heads), qkv, ones) for f in (over_time, over_time_by_products)]
    return times_as_fast(*both, rounds=21)


def tubes() -> float:
    pixels, config = half_moving(4), named_config("Ti/16", size=112, frames=8)
    return times_as_fast(Row(config, pixels, 0.5).train, Row(config, pixels).train)


def static_patches() -> float:
    pixels, shape = half_moving(4), {"attention": "joint", "time": "additive", "size": 112, "frames": 8}
    static = Row(vit_config("vit_s16", static_patches=0.0, **shape), pixels)
    return times_as_fast(static.forward, Row(vit_config("vit_s16", **shape), pixels).forward)


# --- reading ----------------------------------------------------------------------------------------------------------


def clips_of(folder: Path, kind: str) -> Clips:
    files = [make_clip(folder / f"{number}{KINDS[kind].ending}", KINDS[kind], number) for number in range(3)]
    return Clips(files, SAMPLINGS["dense"])


def decode() -> float:
    with tempfile.TemporaryDirectory() as name:
        clips = clips_of(Path(name), "320x240 h264")
        spent = by_turns({"ours": clips.decode(by_cover), "other": clips.decode(by_pyav)}, ROUNDS, 3)
    return cpu_ratio(spent, "other", "ours")


def views() -> float:
    with tempfile.TemporaryDirectory() as name:
        clips = clips_of(Path(name), "VP9 webm")
        spent = by_turns({"ours": clips.views, "other": clips.every_packet}, ROUNDS, 3)
    return cpu_ratio(spent, "other", "ours")


# --- engines ----------------------------------------------------------------------------------------------------------


def engine(kind: Any) -> float:
    """One clip of 8 x 112 through S/16."""
    clip = [np.random.default_rng(0).integers(0, 256, (1, 8, 3, 112, 112), dtype=np.uint8)]
    with tempfile.TemporaryDirectory() as name:
        model = CoVeR(named_config("S/16", size=112, frames=8), (Head("classes", tuple(map(str, range(400)))),))
        save_release(Path(name), model, {"step": 0, "frames": 8, "datasets": {}})
        other, ours = Predictor.load(name), Predictor.load(name, engine=kind)
        return times_as_fast(lambda: ours.run(clip), lambda: other.run(clip))


RATIOS: dict[str, tuple[str, Callable[[], float]]] = {
    "forward": ("forward pass, width 192, to a plain network with fused attention", forward),
    "step": ("training step, the same", step),
    "mixed_step": ("training step of clips and images, to two passes of the plain one", mixed_step),
    "temporal_attention": ("temporal attention with gradient, to matrix products", temporal_attention),
    "tubes": ("training step with half of the places, to all", tubes),
    "static_patches": ("forward pass of half-still clips, joint attention, to all patches", static_patches),
    "decode": ("16 of 300 frames of h264, to PyAV", decode),
    "views": ("30 views of a VP9 file, to decoding it", views),
    "onnx": ("S/16 in onnxruntime, to eager", lambda: engine("onnx")),
    "onnx_int8": ("S/16 in onnxruntime with 8 bits, to eager", lambda: engine("onnx-int8")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RATIOS), default=list(RATIOS), metavar="RATIO")
    parser.add_argument("--update", action="store_true", help="write the measured ratios into regress.json")
    args = parser.parse_args()
    reuse_memory()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    began, rows, slower = time.monotonic(), [], []
    for name in args.only:
        title, measure = RATIOS[name]
        value, before = measure(), kept.get(name)
        print(f"{name}: {value:.2f}", file=sys.stderr, flush=True)
        if before and value < SLOWER * before:
            slower.append(name)
        rows.append(
            [name, title, f"{value:.2f}", f"{before:.2f}" if before else "", "slower" if name in slower else ""]
        )
        kept |= {name: round(value, 2)} if args.update else {}
    machine = where(CPU)
    title = f"{machine['date']}, {machine['threads']} threads, torch {machine['torch']}"
    show(f"{title}, {time.monotonic() - began:.0f} s", ["ratio", "", "now", "kept", ""], rows)
    if args.update:
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    elif slower:
        sys.exit(f"slower than kept: {', '.join(slower)}; measure again on a quiet machine, then look at the change")


if __name__ == "__main__":
    main()
