"""What does a generated clip show: which pixels, given an object and the way it goes?

Pure functions of a `numpy.random.Generator`. Colours are float32 in [0, 1] until the last step. Colour, texture, size and tilt of
the object, the background, the distractors and the noise are drawn without knowing the class.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cover.sandbox.objects import OBJECTS, ONE_INK, OUTLINES, PATTERNS, cover_of
from cover.sandbox.settings import Settings

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
SUPERSAMPLE = 3
TILT_DEGREES = 10
OBJECT_SIZE = (0.5, 0.7)  # of the frame's height
BARS = (2.2, 3.2)
DARK, BRIGHT, CLEAR = (0.0, 0.15), (0.85, 1.0), 0.15
DISTRACTOR_SIZE = (0.13, 0.2)
MOST_DISTRACTORS = 4
MOST_CLUTTER = 14
FIELD = 0.08
MARK = 0.2
SHAKE_MEMORY = 0.7
NOISE_REACH = 0.4  # noise is even, within this share of the whole range at most


@dataclass(frozen=True)
class Scene:
    """A place and the object in it: `background` `(H + 2·pad, W + 2·pad, 3)`, `sprite` `(S, S, 4)` with colour premultiplied by
    alpha and a border of at least two clear pixels. `endless`: what leaves the frame at one edge comes in at the opposite one."""

    background: Floats
    pad: int
    sprite: Floats
    endless: bool = False

    @property
    def reach(self) -> Floats:
        """How far the object extends from its centre, `(2,)` pixels along y and x, mirrored or not."""
        covered = self.sprite[..., 3] > 0
        ends = [np.flatnonzero(covered.any(axis))[[0, -1]] for axis in (1, 0)]
        middle = (len(covered) - 1) / 2
        return np.array([abs(end - middle).max() + 0.5 for end in ends], np.float32)


# ------------------------------------------------------------------------------------------------------------------- scenes


def draw_scene(rng: np.random.Generator, name: str, settings: Settings) -> Scene:
    """A random background with its clutter and distractors, and the object `name` in random inks and size."""
    pad = int(np.ceil(settings.shake_reach)) + 2
    tone = rng.uniform(0.15, 0.85)
    strayed = FIELD + 0.12 * settings.clutter
    background = _field(rng, tone, strayed, (settings.height + 2 * pad, settings.width + 2 * pad), settings.clutter)
    for _ in range(rng.binomial(MOST_DISTRACTORS, settings.distractors)):
        small = draw_sprite(rng, rng.choice(OBJECTS), rng.uniform(*DISTRACTOR_SIZE) * settings.height, tone)
        _paste(background, small, rng.uniform(0, background.shape[0]), rng.uniform(0, background.shape[1]))
    sprite = draw_sprite(rng, name, rng.uniform(*OBJECT_SIZE) * settings.height, tone)
    return Scene(background, pad, sprite)


def draw_sky(rng: np.random.Generator, tones: tuple[float, float], settings: Settings) -> Scene:
    """A random background of a luminance within `tones`, with its clutter: no object, no distractor."""
    pad = int(np.ceil(settings.shake_reach)) + 2
    shape = settings.height + 2 * pad, settings.width + 2 * pad
    background = _field(rng, rng.uniform(*tones), FIELD + 0.12 * settings.clutter, shape, settings.clutter)
    return Scene(background, pad, np.zeros((4, 4, 4), np.float32))


def draw_sprite(rng: np.random.Generator, name: str, side: float, tone: float) -> Floats:
    """An object `side` pixels across as `(S, S, 4)`, in a dark and a bright ink, or the one farther from `tone`."""
    cells = math.ceil(side * 1.25) + 4
    axis = ((np.arange(cells * SUPERSAMPLE) + 0.5) / SUPERSAMPLE - cells / 2) * (2 / side)
    x, y = _turn(*np.meshgrid(axis.astype(np.float32), axis.astype(np.float32)), math.radians(rng.uniform(-TILT_DEGREES, TILT_DEGREES)))
    mask = cover_of(name, int(rng.integers(len(OUTLINES))), x, y)
    pattern = PATTERNS[name](x, y, rng.uniform(*BARS), rng.uniform())
    one, other = _two_inks(rng, tone)
    if name in ONE_INK:
        pattern = mask
    first = _cell_means(mask & pattern)
    covered = _cell_means(mask)
    return np.concatenate([first * one + (covered - first) * other, covered], -1)


def _cell_means(fine: NDArray[np.bool_]) -> Floats:
    """The covered share of every pixel, `(S, S, 1)`."""
    cells = len(fine) // SUPERSAMPLE
    rows = fine.reshape(cells, SUPERSAMPLE, -1).sum(1, dtype=np.float32)
    return rows.reshape(cells, cells, SUPERSAMPLE).sum(-1, keepdims=True) / SUPERSAMPLE**2


def _turn(x: Floats, y: Floats, angle: float) -> tuple[Floats, Floats]:
    """Coordinates in a frame turned by `angle` radians."""
    return math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x


def _two_inks(rng: np.random.Generator, tone: float) -> tuple[Floats, Floats]:
    """A dark and a bright colour in random order, but that nearer to a clearly dark or bright `tone` second."""
    dark, bright = _colour(rng, rng.uniform(*DARK)), _colour(rng, rng.uniform(*BRIGHT))
    dark_first = tone > 0.5 if abs(tone - 0.5) > CLEAR else rng.random() < 0.5
    return (dark, bright) if dark_first else (bright, dark)


def _colour(rng: np.random.Generator, luminance: float) -> Floats:
    """A random colour of exactly this luminance: a random one, darkened towards black or washed out towards white."""
    colour = rng.uniform(0, 1, 3).astype(np.float32)
    has = float(LUMA @ colour)
    if has > luminance:
        return colour * np.float32(luminance / has)
    return colour + (1 - colour) * np.float32((luminance - has) / (1 - has))


def _field(rng: np.random.Generator, tone: float, strayed: float, shape: tuple[int, int], clutter: float) -> Floats:
    """A smooth colour field around luminance `tone` with faint blobs and lines; no luminance strays farther than `strayed`."""
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    y, x = rows[:, None], columns[None, :]
    waves = [np.sin(rng.uniform(-3, 3) * x + (rng.uniform(-3, 3) * y + rng.uniform(0, 2 * np.pi))) for _ in range(3)]
    marks = [_mark(rng, x, y) for _ in range(rng.binomial(MOST_CLUTTER, clutter))]
    strengths = np.array([FIELD / 2] * len(waves) + [MARK] * len(marks))[:, None] * rng.uniform(-1, 1, (len(waves) + len(marks), 3))
    drift = np.stack([*waves, *marks], -1) @ strengths.astype(np.float32)
    excess = drift @ LUMA
    drift -= (excess - np.clip(excess, -strayed, strayed))[..., None]
    return _colour(rng, tone) + drift


def _mark(rng: np.random.Generator, x: Floats, y: Floats) -> Floats:
    """A soft blob, or a soft line right across, as weights in [0, 1]."""
    angle, width = rng.uniform(0, np.pi), rng.uniform(0.04, 0.2)
    across, along = _turn(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1), angle)
    if rng.random() < 0.5:
        along = np.zeros_like(along)
    return np.exp(-((across / width) ** 2) - (along / (2 * width)) ** 2)


# ------------------------------------------------------------------------------------------------------------------- frames


def draw_shake(rng: np.random.Generator, frames: int, reach: float) -> Floats:
    """The camera's offset in pixels, `(frames, 2)` as (y, x), within `reach`: stationary and the same read backwards (a bounded AR(1))."""
    steps = rng.standard_normal((frames, 2)).astype(np.float32)
    for number in range(1, frames):
        steps[number] = SHAKE_MEMORY * steps[number - 1] + math.sqrt(1 - SHAKE_MEMORY**2) * steps[number]
    return np.asarray(np.clip(steps / 2, -1, 1) * reach, np.float32)


