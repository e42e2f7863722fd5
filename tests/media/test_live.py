"""Live sources: a file plays at its own rate, a slow reader loses frames, and an RTSP server is read."""

from __future__ import annotations

import socket
import struct
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cover.media.live import BUFFER_S, LiveSource
from cover.media.source import MediaError

SIDE, FPS = 64, 20


def pictures(count: int) -> list[np.ndarray]:
    """Grey frames, each brighter than the one before."""
    return [np.full((SIDE, SIDE, 3), 10 + number * 200 // count, np.uint8) for number in range(count)]


def encoded(path: Path, count: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"tune": "zerolatency", "x264-params": "keyint=5"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for picture in pictures(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_file_plays_at_its_own_rate(tmp_path: Path) -> None:
    path = encoded(tmp_path / "clip.mp4", 20)
    with LiveSource(str(path)) as source:
        began, arrivals = time.monotonic(), []
        for seconds, frame in source:
            arrivals.append((seconds, time.monotonic() - began))
            assert frame.shape == (SIDE, SIDE, 3)
            assert source.lag(seconds) < 0.5
    assert [seconds for seconds, _ in arrivals] == pytest.approx([number / FPS for number in range(20)])
    assert all(wall > seconds - 0.05 for seconds, wall in arrivals)
    assert (source.frames, source.dropped, source.problem) == (20, 0, "")


def test_a_slow_reader_loses_the_oldest_frames(tmp_path: Path) -> None:
    path = encoded(tmp_path / "clip.mp4", 40)
    with LiveSource(str(path)) as source:
        frames = iter(source)
        first, _ = next(frames)
        time.sleep(2.2)
        rest = [(seconds, int(frame.mean())) for seconds, frame in frames]
    assert first == 0
    assert rest[0][0] == pytest.approx(39 / FPS - BUFFER_S)
    assert source.dropped == 40 - 1 - len(rest)
    assert source.dropped > 10
    for seconds, grey in rest:  # a frame keeps its own time
        assert grey == pytest.approx(10 + round(seconds * FPS) * 200 // 40, abs=3)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n", "not a video"),
        ("camera.sdp", b"v=0\nm=video 5004 RTP/AVP 96\n", "not a video"),
        ("nothing.mp4", b"", "empty file"),
    ],
)
def test_what_is_not_opened(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    encoded(tmp_path / "clip.mp4", 5)
    (tmp_path / name).write_bytes(content)
    with LiveSource(str(tmp_path / name)) as source, pytest.raises(MediaError, match=reason):
        next(iter(source))


def test_no_camera_and_no_server() -> None:
    for name, reason in (("987", "no camera /dev/video987"), ("rtsp://127.0.0.1:9/x", "cannot be opened")):
        with LiveSource(name) as source, pytest.raises(MediaError, match=reason):
            next(iter(source))


# --- RTSP -------------------------------------------------------------------------------------------------------------


def packets(count: int) -> list[bytes]:
    """H.264 access units without a container."""
    codec = av.CodecContext.create("libx264", "w")
    codec.width = codec.height = SIDE
    codec.pix_fmt, codec.framerate, codec.time_base = "yuv420p", FPS, Fraction(1, FPS)
    codec.options = {"tune": "zerolatency", "x264-params": "keyint=5:repeat-headers=1"}
    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures(count)]
    for number, frame in enumerate(frames):
        frame.pts = number
    return [bytes(packet) for frame in [*frames, None] for packet in codec.encode(frame)]


def nal_units(data: bytes) -> list[bytes]:
    return [unit.rstrip(b"\0") for unit in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]


class RtspServer(threading.Thread):
    """One client, RTP inside the TCP connection, single NAL unit packets (RFC 2326 10.12, RFC 6184 5.6)."""

    def __init__(self, units: list[list[bytes]]) -> None:
        super().__init__(daemon=True)
        self.units = units
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self.listener.getsockname()[1]}/live"

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection, connection.makefile("rb") as lines:
            while request := lines.readline().decode():
                headers = dict(iter(lambda: self._header(lines.readline()), ("", "")))
                method = request.split()[0]
                connection.sendall(self._answer(method, headers["cseq"]).encode())
                if method == "PLAY":
                    self._send(connection)
                    return

    @staticmethod
    def _header(line: bytes) -> tuple[str, str]:
        name, _, value = line.decode().strip().partition(": ")
        return name.lower(), value

    def _answer(self, method: str, number: str) -> str:
        body, more = "", ""
        if method == "OPTIONS":
            more = "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        if method == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
            body += "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
            more = "Content-Type: application/sdp\r\n"
        if method == "SETUP":
            more = "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        return f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{more}Content-Length: {len(body)}\r\n\r\n{body}"

    def _send(self, connection: socket.socket) -> None:
        sequence = 0
        for number, units in enumerate(self.units):
            for unit in units:
                last = 0x80 if unit is units[-1] else 0
                rtp = struct.pack("!BBHII", 0x80, 96 | last, sequence, number * 90000 // FPS, 7) + unit
                connection.sendall(struct.pack("!cBH", b"$", 0, len(rtp)) + rtp)
                sequence += 1
            time.sleep(1 / FPS)


def test_an_address() -> None:
    server = RtspServer([nal_units(packet) for packet in packets(30)])
    server.start()
    with LiveSource(server.url) as source:
        received = [(seconds, int(frame.mean())) for seconds, frame in source]
    assert len(received) >= 20
    assert source.frames == len(received) + source.dropped
    steps = np.diff([seconds for seconds, _ in received])
    assert steps == pytest.approx(np.full(len(steps), 1 / FPS), abs=2e-3)
    assert np.all(np.diff([grey for _, grey in received]) >= 0)
