"""Which picture does a file show at a given time?

Videos go through PyAV (FFmpeg's libraries) or, where asked for, torchcodec; images through Pillow. A folder of numbered images is a
video too, of 12 frames a second (Something-Something's rate). Times are seconds counted from the file's first frame. Everything that
makes a file unusable ends as a `MediaError` with a short reason; nothing is ever replaced.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal

import av
import numpy as np

from cover.media.frame_folder import decode_folder, probe_folder
from cover.media.images import decode_image, probe_image
from cover.media.results import MAX_PIXELS, Decoded, MediaError, Probe
from cover.media.source import Source, is_plain
from cover.media.video import decode_video, probe_video

__all__ = ["DECODERS", "Decoded", "Decoder", "MediaError", "Probe", "check_decoder", "decode_at", "decode_image", "probe"]

Decoder = Literal["pyav", "torchcodec", "torchcodec_cuda"]
DECODERS: tuple[Decoder, ...] = ("pyav", "torchcodec", "torchcodec_cuda")


def probe(path: Source, media: Literal["video", "image"] = "video", *, max_pixels: int = MAX_PIXELS) -> Probe:
    """Measure a file without decoding all of it. Raises MediaError.

    A video's first two frames are decoded, the rest is only counted: packets that carry a frame to be shown. So damage
    inside later packets goes unnoticed here (`decode_at` reports it), and a few codecs that hide extra pictures in
    packets of their own can be counted one or two too high. An image is decoded, at reduced size where its format can.
    """
    if media == "image":
        return probe_image(path, max_pixels)
    return probe_folder(os.fspath(path), max_pixels) if is_plain(path) and os.path.isdir(path) else probe_video(path, max_pixels)


def decode_at(
    path: Source, times: Sequence[float], *, size_hint: int | None = None, max_pixels: int = MAX_PIXELS, decoder: Decoder = "pyav"
) -> Decoded:
    """The frames shown at `times` (seconds from the first frame, any order, repeats allowed), in that order.

    The frame at t is the last one that starts at or before t (within 1 ms); before the first it is the first, past the
    end the last. With `size_hint`, frames whose short side is longer come back scaled down to that many pixels. Display
    rotation, mirroring and pixel aspect are applied. One thread; no more is read and decoded than the wanted frames need.
    Raises MediaError when the file yields no frame or one frame exceeds `max_pixels`; of a folder of images, also when a
    wanted one is damaged or of another size than the rest; UserError where `decoder` is not installed.
    """
    wanted = np.asarray(times, dtype=np.float64)
    assert wanted.size > 0, "at least one time"
    assert np.isfinite(wanted).all(), "times are finite"
    if is_plain(path) and os.path.isdir(path):
        return decode_folder(os.fspath(path), wanted.tolist(), size_hint, max_pixels)
    if decoder == "pyav":
        return decode_video(path, wanted.tolist(), size_hint, max_pixels)
    from cover.media.torchcodec import decode_by_torchcodec

    return decode_by_torchcodec(path, wanted.tolist(), size_hint, max_pixels, "cuda" if decoder == "torchcodec_cuda" else "cpu")


def check_decoder(decoder: Decoder) -> str:
    """The decoder with its version, for the protocol. Raises UserError where it is not installed or does not load."""
    if decoder == "pyav":
        return f"pyav {av.__version__}"
    from cover.media.torchcodec import version

    return f"{decoder} {version('cuda' if decoder == 'torchcodec_cuda' else 'cpu')}"
