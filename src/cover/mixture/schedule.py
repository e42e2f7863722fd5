"""The draws of every step: a pure function of the seed and the step, the same on any number of ranks.

Each step holds a constant number of clips of each length and of images. Within such a group every data set has exact
integer quotas: after s steps, data set d has been drawn floor or ceil of s * samples * rate_d times. This is
just-in-time sequencing, which serving the unit with the earliest deadline solves for any rates.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, zip_longest
from typing import TypeVar

import numpy as np
import torch

from cover.errors import UserError
from cover.mixture.dataset import MixtureDataset
from cover.transforms.base import FrameGroups
from cover.transforms.crop import Box
from cover.transforms.mixup import NO_BOX, Mix, Mixup

T = TypeVar("T")
_STRIDE = 1024


@dataclass(frozen=True)
class Draw:
    """One sample of one step: everything random about it follows from `seed` (64 bits).

    A further crop of a clip that another draw takes too has that draw's seed in `clip_seed`: its frames are taken at
    the same times.
    """

    dataset: str
    row: int  # of the manifest
    epoch: int
    seed: int
    clip_seed: int | None = None

    @property
    def clip(self) -> tuple[str, int, int]:
        """What draws of one clip have in common."""
        return self.dataset, self.row, self.epoch


@dataclass(frozen=True)
class Group:
    """The samples of a step that have the same number of frames, and the data sets that they are drawn from."""

    frames: int
    samples: int
    datasets: tuple[MixtureDataset, ...]

    @property
    def fractions(self) -> list[Fraction]:
        """The fraction of the group that each data set gets; they add up to 1."""
        total = sum((dataset.rate for dataset in self.datasets), Fraction(0))
        return [dataset.rate / total for dataset in self.datasets]


def split_batch(
    datasets: Sequence[MixtureDataset], batch: int, divisor: int, paired: bool = False
) -> tuple[Group, ...]:
    """The groups of a step of `batch` samples, longest clips first, images last.

    Counts are rounded once, by largest remainder, at least one sample each, whatever `divisor` (ranks x accumulation)
    is: the global batch does not depend on how it is computed. Raises `UserError` where a count is not a multiple of
    `divisor`, or, where samples are mixed in pairs (`paired`), where `divisor` would separate a pair.
    """
    lengths = sorted({dataset.frames for dataset in datasets}, reverse=True)
    if batch < len(lengths):
        raise UserError(f"batch: {batch} is too small: samples of {len(lengths)} lengths need at least one each")
    wanted = [batch * sum((d.rate for d in datasets if d.frames == length), Fraction(0)) for length in lengths]
    counts = [max(1, int(exact)) for exact in wanted]
    while sum(counts) < batch:
        counts[max(range(len(counts)), key=lambda i: wanted[i] - counts[i])] += 1
    while sum(counts) > batch:
        counts[max((i for i in range(len(counts)) if counts[i] > 1), key=lambda i: counts[i] - wanted[i])] -= 1
    for length, count in zip(lengths, counts, strict=True):
        if count % divisor:
            raise UserError(
                f"batch: a step of {batch} holds {count} samples of {length} frames, not a multiple of"
                f" ranks x accumulation = {divisor}; choose another batch, or other data.weights"
            )
        if paired and divisor > 1 and count // divisor % 2:
            raise UserError(
                f"batch: augment.mixup and cutmix work on pairs, but a step of {batch} holds {count} samples of"
                f" {length} frames, not a multiple of 2 x ranks x accumulation = {2 * divisor};"
                " choose another batch, or other data.weights"
            )
    grouped = (tuple(d for d in datasets if d.frames == length) for length in lengths)
    return tuple(Group(length, count, members) for length, count, members in zip(lengths, counts, grouped, strict=True))


class Schedule:
    """The draws of every step of a run.

    >>> schedule = Schedule(seed=0, groups=split_batch(datasets, batch=64, divisor=1))
    >>> schedule.step(1000)  # any step can be asked for first; one tuple of draws per group
    """

    def __init__(self, seed: int, groups: tuple[Group, ...], pairing: Pairing | None = None) -> None:
        """`pairing`: which samples are mixed, so that those of a pair come one after the other."""
        self.seed, self.groups, self.pairing = seed, groups, pairing
        self._quotas = tuple(Quotas(group) for group in groups)
        self._orders: dict[str, dict[int, np.ndarray]] = {}  # of a data set's rows, by epoch

    @property
    def batch(self) -> int:
        """The samples of a step."""
        return sum(group.samples for group in self.groups)

    @property
    def mean_step(self) -> FrameGroups:
        """What a step holds on average: the work of a run is as many times that of this one as it has steps."""
        return tuple((group.samples, group.frames) for group in self.groups)

    @property
    def largest_step(self) -> FrameGroups:
        """The step that holds the most frames: what has to fit into memory."""
        return self.mean_step

    @property
    def rates(self) -> dict[str, float]:
        """The fraction of the samples that each data set gets, after the groups were rounded."""
        return {
            dataset.name: float(fraction * group.samples / self.batch)
            for group in self.groups
            for dataset, fraction in zip(group.datasets, group.fractions, strict=True)
        }

    def describe(self) -> str:
        """What a step holds, for a line on the terminal."""
        return " + ".join(_describe(group) for group in self.groups)

    def step(self, step: int) -> tuple[tuple[Draw, ...], ...]:
        """The global draws of `step` (from 0), one tuple per group, in an order that mixes the data sets."""
        return tuple(
            self._group_draws(group, quotas, step) for group, quotas in zip(self.groups, self._quotas, strict=True)
        )

    def rank_step(self, step: int, rank: int, ranks: int) -> tuple[tuple[Draw, ...], ...]:
        """The slice of `step` that one of `ranks` equal ranks works on; the ranks' slices together are the step."""
        return tuple(draws[len(draws) * rank // ranks : len(draws) * (rank + 1) // ranks] for draws in self.step(step))

    def drawn(self, steps: int) -> dict[str, int]:
        """The samples of each data set in the first `steps` steps."""
        return {
            dataset.name: count
            for group, quotas in zip(self.groups, self._quotas, strict=True)
            for dataset, count in zip(group.datasets, quotas.after(steps), strict=True)
        }

    def expected(self, steps: int) -> dict[str, float]:
        """`drawn` before it is rounded to whole samples; quick for any number of steps."""
        return {
            dataset.name: float(steps * group.samples * fraction)
            for group in self.groups
            for dataset, fraction in zip(group.datasets, group.fractions, strict=True)
        }

    def _group_draws(self, group: Group, quotas: Quotas, step: int) -> tuple[Draw, ...]:
        """Shuffled clip by clip: the crops of one clip stay together, so that one decode serves them."""
        before, after = quotas.after(step), quotas.after(step + 1)
        clips = [
            [self._draw(dataset, number) for number in numbers]
            for dataset, first, last in zip(group.datasets, before, after, strict=True)
            for numbers in _by_clip(first, last, dataset.crops)
        ]
        order = np.random.default_rng([self.seed, step, group.frames]).permutation(len(clips))
        shuffled = [clips[place] for place in order]
        return self.pairing.order(shuffled) if self.pairing else tuple(draw for clip in shuffled for draw in clip)

    def _draw(self, dataset: MixtureDataset, number: int) -> Draw:
        """The `number`-th sample ever taken from a data set: it walks shuffled epochs of its own."""
        clip, crop = divmod(number, dataset.crops)
        epoch, place = divmod(clip, len(dataset.rows))
        row = int(dataset.rows[self._order(dataset, epoch)[place]])
        clip_seed = draw_seed(self.seed, dataset.name, epoch, row)
        if not crop:
            return Draw(dataset.name, row, epoch, clip_seed)
        return Draw(dataset.name, row, epoch, draw_seed(clip_seed, dataset.name, crop, row), clip_seed)

    def _order(self, dataset: MixtureDataset, epoch: int) -> np.ndarray:
        """The order of a data set's rows in an epoch. Two are kept, since a step may reach from one into the next: of a
        million rows each takes 8 MB, in every process."""
        known = self._orders.setdefault(dataset.name, {})
        if epoch not in known:
            while len(known) > 1:
                del known[next(iter(known))]
            seed = draw_seed(self.seed, dataset.name, epoch, -1 % 2**64)
            known[epoch] = np.random.default_rng(seed).permutation(len(dataset.rows))
        return known[epoch]


class Alternating(Schedule):
    """A schedule whose steps hold `batch` samples of one length each, in turn. A run holds as many samples of every
    data set as with the mixed steps of `groups`, within half a step of each length, under the same quotas. An ablation
    (docs/ablations.md), for one process.

    >>> [len(draws) for draws in Alternating(0, groups).step(0)]
    [40, 0]
    """

    def __init__(self, seed: int, groups: tuple[Group, ...], pairing: Pairing | None = None) -> None:
        super().__init__(seed, groups, pairing)
        self._whole = tuple(Group(group.frames, self.batch, group.datasets) for group in groups)
        self._quotas = tuple(Quotas(group) for group in self._whole)
        no_rows = np.zeros(0, np.int64)
        lengths = tuple(MixtureDataset(str(group.frames), no_rows, rate=Fraction(group.samples)) for group in groups)
        self._turns = Quotas(Group(0, 1, lengths))

    @property
    def largest_step(self) -> FrameGroups:
        largest = max(self._whole, key=lambda group: group.frames)
        return ((largest.samples, largest.frames),)

    def describe(self) -> str:
        return ", or ".join(_describe(group) for group in self._whole)

    def step(self, step: int) -> tuple[tuple[Draw, ...], ...]:
        """The draws of `step`: those of all lengths but one are empty."""
        before, after = self._turns.after(step), self._turns.after(step + 1)
        return tuple(
            self._group_draws(group, quotas, first) if last > first else ()
            for group, quotas, first, last in zip(self._whole, self._quotas, before, after, strict=True)
        )

    def drawn(self, steps: int) -> dict[str, int]:
        return {
            dataset.name: count
            for group, quotas, turns in zip(self._whole, self._quotas, self._turns.after(steps), strict=True)
            for dataset, count in zip(group.datasets, quotas.after(turns), strict=True)
        }


def _describe(group: Group) -> str:
    return f"{group.samples} {'images' if group.frames == 1 else f'clips of {group.frames}'}"


def _by_clip(first: int, last: int, crops: int) -> Iterator[range]:
    """The numbers `first` to `last` - 1, a range for each clip."""
    for clip in range(first // crops, -(-last // crops)):
        yield range(max(first, clip * crops), min(last, (clip + 1) * crops))


@dataclass(frozen=True)
class Pairing:
    """The pairs of samples that mixup and cutmix mix: a pure function of a step's draws.

    Partners are neighbours, samples 2i and 2i + 1 of a group in the order of the whole step, so that neither ranks nor
    micro-batches separate them as long as each gets an even number of every group.

    `heads`: data set -> the head that it trains; both samples of a pair are of one head. `chance`: data set -> the
    probability that a pair of its samples is mixed, 1 where not given; for a pair of two data sets the smaller one
    counts.
    """

    heads: Mapping[str, str]
    mixup: Mixup
    chance: Mapping[str, float] = field(default_factory=dict)

    def order(self, clips: Sequence[Sequence[Draw]]) -> tuple[Draw, ...]:
        """The draws of a group, given clip by clip, as pairs of one head and two clips where possible; the others come
        last.
        """
        place = {draw: number for number, draw in enumerate(chain.from_iterable(clips))}
        pairs: list[Sequence[Draw]] = []
        single: list[Sequence[Draw]] = []
        for head in dict.fromkeys(self.heads[clip[0].dataset] for clip in clips):
            for pair in _two_by_two(_alternate([clip for clip in clips if self.heads[clip[0].dataset] == head])):
                (pairs if len(pair) == 2 else single).append(pair)
        pairs.sort(key=lambda pair: place[pair[0]])  # as shuffled as before
        return tuple(chain(*pairs, *single))

    def mix(self, groups: Sequence[Sequence[Draw]], size: int) -> Mix:
        """How the samples of a Pack of `size` x `size` pixels are mixed, from the draws of its groups."""
        rows = [row for draws in groups for pair in _two_by_two(draws) for row in self._rows(pair, size)]
        partners, lams, boxes = zip(*rows, strict=True)
        return Mix(torch.tensor(partners), torch.tensor(lams, dtype=torch.float32), torch.tensor(boxes))

    def _rows(self, pair: Sequence[Draw], size: int) -> list[tuple[int, float, Box]]:
        """`partner`, `lam` and `box` of each sample of a pair, or of a single one."""
        drawn = None
        if len({self.heads[draw.dataset] for draw in pair}) == 1 and len({draw.clip for draw in pair}) == 2:
            chance = min(self.chance.get(draw.dataset, 1.0) for draw in pair)
            drawn = self.mixup.draw(np.random.default_rng([draw.seed for draw in pair]), size, chance)
        return [(1, *drawn), (-1, *drawn)] if drawn else [(0, 0.0, NO_BOX)] * len(pair)


def _alternate(clips: Sequence[Sequence[Draw]]) -> list[Draw]:
    """The draws of clips, the crops of every two clips in turn: a clip is not mixed with itself."""
    return [draw for pair in _two_by_two(clips) for turn in zip_longest(*pair) for draw in turn if draw]


def _two_by_two(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[first : first + 2] for first in range(0, len(items), 2)]


class Quotas:
    """How often each data set of a group has been drawn after s steps.

    Steps are played forward from the nearest stored counts: those of every `_STRIDE`-th step and of the last step asked
    for.
    """

    def __init__(self, group: Group) -> None:
        self._per_step = [group.samples * fraction for fraction in group.fractions]
        self._samples = group.samples
        self._milestones = [tuple(0 for _ in group.datasets)]
        self._last = (0, self._milestones[0])

    def after(self, steps: int) -> tuple[int, ...]:
        nearest = min(steps // _STRIDE, len(self._milestones) - 1)
        step, counts = nearest * _STRIDE, self._milestones[nearest]
        if step <= self._last[0] <= steps:
            step, counts = self._last
        while step < steps:
            step += 1
            counts = self._next(counts, step)
            if step == len(self._milestones) * _STRIDE:
                self._milestones.append(counts)
        self._last = (step, counts)
        return counts

    def _next(self, drawn: tuple[int, ...], step: int) -> tuple[int, ...]:
        """The counts after `step` steps, from those one step before: first what is due, then the earliest deadlines."""
        exact = [step * rate for rate in self._per_step]
        counts = [max(have, int(due)) for have, due in zip(drawn, exact, strict=True)]
        open_ = [i for i, due in enumerate(exact) if counts[i] < due]  # one more stays at most at the ceiling
        open_.sort(key=lambda i: (-(-(counts[i] + 1) // self._per_step[i]), i))
        left = step * self._samples - sum(counts)
        assert 0 <= left <= len(open_), "quotas of a step do not add up"
        for i in open_[:left]:
            counts[i] += 1
        return tuple(counts)


def draw_seed(seed: int, dataset: str, epoch: int, row: int) -> int:
    """64 bits that depend on nothing but the run's seed and the sample's place in it."""
    packed = struct.pack("<QQQ", seed, epoch, row) + dataset.encode()
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")
