"""Whether a packet of Motion-JPEG can be decoded alone, from its markers (ISO/IEC 10918-1, annex B)."""

from __future__ import annotations

_HUFFMAN, _SCAN, _QUANTISATION = 0xC4, 0xDA, 0xDB
_FRAMES = {*range(0xC0, 0xD0)} - {_HUFFMAN, 0xC8, 0xCC}  # the markers of frame headers
_ALONE = {0x01, *range(0xD0, 0xDA)}  # the markers without a segment


def has_own_tables(packet: bytes) -> bool:
    """Whether a packet defines all tables of its first scan.

    A decoder takes missing tables from the picture that it decoded before, and reports no error.
    """
    defined: set[tuple[str, int]] = set()
    quantisation: dict[int, int] = {}  # component -> its table
    if not packet.startswith(b"\xff\xd8"):
        return False
    place = 2
    while place < len(packet) - 3:
        if packet[place] != 0xFF:
            return False
        marker, place = packet[place + 1], place + 1
        if marker == 0xFF:  # a fill byte
            continue
        place += 1
        if marker in _ALONE:
            continue
        size = int.from_bytes(packet[place : place + 2], "big")
        segment, place = packet[place + 2 : place + size], place + size
        if marker == _QUANTISATION:
            defined |= {("quantisation", number) for number in _quantisation_tables(segment)}
        elif marker == _HUFFMAN:
            defined |= {("huffman", number) for number in _huffman_tables(segment)}
        elif marker in _FRAMES:
            quantisation = {segment[at]: segment[at + 2] for at in range(6, len(segment) - 2, 3)}
        elif marker == _SCAN:
            return _needed(segment, quantisation) <= defined
    return False


def _quantisation_tables(segment: bytes) -> list[int]:
    numbers, place = [], 0
    while place < len(segment):
        numbers.append(segment[place] & 15)
        place += 1 + (128 if segment[place] >> 4 else 64)
    return numbers


def _huffman_tables(segment: bytes) -> list[int]:
    """The class (0 DC, 1 AC) times 16, plus the number, of each table."""
    numbers, place = [], 0
    while place < len(segment):
        numbers.append(segment[place])
        place += 17 + sum(segment[place + 1 : place + 17])
    return numbers


def _needed(scan: bytes, quantisation: dict[int, int]) -> set[tuple[str, int]]:
    """The tables that a sequential scan reads."""
    needed: set[tuple[str, int]] = set()
    for at in range(1, 1 + 2 * scan[0] if scan else 0, 2):
        component, tables = scan[at : at + 2].ljust(2, b"\0")
        needed |= {("quantisation", quantisation.get(component, -1))}
        needed |= {("huffman", tables >> 4), ("huffman", 16 + (tables & 15))}
    return needed or {("quantisation", -1)}
