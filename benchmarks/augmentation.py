"""Cost of augmentation on the device, compared with its training step.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --device cuda --clips 32 --size 224

In turns it measures a step of S/16 without augmentation, and the processing of pixels before the model: without
augmentation, with each transform, and with all. The reading processes draw the parameters, so this is not measured.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import Work, in_turns, show, where

from cover.machine import reuse_memory
from cover.mixture.pack import Pack, augment_uint8
from cover.mixture.schedule import Draw, Pairing
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.training.step import StepSettings, train_step
from cover.transforms.base import Transform
from cover.transforms.colour import ColourJitter
from cover.transforms.erasing import RandomErasing
from cover.transforms.mixup import Mixup
from cover.transforms.randaugment import RandAugment

CLASSES = 174
PLAIN = "without"


def make_packs(clips: int, frames: int, size: int, device: torch.device) -> dict[str, Pack]:
    """The same noise with each transform, and with all of them."""
    rng = np.random.default_rng(0)
    plain = Pack(
        frames=torch.randint(0, 256, (clips * frames, 3, size, size), dtype=torch.uint8),
        groups=((clips, frames),),
        dataset=torch.zeros(clips, dtype=torch.long),
        targets=torch.randint(0, CLASSES, (clips, 1)),
        weight=torch.ones(clips),
        seed=torch.arange(clips),
        drawn={ColourJitter: torch.eye(3, 4).expand(clips, 3, 4).contiguous()},
    )
    draws = [Draw("a", number, 0, number) for number in range(clips)]
    mix = Pairing({"a": "a"}, Mixup(0.8, 1.0)).mix([draws], size)

    def drawn(transform: Transform) -> dict[type[Transform], Any]:
        return {type(transform): [transform.draw(rng, size) for _ in range(clips)]}

    some, every = (drawn(RandAugment.parse(spec)) for spec in ("m7-n4", "m7-n4-p1"))
    erasing = drawn(RandomErasing(0.25))
    erasing[RandomErasing] = torch.stack(erasing[RandomErasing])
    packs = {
        PLAIN: plain,
        "RandAugment m7-n4": replace(plain, drawn={**plain.drawn, **some}),
        "RandAugment m7-n4-p1": replace(plain, drawn={**plain.drawn, **every}),
        "erasing 0.25": replace(plain, drawn={**plain.drawn, **erasing}),
        "mixup and cutmix": replace(plain, mix=mix),
        "all, with m7-n4": replace(plain, drawn={**plain.drawn, **some, **erasing}, mix=mix),
    }
    return {name: pack.to(device) for name, pack in packs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    reuse_memory()
    model = CoVeR(named_config("S/16", size=args.size), (Head("a", ("",) * CLASSES),)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    settings = StepSettings(args.clips, torch.ones(1, device=device), bf16=device.type == "cuda")

    def pixels(pack: Pack) -> Work:
        return lambda: prepare(model, augment_uint8(pack))

    packs = make_packs(args.clips, args.frames, args.size, device)
    tasks = {
        "step": lambda: train_step(model, optimizer, [packs[PLAIN]], settings),
        **{name: pixels(pack) for name, pack in packs.items()},
    }
    seconds = in_turns(tasks, args.rounds, device)
    rows = []
    for name in packs:
        rounds = zip(seconds[name], seconds[PLAIN], seconds["step"], strict=True)
        added = [(own - plain) / step for own, plain, step in rounds]
        rows.append([name, f"{1e3 * statistics.median(seconds[name]):.1f}", f"{100 * statistics.median(added):.1f} %"])
    rows.append(["the step", f"{1e3 * statistics.median(seconds['step']):.0f}", ""])
    machine = f"{where(device)['device']}, {torch.get_num_threads()} threads"
    title = f"S/16, {args.clips} clips of {args.frames} x {args.size}, {machine}"
    show(title, ["augmentation", "ms", "added, fraction of a step"], rows)


@torch.no_grad()
def prepare(model: CoVeR, pack: Pack) -> None:
    """The processing of pixels in a step before the model."""
    frames = pack.pixels(model.normalize)
    if pack.mix is not None:
        Mixup.apply(frames, pack.mix, pack.weight, pack.groups)


if __name__ == "__main__":
    main()
