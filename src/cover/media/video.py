"""Video decoding with PyAV: the frames shown at given times.

Two ways to the same frames. The *sparing* one reads the packets' time stamps first and decodes only what the wanted
frames need: from the key frame before each, without the pictures that nothing refers to. The *plain* one decodes
everything up to the last wanted frame. It is taken where stamps cannot be relied on, and wherever the sparing one meets
anything unexpected, damage included: so a frame never depends on the way it was reached.
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

# seconds between wanted frames; below this, reading the packets between costs less than it saves to seek
SEEK_BEYOND = 3.0
SEEK_MARGIN = 1.0  # seconds; indexes hold decoding times, which run ahead of presentation times
STAMPED_IN_DECODING_ORDER = {"avi"}  # what FFmpeg gives as presentation times here is scrambled by B-frames
SEEKABLE = {"mov", "matroska"}  # containers whose time stamps are stored per frame, hence the same after a seek
# One packet of these codecs is one picture to be shown, under the packet's own stamp.
ONE_PICTURE_A_PACKET = {"h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"}
# Here a picture marked as no reference is none. (In HEVC it may be one for pictures of a higher sub-layer.)
MARKED_REFERENCES = {"h264", "mpeg4", "mpeg2video"}
MOST_REORDERED = 17  # packets; the standards let 16 pictures wait
MOST_HELD = 1 << 28  # bytes of packets


class _Unexpected(Exception):
    """The sparing way does not lead to the frames; the plain one has to be taken."""


def probe_video(path: Source, max_pixels: int) -> Probe:
    """Count the packets that carry a frame to be shown; two frames are decoded. Raises MediaError."""
    with open_video(path, max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = first_frame(frames, reader)
        next(frames, None)
        shape = Shape.of(first, stream, None, max_pixels)
        return summary(first, reader.stamps_to_end(), rate(stream), shape, stream.codec_context.name)


def summary(first: VideoFrame, stamps: list[tuple[int | None, int]], pace: float, shape: Shape, codec: str) -> Probe:
    """Frames, rate and duration from all packets' time stamps and durations in ticks."""
    width, height = shape.upright
    known = sorted(
        (pts, length) for pts, length in stamps if pts is not None and first.pts is not None and pts >= first.pts
    )
    count = max(len(known) + sum(pts is None for pts, _ in stamps), 1)
    if first.pts is None or not known:
        return Probe(count, pace, width, height, codec, count / pace, 0.0)
    span = (known[-1][0] - first.pts) * tick(first)
    fps = (count - 1) / span if span > 0 and count > 1 else pace
    last = known[-1][1] * tick(first) or 1 / fps
    return Probe(count, fps, width, height, codec, span + last, first.pts * tick(first))


