"""Speed of attention kernels: the fused kernel on strided views, as in the model, against separate matrix products.

    python benchmarks/attention.py
    python benchmarks/attention.py --device cuda --dtype bf16

Queries, keys and values have the layout of the projections. The output must have the layout of the tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from _measure import Work, in_turns, ratio, show, where

from cover.machine import reuse_memory
from cover.model.layers import attend_along, attend_over_time

Attend = Callable[[Tensor, int], Tensor]
# title -> clips, frames, tokens, heads, channels of a head
SHAPES = {
    "width 192, 8 x 112": (8, 8, 50, 3, 64),
    "B/16, 8 x 224": (1, 8, 197, 12, 64),
    "mini, 8 x 32": (24, 8, 17, 4, 32),
}


def by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by two matrix products, `(..., length, d)` each."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v


def along_by_products(qkv_BL3D: Tensor, heads: int) -> Tensor:
    q, k, v = qkv_BL3D.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return by_products(q, k, v).transpose(1, 2).flatten(2)


def over_time(qkv_3STND: Tensor, heads: int) -> Tensor:
    return attend_over_time(*qkv_3STND, heads)


def over_time_by_products(qkv_3STND: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4) for x in qkv_3STND)  # SNHTd
    return by_products(q, k, v).permute(0, 3, 1, 2, 4).flatten(3)


def work(attend: Attend, qkv: Tensor, heads: int, backward: bool) -> Work:
    """One call of a kernel, with its gradient if `backward`."""
    weights = torch.ones_like(attend(qkv, heads))

    def forward() -> None:
        with torch.no_grad():
            attend(qkv, heads)

    return (lambda: torch.autograd.grad(attend(qkv, heads), qkv, weights)) if backward else forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    device, dtype = torch.device(args.device), torch.bfloat16 if args.dtype == "bf16" else torch.float32
    reuse_memory()
    rows = []
    for title, (clips, frames, tokens, heads, channels) in SHAPES.items():
        width = heads * channels
        spatial = torch.randn(clips * frames, tokens, 3 * width, device=device, dtype=dtype, requires_grad=True)
        temporal = torch.randn(3, clips, frames, tokens, width, device=device, dtype=dtype, requires_grad=True)
        kernels: dict[str, tuple[Tensor, Attend, Attend]] = {
            "spatial": (spatial, attend_along, along_by_products),
            "temporal": (temporal, over_time, over_time_by_products),
        }
        for name, (qkv, fused, products) in kernels.items():
            torch.testing.assert_close(fused(qkv, heads), products(qkv, heads), rtol=1e-2, atol=1e-2)
            for backward in (False, True):
                tasks = {"fused": work(fused, qkv, heads, backward), "products": work(products, qkv, heads, backward)}
                seconds = in_turns(tasks, args.rounds, device)
                times = [f"{1e3 * statistics.median(seconds[kind]):.2f}" for kind in tasks]
                stage = "forward and backward" if backward else "forward"
                rows.append([title, name, stage, *times, f"{ratio(seconds, 'products', 'fused'):.2f}"])
    show(
        f"attention, {where(device)['device']}, {args.dtype}",
        ["model", "attention", "", "fused, ms", "products, ms", "ratio"],
        rows,
    )


if __name__ == "__main__":
    main()
