"""Video decoding with PyAV: the frames at given times.

There are two methods, and both give the same frames. *Selective* decoding reads the time stamps of the packets first.
It decodes only the packets that the requested frames need: from the key frame before each frame on, without pictures
that no other picture refers to. *Sequential* decoding decodes everything up to the last requested frame. It is used if
the time stamps are not reliable, and if selective decoding finds anything unexpected, such as damage.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from cover.media.source import TOLERANCE, Decoded, MediaError, Probe, Source
from cover.media.stream import Demuxer, Reader, Shape, kinds, open_video, rate, tick

# Seconds between two requested frames from which on a seek is used. Over shorter gaps, reading the packets is faster.
SEEK_BEYOND = 3.0
# Seconds that a seek goes further back. The indexes of files have decoding times, which are before presentation times.
SEEK_MARGIN = 1.0
STAMPED_IN_DECODING_ORDER = {"avi"}  # with B-frames, FFmpeg's presentation times of these containers are wrong
SEEKABLE = {"mov", "matroska"}  # these store a time stamp per frame, so time stamps are the same after a seek
# In these codecs one packet is one displayed picture, and has its time stamp.
ONE_PICTURE_A_PACKET = {"h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"}
# In these codecs no picture refers to a picture that is marked as a non-reference, so a decoder can skip it. (In HEVC
# pictures of a higher sub-layer may refer to it.)
MARKED_REFERENCES = {"h264", "mpeg4", "mpeg2video"}
MOST_REORDERED = 17  # packets; the standards allow a delay of 16 pictures
MOST_HELD = 1 << 28  # bytes of packets in memory


class _NeedsSequential(Exception):
    """Selective decoding cannot decode this file. The caller uses sequential decoding."""


def probe_video(path: Source, max_pixels: int) -> Probe:
    """The properties of a video: two frames are decoded, then displayed packets are counted. Raises MediaError."""
    with open_video(path, max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = first_frame(frames, reader)
        next(frames, None)  # a second frame shows damage right behind the first
        shape = Shape.of(first, stream, None, max_pixels)
        return summary(first, reader.stamps_to_end(), rate(stream), shape, stream.codec_context.name)


def summary(first: VideoFrame, stamps: list[tuple[int | None, int]], pace: float, shape: Shape, codec: str) -> Probe:
    """The properties of a video from the `(pts, duration)` of its packets in ticks.

    `first`: the first frame. `pace`: the frame rate of the container, which is used if time stamps are missing.
    """
    width, height = shape.upright
    # Packets before the first decodable frame are not displayed. Packets without a time stamp count as displayed.
    shown = sorted(
        (pts, length) for pts, length in stamps if pts is not None and first.pts is not None and pts >= first.pts
    )
    count = max(len(shown) + sum(pts is None for pts, _ in stamps), 1)
    if first.pts is None or not shown:
        return Probe(count, pace, width, height, codec, count / pace, 0.0)
    span = (shown[-1][0] - first.pts) * tick(first)  # seconds from the start of the first frame to that of the last
    fps = (count - 1) / span if span > 0 and count > 1 else pace
    last = shown[-1][1] * tick(first) or 1 / fps
    return Probe(count, fps, width, height, codec, span + last, first.pts * tick(first))


def decode_video(path: Source, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> Decoded:
    """The frames shown at the times `wanted` (seconds after the first frame), in this order. Raises MediaError."""
    buffer = _FrameBuffer(wanted, size_hint, max_pixels)
    try:
        _decode_selectively(path, buffer)
        damage = None
    except _NeedsSequential:
        buffer.shape = None  # the buffer is filled again from the start
        damage = _decode_sequentially(path, buffer)
    return buffer.decoded(damage)


class _FrameBuffer:
    """The requested frames, which a decoder puts in as they come.

    `ascending`: the requested times in ascending order. Decoders work in this order; `decoded` restores the caller's.
    """

    def __init__(self, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> None:
        self._order = np.argsort(wanted, kind="stable")
        self.ascending: list[float] = [wanted[place] for place in self._order]
        self.size_hint, self.max_pixels = size_hint, max_pixels
        self.shape: Shape | None = None
        self._pictures = np.empty((0, 0, 0, 3), dtype=np.uint8)  # (M, H, W, 3), M <= number of times
        self._shown = np.zeros(len(wanted), np.int64)  # index into `_pictures` for each time, in the caller's order
        self._count = 0  # pictures so far

    def begin(self, first: VideoFrame, stream: VideoStream) -> None:
        """Allocate the pictures. `first`: the first decoded frame, which sets the size of all frames."""
        self.shape = Shape.of(first, stream, self.size_hint, self.max_pixels)
        self._pictures = np.empty((len(self._order), *self.shape.upright[::-1], 3), dtype=np.uint8)
        self._count = 0

    def put(self, frame: VideoFrame, start: int, stop: int) -> None:
        """Store `frame` for the times number `start` to `stop` - 1 of `ascending`."""
        assert self.shape is not None
        self._pictures[self._count] = self.shape.rgb(frame)
        self._shown[self._order[start:stop]] = self._count
        self._count += 1

    def decoded(self, damage: MediaError | None) -> Decoded:
        """The result: all stored frames, and the damage of the file."""
        return Decoded(self._pictures[: self._count], self._shown, damage)


# --- sequential decoding ---


def _decode_sequentially(path: Source, buffer: _FrameBuffer) -> MediaError | None:
    """Fill the buffer. Returns the damage that ended the frames, None without any. Raises MediaError."""
    with open_video(path, buffer.max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = first_frame(frames, reader)
        buffer.begin(first, stream)
        stamp = attrgetter("dts" if kinds(container) & STAMPED_IN_DECODING_ORDER else "pts")
        timed = timed_frames(chain([first], frames), first, rate(stream), stamp)
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


# --- selective decoding ---


def _decode_selectively(path: Source, buffer: _FrameBuffer) -> None:
    """Fill the buffer from a file without damage. Raises _NeedsSequential for all other files."""
    with open_video(path, buffer.max_pixels) as (container, stream):
        if (
            stream.codec_context.codec.canonical_name not in ONE_PICTURE_A_PACKET
            or kinds(container) & STAMPED_IN_DECODING_ORDER
        ):
            raise _NeedsSequential
        try:
            _SelectiveDecoder(container, stream, buffer).fill()
        except av.FFmpegError as error:
            raise _NeedsSequential from error


@dataclass
class _PacketWindow:
    """Consecutive packets in decoding order."""

    packets: list[Packet[Any]] = field(default_factory=list)
    ended: bool = False  # whether the window reaches the end of the stream

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Per packet: its presentation time in ticks, int64 `(P,)`, and whether it is a key frame, bool `(P,)`.

        Raises _NeedsSequential if a time stamp is missing or the first packet is no key frame.
        """
        stamps = [packet.pts for packet in self.packets]
        if not stamps or None in stamps or not self.packets[0].is_keyframe:
            raise _NeedsSequential
        return np.array(stamps, np.int64), np.array([packet.is_keyframe for packet in self.packets])


