"""Which picture does a file show at a given time?

Videos go through PyAV (FFmpeg's libraries), images through Pillow. A folder of numbered images is a video too, of 12
frames a second (Something-Something's rate). Times are seconds counted from the file's first frame. Everything that makes
a file unusable ends as a `MediaError` with a short reason; nothing is ever replaced.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Literal, cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image, ImageOps

AnyPath = str | os.PathLike[str]

MAX_PIXELS = 100_000_000
# Containers round time stamps to their tick, often a whole millisecond: a frame may be stamped this much late.
TOLERANCE = 1e-3
SEEK_BEYOND = 2.0  # seconds; below this, decoding from the start costs less than it saves to seek
SEEK_MARGIN = 1.0  # seconds; indexes hold decoding times, which run ahead of presentation times
STAMPED_IN_DECODING_ORDER = {"avi"}  # what FFmpeg gives as presentation times here is scrambled by B-frames
FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SEEKABLE = {"mov", "matroska"}  # containers whose time stamps are stored per frame, hence the same after a seek
FALLBACK_RATE = 25.0
FOLDER_RATE = 12.0  # frames per second of a folder of images, which does not say

# What the libraries say about odd files reaches the user as one reason per file, never as lines on the terminal.
av.logging.set_level(None)
warnings.filterwarnings("ignore", module=r"PIL\.")
# What Pillow's readers are known to raise on damaged files.
DAMAGED_IMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


class MediaError(Exception):
    """A file that cannot be used. `str(error)` is a short reason without the file's name."""


@dataclass(frozen=True)
class Probe:
    """What a file holds. Width and height are pixels as displayed: after rotation and pixel aspect.

    `fps` is frames per second on average, `duration` in seconds (the last frame's own time on screen included), `start`
    the first frame's time stamp in seconds. An image has one frame, and fps, duration and start of 0.
    """

    frames: int
    fps: float
    width: int
    height: int
    codec: str
    duration: float
    start: float


@dataclass(frozen=True)
class Decoded:
    """`frames` uint8 (N, H, W, 3) RGB, one per wanted time; `partial` says what cut the file short, None if nothing did."""

    frames: np.ndarray
    partial: str | None


def probe(path: AnyPath, media: Literal["video", "image"] = "video", *, max_pixels: int = MAX_PIXELS) -> Probe:
    """Measure a file without decoding all of it. Raises MediaError.

    A video's first two frames are decoded, the rest is only counted: packets that carry a frame to be shown. So damage
    inside later packets goes unnoticed here (`decode_at` reports it), and a few codecs that hide extra pictures in
    packets of their own can be counted one or two too high. An image is decoded, at reduced size where its format can.
    """
    if media == "image":
        return _probe_image(path, max_pixels)
    return _probe_folder(path, max_pixels) if os.path.isdir(path) else _probe_video(path, max_pixels)


def decode_at(path: AnyPath, times: Sequence[float], *, size_hint: int | None = None, max_pixels: int = MAX_PIXELS) -> Decoded:
    """The frames shown at `times` (seconds from the first frame, any order, repeats allowed), in that order.

    The frame at t is the last one that starts at or before t (within 1 ms); before the first it is the first, past the
    end the last. With `size_hint`, frames whose short side is longer come back scaled down to that many pixels. Display
    rotation, mirroring and pixel aspect are applied. One pass over the file in one thread, with at most one seek.
    Raises MediaError when the file yields no frame or one frame exceeds `max_pixels`; of a folder of images, also when a
    wanted one is damaged or of another size than the rest.
    """
    wanted = np.asarray(times, dtype=np.float64)
    assert wanted.size > 0, "at least one time"
    assert np.isfinite(wanted).all(), "times are finite"
    if os.path.isdir(path):
        return _decode_folder(path, wanted.tolist(), size_hint, max_pixels)
    order = np.argsort(wanted, kind="stable")
    ascending = wanted[order].tolist()
    decoded = _decode(path, ascending, order, size_hint, max_pixels, may_seek=ascending[0] > SEEK_BEYOND)
    if decoded is None:
        decoded = _decode(path, ascending, order, size_hint, max_pixels, may_seek=False)
    assert decoded is not None
    return decoded


