"""One optimizer step over one Pack. Needs torch alone, so that benchmarks measure the very step that training takes."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
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
    `sigmoid`: the names of the multi-label heads.
    """

    batch: int
    loss_weights: Tensor
    label_smoothing: float = 0.0
    clip: float = 1.0
    drop_path: float = 0.0
    bf16: bool = False
    sigmoid: tuple[str, ...] = ()


class Tally:
    """Loss, hits and samples per data set, summed on the device and read only when a line is logged.

    A hit is a sample that its heads get right: in `sample_losses`' sense.
    """

    def __init__(self, sets: int, device: torch.device | str) -> None:
        self.sums = torch.zeros(3, sets, dtype=torch.float64, device=device)

    def add(self, pack: Pack, loss_S: Tensor, hit_S: Tensor) -> None:
        """Count the samples that were read."""
        rows = torch.stack([loss_S.detach() * pack.weight, hit_S * pack.weight, pack.weight]).double()
        self.sums.index_add_(1, pack.dataset, rows)

    def take(self) -> list[tuple[float, float, int]]:
        """Per data set the mean loss, the share of hits and the number of samples since the last take."""
        loss, hits, seen = self.sums.tolist()
        self.sums.zero_()
        return [(a / max(n, 1), b / max(n, 1), int(n)) for a, b, n in zip(loss, hits, seen)]


def sample_losses(
    logits: dict[str, Tensor], targets_SH: Tensor, label_smoothing: float, hot_SK: Tensor | None = None, sigmoid: Container[str] = ()
) -> tuple[Tensor, Tensor]:
    """The loss of every sample summed over the heads that it trains, and whether all of them are right: two float `(S,)`.

    Cross-entropy for softmax heads, `sigmoid_loss` for those named in `sigmoid`; `targets_SH` and `hot_SK` as in a Pack. Every head
    sees every sample, masked where the target is -1: shapes are static and every parameter takes part in every step.
    """
    loss_S = torch.zeros(len(targets_SH), device=targets_SH.device)
    hit_S = torch.ones(len(targets_SH), device=targets_SH.device)
    first = 0
    for column, (name, scores) in enumerate(logits.items()):
        target = targets_SH[:, column]
        mine = target >= 0
        if name in sigmoid:
            assert hot_SK is not None, f"{name} is a sigmoid head, and the Pack has no classes for it"
            hot_SC, first = hot_SK[:, first : first + scores.shape[1]], first + scores.shape[1]
            loss, hit = sigmoid_loss(scores.float(), hot_SC, label_smoothing), sigmoid_hits(scores, hot_SC)
        else:
            loss = fn.cross_entropy(scores.float(), target.clamp(min=0), reduction="none", label_smoothing=label_smoothing)
            hit = scores.argmax(1) == target
        loss_S = loss_S + loss * mine
        hit_S = hit_S * torch.where(mine, hit, True)
    return loss_S, hit_S


def sigmoid_loss(scores_SC: Tensor, hot_SC: Tensor, label_smoothing: float) -> Tensor:
    """Binary cross-entropy summed over the classes, `(S,)`.

    The sum, not the mean: the gradient on the logits is then p - y, as it is of a softmax's cross-entropy, so that a sample moves the
    shared layers as much whichever kind of head it trains. A mean over 400 classes would make it 400 times less. The two gradients are
    the same at the start for a sample of one class (`TimeSformer`: both heads begin with p = 1 / C).
    Label smoothing likewise as in a softmax: a share e of the target is spread over all C classes, y becomes (1 - e) y + e / C.
    """
    wanted = hot_SC.to(scores_SC.dtype) * (1 - label_smoothing) + label_smoothing / scores_SC.shape[1]
    return fn.binary_cross_entropy_with_logits(scores_SC, wanted, reduction="none").sum(1)


def sigmoid_hits(scores_SC: Tensor, hot_SC: Tensor) -> Tensor:
    """bool `(S,)`: whether the best-scored class is one of the sample's; of a sample of no class, whether none reaches 0.5."""
    best_S, place_S = scores_SC.max(1)
    return torch.where((hot_SC > 0).any(1), hot_SC.gather(1, place_S[:, None])[:, 0] > 0, best_S < 0)


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
    loss_S, hit_S = sample_losses(logits, pack.targets, settings.label_smoothing, pack.hot, settings.sigmoid)
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
