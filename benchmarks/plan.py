"""Memory and time of a training step: planned as by `cover plan`, and measured on this machine.

    python benchmarks/plan.py                       # table; JSON with --json FILE
    python benchmarks/plan.py --device cuda --mfu 0.4

Steps and a large matrix product take turns. The planned time follows from the speed of the product in the same rounds
and from the fraction of it that `cover plan` assumes. This holds for a GPU too, so that it need not be in the table of
devices.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import in_turns, matmul, peak_bytes, show, where, write

from cover.hardware import CPU_MFU, GPU_MFU
from cover.machine import reuse_memory
from cover.model.backbone import Groups
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.profile import count_parameters, forward_cost, on_meta
from cover.planning.memory import StepOptions, step_memory
from cover.planning.timing import random_pack
from cover.training.step import StepSettings, train_step
from model import CLASSES, HEAD


@dataclass(frozen=True)
class Case:
    """A step: a network, frames of `size` pixels, and its Pack."""

    preset: str
    size: int
    groups: Groups
    checkpointing: bool = False

    @property
    def title(self) -> str:
        groups = " + ".join(f"{samples} x {frames}" for samples, frames in self.groups)
        return f"{self.preset}, {self.size} px, {groups}{', checkpointing' * self.checkpointing}"


CASES = {
    "cpu": [
        Case("mini", 32, ((16, 8), (32, 1))),
        Case("Ti/16", 112, ((4, 8),)),
        Case("Ti/16", 112, ((2, 8), (16, 1)), True),
        Case("S/16", 112, ((1, 8), (4, 1))),
    ],
    "cuda": [
        Case("Ti/16", 112, ((64, 8),)),
        Case("B/16", 224, ((16, 8),)),
        Case("B/16", 224, ((16, 8), (128, 1)), True),
        Case("L/16", 224, ((8, 16),)),
        Case("L/16", 448, ((4, 16), (4, 1)), True),
    ],
}


def measure(case: Case, device: torch.device, bf16: bool, mfu: float, rounds: int) -> dict[str, Any]:
    """Planned and measured seconds and bytes of one case. `mfu`: fraction of the matrix product's speed."""
    config = named_config(case.preset, size=case.size, frames=case.groups[0][1])
    network = CoVeR(config, (Head(HEAD, tuple(map(str, range(CLASSES)))),)).to(device).train()
    network.set_checkpointing(case.checkpointing)
    pack = random_pack(case.groups, case.size, CLASSES, device)
    settings = StepSettings(len(pack.seed), torch.ones(1, device=device), bf16=bf16)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-5, fused=True)

    def step() -> None:
        train_step(network, optimizer, [pack], settings)

    product, operations = matmul(device, torch.bfloat16 if bf16 else torch.float32)
    seconds = in_turns({"step": step, "matmul": product}, rounds, device)
    network.zero_grad(set_to_none=True)
    state = sum(3 * parameter.nbytes for parameter in network.parameters())  # weights and AdamW's two means
    measured = state + pack.frames.nbytes + peak_bytes(step, device)
    model = on_meta(config, {HEAD: CLASSES})
    memory = step_memory(model, case.groups, case.size, StepOptions(case.checkpointing, bf16))
    passes = 4 if case.checkpointing else 3
    rate = operations / statistics.median(seconds["matmul"])
    return {
        "case": case.title,
        "parameters": count_parameters(model).total,
        "bytes": measured,
        "bytes_planned": memory.tensors,
        "seconds": statistics.median(seconds["step"]),
        "seconds_planned": 2 * passes * forward_cost(model, case.groups, case.size).multiply_adds / rate / mfu,
    }


def report(rows: list[dict[str, Any]], mfu: float) -> None:
    """Print the table of planned and measured values."""
    columns = ["step", "memory, MiB", "planned", "", "time, ms", f"planned at {mfu:.0%}", "", "fraction reached"]
    cells = [
        [
            row["case"],
            f"{row['bytes'] / 2**20:.0f}",
            f"{row['bytes_planned'] / 2**20:.0f}",
            f"{row['bytes_planned'] / row['bytes'] - 1:+.0%}",
            f"{1e3 * row['seconds']:.0f}",
            f"{1e3 * row['seconds_planned']:.0f}",
            f"{row['seconds_planned'] / row['seconds'] - 1:+.0%}",
            f"{mfu * row['seconds_planned'] / row['seconds']:.0%}",
        ]
        for row in rows
    ]
    show("A training step, planned and measured", columns, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mfu", type=float, help="fraction of the matrix product's speed (default: as in cover plan)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first", type=int, help="number of cases (default: all)")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    reuse_memory()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    mfu = args.mfu or (GPU_MFU if on_gpu else CPU_MFU)
    rows = []
    for case in CASES[device.type][: args.first]:
        rows.append(measure(case, device, on_gpu, mfu, args.rounds))
        write({**where(device), "mfu": mfu, "rows": rows}, args.json)
    report(rows, mfu)


if __name__ == "__main__":
    main()
