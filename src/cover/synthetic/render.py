"""Rendering of synthetic samples: objects with patterns and outlines, scenes, frames, and encoding to a file.

The pattern of an object is its category. A vision transformer with random weights learns patterns within minutes on a
CPU, because a patch or two show them. It does not learn outlines of the same size. A mirrored pattern looks like the
original. Coordinates are in units of half the object's side, x to the right and y down.
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
FloatArray = NDArray[np.float32]
Frames = NDArray[np.uint8]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # luminance of red, green and blue
SUPERSAMPLE = 3  # points per pixel, along each side
TILT_DEGREES = (10, 40)  # the largest rotation of an object, at `tilt` 0 and 1
OBJECT_SIZE = ((0.5, 0.7), (0.25, 0.6))  # of the frame's height, at `small_objects` 0 and 1
LEAST_CONTRAST = 0.1  # of the full contrast of an object, at `low_contrast` 1
POST_WIDTH = (0.06, 0.16)  # of the frame's height
MOST_POSTS = 3  # in front of the object
BARS = (2.2, 3.2)  # on half of an object
DARK, BRIGHT = (0.0, 0.15), (0.85, 1.0)  # luminances of an object's two colours
CLEAR = 0.15  # a background is clearly dark or bright if its luminance differs more than this from 0.5
DISTRACTOR_SIZE = (0.13, 0.2)  # of the frame's height
MOST_DISTRACTORS = 4
MOST_CLUTTER = 14  # blobs and lines
FIELD = 0.08  # strength of the waves in the background
MARK = 0.2  # strength of a blob or a line
SHAKE_MEMORY = 0.7  # correlation of the camera's offset between one frame and the next
NOISE_REACH = 0.4  # the largest noise, as a fraction of the range of values; noise is uniform


# --- objects ----------------------------------------------------------------------------------------------------------

HOLLOW = "frame"
PLAIN = "plate"


def stripes(x: Coordinates, bars: float, shift: float) -> Mask:
    """Stripes across the x axis, `bars` of them on half of the object."""
    return (x * bars / 2 + shift) % 1 < 0.5


def dots(x: Coordinates, y: Coordinates, bars: float, shift: float) -> Mask:
    """Spots on a square lattice."""
    return np.hypot((x * bars / 2 + shift) % 1 - 0.5, (y * bars / 2 + shift) % 1 - 0.5) < 0.3


DrawPattern = Callable[[Coordinates, Coordinates, float, float], Mask]
# By object: whether a point has the first of the two colours. The arguments are its x and y, the number of bars on half
# of the object, and a shift in [0, 1).
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
ONE_COLOUR = frozenset([PLAIN, HOLLOW])

# Distances from the centre, one for each kind of outline. The outline is where the distance is 1.
OUTLINES: tuple[Callable[[Coordinates, Coordinates], Any], ...] = (
    np.hypot,
    lambda x, y: np.maximum(abs(x), abs(y)) / np.float32(0.88),
    lambda x, y: (abs(x) + abs(y)) / np.float32(1.25),
)
HOLE = 0.58


def cover_of(name: str, outline: int, x: Coordinates, y: Coordinates) -> Mask:
    """The points of the object: those within its outline and, for a hollow object, outside its hole."""
    distance = OUTLINES[outline](x, y)
    return (distance < 1) & ((distance > HOLE) if name == HOLLOW else True)


# --- scenes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A background and an object, float32 colours in [0, 1].

    `background`: `(H + 2·pad, W + 2·pad, 3)`. `sprite`: the object, `(S, S, 4)`, with colour multiplied by alpha and a
    transparent border of at least two pixels. `foreground`: what stands before the object, `(H + 2·pad, W + 2·pad, 4)`
    with colour multiplied by alpha, or None. `endless`: a part of the object that leaves the frame at one edge enters
    at the opposite one.
    """

    background: FloatArray
    pad: int
    sprite: FloatArray
    foreground: FloatArray | None = None
    endless: bool = False

    @property
    def reach(self) -> FloatArray:
        """The distance from the object's centre to its farthest pixel, in pixels along y and x, `(2,)`."""
        covered = self.sprite[..., 3] > 0
        ends = [np.flatnonzero(covered.any(axis))[[0, -1]] for axis in (1, 0)]
        middle = (len(covered) - 1) / 2
        return np.array([abs(end - middle).max() + 0.5 for end in ends], np.float32)


