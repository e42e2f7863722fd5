"""Video streams opened with PyAV: packets and frames up to the first damage, and frames turned into upright RGB. One
thread.
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

FALLBACK_RATE = 25.0

# What the library says about odd files reaches the user as one reason per file, never as lines on the terminal. It is
# listened to, since damage that a demuxer gets over is in its log alone.
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False
av.logging.set_level(av.logging.ERROR)


@contextmanager
def open_video(path: Source, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A file and its stream of moving pictures. Raises MediaError."""
    check_source(path)
    try:
        # "file:" keeps a colon in a name from being read as a protocol, the white list a playlist from reaching out.
        file = "file:" + os.fspath(path) if is_plain(path) else io.BytesIO(read_source(path))
        container = av.open(file, mode="r", metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except PermissionError as error:
        raise MediaError(f"cannot be read: {error.strerror}", error.errno) from error
    except av.FFmpegError as error:
        raise MediaError(f"not a video: {reason(error)}", error.errno) from error
    with container:
        stream = _picture_stream(container)
        check_size(stream.width, stream.height, max_pixels)
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


class Demuxer:
    """A stream's packets that hold anything, in the file's order, up to the first damage, which it remembers.

    The packet in front of the damage is left out too: it may be broken itself, and decode to rubbish without a word.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.damage: MediaError | None = None
        self._container, self._stream = container, stream
        self._names = {*kinds(container), container.format.name}

    def __iter__(self) -> Iterator[Packet[VideoStream]]:
        packets, present, begun = self._container.demux(self._stream), None, False
        while packet := self._next(packets):
            # a piece of a longer stream may begin with incomplete packets
            begun = begun or (present is not None and present.is_keyframe)
            if present is not None and present.is_corrupt:
                self.damage = self.damage or MediaError("packets are missing")
            if begun and self.damage:
                return
            self.damage = None
            if present is not None:
                yield present
            present = packet
        if present is not None:
            yield present  # cut off or not, it is the last

    def _next(self, packets: Iterator[Packet[VideoStream]]) -> Packet[VideoStream] | None:
        """None at the end, or where the file cannot be read further."""
        before = av.logging.get_last_error()
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            self.damage = MediaError(reason(error), error.errno)
            return None
        after = av.logging.get_last_error()
        # an empty one ends the stream: what is cut off behind it is not missed inside
        if packet is None or not packet.size:
            return None
        # A demuxer that finds its way again after a stretch of rubbish says so in its log alone.
        if after[0] != before[0] and after[1] and after[1][1] in self._names:
            self.damage = MediaError(after[1][2].strip())
        return packet


class Reader:
    """A stream's frames in presentation order, up to the first damage, which it remembers."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.stamps: list[tuple[int | None, int]] = []  # (pts, duration) in ticks of every packet read to be shown
        self._damage: MediaError | None = None  # the decoder's
        self._demuxer = Demuxer(container, stream)
        self._packets: Iterator[Packet[VideoStream]] = iter(())

    @property
    def damage(self) -> MediaError | None:
        """What ended the frames, None if nothing did."""
        return self._damage or self._demuxer.damage

    def __iter__(self) -> Iterator[VideoFrame]:
        """From where the file stands: at its beginning, or where it has been sought to."""
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
                continue  # a stream cut out of a longer one starts with packets that cannot be decoded yet
            if begun and corrupt:
                self._damage = MediaError("a picture is damaged")
                return
            self._damage = None
            begun = begun or bool(frames)
            corrupt = any(frame.is_corrupt for frame in frames)
            yield from frames
        yield from self._rest()

    def _rest(self) -> Iterator[VideoFrame]:
        end: Packet[Any] = Packet()
        end.stream = self.stream
        if self.stream.time_base:
            end.time_base = self.stream.time_base  # which its frames inherit
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
        """Read the packets that are left without decoding them."""
        for _ in self._packets:
            pass
        return self.stamps


@dataclass
class Shape:
    """From a decoded frame to upright RGB of one size, whatever the later frames' own sizes."""

    width: int
    height: int
    matrix: tuple[int, ...]
    converter: VideoReformatter

    @classmethod
    def of(cls, frame: VideoFrame, stream: VideoStream, size_hint: int | None, max_pixels: int) -> Shape:
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        width, height = max(1, round(frame.width * aspect)), frame.height
        check_size(width, height, max_pixels)
        if size_hint and size_hint < min(width, height):
            scale = size_hint / min(width, height)
            width, height = round(width * scale), round(height * scale)
        return cls(width, height, _display_matrix(frame), VideoReformatter())

    @property
    def turned(self) -> bool:
        """Whether display swaps rows and columns."""
        return abs(self.matrix[1]) > abs(self.matrix[0])

    @property
    def mirrored(self) -> bool:
        """Whether display turns the picture over, beside rotating it."""
        a, b, c, d = (self.matrix[place] for place in (0, 1, 3, 4))
        return a * d - b * c < 0

    @property
    def upright(self) -> tuple[int, int]:
        """Width and height as displayed."""
        return (self.height, self.width) if self.turned else (self.width, self.height)

    def rgb(self, frame: VideoFrame) -> np.ndarray:
        """uint8 (H, W, 3)."""
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
    """How a pixel moves from the coded to the displayed picture: x' = ax + cy, y' = bx + dy in (a, b, _, c, d, ...)."""
    result = cast("SideData | None", frame.side_data.get("DISPLAYMATRIX"))
    return tuple(np.frombuffer(bytes(result), np.int32).tolist()) if result else (1, 0, 0, 0, 1, 0, 0, 0, 1)


def kinds(container: InputContainer) -> set[str]:
    """The names of a container's format: mp4 and its relatives have several."""
    return set(container.format.name.split(","))


def tick(frame: VideoFrame) -> float:
    """Seconds per unit of its time stamps."""
    return float(frame.time_base or 1)


def rate(stream: VideoStream) -> float:
    """Frames per second as the container says, or a guess."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or FALLBACK_RATE)


def reason(error: av.FFmpegError) -> str:
    """A few words without the file's name."""
    return error.strerror or type(error).__name__
