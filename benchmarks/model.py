"""Speed of the model, compared with the matmul peak of the machine, transformers' TimeSformer and a plain TimeSformer.

    python benchmarks/model.py                               # every workload of the device
    python benchmarks/model.py --only small mixed --rounds 9 --json model.json
    python benchmarks/model.py --device cuda --only base large mixed mixed-large

It needs only torch, and transformers for its rows. The fraction of the peak counts the multiply-adds of the published
function, not additional ones of an implementation. Every row runs the training step of `cover train`: pixels normalised
on the device, cross-entropy, backward pass, gradient clipping, fused AdamW.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import Work, by_operation, in_turns, matmul, peak_bytes, ratio, show, where, write
from _peers import HEAD, PlainTimeSformer, Repeating, TransformersTimeSformer

from cover.machine import reuse_memory
from cover.mixture.pack import Pack
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.profile import forward_cost, on_meta
from cover.planning.timing import random_pack
from cover.training.step import StepSettings, train_step

CLASSES = 400
OURS, PACKED = "ours", "ours, packed"


@dataclass(frozen=True)
class Workload:
    """A model and its Pack. `groups`, `dtypes`: for each kind of device."""

    title: str
    preset: str
    size: int
    groups: dict[str, Groups]  # device -> groups
    dtypes: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"cpu": ("fp32",), "cuda": ("fp32", "bf16")})

    def config(self, **changes: Any) -> TimeSformerConfig:
        """The configuration with the function of transformers' TimeSformer: additive time, also for images."""
        frames = self.groups["cpu"][0][1]
        return named_config(self.preset, size=self.size, frames=frames, time="additive", image_time="first", **changes)


WORKLOADS = {
    "small": Workload("width 192, depth 12, clips of 8 x 112", "Ti/16", 112, {"cpu": ((8, 8),), "cuda": ((64, 8),)}),
    "base": Workload("B/16, clips of 8 x 224", "B/16", 224, {"cpu": ((1, 8),), "cuda": ((16, 8),)}),
    "large": Workload(
        "L/16, clips of 16 x 224", "L/16", 224, {"cpu": ((1, 16),), "cuda": ((8, 16),)}, {"cpu": (), "cuda": ("bf16",)}
    ),
    "mixed": Workload(
        "width 192, depth 12: 4 clips of 8 x 112 and 32 images",
        "Ti/16",
        112,
        {"cpu": ((4, 8), (32, 1)), "cuda": ((4, 8), (32, 1))},
    ),
    "mixed-large": Workload(
        "B/16: 16 clips of 8 x 224 and 128 images",
        "B/16",
        224,
        {"cpu": ((16, 8), (128, 1)), "cuda": ((16, 8), (128, 1))},
        {"cpu": (), "cuda": ("bf16",)},
    ),
}


@dataclass
class Contender:
    """A network, the Packs of a batch, which it takes one after the other, and the settings of a training step."""

    network: nn.Module
    packs: list[Pack]
    settings: StepSettings

    def __post_init__(self) -> None:
        self.inputs = [(self.network.normalize(pack.frames), pack.groups) for pack in self.packs]  # type: ignore[operator]
        self.optimizer: torch.optim.Optimizer | None = None

    @torch.no_grad()
    def forward(self) -> torch.Tensor:
        self.network.eval()
        device = self.settings.loss_weights.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.settings.bf16):
            return torch.cat([self.network(frames, groups)[HEAD] for frames, groups in self.inputs])

    def train(self) -> None:
        self.network.train()
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-5, fused=True)
        train_step(self.network, self.optimizer, self.packs, self.settings)  # type: ignore[arg-type]

    def first_step_memory(self, device: torch.device) -> int:
        """Peak of a step above parameters, gradients and optimizer state."""
        self.train()
        self.network.zero_grad(set_to_none=True)
        gradients = sum(p.numel() * p.element_size() for p in self.network.parameters() if p.requires_grad)
        return peak_bytes(self.train, device) - gradients


def part_of(pack: Pack, number: int) -> Pack:
    """One group of a Pack as a separate Pack."""
    before, (count, length) = pack.groups[:number], pack.groups[number]
    sample, frame = sum(group[0] for group in before), sum(group[0] * group[1] for group in before)
    rows = slice(sample, sample + count)
    values = {name: getattr(pack, name)[rows] for name in ("dataset", "targets", "weight", "seed")}
    return Pack(frames=pack.frames[frame : frame + count * length], groups=(pack.groups[number],), **values)


