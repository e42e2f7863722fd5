"""Encoding of samples into small files that are fast to read.

Videos become H.264 in MP4, images become JPEG. Every frame keeps its time. The same source and settings give the same
bytes, because encoding uses one thread and writes no dates or random ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from operator import attrgetter
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from cover.errors import UserError
from cover.media import video
from cover.media.image import decode_image, frame_file, numbered_images, open_image
from cover.media.selective import SEEK_BEYOND, SEEK_MARGIN, SEEKABLE
from cover.media.source import MAX_PIXELS, TOLERANCE, AnyPath, ByteRange, MediaError, Source, is_plain, read_source
from cover.media.stream import Reader, Shape, kinds, opaque, open_video, rate, reason, stamp_of, tick

TIMESCALE = 90_000  # ticks per second; usual frame rates are exact, other times are within 6 microseconds
ENDINGS = {"h264": ".mp4", "jpeg": ".jpg", "png": ".png"}  # `Encoded.codec` -> ending of the file
COPIED = {"jpeg", "png"}  # images in these formats may be copied without change
# One thread and "bitexact" make the bytes reproducible. Look-ahead is off, because with it small frames sometimes
# differ between two runs. "fastdecode" switches off the parts that cost a decoder most time (arithmetic coding,
# deblocking). No picture refers to a B-frame, so a decoder can skip three frames in four. Key frames are only where the
# writer requests them, and no picture refers to a picture on the other side of a key frame. Slower presets gain little
# without look-ahead and arithmetic coding.
X264 = {
    "preset": "veryfast",
    "tune": "fastdecode",
    "threads": "1",
    "bf": "3",
    "g": "100000",
    "sc_threshold": "0",
    "forced-idr": "1",
    "x264-params": "b-adapt=0:b-pyramid=none:mbtree=0:rc-lookahead=0:sync-lookahead=0",
}


@dataclass(frozen=True)
class Encoding:
    """The settings of the encoder.

    `short_side`: pixels; smaller sources are not scaled up. `key_interval`: seconds between key frames. `crf`: quality
    of x264, smaller is better. `quality`: JPEG quality, 1 to 95.
    """

    short_side: int = 256
    key_interval: float = 0.5
    crf: int = 21
    quality: int = 95

    def __post_init__(self) -> None:
        if not 0 < self.key_interval <= 3600:
            raise UserError(f"--key-interval: expected seconds above 0, got {self.key_interval:g}")


@dataclass(frozen=True)
class Encoded:
    """The properties of an encoded file.

    `frames`: number of frames. `last`: time of the last frame in seconds after the first. `width`, `height`: pixels.
    `damage`: the damage at which the source ended, None without any. `copied`: whether the bytes are those of the
    source.
    """

    frames: int
    last: float
    width: int
    height: int
    codec: str
    damage: MediaError | None = None
    copied: bool = False

    @property
    def partial(self) -> str | None:
        """The reason of the damage, None without any."""
        return None if self.damage is None else str(self.damage)


def encode_video(
    source: Source, out: Path, how: Encoding, start: float | None = None, end: float | None = None
) -> Encoded:
    """Write a video or a folder of images as MP4, from `start` to `end` (seconds from its first frame).

    Time 0 of the file is `start`. Rotation, mirroring and pixel aspect are applied to the pixels. There is no sound. If
    the source is damaged, the frames before the damage are written. Raises MediaError if there are fewer than two
    frames, OSError if `out` cannot be written.
    """
    if not isinstance(source, ByteRange) and is_plain(source) and os.path.isdir(source):
        return _write(_folder_clip(source), out, how, start, end)
    with ExitStack() as stack:
        return _write(_video_clip(stack, source, start or 0.0), out, how, start, end)


def encode_image(source: Source, out: Path, how: Encoding) -> Encoded:
    """Write an image as an upright JPEG. A JPEG or PNG that needs no change is copied byte by byte.

    Raises MediaError if the image cannot be read, OSError if `out` cannot be written.
    """
    codec, upright, (width, height) = _image_facts(source)
    if codec in COPIED and upright and min(width, height) <= how.short_side:
        decode_image(source)  # raises MediaError for a damaged image
        out.write_bytes(read_source(source))
        return Encoded(1, 0.0, width, height, codec, copied=True)
    image = Image.fromarray(decode_image(source, size_hint=2 * how.short_side))
    size = _fit(*image.size, how.short_side, even=False)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    with out.open("wb") as file:
        image.save(file, format="JPEG", quality=how.quality)
    return Encoded(1, 0.0, *size, "jpeg")


def _image_facts(source: Source) -> tuple[str, bool, tuple[int, int]]:
    """The format, whether the stored pixels are upright, and the stored width and height."""
    with open_image(source, MAX_PIXELS) as image:
        return (image.format or "").lower(), image.getexif().get(0x0112, 1) == 1, image.size


def _fit(width: int, height: int, short_side: int, even: bool) -> tuple[int, int]:
    """Width and height scaled down to `short_side`. `even`: round to even numbers, as 4:2:0 pixels require."""
    scale = min(1.0, short_side / min(width, height))
    if even:
        return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))
    return max(1, round(width * scale)), max(1, round(height * scale))


# --- reading the source ---


@dataclass
class _SourceClip:
    """The frames of a source.

    `timed`: `(seconds, frame)` in order. `shape`: the display size and rotation. `damage`: returns the damage so far.
    """

    timed: Iterable[tuple[float, VideoFrame]]
    shape: Shape
    damage: Callable[[], MediaError | None]


def _video_clip(stack: ExitStack, source: Source, start: float) -> _SourceClip:
    """The frames of a file from a key frame before `start` on, or from the first frame if a seek is not possible."""
    if start > SEEK_BEYOND and (clip := _opened(stack, source, start)):
        return clip
    clip = _opened(stack, source, None)
    assert clip is not None
    return clip


def _opened(stack: ExitStack, source: Source, start: float | None) -> _SourceClip | None:
    """The frames from a key frame before `start` on, None if there is no such key frame. `start` None: all frames."""
    container, stream = stack.enter_context(open_video(source, MAX_PIXELS))
    reader = Reader(container, stream)
    frames = iter(reader)
    first = video.first_frame(frames, reader)
    shape, pace = Shape.of(first, stream, None, MAX_PIXELS), rate(stream)
    if start is None:
        timed = video.timed_frames(chain([first], frames), first, pace, stamp_of(container))
        return _SourceClip(timed, shape, lambda: reader.damage)
    later = Reader(container, stream)  # reads from the key frame on; `reader` has read the first frame
    key = _key_before(later, first, start) if kinds(container) & SEEKABLE else None
    if key is None:
        return None
    return _SourceClip(video.timed_frames(chain(*key), first, pace, attrgetter("pts")), shape, lambda: later.damage)


def _key_before(
    reader: Reader, first: VideoFrame, start: float
) -> tuple[list[VideoFrame], Iterator[VideoFrame]] | None:
    """A key frame before `start` seconds and the frames behind it. None if the seek does not lead to one."""
    if first.pts is None:
        return None
    try:
        reader.container.seek(first.pts + int((start - SEEK_MARGIN) / tick(first)), stream=reader.stream, backward=True)
    except av.FFmpegError:
        return None
    frames = iter(reader)
    # Pictures before the first key frame may refer to pictures that were not read.
    key = next((frame for frame in frames if frame.key_frame), None)
    if key is None or key.pts is None or (key.pts - first.pts) * tick(first) > start + TOLERANCE:
        return None
    return [key], frames


def _folder_clip(folder: AnyPath) -> _SourceClip:
    times, files = numbered_images(folder)
    first = frame_file(files[0], None, MAX_PIXELS)
    pictures = _Pictures(files)
    shape = Shape(first.shape[1], first.shape[0], (1, 0, 0, 0, 1, 0, 0, 0, 1), VideoReformatter())
    return _SourceClip(zip(times, pictures), shape, lambda: pictures.damage)


class _Pictures:
    """The images of a folder in order, up to the first damaged one. `cover index --deep` counts the same images.

    `damage`: the damage of that image, None without any.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.damage: MediaError | None = None
        self._files = files

    def __iter__(self) -> Iterator[VideoFrame]:
        for file in self._files:
            try:
                picture = frame_file(file, None, MAX_PIXELS)
            except MediaError as error:
                self.damage = error
                return
            yield VideoFrame.from_ndarray(picture, format="rgb24")