class _SelectiveDecoder:
    """Selective decoding of one open file into a buffer."""

    def __init__(self, container: InputContainer, stream: VideoStream, buffer: _FrameBuffer) -> None:
        self.container, self.stream, self.context, self.buffer = container, stream, stream.codec_context, buffer
        # What the decoder skips in packets of frames that nobody requested: pictures without references, or nothing.
        skippable = self.context.codec.canonical_name in MARKED_REFERENCES
        self.skip_unwanted: Literal["NONREF", "DEFAULT"] = "NONREF" if skippable else "DEFAULT"
        self.tick = float(stream.time_base or 0)
        self.may_seek = bool(kinds(container) & SEEKABLE)

    def fill(self) -> None:
        """Put all frames into the buffer, one window of packets at a time. Raises _NeedsSequential."""
        ascending = self.buffer.ascending
        packets = self._demux()
        head = list(islice(packets, MOST_REORDERED))
        origin = self._origin(head)
        done = 0
        for stop in self._splits(ascending):
            times, seeking = ascending[done:stop], bool(done) or (self.may_seek and ascending[0] > SEEK_BEYOND)
            # The last tick that counts for this window.
            last = origin + (times[-1] + TOLERANCE) / self.tick
            if seeking and done == 0:
                self._decode(head, {}, Run(0, 1))  # the first frame sets the size of all frames
            window = self._seek(origin, times[0], last) if seeking else self._read(head, packets, last)
            self._show_window(window, origin, times, done)
            done = stop

    def _demux(self) -> Iterator[Packet[Any]]:
        """The packets from the current position on. Raises _NeedsSequential at a damage."""
        demuxer = Demuxer(self.container, self.stream)
        yield from demuxer
        if demuxer.damage:
            raise _NeedsSequential

    def _origin(self, head: list[Packet[Any]]) -> int:
        """The time stamp of the first frame in ticks. Raises _NeedsSequential if another packet comes first."""
        stamps, _ = _PacketWindow(head).columns()
        if head[0].is_discard or stamps.min() != stamps[0] or not self.tick:
            raise _NeedsSequential
        return int(stamps[0])

    def _splits(self, ascending: list[float]) -> list[int]:
        """The ends of the windows, as indices into `ascending`: the wide gaps, over which a seek pays, and the end."""
        wide = np.flatnonzero(np.diff(ascending) > SEEK_BEYOND) + 1
        return [*wide.tolist(), len(ascending)] if self.may_seek else [len(ascending)]

    def _seek(self, origin: int, earliest: float, last: float) -> _PacketWindow:
        """The packets from a key frame at or before `earliest` seconds to tick `last`, after a seek.

        Raises _NeedsSequential if the seek ends behind `earliest`.
        """
        self.container.seek(origin + int((earliest - SEEK_MARGIN) / self.tick), stream=self.stream, backward=True)
        window = self._read([], self._demux(), last)
        stamps, _ = window.columns()
        if (stamps[0] - origin) * self.tick > earliest + TOLERANCE:
            raise _NeedsSequential
        return window

    def _read(self, head: list[Packet[Any]], packets: Iterator[Packet[Any]], last: float) -> _PacketWindow:
        """`head` and the packets behind it, until all packets of frames up to tick `last` are there.

        No picture is displayed before its decoding time, so reading ends at the first decoding time behind `last`.
        """
        window, size = _PacketWindow(list(head)), 0
        for packet in packets:
            window.packets.append(packet)
            size += packet.size
            if packet.dts is not None and packet.dts > last:
                return window
            if size > MOST_HELD:
                raise _NeedsSequential
        window.ended = True
        return window

    def _show_window(self, window: _PacketWindow, origin: int, times: list[float], offset: int) -> None:
        """Decode the frames shown at `times`, which are number `offset` and following of the buffer's times."""
        stamps, key = window.columns()
        # Displayed packets, as indices in decoding order, sorted by presentation time.
        shown = np.array([place for place, packet in enumerate(window.packets) if not packet.is_discard])
        shown = shown[np.argsort(stamps[shown], kind="stable")]
        ascending = stamps[shown]
        if (np.diff(ascending) <= 0).any():  # a time stamp must identify one frame
            raise _NeedsSequential
        needed = shown[frames_at((ascending - origin) * self.tick, times, TOLERANCE)]  # (len(times),)
        # Time stamp of a needed frame -> the range of times at which it is shown.
        places: dict[int, tuple[int, int]] = {}
        for number, place in enumerate(needed.tolist()):
            start, _ = places.get(int(stamps[place]), (offset + number, 0))
            places[int(stamps[place])] = (start, offset + number + 1)
        runs = runs_for(stamps, key, set(needed.tolist()))
        if self.buffer.shape is None and runs[0].first > 0:
            runs.insert(0, Run(0, 1))  # the first frame sets the size of all frames
        for run in runs:
            self._decode(window.packets, places, run)
        if places:
            raise _NeedsSequential  # the decoder did not return all needed frames

    def _decode(self, packets: list[Packet[Any]], places: dict[int, tuple[int, int]], run: Run) -> None:
        """Decode the packets of a run. Frames with a time stamp in `places` go into the buffer and out of `places`.

        Raises _NeedsSequential if the run does not begin with an intra picture. In streams with intra refresh, key
        frames refer to earlier frames.
        """
        frames: list[tuple[int | None, int]] = []  # time stamp and picture type of every decoded frame
        for place in range(run.first, run.stop):
            packet = packets[place]
            self.context.skip_frame = "DEFAULT" if packet.pts in places or packet.is_keyframe else self.skip_unwanted
            frames += self._take(self.context.decode(packet), places)
        frames += self._take(self.context.decode(None), places)
        self.context.flush_buffers()  # after the end of its input a decoder accepts packets only after this
        if (packets[run.first].pts, PictureType.I) not in frames:
            raise _NeedsSequential

    def _take(
        self, frames: Iterable[VideoFrame], places: dict[int, tuple[int, int]]
    ) -> Iterator[tuple[int | None, int]]:
        """Put needed frames into the buffer. Yields the time stamp and picture type of every frame."""
        for frame in frames:
            if frame.is_corrupt:
                raise _NeedsSequential
            if self.buffer.shape is None:
                self.buffer.begin(frame, self.stream)
            if frame.pts in places:
                self.buffer.put(frame, *places.pop(frame.pts))
            yield frame.pts, frame.pict_type