def draw_scene(rng: np.random.Generator, name: str, settings: Settings) -> Scene:
    """A random background with clutter and distractors, and the object `name` in random colours and a random size."""
    pad = _pad(settings)
    tone = rng.uniform(0.15, 0.85)
    spread = FIELD + 0.12 * settings.clutter
    background = _field(rng, tone, spread, (settings.height + 2 * pad, settings.width + 2 * pad), settings.clutter)
    for _ in range(rng.binomial(MOST_DISTRACTORS, settings.distractors)):
        side = rng.uniform(*DISTRACTOR_SIZE) * settings.height
        distractor = draw_sprite(rng, rng.choice(OBJECTS), side, tone, settings)
        _paste(background, distractor, rng.uniform(0, background.shape[0]), rng.uniform(0, background.shape[1]))
    smallest, largest = (at(settings.small_objects, *ends) for ends in zip(*OBJECT_SIZE))
    sprite = draw_sprite(rng, name, rng.uniform(smallest, largest) * settings.height, tone, settings)
    posts = rng.binomial(MOST_POSTS, settings.occlusion) if settings.occlusion else 0
    foreground = draw_posts(rng, posts, background.shape[:2], settings.height) if posts else None
    return Scene(background, pad, sprite, foreground)


def draw_sky(rng: np.random.Generator, luminances: tuple[float, float], settings: Settings) -> Scene:
    """A random background with clutter, without object or distractors. Its luminance is within `luminances`."""
    pad = _pad(settings)
    shape = settings.height + 2 * pad, settings.width + 2 * pad
    background = _field(rng, rng.uniform(*luminances), FIELD + 0.12 * settings.clutter, shape, settings.clutter)
    return Scene(background, pad, np.zeros((4, 4, 4), np.float32))


def at(dial: float, none: float, hard: float) -> float:
    """The value between `none` (at 0) and `hard` (at 1)."""
    return none + (hard - none) * dial


def _pad(settings: Settings) -> int:
    """The width of the border around the frame that the camera can reach, in pixels."""
    return int(np.ceil(settings.shake_reach + settings.pan_reach / 2)) + 2


def draw_posts(rng: np.random.Generator, posts: int, shape: tuple[int, int], height: int) -> FloatArray:
    """Straight posts at random angles across the whole field, float32 `(*shape, 4)` with colour multiplied by alpha.

    Their widths are fractions of the frame's `height` in pixels.
    """
    y, x = np.meshgrid(*((np.arange(side, dtype=np.float32) - side / 2) for side in shape), indexing="ij")
    field = np.zeros((*shape, 4), np.float32)
    for _ in range(posts):
        across = _rotate(x, y, rng.uniform(0, np.pi))[0] - rng.uniform(-0.5, 0.5) * min(shape)
        alpha = np.clip(rng.uniform(*POST_WIDTH) * height / 2 + 0.5 - abs(across), 0, 1)[..., None]
        field[..., :3] = field[..., :3] * (1 - alpha) + alpha * _colour(rng, rng.uniform(0.05, 0.95))
        field[..., 3:] = field[..., 3:] * (1 - alpha) + alpha
    return field


def draw_sprite(rng: np.random.Generator, name: str, side: float, tone: float, settings: Settings) -> FloatArray:
    """An object of `side` pixels, float32 `(S, S, 4)`, in a dark and a bright colour.

    An object of one colour has the colour that differs more from the background's luminance `tone`. With
    `low_contrast`, both colours are mixed with a grey of that luminance, by a random part.
    """
    cells = math.ceil(side * 1.25) + 4  # S: room for the rotated object and its border
    # Every pixel has SUPERSAMPLE x SUPERSAMPLE points, and its colour is their mean.
    axis = ((np.arange(cells * SUPERSAMPLE) + 0.5) / SUPERSAMPLE - cells / 2) * (2 / side)
    largest = at(settings.tilt, *TILT_DEGREES)
    angle = math.radians(rng.uniform(-largest, largest))
    x, y = _rotate(*np.meshgrid(axis.astype(np.float32), axis.astype(np.float32)), angle)
    mask = cover_of(name, int(rng.integers(len(OUTLINES))), x, y)
    pattern = PATTERNS[name](x, y, rng.uniform(*BARS), rng.uniform())
    first_colour, second_colour = _two_colours(rng, tone)
    if settings.low_contrast:
        contrast = np.float32(rng.uniform(at(settings.low_contrast, 1, LEAST_CONTRAST), 1))
        first_colour, second_colour = (tone + contrast * (colour - tone) for colour in (first_colour, second_colour))
    if name in ONE_COLOUR:
        pattern = mask
    first = _cell_means(mask & pattern)
    alpha = _cell_means(mask)
    return np.concatenate([first * first_colour + (alpha - first) * second_colour, alpha], -1)