def _cut(
    timed: Iterable[tuple[float, VideoFrame]], start: float, end: float | None
) -> Iterator[tuple[float, VideoFrame]]:
    """The frames from the one that is shown at `start` to the last one that begins before `end`. `start` becomes 0."""
    shown = None  # the last frame that begins at or before `start`
    for time, frame in timed:
        if time <= start + TOLERANCE:
            shown = frame
            continue
        if shown is not None:
            yield 0.0, shown
            shown = None
        if end is not None and time > end - TOLERANCE:
            return
        yield time - start, frame
    if shown is not None:
        yield 0.0, shown


# --- writing the file ---


def _write(clip: _SourceClip, out: Path, how: Encoding, start: float | None, end: float | None) -> Encoded:
    timed = clip.timed if start is None and end is None else _cut(clip.timed, start or 0.0, end)
    options = {"movflags": "+faststart", "fflags": "+bitexact"}
    with _output_errors(out), av.open(f"file:{out}", "w", format="mp4", options=options) as container:
        writer = _Writer(container, clip, how)
        for time, frame in timed:
            writer.write(time, frame)
        writer.finish()
    damage = clip.damage()
    if writer.frames < 2:
        damage = damage or MediaError("the stream ends there")
        raise MediaError(f"only {writer.frames} frame can be decoded: {damage}", damage.errno)
    return Encoded(writer.frames, writer.last / TIMESCALE, *writer.size, "h264", damage)