# --- the packets that given frames need ---
#
# Packets are in decoding order. A *group* is a key frame and the packets behind it, up to the next key frame. A frame
# that is displayed before the key frame of its group (an open group) may refer to the group before.


@dataclass(frozen=True)
class Run:
    """The packets `first` to `stop` - 1, which are decoded one after the other. Then the decoder is flushed."""

    first: int
    stop: int


def frames_at(seconds: npt.NDArray[np.float64], times: Sequence[float], tolerance: float) -> npt.NDArray[np.int64]:
    """int64 `(len(times),)`: the index of the frame that is shown at each time.

    It is the last frame that starts at or before the time (within `tolerance` seconds), or the first frame. `seconds`:
    float64 `(frames,)`, the ascending starts of the frames.
    """
    return np.maximum(np.searchsorted(seconds - tolerance, times, side="right") - 1, 0)


def runs_for(stamps: npt.NDArray[np.int64], key: npt.NDArray[np.bool_], wanted: Iterable[int]) -> list[Run]:
    """The runs of packets that decode the packets `wanted` (indices in decoding order). Runs ascend without overlap.

    `stamps`: int64 `(P,)`, the presentation times of the packets in ticks. `key`: bool `(P,)`, the key frames. The
    first packet is a key frame.
    """
    keys = np.flatnonzero(key)
    runs: list[Run] = []
    for place in sorted(wanted):
        group = int(np.searchsorted(keys, place, side="right")) - 1
        if group > 0 and stamps[place] < stamps[keys[group]]:
            group -= 1  # an open group: the frame may refer to the group before
        first = int(keys[group])
        while runs and first < runs[-1].stop:  # merge overlapping runs, so that no packet is decoded twice
            first = min(first, runs.pop().first)
        runs.append(Run(first, place + 1))
    return runs
