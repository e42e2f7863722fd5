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
from cover.sandbox.render import Floats, Pixels, Scene, draw_frames, draw_scene, draw_shake, draw_sky
from cover.sandbox.settings import FPS, Settings

DATASETS = ("kinetics", "ssv2", "moments", "imagenet")
PICTURES = "pictures"  # the fifth data set, which only a sandbox with a `relation` has
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
# Learned within a few steps, so that the network is soon left as it would be without them.
SKIES = {"night sky": (0.05, 0.2), "day sky": (0.8, 0.95)}
CLASSES = {
    "kinetics": tuple(sorted(ACTIVITIES)),
    "ssv2": tuple(sorted(DIRECTIONS)),
    "moments": tuple(sorted(MOMENTS)),
    "imagenet": OBJECTS,
}


def datasets_of(settings: Settings) -> tuple[str, ...]:
    """The data sets that a sandbox of these settings holds."""
    return (*DATASETS, PICTURES) if settings.relation else DATASETS


def classes_of(settings: Settings, dataset: str) -> tuple[str, ...]:
    """The class names of a data set. `pictures` has those of `kinetics`, so that both can share a head, or, `separate`, its own."""
    if dataset != PICTURES:
        return CLASSES[dataset]
    return tuple(sorted(SKIES)) if settings.relation == "separate" else CLASSES["kinetics"]


def class_of(settings: Settings, dataset: str, index: int) -> str:
    """The class that sample `index` shows; for `ssv2` the template with its brackets."""
    classes = classes_of(settings, dataset)
    return classes[index % len(classes)]


def picture_label(settings: Settings, index: int) -> str:
    """The class name that picture `index` is given: the one that it shows, but under `contrary` the next one, in all classes alike."""
    return class_of(settings, PICTURES, index + 1 if settings.relation == "contrary" else index)


def sample_rng(settings: Settings, dataset: str, split: str, index: int, purpose: int) -> np.random.Generator:
    """The sample's own random numbers; `purpose` (1 or more) keeps pixels and names apart."""
    return np.random.default_rng([settings.seed, (*DATASETS, PICTURES).index(dataset), SPLITS.index(split), index, purpose])


def draw_sample(settings: Settings, dataset: str, split: str, index: int) -> Pixels:
    """The frames as they go into the encoder, uint8 `(frames, height, width, 3)`; an image is one frame."""
    rng = sample_rng(settings, dataset, split, index, purpose=1)
    scene, centres, shake = DRAWERS[dataset](rng, settings, class_of(settings, dataset, index))
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


def _picture(rng: np.random.Generator, settings: Settings, name: str) -> Drawn:
    if settings.relation != "separate":
        return _image(rng, settings, ACTIVITIES[name])
    return draw_sky(rng, SKIES[name], settings), np.zeros((1, 2), np.float32), draw_shake(rng, 1, settings.shake_reach)


def draw_object(rng: np.random.Generator) -> str:
    """Any of the twelve objects."""
    return OBJECTS[rng.integers(len(OBJECTS))]


def _size(settings: Settings) -> tuple[int, int]:
    return settings.height, settings.width


DRAWERS: dict[str, Callable[[np.random.Generator, Settings, str], Drawn]] = {
    "kinetics": _activity, "ssv2": _travel, "moments": _moment, "imagenet": _image, "pictures": _picture,
}  # fmt: skip