@contextmanager
def _output_errors(out: Path) -> Iterator[None]:
    """Raise OSError for an error of FFmpeg in writing. Otherwise `open_video` would take it for damage of the source.

    Errors in reading do not come here: a `Reader` ends its frames there.
    """
    try:
        yield
    except av.FFmpegError as error:
        raise OSError(error.errno, reason(error), str(out)) from error


class _Writer:
    """Writes frames, scaled and upright, into an H.264 stream with a key frame at every `key_interval` seconds."""

    def __init__(self, container: OutputContainer, clip: _SourceClip, how: Encoding) -> None:
        self.container, self.shape, self.how = container, clip.shape, how
        self.frames, self.last, self.next_key = 0, -1, 0
        self.flat = _fit(clip.shape.width, clip.shape.height, how.short_side, even=True)
        self.size = self.flat[::-1] if clip.shape.turned else self.flat
        self.converter = VideoReformatter()
        self.stream: VideoStream | None = None

    def write(self, time: float, frame: VideoFrame) -> None:
        """Add a frame that is shown from `time` on, in seconds."""
        stream = self.stream = self.stream or self._begin(frame)
        picture = self._upright(self._scaled(frame))
        self.last = picture.pts = max(self.last + 1, round(time * TIMESCALE))  # no two frames on one tick
        picture.time_base = Fraction(1, TIMESCALE)
        if key := self.last >= self.next_key:
            step = max(1, round(self.how.key_interval * TIMESCALE))
            self.next_key = (self.last // step + 1) * step
        picture.pict_type = PictureType.I if key else PictureType.NONE
        self.frames += 1
        self.container.mux(stream.encode(picture))

    def finish(self) -> None:
        """Write the frames that are still in the encoder."""
        if self.stream:
            self.container.mux(self.stream.encode(None))

    def _begin(self, frame: VideoFrame) -> VideoStream:
        stream = self.container.add_stream("libx264", rate=30, options={**X264, "crf": str(self.how.crf)})
        context = stream.codec_context
        stream.width, stream.height = self.size
        stream.pix_fmt = "yuv420p"
        stream.time_base = context.time_base = Fraction(1, TIMESCALE)
        context.flags |= Flags.bitexact
        context.color_range = ColorRange.MPEG
        # 0 is RGB, which swscale converts to BT.601 (5) by default
        context.colorspace = 5 if frame.colorspace == 0 else frame.colorspace
        return stream

    def _scaled(self, frame: VideoFrame) -> VideoFrame:
        """The frame scaled, as a new frame. The source frame stays unchanged: its time is still read."""
        how = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
        try:
            flat = self.converter.reformat(
                opaque(frame), *self.flat, "yuv420p", interpolation=how, dst_color_range=ColorRange.MPEG, threads=1
            )
        except av.FFmpegError as error:
            raise MediaError(f"{frame.format.name} pixels cannot be turned into YUV: {reason(error)}") from error
        return VideoFrame.from_ndarray(flat.to_ndarray(), format="yuv420p") if flat is frame else flat

    def _upright(self, frame: VideoFrame) -> VideoFrame:
        """The frame rotated and mirrored by the display matrix, one plane after the other."""
        a, b, c, d = (self.shape.matrix[place] for place in (0, 1, 3, 4))
        right, down = (c, b) if self.shape.turned else (a, d)
        if not self.shape.turned and right >= 0 and down >= 0:
            return frame
        width, height = self.flat
        planes = []
        # 4:2:0: Y has all pixels; U and V have half the width and half the height, a quarter of the pixels each.
        for plane in np.split(frame.to_ndarray().ravel(), [width * height, width * height * 5 // 4]):
            scale = 1 if plane.size == width * height else 2
            pixels = plane.reshape(height // scale, width // scale)
            pixels = pixels.swapaxes(0, 1) if self.shape.turned else pixels
            planes.append(pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1].ravel())
        data = np.concatenate(planes).reshape(self.size[1] * 3 // 2, self.size[0])
        return VideoFrame.from_ndarray(data, format="yuv420p")
