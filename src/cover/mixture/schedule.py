"""Which samples make up step s: a pure function of the seed and the step, the same on any number of ranks.

Each step holds a constant number of clips of each length and of images. Inside such a group, every data set is drawn by exact
integer quotas: after s steps, data set d has been drawn floor or ceil of s * samples * rate_d times, never anything else. This is
just-in-time sequencing, which serving the unit with the earliest deadline solves for any rates.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, zip_longest
from typing import TypeVar

import numpy as np
import torch

from cover.errors import UserError
from cover.transforms.mixup import NO_BOX, Box, Mix, Mixup

T = TypeVar("T")
_STRIDE = 1024
RATE_DENOMINATOR = 10**9  # rates are held as exact fractions, so that a quota is the same on every machine


@dataclass(frozen=True)
class Draw:
    """One sample of one step: everything random about it follows from `seed` (64 bits).

    A further crop of a clip that another draw takes too has that draw's seed in `clip_seed`: its frames are taken at the same times.
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
class Source:
    """A data set as the schedule sees it: `rows` (int64, the manifest rows that may be drawn), frames per sample, relative rate, and
    how many crops are taken of every clip, one right after the other."""

    name: str
    rows: np.ndarray
    frames: int
    rate: Fraction
    crops: int = 1


@dataclass(frozen=True)
class Group:
    """The samples of a step that have the same number of frames: how many, and from which data sets at which share."""

    frames: int
    samples: int
    sources: tuple[Source, ...]

    @property
    def shares(self) -> list[Fraction]:
        """The share of each source in this group; they add up to 1."""
        total = sum((source.rate for source in self.sources), Fraction(0))
        return [source.rate / total for source in self.sources]


def rates_by(
    sizes: Mapping[str, int], alpha: float = 1.0, weights: Mapping[str, float] | None = None, epochs: Mapping[str, float] | None = None
) -> dict[str, Fraction]:
    """Sampling rates that add up to 1: proportional to `weights` where given, else to size * `epochs` where given, else to size ** alpha
    (1 is the article's rule).

    Raises `UserError` on a weight or a number of epochs that is not positive or does not fit the data sets.
    """
    for key, noun, given in (("weights", "weight", weights), ("epochs", "number of epochs", epochs)):
        for name in sizes if given else ():
            if not 0 < (given or {}).get(name, 0) < math.inf:
                raise UserError(f"data.{key}.{name}: a positive {noun} is needed for each data set of the mixture")
    raw = {name: Fraction(size * epochs[name] if epochs else size**alpha) for name, size in sizes.items()}
    raw = {name: Fraction(weights[name]) for name in sizes} if weights else raw
    total = sum(raw.values())
    exact = {name: max(1, round(value / total * RATE_DENOMINATOR)) for name, value in raw.items()}
    return {name: Fraction(value, sum(exact.values())) for name, value in exact.items()}


def steps_for(sizes: Mapping[str, int], epochs: Mapping[str, float], batch: int) -> int:
    """The steps of `batch` samples that see every data set of `sizes` samples its `epochs` times."""
    return max(1, math.ceil(sum(Fraction(size) * Fraction(epochs[name]) for name, size in sizes.items()) / batch))


def split_batch(sources: Sequence[Source], batch: int, divisor: int, paired: bool = False) -> tuple[Group, ...]:
    """The constant make-up of a step: `batch` samples shared out over the frame counts, longest clips first, images last.

    Shares are rounded once, by largest remainder, at least one sample each, whatever `divisor` (ranks x accumulation) is: the global
    batch does not depend on how it is computed. Raises `UserError` where a count is not a multiple of `divisor`, or, where samples are
    mixed in pairs (`paired`), would be parted by it within a pair.
    """
    lengths = sorted({source.frames for source in sources}, reverse=True)
    if batch < len(lengths):
        raise UserError(f"batch: {batch} is too small: samples of {len(lengths)} lengths need at least one each")
    wanted = [batch * sum((s.rate for s in sources if s.frames == length), Fraction(0)) for length in lengths]
    counts = [max(1, int(share)) for share in wanted]
    while sum(counts) < batch:
        counts[max(range(len(counts)), key=lambda i: wanted[i] - counts[i])] += 1
    while sum(counts) > batch:
        counts[max((i for i in range(len(counts)) if counts[i] > 1), key=lambda i: counts[i] - wanted[i])] -= 1
    for length, count in zip(lengths, counts, strict=True):
        if count % divisor:
            raise UserError(
                f"batch: a step of {batch} holds {count} samples of {length} frames, not a multiple of ranks x accumulation = {divisor};"
                " choose another batch, or other data.weights"
            )
        if paired and divisor > 1 and count // divisor % 2:
            raise UserError(
                f"batch: augment.mixup and cutmix work on pairs, but a step of {batch} holds {count} samples of {length} frames, not a"
                f" multiple of 2 x ranks x accumulation = {2 * divisor}; choose another batch, or other data.weights"
            )
    grouped = (tuple(s for s in sources if s.frames == length) for length in lengths)
    return tuple(Group(length, count, members) for length, count, members in zip(lengths, counts, grouped, strict=True))


