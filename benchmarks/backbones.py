"""A mixed step of every family of networks beside two passes, and a video as a stream.

    python benchmarks/backbones.py                        # every family at its small size
    python benchmarks/backbones.py --quick                # one round of small Packs, to see that it runs
    python benchmarks/backbones.py --only vit_divided movinet_a0 --rounds 15 --json backbones.json
    python benchmarks/backbones.py --device cuda --full   # at published sizes

A mixed step is the forward and backward pass of one Pack of clips and images. Its alternatives are two passes of the
same network with the same weights, the clips and then the images: both forward passes before one backward pass, or each
with its own. All take turns in one run, and the ratio is that to the faster alternative. It needs only torch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import Work, in_turns, show, where, write

from cover.machine import reuse_memory
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head

HEAD, CLASSES = "classes", 400
TOLERANCE = 1e-5  # of the largest feature: packed and alone


@dataclass(frozen=True)
class Family:
    """A network by the name and the settings of `named_config`, at a small and at a published size."""

    name: str
    size: int
    frames: int = 4
    settings: tuple[tuple[str, Any], ...] = ()
    full: str = ""  # the published network; of 8 frames, or as many as its preset has
    full_size: int = 224
    full_frames: int = 8

    def model(self, full: bool) -> CoVeR:
        """The network with random weights and one head."""
        name, size, frames = (
            (self.full, self.full_size, self.full_frames) if full else (self.name, self.size, self.frames)
        )
        config = named_config(name, size=size, frames=frames, **dict(self.settings))
        return CoVeR(config, (Head(HEAD, tuple(map(str, range(CLASSES)))),))


FAMILIES = {
    "timesformer": Family("mini", 32, full="B/16"),
    "vit_space": Family("vit_mini8", 32, settings=(("attention", "space"),), full="vit_b16"),
    "vit_divided": Family("vit_mini8", 32, settings=(("attention", "divided"),), full="vit_b16"),
    "vit_joint": Family("vit_mini8", 32, settings=(("attention", "joint"),), full="vit_b16"),
    "video_swin": Family("video_swin/mini", 32, full="video_swin/T", full_frames=32),
    "vidtr": Family("vidtr/mini", 32, full="vidtr/S"),
    "vidtr_compact": Family("vidtr/C-mini", 32, full="vidtr/C-S"),
    "movinet_a0": Family("movinet_a0", 64, full="movinet_a0", full_size=172, full_frames=16),
    "conv3d": Family("conv3d", 32, full="conv3d", full_size=112),
    "efficientnet_lite0": Family("lite0", 64, full="lite0"),
}
STREAM = "movinet_a0_stream"


def parts(x: Tensor, groups: Groups) -> list[tuple[Tensor, Groups]]:
    """Each group of a Pack as a Pack of its own."""
    sizes = [count * length for count, length in groups]
    return [(part, (group,)) for part, group in zip(x.split(sizes), groups, strict=True)]


def backward(*logits: dict[str, Tensor]) -> None:
    """A backward pass with a gradient of 1 at every logit."""
    torch.cat([scores[HEAD] for scores in logits]).sum().backward()


def steps(model: CoVeR, x: Tensor, groups: Groups) -> dict[str, Work]:
    """The packed step and both ways of two passes, all on the same weights."""
    separate = parts(x, groups)

    def packed() -> None:
        model.zero_grad(set_to_none=True)
        backward(model(x, groups))

    def one_backward() -> None:
        model.zero_grad(set_to_none=True)
        backward(*(model(part, own) for part, own in separate))

    def two_backward() -> None:
        model.zero_grad(set_to_none=True)
        for part, own in separate:
            backward(model(part, own))

    return {"packed": packed, "two passes, one backward": one_backward, "two passes, two backward": two_backward}


@torch.no_grad()
def check_same(model: CoVeR, x: Tensor, groups: Groups) -> float:
    """The largest difference of a feature, packed and alone, as a part of the largest feature.

    Raises AssertionError if it is larger than rounding errors: then the times are not of one function.
    """
    model.eval()
    packed = model.forward_features(x, groups)
    alone = torch.cat([model.forward_features(*part) for part in parts(x, groups)])
    apart = float((packed - alone).abs().max() / alone.abs().max())
    limit = TOLERANCE if x.device.type == "cpu" else 100 * TOLERANCE  # a GPU adds in another order
    assert apart <= limit, f"packed and alone differ by {apart:.1e}"
    return apart


def measure(name: str, clips: int, images: int, device: torch.device, rounds: int, full: bool) -> dict[str, Any]:
    """Milliseconds of each way, and the ratio of the packed step to the faster two passes with its quartiles."""
    torch.manual_seed(0)
    model = FAMILIES[name].model(full).to(device)
    groups, size = ((clips, model.frames), (images, 1)), model.config.size
    x = model.normalize(torch.rand(clips * model.frames + images, 3, size, size, device=device))
    apart = check_same(model, x, groups)
    model.train()
    seconds = in_turns(steps(model, x, groups), rounds, device)
    packed, *others = seconds
    best = min(others, key=lambda each: statistics.median(seconds[each]))
    ratios = sorted(ours / theirs for ours, theirs in zip(seconds[packed], seconds[best], strict=True))
    low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    return {
        "network": name,
        "groups": groups,
        "size": size,
        "milliseconds": {way: 1000 * statistics.median(times) for way, times in seconds.items()},
        "best": best,
        "ratio": statistics.median(ratios),
        "quartiles": [low, high],
        "apart": apart,
    }


def measure_stream(frames: int, size: int, device: torch.device, rounds: int) -> dict[str, float]:
    """Frames a second of MoViNet-A0 over one video: the base network on the whole, the stream network on the whole, in
    chunks of 8 frames, and frame by frame.
    """
    stream, base = (CoVeR(named_config(name, size=size, frames=frames)).to(device) for name in (STREAM, "movinet_a0"))
    stream.eval(), base.eval()
    video = stream.normalize(torch.rand(frames, 3, size, size, device=device))
    groups = ((1, frames),)

    def chunks(length: int) -> Work:
        def run() -> None:
            state = None
            for chunk in video[None].split(length, dim=1):
                _, state = stream.backbone.stream(chunk, state)  # type: ignore[operator]

        return run

    @torch.no_grad()
    def whole(model: CoVeR) -> None:
        model.forward_features(video, groups)

    tasks: dict[str, Work] = {"base, whole": lambda: whole(base), "stream, whole": lambda: whole(stream)}
    tasks |= {f"stream, chunks of {length}": chunks(length) for length in (8, 1)}
    return {name: frames / statistics.median(times) for name, times in in_turns(tasks, rounds, device).items()}


def report(rows: list[dict[str, Any]]) -> None:
    ways = list(rows[0]["milliseconds"])
    table = [
        [
            row["network"],
            *(f"{row['milliseconds'][way]:.1f}" for way in ways),
            f"{row['ratio']:.2f} ({row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f})",
        ]
        for row in rows
    ]
    show("A mixed step, ms", ["network", *ways, "packed / better two passes (quartiles)"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(FAMILIES), help="families (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--full", action="store_true", help="published sizes in place of small ones")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--quick", action="store_true", help="one round of 2 clips and 4 images, to see that it runs")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    if args.quick:
        args.clips, args.images, args.rounds = 2, 4, 1
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    reuse_memory()  # as the commands do
    rows: list[dict[str, Any]] = []
    for name in args.only or FAMILIES:
        rows.append(measure(name, args.clips, args.images, device, args.rounds, args.full))
        print(f"{name}: {rows[-1]['ratio']:.2f}", file=sys.stderr)
    report(rows)
    frames, size = (8, 64) if args.quick else (50, 172)
    speeds = measure_stream(frames, size, device, max(1, args.rounds // 3))
    title = f"MoViNet-A0, a video of {frames} frames of {size} px, frames a second"
    show(title, ["network", "frames a second"], [[name, f"{speed:.0f}"] for name, speed in speeds.items()])
    write({**where(device), "steps": rows, "stream": speeds}, args.json)


if __name__ == "__main__":
    main()
