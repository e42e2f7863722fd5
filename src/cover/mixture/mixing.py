"""Which samples of a step are mixed with which, and how much: mixup and cutmix, a pure function of the step's draws.

Partners are neighbours, samples 2i and 2i + 1 of a group in the order of the whole step, so that neither ranks nor micro-batches part
them as long as each gets an even number of every group. Both of a pair are mixed with the other, at the same share and in the same box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from cover.mixture.schedule import Draw

T = TypeVar("T")


@dataclass(frozen=True)
class Mixing:
    """`heads`: data set -> the head that it trains; only samples of one head are mixed. `mixup` and `cutmix`: the parameter of the Beta
    distribution of the share, 0 for never; with both, each pair takes one of them at even chances. `chance`: data set -> of a pair
    of its samples being mixed at all, 1 where not given; of two data sets the smaller one counts."""

    heads: Mapping[str, str]
    mixup: float = 0.0
    cutmix: float = 0.0
    chance: Mapping[str, float] = field(default_factory=dict)

    def order(self, clips: Sequence[Sequence[Draw]]) -> tuple[Draw, ...]:
        """The draws of a group, given clip by clip, as pairs of one head and two clips where there are such; what is over comes last."""
        place = {draw: number for number, draw in enumerate(chain.from_iterable(clips))}
        pairs: list[Sequence[Draw]] = []
        over: list[Sequence[Draw]] = []
        for head in dict.fromkeys(self.heads[clip[0].dataset] for clip in clips):
            for pair in _two_by_two(_taking_turns([clip for clip in clips if self.heads[clip[0].dataset] == head])):
                (pairs if len(pair) == 2 else over).append(pair)
        pairs.sort(key=lambda pair: place[pair[0]])  # as shuffled as before
        return tuple(chain(*pairs, *over))

    def blend(self, groups: Sequence[Sequence[Draw]], size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`partner`, `share` and `cut` of a Pack of pictures of `size` pixels, from the draws of its groups."""
        rows = [row for draws in groups for pair in _two_by_two(draws) for row in self._rows(pair, size)]
        steps, shares, boxes = zip(*rows, strict=True)
        return torch.tensor(steps), torch.tensor(shares, dtype=torch.float32), torch.tensor(boxes)

    def _rows(self, pair: Sequence[Draw], size: int) -> list[tuple[int, float, list[int]]]:
        alone = [(0, 0.0, [0, 0, 0, 0])] * len(pair)
        if len({self.heads[draw.dataset] for draw in pair}) > 1 or len({draw.clip for draw in pair}) == 1:
            return alone
        rng = np.random.default_rng([draw.seed for draw in pair])
        if rng.random() >= min(self.chance.get(draw.dataset, 1.0) for draw in pair):
            return alone
        cutting = rng.random() < (0.5 if self.mixup and self.cutmix else bool(self.cutmix))
        spread = self.cutmix if cutting else self.mixup
        share = float(rng.beta(spread, spread))
        box = cut_box(rng, share, size) if cutting else [0, 0, 0, 0]
        if cutting:
            share = (box[2] - box[0]) * (box[3] - box[1]) / size**2
        return [(1, share, box), (-1, share, box)]


def cut_box(rng: np.random.Generator, share: float, size: int) -> list[int]:
    """Left, top, right, bottom of a square of `share` of the area about a random place, cut off at the edges (CutMix, section 3.1)."""
    half = size * math.sqrt(share) / 2
    x, y = rng.uniform(0, size, 2)
    return [min(size, max(0, round(edge))) for edge in (x - half, y - half, x + half, y + half)]


def _taking_turns(clips: Sequence[Sequence[Draw]]) -> list[Draw]:
    """Draws clip by clip, the crops of every two clips by turns: a clip is not mixed with itself."""
    return [draw for pair in _two_by_two(clips) for turn in zip_longest(*pair) for draw in turn if draw]


def _two_by_two(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[first : first + 2] for first in range(0, len(items), 2)]
