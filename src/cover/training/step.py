"""One optimizer step over one Pack. Needs torch alone, so that benchmarks measure the very step that training takes."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.distributed import LocalStep
from cover.transforms.mixup import Mixup

if TYPE_CHECKING:
    from cover.mixture.pack import Pack
    from cover.model.cover import CoVeR

SampleLosses = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepSettings:
    """What a step needs to know beside model and data.

    `batch`: the *scheduled* global samples of a step, which every loss is divided by: the same constant on every rank
    and micro-batch, also where files could not be read. `loss_weights`: float32 `(data sets,)`. `max_grad_norm`:
    largest gradient norm, 0 for none. `sigmoid`: the names of the multi-label heads.
    """

    batch: int
    loss_weights: Tensor
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    drop_path: float = 0.0
    bf16: bool = False
    sigmoid: tuple[str, ...] = ()


class LossSums:
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
        loss, hits, per_sample = self.sums.tolist()
        self.sums.zero_()
        return [(a / max(n, 1), b / max(n, 1), int(n)) for a, b, n in zip(loss, hits, per_sample)]


def sample_losses(
    logits: dict[str, Tensor],
    targets_SH: Tensor,
    label_smoothing: float,
    multi_hot_SK: Tensor | None = None,
    sigmoid: Container[str] = (),
) -> tuple[Tensor, Tensor]:
    """The loss of every sample summed over the heads that it trains, and whether all of them are right: two float
    `(S,)`.

    Cross-entropy for softmax heads, `sigmoid_loss` for those named in `sigmoid`; `targets_SH` and `multi_hot_SK` as in
    a Pack. Every head sees every sample, masked where the target is -1: shapes are static and every parameter takes
    part in every step. Heads behind the last column of `targets_SH` are kept as they are (`with_retained`), and have
    no loss.
    """
    loss_S = torch.zeros(len(targets_SH), device=targets_SH.device)
    hit_S = torch.ones(len(targets_SH), device=targets_SH.device)
    assert len(logits) >= targets_SH.shape[1], "every column is of a head"
    first = 0
    for (name, scores), target in zip(logits.items(), targets_SH.unbind(1), strict=False):  # kept heads come last
        mine = target >= 0
        if name in sigmoid:
            assert multi_hot_SK is not None, f"{name} is a sigmoid head, and the Pack has no classes for it"
            multi_hot_SC, first = multi_hot_SK[:, first : first + scores.shape[1]], first + scores.shape[1]
            loss, hit = sigmoid_loss(scores.float(), multi_hot_SC, label_smoothing), sigmoid_hits(scores, multi_hot_SC)
        else:
            loss = fn.cross_entropy(
                scores.float(), target.clamp(min=0), reduction="none", label_smoothing=label_smoothing
            )
            hit = scores.argmax(1) == target
        # not times: one head that is not finite would spoil every sample's
        loss_S = loss_S + torch.where(mine, loss, 0)
        hit_S = hit_S * torch.where(mine, hit, True)
    return loss_S, hit_S


def sigmoid_loss(scores_SC: Tensor, multi_hot_SC: Tensor, label_smoothing: float) -> Tensor:
    """Binary cross-entropy summed over the classes, `(S,)`.

    The sum, not the mean: the gradient on the logits is then p - y, as it is of a softmax's cross-entropy, so that a
    sample moves the shared layers as much whichever kind of head it trains. A mean over 400 classes would make it 400
    times less. The two gradients are the same at the start for a sample of one class (`CoVeR`: both heads begin with p
    = 1 / C). Label smoothing likewise as in a softmax: a share e of the target is spread over all C classes, y becomes
    (1 - e) y + e / C.
    """
    wanted = multi_hot_SC.to(scores_SC.dtype) * (1 - label_smoothing) + label_smoothing / scores_SC.shape[1]
    return fn.binary_cross_entropy_with_logits(scores_SC, wanted, reduction="none").sum(1)


def sigmoid_hits(scores_SC: Tensor, multi_hot_SC: Tensor) -> Tensor:
    """bool `(S,)`: whether the best-scored class is one of the sample's; of a sample of no class, whether none reaches
    0.5.
    """
    best_S, place_S = scores_SC.max(1)
    return torch.where((multi_hot_SC > 0).any(1), multi_hot_SC.gather(1, place_S[:, None])[:, 0] > 0, best_S < 0)


def drop_path_factors(seeds_S: Tensor, shape: tuple[int, int], rate: float) -> Tensor | None:
    """Factors `(layers, branches, S)`, 0 or 1 / (1 - rate of the layer), from (draw, layer, branch) and nothing else.

    `shape`: (layers, branches) of the network, `Backbone.drop_shape`. The rate grows linearly from 0 to `rate` at the
    last layer.
    """
    if rate == 0:
        return None
    layers, branches = shape
    lanes = torch.arange(layers * branches, device=seeds_S.device).view(layers, branches, 1) + 1
    x = seeds_S.view(1, 1, -1) + lanes * -7046029254386353131  # golden-ratio counter, then the splitmix64 finaliser
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    uniform = ((x ^ (x >> 31)) & 0xFFFFFF).double() / 2**24
    rates = torch.linspace(0, rate, layers, device=seeds_S.device).view(layers, 1, 1)
    return ((uniform >= rates) / (1 - rates)).float()


@dataclass(frozen=True)
class StepResult:
    """What came of a step. Nothing of it is read from the device before it is asked for.

    `summary`: float32 `(3,)`, the same on every rank: the loss, the gradient norm before clipping, and how many ranks
    were told to leave. `samples`: of this rank's micro-batches, the draws' seeds and losses, `(S,)` both.
    """

    summary: Tensor
    samples: list[tuple[Tensor, Tensor]]

    @property
    def loss(self) -> Tensor:
        """Of the whole step, over all ranks."""
        return self.summary[0]

    @property
    def norm(self) -> Tensor:
        """Of the whole step's gradient, over all ranks."""
        return self.summary[1]