def decode_image(path: AnyPath, *, size_hint: int | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as uint8 (H, W, 3) RGB, upright by its EXIF orientation. Raises MediaError.

    With `size_hint`, a JPEG is decoded at 1/2, 1/4 or 1/8 size where its short side stays at least that many pixels.
    """
    with _open_image(path, max_pixels) as image:
        if size_hint:
            image.draft("RGB", (size_hint, size_hint))
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey at 255
            return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        return np.array(image.convert("RGB"))


# --- videos


def _probe_video(path: AnyPath, max_pixels: int) -> Probe:
    with _open_video(path, max_pixels) as (container, stream):
        reader = _Reader(container, stream)
        frames = iter(reader)
        first = _first(frames, reader)
        next(frames, None)
        shape = _Shape.of(first, stream, None, max_pixels)
        return _summary(first, reader.stamps_to_end(), _rate(stream), shape, stream.codec_context.name)


def _summary(first: VideoFrame, stamps: list[tuple[int | None, int]], rate: float, shape: _Shape, codec: str) -> Probe:
    """Frames, rate and duration from all packets' time stamps and durations in ticks."""
    width, height = shape.upright
    known = sorted((pts, length) for pts, length in stamps if pts is not None and first.pts is not None and pts >= first.pts)
    count = max(len(known) + sum(pts is None for pts, _ in stamps), 1)
    if first.pts is None or not known:
        return Probe(count, rate, width, height, codec, count / rate, 0.0)
    tick = _tick(first)
    span = (known[-1][0] - first.pts) * tick
    fps = (count - 1) / span if span > 0 and count > 1 else rate
    last = known[-1][1] * tick or 1 / fps
    return Probe(count, fps, width, height, codec, span + last, first.pts * tick)


def _decode(
    path: AnyPath, ascending: list[float], order: np.ndarray, size_hint: int | None, max_pixels: int, *, may_seek: bool
) -> Decoded | None:
    """One pass over the file; None when it sought and did not land before the earliest time."""
    with _open_video(path, max_pixels) as (container, stream):
        reader = _Reader(container, stream)
        frames = iter(reader)
        first = _first(frames, reader)
        shape = _Shape.of(first, stream, size_hint, max_pixels)
        kinds = set(container.format.name.split(","))
        stamp = attrgetter("dts" if kinds & STAMPED_IN_DECODING_ORDER else "pts")
        timed: Iterator[tuple[float, VideoFrame]] | None = _timed(chain([first], frames), first, _rate(stream), stamp)
        if may_seek and first.pts is not None and kinds & SEEKABLE:
            timed = _seek(reader, first, ascending[0], _rate(stream))
        if timed is None:
            return None
        out = np.empty((len(ascending), *shape.upright[::-1], 3), dtype=np.uint8)
        for frame, start, stop in _shown_at(timed, ascending):
            out[order[start:stop]] = shape.rgb(frame)
        return Decoded(out, reader.damage)


def _shown_at(timed: Iterable[tuple[float, VideoFrame]], ascending: list[float]) -> Iterator[tuple[VideoFrame, int, int]]:
    """Which frame answers which run of wanted times: (frame, start, stop). Reads no further than the last answer needs."""
    done, held = 0, None
    for time, frame in timed:
        reached = bisect_left(ascending, time - TOLERANCE)
        if held is not None and reached > done:
            yield held, done, reached
            done = reached
            if done == len(ascending):
                return
        held = frame
    if held is not None:
        yield held, done, len(ascending)


def _timed(
    frames: Iterable[VideoFrame], first: VideoFrame, rate: float, stamp: Callable[[VideoFrame], int | None]
) -> Iterator[tuple[float, VideoFrame]]:
    """Seconds since the first frame, never running backwards; a frame without a time stamp is one step after the last."""
    origin, tick = stamp(first), _tick(first)
    time, step = 0.0, 1 / rate
    for number, frame in enumerate(frames):
        ticks = stamp(frame)
        before = time
        if origin is not None and ticks is not None:
            time = max(time, (ticks - origin) * tick)
        elif number:
            time += step
        step = time - before or step
        yield time, frame


def _seek(reader: _Reader, first: VideoFrame, earliest: float, rate: float) -> Iterator[tuple[float, VideoFrame]] | None:
    """Go to a key frame before the earliest wanted time. None when there is none to be had."""
    assert first.pts is not None
    tick, damage = _tick(first), reader.damage
    try:
        reader.container.seek(first.pts + int((earliest - SEEK_MARGIN) / tick), stream=reader.stream, backward=True)
    except av.FFmpegError:
        return None
    frames = iter(reader)
    # Pictures that come before the key frame may lack what they refer to.
    key = next((frame for frame in frames if frame.key_frame), None)
    if key is None or key.pts is None or (key.pts - first.pts) * tick > earliest + TOLERANCE:
        return None
    reader.damage = damage  # nothing is lost by what could not be decoded in front of the key frame
    return _timed(chain([key], frames), first, rate, attrgetter("pts"))


class _Reader:
    """A stream's frames in presentation order, up to the first damage, which it remembers."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.damage: str | None = None
        self.stamps: list[tuple[int | None, int]] = []  # (pts, duration) in ticks of every packet read to be shown
        self._packets: Iterator[Packet[VideoStream]] = iter(())

    def __iter__(self) -> Iterator[VideoFrame]:
        begun = False
        self._packets = self._demux()
        for packet in self._packets:
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self.damage = _reason(error)
                if begun:
                    return
                continue  # a stream cut out of a longer one starts with packets that cannot be decoded yet
            begun = begun or bool(frames)
            yield from frames

    def _demux(self) -> Iterator[Packet[VideoStream]]:
        try:
            for packet in self.container.demux(self.stream):
                if packet.size and not packet.is_discard:
                    self.stamps.append((packet.pts, packet.duration or 0))
                yield packet
        except av.FFmpegError as error:
            self.damage = _reason(error)

    def stamps_to_end(self) -> list[tuple[int | None, int]]:
        """Read the packets that are left without decoding them."""
        for _ in self._packets:
            pass
        return self.stamps


@dataclass
class _Shape:
    """From a decoded frame to upright RGB of one size, whatever the later frames' own sizes."""

    width: int
    height: int
    matrix: tuple[int, ...]
    converter: VideoReformatter

    @classmethod
    def of(cls, frame: VideoFrame, stream: VideoStream, size_hint: int | None, max_pixels: int) -> _Shape:
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        width, height = max(1, round(frame.width * aspect)), frame.height
        _check_size(width, height, max_pixels)
        if size_hint and size_hint < min(width, height):
            scale = size_hint / min(width, height)
            width, height = round(width * scale), round(height * scale)
        return cls(width, height, _display_matrix(frame), VideoReformatter())

    @property
    def turned(self) -> bool:
        """Whether display swaps rows and columns."""
        return abs(self.matrix[1]) > abs(self.matrix[0])

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as displayed."""
        return (self.height, self.width) if self.turned else (self.width, self.height)

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3)."""
        try:
            flat = self.converter.reformat(frame, self.width, self.height, "rgb24", interpolation=Interpolation.BILINEAR, threads=1)
        except av.FFmpegError as error:
            raise MediaError(f"{frame.format.name} pixels cannot be turned into RGB: {_reason(error)}") from error
        pixels = flat.to_ndarray()
        a, b, c, d = self.matrix[0], self.matrix[1], self.matrix[3], self.matrix[4]
        if self.turned:
            pixels, right, down = pixels.swapaxes(0, 1), c, b
        else:
            right, down = a, d
        return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _display_matrix(frame: VideoFrame) -> tuple[int, ...]:
    """How a pixel moves from the coded to the displayed picture: x' = ax + cy, y' = bx + dy in (a, b, _, c, d, ...)."""
    found = cast("SideData | None", frame.side_data.get("DISPLAYMATRIX"))
    return tuple(np.frombuffer(bytes(found), np.int32).tolist()) if found else (1, 0, 0, 0, 1, 0, 0, 0, 1)


@contextmanager
def _open_video(path: AnyPath, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    _check_file(path)
    try:
        # "file:" keeps a colon in a name from being read as a protocol, the white list a playlist from reaching out.
        name = "file:" + os.fspath(path)
        container = av.open(name, mode="r", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except av.FFmpegError as error:
        raise MediaError(f"not a video: {_reason(error)}") from error
    with container:
        stream = _picture_stream(container)
        _check_size(stream.width, stream.height, max_pixels)
        stream.thread_count = 1  # many worker processes decode side by side
        yield container, stream


def _picture_stream(container: InputContainer) -> VideoStream:
    """The first moving picture: neither cover art nor a stream of thumbnails."""
    if not container.streams.video:
        raise MediaError("no video stream")
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    moving = [stream for stream in container.streams.video if not stream.disposition & still]
    if not moving:
        raise MediaError("no video stream, only cover art")
    decodable = [stream for stream in moving if stream.codec_context is not None]
    if not decodable:
        raise MediaError("no decoder for its codec")
    return decodable[0]


def _first(frames: Iterator[VideoFrame], reader: _Reader) -> VideoFrame:
    first = next(frames, None)
    if first is None:
        raise MediaError(f"no frame can be decoded: {reader.damage or 'the stream is empty'}")
    return first


def _tick(frame: VideoFrame) -> float:
    """Seconds per unit of its time stamps."""
    return float(frame.time_base or 1)


def _rate(stream: VideoStream) -> float:
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or FALLBACK_RATE)


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or type(error).__name__


# --- images


def _probe_image(path: AnyPath, max_pixels: int) -> Probe:
    with _open_image(path, max_pixels) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
        codec = (image.format or "").lower()
        image.draft("RGB", (1, 1))
        image.load()
    return Probe(1, 0.0, *((height, width) if turned else (width, height)), codec, 0.0, 0.0)


@contextmanager
def _open_image(path: AnyPath, max_pixels: int) -> Iterator[Image.Image]:
    _check_file(path)
    try:
        with Image.open(path) as image:
            _check_size(*image.size, max_pixels)
            yield image
    except Image.UnidentifiedImageError as error:
        raise MediaError("not an image that Pillow knows") from error
    except DAMAGED_IMAGE as error:
        raise MediaError(f"damaged image: {error}") from error


# --- folders of frames


def _probe_folder(path: AnyPath, max_pixels: int) -> Probe:
    """As of a video: the first frame is decoded, the rest counted."""
    times, files = _numbered_images(path)
    first = _probe_image(files[0], max_pixels)
    fps = (len(times) - 1) / times[-1] if len(times) > 1 else FOLDER_RATE
    return Probe(len(files), fps, first.width, first.height, first.codec, times[-1] + 1 / FOLDER_RATE, 0.0)


def _decode_folder(path: AnyPath, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> Decoded:
    times, files = _numbered_images(path)
    shown = [max(0, bisect_right(times, time + TOLERANCE) - 1) for time in wanted]
    pictures = {number: _frame_file(files[number], size_hint, max_pixels) for number in set(shown)}
    sizes = {picture.shape[1::-1] for picture in pictures.values()}
    if len(sizes) > 1:
        raise MediaError(f"frames of different sizes: {' and '.join(f'{width}x{height}' for width, height in sorted(sizes))}")
    return Decoded(np.stack([pictures[number] for number in shown]), None)


def _frame_file(file: str, size_hint: int | None, max_pixels: int) -> np.ndarray:
    try:
        picture = decode_image(file, size_hint=size_hint, max_pixels=max_pixels)
    except MediaError as error:
        raise MediaError(f"{os.path.basename(file)}: {error}") from error
    short = min(picture.shape[:2])
    if size_hint and size_hint < short:
        height, width = (round(side * size_hint / short) for side in picture.shape[:2])
        picture = np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
    return picture


def _numbered_images(folder: AnyPath) -> tuple[list[float], list[str]]:
    """When each image of a folder is shown, in seconds after the first, and the files, by the last number in their names: a number
    that is left out leaves its time to the frame before."""
    try:
        names = [name for name in os.listdir(os.fspath(folder)) if name.lower().endswith(FRAME_ENDINGS) and name[0] != "."]
    except OSError as error:
        raise MediaError(error.strerror or "cannot be listed") from error
    files: dict[int, str] = {}
    for name in names:
        if digits := re.findall("[0-9]+", name.rpartition(".")[0]):
            other = files.setdefault(int(digits[-1]), name)
            if other != name:
                raise MediaError(f"two images of the same number: {min(name, other)} and {max(name, other)}")
    if not files:
        raise MediaError("a folder without numbered images (00001.jpg, img_00001.png, ...)")
    numbers = sorted(files)
    return [(number - numbers[0]) / FOLDER_RATE for number in numbers], [os.path.join(folder, files[number]) for number in numbers]


# --- all


def _check_file(path: AnyPath) -> None:
    try:
        found = os.stat(path)
    except OSError as error:
        raise MediaError(error.strerror or "cannot be opened") from error
    except ValueError as error:  # a null byte in the name
        raise MediaError("not a valid file name") from error
    if not stat.S_ISREG(found.st_mode):
        raise MediaError("not a file")
    if found.st_size == 0:
        raise MediaError("empty file")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise MediaError(f"{width}x{height} pixels, more than {max_pixels} allowed")
