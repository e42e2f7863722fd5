"""A picture of Motion-JPEG without its own tables is never decoded with those of a picture that happens to be there."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cover.media.decode import decode_at
from cover.media.mjpeg import has_own_tables

RATE, COUNT, LATE = 25, 110, 100  # a picture at 4 s is found by a seek if it is requested alone
DQT, DHT, SCAN = b"\xff\xdb", b"\xff\xc4", b"\xff\xda"


def picture(number: int, quality: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def without(packet: bytes, marker: bytes) -> bytes:
    """A picture whose segments of one kind are comments."""
    header, scan, rest = packet.partition(SCAN)
    return header.replace(marker, b"\xff\xfe") + scan + rest


def write_mov(path: Path, packets: list[bytes]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, RATE)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            container.mux(packet)
    return path


def test_tables_of_a_picture() -> None:
    whole = picture(0, 75)
    assert has_own_tables(whole)
    last_quantisation = whole.rindex(DQT)
    other_number = bytearray(whole)
    other_number[last_quantisation + 4] ^= 2  # the table is number 3, and the picture needs number 1
    for damaged in (without(whole, DQT), without(whole, DHT), whole[200:] + whole[:200], bytes(other_number), b""):
        assert not has_own_tables(damaged)
    for length in range(whole.index(SCAN) + 2):
        assert not has_own_tables(whole[:length])


@pytest.mark.parametrize("marker", [DQT, DHT])
def test_missing_tables(tmp_path: Path, marker: bytes) -> None:
    """Its picture is the same, whichever other pictures are requested: with the tables of the picture before it."""
    packets = [picture(number, 20 if number < 50 else 90) for number in range(COUNT)]
    packets[LATE] = without(packets[LATE], marker)
    path = write_mov(tmp_path / "a.mov", packets)
    alone = decode_at(path, [LATE / RATE])
    for others in ([], [LATE - 1], [0], [10, 49], [*range(LATE)]):
        together = decode_at(path, [number / RATE for number in [*others, LATE]])
        assert (together.frames[-1] == alone.frames[0]).all()
        assert together.partial == alone.partial
