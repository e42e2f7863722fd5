"""Is a file a video or an image, by what it holds? Its name and what the client calls it count for nothing.

Only containers and formats with a signature of their own pass: libraries would take text for playlists, which name other files, and
hand some pictures to programs of the system.
"""

from __future__ import annotations

from PIL import Image

from cover.datasets.manifest import Media
from cover.inference.serve.limits import Refused

READERS = frozenset(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000"])  # of Pillow's; none starts a program
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*", b"P5", b"P6", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_VIDEOS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"FLV\x01",
    b"0&\xb2u\x8ef\xcf\x11",  # ASF, WMV
    b"OggS",
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG video
    b"YUV4MPEG2 ",
    b"GIF8",
)
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")  # what an ISO or QuickTime file begins with
_STILL_BRANDS = (b"avif", b"avis", b"mif1")


def media_by_content(path: str) -> Media:
    """Raises `Refused` for what is neither."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head:
        raise Refused(422, "the file is empty")
    if head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if head[4:8] in _BOXES:
        return "image" if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS else "video"
    if head.startswith(_VIDEOS) or (head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX")) or _is_transport_stream(head):
        return _gif(path) if head.startswith(b"GIF8") else "video"
    raise Refused(415, "the file is neither a video nor an image of a known format")


def _is_transport_stream(head: bytes) -> bool:
    """Packets of 188 bytes, or of 192 with a time code in front."""
    return any(len(head) > first + 2 * size and {head[first], head[first + size], head[first + 2 * size]} == {0x47}
               for first, size in ((0, 188), (4, 192)))  # fmt: skip


def _gif(path: str) -> Media:
    """A GIF of several frames is a video."""
    try:
        with Image.open(path, formats=["GIF"]) as image:
            return "video" if getattr(image, "is_animated", False) else "image"
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        raise Refused(422, "the file cannot be read: damaged GIF") from None


def keep_safe_readers() -> None:
    """From now on this process opens pictures by `READERS` alone."""
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in READERS]