def _cell_means(points: NDArray[np.bool_]) -> FloatArray:
    """The fraction of every pixel's points that are set, `(S, S, 1)`."""
    cells = len(points) // SUPERSAMPLE
    rows = points.reshape(cells, SUPERSAMPLE, -1).sum(1, dtype=np.float32)
    return rows.reshape(cells, cells, SUPERSAMPLE).sum(-1, keepdims=True) / SUPERSAMPLE**2


def _rotate(x: FloatArray, y: FloatArray, angle: float) -> tuple[FloatArray, FloatArray]:
    """The coordinates in axes that are rotated by `angle` radians."""
    return math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x


def _two_colours(rng: np.random.Generator, tone: float) -> tuple[FloatArray, FloatArray]:
    """A dark and a bright colour.

    If `tone` is clearly dark or bright, the colour that differs more from it is the first, else the order is random.
    """
    dark, bright = _colour(rng, rng.uniform(*DARK)), _colour(rng, rng.uniform(*BRIGHT))
    dark_first = tone > 0.5 if abs(tone - 0.5) > CLEAR else rng.random() < 0.5
    return (dark, bright) if dark_first else (bright, dark)


def _colour(rng: np.random.Generator, luminance: float) -> FloatArray:
    """A random colour that is mixed with black or white until it has exactly this luminance."""
    colour = rng.uniform(0, 1, 3).astype(np.float32)
    before = float(LUMA @ colour)
    if before > luminance:
        return colour * np.float32(luminance / before)
    return colour + (1 - colour) * np.float32((luminance - before) / (1 - before))


def _field(rng: np.random.Generator, tone: float, spread: float, shape: tuple[int, int], clutter: float) -> FloatArray:
    """A smooth colour field with faint blobs and lines, `(*shape, 3)`. Its luminance is within `tone` +- `spread`."""
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in shape)
    y, x = rows[:, None], columns[None, :]
    waves = [np.sin(rng.uniform(-3, 3) * x + (rng.uniform(-3, 3) * y + rng.uniform(0, 2 * np.pi))) for _ in range(3)]
    marks = [_mark(rng, x, y) for _ in range(rng.binomial(MOST_CLUTTER, clutter))]
    strengths = np.array([FIELD / 2] * len(waves) + [MARK] * len(marks))[:, None] * rng.uniform(
        -1, 1, (len(waves) + len(marks), 3)
    )
    drift = np.stack([*waves, *marks], -1) @ strengths.astype(np.float32)
    excess = drift @ LUMA
    drift -= (excess - np.clip(excess, -spread, spread))[..., None]
    return _colour(rng, tone) + drift


def _mark(rng: np.random.Generator, x: FloatArray, y: FloatArray) -> FloatArray:
    """A soft blob or a soft line across the field, as weights in [0, 1] of the shape of the field."""
    angle, width = rng.uniform(0, np.pi), rng.uniform(0.04, 0.2)
    across, along = _rotate(x - rng.uniform(-1, 1), y - rng.uniform(-1, 1), angle)
    if rng.random() < 0.5:
        along = np.zeros_like(along)
    return np.exp(-((across / width) ** 2) - (along / (2 * width)) ** 2)


# --- frames -----------------------------------------------------------------------------------------------------------


def draw_shake(rng: np.random.Generator, frames: int, reach: float) -> FloatArray:
    """The camera's offset in pixels, float32 `(frames, 2)` as (y, x), at most `reach`.

    It is a bounded AR(1) process, which is stationary and has the same distribution in reverse order.
    """
    steps = rng.standard_normal((frames, 2)).astype(np.float32)
    for number in range(1, frames):
        steps[number] = SHAKE_MEMORY * steps[number - 1] + math.sqrt(1 - SHAKE_MEMORY**2) * steps[number]
    return np.asarray(np.clip(steps / 2, -1, 1) * reach, np.float32)


