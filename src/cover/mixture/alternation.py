"""What if a step held clips or images, but not both? The usual way of training on both, to compare the mixed batch with."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from cover.errors import UserError
from cover.mixture.schedule import Draw, Group, Pairing, Quotas, Schedule, Source


class Alternating(Schedule):
    """A schedule whose steps hold `batch` samples of one length each, in turn, as many of every data set over a run as the mixed batches
    of `groups` hold; within half a step of each length, and under the same quotas.

    >>> [len(draws) for draws in Alternating(0, groups).step(0)]
    [40, 0]
    """

    def __init__(self, seed: int, groups: tuple[Group, ...], pairing: Pairing | None = None) -> None:
        super().__init__(seed, groups, pairing)
        batch = sum(group.samples for group in groups)
        self._whole = tuple(Group(group.frames, batch, group.sources) for group in groups)
        self._own = tuple(Quotas(group) for group in self._whole)
        lengths = tuple(Source(str(group.frames), np.zeros(0, np.int64), 0, Fraction(group.samples)) for group in groups)
        self._turns = Quotas(Group(0, 1, lengths))

    def step(self, step: int) -> tuple[tuple[Draw, ...], ...]:
        """The draws of `step`: those of all lengths but one are empty."""
        before, after = self._turns.after(step), self._turns.after(step + 1)
        return tuple(
            self._group_draws(group, quotas, first) if last > first else ()
            for group, quotas, first, last in zip(self._whole, self._own, before, after, strict=True)
        )

    def drawn(self, steps: int) -> dict[str, int]:
        """How many samples of each data set the first `steps` steps hold."""
        found: dict[str, int] = {}
        for group, quotas, turns in zip(self._whole, self._own, self._turns.after(steps), strict=True):
            for source, count in zip(group.sources, quotas.after(turns), strict=True):
                found[source.name] = found.get(source.name, 0) + count
        return found


def check_alternating(ranks: int, batch: int, parts: int, paired: bool = False) -> None:
    """Raises `UserError` where steps of one length cannot be shared out."""
    if ranks > 1:
        # A step of images leaves some temporal weights without a gradient, which ranks would wait for.
        raise UserError("data.batches: alternating steps are for one process; use mixed on several")
    if batch % parts:
        raise UserError(f"batch: {batch} is not a multiple of accumulation ({parts})")
    if paired and parts > 1 and batch // parts % 2:
        raise UserError(f"batch: augment.mixup and cutmix work on pairs, but {batch} is not a multiple of 2 x accumulation ({parts})")
