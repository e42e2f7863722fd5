"""Video streams with PyAV: packets and frames up to the first damage, and conversion to upright RGB.

Everything runs in one thread.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from cover.media.source import MediaError, Source, check_size, check_source, is_plain, read_source

FALLBACK_RATE = 25.0  # frames per second of a container that states no rate

# Users get one reason per file instead of FFmpeg's lines on the terminal. The log stays on, because a demuxer that
# recovers from damage reports it only there.
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False
av.logging.set_level(av.logging.ERROR)


@contextmanager
def open_video(path: Source, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its video stream. Raises MediaError."""
    check_source(path)
    try:
        # "file:" stops FFmpeg from reading a name with a colon as a protocol. The white list stops playlists from
        # opening URLs.
        file = "file:" + os.fspath(path) if is_plain(path) else io.BytesIO(read_source(path))
        container = av.open(file, mode="r", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except PermissionError as error:
        raise MediaError(f"cannot be read: {error.strerror}", error.errno) from error
    except av.FFmpegError as error:
        raise MediaError(f"not a video: {reason(error)}", error.errno) from error
    with container:
        stream = _picture_stream(container)
        check_size(stream.width, stream.height, max_pixels)
        stream.thread_count = 1  # many worker processes decode at the same time
        yield container, stream


def _picture_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is neither cover art nor thumbnails and has a decoder. Raises MediaError."""
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


class Demuxer:
    """The packets of a stream, in file order, up to the first damage. Empty packets are left out.

    `damage`: the damage that ended the iteration, None without any. The packet before the damage is also left out: it
    may be broken, and a decoder may turn it into a wrong picture without an error.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.damage: MediaError | None = None
        self._container, self._stream = container, stream
        self._names = {*kinds(container), container.format.name}

    def __iter__(self) -> Iterator[Packet[VideoStream]]:
        # Each packet is yielded one step late, when the next packet shows that there is no damage behind it.
        packets, previous, begun = self._container.demux(self._stream), None, False
        while packet := self._next(packets):
            # A piece cut out of a longer stream may begin with incomplete packets. They are no damage.
            begun = begun or (previous is not None and previous.is_keyframe)
            if previous is not None and previous.is_corrupt:
                self.damage = self.damage or MediaError("packets are missing")
            if begun and self.damage:
                return
            self.damage = None
            if previous is not None:
                yield previous
            previous = packet
        if previous is not None:
            yield previous  # the last packet has no packet behind it that could show damage

    def _next(self, packets: Iterator[Packet[VideoStream]]) -> Packet[VideoStream] | None:
        """The next packet. None at the end, or if the file cannot be read further (then `damage` is set)."""
        before = av.logging.get_last_error()
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            self.damage = MediaError(reason(error), error.errno)
            return None
        after = av.logging.get_last_error()
        # An empty packet ends the stream. A log line about the cut end of a file is no damage inside the stream.
        if packet is None or not packet.size:
            return None
        # A demuxer that skips damaged bytes and goes on reports it only in its log.
        if after[0] != before[0] and after[1] and after[1][1] in self._names:
            self.damage = MediaError(after[1][2].strip())
        return packet


class Reader:
    """The frames of a stream in presentation order, up to the first damage."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.stamps: list[tuple[int | None, int]] = []  # (pts, duration) in ticks of every displayed packet so far
        self._damage: MediaError | None = None  # damage that the decoder reports
        self._demuxer = Demuxer(container, stream)
        self._packets: Iterator[Packet[VideoStream]] = iter(())

    @property
    def damage(self) -> MediaError | None:
        """The damage that ended the frames, None without any."""
        return self._damage or self._demuxer.damage

    def __iter__(self) -> Iterator[VideoFrame]:
        """Iterate from the current position of the file: its beginning, or the target of a seek."""
        begun = corrupt = False
        self._damage, self._demuxer = None, Demuxer(self.container, self.stream)
        self._packets = self._read()
        for packet in self._packets:
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self._damage = MediaError(reason(error), error.errno)
                if begun:
                    return
                continue  # a piece of a longer stream may begin with packets that refer to missing ones
            if begun and corrupt:
                self._damage = MediaError("a picture is damaged")
                return
            self._damage = None
            begun = begun or bool(frames)
            corrupt = any(frame.is_corrupt for frame in frames)
            yield from frames
        yield from self._rest()

    def _rest(self) -> Iterator[VideoFrame]:
        """The frames that are still inside the decoder. An empty packet flushes them."""
        end: Packet[Any] = Packet()
        end.stream = self.stream
        if self.stream.time_base:
            end.time_base = self.stream.time_base  # its frames get this time base
        try:
            yield from end.decode()
        except av.FFmpegError as error:
            self._damage = MediaError(reason(error), error.errno)

    def _read(self) -> Iterator[Packet[VideoStream]]:
        for packet in self._demuxer:
            if not packet.is_discard:
                self.stamps.append((packet.pts, packet.duration or 0))
            yield packet

    def stamps_to_end(self) -> list[tuple[int | None, int]]:
        """`stamps` of the whole stream. The remaining packets are read, but not decoded."""
        for _ in self._packets:
            pass
        return self.stamps


@dataclass
class Shape:
    """The conversion of decoded frames to upright RGB of one size.

    `width`, `height`: pixels before rotation. `matrix`: the display matrix (see `_display_matrix`). Later frames of
    another size are scaled to the size of the first.
    """

    width: int
    height: int
    matrix: tuple[int, ...]
    converter: VideoReformatter

    @classmethod
    def of(cls, frame: VideoFrame, stream: VideoStream, size_hint: int | None, max_pixels: int) -> Shape:
        """The shape for a stream, from its first frame. Raises MediaError for more than `max_pixels` pixels.

        `size_hint`: a longer short side is scaled down to this many pixels.
        """
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        width, height = max(1, round(frame.width * aspect)), frame.height
        check_size(width, height, max_pixels)
        if size_hint and size_hint < min(width, height):
            scale = size_hint / min(width, height)
            width, height = round(width * scale), round(height * scale)
        return cls(width, height, _display_matrix(frame), VideoReformatter())

    @property
    def turned(self) -> bool:
        """Whether the display matrix swaps rows and columns (a rotation by 90 or 270 degrees)."""
        return abs(self.matrix[1]) > abs(self.matrix[0])

    @property
    def mirrored(self) -> bool:
        """Whether the display matrix mirrors the picture: its determinant is negative."""
        a, b, c, d = (self.matrix[place] for place in (0, 1, 3, 4))
        return a * d - b * c < 0

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as displayed."""
        return (self.height, self.width) if self.turned else (self.width, self.height)

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """The frame as upright RGB, uint8 `(H, W, 3)`. Raises MediaError if its pixel format cannot be converted."""
        try:
            flat = self.converter.reformat(
                frame, self.width, self.height, "rgb24", interpolation=Interpolation.BILINEAR, threads=1
            )
        except av.FFmpegError as error:
            raise MediaError(f"{frame.format.name} pixels cannot be turned into RGB: {reason(error)}") from error
        pixels = flat.to_ndarray()
        a, b, c, d = self.matrix[0], self.matrix[1], self.matrix[3], self.matrix[4]
        if self.turned:
            pixels, right, down = pixels.swapaxes(0, 1), c, b
        else:
            right, down = a, d
        return pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1]


def _display_matrix(frame: VideoFrame) -> tuple[int, ...]:
    """The 9 numbers of the map from coded to displayed pixels, the identity if the file has none.

    In (a, b, _, c, d, ...) the map is x' = ax + cy and y' = bx + dy.
    """
    result = cast("SideData | None", frame.side_data.get("DISPLAYMATRIX"))
    return tuple(np.frombuffer(bytes(result), np.int32).tolist()) if result else (1, 0, 0, 0, 1, 0, 0, 0, 1)


def kinds(container: InputContainer) -> set[str]:
    """The format names of a container. MP4 and related formats have several."""
    return set(container.format.name.split(","))


def tick(frame: VideoFrame) -> float:
    """Seconds per unit of the time stamps of a frame."""
    return float(frame.time_base or 1)


def rate(stream: VideoStream) -> float:
    """Frames per second from the container, or a guess."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or FALLBACK_RATE)


def reason(error: av.FFmpegError) -> str:
    """The reason of an FFmpeg error in a few words, without the file name."""
    return error.strerror or type(error).__name__
