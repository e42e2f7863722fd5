"""One optimizer step: losses, gradients and the update. It imports only torch, so benchmarks can measure this step.

Letters in shapes: S samples of a Pack, H trained heads, C classes of one head, K classes of all sigmoid heads together.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as fn
from torch import Tensor

from cover.distributed import LocalStep
from cover.hardware import wide_dtype
from cover.model.batch_norm import update_statistics
from cover.transforms.mixup import Mixup

if TYPE_CHECKING:
    from cover.mixture.pack import Pack
    from cover.model.cover import CoVeR

TUBE_COUNTER = 1 << 32  # the counters of retained places begin here, beyond those of drop-path
SampleLosses = list[tuple[Tensor, Tensor]]  # for each micro-batch the seeds of its draws and their losses, (S,) each


@dataclass(frozen=True)
class StepSettings:
    """The settings of a step.

    `batch`: the *scheduled* number of samples of a step over all ranks, by which every loss is divided. It is the same
    constant on every rank and micro-batch, and does not depend on unreadable files. `loss_weights`: float32
    `(data sets,)`. `max_grad_norm`: the largest gradient norm, 0 for no limit. `drop_path`: the rate at the last layer.
    `drop_tubes`: fraction of the places that are left out of all frames of a sample. `bf16`: autocast of the forward
    pass to bfloat16. `sigmoid`: the names of the multi-label heads.
    """

    batch: int
    loss_weights: Tensor
    label_smoothing: float = 0.0
    max_grad_norm: float = 1.0
    drop_path: float = 0.0
    drop_tubes: float = 0.0
    bf16: bool = False
    sigmoid: tuple[str, ...] = ()


class LossSums:
    """Sums of losses, hits and samples for each data set.

    They stay on the device and are read only for a line of the log, so a step never waits for the device. `hit_S` of
    `sample_losses` says what a hit is. `sums`: float64 `(3, data sets)`: losses, hits, samples.
    """

    def __init__(self, sets: int, device: torch.device | str) -> None:
        self.sums = torch.zeros(3, sets, dtype=wide_dtype(device), device=device)

    def add(self, pack: Pack, loss_S: Tensor, hit_S: Tensor) -> None:
        """Add the samples of a Pack. Unreadable samples have weight 0 and do not count."""
        # float64, because float32 sums of many steps would lose digits
        rows = torch.stack([loss_S.detach() * pack.weight, hit_S * pack.weight, pack.weight]).to(self.sums.dtype)
        self.sums.index_add_(1, pack.dataset, rows)

    def take(self) -> list[tuple[float, float, int]]:
        """For each data set the mean loss, the fraction of hits and the number of samples since the last call."""
        losses, hits, samples = self.sums.tolist()
        self.sums.zero_()
        return [(loss / max(n, 1), hit / max(n, 1), int(n)) for loss, hit, n in zip(losses, hits, samples)]


# --- losses -----------------------------------------------------------------------------------------------------------


def sample_losses(
    logits: dict[str, Tensor],
    targets_SH: Tensor,
    label_smoothing: float,
    multi_hot_SK: Tensor | None = None,
    sigmoid: Container[str] = (),
) -> tuple[Tensor, Tensor]:
    """The loss of every sample, and whether all its heads are right (1) or not (0): two floats `(S,)`.

    `logits`: head name -> `(S, C)`. `targets_SH`: class indices as in a Pack, -1 if the sample does not train the head.
    `multi_hot_SK`: 0 or 1 for each class of the sigmoid heads, as in a Pack. `sigmoid`: the names of these heads. The
    loss of a sample is the sum over the heads that it trains, of the cross-entropy or of `sigmoid_loss`.

    Every head runs on every sample and the loss is masked. So shapes are static and every parameter takes part in every
    step. Retained heads have no column in `targets_SH` and no loss (`with_retained`).
    """
    loss_S = torch.zeros(len(targets_SH), device=targets_SH.device)
    hit_S = torch.ones(len(targets_SH), device=targets_SH.device)
    assert len(logits) >= targets_SH.shape[1], "every column belongs to a head"
    first = 0  # column of the first class of the next sigmoid head
    # Not strict, because retained heads come last and have no column.
    for (name, scores_SC), target_S in zip(logits.items(), targets_SH.unbind(1), strict=False):
        trained_S = target_S >= 0
        if name in sigmoid:
            assert multi_hot_SK is not None, f"{name} is a sigmoid head, and the Pack has no classes for it"
            last = first + scores_SC.shape[1]
            multi_hot_SC, first = multi_hot_SK[:, first:last], last
            head_loss_S = sigmoid_loss(scores_SC.float(), multi_hot_SC, label_smoothing)
            head_hit_S = sigmoid_hits(scores_SC, multi_hot_SC)
        else:
            index_S = target_S.clamp(min=0)  # -1 is no valid index; the mask below drops its loss
            head_loss_S = fn.cross_entropy(
                scores_SC.float(), index_S, reduction="none", label_smoothing=label_smoothing
            )
            head_hit_S = scores_SC.argmax(1) == target_S  # argmax needs no conversion to float32
        # `where` instead of a product: 0 x inf would make the loss of every sample NaN if one head is not finite.
        loss_S = loss_S + torch.where(trained_S, head_loss_S, 0)
        hit_S = hit_S * torch.where(trained_S, head_hit_S, True)
    return loss_S, hit_S


def sigmoid_loss(scores_SC: Tensor, multi_hot_SC: Tensor, label_smoothing: float) -> Tensor:
    """Binary cross-entropy summed over the classes, `(S,)`, from scores and 0 or 1 for each class, `(S, C)` each.

    With the sum, the gradient of the logits is p - y, as with softmax cross-entropy. So a sample has the same influence
    on shared layers with both kinds of heads. A mean over 400 classes would make the gradient 400 times smaller. At the
    start of training, the two gradients are equal for a sample of one class, because both heads begin with p = 1 / C
    (`CoVeR`). Label smoothing is also the same as with a softmax: a fraction e of the target is spread over all C
    classes, so y becomes (1 - e) y + e / C.
    """
    targets_SC = multi_hot_SC.to(scores_SC.dtype) * (1 - label_smoothing) + label_smoothing / scores_SC.shape[1]
    return fn.binary_cross_entropy_with_logits(scores_SC, targets_SC, reduction="none").sum(1)


def sigmoid_hits(scores_SC: Tensor, multi_hot_SC: Tensor) -> Tensor:
    """Whether the class with the highest score is one of the sample's classes, bool `(S,)`.

    A sample without classes is a hit if no probability reaches 0.5, which is a score of 0.
    """
    best_S, index_S = scores_SC.max(1)
    best_is_right_S = multi_hot_SC.gather(1, index_S[:, None])[:, 0] > 0
    return torch.where((multi_hot_SC > 0).any(1), best_is_right_S, best_S < 0)


def drop_path_factors(seeds_S: Tensor, shape: tuple[int, int], rate: float) -> Tensor | None:
    """Drop-path factors, float32 `(layers, branches, S)`: 0, or 1 / (1 - rate of the layer). None if `rate` is 0.

    A factor is a function of the seed of the draw (int64 `(S,)`), the layer and the branch. So it does not depend on
    the rank, the micro-batch or the global generator. `shape`: `Backbone.drop_shape`. `rate`: of the last layer; rates
    grow linearly from 0 at the first.
    """
    if rate == 0:
        return None
    layers, branches = shape
    counters = torch.arange(layers * branches, device=seeds_S.device).view(layers, branches, 1) + 1
    uniform = _random_bits(seeds_S.view(1, 1, -1), counters).float() / 2**24  # exact, in [0, 1)
    rates = torch.linspace(0, rate, layers, device=seeds_S.device).view(layers, 1, 1)
    return ((uniform >= rates) / (1 - rates)).float()  # the mean of a factor is 1


def retained_tubes(seeds_S: Tensor, places: int, rate: float) -> Tensor | None:
    """The places that are computed of each sample, int64 `(S, K)` in ascending order. None if `rate` is 0.

    They are a function of the seed of the draw (int64 `(S,)`) alone. K is the same for all samples: `places` times
    1 - `rate`, rounded, and at least 1.
    """
    if rate == 0:
        return None
    counters = torch.arange(places, device=seeds_S.device) + TUBE_COUNTER
    order = _random_bits(seeds_S[:, None], counters).argsort(dim=1, stable=True)
    return order[:, : max(1, round(places * (1 - rate)))].sort(1).values


def _random_bits(seeds: Tensor, counters: Tensor) -> Tensor:
    """24 random bits for each seed and counter: a golden-ratio counter, then the finaliser of splitmix64.

    The constants are the usual unsigned ones, written as int64; products wrap around.
    """
    x = seeds + counters * -7046029254386353131
    x = (x ^ (x >> 30)) * -4658895280553007687
    x = (x ^ (x >> 27)) * -7723592293110705685
    return (x ^ (x >> 31)) & 0xFFFFFF


# --- the step ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepResult:
    """The result of a step. Its tensors stay on the device until a caller reads them.

    `summary`: float32 `(4,)`, equal on every rank: the loss, the gradient norm before clipping, the number of ranks
    that received a signal to stop, and the number of those that ask for a checkpoint. `samples`: for each micro-batch
    of this rank, the seeds of the draws and their losses.
    """

    summary: Tensor
    samples: SampleLosses

    @property
    def loss(self) -> Tensor:
        """The loss of the whole step over all ranks, a scalar."""
        return self.summary[0]

    @property
    def norm(self) -> Tensor:
        """The gradient norm of the whole step over all ranks, before clipping, a scalar."""
        return self.summary[1]


def forward_backward(
    model: CoVeR,
    pack: Pack,
    settings: StepSettings,
    tally: LossSums | None = None,
    engine: LocalStep | None = None,
    per_sample: SampleLosses | None = None,
) -> Tensor:
    """Add the gradients of one Pack to the model; returns its part of the step's loss, a scalar on the device.

    `tally`: receives the losses and hits of each data set. `engine`: runs the model, on one or several ranks.
    `per_sample`: receives the loss of each sample. Neither of these losses is weighted.
    """
    frames = pack.pixels(model.normalize)  # normalised float, on the device
    if pack.mix is not None:
        frames, partner_S, lam_S = Mixup.apply(frames, pack.mix, pack.weight, pack.groups)
    drop = drop_path_factors(pack.seed, model.backbone.drop_shape(), settings.drop_path)
    tubes = None
    if settings.drop_tubes:
        places = model.backbone.tubes_of((frames.shape[2], frames.shape[3]))
        tubes = retained_tubes(pack.seed, places, settings.drop_tubes)
    options: dict[str, Any] = {"stages": pack.stages} if pack.stages else {}
    options |= {} if tubes is None else {"tubes": tubes}
    # The backward pass runs outside autocast, as PyTorch recommends: it uses the dtypes of the forward pass.
    with torch.autocast(pack.frames.device.type, torch.bfloat16, enabled=settings.bf16):
        # Networks that benchmarks compare with take frames alone.
        logits = (engine or model)(frames, pack.groups, drop, **options)
    loss_S, hit_S = sample_losses(logits, pack.targets, settings.label_smoothing, pack.multi_hot, settings.sigmoid)
    # Every loss is linear in its targets, so the loss of mixed targets is the mixture of the two losses.
    weighted_S = loss_S if pack.class_weight is None else loss_S * pack.class_weight
    if pack.mix is not None:
        multi_hot = None if pack.multi_hot is None else pack.multi_hot[partner_S]
        other_S, _ = sample_losses(
            logits, pack.targets[partner_S], settings.label_smoothing, multi_hot, settings.sigmoid
        )
        # The weight of a class belongs to its target.
        other_weighted_S = other_S if pack.class_weight is None else other_S * pack.class_weight[partner_S]
        loss_S, weighted_S = torch.lerp(loss_S, other_S, lam_S), torch.lerp(weighted_S, other_weighted_S, lam_S)
    # The divisor is a constant, not the number of readable samples: so a data set counts by its rate and weight alone,
    # and gradients of micro-batches and ranks can simply be added.
    loss = (weighted_S * pack.weight * settings.loss_weights[pack.dataset]).sum() / settings.batch
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
    saving: bool = False,
) -> StepResult:
    """One optimizer step over the micro-batches `packs` of this rank. Gradients are summed over all ranks.

    Statistics of BatchNorm are updated over all micro-batches and ranks. If the loss or the gradient norm is not
    finite, every rank skips both updates. `leaving`: whether this rank received a signal to stop. `saving`: whether it
    asks for a checkpoint. The step shares both with all ranks.
    """
    engine = engine or LocalStep(model)
    optimizer.zero_grad(set_to_none=True)  # None instead of zeros: less memory in the forward pass
    per_sample: SampleLosses = []
    losses = []
    for number, pack in enumerate(packs):
        with engine.part(last=number + 1 == len(packs)):
            losses.append(forward_backward(model, pack, settings, tally, engine, per_sample))
    # One all-reduce for all numbers.
    own = torch.cat([torch.stack(losses).sum()[None], losses[0].new_tensor([float(leaving), float(saving)])])
    loss, ranks_leaving, ranks_saving = engine.total(own).unbind()
    norm = clip_gradients(model, settings.max_grad_norm)
    # Loss and norm are equal on every rank, so all ranks update or none does.
    finite = torch.isfinite(loss + norm)
    update_if(finite, optimizer)
    update_statistics(model, engine.total, finite)
    return StepResult(torch.stack([loss, norm, ranks_leaving, ranks_saving]), per_sample)


def clip_gradients(model: CoVeR, largest: float) -> Tensor:
    """Scale the gradient to a norm of at most `largest` (0: no limit); returns its norm before, over all shards."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if hasattr(norm, "full_tensor"):  # FSDP2: each rank has the norm of its shards
        norm = norm.full_tensor()
    if largest:  # the factor stays on the device, without a wait
        torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


def update_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Run the optimizer's step if `finite`, a bool on the device, is true.

    Fused AdamW decides on the device. Other optimizers make the host wait for the value.
    """
    if isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["fused"]:
        # The fused kernel reads this attribute, as with torch.amp.GradScaler, and skips the update if it is 1.
        optimizer.found_inf = 1 - finite.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:
        optimizer.step()