def draw_pan(rng: np.random.Generator, frames: int, reach: float) -> FloatArray:
    """The camera's offset in pixels on a straight way at constant speed, float32 `(frames, 2)` as (y, x).

    The way has a random direction and a random length of at most `reach`, and its middle is at 0. A reversed way is as
    likely as the way itself.
    """
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0, reach)
    way = np.linspace(-0.5, 0.5, frames)[:, None] if frames > 1 else np.zeros((1, 1))
    return (way * length * np.array([math.sin(angle), math.cos(angle)])).astype(np.float32)


def draw_frames(
    rng: np.random.Generator, scene: Scene, centres: FloatArray, camera: FloatArray, noise: float
) -> Frames:
    """The frames of a sample, uint8 `(frames, H, W, 3)`.

    The object is at `centres`, and the camera is moved by `camera`. Both are in pixels, `(frames, 2)` as (y, x).
    """
    height, width = (side - 2 * scene.pad for side in scene.background.shape[:2])
    frames = np.empty((len(centres), height, width, 3), np.float32)
    for frame, centre, offset in zip(frames, centres, camera, strict=True):
        frame[:] = _window(scene.background, scene.pad - offset, height, width)
        for y, x in _places(centre + offset, (height, width), scene):
            _paste(frame, scene.sprite, y, x)
        if scene.foreground is not None:
            posts = _window(scene.foreground, scene.pad - offset, height, width)
            frame[:] = frame * (1 - posts[..., 3:]) + posts[..., :3]
    if noise:
        frames += (rng.integers(0, 256, frames.shape, np.uint8) - np.float32(127.5)) * (noise * NOISE_REACH / 128)
    np.clip(frames, 0, 1, out=frames)
    return (frames * 255 + 0.5).astype(np.uint8)


def _places(centre: FloatArray, size: tuple[int, int], scene: Scene) -> Iterator[tuple[float, float]]:
    """The positions at which the object is pasted.

    In an endless scene an object near an edge is pasted again at the opposite edge, one frame size away.
    """
    if not scene.endless:
        yield float(centre[0]), float(centre[1])
        return
    half = len(scene.sprite) / 2
    positions = [
        [at % side + shift for shift in (-side, 0, side) if -half < at % side + shift < side + half]
        for at, side in zip(centre, size)
    ]
    yield from itertools.product(*positions)


def _window(image: FloatArray, corner: Sequence[float] | FloatArray, height: int, width: int) -> FloatArray:
    """The part of `image` of `height x width` pixels at the fractional top left `corner`, interpolated bilinearly."""
    top, left = math.floor(corner[0]), math.floor(corner[1])
    down, right = float(corner[0] - top), float(corner[1] - left)
    part = image[top : top + height + 1, left : left + width + 1]
    part = part[:-1] * (1 - down) + part[1:] * down
    return part[:, :-1] * (1 - right) + part[:, 1:] * right


def _paste(image: FloatArray, sprite: FloatArray, y: float, x: float) -> None:
    """Draw the sprite into `image`, in place. Its centre is at (y, x) in pixels; what is outside `image` is cut off."""
    side = len(sprite) - 2
    corner_y, corner_x = float(y) - len(sprite) / 2, float(x) - len(sprite) / 2
    top, left = math.floor(corner_y) + 1, math.floor(corner_x) + 1
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, image.shape[0]), min(left + side, image.shape[1])
    if y0 < y1 and x0 < x1:
        moved = _window(sprite, (top - corner_y, left - corner_x), side, side)
        moved = moved[y0 - top : y1 - top, x0 - left : x1 - left]
        image[y0:y1, x0:x1] = image[y0:y1, x0:x1] * (1 - moved[..., 3:]) + moved[..., :3]


# --- encoding --------------------------------------------------------------------------------------------------------

# By suffix: encoder and options. The same frames must give the same bytes. So there is one thread, "bitexact" leaves
# out times and random ids, and x264 has no look-ahead, with which small frames sometimes differ. The .webm files are
# those of `ssv2`: key frames only, with a fixed quantiser, so that no frame contains traces of earlier frames (see
# content.py).
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
    """Write frames, uint8 `(frames, H, W, 3)`, in the format of the suffix of `path`.

    .mp4 is h264, .webm is VP9, and any other suffix is a JPEG of the first frame.
    """
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
