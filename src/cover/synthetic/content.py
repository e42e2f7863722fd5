"""Content of the generated samples: the class of every sample, its scene, and the movement of its object.

The classes of `ssv2` are directions of movement, and nothing but movement may show them. In `travel`, the object moves
a short distance at constant speed in one of eight directions. The frame has no edges: what leaves on one side enters on
the opposite side. A network cannot learn the class in another way, for these reasons:

1. The start position is uniform over the frame. So the position in any single frame is uniform too, for every
   direction: a single frame contains no information on the class.
2. A movement in reverse order is a movement in the opposite direction, frame for frame. So a set of frames without
   their order can at best show the axis of the movement (one of four), and only if positions are compared across
   frames. An average over predictions of single frames has the same mean for all axes. The distance is short, so that
   such an average shows almost nothing of the axis.
3. Object, background, distractors, posts, noise, speed, number of frames and the camera's way are drawn independently
   of the class. The camera's shake and pan, the changes of speed and the noise have the same distribution in reverse
   order.
4. Nothing else depends on time: there is no fade, no rotation, no change of size. The files of this data set contain
   key frames only, so that the codec cannot leave traces of earlier positions.

Between two of eight frames the object of an easy sample moves by less than one bar of its pattern. So the direction is
visible in a patch and the same patch of the next frame. A small object that speeds up can move further.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cover.synthetic.render import (
    OBJECTS,
    FloatArray,
    Frames,
    Scene,
    at,
    draw_frames,
    draw_pan,
    draw_scene,
    draw_shake,
    draw_sky,
)
from cover.synthetic.settings import FPS, Settings

TRAVEL_FRAMES = (24, 28, 32, 36)
TRAVEL = (0.3, 0.5)  # distance from the first frame to the last, as a fraction of the frame's height
SHORTEST = 0.4  # of the full distance, at `uneven_speed` 1

Direction = tuple[int, int]  # rows down, columns to the right: each -1, 0 or 1


DATASETS = ("kinetics", "ssv2", "moments", "imagenet")
PICTURES = "pictures"  # a fifth data set, only in a sandbox with a `relation`
SPLITS = ("train", "val")

ACTIVITIES = {
    "opening blinds": "blinds",
    "painting fence": "fence",
    "playing chess": "chessboard",
    "playing dominoes": "domino",
    "archery (target)": "target",
    "spinning pinwheel": "pinwheel",
    "washing windows": "window",
    "reading book": "book",
}
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
# Ranges of luminance. The two classes are learned within a few steps and then hardly change the network any more.
SKIES = {"night sky": (0.05, 0.2), "day sky": (0.8, 0.95)}
CLASSES = {
    "kinetics": tuple(sorted(ACTIVITIES)),
    "ssv2": tuple(sorted(DIRECTIONS)),
    "moments": tuple(sorted(MOMENTS)),
    "imagenet": OBJECTS,
}


def datasets_of(settings: Settings) -> tuple[str, ...]:
    """The names of the data sets in a sandbox of these settings."""
    return (*DATASETS, PICTURES) if settings.relation else DATASETS


def classes_of(settings: Settings, dataset: str) -> tuple[str, ...]:
    """The class names of a data set.

    `pictures` has those of `kinetics`, so that the two can share a head. With the relation `separate` it has its own.
    """
    if dataset != PICTURES:
        return CLASSES[dataset]
    return tuple(sorted(SKIES)) if settings.relation == "separate" else CLASSES["kinetics"]


def class_of(settings: Settings, dataset: str, index: int) -> str:
    """The class that sample `index` shows; for `ssv2` the template with its brackets."""
    classes = classes_of(settings, dataset)
    return classes[index % len(classes)]


def picture_label(settings: Settings, index: int) -> str:
    """The class name of picture `index` in its list.

    It is the class that the picture shows. With the relation `contrary` it is the next class.
    """
    return class_of(settings, PICTURES, index + 1 if settings.relation == "contrary" else index)


def sample_rng(settings: Settings, dataset: str, split: str, index: int, purpose: int) -> np.random.Generator:
    """The random generator of a sample. Each `purpose` (1 or more), such as pixels or names, has its own numbers."""
    return np.random.default_rng(
        [settings.seed, (*DATASETS, PICTURES).index(dataset), SPLITS.index(split), index, purpose]
    )


def draw_sample(settings: Settings, dataset: str, split: str, index: int) -> Frames:
    """The frames of a sample before encoding, uint8 `(frames, height, width, 3)`. An image is one frame."""
    rng = sample_rng(settings, dataset, split, index, purpose=1)
    scene, centres, camera = DRAWERS[dataset](rng, settings, class_of(settings, dataset, index))
    return draw_frames(rng, scene, centres, camera, settings.noise)


# --- scene and movement of each data set ------------------------------------------------------------------------------

# the scene, the object's centres and the camera's offsets, both in pixels, float32 (frames, 2)
SceneDraw = tuple[Scene, FloatArray, FloatArray]


def _activity(rng: np.random.Generator, settings: Settings, name: str) -> SceneDraw:
    scene = draw_scene(rng, ACTIVITIES[name], settings)
    frames = int(rng.integers(2 * FPS, 3 * FPS + 1))
    return scene, wander(rng, _size(settings), scene.reach, frames), _camera(rng, frames, settings)


def _travel(rng: np.random.Generator, settings: Settings, name: str) -> SceneDraw:
    scene = replace(draw_scene(rng, draw_object(rng), settings), endless=True)
    centres = travel(rng, _size(settings), DIRECTIONS[name], settings.uneven_speed)
    return scene, centres, _camera(rng, len(centres), settings)


def _moment(rng: np.random.Generator, settings: Settings, name: str) -> SceneDraw:
    shape, rising = MOMENTS[name]
    scene = draw_scene(rng, shape, settings)
    centres = rise_or_fall(rng, _size(settings), scene.reach, MOMENT_FRAMES, rising, settings.uneven_speed)
    return scene, centres, _camera(rng, MOMENT_FRAMES, settings)


def _image(rng: np.random.Generator, settings: Settings, name: str) -> SceneDraw:
    scene = draw_scene(rng, name, settings)
    return scene, wander(rng, _size(settings), scene.reach, 1), _camera(rng, 1, settings)


def _picture(rng: np.random.Generator, settings: Settings, name: str) -> SceneDraw:
    if settings.relation != "separate":
        return _image(rng, settings, ACTIVITIES[name])
    return draw_sky(rng, SKIES[name], settings), np.zeros((1, 2), np.float32), _camera(rng, 1, settings)


def _camera(rng: np.random.Generator, frames: int, settings: Settings) -> FloatArray:
    """The camera's offset in pixels: its shake and its pan, float32 `(frames, 2)` as (y, x)."""
    shake = draw_shake(rng, frames, settings.shake_reach)
    return shake + draw_pan(rng, frames, settings.pan_reach) if settings.pan else shake


