"""BatchNorm over the groups of a Pack, with running statistics that all groups, micro-batches and ranks share.

One rule for every network with BatchNorm (docs/backbones.md):

1. In evaluation, and where the scale of a norm is frozen or `batch_statistics` is false, a norm uses its running
   statistics. So a sample does not depend on the rest of the Pack.
2. Otherwise each group of the Pack is normalised by its own mean and variance: clips and images differ. A group is
   divided into parts of `norm_samples` samples, if its number of samples is a multiple. The parts of a step are then
   the same for any number of ranks and micro-batches, as long as a micro-batch of a rank has whole parts.
3. The running statistics change once per optimizer step, in `update_statistics`, to the mean over all parts of all
   groups, micro-batches and ranks. A part counts by its number of frames. So every rank has the same statistics.

Letters in shapes: S samples, F frames of all samples together (clips first), C channels, h, w sides of a map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.model.backbone import Groups, is_recomputing
from cover.model.layers import each_group

MOMENTUM = 0.1  # weight of a step in the running statistics; the first steps weigh more, so zeros and ones do not count


class PackBatchNorm(nn.Module):
    """BatchNorm of maps `(F, C, h, w)`, group by group in training.

    `batch_statistics`: whether training uses and updates the statistics of groups; false keeps the running ones.
    `norm_samples`: the samples that are normalised together; 0 for whole groups. `updates`: number of steps that have
    changed the running statistics.
    """

    running_mean: Tensor
    running_var: Tensor
    updates: Tensor

    def __init__(self, channels: int, eps: float, batch_statistics: bool = True, norm_samples: int = 0) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.batch_statistics, self.norm_samples = batch_statistics, norm_samples
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("updates", torch.zeros(()))
        # Sums of this step over parts: frames x mean, frames x variance, frames. No buffer, because a release that is
        # loaded has no value for it.
        self._pending: Tensor | None = None

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether a forward pass normalises by the statistics of its own groups."""
        return self.training and self.batch_statistics and self.weight.requires_grad

    @property
    def pending(self) -> Tensor:
        """The sums of this step, float32 `(2 channels + 1,)`."""
        return self.running_mean.new_zeros(2 * self.channels + 1) if self._pending is None else self._pending

    def forward(self, x_FChw: Tensor, groups: Groups) -> Tensor:
        """`(F, C, h, w)` to the same shape."""
        if not self.uses_batch_statistics:
            return self._by_running_statistics(x_FChw)
        parts = [self._by_own_statistics(part_FChw, group) for part_FChw, group in each_group(x_FChw, groups)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _by_running_statistics(self, x_FChw: Tensor) -> Tensor:
        return fn.batch_norm(x_FChw, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def _by_own_statistics(self, x_FChw: Tensor, group: tuple[int, int]) -> Tensor:
        """The maps of one group, each of its parts normalised alone."""
        samples, frames = group
        whole = not self.norm_samples or samples % self.norm_samples
        parts = 1 if whole else samples // self.norm_samples
        if x_FChw[:, 0].numel() == parts:
            return self._by_running_statistics(x_FChw)  # one value per channel has no variance
        # Parts become channels, so that one call normalises all of them: (F / parts, parts C, h, w).
        x = x_FChw if parts == 1 else x_FChw.unflatten(0, (parts, -1)).transpose(0, 1).flatten(1, 2)
        mean, variance = (self.running_mean.new_zeros(parts * self.channels) for _ in range(2))
        weight, bias = self.weight.repeat(parts), self.bias.repeat(parts)
        y = fn.batch_norm(x, mean, variance, weight, bias, True, 1.0, self.eps)  # fills `mean` and `variance`
        if not is_recomputing():
            with torch.no_grad():
                means = [values.view(parts, -1).mean(0) for values in (mean, variance)]
                self._pending = self.pending + torch.cat([*means, mean.new_ones(1)]) * (samples * frames)
        return y if parts == 1 else y.unflatten(1, (parts, -1)).transpose(0, 1).flatten(0, 1)

    @torch.no_grad()
    def update(self, sums: Tensor, finite: Tensor | None = None) -> None:
        """Move the running statistics towards those of a step, and clear `pending`.

        `sums`: `pending`, summed over the ranks. `finite`: a bool on the device; if it is false, nothing changes.
        """
        frames = sums[-1]
        usable = frames > 0 if finite is None else (frames > 0) & finite
        rate = (1 / (self.updates + 1)).clamp_min(MOMENTUM)
        for running, total in zip((self.running_mean, self.running_var), sums[:-1].view(2, -1), strict=True):
            running.copy_(torch.where(usable, torch.lerp(running, total / frames, rate), running))
        self.updates += usable
        self._pending = None


def batch_norms(network: nn.Module) -> dict[str, PackBatchNorm]:
    """Name -> norm, for every norm whose running statistics training changes."""
    norms = {name: module for name, module in network.named_modules() if isinstance(module, PackBatchNorm)}
    return {name: norm for name, norm in norms.items() if norm.batch_statistics and norm.weight.requires_grad}


def update_statistics(
    network: nn.Module, total: Callable[[Tensor], Tensor] | None = None, finite: Tensor | None = None
) -> None:
    """Update the running statistics of every norm from the forward passes since the last call.

    Call it once per optimizer step, after all micro-batches. `total`: the sum of a tensor over the ranks; every rank
    must call it. `finite`: a bool on the device; if it is false, the statistics stay as they are.
    """
    norms = list(batch_norms(network).values())
    if not norms:
        return
    sums = torch.cat([norm.pending for norm in norms])
    if total is not None:
        sums = total(sums)
    for norm, own in zip(norms, sums.split([2 * norm.channels + 1 for norm in norms]), strict=True):
        norm.update(own, finite)