def draw_frames(rng: np.random.Generator, scene: Scene, centres: Floats, shake: Floats, noise: float) -> Pixels:
    """The clip, uint8 `(frames, H, W, 3)`: the object at `centres`, everything moved by `shake` (both `(frames, 2)`, pixels, y then x)."""
    height, width = (side - 2 * scene.pad for side in scene.background.shape[:2])
    frames = np.empty((len(centres), height, width, 3), np.float32)
    for frame, centre, offset in zip(frames, centres, shake, strict=True):
        frame[:] = _window(scene.background, scene.pad - offset, height, width)
        for y, x in _places(centre + offset, (height, width), scene):
            _paste(frame, scene.sprite, y, x)
    if noise:
        frames += (rng.integers(0, 256, frames.shape, np.uint8) - np.float32(127.5)) * (noise * NOISE_REACH / 128)
    np.clip(frames, 0, 1, out=frames)
    return (frames * 255 + 0.5).astype(np.uint8)


def _places(centre: Floats, size: tuple[int, int], scene: Scene) -> Iterator[tuple[float, float]]:
    """Where the object is pasted: at its centre, and in an endless scene, at most a frame's size away, wherever a part of it shows."""
    if not scene.endless:
        yield float(centre[0]), float(centre[1])
        return
    half = len(scene.sprite) / 2
    reached = [[at % side + turn for turn in (-side, 0, side) if -half < at % side + turn < side + half] for at, side in zip(centre, size)]
    yield from itertools.product(*reached)


def _window(image: Floats, corner: Sequence[float] | Floats, height: int, width: int) -> Floats:
    """The `height x width` part of `image` whose corner lies at a fractional place, bilinear."""
    top, left = math.floor(corner[0]), math.floor(corner[1])
    down, right = float(corner[0] - top), float(corner[1] - left)
    part = image[top : top + height + 1, left : left + width + 1]
    part = part[:-1] * (1 - down) + part[1:] * down
    return part[:, :-1] * (1 - right) + part[:, 1:] * right


def _paste(image: Floats, sprite: Floats, y: float, x: float) -> None:
    """Lay the sprite over `image` in place, its centre at (y, x) in pixels from the corner, cut off at the edges."""
    side = len(sprite) - 2
    corner_y, corner_x = float(y) - len(sprite) / 2, float(x) - len(sprite) / 2
    top, left = math.floor(corner_y) + 1, math.floor(corner_x) + 1
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, image.shape[0]), min(left + side, image.shape[1])
    if y0 < y1 and x0 < x1:
        moved = _window(sprite, (top - corner_y, left - corner_x), side, side)
        moved = moved[y0 - top : y1 - top, x0 - left : x1 - left]
        image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * (1 - moved[..., 3:]) + moved[..., :3]
