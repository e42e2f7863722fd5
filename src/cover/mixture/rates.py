"""The section `data` of a recipe: data sets, sampling rates, and the number of steps for given epochs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from cover.config import check_range, option
from cover.errors import UserError, nearest
from cover.media.decode import Decoder

RATE_DENOMINATOR = 10**9  # rates are exact fractions, so quotas are equal on every machine


@dataclass(frozen=True)
class Data:
    """The data sets of a mixture and how they are sampled."""

    sets: list[str] = field(metadata={"help": "names from the catalog"})
    catalog: str = option("catalog.yaml", "the catalog file, relative to the current folder")
    frames: int = option(8, "frames of a clip")
    alpha: float = option(1.0, "rates proportional to size^alpha; 1 is the article's rule")
    weights: dict[str, float] = option({}, "explicit rates in place of sizes, one per data set")
    epochs: dict[str, float] = option(
        {}, "rates from the epochs wanted of each data set; with steps: 0 the run ends after these epochs"
    )
    loss_weights: dict[str, float] = option({}, "factor on a data set's loss, 1 where not given")
    balance: dict[str, float] = option(
        {}, "class balance of a data set's draws, 0 to 1: 1 draws its classes equally often, 0 by their sizes"
    )
    class_weights: dict[str, float | Literal["balanced"]] = option(
        {}, "factor on the loss by class: (1 / size of the class)^number, with a mean of 1; balanced is 1"
    )
    batches: Literal["mixed", "alternating"] = option(
        "mixed", "mixed: clips and images in every step; alternating: whole steps of one length in turn"
    )
    heads: dict[str, list[str]] = option(
        {}, "head -> the data sets that share it; every other data set has a head of its own name"
    )
    crops: int = option(
        1, "random crops of every decoded clip; 2 halves the decoding, and each clip is used twice in an epoch"
    )
    decoder: Decoder = option("pyav", "video decoder: pyav, torchcodec, or torchcodec_cuda (NVDEC)")
    unreadable: float = option(0.5, "fraction of a data set's draws that may be unreadable before the run stops")
    exclusions: Literal["use", "ignore"] = option(
        "use", "use: leave out the training rows that `cover overlap` lists; ignore: train on them"
    )

    def check(self) -> None:
        """Check all values. Raises `UserError`, which names the key, if a value is not valid."""
        if not self.sets:
            raise UserError("data.sets: name at least one data set of the catalog")
        for repeated in {name for name in self.sets if self.sets.count(name) > 1}:
            raise UserError(f'data.sets: "{repeated}" is named twice')
        check_range("data.frames", self.frames, 1, math.inf)
        check_range("data.crops", self.crops, 1, math.inf)
        check_range("data.alpha", self.alpha, 0, 4)
        check_range("data.unreadable", self.unreadable, 0, 1)
        for key in ("weights", "loss_weights", "epochs", "balance", "class_weights"):
            for name in getattr(self, key):
                if name not in self.sets:
                    raise UserError(f'data.{key}: "{name}" is not one of data.sets{nearest(name, self.sets)}')
        for name, factor in self.loss_weights.items():
            if not 0 <= factor < math.inf:
                raise UserError(f"data.loss_weights.{name}: {factor} is not 0 or more")
        for name, balance in self.balance.items():
            check_range(f"data.balance.{name}", balance, 0, 1)
        for name in self.class_weights:
            check_range(f"data.class_weights.{name}", self.class_exponent(name), 0, 1)
        if self.epochs and self.weights:
            raise UserError("data.epochs: rates come from data.weights or from data.epochs; leave one of them out")
        for head, names in self.heads.items():
            self._check_head(head, names)

    def class_exponent(self, name: str) -> float:
        """The exponent of the class weights of a data set, 0 for none."""
        exponent = self.class_weights.get(name, 0.0)
        return 1.0 if exponent == "balanced" else exponent

    def _check_head(self, head: str, names: list[str]) -> None:
        shared = [name for each in self.heads.values() for name in each]
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", head, re.ASCII):
            raise UserError(f'data.heads: "{head}" cannot name a head: use letters, digits, _ and -')
        if not names:
            raise UserError(f"data.heads.{head}: name the data sets that share it")
        for name in names:
            if name not in self.sets:
                raise UserError(f'data.heads.{head}: "{name}" is not one of data.sets{nearest(name, self.sets)}')
            if shared.count(name) > 1:
                raise UserError(f'data.heads.{head}: "{name}" is there twice; a data set has one head')
        if head in self.sets and head not in shared:
            raise UserError(
                f'data.heads.{head}: the data set "{head}" has a head of this name; choose another, or list it too'
            )


def rates_by(
    sizes: Mapping[str, int],
    alpha: float = 1.0,
    weights: Mapping[str, float] | None = None,
    epochs: Mapping[str, float] | None = None,
) -> dict[str, Fraction]:
    """Data set -> sampling rate. The rates add up to 1 exactly.

    They are proportional to `weights` if given, otherwise to size * `epochs` if given, otherwise to size ** `alpha`
    (`alpha` 1 is the rule of the CoVeR paper). Raises `UserError` if a weight or a number of epochs is missing or not
    positive.
    """
    for key, noun, given in (("weights", "weight", weights), ("epochs", "number of epochs", epochs)):
        for name in sizes if given else ():
            if not 0 < (given or {}).get(name, 0) < math.inf:
                raise UserError(f"data.{key}.{name}: a positive {noun} is needed for each data set of the mixture")
    raw = {name: Fraction(size * epochs[name] if epochs else size**alpha) for name, size in sizes.items()}
    raw = {name: Fraction(weights[name]) for name in sizes} if weights else raw
    total = sum(raw.values())
    # Rounding to one denominator hides the last bits of `size**alpha`, which differ between machines.
    exact = {name: max(1, round(value / total * RATE_DENOMINATOR)) for name, value in raw.items()}
    return {name: Fraction(value, sum(exact.values())) for name, value in exact.items()}


def steps_for(sizes: Mapping[str, int], epochs: Mapping[str, float], batch: int) -> int:
    """How many steps of `batch` samples give every data set of `sizes` rows its `epochs`. At least 1."""
    return max(1, math.ceil(sum(Fraction(size) * Fraction(epochs[name]) for name, size in sizes.items()) / batch))
