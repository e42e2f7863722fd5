"""Settings of the synthetic data sets: size, difficulty, and the relation of the fifth data set to the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from cover.errors import UserError

FPS = 12
Difficulty = Literal["easy", "medium", "hard"]
# The named difficulties. Each dial makes the samples harder, from 0 (none) to 1 (hard).
DIFFICULTIES: dict[Difficulty, dict[str, float]] = {
    "easy": {
        "clutter": 0.2,
        "shake": 0.1,
        "distractors": 0.05,
        "noise": 0.05,
        "low_contrast": 0.0,
        "small_objects": 0.0,
        "tilt": 0.0,
        "occlusion": 0.0,
        "pan": 0.0,
        "uneven_speed": 0.0,
    },
    "medium": {
        "clutter": 0.5,
        "shake": 0.1,
        "distractors": 0.45,
        "noise": 0.15,
        "low_contrast": 0.7,
        "small_objects": 0.65,
        "tilt": 0.45,
        "occlusion": 0.35,
        "pan": 0.15,
        "uneven_speed": 0.35,
    },
    "hard": {
        "clutter": 0.6,
        "shake": 0.1,
        "distractors": 0.6,
        "noise": 0.2,
        "low_contrast": 0.85,
        "small_objects": 0.9,
        "tilt": 0.6,
        "occlusion": 0.5,
        "pan": 0.2,
        "uneven_speed": 0.5,
    },
}
USUAL: Difficulty = "medium"  # what the demo's steps teach well, but not perfectly
_DEFAULT = DIFFICULTIES[USUAL]
DIALS = tuple(_DEFAULT)
COUNTS = ("kinetics", "ssv2", "moments", "imagenet", "pictures")
SMALLEST_SIDE = 16
MOST_VAL = 10_000

Relation = Literal["shared", "separate", "contrary"]
RELATIONS: tuple[Relation, ...] = get_args(Relation)


def dials(difficulty: Difficulty, **changes: float | None) -> dict[str, Any]:
    """The dials of a named difficulty, with `changes`; None changes nothing.

    Raises `UserError` if there is no such difficulty.
    """
    if difficulty not in DIFFICULTIES:
        raise UserError(f'difficulty is "{difficulty}": give one of {", ".join(DIFFICULTIES)}')
    given = {name: value for name, value in changes.items() if value is not None}
    return {**DIFFICULTIES[difficulty], **given}


@dataclass(frozen=True)
class Settings:
    """All values that the generated files depend on.

    `height` and `width` are in pixels and even. The fields of `DIALS` are from 0 (none) to 1 (hard):

    - `clutter`: number and strength of blobs and lines in the background
    - `shake`: random movement of the camera
    - `distractors`: number of small objects in the background
    - `noise`: noise of the pixels
    - `low_contrast`: how far the object's colours may approach the background's luminance
    - `small_objects`: how small the object may be
    - `tilt`: how far the object may be rotated
    - `occlusion`: number of posts that stand before the object
    - `pan`: steady movement of the camera along a line
    - `uneven_speed`: how much the object's speed differs from video to video, and changes within one

    The numbers of `(train, val)` files per data set are those at `size` 1. `val`, if given, is the number of validation
    files of each class of every data set, whatever the `size`. `relation` says what a fifth data set, `pictures`, has
    in common with `kinetics`; with None there is no fifth data set. The files of the other four do not depend on it.

    Raises `UserError`, with the name of the field, if a value is out of range.
    """

    seed: int = 0
    size: float = 1.0
    height: int = 48
    width: int = 64
    clutter: float = _DEFAULT["clutter"]
    shake: float = _DEFAULT["shake"]
    distractors: float = _DEFAULT["distractors"]
    noise: float = _DEFAULT["noise"]
    low_contrast: float = _DEFAULT["low_contrast"]
    small_objects: float = _DEFAULT["small_objects"]
    tilt: float = _DEFAULT["tilt"]
    occlusion: float = _DEFAULT["occlusion"]
    pan: float = _DEFAULT["pan"]
    uneven_speed: float = _DEFAULT["uneven_speed"]
    kinetics: tuple[int, int] = (960, 240)
    ssv2: tuple[int, int] = (2400, 300)
    moments: tuple[int, int] = (720, 240)
    imagenet: tuple[int, int] = (1920, 480)
    pictures: tuple[int, int] = (960, 240)
    val: int | None = None
    relation: Relation | None = None

    def __post_init__(self) -> None:
        for side in ("height", "width"):
            pixels = getattr(self, side)
            if pixels < SMALLEST_SIDE or pixels % 2:
                raise UserError(f"{side} is {pixels}: give an even number of pixels, at least {SMALLEST_SIDE}")
        for name in DIALS:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: give a number from 0 (none) to 1")
        if self.seed < 0 or not 0 < self.size <= 100:
            raise UserError(
                f"seed is {self.seed} and size {self.size}: a seed is 0 or more, a size above 0 and at most 100"
            )
        if self.val is not None and not 1 <= self.val <= MOST_VAL:
            raise UserError(f"val is {self.val}: give 1 to {MOST_VAL} validation files of each class")
        if self.relation is not None and self.relation not in RELATIONS:
            raise UserError(f'relation is "{self.relation}": give one of {", ".join(RELATIONS)}')
        for name in COUNTS:
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: give two counts of 1 or more, train and val")

    def count(self, dataset: str, split: str, classes: int) -> int:
        """The number of files in a split: its count times `size`, at least one per class; for val, `val` per class."""
        if split == "val" and self.val is not None:
            return self.val * classes
        train, val = getattr(self, dataset)
        return max(round((train if split == "train" else val) * self.size), classes)

    @property
    def shake_reach(self) -> float:
        """The largest offset of the camera by its shake along each axis, in pixels."""
        return 0.2 * self.shake * self.height

    @property
    def pan_reach(self) -> float:
        """The longest way of the camera along a line, from the first frame to the last, in pixels."""
        return 0.5 * self.pan * self.height

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values, with tuples as lists.

        `val` is left out if it is None. Without a `relation`, the fifth data set is left out.
        """
        left_out = [*([] if self.relation else ["relation", "pictures"]), *([] if self.val else ["val"])]
        values = {key: value for key, value in asdict(self).items() if key not in left_out}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
