"""Settings of the synthetic data sets: size, difficulty, and the relation of the fifth data set to the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from cover.errors import UserError

FPS = 12
DIFFICULTIES = ("clutter", "shake", "distractors", "noise")
COUNTS = ("kinetics", "ssv2", "moments", "imagenet", "pictures")
SMALLEST_SIDE = 16

Relation = Literal["shared", "separate", "contrary"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)


@dataclass(frozen=True)
class Settings:
    """All values that the generated files depend on.

    `height` and `width` are in pixels and even. `clutter`, `shake`, `distractors` and `noise` are from 0 (none) to 1
    (hard). The numbers of `(train, val)` files per data set are those at `size` 1. `relation` says what a fifth data
    set, `pictures`, has in common with `kinetics`; with None there is no fifth data set. The files of the other four do
    not depend on it.

    Raises `UserError`, with the name of the field, if a value is out of range.
    """

    seed: int = 0
    size: float = 1.0
    height: int = 48
    width: int = 64
    clutter: float = 0.2
    shake: float = 0.1
    distractors: float = 0.05
    noise: float = 0.05
    kinetics: tuple[int, int] = (960, 240)
    ssv2: tuple[int, int] = (2400, 300)
    moments: tuple[int, int] = (720, 240)
    imagenet: tuple[int, int] = (1920, 480)
    pictures: tuple[int, int] = (960, 240)
    relation: Relation | None = None

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            pixels = getattr(self, side)
            if pixels < SMALLEST_SIDE or pixels % 2:
                raise UserError(f"{side} is {pixels}: give an even number of pixels, at least {SMALLEST_SIDE}")
        for name in DIFFICULTIES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: give a number from 0 (none) to 1")
        if self.seed < 0 or not 0 < self.size <= 100:
            raise UserError(
                f"seed is {self.seed} and size {self.size}: a seed is 0 or more, a size above 0 and at most 100"
            )
        if self.relation is not None and self.relation not in RELATIONS:
            raise UserError(f'relation is "{self.relation}": give one of {", ".join(RELATIONS)}')
        for name in COUNTS:
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give two counts of 1 or more, train and val")

    def count(self, dataset: str, split: str, classes: int) -> int:
        """The number of files in a split: its count times `size`, at least one per class."""
        train, val = getattr(self, dataset)
        return max(round((train if split == "train" else val) * self.size), classes)

    @property
    def shake_reach(self) -> float:
        """The largest offset of the camera along each axis, in pixels."""
        return 0.2 * self.shake * self.height

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, with tuples as lists. Without a `relation`, the fifth data set is left out."""
        left_out = () if self.relation else ("relation", "pictures")
        values = {key: value for key, value in asdict(self).items() if key not in left_out}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