class Schedule:
    """The draws of every step of a run.

    >>> schedule = Schedule(seed=0, groups=split_batch(sources, batch=64, divisor=1))
    >>> schedule.step(1000)  # any step first; one tuple of draws per group
    """

    def __init__(self, seed: int, groups: tuple[Group, ...], pairing: Pairing | None = None) -> None:
        """`pairing`: which samples are mixed, so that those of a pair come one after the other."""
        self.seed, self.groups, self.pairing = seed, groups, pairing
        self._counters = tuple(Quotas(group) for group in groups)
        self._orders: dict[str, dict[int, np.ndarray]] = {}  # of a data set's rows, by epoch

    def step(self, step: int) -> tuple[tuple[Draw, ...], ...]:
        """The global draws of `step` (from 0), one tuple per group, in an order that mixes the data sets."""
        return tuple(self._group_draws(group, quotas, step) for group, quotas in zip(self.groups, self._counters, strict=True))

    def rank_step(self, step: int, rank: int, ranks: int) -> tuple[tuple[Draw, ...], ...]:
        """The slice of `step` that one of `ranks` equal ranks works on; the ranks' slices together are the step."""
        return tuple(draws[len(draws) * rank // ranks : len(draws) * (rank + 1) // ranks] for draws in self.step(step))

    def drawn(self, steps: int) -> dict[str, int]:
        """How many samples of each data set the first `steps` steps hold."""
        found: dict[str, int] = {}
        for group, quotas in zip(self.groups, self._counters, strict=True):
            for source, count in zip(group.sources, quotas.after(steps), strict=True):
                found[source.name] = found.get(source.name, 0) + count
        return found

    def _group_draws(self, group: Group, quotas: Quotas, step: int) -> tuple[Draw, ...]:
        """Shuffled clip by clip: the crops of one clip stay together, so that one decode serves them."""
        before, after = quotas.after(step), quotas.after(step + 1)
        clips = [
            [self._draw(source, number) for number in numbers]
            for source, first, last in zip(group.sources, before, after, strict=True)
            for numbers in _by_clip(first, last, source.crops)
        ]
        order = np.random.default_rng([self.seed, step, group.frames]).permutation(len(clips))
        shuffled = [clips[place] for place in order]
        return self.pairing.order(shuffled) if self.pairing else tuple(draw for clip in shuffled for draw in clip)

    def _draw(self, source: Source, number: int) -> Draw:
        """The `number`-th sample ever taken from a data set: it walks shuffled epochs of its own."""
        clip, crop = divmod(number, source.crops)
        epoch, place = divmod(clip, len(source.rows))
        row = int(source.rows[self._order(source, epoch)[place]])
        clip_seed = draw_seed(self.seed, source.name, epoch, row)
        if not crop:
            return Draw(source.name, row, epoch, clip_seed)
        return Draw(source.name, row, epoch, draw_seed(clip_seed, source.name, crop, row), clip_seed)

    def _order(self, source: Source, epoch: int) -> np.ndarray:
        """The order of a data set's rows in an epoch. Two are kept, since a step may reach from one into the next: of a million rows
        each takes 8 MB, in every process."""
        known = self._orders.setdefault(source.name, {})
        if epoch not in known:
            while len(known) > 1:
                del known[next(iter(known))]
            seed = draw_seed(self.seed, source.name, epoch, -1 % 2**64)
            known[epoch] = np.random.default_rng(seed).permutation(len(source.rows))
        return known[epoch]


def _by_clip(first: int, last: int, crops: int) -> Iterator[range]:
    """The numbers `first` to `last` - 1 parted where another clip begins."""
    for clip in range(first // crops, -(-last // crops)):
        yield range(max(first, clip * crops), min(last, (clip + 1) * crops))


@dataclass(frozen=True)
class Pairing:
    """The pairs of samples that mixup and cutmix mix: a pure function of a step's draws.

    Partners are neighbours, samples 2i and 2i + 1 of a group in the order of the whole step, so that neither ranks nor micro-batches
    separate them as long as each gets an even number of every group.

    `heads`: data set -> the head that it trains; both samples of a pair are of one head. `chance`: data set -> the probability that a
    pair of its samples is mixed, 1 where not given; for a pair of two data sets the smaller one counts.
    """

    heads: Mapping[str, str]
    mixup: Mixup
    chance: Mapping[str, float] = field(default_factory=dict)

    def order(self, clips: Sequence[Sequence[Draw]]) -> tuple[Draw, ...]:
        """The draws of a group, given clip by clip, as pairs of one head and two clips where possible; the others come last."""
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
    """How often each source of a group has been drawn after s steps.

    Steps are played forward, and the counts of every `_STRIDE`-th kept to start from, beside those of the last step asked for.
    """

    def __init__(self, group: Group) -> None:
        self._per_step = [group.samples * share for share in group.shares]
        self._samples = group.samples
        self._milestones = [tuple(0 for _ in group.sources)]
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
        """The counts after `step` steps, from those one step earlier: first what is due, then the earliest deadlines."""
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


def wanted_rates(groups: Sequence[Group]) -> Iterator[tuple[str, float]]:
    """Every data set and the share of a step's samples that it gets, after rounding the groups."""
    batch = sum(group.samples for group in groups)
    for group in groups:
        for source, share in zip(group.sources, group.shares, strict=True):
            yield source.name, float(share * group.samples / batch)
