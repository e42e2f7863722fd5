"""Video streams with PyAV: packets and frames up to the first damage, and conversion to upright RGB.

Everything runs in one thread.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from typing import Any, cast

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from cover.media.mpeg4 import PictureCounter
from cover.media.source import (
    MediaError,
    Source,
    check_size,
    check_source,
    decoder_errors,
    is_plain,
    over_background,
    read_source,
)

STAMPED_IN_DECODING_ORDER = {"avi"}  # with B-frames, FFmpeg's presentation times of these containers are wrong
DAMAGED_PICTURE = "a picture is damaged"
FALLBACK_RATE = 25.0  # frames per second of a container that states no rate
# The demuxers that may open a file. All of them read the media inside the file itself. Others would follow a text file
# to other files or servers (hls, dash, concat, sdp, image2, ...), or take any bytes for pictures (rawvideo).
_STREAMS = "h264,hevc,vvc,evc,m4v,mpegvideo,mjpeg,mjpeg_2000,av1,obu,vc1,dirac,cavsvideo,avs2,avs3,h261,h263,dnxhd"
_VIDEOS = (
    "mov,matroska,avi,asf,flv,live_flv,ogg,mpeg,mpegts,gif,apng,ivf,yuv4mpegpipe,dv,gxf,mxf,nut,nsv,rm,swf,wtv,vc1test,"
    "smjpeg,mpjpeg,kux,ivr,pva,ty,4xm,roq,film_cpk,bink,smk,flic,wav,mp3,flac,aac"  # music has no video stream
)
_IMAGES = "jpeg_pipe,png_pipe,webp_pipe,bmp_pipe,tiff_pipe,j2k_pipe,pbm_pipe,pgm_pipe,ppm_pipe"  # one frame
CONTAINERS = f"{_VIDEOS},{_IMAGES},{_STREAMS}"
_MOST_FPS = 1000  # a stream that states more is wrong
# Streams without a container: their demuxers take 25 frames per second, whatever the stream itself states.
_RAW = frozenset(_STREAMS.split(","))

# Users get one reason per file instead of FFmpeg's lines on the terminal. The log stays on, because a demuxer that
# recovers from damage reports it only there.
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False
av.logging.set_level(av.logging.ERROR)


def _side_data_type(cls: type[SideDataType], value: int) -> SideDataType:
    member = object.__new__(cls)
    vars(member).update(_name_=f"TYPE_{value}", _value_=value)
    return member


# PyAV raises ValueError for all side data of a frame if one has a type that is newer than its list, such as the EXIF
# data of a camera's Motion-JPEG. `_missing_` is the hook of an enumeration for such values.
SideDataType._missing_ = classmethod(_side_data_type)  # type: ignore[assignment, method-assign]


@contextmanager
def open_video(path: Source, max_pixels: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and choose its video stream.

    Raises MediaError, also for an error of the decoder inside the `with` block.
    """
    check_source(path)
    with decoder_errors("the decoder failed"):
        container = _open(path)
        if pace := _own_rate(container):
            container.close()
            container = _open(path, pace)
        with container:
            stream = _picture_stream(container)
            check_size(stream.width, stream.height, max_pixels)
            stream.thread_count = 1  # many worker processes decode at the same time
            if stream.codec_context.name == "mjpeg":
                # Without this a damaged picture keeps pixels of an earlier one, and nothing tells.
                stream.codec_context.options = {"err_detect": "explode"}
            yield container, stream


def _open(path: Source, pace: Fraction | None = None) -> InputContainer:
    """Open a file. `pace`: frames per second of a stream without a container. Raises MediaError."""
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    options |= {"framerate": str(pace)} if pace else {}
    # "file:" stops FFmpeg from reading a name with a colon as a protocol.
    file = "file:" + os.fspath(path) if is_plain(path) else io.BytesIO(read_source(path))
    before = av.logging.get_last_error()
    try:
        return av.open(file, mode="r", metadata_errors="ignore", options=options)
    except PermissionError as error:
        raise MediaError(f"cannot be read: {error.strerror}", error.errno) from error
    except av.FFmpegError as error:
        count, entry = av.logging.get_last_error()
        if count != before[0] and entry and "not on whitelist" in entry[2]:
            raise MediaError(f"not a video: {entry[1]} files are not read") from error
        raise MediaError(f"not a video: {reason(error)}", error.errno) from error


def _own_rate(container: InputContainer) -> Fraction | None:
    """The frame rate that a stream without a container states, if its demuxer took another one."""
    if not kinds(container) & _RAW or not container.streams.video:
        return None
    stream = container.streams.video[0]
    stated = stream.codec_context.framerate if stream.codec_context is not None else None
    return stated if stated and stated != stream.average_rate and stated <= _MOST_FPS else None


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
        # The index of such a file lists all packets. So their end shows whether the file was cut off.
        self._indexed = "mov" in self._names

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
        if previous is None:
            return
        if begun and previous.is_corrupt and not self.damage and self._indexed:
            self.damage = MediaError("the file ends early")
        if not (begun and self.damage and self._indexed):
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
        logged = after[0] != before[0] and after[1] is not None and after[1][1] in self._names
        # An empty packet ends the stream. Without an index, a log line about the cut end of a file is no damage.
        if packet is None or not packet.size:
            if logged and self._indexed:
                self.damage = MediaError("the file ends early")
            return None
        # A demuxer that skips damaged bytes and goes on reports it only in its log.
        if logged and after[1]:
            self.damage = MediaError(after[1][2].strip())
        return packet


