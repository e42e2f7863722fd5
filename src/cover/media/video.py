"""Video decoding with PyAV: the frames at given times.

There are two methods. *Selective* decoding reads the time stamps of the packets first. It decodes only the packets that
the requested frames need: from the key frame before each frame on, without pictures that no other picture refers to.
*Sequential* decoding decodes everything up to the last requested frame. It is used if the time stamps are not reliable
and in containers without them. In a file without damage both give the same frames.

In a damaged file each time is decoded as if it were the only one, so a frame and its damage never depend on the other
requested times. A time whose frame cannot be decoded gets the last sound frame before it. In a file that needs
sequential decoding, the frames end at the first damage.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
from av.video.frame import VideoFrame

from cover.media.selective import (
    Damaged,
    FrameBuffer,
    NeedsSequential,
    Noisy,
    Unsuited,
    decode_before_damage,
    decode_selectively,
    frames_at,
    runs_for,
)
from cover.media.source import TOLERANCE, Decoded, MediaError, Probe, Source
from cover.media.stream import Reader, Shape, open_video, rate, stamp_of, tick

__all__ = ["decode_video", "first_frame", "frames_at", "probe_video", "runs_for", "summary", "timed_frames"]


def probe_video(path: Source, max_pixels: int) -> Probe:
    """The properties of a video: two frames are decoded, then displayed packets are counted. Raises MediaError."""
    with open_video(path, max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = first_frame(frames, reader)
        next(frames, None)  # a second frame shows damage right behind the first
        shape = Shape.of(first, stream, None, max_pixels)
        return summary(first, reader.stamps_to_end(), reader, shape)


def summary(first: VideoFrame, stamps: list[tuple[int | None, int]], reader: Reader, shape: Shape) -> Probe:
    """The properties of a video from the `(time stamp, duration)` of its displayed packets or frames in ticks.

    `first`: the first frame. If time stamps are missing, the frame rate of the container is used.
    """
    width, height = shape.upright
    pace, codec, origin = rate(reader.stream), reader.stream.codec_context.name, reader.stamp(first)
    start = (first.pts or 0) * tick(first)
    timed = sorted((stamp, length) for stamp, length in stamps if stamp is not None)
    if origin is None or not timed or timed[-1][0] < origin:
        return Probe(max(len(stamps), 1), pace, width, height, codec, max(len(stamps), 1) / pace, start)
    shown = [each for each in timed if each[0] >= origin]
    span = (shown[-1][0] - origin) * tick(first)  # seconds from the start of the first frame to that of the last
    if reader.delayed:
        # The first frame has the stamp of the packet that brought it out of the decoder. At the end, the frames that
        # were held back until then follow.
        count = max(len(stamps), 1)
        step = (shown[-1][0] - shown[-2][0]) * tick(first) if len(shown) > 1 else 1 / pace
        span += (count - len(shown)) * step
    else:
        # Packets before the first decodable frame are not displayed. Packets without a time stamp count as displayed.
        count = len(shown) + len(stamps) - len(timed)
    fps = (count - 1) / span if span > 0 and count > 1 else pace
    last = shown[-1][1] * tick(first) or 1 / fps
    return Probe(count, fps, width, height, codec, span + last, start)


def decode_video(path: Source, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> Decoded:
    """The frames shown at the times `wanted` (seconds after the first frame), in this order. Raises MediaError."""
    buffer = FrameBuffer(wanted, size_hint, max_pixels)
    try:
        decode_selectively(path, buffer)
        return buffer.decoded(None)
    except Unsuited:
        buffer.shape = None  # the buffer is filled again from the start
        return buffer.decoded(_decode_sequentially(path, buffer))
    except (NeedsSequential, Damaged, Noisy):
        return _decode_apart(path, wanted, size_hint, max_pixels)


def _decode_apart(path: Source, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> Decoded:
    """The frames shown at the times `wanted`, each decoded without regard to the other times."""
    apart: dict[float, Decoded] = {}
    sequential: list[float] = []
    for time in sorted(set(wanted)):
        try:
            apart[time] = _decode_alone(path, time, size_hint, max_pixels)
        except NeedsSequential:
            sequential.append(time)
    damages = [decoded.damage for _, decoded in sorted(apart.items()) if decoded.damage]
    if sequential:
        buffer = FrameBuffer(sequential, size_hint, max_pixels)
        damage = _decode_sequentially(path, buffer)
        damages += [damage] if damage else []
        frames = buffer.decoded(None).frames
        apart |= {time: Decoded(frame[None], np.zeros(1, np.int64), None) for time, frame in zip(sequential, frames)}
    place = {time: number for number, time in enumerate(apart)}
    pictures = np.concatenate([decoded.pictures for decoded in apart.values()])
    return Decoded(pictures, np.array([place[time] for time in wanted], np.int64), damages[0] if damages else None)


def _decode_alone(path: Source, time: float, size_hint: int | None, max_pixels: int) -> Decoded:
    """The frame shown at one time, or the last sound frame before it with the damage. Raises NeedsSequential."""
    buffer = FrameBuffer([time], size_hint, max_pixels)
    try:
        decode_selectively(path, buffer)
        return buffer.decoded(None)
    except Damaged as damaged:
        buffer.shape = None
        decode_before_damage(path, buffer)
        return buffer.decoded(damaged.damage)


# --- sequential decoding ---


def _decode_sequentially(path: Source, buffer: FrameBuffer) -> MediaError | None:
    """Fill the buffer. Returns the damage that ended the frames, None without any. Raises MediaError."""
    with open_video(path, buffer.max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = first_frame(frames, reader)
        buffer.begin(first, stream)
        timed = timed_frames(chain([first], frames), first, rate(stream), stamp_of(container))
        for frame, start, stop in _shown_at(timed, buffer.ascending):
            buffer.put(frame, start, stop)
        return reader.damage


def _shown_at(
    timed: Iterable[tuple[float, VideoFrame]], ascending: list[float]
) -> Iterator[tuple[VideoFrame, int, int]]:
    """`(frame, start, stop)`: each frame with the range of ascending times at which it is shown.

    A frame is shown until the next one starts, so each frame is yielded one frame late. Reading ends as soon as all
    times have a frame.
    """
    done, previous = 0, None  # times before number `done` have their frame
    for time, frame in timed:
        before_this = bisect_left(ascending, time - TOLERANCE)
        if previous is not None and before_this > done:
            yield previous, done, before_this
            done = before_this
            if done == len(ascending):
                return
        previous = frame
    if previous is not None:
        yield previous, done, len(ascending)  # times past the end get the last frame


def timed_frames(
    frames: Iterable[VideoFrame], first: VideoFrame, pace: float, stamp: Callable[[VideoFrame], int | None]
) -> Iterator[tuple[float, VideoFrame]]:
    """`(seconds since the first frame, frame)` for each frame. The times never decrease.

    A frame without a time stamp comes one step after the frame before it. `pace`: frames per second for the first such
    step. `stamp`: the time stamp of a frame in ticks.
    """
    origin = stamp(first)
    time, step = 0.0, 1 / pace
    for number, frame in enumerate(frames):
        ticks = stamp(frame)
        before = time
        if origin is not None and ticks is not None:
            time = max(time, (ticks - origin) * tick(first))
        elif number:
            time += step
        step = time - before or step
        yield time, frame


def first_frame(frames: Iterator[VideoFrame], reader: Reader) -> VideoFrame:
    """The first frame. Raises MediaError if no frame can be decoded."""
    first = next(frames, None)
    if first is None:
        damage = reader.damage or MediaError("the stream is empty")
        raise MediaError(f"no frame can be decoded: {damage}", damage.errno)
    return first
