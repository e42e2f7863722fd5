"""Counting the pictures in packets of MPEG-4 Part 2 (DivX, Xvid), from their headers alone.

A packet of an AVI file may hold two pictures, or none: filler bytes, or a picture that is marked as "not coded".
"""

from __future__ import annotations

import re

_START = re.compile(rb"\x00\x00\x01([\x20-\x2f\xb6])", re.DOTALL)
_PICTURE = 0xB6
_FILLER = 19  # bytes of the longest packet that FFmpeg takes for filler bytes
_HEADER = 32  # bytes of a header that are read; the fields are in the first 20


class PictureCounter:
    """Counts the coded pictures of the packets of one stream, in file order. `extradata`: the headers of the stream."""

    def __init__(self, extradata: bytes | None) -> None:
        self._time_bits: int | None = None  # length of the field for the time of a picture, from the last layer header
        self._ahead = 0  # pictures that came in an earlier packet and are displayed with a later one
        self.skipped = False  # whether the last packet had a picture that is not coded, and none was displayed with it
        self._count(extradata or b"")

    def displays(self, packet: bytes) -> bool:
        """Whether a frame is displayed with this packet."""
        # A packet without any header is one damaged picture, unless it is as short as filler bytes are.
        self._ahead += self._count(packet) or (len(packet) > _FILLER and not packet.startswith(b"\0\0\1"))
        self.skipped = not self._ahead and b"\0\0\1\xb6" in packet
        if not self._ahead:
            return False
        self._ahead -= 1
        return True

    def _count(self, data: bytes) -> int:
        coded = 0
        for match in _START.finditer(data):
            header = _Bits(data[match.end() : match.end() + _HEADER])
            if data[match.start(1)] == _PICTURE:
                coded += self._is_coded(header)
            else:
                self._time_bits = _time_bits(header)
        return coded

    def _is_coded(self, header: _Bits) -> bool:
        """Whether a picture is coded (`vop_coded`, ISO/IEC 14496-2, section 6.2.5)."""
        if self._time_bits is None:
            return True
        header.take(2)  # coding type
        while header.take(1):  # whole seconds
            pass
        header.take(1 + self._time_bits + 1)
        return bool(header.take(1)) or header.is_over


def _time_bits(header: _Bits) -> int:
    """The length of `vop_time_increment` in bits, from a video object layer (section 6.2.3)."""
    header.take(1 + 8)
    version = 1
    if header.take(1):
        version = header.take(4)
        header.take(3)
    if header.take(4) == 15:  # pixel aspect
        header.take(16)
    if header.take(1):  # control parameters
        header.take(3)
        if header.take(1):
            header.take(79)
    if header.take(2) == 3 and version != 1:  # shape
        header.take(4)
    header.take(1)
    return max(1, (header.take(16) - 1).bit_length())


class _Bits:
    """Bits of some bytes, first bit first. Behind the end all bits are 0."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    @property
    def is_over(self) -> bool:
        return self._left < 0

    def take(self, count: int) -> int:
        """The next `count` bits as a number."""
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else 0
        return shifted & ((1 << count) - 1)
