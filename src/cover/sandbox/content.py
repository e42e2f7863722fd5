"""What happens in sample number `index` of a split: its class and its frames?

A sample is a pure function of (seed, data set, split, index) and the settings' size and dials. Class numbers go round: sample
`index` has class `index % classes`, so every split is balanced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cover.sandbox.motion import Direction, rise_or_fall, travel, wander
from cover.sandbox.objects import OBJECTS
from cover.sandbox.render import Floats, Pixels, Scene, draw_frames, draw_scene, draw_shake
from cover.sandbox.settings import FPS, Settings

DATASETS = ("kinetics", "ssv2", "moments", "imagenet")
SPLITS = ("train", "val")

ACTIVITIES = {
    "opening blinds": "blinds", "painting fence": "fence", "playing chess": "chessboard", "playing dominoes": "domino",
    "archery (target)": "target", "spinning pinwheel": "pinwheel", "washing windows": "window", "reading book": "book",
}  # fmt: skip
MOMENT_OBJECTS = ("plate", "eye", "flag", "fence")
MOMENT_FRAMES = 3 * FPS

DIRECTIONS: dict[str, Direction] = {
    "Moving [something] from left to right": (0, 1),
    "Moving [something] from right to left": (0, -1),
    "Moving [something] up": (-1, 0),
    "Moving [something] down": (1, 0),
    "Moving [something] up and to the right": (-1, 1),
    "Moving [something] up and to the left": (-1, -1),
    "Moving [something] down and to the right": (1, 1),
    "Moving [something] down and to the left": (1, -1),
}
MOMENTS = {f"{name}+{way}": (name, way == "rising") for name in MOMENT_OBJECTS for way in ("rising", "falling")}
CLASSES = {
    "kinetics": tuple(sorted(ACTIVITIES)),
    "ssv2": tuple(sorted(DIRECTIONS)),
    "moments": tuple(sorted(MOMENTS)),
    "imagenet": OBJECTS,
}


def class_of(dataset: str, index: int) -> str:
    """The class name of sample `index`; for `ssv2` the template with its brackets."""
    return CLASSES[dataset][index % len(CLASSES[dataset])]


def sample_rng(settings: Settings, dataset: str, split: str, index: int, purpose: int) -> np.random.Generator:
    """The sample's own random numbers; `purpose` (1 or more) keeps pixels and names apart."""
    return np.random.default_rng([settings.seed, DATASETS.index(dataset), SPLITS.index(split), index, purpose])


def draw_sample(settings: Settings, dataset: str, split: str, index: int) -> Pixels:
    """The frames as they go into the encoder, uint8 `(frames, height, width, 3)`; an image is one frame."""
    rng = sample_rng(settings, dataset, split, index, purpose=1)
    scene, centres, shake = DRAWERS[dataset](rng, settings, class_of(dataset, index))
    return draw_frames(rng, scene, centres, shake, settings.noise)


Drawn = tuple[Scene, Floats, Floats]


def _activity(rng: np.random.Generator, settings: Settings, name: str) -> Drawn:
    scene = draw_scene(rng, ACTIVITIES[name], settings)
    frames = int(rng.integers(2 * FPS, 3 * FPS + 1))
    return scene, wander(rng, _size(settings), scene.reach, frames), draw_shake(rng, frames, settings.shake_reach)


def _travel(rng: np.random.Generator, settings: Settings, name: str) -> Drawn:
    scene = replace(draw_scene(rng, draw_object(rng), settings), endless=True)
    centres = travel(rng, _size(settings), DIRECTIONS[name])
    return scene, centres, draw_shake(rng, len(centres), settings.shake_reach)


def _moment(rng: np.random.Generator, settings: Settings, name: str) -> Drawn:
    shape, rising = MOMENTS[name]
    scene = draw_scene(rng, shape, settings)
    centres = rise_or_fall(rng, _size(settings), scene.reach, MOMENT_FRAMES, rising)
    return scene, centres, draw_shake(rng, MOMENT_FRAMES, settings.shake_reach)


def _image(rng: np.random.Generator, settings: Settings, name: str) -> Drawn:
    scene = draw_scene(rng, name, settings)
    return scene, wander(rng, _size(settings), scene.reach, 1), draw_shake(rng, 1, settings.shake_reach)


def draw_object(rng: np.random.Generator) -> str:
    """Any of the twelve objects."""
    return OBJECTS[rng.integers(len(OBJECTS))]


def _size(settings: Settings) -> tuple[int, int]:
    return settings.height, settings.width


DRAWERS: dict[str, Callable[[np.random.Generator, Settings, str], Drawn]] = {
    "kinetics": _activity, "ssv2": _travel, "moments": _moment, "imagenet": _image,
}  # fmt: skip
