"""What does augmentation on the device cost, beside the training step that it belongs to?

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --device cuda --clips 32 --size 224

By turns: a step of S/16 without augmentation, and all that is done to pixels before the model sees them, without, with
each part and with all. Drawing the parameters is the readers' work and not in it.
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
    """The same noise with each part of the augmentation, and with all."""
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
        more = [
            (mine - plain) / step
            for mine, plain, step in zip(seconds[name], seconds[PLAIN], seconds["step"], strict=True)
        ]
        rows.append([name, f"{1e3 * statistics.median(seconds[name]):.1f}", f"{100 * statistics.median(more):.1f} %"])
    rows.append(["the step", f"{1e3 * statistics.median(seconds['step']):.0f}", ""])
    title = f"S/16, {args.clips} clips of {args.frames} x {args.size}, {where(device)['device']}, {torch.get_num_threads()} threads"
    show(title, ["what is done to pixels", "ms", "more than without, of a step"], rows)


@torch.no_grad()
def prepare(model: CoVeR, pack: Pack) -> None:
    """What a step does to pixels before the model sees them."""
    frames = pack.pixels(model.normalize)
    if pack.mix is not None:
        Mixup.apply(frames, pack.mix, pack.weight, pack.groups)


if __name__ == "__main__":
    main()
