"""What one step works on: a batch of clips and images, without padding and without repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cover.media.randaugment import Change


@dataclass(frozen=True)
class Sample:
    """One clip or image, ready to be packed.

    `frames`: uint8 `(T, 3, H, W)`. `targets` and `multi_hot`: its row of the Pack's. `weight`: 1, or 0
    where the file could not be read (its frames are then black and count for nothing). `colour`: float32 `(3, 4)`, an affine map of
    RGB in 0..1. `change`: what RandAugment makes of it, None for nothing. `erase`: int64 `(4,)`, a box to erase, None where nothing is
    ever erased. `note`: what was wrong with the file, None if nothing.
    """

    frames: Tensor
    dataset: int
    targets: Tensor
    weight: float
    colour: Tensor
    seed: int
    note: str | None = None
    multi_hot: Tensor | None = None
    change: Change | None = None
    erase: Tensor | None = None


@dataclass(frozen=True)
class Pack:
    """S samples with F frames in all, clips first, images last.

    `frames`: uint8 `(F, 3, H, W)`. `groups`: `(samples, frames each)`, in the order of the frames. `dataset`: int64 `(S,)`, the
    place in the mixture's list of data sets. `targets`: int64 `(S, heads)`, the class in a softmax head, 0 in a sigmoid head, -1
    where a sample does not train a head. `weight`: float32 `(S,)`. `colour`: float32 `(S, 3, 4)`. `seed`: int64 `(S,)`, the low 63
    bits of each draw's seed. `notes`: one line per file that was damaged or could not be read. `multi_hot`: uint8 `(S, K)`, the classes of
    all sigmoid heads side by side in the heads' order, 1 where a sample has the class; None where no head is one.

    `changes`: per sample what RandAugment makes of it, empty where it is made or there is none; on the host. `erase`: int64 `(S, 4)`,
    the box (left, top, right, bottom) that is erased, zeros for none; None where nothing is ever erased. For mixup and cutmix, None
    without them: `partner`, int64 `(S,)`, how many samples away the one lies that a sample is mixed with; `share`, float32 `(S,)`, the
    partner's share, 0 where it is not mixed; `cut`, int64 `(S, 4)`, the box that is pasted from the partner, zeros for mixup.
    """

    frames: Tensor
    groups: tuple[tuple[int, int], ...]
    dataset: Tensor
    targets: Tensor
    weight: Tensor
    colour: Tensor
    seed: Tensor
    notes: tuple[str, ...] = ()
    multi_hot: Tensor | None = None
    changes: tuple[Change | None, ...] = ()
    erase: Tensor | None = None
    partner: Tensor | None = None
    share: Tensor | None = None
    cut: Tensor | None = None

    def to(self, device: torch.device | str) -> Pack:
        """The same Pack with its tensors on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Pack:
        """The same Pack in page-locked memory (the DataLoader calls this)."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Pack:
        fields: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **fields)


def collate(groups: Sequence[Sequence[Sample]]) -> Pack:
    """Samples, group by group, as a Pack. All samples of a group have the same number of frames; a group may be empty."""
    groups = [group for group in groups if group]
    samples = [sample for group in groups for sample in group]
    multi_hot = [sample.multi_hot for sample in samples if sample.multi_hot is not None]
    erase = [sample.erase for sample in samples if sample.erase is not None]
    return Pack(
        frames=torch.cat([sample.frames for sample in samples]),
        groups=tuple((len(group), len(group[0].frames)) for group in groups),
        dataset=torch.tensor([sample.dataset for sample in samples]),
        targets=torch.stack([sample.targets for sample in samples]),
        weight=torch.tensor([sample.weight for sample in samples]),
        colour=torch.stack([sample.colour for sample in samples]),
        seed=torch.tensor([sample.seed & (2**63 - 1) for sample in samples]),
        notes=tuple(sample.note for sample in samples if sample.note),
        multi_hot=torch.stack(multi_hot) if multi_hot else None,
        changes=tuple(sample.change for sample in samples) if any(sample.change for sample in samples) else (),
        erase=torch.stack(erase) if erase else None,
    )


def split_pack(pack: Pack, parts: int) -> list[Pack]:
    """A Pack as `parts` micro-batches with equal shares of every group; its `changes` are made before."""
    assert not pack.changes
    if parts == 1:
        return [pack]
    frames_of, samples_of, frame, sample = [], [], 0, 0
    for samples, frames in pack.groups:
        frames_of.append(pack.frames[frame : frame + samples * frames].view(parts, -1, *pack.frames.shape[1:]))
        samples_of.append(torch.arange(sample, sample + samples, device=pack.dataset.device).view(parts, -1))
        frame, sample = frame + samples * frames, sample + samples
    micro = []
    for part in range(parts):
        mine = torch.cat([rows[part] for rows in samples_of])
        per_sample: dict[str, Any] = {
            name: value[mine] for name, value in vars(pack).items() if isinstance(value, Tensor) and name != "frames"
        }
        groups = tuple((samples // parts, frames) for samples, frames in pack.groups)
        micro.append(Pack(frames=torch.cat([rows[part] for rows in frames_of]), groups=groups, **per_sample))
    return micro
