"""The number of optimizer steps of a run, chosen from the sizes of its data sets (`steps: auto`)."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """A number of updates, with limits in epochs: how long a network is trained.

    A network needs a number of updates, whatever the size of its data set; so the epochs follow from the updates. The
    limits are for small and large data sets. `most_epochs`: with more, a network memorises a data set of some hundreds
    of samples. `least_epochs`: with fewer, the cosine schedule of a large data set ends too soon.
    """

    updates: int
    least_epochs: float
    most_epochs: float

    def epochs(self, rows: float, batch: int) -> float:
        """Epochs of `rows` samples in steps of `batch`: those of `updates` steps, within the limits."""
        return max(self.least_epochs, min(self.most_epochs, self.updates * batch / rows))

    def steps(self, rows: int, batch: int) -> int:
        """Steps of `batch` samples that draw the `epochs` of `rows` samples, at least 1.

        >>> FROM_START.steps(500, 32), FROM_START.steps(5000, 32), FROM_START.steps(100_000, 32)
        (782, 1563, 31250)
        >>> FROM_RANDOM.steps(500, 32)
        3125
        """
        return max(1, math.ceil(self.epochs(rows, batch) * rows / batch))

    def reason(self, rows: int, batch: int) -> str:
        """The rule that gives the number of steps, as text."""
        epochs, wanted = self.epochs(rows, batch), self.updates * batch / rows
        limit = ", the most" if wanted > epochs else ", the least" if wanted < epochs else ""
        return f"{epochs:.3g} epochs of {rows:,} samples{limit}"


# From pretrained weights. Only the heads begin at zero, and they need some hundreds of updates. The limits are those of
# the field: HMDB51 and UCF101 usually have 50 to 100 epochs of fine-tuning, and TimeSformer has 15 on Kinetics-400.
FROM_START = Budget(updates=1000, least_epochs=10, most_epochs=50)
# From random weights, all layers must be learned, so a run has four times the updates (a round number, not searched
# for). The limits are higher too: networks from random weights are usually trained for about 200 epochs on Kinetics-400
# (SlowFast: 196 to 256), and recipes/full/pretrain_imagenet21k.yaml has 30 epochs of 14 million images.
FROM_RANDOM = Budget(updates=4000, least_epochs=30, most_epochs=200)
# Only a head on fixed features: a convex problem with a high learning rate, which needs fewer epochs.
HEAD_ONLY = Budget(updates=1000, least_epochs=10, most_epochs=30)


def budget_for(start: str) -> Budget:
    """The budget of a run with the starting checkpoint `start`, an empty text for random weights."""
    return FROM_START if start else FROM_RANDOM


def explain_steps(start: str, rows: int, batch: int, steps: int) -> str:
    """What `steps: auto` has chosen, and why, in one line. `rows`: training samples of all data sets together."""
    weights = "the starting checkpoint" if start else "random weights"
    return f"steps: auto is {steps:,} from {weights}: {budget_for(start).reason(rows, batch)}"