def forward_backward(
    model: CoVeR,
    pack: Pack,
    settings: StepSettings,
    tally: LossSums | None = None,
    engine: LocalStep | None = None,
    per_sample: SampleLosses | None = None,
) -> Tensor:
    """Add the gradients of one Pack to the model; its share of the step's loss, a scalar on the device. `per_sample`
    gets its samples' losses.
    """
    frames = pack.pixels(model.normalize)
    if pack.mix is not None:
        frames, partner_S, lam_S = Mixup.apply(frames, pack.mix, pack.weight, pack.groups)
    drop = drop_path_factors(pack.seed, model.backbone.drop_shape(), settings.drop_path)
    with torch.autocast(pack.frames.device.type, torch.bfloat16, enabled=settings.bf16):
        logits = (engine or model)(frames, pack.groups, drop)
    loss_S, hit_S = sample_losses(logits, pack.targets, settings.label_smoothing, pack.multi_hot, settings.sigmoid)
    if pack.mix is not None:  # every loss is linear in its targets: that of mixed targets is the losses mixed
        multi_hot = None if pack.multi_hot is None else pack.multi_hot[partner_S]
        other_S, _ = sample_losses(
            logits, pack.targets[partner_S], settings.label_smoothing, multi_hot, settings.sigmoid
        )
        loss_S = torch.lerp(loss_S, other_S, lam_S)
    loss = (loss_S * pack.weight * settings.loss_weights[pack.dataset]).sum() / settings.batch
    loss.backward()
    if tally is not None:
        tally.add(pack, loss_S, hit_S)
    if per_sample is not None:
        per_sample.append((pack.seed, loss_S.detach()))
    return loss.detach()


def train_step(
    model: CoVeR,
    optimizer: torch.optim.Optimizer,
    packs: Sequence[Pack],
    settings: StepSettings,
    tally: LossSums | None = None,
    engine: LocalStep | None = None,
    leaving: bool = False,
) -> StepResult:
    """One optimizer step over the micro-batches `packs` of this rank, added up over all ranks.

    Where the loss or the gradient norm is not finite the update is left out, on every rank. `leaving`: this rank was
    told to stop.
    """
    engine = engine or LocalStep(model)
    optimizer.zero_grad(set_to_none=True)
    per_sample: SampleLosses = []
    losses = []
    for number, pack in enumerate(packs):
        with engine.part(last=number + 1 == len(packs)):
            losses.append(forward_backward(model, pack, settings, tally, engine, per_sample))
    loss, votes = engine.total(
        torch.stack([torch.stack(losses).sum(), losses[0].new_full((), float(leaving))])
    ).unbind()
    norm = clip_gradients(model, settings.max_grad_norm)
    update_if(torch.isfinite(loss + norm), optimizer)
    return StepResult(torch.stack([loss, norm, votes]), per_sample)


def clip_gradients(model: CoVeR, largest: float) -> Tensor:
    """Shorten the whole gradient to a norm of `largest` (0: leave it); returns its norm before, over all shards."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if hasattr(norm, "full_tensor"):  # FSDP2: each rank has the norm of its shards
        norm = norm.full_tensor()
    if largest:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def update_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's step, unless `finite`, a bool on the device, is false. Fused AdamW decides on the device; others
    ask the host.
    """
    if isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]:
        optimizer.found_inf = 1 - finite.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:
        optimizer.step()
