"""Rendering: objects with their patterns and outlines, scenes, and encoding to a file.

The pattern is the category: a vision transformer that starts from random weights learns patterns, which show inside a
patch or two, within minutes on a CPU; outlines of the same size it does not. All patterns look alike in a mirror.
Coordinates are in units of half the object's side, x to the right and y down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.codec.context import Flags
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from cover.synthetic.settings import FPS, Settings

Coordinates = NDArray[np.float32]
Mask = NDArray[np.bool_]

HOLLOW = "frame"
PLAIN = "plate"


def stripes(x: Coordinates, bars: float, shift: float) -> Mask:
    """Bars across x, `bars` of them on half the object."""
    return (x * bars / 2 + shift) % 1 < 0.5


def dots(x: Coordinates, y: Coordinates, bars: float, shift: float) -> Mask:
    """Spots on a square lattice."""
    return np.hypot((x * bars / 2 + shift) % 1 - 0.5, (y * bars / 2 + shift) % 1 - 0.5) < 0.3


DrawPattern = Callable[[Coordinates, Coordinates, float, float], Mask]
# name: which of the two inks a point has, from its place, the bars on half the object, and a shift in [0, 1)
PATTERNS: dict[str, DrawPattern] = {
    "blinds": lambda x, y, bars, shift: stripes(y, bars, shift),
    "fence": lambda x, y, bars, shift: stripes(x, bars, shift),
    "chessboard": lambda x, y, bars, shift: stripes(x, bars, shift) ^ stripes(y, bars, shift),
    "domino": dots,
    "target": lambda x, y, bars, shift: np.hypot(x, y) * 1.5 % 1 < 0.5,
    "pinwheel": lambda x, y, bars, shift: (np.arctan2(y, x) * 3 / np.pi + shift) % 1 < 0.5,
    PLAIN: lambda x, y, bars, shift: np.ones_like(x, dtype=bool),
    "eye": lambda x, y, bars, shift: np.hypot(x, y) < 0.45,
    "window": lambda x, y, bars, shift: np.minimum(abs(x), abs(y)) < 0.25,
    "flag": lambda x, y, bars, shift: y < 0,
    "book": lambda x, y, bars, shift: x < 0,
    HOLLOW: lambda x, y, bars, shift: np.ones_like(x, dtype=bool),
}
OBJECTS = tuple(PATTERNS)
ONE_INK = frozenset([PLAIN, HOLLOW])

# A measure of distance from the centre: the outline of size 1 is where it is 1.
OUTLINES: tuple[Callable[[Coordinates, Coordinates], Any], ...] = (
    np.hypot,
    lambda x, y: np.maximum(abs(x), abs(y)) / np.float32(0.88),
    lambda x, y: (abs(x) + abs(y)) / np.float32(1.25),
)
HOLE = 0.58


def cover_of(name: str, outline: int, x: Coordinates, y: Coordinates) -> Mask:
    """Where the object is: within its outline, and for the hollow one outside its hole."""
    distance = OUTLINES[outline](x, y)
    return (distance < 1) & ((distance > HOLE) if name == HOLLOW else True)


FloatArray = NDArray[np.float32]
Frames = NDArray[np.uint8]

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
    """A place and the object in it: `background` `(H + 2·pad, W + 2·pad, 3)`, `sprite` `(S, S, 4)` with colour
    premultiplied by alpha and a border of at least two clear pixels. `endless`: what leaves the frame at one edge comes
    in at the opposite one.
    """

    background: FloatArray
    pad: int
    sprite: FloatArray
    endless: bool = False

    @property
    def reach(self) -> FloatArray:
        """How far the object extends from its centre, `(2,)` pixels along y and x, mirrored or not."""
        covered = self.sprite[..., 3] > 0
        ends = [np.flatnonzero(covered.any(axis))[[0, -1]] for axis in (1, 0)]
        middle = (len(covered) - 1) / 2
        return np.array([abs(end - middle).max() + 0.5 for end in ends], np.float32)


# ------------------------------------------------------------------------------------------------------------------- sc


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


def draw_sky(rng: np.random.Generator, colour_operations: tuple[float, float], settings: Settings) -> Scene:
    """A random background of a luminance within `colour_operations`, with its clutter: no object, no distractor."""
    pad = int(np.ceil(settings.shake_reach)) + 2
    shape = settings.height + 2 * pad, settings.width + 2 * pad
    background = _field(rng, rng.uniform(*colour_operations), FIELD + 0.12 * settings.clutter, shape, settings.clutter)
    return Scene(background, pad, np.zeros((4, 4, 4), np.float32))


def draw_sprite(rng: np.random.Generator, name: str, side: float, tone: float) -> FloatArray:
    """An object `side` pixels across as `(S, S, 4)`, in a dark and a bright ink, or the one farther from `tone`."""
    cells = math.ceil(side * 1.25) + 4
    axis = ((np.arange(cells * SUPERSAMPLE) + 0.5) / SUPERSAMPLE - cells / 2) * (2 / side)
    x, y = _turn(
        *np.meshgrid(axis.astype(np.float32), axis.astype(np.float32)),
        math.radians(rng.uniform(-TILT_DEGREES, TILT_DEGREES)),
    )
    mask = cover_of(name, int(rng.integers(len(OUTLINES))), x, y)
    pattern = PATTERNS[name](x, y, rng.uniform(*BARS), rng.uniform())
    one, other = _two_inks(rng, tone)
    if name in ONE_INK:
        pattern = mask
    first = _cell_means(mask & pattern)
    covered = _cell_means(mask)
    return np.concatenate([first * one + (covered - first) * other, covered], -1)


def _cell_means(fine: NDArray[np.bool_]) -> FloatArray:
    """The covered share of every pixel, `(S, S, 1)`."""
    cells = len(fine) // SUPERSAMPLE
    rows = fine.reshape(cells, SUPERSAMPLE, -1).sum(1, dtype=np.float32)
    return rows.reshape(cells, cells, SUPERSAMPLE).sum(-1, keepdims=True) / SUPERSAMPLE**2


def _turn(x: FloatArray, y: FloatArray, angle: float) -> tuple[FloatArray, FloatArray]:
    """Coordinates in a frame turned by `angle` radians."""
    return math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x


def _two_inks(rng: np.random.Generator, tone: float) -> tuple[FloatArray, FloatArray]:
    """A dark and a bright colour in random order, but that nearer to a clearly dark or bright `tone` second."""
    dark, bright = _colour(rng, rng.uniform(*DARK)), _colour(rng, rng.uniform(*BRIGHT))
    dark_first = tone > 0.5 if abs(tone - 0.5) > CLEAR else rng.random() < 0.5
    return (dark, bright) if dark_first else (bright, dark)


def _colour(rng: np.random.Generator, luminance: float) -> FloatArray:
    """A random colour of exactly this luminance: a random one, darkened towards black or washed out towards white."""
    colour = rng.uniform(0, 1, 3).astype(np.float32)
    has = float(LUMA @ colour)
    if has > luminance:
        return colour * np.float32(luminance / has)
    return colour + (1 - colour) * np.float32((luminance - has) / (1 - has))


def _field(rng: np.random.Generator, tone: float, strayed: float, shape: tuple[int, int], clutter: float) -> FloatArray:
    """A smooth colour field around luminance `tone` with faint blobs and lines; no luminance strays farther than
    `strayed`.
    """
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    y, x = rows[:, None], columns[None, :]
    waves = [np.sin(rng.uniform(-3, 3) * x + (rng.uniform(-3, 3) * y + rng.uniform(0, 2 * np.pi))) for _ in range(3)]
    marks = [_mark(rng, x, y) for _ in range(rng.binomial(MOST_CLUTTER, clutter))]
    strengths = np.array([FIELD / 2] * len(waves) + [MARK] * len(marks))[:, None] * rng.uniform(
        -1, 1, (len(waves) + len(marks), 3)
    )
    drift = np.stack([*waves, *marks], -1) @ strengths.astype(np.float32)
    excess = drift @ LUMA
    drift -= (excess - np.clip(excess, -strayed, strayed))[..., None]
    return _colour(rng, tone) + drift


def _mark(rng: np.random.Generator, x: FloatArray, y: FloatArray) -> FloatArray:
    """A soft blob, or a soft line right across, as weights in [0, 1]."""
    angle, width = rng.uniform(0, np.pi), rng.uniform(0.04, 0.2)
    across, along = _turn(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1), angle)
    if rng.random() < 0.5:
        along = np.zeros_like(along)
    return np.exp(-((across / width) ** 2) - (along / (2 * width)) ** 2)


# ------------------------------------------------------------------------------------------------------------------- fr


def draw_shake(rng: np.random.Generator, frames: int, reach: float) -> FloatArray:
    """The camera's offset in pixels, `(frames, 2)` as (y, x), within `reach`: stationary and the same read backwards (a
    bounded AR(1)).
    """
    steps = rng.standard_normal((frames, 2)).astype(np.float32)
    for number in range(1, frames):
        steps[number] = SHAKE_MEMORY * steps[number - 1] + math.sqrt(1 - SHAKE_MEMORY**2) * steps[number]
    return np.asarray(np.clip(steps / 2, -1, 1) * reach, np.float32)


def draw_frames(rng: np.random.Generator, scene: Scene, centres: FloatArray, shake: FloatArray, noise: float) -> Frames:
    """The clip, uint8 `(frames, H, W, 3)`: the object at `centres`, everything moved by `shake` (both `(frames, 2)`,
    pixels, y then x).
    """
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


def _places(centre: FloatArray, size: tuple[int, int], scene: Scene) -> Iterator[tuple[float, float]]:
    """Where the object is pasted: at its centre, and in an endless scene, at most a frame's size away, wherever a part
    of it shows.
    """
    if not scene.endless:
        yield float(centre[0]), float(centre[1])
        return
    half = len(scene.sprite) / 2
    reached = [
        [at % side + turn for turn in (-side, 0, side) if -half < at % side + turn < side + half]
        for at, side in zip(centre, size)
    ]
    yield from itertools.product(*reached)


def _window(image: FloatArray, corner: Sequence[float] | FloatArray, height: int, width: int) -> FloatArray:
    """The `height x width` part of `image` whose corner lies at a fractional place, bilinear."""
    top, left = math.floor(corner[0]), math.floor(corner[1])
    down, right = float(corner[0] - top), float(corner[1] - left)
    part = image[top : top + height + 1, left : left + width + 1]
    part = part[:-1] * (1 - down) + part[1:] * down
    return part[:, :-1] * (1 - right) + part[:, 1:] * right


def _paste(image: FloatArray, sprite: FloatArray, y: float, x: float) -> None:
    """Lay the sprite over `image` in place, its centre at (y, x) in pixels from the corner, cut off at the edges."""
    side = len(sprite) - 2
    corner_y, corner_x = float(y) - len(sprite) / 2, float(x) - len(sprite) / 2
    top, left = math.floor(corner_y) + 1, math.floor(corner_x) + 1
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, image.shape[0]), min(left + side, image.shape[1])
    if y0 < y1 and x0 < x1:
        moved = _window(sprite, (top - corner_y, left - corner_x), side, side)
        moved = moved[y0 - top : y1 - top, x0 - left : x1 - left]
        image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * (1 - moved[..., 3:]) + moved[..., :3]


# Suffix -> encoder and its options. One thread and "bitexact" keep times and random ids out of the bytes, and x264
# looks no frame ahead: where it does, small frames come out different now and then. The webm set is the motion-led one:
# key frames only at one fixed quantiser, so that no frame carries a trace of the one before (see motion.py).
VIDEO = {
    ".mp4": (
        "libx264",
        {
            "preset": "veryfast",
            "crf": "20",
            "threads": "1",
            "g": str(FPS),
            "bf": "0",
            "x264-params": "mbtree=0:rc-lookahead=0",
        },
    ),
    ".webm": (
        "libvpx-vp9",
        {
            "deadline": "realtime",
            "cpu-used": "8",
            "crf": "20",
            "qmin": "20",
            "qmax": "20",
            "b": "0",
            "g": "1",
            "threads": "1",
            "lag-in-frames": "0",
            "aq-mode": "0",
        },
    ),
}
JPEG_QUALITY = 92


def encode(path: Path, frames: Frames) -> None:
    """Write uint8 `(frames, H, W, 3)` as mp4 (h264), webm (VP9) or, one frame only, JPEG, by the suffix of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in VIDEO:
        _encode_video(path, frames)
    else:
        Image.fromarray(frames[0]).save(path, format="JPEG", quality=JPEG_QUALITY)


def _encode_video(path: Path, frames: Frames) -> None:
    codec, options = VIDEO[path.suffix]
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=FPS, options=options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.flags |= Flags.bitexact
        converter = VideoReformatter()
        for number, pixels in enumerate(frames):
            frame = converter.reformat(VideoFrame.from_ndarray(pixels, format="rgb24"), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
