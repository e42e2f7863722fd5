"""The quick count of frames is right where packets of MPEG-4 hold no picture, or two."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cover.media.decode import decode_at, probe, probe_deep
from cover.media.mpeg4 import PictureCounter

FILLER = b"\x7f"  # what DivX writes in place of a picture


def not_coded(second: int, ticks: int, bits: int) -> bytes:
    """The header of a P picture that is not coded: start code, type, seconds, marker, ticks, marker, `vop_coded`."""
    text = "01" + "1" * second + "0" + "1" + f"{ticks:0{bits}b}" + "1" + "0"
    text += "0" + "1" * (-len(text) % 8 - 1) if len(text) % 8 else "01111111"
    return b"\0\0\1\xb6" + int(text, 2).to_bytes(len(text) // 8, "big")


def pictures(rate: int) -> tuple[list[bytes], bytes]:
    """20 coded pictures of MPEG-4 and the headers of the stream."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, rate), Fraction(rate)
    packets = []
    for number in range(20):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 12, np.uint8), format="rgb24")
        frame.pts = number
        packets += encoder.encode(frame)
    return [bytes(packet) for packet in [*packets, *encoder.encode(None)] if packet.size], encoder.extradata or b""


def write_avi(path: Path, packets: list[bytes], rate: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, rate)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            container.mux(packet)
    return path


@pytest.mark.parametrize("rate", [25, 30])
@pytest.mark.parametrize(
    "extra", ["nothing", "filler behind the first", "not coded inside", "not coded at the end", "all"]
)
def test_packets_without_a_picture(tmp_path: Path, rate: int, extra: str) -> None:
    packets, _ = pictures(rate)
    bits = (rate - 1).bit_length()
    packets[0] = packets[0].replace(b"\0\0\1\xb6", b"\0\0\1\xb2DivX503b2816p\0\0\1\xb6", 1)
    if extra in ("filler behind the first", "all"):
        packets.insert(1, FILLER)
    if extra in ("not coded inside", "all"):
        packets.insert(8, not_coded(0, 8, bits))
    if extra in ("not coded at the end", "all"):
        packets.append(not_coded(0, 21, bits))
    path = write_avi(tmp_path / "a.avi", packets, rate)
    result = probe(path)
    repeated = extra in ("not coded at the end", "all")  # FFmpeg shows the last picture once more
    assert result.frames == 20 + repeated
    assert probe_deep(path) == (result, "")
    assert len(np.unique(decode_at(path, (np.arange(25) / rate).tolist()).frames[:, 0, 0, 0])) == 20


def test_two_pictures_in_a_packet() -> None:
    """As in DivX files: P and B in one packet, then a picture that is not coded, with which the second is displayed."""
    packets, headers = pictures(25)
    counter = PictureCounter(headers)
    packed = [packets[0], packets[1] + packets[2], not_coded(0, 2, 5), packets[3], FILLER]
    assert [counter.displays(packet) for packet in packed] == [True, True, True, True, False]


@pytest.mark.parametrize("hole", [b"\xff", b"\0", b"\x55"])
def test_damaged_packets_are_counted(tmp_path: Path, hole: bytes) -> None:
    """A packet that has lost its header is a damaged picture. Only short ones are filler."""
    packets, _ = pictures(25)
    packets[12:] = [hole * max(20, len(packet)) for packet in packets[12:]]
    assert probe(write_avi(tmp_path / "a.avi", packets, 25)).frames == 20
    shown, damage = probe_deep(tmp_path / "a.avi")
    assert shown.frames == 12
    assert damage.endswith("12 of 20 frames")
