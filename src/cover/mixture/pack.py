"""The Pack: one batch of clips and images, without padding and without repetition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cover.transforms.base import Transform, apply_stage
from cover.transforms.mixup import Mix

if TYPE_CHECKING:
    from cover.media.decode import FileProblem


@dataclass(frozen=True)
class Sample:
    """One clip or image, ready to be packed.

    `frames`: uint8 `(T, 3, H, W)`. `dataset`: index of its data set in the mixture. `targets`, `multi_hot`: its rows of
    `Pack.targets` and `Pack.multi_hot`. `weight`: 1, or 0 if the file could not be read. Its frames are black then, and
    it does not count in the loss. `seed`: the seed of its draw (`Draw.step_seed`). `problem`: the damage of the file,
    None without any. `drawn`: transform -> the parameters that it drew, in the order of the draws. `class_weight`: the
    factor of its class on its loss. `flipped`: whether it was flipped.

    The frames of a `CachedReader` are outputs of the first stages of a network, float `(T, ...)`.
    """

    frames: Tensor
    dataset: int
    targets: Tensor
    weight: float
    seed: int
    problem: FileProblem | None = None
    multi_hot: Tensor | None = None
    drawn: Mapping[type[Transform], Any] = field(default_factory=dict)
    class_weight: float = 1.0
    flipped: bool = False


@dataclass(frozen=True)
class Pack:
    """S samples with F frames in total. Clips come first, images last.

    `frames`: uint8 `(F, 3, H, W)`; with `stages`, float `(F, ...)`.
    `groups`: `(samples, frames of each sample)` of every group, in the order of the frames.
    `dataset`: int64 `(S,)`, index into the mixture's list of data sets.
    `targets`: int64 `(S, heads)`, the class in a softmax head, 0 in a sigmoid head, -1 if a sample does not train the
    head.
    `weight`: float32 `(S,)`, 1, or 0 if the file could not be read.
    `seed`: int64 `(S,)`, the low 63 bits of the seed of each draw.
    `problems`: the files that are damaged or could not be read.
    `multi_hot`: uint8 `(S, K)`, 1 if a sample has the class. The K columns are the classes of all sigmoid heads, in
    the order of the heads. None if there is no sigmoid head.
    `drawn`: transform that is not applied yet -> its parameters for the S samples: a tensor of S rows, or a tuple at
    the stage `uint8`.
    `mix`: how samples are mixed with each other, None without mixup and cutmix.
    `class_weight`: float32 `(S,)`, the factor of a sample's class on its loss. None for 1.
    `stages`: above 0, `frames` is the output of this many stages of the network (`Backbone.forward_prefix`).
    """

    frames: Tensor
    groups: tuple[tuple[int, int], ...]
    dataset: Tensor
    targets: Tensor
    weight: Tensor
    seed: Tensor
    problems: tuple[FileProblem, ...] = ()
    multi_hot: Tensor | None = None
    drawn: Mapping[type[Transform], Any] = field(default_factory=dict)
    mix: Mix | None = None
    class_weight: Tensor | None = None
    stages: int = 0

    def to(self, device: torch.device | str) -> Pack:
        """The same Pack with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Pack:
        """The same Pack in page-locked memory (the DataLoader calls this)."""
        return self._map(Tensor.pin_memory)

    def pixels(self, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        """The frames after all transforms and normalisation, float32 `(F, 3, H, W)`. They are not mixed yet.

        `normalize`: the model's normalisation of frames in 0 to 1. With `stages` the frames are no pixels any more, and
        only become float32.
        """
        if self.stages:
            return self.frames.float()
        frames = apply_stage("uint8", self.frames, self.drawn, self.groups)
        frames = normalize(apply_stage("float", frames.float() / 255, self.drawn, self.groups))
        return apply_stage("normalized", frames, self.drawn, self.groups)

    def _map(self, function: Callable[[Tensor], Tensor], **fields: Any) -> Pack:
        """A Pack with `function` applied to every tensor. `fields` replaces whole fields."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in fields:
                fields[name] = function(value)
        drawn = {key: function(value) if isinstance(value, Tensor) else value for key, value in self.drawn.items()}
        return replace(self, drawn=drawn, mix=self.mix and Mix(*map(function, self.mix)), **fields)


def collate(groups: Sequence[Sequence[Sample]], stages: int = 0) -> Pack:
    """The Pack of samples that are given group by group.

    All samples of a group have the same number of frames. A group may be empty. `stages`: as in a Pack.
    """
    groups = [group for group in groups if group]
    samples = [sample for group in groups for sample in group]
    multi_hot = [sample.multi_hot for sample in samples if sample.multi_hot is not None]
    return Pack(
        frames=torch.cat([sample.frames for sample in samples]),
        groups=tuple((len(group), len(group[0].frames)) for group in groups),
        dataset=torch.tensor([sample.dataset for sample in samples]),
        targets=torch.stack([sample.targets for sample in samples]),
        weight=torch.tensor([sample.weight for sample in samples]),
        seed=torch.tensor([sample.seed & (2**63 - 1) for sample in samples]),  # int64 has no 64th bit
        problems=tuple(sample.problem for sample in samples if sample.problem),
        multi_hot=torch.stack(multi_hot) if multi_hot else None,
        drawn={transform: _stacked([sample.drawn[transform] for sample in samples]) for transform in samples[0].drawn},
        class_weight=torch.tensor([sample.class_weight for sample in samples]),
        stages=stages,
    )


def _stacked(values: Sequence[Any]) -> Any:
    return torch.stack(list(values)) if isinstance(values[0], Tensor) else tuple(values)


def augment_uint8(pack: Pack) -> Pack:
    """The Pack after its transforms of the stage `uint8`.

    Call this before `split_pack`: the parameters of these transforms are tuples on the host, and cannot be split.
    """
    left = {transform: drawn for transform, drawn in pack.drawn.items() if transform.stage != "uint8"}
    return replace(pack, frames=apply_stage("uint8", pack.frames, pack.drawn, pack.groups), drawn=left)


def split_pack(pack: Pack, micro_batches: int) -> list[Pack]:
    """A Pack, after `augment_uint8`, as `micro_batches` smaller Packs. Each gets an equal part of every group.

    `problems` stays with the whole Pack.
    """
    assert all(transform.stage != "uint8" for transform in pack.drawn)
    if micro_batches == 1:
        return [pack]
    # For each group: its frames (M, frames of a part, 3, H, W) and the indices of its samples (M, samples of a part).
    frames_of, samples_of, frame, sample = [], [], 0, 0
    for samples, length in pack.groups:
        frames_of.append(pack.frames[frame : frame + samples * length].view(micro_batches, -1, *pack.frames.shape[1:]))
        samples_of.append(torch.arange(sample, sample + samples, device=pack.dataset.device).view(micro_batches, -1))
        frame, sample = frame + samples * length, sample + samples
    groups = tuple((samples // micro_batches, length) for samples, length in pack.groups)
    micro = []
    for part in range(micro_batches):
        chosen = torch.cat([rows[part] for rows in samples_of])
        frames = torch.cat([rows[part] for rows in frames_of])
        take = partial(torch.index_select, dim=0, index=chosen)
        micro.append(pack._map(take, frames=frames, groups=groups, problems=()))
    return micro
