"""Selective decoding of videos: only the packets that the requested frames need.

The time stamps of the packets are read first. Decoding begins at the key frame before each requested frame, and leaves
out pictures that no other picture refers to. It needs containers and codecs with reliable time stamps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, dropwhile, islice
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from cover.media.mjpeg import has_own_tables
from cover.media.source import TOLERANCE, Decoded, MediaError, Source
from cover.media.stream import (
    DAMAGED_PICTURE,
    STAMPED_IN_DECODING_ORDER,
    Demuxer,
    Shape,
    kinds,
    open_video,
    reason,
)

# Seconds between two requested frames from which on a seek is used. Over shorter gaps, reading the packets is faster.
SEEK_BEYOND = 3.0
# Seconds that a seek goes further back. The indexes of files have decoding times, which are before presentation times.
SEEK_MARGIN = 1.0
SEEKABLE = {"mov", "matroska"}  # these store a time stamp per frame, so time stamps are the same after a seek
# In these codecs one packet is one displayed picture, and has its time stamp.
ONE_PICTURE_A_PACKET = {"h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"}
# In these codecs no picture refers to a picture that is marked as a non-reference, so a decoder can skip it. (In HEVC
# pictures of a higher sub-layer may refer to it.)
MARKED_REFERENCES = {"h264", "mpeg4", "mpeg2video"}
MOST_REORDERED = 17  # packets; the standards allow a delay of 16 pictures
MOST_HELD = 1 << 28  # bytes of packets in memory


class NeedsSequential(Exception):
    """Selective decoding cannot give the frames at these times."""


class Unsuited(NeedsSequential):
    """Selective decoding cannot give any frame of this file."""


class Damaged(Exception):
    """A damage that selective decoding found. `place`: the index of the damaged packet in its window, 0 if unknown."""

    def __init__(self, damage: MediaError, place: int = 0) -> None:
        super().__init__(str(damage))
        self.damage, self.place = damage, place


class Noisy(Exception):
    """The decoder logged an error, but reported none. Skipped pictures may hide a damage from other pictures."""


class FrameBuffer:
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

    def clear(self) -> None:
        """Forget all frames, but not their size."""
        self._count = 0

    def decoded(self, damage: MediaError | None) -> Decoded:
        """The result: all stored frames, and the damage of the file."""
        return Decoded(self._pictures[: self._count], self._shown, damage)


# --- decoding ---


def decode_selectively(path: Source, buffer: FrameBuffer) -> None:
    """Fill the buffer. Raises Unsuited, NeedsSequential, Damaged or Noisy."""
    with open_video(path, buffer.max_pixels) as (container, stream):
        if (
            stream.codec_context.codec.canonical_name not in ONE_PICTURE_A_PACKET
            or kinds(container) & STAMPED_IN_DECODING_ORDER
        ):
            raise Unsuited
        before = av.logging.get_last_error()[0]
        _SelectiveDecoder(container, stream, buffer).fill()
        count, entry = av.logging.get_last_error()
        if len(buffer.ascending) > 1 and count != before and entry and entry[1] == stream.codec_context.codec.name:
            raise Noisy


def decode_before_damage(path: Source, buffer: FrameBuffer) -> None:
    """Fill the buffer, which has one time, with the last sound frame at or before it. Raises NeedsSequential."""
    with open_video(path, buffer.max_pixels) as (container, stream):
        try:
            _SelectiveDecoder(container, stream, buffer).fill_before_damage()
        except Damaged as error:
            raise NeedsSequential from error


@dataclass
class _PacketWindow:
    """Consecutive packets in decoding order. `damage`: the damage before which the window ends, None without any."""

    packets: list[Packet[Any]] = field(default_factory=list)
    damage: MediaError | None = None

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Per packet: its presentation time in ticks, int64 `(P,)`, and whether it is a key frame, bool `(P,)`.

        Raises NeedsSequential if a time stamp is missing or the first packet is no key frame.
        """
        stamps = [packet.pts for packet in self.packets]
        if not stamps or None in stamps or not self.packets[0].is_keyframe:
            raise NeedsSequential
        return np.array(stamps, np.int64), np.array([packet.is_keyframe for packet in self.packets])