def draw_object(rng: np.random.Generator) -> str:
    """The name of a random object."""
    return OBJECTS[rng.integers(len(OBJECTS))]


def _size(settings: Settings) -> tuple[int, int]:
    return settings.height, settings.width


# --- movement of the object -------------------------------------------------------------------------------------------


def travel(
    rng: np.random.Generator, size: tuple[int, int], direction: Direction, uneven_speed: float = 0.0
) -> FloatArray:
    """A straight movement in a frame without edges of `size` (height, width).

    Returns the object's centre in pixels, float32 `(frames, 2)` as (y, x), modulo `size`.
    """
    fraction = np.linspace(0, 1, int(rng.choice(TRAVEL_FRAMES)))[:, None]  # of the distance, (frames, 1)
    shortest, longest = TRAVEL[0] * at(uneven_speed, 1, SHORTEST), TRAVEL[1]
    distance = np.array(direction) / np.hypot(*direction) * rng.uniform(shortest, longest) * size[0]  # (2,)
    start = rng.uniform(0, 1, 2) * size
    return (start + _uneven(rng, fraction, uneven_speed) * distance).astype(np.float32)


def wander(rng: np.random.Generator, size: tuple[int, int], reach: FloatArray, frames: int) -> FloatArray:
    """A smooth random movement within the frame: the centre in pixels, float32 `(frames, 2)` as (y, x)."""
    times = np.arange(frames)[:, None] / FPS
    swing = rng.uniform(0.1, 0.5, 2)
    middle = rng.uniform(swing, 1 - swing)
    inside = middle + swing * np.sin(2 * np.pi * (rng.uniform(0.15, 0.5, 2) * times + rng.uniform(0, 1, 2)))
    return _within(inside, size, 0.7 * reach)


def rise_or_fall(
    rng: np.random.Generator,
    size: tuple[int, int],
    reach: FloatArray,
    frames: int,
    rising: bool,
    uneven_speed: float = 0.0,
) -> FloatArray:
    """A movement up or down with a random sideways drift: the centre in pixels, float32 `(frames, 2)` as (y, x).

    A rising movement is a falling one in reverse order, so that the two classes differ in the order of frames only.
    """
    fraction = np.linspace(0, 1, frames)[:, None]
    first, last = rng.uniform([0.0, 0.8], [0.2, 1.0])
    columns = rng.uniform(0.2, 0.8, 2)
    if uneven_speed:
        shorter = rng.uniform(at(uneven_speed, 1, SHORTEST), 1) * (last - first)
        first = rng.uniform(first, last - shorter)
        last = first + shorter
    fraction = _uneven(rng, fraction, uneven_speed)
    inside = np.concatenate([first + (last - first) * fraction, columns[0] + (columns[1] - columns[0]) * fraction], 1)
    return _within(inside[::-1] if rising else inside, size, 0.5 * reach)


def _uneven(rng: np.random.Generator, fraction: NDArray[np.float64], uneven_speed: float) -> NDArray[np.float64]:
    """A movement that slows down and speeds up: fractions of the way in [0, 1], increasing, of the shape of `fraction`.

    Slower in the middle is as likely as faster, and slower at the end as slower at the start. So the reversed movement
    is as likely as the movement itself.
    """
    if not uneven_speed:
        return fraction
    middle, end = rng.uniform(-0.45, 0.45, 2) * uneven_speed
    return fraction + middle * np.sin(2 * np.pi * fraction) / np.pi / 2 + end * fraction * (1 - fraction)


def _within(inside: NDArray[np.float64], size: tuple[int, int], border: FloatArray) -> FloatArray:
    """Convert fractions of the frame in [0, 1] to pixels that are at least `border` `(2,)` from the edges."""
    return (border + inside * (np.array(size) - 2 * border)).astype(np.float32)


DRAWERS: dict[str, Callable[[np.random.Generator, Settings, str], SceneDraw]] = {
    "kinetics": _activity,
    "ssv2": _travel,
    "moments": _moment,
    "imagenet": _image,
    "pictures": _picture,
}
