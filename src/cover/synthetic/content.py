"""The content of generated samples: the class of every sample, and how objects move.

`travel` makes the motion-led set. The object goes a short way at an even speed in one of eight directions, in a frame
without edges: what leaves on one side comes in on the other. The argument:

1. The start is drawn evenly over such a frame, so the place in any frame is even over it whatever the direction: one
   frame tells nothing, exactly.
2. A way read backwards is a way of the opposite direction, frame for frame. So unordered frames can at best tell the
   four axes from each other, and only by comparing places across frames. What single frames say, averaged over the
   frames, has the same mean for all axes; the way is shorter than the object, which leaves such an average next to
   nothing of the axis.
3. Object, background, distractors, speed and the number of frames are drawn without knowing the class; the camera's
   shake and the noise are stationary and look the same backwards.
4. Nothing else depends on time: no fade, no turning, no change of size. The files of this set hold key frames only, so
   the codec cannot leave a trail of where the object was before.

Between two of eight frames the object moves by less than one bar of its pattern, so the direction shows in a patch and
its next frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cover.synthetic.render import OBJECTS, FloatArray, Frames, Scene, draw_frames, draw_scene, draw_shake, draw_sky
from cover.synthetic.settings import FPS, Settings

TRAVEL_FRAMES = (24, 28, 32, 36)
TRAVEL = (0.3, 0.5)  # of the frame's height, from the first frame to the last

Direction = tuple[int, int]  # rows down, columns to the right: each -1, 0 or 1


def travel(rng: np.random.Generator, size: tuple[int, int], direction: Direction) -> FloatArray:
    """The object's centre in pixels, `(frames, 2)` as (y, x), on a straight way through a frame without edges; `size`
    is (height, width).

    Only the place modulo `size` means anything.
    """
    fraction = np.linspace(0, 1, int(rng.choice(TRAVEL_FRAMES)))[:, None]
    way = np.array(direction) / np.hypot(*direction) * rng.uniform(*TRAVEL) * size[0]
    return (rng.uniform(0, 1, 2) * size + fraction * way).astype(np.float32)


def wander(rng: np.random.Generator, size: tuple[int, int], reach: FloatArray, frames: int) -> FloatArray:
    """A smooth random way that stays in the frame: the centre in pixels, `(frames, 2)` as (y, x)."""
    times = np.arange(frames)[:, None] / FPS
    swing = rng.uniform(0.1, 0.5, 2)
    middle = rng.uniform(swing, 1 - swing)
    inside = middle + swing * np.sin(2 * np.pi * (rng.uniform(0.15, 0.5, 2) * times + rng.uniform(0, 1, 2)))
    return _within(inside, size, 0.7 * reach)


def rise_or_fall(
    rng: np.random.Generator, size: tuple[int, int], reach: FloatArray, frames: int, rising: bool
) -> FloatArray:
    """A steady way up or down with a sideways drift that knows no side: the centre in pixels, `(frames, 2)` as (y, x)."""
    fraction = np.linspace(0, 1, frames)[:, None]
    first, last = rng.uniform([0.0, 0.8], [0.2, 1.0])
    columns = rng.uniform(0.2, 0.8, 2)
    inside = np.concatenate([first + (last - first) * fraction, columns[0] + (columns[1] - columns[0]) * fraction], 1)
    return _within(inside[::-1] if rising else inside, size, 0.5 * reach)


def _within(inside: NDArray[np.float64], size: tuple[int, int], border: FloatArray) -> FloatArray:
    """Shares of the frame in [0, 1] as pixels at least `border` `(2,)` from its edges."""
    return (border + inside * (np.array(size) - 2 * border)).astype(np.float32)


DATASETS = ("kinetics", "ssv2", "moments", "imagenet")
PICTURES = "pictures"  # the fifth data set, which only a sandbox with a `relation` has
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
    """The class names of a data set. `pictures` has those of `kinetics`, so that both can share a head, or, `separate`,
    its own.
    """
    if dataset != PICTURES:
        return CLASSES[dataset]
    return tuple(sorted(SKIES)) if settings.relation == "separate" else CLASSES["kinetics"]


def class_of(settings: Settings, dataset: str, index: int) -> str:
    """The class that sample `index` shows; for `ssv2` the template with its brackets."""
    classes = classes_of(settings, dataset)
    return classes[index % len(classes)]


def picture_label(settings: Settings, index: int) -> str:
    """The class name that picture `index` is given: the one that it shows, but under `contrary` the next one, in all
    classes alike.
    """
    return class_of(settings, PICTURES, index + 1 if settings.relation == "contrary" else index)


def sample_rng(settings: Settings, dataset: str, split: str, index: int, purpose: int) -> np.random.Generator:
    """The sample's own random numbers; `purpose` (1 or more) keeps pixels and names apart."""
    return np.random.default_rng(
        [settings.seed, (*DATASETS, PICTURES).index(dataset), SPLITS.index(split), index, purpose]
    )


def draw_sample(settings: Settings, dataset: str, split: str, index: int) -> Frames:
    """The frames as they go into the encoder, uint8 `(frames, height, width, 3)`; an image is one frame."""
    rng = sample_rng(settings, dataset, split, index, purpose=1)
    scene, centres, shake = DRAWERS[dataset](rng, settings, class_of(settings, dataset, index))
    return draw_frames(rng, scene, centres, shake, settings.noise)


Drawn = tuple[Scene, FloatArray, FloatArray]


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
    "kinetics": _activity,
    "ssv2": _travel,
    "moments": _moment,
    "imagenet": _image,
    "pictures": _picture,
}
