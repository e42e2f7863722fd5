"""The schedule: the draws of every step, as a pure function of the seed and the step.

The draws are the same for any number of ranks. Every step has a constant number of samples of each length; the samples
of one length are a group. Within a group the quotas are exact: after s steps, data set d has been drawn floor or ceil
of s * samples * rate_d times. This is the product rate variation problem of just-in-time sequencing. The rule
"earliest deadline first" solves it for all rates (Steiner and Yeomans 1993). With class balance, the classes of a data
set have such quotas too: after k draws of the data set, class c has been drawn floor or ceil of k * rate_c times.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, combinations, zip_longest
from typing import TypeVar

import numpy as np
import torch

from cover.errors import UserError
from cover.mixture.dataset import MixtureDataset
from cover.transforms.base import FrameGroups
from cover.transforms.crop import Box
from cover.transforms.mixup import NO_BOX, Mix, Mixup

T = TypeVar("T")
_NEAR = 32  # steps over which `Quotas` counts step by step before it looks for a shorter way
_MOST_POSSIBLE = 1000  # counts of a step that `Quotas` follows at once


@dataclass(frozen=True)
class Draw:
    """One sample of one step. All its randomness comes from `seed`, a number of 64 bits.

    `row`: row of the manifest. `epoch`: epoch of the data set, from 0; with class balance, epoch of the row's class.
    `clip_seed`: set on every crop of a clip but the first. It is the seed of the first crop, which chooses the times of
    the frames for all crops.

    If a row has a limited number of views (`Schedule`), `view` is the number of this one. Equal views have equal seeds,
    so equal pixels; `own_seed` is then another one in every epoch.
    """

    dataset: str
    row: int
    epoch: int
    seed: int
    clip_seed: int | None = None
    view: int = 0
    own_seed: int | None = None

    @property
    def step_seed(self) -> int:
        """The seed of randomness behind the pixels, which is drop-path. It differs also where a view is repeated."""
        return self.seed if self.own_seed is None else self.own_seed

    @property
    def clip(self) -> tuple[str, int, int]:
        """The key of the clip. All crops of one clip have the same key."""
        return self.dataset, self.row, self.epoch


@dataclass(frozen=True)
class Group:
    """The samples of a step with the same number of frames, and the data sets that they are drawn from."""

    frames: int
    samples: int
    datasets: tuple[MixtureDataset, ...]

    @property
    def fractions(self) -> list[Fraction]:
        """The fraction of the group that each data set gets. The fractions add up to 1."""
        total = sum((dataset.rate for dataset in self.datasets), Fraction(0))
        return [dataset.rate / total for dataset in self.datasets]


def split_batch(
    datasets: Sequence[MixtureDataset], batch: int, divisor: int, paired: bool = False
) -> tuple[Group, ...]:
    """The groups of a step of `batch` samples. The longest clips come first, images last.

    `divisor`: ranks x accumulation. `paired`: whether samples are mixed in pairs. The counts do not depend on
    `divisor`, so the global batch is the same for any number of ranks. Raises `UserError` if a count is not a multiple
    of `divisor`, or if `divisor` would separate the two samples of a pair.
    """
    lengths = sorted({dataset.frames for dataset in datasets}, reverse=True)
    if batch < len(lengths):
        raise UserError(f"batch: {batch} is too small: samples of {len(lengths)} lengths need at least one each")
    exact = [batch * sum((d.rate for d in datasets if d.frames == length), Fraction(0)) for length in lengths]
    counts = _round_counts(exact, batch)
    _check_divisible(lengths, counts, batch, divisor, paired)
    datasets_of = (tuple(d for d in datasets if d.frames == length) for length in lengths)
    return tuple(Group(*fields) for fields in zip(lengths, counts, datasets_of, strict=True))


def _round_counts(exact: Sequence[Fraction], batch: int) -> list[int]:
    """Integers near `exact` that add up to `batch`, each at least 1 (largest-remainder method)."""
    counts = [max(1, int(value)) for value in exact]
    while sum(counts) < batch:
        counts[max(range(len(counts)), key=lambda i: exact[i] - counts[i])] += 1
    # Raising small counts to 1 can exceed the batch. Then the count that is furthest above its exact value gives back.
    while sum(counts) > batch:
        counts[max((i for i in range(len(counts)) if counts[i] > 1), key=lambda i: counts[i] - exact[i])] -= 1
    return counts


def _check_divisible(lengths: Sequence[int], counts: Sequence[int], batch: int, divisor: int, paired: bool) -> None:
    for length, count in zip(lengths, counts, strict=True):
        if count % divisor:
            raise UserError(
                f"batch: a step of {batch} holds {count} samples of {length} frames, not a multiple of"
                f" ranks x accumulation = {divisor}; choose another batch, or other data.weights"
            )
        if paired and divisor > 1 and count // divisor % 2:
            raise UserError(
                f"batch: augment.mixup and cutmix work on pairs, but a step of {batch} holds {count} samples of"
                f" {length} frames, not a multiple of 2 x ranks x accumulation = {2 * divisor}; choose another"
                " batch, or other data.weights"
            )


class Schedule:
    """The draws of every step of a run.

    >>> schedule = Schedule(seed=0, groups=split_batch(datasets, batch=64, divisor=1))
    >>> schedule.step(1000)  # one tuple of draws per group; steps may be computed in any order
    """

    def __init__(
        self,
        seed: int,
        groups: tuple[Group, ...],
        pairing: Pairing | None = None,
        views: int = 0,
        views_seed: int = 0,
    ) -> None:
        """`pairing`: how samples are paired for mixup. The two samples of a pair come one after the other.

        `views`: how many augmented views a row has. Epoch e draws view e modulo `views`, with the same pixels each
        time. 0: every epoch has its own. The pixels of a view depend on `views_seed` and the sample id, not on `seed`
        and the place in the manifest, so that runs with other seeds and other rows have the same views.
        """
        self.seed, self.groups, self.pairing = seed, groups, pairing
        self.views, self.views_seed = views, views_seed
        self._quotas = tuple(Quotas(group) for group in groups)
        self._orders: dict[tuple[str, int], dict[int, np.ndarray]] = {}  # data set and class -> epoch -> order

    @property
    def batch(self) -> int:
        """The samples of a step."""
        return sum(group.samples for group in self.groups)

    @property
    def mean_step(self) -> FrameGroups:
        """The groups of an average step. The work of a run is this times the number of steps."""
        return tuple((group.samples, group.frames) for group in self.groups)

    @property
    def largest_step(self) -> FrameGroups:
        """The groups of the step with the most frames. This step must fit into memory."""
        return self.mean_step

    @property
    def rates(self) -> dict[str, float]:
        """Data set -> its fraction of the samples, after the sizes of the groups are rounded."""
        return {
            dataset.name: float(fraction * group.samples / self.batch)
            for group in self.groups
            for dataset, fraction in zip(group.datasets, group.fractions, strict=True)
        }

    def describe(self) -> str:
        """The contents of a step in words, for the terminal."""
        return " + ".join(_describe(group) for group in self.groups)

    def step(self, step: int) -> tuple[tuple[Draw, ...], ...]:
        """The global draws of `step` (from 0), one tuple per group, in an order that mixes the data sets."""
        return tuple(
            self._group_draws(group, quotas, step) for group, quotas in zip(self.groups, self._quotas, strict=True)
        )

    def rank_step(self, step: int, rank: int, ranks: int) -> tuple[tuple[Draw, ...], ...]:
        """The part of `step` for one rank: an equal slice of every group. All slices together are the step."""
        return tuple(draws[len(draws) * rank // ranks : len(draws) * (rank + 1) // ranks] for draws in self.step(step))

    def drawn(self, steps: int) -> dict[str, int]:
        """Data set -> samples drawn in the first `steps` steps."""
        return {
            dataset.name: count
            for group, quotas in zip(self.groups, self._quotas, strict=True)
            for dataset, count in zip(group.datasets, quotas.after(steps), strict=True)
        }

    def expected(self, steps: int) -> dict[str, float]:
        """`drawn` before rounding to whole samples. Its cost does not grow with `steps`."""
        return {
            dataset.name: float(steps * group.samples * fraction)
            for group in self.groups
            for dataset, fraction in zip(group.datasets, group.fractions, strict=True)
        }

    def views_drawn(self, steps: int) -> dict[str, np.ndarray]:
        """Data set -> the views that the first `steps` steps draw, int64 `(n, 2)`: row and view, each once, in order.

        If a step draws some crops of a clip, all its crops are listed.
        """
        drawn = self.drawn(steps)
        datasets = [dataset for group in self.groups for dataset in group.datasets]
        return {dataset.name: self._views_of(dataset, drawn[dataset.name]) for dataset in datasets}

    def _views_of(self, dataset: MixtureDataset, samples: int) -> np.ndarray:
        assert self.views, "the views of a row are not limited"
        clips, balance = -(-samples // dataset.crops), dataset.balance
        # Each class, or the whole data set, has its own sequence of epochs.
        sequences = [(-1, np.arange(len(dataset.rows)), clips)]
        if balance is not None:
            sequences = [
                (number, rows, int(count))
                for number, (rows, count) in enumerate(zip(balance.rows_of, balance.drawn(clips), strict=True))
            ]
        parts = [part for sequence in sequences for part in self._epochs_of(dataset, *sequence)]
        views = [
            np.stack([rows, np.full_like(rows, epoch * dataset.crops + crop)], axis=1)
            for epoch, rows in parts
            for crop in range(dataset.crops)
        ]
        drawn = np.concatenate(views)
        return drawn[np.lexsort((drawn[:, 1], drawn[:, 0]))]

    def _epochs_of(
        self, dataset: MixtureDataset, class_index: int, places: np.ndarray, clips: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """The first epochs of a sequence, up to `views`, with the rows that the first `clips` draws of it take."""
        epochs, rest = divmod(clips, len(places))
        for epoch in range(min(epochs, self.views)):
            yield epoch, dataset.rows[places]
        if epochs < self.views:
            order = self._order(dataset.name, class_index, epochs, len(places))
            yield epochs, dataset.rows[places[order[:rest]]]

    def _group_draws(self, group: Group, quotas: Quotas, step: int) -> tuple[Draw, ...]:
        """The draws of one group, shuffled by clip.

        The crops of one clip stay together, so that the clip is decoded once.
        """
        # Data set d gives the samples number before[d] to after[d] - 1 of its own sequence to this step.
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
        """Sample `number` (from 0) of a data set's own sequence: one shuffled epoch after another.

        With class balance, every class has its own shuffled epochs.
        """
        clip, crop = divmod(number, dataset.crops)
        if dataset.balance is None:
            epoch, place = divmod(clip, len(dataset.rows))
            index = self._order(dataset.name, -1, epoch, len(dataset.rows))[place]
        else:
            class_index, earlier = dataset.balance.draw(clip)
            rows_of_class = dataset.balance.rows_of[class_index]
            epoch, place = divmod(earlier, len(rows_of_class))
            index = rows_of_class[self._order(dataset.name, class_index, epoch, len(rows_of_class))[place]]
        return self.draw(dataset, int(dataset.rows[index]), epoch, crop)

    def draw(self, dataset: MixtureDataset, row: int, epoch: int, crop: int = 0) -> Draw:
        """The draw of one crop of a manifest row in an epoch of its data set, or of its class."""
        own = self._crop_seeds(self.seed, dataset.name, epoch, row, crop)
        if not self.views:
            return Draw(dataset.name, row, epoch, *own)
        turn, sample = epoch % self.views, row if dataset.source is None else int(dataset.manifest.sample_keys[row])
        shared = self._crop_seeds(self.views_seed, dataset.name, turn, sample, crop)
        return Draw(dataset.name, row, epoch, *shared, turn * dataset.crops + crop, own[0])

    @staticmethod
    def _crop_seeds(seed: int, dataset: str, epoch: int, row: int, crop: int) -> tuple[int, int | None]:
        """`Draw.seed` and `Draw.clip_seed`."""
        clip_seed = draw_seed(seed, dataset, epoch, row)
        if not crop:  # the first crop uses the seed of the clip itself, so `crops` 1 is the same as without crops
            return clip_seed, None
        return draw_seed(clip_seed, dataset, crop, row), clip_seed

    def _order(self, dataset: str, class_index: int, epoch: int, rows: int) -> np.ndarray:
        """int64 `(rows,)`: the shuffled order of the `rows` rows of a class in an epoch; -1 for the whole data set.

        Two epochs stay in memory, because a step may go from one epoch into the next. The order of a million rows takes
        8 MB in every process, so older epochs are dropped.
        """
        orders = self._orders.setdefault((dataset, class_index), {})
        if epoch not in orders:
            while len(orders) > 1:
                del orders[next(iter(orders))]
            # No row has such a high number, so this seed is different from the seed of every draw.
            seed = draw_seed(self.seed, dataset, epoch, 2**64 - 2 - class_index)
            orders[epoch] = np.random.default_rng(seed).permutation(rows)
        return orders[epoch]


class Alternating(Schedule):
    """A schedule in which every step has samples of one length only, `batch` of them.

    Over a run, every data set gets the same number of samples as with the mixed steps of `groups`, up to half a step
    per length. This is for an ablation (docs/ablations.md), with one process.

    >>> [len(draws) for draws in Alternating(0, groups).step(0)]
    [40, 0]
    """

    def __init__(
        self,
        seed: int,
        groups: tuple[Group, ...],
        pairing: Pairing | None = None,
        views: int = 0,
        views_seed: int = 0,
    ) -> None:
        super().__init__(seed, groups, pairing, views, views_seed)
        self._whole = tuple(Group(group.frames, self.batch, group.datasets) for group in groups)
        self._quotas = tuple(Quotas(group) for group in self._whole)
        # A second set of quotas decides which length each step has: one "data set" per length, one "sample" per step.
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
        """The draws of `step`, one tuple per length. All but one are empty."""
        # For each length, the number of steps of that length so far. It grows by 1 for the length of this step.
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
    """The sample numbers `first` to `last` - 1, as one range per clip. The first and last clip may be incomplete."""
    for clip in range(first // crops, -(-last // crops)):
        yield range(max(first, clip * crops), min(last, (clip + 1) * crops))


@dataclass(frozen=True)
class Pairing:
    """The pairs of samples for mixup and cutmix, as a pure function of a step's draws.

    The samples 2i and 2i + 1 of a group, in the order of the whole step, are a pair. Ranks and micro-batches do not
    separate them if each gets an even number of samples of every group.

    `heads`: data set -> the head that it trains. Both samples of a pair train the same head. `mixup`: draws the
    parameters of a pair. `chance`: data set -> probability that a pair of its samples is mixed, 1 if not given. A pair
    of two data sets has the smaller probability.
    """

    heads: Mapping[str, str]
    mixup: Mixup
    chance: Mapping[str, float] = field(default_factory=dict)

    def order(self, clips: Sequence[Sequence[Draw]]) -> tuple[Draw, ...]:
        """The draws of a group, given clip by clip, in an order in which pairs are neighbours.

        The two samples of a pair have one head and, if possible, come from two clips. Samples without a partner come
        last.
        """
        place = {draw: number for number, draw in enumerate(chain.from_iterable(clips))}
        pairs: list[Sequence[Draw]] = []
        single: list[Sequence[Draw]] = []
        for head in dict.fromkeys(self.heads[clip[0].dataset] for clip in clips):
            for pair in _two_by_two(_alternate([clip for clip in clips if self.heads[clip[0].dataset] == head])):
                (pairs if len(pair) == 2 else single).append(pair)
        pairs.sort(key=lambda pair: place[pair[0]])  # back to the shuffled order, so that heads mix within a rank
        return tuple(chain(*pairs, *single))

    def mix(self, groups: Sequence[Sequence[Draw]], size: int) -> Mix:
        """The mixing of a Pack of `size` x `size` pixels, from the draws of its groups. All S samples are included."""
        rows = [row for draws in groups for pair in _two_by_two(draws) for row in self._rows(pair, size)]
        partners, lams, boxes = zip(*rows, strict=True)
        return Mix(torch.tensor(partners), torch.tensor(lams, dtype=torch.float32), torch.tensor(boxes))

    def _rows(self, pair: Sequence[Draw], size: int) -> list[tuple[int, float, Box]]:
        """`partner`, `lam` and `box` (see `Mix`) of each sample of a pair, or of one sample without a partner."""
        drawn = None
        # The last two samples of a group may be of two heads, and two crops of one clip may meet: neither is mixed.
        if len({self.heads[draw.dataset] for draw in pair}) == 1 and len({draw.clip for draw in pair}) == 2:
            chance = min(self.chance.get(draw.dataset, 1.0) for draw in pair)
            drawn = self.mixup.draw(np.random.default_rng([draw.seed for draw in pair]), size, chance)
        return [(1, *drawn), (-1, *drawn)] if drawn else [(0, 0.0, NO_BOX)] * len(pair)


def _alternate(clips: Sequence[Sequence[Draw]]) -> list[Draw]:
    """The draws of clips, with the crops of every two clips interleaved, so that pairs are of two different clips."""
    return [draw for pair in _two_by_two(clips) for turn in zip_longest(*pair) for draw in turn if draw]


def _two_by_two(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[first : first + 2] for first in range(0, len(items), 2)]


class Quotas:
    """The number of samples drawn from each data set of a group after s steps.

    The counts of a step follow from those of the step before. A step that is far from the last computed one is found
    from a few steps before it: whatever the counts were there, after some steps they are the same.
    """

    def __init__(self, group: Group) -> None:
        rates = [group.samples * fraction for fraction in group.fractions]
        # Whole numbers: after s steps, the exact count of a data set is s * self._rates[i] / self._scale.
        self._scale = math.lcm(*(rate.denominator for rate in rates))
        self._rates = [int(rate * self._scale) for rate in rates]
        self._samples = group.samples
        self._last = (0, tuple(0 for _ in rates))

    def after(self, steps: int) -> tuple[int, ...]:
        """The counts after `steps` steps, one per data set. They add up to steps * samples."""
        step, counts = self._last
        if not step <= steps <= step + _NEAR:  # usually steps are computed one after the other
            step, counts = self._from_before(steps)
        while step < steps:
            step += 1
            following = self._next(counts, step)
            assert following is not None, "quotas of a step do not add up"
            counts = following
        self._last = (step, counts)
        return counts

    def _from_before(self, steps: int) -> tuple[int, tuple[int, ...]]:
        """A step up to `steps`, and its counts. It is step 0 if the counts of no later step are certain.

        The counts of a step are the floors of their exact values, but for as many data sets as are missing to the sum,
        which have one more. So there are few possible counts. All of them are followed until one is left; those that
        no schedule reaches end where a step cannot continue them.
        """
        back = _NEAR
        while back < steps:
            step = steps - back
            possible = set(self._possible(step)) if self._is_small(step) else set()
            while step < steps and len(possible) > 1:
                step += 1
                possible = {following for counts in possible if (following := self._next(counts, step)) is not None}
            if len(possible) == 1:
                return step, possible.pop()
            back *= 8
        return 0, tuple(0 for _ in self._rates)

    def _is_small(self, step: int) -> bool:
        """Whether the possible counts of a step are few enough to follow them all."""
        _, between, missing = self._floors(step)
        return math.comb(len(between), missing) <= _MOST_POSSIBLE

    def _possible(self, step: int) -> Iterator[tuple[int, ...]]:
        """All counts that the rule of the quotas allows after `step` steps."""
        floors, between, missing = self._floors(step)
        for chosen in combinations(between, missing):
            yield tuple(floor + (i in chosen) for i, floor in enumerate(floors))

    def _floors(self, step: int) -> tuple[list[int], list[int], int]:
        """The floors of the exact counts, the data sets whose exact count is no whole number, and what is missing."""
        floors = [step * rate // self._scale for rate in self._rates]
        between = [i for i, rate in enumerate(self._rates) if step * rate % self._scale]
        return floors, between, step * self._samples - sum(floors)

    def _next(self, drawn: tuple[int, ...], step: int) -> tuple[int, ...] | None:
        """The counts after `step` steps, None if there are none. `drawn`: the counts after `step` - 1 steps."""
        rates, scale = self._rates, self._scale
        # Invariant: floor(exact) <= count <= ceil(exact) for every data set. First raise every count to the floor.
        counts = [max(before, step * rate // scale) for before, rate in zip(drawn, rates, strict=True)]
        free = step * self._samples - sum(counts)
        # One more does not exceed the ceiling.
        candidates = [i for i, rate in enumerate(rates) if counts[i] * scale < step * rate]
        if not 0 <= free <= len(candidates):
            return None
        # The deadline of a data set's next sample is the step at which its floor reaches count + 1. Ties go to the
        # first data set of the mixture, so the order does not depend on the machine.
        candidates.sort(key=lambda i: (-(-(counts[i] + 1) * scale // rates[i]), i))
        for i in candidates[:free]:
            counts[i] += 1
        return tuple(counts)


def draw_seed(seed: int, dataset: str, epoch: int, row: int) -> int:
    """64 bits from the seed of the run, the data set, its epoch and the row. The same on every machine."""
    packed = struct.pack("<QQQ", seed, epoch, row) + dataset.encode()
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")
