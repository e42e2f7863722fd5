"""Live sources: the frames of a camera, of an RTSP address, or of a file that is played at its own rate.

A thread decodes. It holds the frames of the last second for a reader; a reader that is slower loses the oldest ones.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from types import TracebackType

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from cover.media.source import MAX_PIXELS, MediaError, check_size, decoder_errors
from cover.media.stream import Reader, Shape, open_video, rate, reason, stamp_of
from cover.media.video import first_frame, timed_frames

BUFFER_S = 1.0  # seconds of video that wait for a slow reader
MOST_WAITING = 250  # frames that wait, for sources of a high or a wrong frame rate
PATIENCE_S = 10.0  # seconds without a packet after which a camera or an address has failed
CAMERA = re.compile(r"(?:/dev/video)?(\d{1,3})")
ADDRESS = re.compile(r"rtsps?://", re.IGNORECASE)
# What FFmpeg may open for an address. The demuxer reads the media that its server sends, and follows nothing else.
_RTSP = {"format_whitelist": "rtsp", "protocol_whitelist": "tcp,udp,rtp,tls,crypto", "rtsp_transport": "tcp"}
_CAMERA = {"format_whitelist": "video4linux2,v4l2", "protocol_whitelist": "file"}


class LiveSource:
    """The frames of a source as it plays: an iterator of (seconds since its first frame, uint8 `(H, W, 3)` RGB).

    `source`: the number of a camera (`0`), an `rtsp://` address or a file. `size_hint`: frames with a longer short side
    are scaled down to this many pixels. It plays inside a `with` block. Raises `MediaError` in the first iteration if
    it cannot be opened.

    `frames`: the number of decoded frames. `dropped`: how many of them the reader was too slow for. `problem`: why the
    source broke; None if it has not.

    >>> with LiveSource("rtsp://camera/stream") as source:
    ...     for seconds, frame in source:
    ...         print(seconds, source.lag(seconds), source.dropped)
    """

    def __init__(self, source: str, size_hint: int | None = None, max_pixels: int = MAX_PIXELS) -> None:
        self.source, self.frames, self.dropped, self.problem = source, 0, 0, ""
        self._size_hint, self._max_pixels = size_hint, max_pixels
        self._waiting: deque[tuple[float, np.ndarray]] = deque()
        self._changed, self._stop, self._ended = threading.Condition(), threading.Event(), False
        self._began: float | None = None  # the time of this machine's clock at which the first frame was shown
        self._thread = threading.Thread(target=self._play, name="cover-live", daemon=True)

    def __enter__(self) -> LiveSource:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(BUFFER_S)  # a read from a camera may hang; the thread ends with the process then

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        while True:
            with self._changed:
                while not (self._waiting or self._ended):
                    self._changed.wait()
                if not self._waiting:
                    break
                entry = self._waiting.popleft()
            yield entry
        if self.problem and not self.frames:
            raise MediaError(self.problem)

    def lag(self, seconds: float) -> float:
        """The time since the frame at `seconds` was due, in seconds."""
        return 0.0 if self._began is None else max(0.0, time.monotonic() - self._began - seconds)

    @property
    def _paced(self) -> bool:
        """Whether it plays at its own rate: a file can be read faster than that."""
        return not is_device(self.source)

    def _play(self) -> None:
        try:
            with self._opened() as (container, stream):
                self._deliver(container, stream)
        except MediaError as error:
            self.problem = str(error)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        if self._paced:
            with open_video(self.source, self._max_pixels) as opened:
                yield opened
            return
        with decoder_errors("the decoder failed"), _open_device(self.source) as container:
            if not container.streams.video:
                raise MediaError("no video stream")
            stream = container.streams.video[0]
            check_size(stream.width, stream.height, self._max_pixels)
            yield container, stream

    def _deliver(self, container: InputContainer, stream: VideoStream) -> None:
        """Decode to the end, and put every frame into the buffer when it is due."""
        reader = Reader(container, stream)
        frames = iter(reader) if self._paced else _device_frames(container, stream)
        first = first_frame(frames, reader)
        shape = Shape.of(first, stream, self._size_hint, self._max_pixels)
        self._began = time.monotonic()
        for seconds, frame in timed_frames(chain([first], frames), first, rate(stream), stamp_of(container)):
            if self._stop.wait(max(0.0, self._began + seconds - time.monotonic()) if self._paced else 0.0):
                return
            self._put(seconds, shape.rgb(frame))
        if reader.damage:
            raise reader.damage

    def _put(self, seconds: float, frame: np.ndarray) -> None:
        with self._changed:
            self.frames += 1
            self._waiting.append((seconds, frame))
            while seconds - self._waiting[0][0] > BUFFER_S or len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.notify_all()


def is_device(source: str) -> bool:
    """Whether a source is a camera or an address, and no file."""
    return bool(CAMERA.fullmatch(source) or ADDRESS.match(source))


def _open_device(source: str) -> InputContainer:
    """Open a camera or an address. Raises MediaError."""
    camera = CAMERA.fullmatch(source)
    file, kind, options = (f"/dev/video{camera[1]}", "v4l2", _CAMERA) if camera else (source, "rtsp", _RTSP)
    if camera and not os.path.exists(file):
        raise MediaError(f"there is no camera {file}")
    try:
        return av.open(file, mode="r", format=kind, options=dict(options), timeout=PATIENCE_S)
    except av.FFmpegError as error:
        raise MediaError(f"cannot be opened: {reason(error)}", error.errno) from error


def _device_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """The frames of a camera or an address. A packet that was damaged on its way is left out."""
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                continue
    except av.EOFError:
        return
    except av.FFmpegError as error:
        raise MediaError(f"the stream broke: {reason(error)}", error.errno) from error
