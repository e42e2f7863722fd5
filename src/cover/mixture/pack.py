"""What one step works on: a batch of clips and images, without padding and without repetition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

    `frames`: uint8 `(T, 3, H, W)`. `targets` and `multi_hot`: its row of the Pack's. `weight`: 1, or 0 where the file
    could not be read (its frames are then black and count for nothing). `problem`: what is wrong with the file, None if
    nothing. `drawn`: what each transform drew for it, in the order of the draws.
    """

    frames: Tensor
    dataset: int
    targets: Tensor
    weight: float
    seed: int
    problem: FileProblem | None = None
    multi_hot: Tensor | None = None
    drawn: Mapping[type[Transform], Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """S samples with F frames in all, clips first, images last.

    `frames`: uint8 `(F, 3, H, W)`. `groups`: `(samples, frames each)`, in the order of the frames. `dataset`: int64
    `(S,)`, the place in the mixture's list of data sets. `targets`: int64 `(S, heads)`, the class in a softmax head, 0
    in a sigmoid head, -1 where a sample does not train a head. `weight`: float32 `(S,)`. `seed`: int64 `(S,)`, the low
    63 bits of each draw's seed. `problems`: the files that were damaged or could not be read. `multi_hot`: uint8 `(S,
    K)`, the classes of all sigmoid heads side by side in the heads' order, 1 where a sample has the class; None where
    no head is one.

    `drawn`: for each transform that is still to be applied, what it drew for the S samples: a tensor of S rows, or, at
    the stage `uint8`, a tuple. `mix`: how samples are mixed with each other, None without mixup and cutmix.
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

    def to(self, device: torch.device | str) -> Pack:
        """The same Pack with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Pack:
        """The same Pack in page-locked memory (the DataLoader calls this)."""
        return self._map(Tensor.pin_memory)

    def pixels(self, normalize: Callable[[Tensor], Tensor]) -> Tensor:
        """Normalised frames `(F, 3, H, W)` after all transforms; mixing comes after that. `normalize`: the model's."""
        frames = apply_stage("uint8", self.frames, self.drawn, self.groups)
        frames = normalize(apply_stage("float", frames.float() / 255, self.drawn, self.groups))
        return apply_stage("normalized", frames, self.drawn, self.groups)

    def _map(self, change: Callable[[Tensor], Tensor], **fields: Any) -> Pack:
        """The Pack with `change` made to every tensor that is not replaced by `fields`."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and name not in fields:
                fields[name] = change(value)
        drawn = {
            transform: change(value) if isinstance(value, Tensor) else value for transform, value in self.drawn.items()
        }
        return replace(self, drawn=drawn, mix=self.mix and Mix(*map(change, self.mix)), **fields)


def collate(groups: Sequence[Sequence[Sample]]) -> Pack:
    """Samples, group by group, as a Pack. Samples of a group have the same number of frames; a group may be empty."""
    groups = [group for group in groups if group]
    samples = [sample for group in groups for sample in group]
    multi_hot = [sample.multi_hot for sample in samples if sample.multi_hot is not None]
    return Pack(
        frames=torch.cat([sample.frames for sample in samples]),
        groups=tuple((len(group), len(group[0].frames)) for group in groups),
        dataset=torch.tensor([sample.dataset for sample in samples]),
        targets=torch.stack([sample.targets for sample in samples]),
        weight=torch.tensor([sample.weight for sample in samples]),
        seed=torch.tensor([sample.seed & (2**63 - 1) for sample in samples]),
        problems=tuple(sample.problem for sample in samples if sample.problem),
        multi_hot=torch.stack(multi_hot) if multi_hot else None,
        drawn={transform: _stacked([sample.drawn[transform] for sample in samples]) for transform in samples[0].drawn},
    )


def _stacked(values: Sequence[Any]) -> Any:
    return torch.stack(list(values)) if isinstance(values[0], Tensor) else tuple(values)


def augment_uint8(pack: Pack) -> Pack:
    """The Pack after its transforms of the stage `uint8`. What these drew may lie on the host, and cannot be split into
    micro-batches.
    """
    left = {transform: drawn for transform, drawn in pack.drawn.items() if transform.stage != "uint8"}
    return replace(pack, frames=apply_stage("uint8", pack.frames, pack.drawn, pack.groups), drawn=left)


def split_pack(pack: Pack, micro_batches: int) -> list[Pack]:
    """A Pack as `micro_batches` micro-batches with equal parts of every group, after `augment_uint8`."""
    assert all(transform.stage != "uint8" for transform in pack.drawn)
    if micro_batches == 1:
        return [pack]
    frames_of, samples_of, frame, sample = [], [], 0, 0
    for samples, frames in pack.groups:
        frames_of.append(pack.frames[frame : frame + samples * frames].view(micro_batches, -1, *pack.frames.shape[1:]))
        samples_of.append(torch.arange(sample, sample + samples, device=pack.dataset.device).view(micro_batches, -1))
        frame, sample = frame + samples * frames, sample + samples
    micro = []
    for part in range(micro_batches):
        mine, own = torch.cat([rows[part] for rows in samples_of]), torch.cat([rows[part] for rows in frames_of])
        groups = tuple((samples // micro_batches, frames) for samples, frames in pack.groups)
        micro.append(pack._map(lambda tensor, mine=mine: tensor[mine], frames=own, groups=groups, problems=()))  # type: ignore[misc]
    return micro
