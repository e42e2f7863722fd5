"""One optimizer step over one Pack. Needs torch alone, so that benchmarks measure the very step that training takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.model.timesformer import per_frame

if TYPE_CHECKING:
    from cover.mixture.pack import Pack
    from cover.model.timesformer import TimeSformer


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know beside model and data.

    `batch`: the *scheduled* global samples of a step, which every loss is divided by: the same constant on every rank and
    micro-batch, also where files could not be read. `loss_weights`: float32 `(data sets,)`. `clip`: largest gradient norm, 0 for none.
    """

    batch: int
    loss_weights: Tensor
    label_smoothing: float = 0.0
    clip: float = 1.0
    drop_path: float = 0.0
    bf16: bool = False


class Tally:
    """Loss, hits and samples per data set, summed on the device and read only when a line is logged."""

    def __init__(self, sets: int, device: torch.device | str) -> None:
        self.sums = torch.zeros(3, sets, dtype=torch.float64, device=device)

    def add(self, pack: Pack, loss_S: Tensor, hit_S: Tensor) -> None:
        """Count the samples that were read."""
        rows = torch.stack([loss_S.detach() * pack.weight, hit_S * pack.weight, pack.weight]).double()
        self.sums.index_add_(1, pack.dataset, rows)

    def take(self) -> list[tuple[float, float, int]]:
        """Per data set the mean loss, the top-1 share and the number of samples since the last take."""
        loss, hits, seen = self.sums.tolist()
        self.sums.zero_()
        return [(a / max(n, 1), b / max(n, 1), int(n)) for a, b, n in zip(loss, hits, seen)]


def sample_losses(logits: dict[str, Tensor], targets_SH: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every sample summed over the heads that it trains, and whether its classes came first.

    Every head sees every sample, masked where the target is -1: shapes are static and every parameter takes part in every step.
    Returns two float `(S,)`.
    """
    loss_S = torch.zeros(len(targets_SH), device=targets_SH.device)
    hit_S = torch.ones(len(targets_SH), device=targets_SH.device)
    for column, scores in enumerate(logits.values()):
        target = targets_SH[:, column]
        mine = target >= 0
        loss = fn.cross_entropy(scores.float(), target.clamp(min=0), reduction="none", label_smoothing=label_smoothing)
        loss_S = loss_S + loss * mine
        hit_S = hit_S * torch.where(mine, scores.argmax(1) == target, True)
    return loss_S, hit_S


def drop_path_factors(seeds_S: Tensor, depth: int, rate: float) -> Tensor | None:
    """Factors `(depth, 3, S)` of the branches, 0 or 1 / (1 - rate of the layer), from (draw, layer, branch) and nothing else."""
    if rate == 0:
        return None
    lanes = torch.arange(depth * 3, device=seeds_S.device).view(depth, 3, 1) + 1
    x = seeds_S.view(1, 1, -1) + lanes * -7046029254386353131  # golden-ratio counter, then the splitmix64 finaliser
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    uniform = ((x ^ (x >> 31)) & 0xFFFFFF).double() / 2**24
    rates = torch.linspace(0, rate, depth, device=seeds_S.device).view(depth, 1, 1)
    return ((uniform >= rates) / (1 - rates)).float()


def forward_backward(model: TimeSformer, pack: Pack, settings: StepSettings, tally: Tally | None = None) -> Tensor:
    """Add the gradients of one Pack to the model; its share of the step's loss, a scalar on the device."""
    samples = torch.arange(len(pack.colour), device=pack.colour.device)
    frames = model.normalize(pack.frames, pack.colour[per_frame(samples, pack.groups)])
    keep = drop_path_factors(pack.seed, model.config.depth, settings.drop_path)
    with torch.autocast(pack.frames.device.type, torch.bfloat16, enabled=settings.bf16):
        logits = model(frames, pack.groups, keep)
    loss_S, hit_S = sample_losses(logits, pack.targets, settings.label_smoothing)
    loss = (loss_S * pack.weight * settings.loss_weights[pack.dataset]).sum() / settings.batch
    loss.backward()
    if tally is not None:
        tally.add(pack, loss_S, hit_S)
    return loss.detach()


def train_step(
    model: TimeSformer,
    optimizer: torch.optim.Optimizer,
    packs: Sequence[Pack],
    settings: StepSettings,
    tally: Tally | None = None,
    check: Callable[[Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """One optimizer step over the micro-batches `packs`: the loss and the gradient norm, scalars on the device.

    `check` sees both before the update and may raise.
    """
    optimizer.zero_grad(set_to_none=True)
    loss = torch.stack([forward_backward(model, pack, settings, tally) for pack in packs]).sum()
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip or float("inf"))
    if check is not None:
        check(loss, norm)
    optimizer.step()
    return loss, norm