def decode_video(path: Source, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> Decoded:
    """The frames shown at `wanted` seconds after the first one, in that order. Raises MediaError."""
    album = _Album(wanted, size_hint, max_pixels)
    try:
        _sparing(path, album)
        damage = None
    except _Unexpected:
        album.shape = None
        damage = _plain(path, album)
    return album.decoded(damage)


class _Album:
    """The pictures that are wanted, put into their places as they come. `ascending`: their times in order."""

    def __init__(self, wanted: Sequence[float], size_hint: int | None, max_pixels: int) -> None:
        self._order = np.argsort(wanted, kind="stable")
        self.ascending: list[float] = [wanted[place] for place in self._order]
        self.size_hint, self.max_pixels = size_hint, max_pixels
        self.shape: Shape | None = None
        self._pictures = np.empty((0, 0, 0, 3), dtype=np.uint8)
        self._shown, self._held = np.zeros(len(wanted), np.int64), 0

    def begin(self, first: VideoFrame, stream: VideoStream) -> None:
        """The first frame that comes gives all of them their shape."""
        self.shape = Shape.of(first, stream, self.size_hint, self.max_pixels)
        self._pictures = np.empty((len(self._order), *self.shape.upright[::-1], 3), dtype=np.uint8)
        self._held = 0

    def put(self, frame: VideoFrame, start: int, stop: int) -> None:
        """`frame` answers the ascending times `start` to `stop` - 1."""
        assert self.shape is not None
        self._pictures[self._held] = self.shape.rgb(frame)
        self._shown[self._order[start:stop]] = self._held
        self._held += 1

    def decoded(self, damage: MediaError | None) -> Decoded:
        """What has been put in."""
        return Decoded(self._pictures[: self._held], self._shown, damage)


# --- the plain way


def _plain(path: Source, album: _Album) -> MediaError | None:
    """Fill the album; returns what has damaged the file, None if nothing has."""
    with open_video(path, album.max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = first_frame(frames, reader)
        album.begin(first, stream)
        stamp = attrgetter("dts" if kinds(container) & STAMPED_IN_DECODING_ORDER else "pts")
        timed = timed_frames(chain([first], frames), first, rate(stream), stamp)
        for frame, start, stop in _shown_at(timed, album.ascending):
            album.put(frame, start, stop)
        return reader.damage


def _shown_at(
    timed: Iterable[tuple[float, VideoFrame]], ascending: list[float]
) -> Iterator[tuple[VideoFrame, int, int]]:
    """Which frame answers which run of wanted times: (frame, start, stop). Reads no further than the last answer needs."""
    done, present = 0, None
    for time, frame in timed:
        reached = bisect_left(ascending, time - TOLERANCE)
        if present is not None and reached > done:
            yield present, done, reached
            done = reached
            if done == len(ascending):
                return
        present = frame
    if present is not None:
        yield present, done, len(ascending)


def timed_frames(
    frames: Iterable[VideoFrame], first: VideoFrame, pace: float, stamp: Callable[[VideoFrame], int | None]
) -> Iterator[tuple[float, VideoFrame]]:
    """Seconds since the first frame, never running backwards; a frame without a time stamp is one step after the last."""
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
    """Raises MediaError where there is none."""
    first = next(frames, None)
    if first is None:
        damage = reader.damage or MediaError("the stream is empty")
        raise MediaError(f"no frame can be decoded: {damage}", damage.errno)
    return first


# --- the sparing way


def _sparing(path: Source, album: _Album) -> None:
    """As `_plain`, of a file without damage. Raises _Unexpected."""
    with open_video(path, album.max_pixels) as (container, stream):
        if (
            stream.codec_context.codec.canonical_name not in ONE_PICTURE_A_PACKET
            or kinds(container) & STAMPED_IN_DECODING_ORDER
        ):
            raise _Unexpected
        try:
            _Sparing(container, stream, album).fill()
        except av.FFmpegError as error:
            raise _Unexpected from error


@dataclass
class _PacketWindow:
    """Packets in decoding order without a gap, `origin` ticks being time 0."""

    packets: list[Packet[Any]] = field(default_factory=list)
    ended: bool = False  # with the stream, rather than behind the last wanted time

    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        """Presentation times in ticks, int64, and which are key frames, bool. Raises _Unexpected where a stamp is
        missing.
        """
        stamps = [packet.pts for packet in self.packets]
        if not stamps or None in stamps or not self.packets[0].is_keyframe:
            raise _Unexpected
        return np.array(stamps, np.int64), np.array([packet.is_keyframe for packet in self.packets])


class _Sparing:
    """One file read the sparing way."""

    def __init__(self, container: InputContainer, stream: VideoStream, album: _Album) -> None:
        self.container, self.stream, self.context, self.album = container, stream, stream.codec_context, album
        self.unwanted: Literal["NONREF", "DEFAULT"] = (
            "NONREF" if self.context.codec.canonical_name in MARKED_REFERENCES else "DEFAULT"
        )
        self.tick = float(stream.time_base or 0)
        self.may_seek = bool(kinds(container) & SEEKABLE)

    def fill(self) -> None:
        """Put all frames into the album, window by window."""
        ascending = self.album.ascending
        packets = self._demux()
        head = list(islice(packets, MOST_REORDERED))
        origin = self._origin(head)
        done = 0
        for stop in self._splits(ascending):
            times, seeking = ascending[done:stop], bool(done) or (self.may_seek and ascending[0] > SEEK_BEYOND)
            last = origin + (times[-1] + TOLERANCE) / self.tick
            if seeking and done == 0:
                self._decode(head, {}, Run(0, 1))  # the first frame gives the shape, and must be sound
            window = self._sought(origin, times[0], last) if seeking else self._read(head, packets, last)
            self._show_window(window, origin, times, done)
            done = stop

    def _demux(self) -> Iterator[Packet[Any]]:
        demuxer = Demuxer(self.container, self.stream)
        yield from demuxer
        if demuxer.damage:
            raise _Unexpected

    def _origin(self, head: list[Packet[Any]]) -> int:
        """The first frame's time stamp, where the first packet is that frame."""
        stamps, _ = _PacketWindow(head).columns()
        if head[0].is_discard or stamps.min() != stamps[0] or not self.tick:
            raise _Unexpected
        return int(stamps[0])

    def _splits(self, ascending: list[float]) -> list[int]:
        """Where the wanted times lie so far apart that a seek pays; at last their number."""
        wide = np.flatnonzero(np.diff(ascending) > SEEK_BEYOND) + 1
        return [*wide.tolist(), len(ascending)] if self.may_seek else [len(ascending)]

    def _sought(self, origin: int, earliest: float, last: float) -> _PacketWindow:
        """The packets from a key frame that is shown no later than `earliest` seconds."""
        self.container.seek(origin + int((earliest - SEEK_MARGIN) / self.tick), stream=self.stream, backward=True)
        window = self._read([], self._demux(), last)
        stamps, _ = window.columns()
        if (stamps[0] - origin) * self.tick > earliest + TOLERANCE:
            raise _Unexpected
        return window

    def _read(self, head: list[Packet[Any]], packets: Iterator[Packet[Any]], last: float) -> _PacketWindow:
        """Packets until all that are shown by tick `last` have come: a picture is never shown before it is decoded."""
        window, present = _PacketWindow(list(head)), 0
        for packet in packets:
            window.packets.append(packet)
            present += packet.size
            if packet.dts is not None and packet.dts > last:
                return window
            if present > MOST_HELD:
                raise _Unexpected
        window.ended = True
        return window

    def _show_window(self, window: _PacketWindow, origin: int, times: list[float], offset: int) -> None:
        stamps, key = window.columns()
        candidates = np.array([place for place, packet in enumerate(window.packets) if not packet.is_discard])
        candidates = candidates[np.argsort(stamps[candidates], kind="stable")]
        ascending = stamps[candidates]
        if (np.diff(ascending) <= 0).any():
            raise _Unexpected
        answers = candidates[frames_at((ascending - origin) * self.tick, times, TOLERANCE)]
        places: dict[int, tuple[int, int]] = {}
        for number, place in enumerate(answers.tolist()):
            start, _ = places.get(int(stamps[place]), (offset + number, 0))
            places[int(stamps[place])] = (start, offset + number + 1)
        runs = runs_for(stamps, key, set(answers.tolist()))
        if self.album.shape is None and runs[0].first > 0:
            runs.insert(0, Run(0, 1))
        for run in runs:
            self._decode(window.packets, places, run)
        if places:
            raise _Unexpected  # a frame that should be there did not come

    def _decode(self, packets: list[Packet[Any]], places: dict[int, tuple[int, int]], run: Run) -> None:
        """Feed a run; frames whose stamp is in `places` are taken, and their stamps out of `places`. Raises _Unexpected
        where it does not begin with a whole picture: a stream refreshed bit by bit has key frames that need those
        before.
        """
        begun: list[tuple[int | None, int]] = []
        for place in range(run.first, run.stop):
            packet = packets[place]
            self.context.skip_frame = "DEFAULT" if packet.pts in places or packet.is_keyframe else self.unwanted
            begun += self._take(self.context.decode(packet), places)
        begun += self._take(self.context.decode(None), places)
        self.context.flush_buffers()
        if (packets[run.first].pts, PictureType.I) not in begun:
            raise _Unexpected

    def _take(
        self, frames: Iterable[VideoFrame], places: dict[int, tuple[int, int]]
    ) -> Iterator[tuple[int | None, int]]:
        """Yields every frame's stamp and kind."""
        for frame in frames:
            if frame.is_corrupt:
                raise _Unexpected
            if self.album.shape is None:
                self.album.begin(frame, self.stream)
            if frame.pts in places:
                self.album.put(frame, *places.pop(frame.pts))
            yield frame.pts, frame.pict_type


# --- which packets must be decoded to show given frames
#
# Packets are in decoding order. A *group* is a key frame and what follows it up to the next one. A frame that is shown
# before its group's key frame (an open group) may also refer to the group before.


@dataclass(frozen=True)
class Run:
    """Packets `first` to `stop` - 1 are decoded one after the other; then the decoder is emptied."""

    first: int
    stop: int


def frames_at(seconds: npt.NDArray[np.float64], times: Sequence[float], tolerance: float) -> npt.NDArray[np.int64]:
    """Which frame is shown at each time: the last that starts no later (within `tolerance`), the first before it.

    `seconds`: when each frame starts, ascending.
    """
    return np.maximum(np.searchsorted(seconds - tolerance, times, side="right") - 1, 0)


def runs_for(stamps: npt.NDArray[np.int64], key: npt.NDArray[np.bool_], wanted: Iterable[int]) -> list[Run]:
    """The runs that show the `wanted` packets (places in decoding order), in order and without overlap.

    `stamps`: presentation times, one for each packet, in ticks; `key`: which packets are key frames, the first among
    them.
    """
    keys = np.flatnonzero(key)
    runs: list[Run] = []
    for place in sorted(wanted):
        group = int(np.searchsorted(keys, place, side="right")) - 1
        if group > 0 and stamps[place] < stamps[keys[group]]:
            group -= 1
        first = int(keys[group])
        while runs and first < runs[-1].stop:
            first = min(first, runs.pop().first)
        runs.append(Run(first, place + 1))
    return runs