class _Packets:
    """The packets of a stream from the current position on, up to the first damage, which is `damage` then."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._demuxer = Demuxer(container, stream)
        self._packets = iter(self._demuxer)

    def __iter__(self) -> Iterator[Packet[Any]]:
        return self._packets

    @property
    def damage(self) -> MediaError | None:
        return self._demuxer.damage


class _SelectiveDecoder:
    """Selective decoding of one open file into a buffer."""

    def __init__(self, container: InputContainer, stream: VideoStream, buffer: FrameBuffer) -> None:
        self.container, self.stream, self.context, self.buffer = container, stream, stream.codec_context, buffer
        # What the decoder skips in packets of frames that nobody requested: pictures without references, or nothing.
        skippable = self.context.codec.canonical_name in MARKED_REFERENCES
        self.skip_unwanted: Literal["NONREF", "DEFAULT"] = "NONREF" if skippable else "DEFAULT"
        self.is_jpeg = self.context.codec.canonical_name == "mjpeg"
        self.tick = float(stream.time_base or 0)
        self.may_seek = bool(kinds(container) & SEEKABLE)

    def fill(self) -> None:
        """Put all frames into the buffer, one window of packets at a time. Raises NeedsSequential or Damaged."""
        ascending = self.buffer.ascending
        packets = _Packets(self.container, self.stream)
        head = list(islice(packets, MOST_REORDERED))
        origin = self._origin(head)
        done = 0
        for stop in self._splits(ascending):
            times = ascending[done:stop]
            if done == 0 and self._is_far(times[0]):
                self._decode_first(head)
            windows = self._windows(head, None if done else packets, origin, times[0], times[-1])
            # A seek may lead behind the frame, for example if its key frame is damaged.
            window = next((each for each in windows if self._reaches(each, origin, times[0])), None)
            if window is None:
                raise NeedsSequential
            if window.damage:
                raise Damaged(window.damage)
            self._show_window(window, origin, times, done)
            done = stop

    def fill_before_damage(self) -> None:
        """Put the last sound frame at or before the buffer's only time into the buffer, where `fill` raises Damaged.

        Raises NeedsSequential if there is none.
        """
        (time,) = self.buffer.ascending
        packets = _Packets(self.container, self.stream)
        head = list(islice(packets, MOST_REORDERED))
        origin = self._origin(head)
        self._decode_first(head)
        # A window may have no sound frame before the time. Then one from further back has.
        windows = self._windows(head, packets, origin, time, time)
        if not any(self._show_last(window, self._last(origin, time)) for window in windows):
            raise NeedsSequential

    def _windows(
        self, head: list[Packet[Any]], packets: _Packets | None, origin: int, earliest: float, latest: float
    ) -> Iterator[_PacketWindow]:
        """Windows of the packets that the frames from `earliest` to `latest` need, from further and further back.

        `packets` has the packets behind `head`. It is None if others have been read since.
        """
        reach, last = SEEK_MARGIN, self._last(origin, latest)
        while self._is_far(earliest + SEEK_MARGIN - reach):
            yield self._seek(origin + int((earliest - reach) / self.tick), last)
            reach, packets = 4 * reach, None
        yield self._read(head, packets, last) if packets else self._seek(origin, last)

    def _reaches(self, window: _PacketWindow, origin: int, earliest: float) -> bool:
        return bool(window.packets) and (window.columns()[0][0] - origin) * self.tick <= earliest + TOLERANCE

    def _is_far(self, time: float) -> bool:
        """Whether the frame at a time is found by a seek, not by reading from the start."""
        return self.may_seek and time > SEEK_BEYOND

    def _last(self, origin: int, time: float) -> float:
        """The last tick that counts for the frame at a time."""
        return origin + (time + TOLERANCE) / self.tick

    def _decode_first(self, head: list[Packet[Any]]) -> None:
        """Decode the first frame, which sets the size of all frames. Raises Unsuited if it is damaged."""
        try:
            self._decode(head, {}, Run(0, 1))
        except (NeedsSequential, Damaged) as error:
            raise Unsuited from error

    def _origin(self, head: list[Packet[Any]]) -> int:
        """The time stamp of the first frame in ticks. Raises Unsuited if another packet comes first."""
        try:
            stamps, _ = _PacketWindow(head).columns()
        except NeedsSequential as error:
            raise Unsuited from error
        if head[0].is_discard or stamps.min() != stamps[0] or not self.tick:
            raise Unsuited
        return int(stamps[0])

    def _splits(self, ascending: list[float]) -> list[int]:
        """The ends of the windows, as indices into `ascending`: the wide gaps, over which a seek pays, and the end."""
        wide = np.flatnonzero(np.diff(ascending) > SEEK_BEYOND) + 1
        return [*wide.tolist(), len(ascending)] if self.may_seek else [len(ascending)]

    def _seek(self, target: int, last: float) -> _PacketWindow:
        """The packets from a key frame, mostly at or before tick `target`, to tick `last`. Raises Damaged."""
        try:
            self.container.seek(target, stream=self.stream, backward=True)
        except av.FFmpegError as error:
            raise Damaged(MediaError(reason(error), error.errno)) from error
        window = self._read([], _Packets(self.container, self.stream), last)
        # The index of a damaged file may lead to a packet that no longer is a key frame.
        window.packets = list(dropwhile(lambda packet: not packet.is_keyframe, window.packets))
        return window

    def _read(self, head: list[Packet[Any]], packets: _Packets, last: float) -> _PacketWindow:
        """`head` and the packets behind it, until all packets of frames up to tick `last` are there.

        No picture is displayed before its decoding time, so reading ends at the first decoding time behind `last`.
        """
        window, size = _PacketWindow(), 0
        for packet in chain(head, packets):
            window.packets.append(packet)
            size += packet.size
            if packet.dts is not None and packet.dts > last:
                return window
            if size > MOST_HELD:
                raise NeedsSequential
        window.damage = packets.damage
        return window

    def _show_window(self, window: _PacketWindow, origin: int, times: list[float], offset: int) -> None:
        """Decode the frames shown at `times`, which are number `offset` and following of the buffer's times."""
        stamps, key = window.columns()
        shown = _displayed(window, stamps)
        ascending = stamps[shown]
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
            raise NeedsSequential  # the decoder did not return all needed frames

    def _show_last(self, window: _PacketWindow, last: float) -> bool:
        """Put the last sound frame up to tick `last` into the buffer. Returns whether the window has one."""
        if not window.packets:
            return False
        stamps, key = window.columns()
        stop = len(window.packets)  # all packets from here to the next key frame need a damaged one
        for place in reversed(_displayed(window, stamps).tolist()):
            if stamps[place] > last or place >= stop:
                continue
            places = {int(stamps[place]): (0, len(self.buffer.ascending))}
            self.buffer.clear()
            try:
                self._decode(window.packets, places, runs_for(stamps, key, [place])[0])
            except Damaged as damaged:
                stop = min(stop, damaged.place) if damaged.place < place else stop
                continue
            if not places:
                return True
        return False

    def _decode(self, packets: list[Packet[Any]], places: dict[int, tuple[int, int]], run: Run) -> None:
        """Decode the packets of a run. Frames with a time stamp in `places` go into the buffer and out of `places`.

        Raises Damaged, and NeedsSequential if the run does not begin with a picture that can be decoded alone. In
        streams with intra refresh, key frames refer to earlier frames.
        """
        frames: list[tuple[int | None, int]] = []  # time stamp and picture type of every decoded frame
        try:
            for place in range(run.first, run.stop):
                frames += self._decode_packet(packets, place, places, run)
            frames += self._decode_packet(packets, run.stop, places, run)
        finally:
            self.context.flush_buffers()  # after the end of its input a decoder accepts packets only after this
        first = packets[run.first]
        if (first.pts, PictureType.I) not in frames or (self.is_jpeg and not has_own_tables(bytes(first))):
            raise NeedsSequential

    def _decode_packet(
        self, packets: list[Packet[Any]], place: int, places: dict[int, tuple[int, int]], run: Run
    ) -> list[tuple[int | None, int]]:
        """Decode packet number `place`; at the end of the run, get the frames that the decoder still holds.

        Returns the time stamp and picture type of every frame. Raises Damaged.
        """
        packet = packets[place] if place < run.stop else None
        if packet is not None:
            self.context.skip_frame = "DEFAULT" if packet.pts in places or packet.is_keyframe else self.skip_unwanted
        try:
            frames = self.context.decode(packet)
        except av.FFmpegError as error:
            raise Damaged(MediaError(reason(error), error.errno), min(place, run.stop - 1)) from error
        for frame in frames:
            if frame.is_corrupt:
                where = (number for number in range(run.first, run.stop) if packets[number].pts == frame.pts)
                raise Damaged(MediaError(DAMAGED_PICTURE), next(where, run.first))
            if self.buffer.shape is None:
                self.buffer.begin(frame, self.stream)
            if frame.pts in places:
                self.buffer.put(frame, *places.pop(frame.pts))
        return [(frame.pts, frame.pict_type) for frame in frames]


def _displayed(window: _PacketWindow, stamps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The displayed packets, as indices in decoding order, sorted by presentation time.

    Raises NeedsSequential if two have the same time stamp.
    """
    shown = np.array([place for place, packet in enumerate(window.packets) if not packet.is_discard], np.int64)
    shown = shown[np.argsort(stamps[shown], kind="stable")]
    if (np.diff(stamps[shown]) <= 0).any():
        raise NeedsSequential
    return shown


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
