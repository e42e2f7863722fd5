"""Patches and frames that do not change over time: each run of equal ones becomes one token with its length.

Run-Length Tokenization (Choudhury et al., NeurIPS 2024). A patch that differs from the first of its run by at most a
threshold is left out. Unlike there, the attention to a token counts it as many times as its run is long. So where
nothing distinguishes the slots of a clip, the result for equal patches is that of the whole network.

Letters in shapes: S samples, T slots of one sample, P patches of one slot, C values of one patch, K patches retained.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cover.model.backbone import Groups, per_frame


class Runs(NamedTuple):
    """The runs of one sample: the first patch of each, int64 `(K,)` among its T P patches, and its slots, `(K,)`."""

    first: Tensor
    length: Tensor


def patch_values(frames: Tensor, std: Tensor, patch: int, tubelet: int) -> Tensor:
    """The pixels of each patch from 0 to 1, but for a constant, `(slots, P, C)`, from normalised `(F, 3, H, W)`."""
    x = (frames * std).unflatten(2, (-1, patch)).unflatten(4, (-1, patch))  # (F, 3, rows, patch, columns, patch)
    x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return x.unflatten(0, (-1, tubelet)).transpose(1, 2).flatten(2) if tubelet > 1 else x


def unchanged(values_STPC: Tensor, threshold: float, whole: bool = False) -> Tensor:
    """Which patches repeat the first of their run, bool `(S, T, P)`. `whole`: only where a whole frame repeats, P = 1.

    A patch repeats if the mean absolute difference of its values is at most `threshold`. It is compared with the first
    patch of the run, not with the one before it, so that slow changes are not lost.
    """
    first, repeats = values_STPC[:, 0], []
    for values in values_STPC.unbind(1):
        same = (values - first).abs().mean(-1) <= threshold  # (S, P)
        same = same.all(1, keepdim=True) if whole else same
        first = torch.where(same[..., None], first, values)
        repeats.append(same)
    repeats[0] = torch.zeros_like(repeats[0])  # a run begins with the clip
    return torch.stack(repeats, 1)


def runs_of(repeats_TP: Tensor) -> Runs:
    """The runs of the patches of one sample."""
    length = torch.ones(repeats_TP.shape, dtype=torch.int64, device=repeats_TP.device)
    for slot in range(len(length) - 2, -1, -1):
        length[slot] += torch.where(repeats_TP[slot + 1], length[slot + 1], 0)
    first = (~repeats_TP).flatten().nonzero()[:, 0]
    return Runs(first, length.flatten()[first])


def run_means(position_TPD: Tensor, runs: Runs, patches: int) -> Tensor:
    """The mean over each run of what is added to its patches, `(K, D)`, from `(T, P or 1, D)`."""
    sums = torch.cat([torch.zeros_like(position_TPD[:1]), position_TPD.cumsum(0)])
    slot, place = runs.first // patches, runs.first % patches
    place = place if sums.shape[1] > 1 else torch.zeros_like(place)
    return (sums[slot + runs.length, place] - sums[slot, place]) / runs.length[:, None]


class DistinctFrames(NamedTuple):
    """The frames of a Pack of which none repeats the one before, and the place of every frame among them.

    `frames`: int64 `(F',)`. `place`: int64 `(F,)`. `sample`: the sample of each distinct frame, int64 `(F',)`.
    """

    frames: Tensor
    place: Tensor
    sample: Tensor


def distinct_frames(values_FPC: Tensor, groups: Groups, threshold: float) -> DistinctFrames:
    """The distinct frames of a Pack."""
    parts = values_FPC.split([samples * length for samples, length in groups])
    repeats = torch.cat(
        [
            unchanged(part.unflatten(0, group), threshold, whole=True).flatten()
            for part, group in zip(parts, groups, strict=True)
        ]
    )
    frames = (~repeats).nonzero()[:, 0]
    samples = per_frame(torch.arange(sum(count for count, _ in groups), device=values_FPC.device), groups)
    return DistinctFrames(frames, (~repeats).cumsum(0) - 1, samples[frames])