def randomised(model: CoVeR) -> CoVeR:
    """Set all parameters to random values: an error in the weights of a peer would not show in zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.02)
    return model


def contenders(work: Workload, device: torch.device, bf16: bool, compiled: bool) -> dict[str, Contender]:
    """Name -> contender of a workload, eager and compiled. All have the same weights."""
    builders = networks(work, device)
    settings = StepSettings(
        sum(count for count, _ in work.groups[device.type]), torch.ones(1, device=device), bf16=bf16
    )
    rows = {}
    for name, (build, packs) in builders.items():
        for compiling in [False, True] if compiled else [False]:
            network = build().to(device)
            if compiling:
                network.compile_stages()  # type: ignore[operator]
            rows[f"{name}, {'compiled' if compiling else 'eager'}"] = Contender(network, packs, settings)
    return rows


def networks(work: Workload, device: torch.device) -> dict[str, tuple[Callable[[], nn.Module], list[Pack]]]:
    """Name -> a function that builds the network, and the Packs of its batch."""
    groups = work.groups[device.type]
    pack = random_pack(groups, work.size, CLASSES, device)
    separate = [part_of(pack, number) for number in range(len(groups))]
    ours = randomised(CoVeR(work.config(), (Head(HEAD, tuple(map(str, range(CLASSES)))),)))
    lengths = tuple(length for _, length in groups)

    def rotary() -> nn.Module:
        return CoVeR(named_config(work.preset, size=work.size, frames=lengths[0]), ours.head_list)

    def transformers() -> nn.Module:
        return TransformersTimeSformer(ours.config, CLASSES, lengths).fill(ours)

    builders: dict[str, tuple[Callable[[], nn.Module], list[Pack]]] = {}
    if len(groups) == 1:
        builders[OURS] = (lambda: copy.deepcopy(ours), separate)
        builders["ours, rotary time"] = (rotary, separate)
    else:
        builders[PACKED] = (lambda: copy.deepcopy(ours), [pack])
        builders["ours, two passes"] = (lambda: copy.deepcopy(ours), separate)
        builders["ours, images repeated"] = (lambda: Repeating(copy.deepcopy(ours)), [pack])
    suffix = "" if len(groups) == 1 else ", two passes"
    if importlib.util.find_spec("transformers"):
        builders[f"transformers{suffix}"] = (transformers, separate)
    builders[f"plain, fused attention{suffix}"] = (lambda: PlainTimeSformer(ours.config, CLASSES).fill(ours), separate)
    return builders


def check_same(rows: dict[str, Contender], bf16: bool) -> float:
    """The largest difference of logits between rows of the same function.

    Raises AssertionError if it is larger than rounding errors.
    """
    logits = {name: row.forward().float() for name, row in rows.items() if "rotary" not in name}
    wanted = next(iter(logits.values()))
    apart = max(float((scores - wanted).abs().max()) for name, scores in logits.items() if "repeated" not in name)
    limit = (0.05 if bf16 else 1e-4) * float(wanted.abs().max())
    assert apart <= limit, f"the rows do not compute the same function: {apart}"
    return apart


def measure(name: str, device: torch.device, dtype: str, rounds: int, compiled: bool) -> dict[str, Any]:
    """Times, fractions of the peak and memory of one workload, for the forward pass and the training step."""
    work = WORKLOADS[name]
    torch.manual_seed(0)
    torch._dynamo.reset()
    # One process has many networks and layouts; none of them may fall back to eager.
    torch._dynamo.config.recompile_limit = 64
    rows = contenders(work, device, dtype == "bf16", compiled)
    apart, groups = check_same(rows, dtype == "bf16"), work.groups[device.type]
    operations = 2 * forward_cost(on_meta(work.config(), {}), groups, work.size).multiply_adds
    peak, peak_operations = matmul(device, torch.bfloat16 if dtype == "bf16" else torch.float32)
    results: dict[str, Any] = {"workload": name, "title": work.title, "dtype": dtype, "groups": groups, "apart": apart}
    for stage, factor in (("forward", 1), ("training step", 3)):
        tasks: dict[str, Work] = {"matmul": peak}
        tasks |= {row_name: row.forward if factor == 1 else row.train for row_name, row in rows.items()}
        times = table_rows(in_turns(tasks, rounds, device), factor * operations, peak_operations)
        results[stage] = {"rows": times, "rounds": rounds, "operations": factor * operations}
    first = next(iter(rows.values()))
    results["forward"]["by_operation"] = by_operation(first.forward, device)
    results["training step"]["by_operation"] = by_operation(first.train, device)
    for row_name, row in rows.items():
        results["training step"]["rows"][row_name]["peak_bytes"] = row.first_step_memory(device)
        row.optimizer = None
    return results


def table_rows(seconds: dict[str, list[float]], operations: float, peak_operations: float) -> dict[str, Any]:
    """For each row the median milliseconds, the fraction of the matmul speed, and the time divided by our best row's.

    The last two are medians of the ratios within a round.
    """
    names = [name for name in seconds if name != "matmul"]
    prefix = PACKED if any("packed" in name for name in names) else OURS
    ours = [name for name in names if name.startswith(prefix) and "rotary" not in name]
    best = min(ours, key=lambda name: statistics.median(seconds[name]))
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "share_of_peak": operations / peak_operations / ratio(seconds, name, "matmul"),
            "times_ours": ratio(seconds, name, best),
        }
        for name in names
    }


def report(results: dict[str, Any]) -> None:
    columns = ["row", "ms", "of matmul peak", "times our best", "peak MiB above parameters"]
    for stage in ("forward", "training step"):
        rows = [
            [
                name,
                f"{row['milliseconds']:.1f}",
                f"{row['share_of_peak']:.0%}",
                f"{row['times_ours']:.2f}",
                f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else "",
            ]
            for name, row in results[stage]["rows"].items()
        ]
        show(f"{results['title']}, {results['dtype']}: {stage}", columns, rows)
        fractions = [(kind, part) for kind, part in results[stage]["by_operation"].items() if part >= 0.005]
        kinds = ", ".join(f"{kind} {part:.0%}" for kind, part in fractions)
        print(f"\ntime of {next(iter(results[stage]['rows']))}: {kinds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(WORKLOADS), help="workloads (default: all of the device)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="only eager rows")
    parser.add_argument("--fresh-memory", action="store_true", help="do not change the C library's memory handling")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    device = torch.device(args.device)
    if not args.fresh_memory:
        reuse_memory()  # as the commands do
    results = []
    for name in args.only or WORKLOADS:
        for dtype in WORKLOADS[name].dtypes[device.type]:
            results.append(measure(name, device, dtype, args.rounds, not args.no_compile))
            report(results[-1])
            write({**where(device), "results": results}, args.json)


if __name__ == "__main__":
    main()