class Reader:
    """The frames of a stream in presentation order, up to the first damage."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.stamp = stamp_of(container)
        self.delayed = bool(kinds(container) & STAMPED_IN_DECODING_ORDER)
        # `(time stamp, duration)` in ticks of every displayed packet so far
        self.stamps: list[tuple[int | None, int]] = []
        self._last: tuple[int | None, int] = (None, 0)  # of the last packet, displayed or not
        context = stream.codec_context
        self._pictures = PictureCounter(context.extradata) if context.name == "mpeg4" else None
        self._damage: MediaError | None = None  # damage that the decoder reports
        self._cut = False  # whether the last packet was cut off with the end of the file, which is no damage inside it
        self._demuxer = Demuxer(container, stream)
        self._packets: Iterator[Packet[VideoStream]] = iter(())

    @property
    def damage(self) -> MediaError | None:
        """The damage that ended the frames, None without any."""
        return self._damage or self._demuxer.damage

    def __iter__(self) -> Iterator[VideoFrame]:
        """Iterate from the current position of the file: its beginning, or the target of a seek."""
        begun = self._cut = False
        self._damage, self._demuxer = None, Demuxer(self.container, self.stream)
        self._packets = self._read()
        for packet in self._packets:
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                self._damage = MediaError(reason(error), error.errno)
                if begun:
                    yield from self._rest(packet.pts)
                    return
                continue  # a piece of a longer stream may begin with packets that refer to missing ones
            self._damage, self._cut = None, packet.is_corrupt
            yield from self._sound(frames, begun)
            if self._damage:
                return
            begun = begun or bool(frames)
        yield from self._rest(begun=begun)

    def _sound(self, frames: Iterable[VideoFrame], begun: bool) -> Iterator[VideoFrame]:
        """The frames in front of the first damaged one. If no frame came before it, it is shown nevertheless."""
        for frame in frames:
            damaged = frame.is_corrupt and not self._cut
            if damaged:
                self._damage = self._damage or MediaError(DAMAGED_PICTURE)
            if not (damaged and begun):
                yield frame
            if damaged:
                return
            begun = True

    def _rest(self, damaged: int | None = None, begun: bool = True) -> Iterator[VideoFrame]:
        """The frames that are still inside the decoder. An empty packet flushes them.

        `damaged`: the time stamp of a packet that could not be decoded. Its picture is left out.
        """
        end: Packet[Any] = Packet()
        end.stream = self.stream
        if self.stream.time_base:
            end.time_base = self.stream.time_base  # its frames get this time base
        try:
            frames = end.decode()
        except av.FFmpegError as error:
            self._damage = self._damage or MediaError(reason(error), error.errno)
            return
        yield from self._sound((frame for frame in frames if damaged is None or frame.pts != damaged), begun)

    def _read(self) -> Iterator[Packet[VideoStream]]:
        for packet in self._demuxer:
            self._last = (self.stamp(packet), packet.duration or 0)
            if not packet.is_discard and (self._pictures is None or self._pictures.displays(bytes(packet))):
                self.stamps.append(self._last)
            yield packet

    def stamps_to_end(self) -> list[tuple[int | None, int]]:
        """`stamps` of the whole stream. The remaining packets are read, but not decoded."""
        for _ in self._packets:
            pass
        if self._pictures and self._pictures.skipped and not self.stream.codec_context.has_b_frames:
            self.stamps.append(self._last)  # FFmpeg repeats the last picture if one that is not coded ends the stream
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
                opaque(frame), self.width, self.height, "rgb24", interpolation=Interpolation.BILINEAR, threads=1
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


def opaque(frame: VideoFrame) -> VideoFrame:
    """The frame over `source.BACKGROUND` if its pixel format has transparency, otherwise the frame itself.

    Scaling comes after this, because it would mix the hidden colours of transparent pixels into others.
    """
    if not has_alpha(frame):
        return frame
    return VideoFrame.from_ndarray(over_background(frame.to_ndarray(format="rgba")), format="rgb24")


def has_alpha(frame: VideoFrame) -> bool:
    """Whether the pixels of a frame may be transparent."""
    return frame.format.has_palette or any(component.is_alpha for component in frame.format.components)


def _display_matrix(frame: VideoFrame) -> tuple[int, ...]:
    """The 9 numbers of the map from coded to displayed pixels, the identity if the file has none.

    In (a, b, _, c, d, ...) the map is x' = ax + cy and y' = bx + dy.
    """
    result = cast("SideData | None", frame.side_data.get("DISPLAYMATRIX"))
    return tuple(np.frombuffer(bytes(result), np.int32).tolist()) if result else (1, 0, 0, 0, 1, 0, 0, 0, 1)


def kinds(container: InputContainer) -> set[str]:
    """The format names of a container. MP4 and related formats have several."""
    return set(container.format.name.split(","))


def stamp_of(container: InputContainer) -> Callable[[VideoFrame | Packet[Any]], int | None]:
    """The function that gives the time stamp of a frame or a packet in ticks, None if it has none."""
    return attrgetter("dts" if kinds(container) & STAMPED_IN_DECODING_ORDER else "pts")


def tick(frame: VideoFrame) -> float:
    """Seconds per unit of the time stamps of a frame."""
    return float(frame.time_base or 1)


def rate(stream: VideoStream) -> float:
    """Frames per second from the container, or a guess."""
    return float(stream.average_rate or stream.guessed_rate or stream.base_rate or FALLBACK_RATE)


def reason(error: av.FFmpegError) -> str:
    """The reason of an FFmpeg error in a few words, without the file name."""
    return error.strerror or type(error).__name__
