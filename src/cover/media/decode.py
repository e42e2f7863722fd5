"""Decoding: what a file holds, and the pictures it shows at given times.

Videos go through PyAV (FFmpeg's libraries) or, where asked for, torchcodec; images through Pillow. A folder of numbered
images is a video too, of 12 frames a second (Something-Something's rate). Times are seconds counted from the file's
first frame. Everything that makes a file unusable ends as a `MediaError` with a short reason; nothing is ever replaced.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import av
import numpy as np
from av.container import InputContainer

from cover.media.image import FOLDER_RATE, decode_folder, decode_image, numbered_images, probe_folder, probe_image
from cover.media.source import MAX_PIXELS, Decoded, FileProblem, MediaError, Probe, Source, is_plain
from cover.media.stream import Reader, Shape, kinds, open_video, rate
from cover.media.video import decode_video, first_frame, probe_video, summary

__all__ = [
    "DECODERS",
    "Decoded",
    "Decoder",
    "FileProblem",
    "MediaError",
    "Probe",
    "check_decoder",
    "decode_at",
    "decode_image",
    "probe",
    "probe_deep",
]

Decoder = Literal["pyav", "torchcodec", "torchcodec_cuda"]
DECODERS: tuple[Decoder, ...] = ("pyav", "torchcodec", "torchcodec_cuda")
# containers whose header has a length; elsewhere it is estimated from what is there
_SAY_HOW_LONG = {"mov", "matroska", "avi"}
_SHORTFALL, _SHORTFALL_SHARE = 0.5, 0.05  # seconds, and of the length: headers are rounded, and sound is cut in blocks


def probe(path: Source, media: Literal["video", "image"] = "video", *, max_pixels: int = MAX_PIXELS) -> Probe:
    """Measure a file without decoding all of it. Raises MediaError.

    A video's first two frames are decoded, the rest is only counted: packets that carry a frame to be shown. So damage
    inside later packets goes unnoticed here (`decode_at` reports it), and a few codecs that hide extra pictures in
    packets of their own can be counted one or two too high. An image is decoded, at reduced size where its format can.
    """
    if media == "image":
        return probe_image(path, max_pixels)
    return (
        probe_folder(os.fspath(path), max_pixels)
        if is_plain(path) and os.path.isdir(path)
        else probe_video(path, max_pixels)
    )


def decode_at(
    path: Source,
    times: Sequence[float],
    *,
    size_hint: int | None = None,
    max_pixels: int = MAX_PIXELS,
    decoder: Decoder = "pyav",
) -> Decoded:
    """The frames shown at `times` (seconds from the first frame, any order, repeats allowed), in that order.

    The frame at t is the last one that starts at or before t (within 1 ms); before the first it is the first, past the
    end the last. With `size_hint`, frames whose short side is longer come back scaled down to that many pixels. Display
    rotation, mirroring and pixel aspect are applied. One thread; no more is read and decoded than the wanted frames
    need. Raises MediaError when the file yields no frame or one frame exceeds `max_pixels`; of a folder of images, also
    when a wanted one is damaged or of another size than the rest; UserError where `decoder` is not installed.
    """
    wanted = np.asarray(times, dtype=np.float64)
    assert wanted.size > 0, "at least one time"
    assert np.isfinite(wanted).all(), "times are finite"
    if is_plain(path) and os.path.isdir(path):
        return decode_folder(os.fspath(path), wanted.tolist(), size_hint, max_pixels)
    if decoder == "pyav":
        return decode_video(path, wanted.tolist(), size_hint, max_pixels)
    from cover.media.torchcodec import decode_by_torchcodec

    return decode_by_torchcodec(
        path, wanted.tolist(), size_hint, max_pixels, "cuda" if decoder == "torchcodec_cuda" else "cpu"
    )


def check_decoder(decoder: Decoder) -> str:
    """The decoder with its version, for the protocol. Raises UserError where it is not installed or does not load."""
    if decoder == "pyav":
        return f"pyav {av.__version__}"
    from cover.media.torchcodec import version

    return f"{decoder} {version('cuda' if decoder == 'torchcodec_cuda' else 'cpu')}"


# --- every frame of a file


def probe_deep(
    path: Source, media: Literal["video", "image"] = "video", *, max_pixels: int = MAX_PIXELS
) -> tuple[Probe, str]:
    """Measure a file by decoding all of it. Raises MediaError where it has no frame.

    Of a sound file the measures are those of `probe`, but for the few codecs whose packets do not tell the number of
    pictures: here it is counted. Of a damaged one they are of the frames up to the damage, as many as are ever shown,
    and the second value says so, `REASON, N of M frames`; else it is empty. An image is decoded at full size, and is
    whole or not at all.
    """
    if media == "image":
        decode_image(path, max_pixels=max_pixels)
        return probe_image(path, max_pixels), ""
    return _folder(os.fspath(path), max_pixels) if is_plain(path) and os.path.isdir(path) else _video(path, max_pixels)


def _video(path: Source, max_pixels: int) -> tuple[Probe, str]:
    with open_video(path, max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = first_frame(frames, reader)
        shape = Shape.of(first, stream, None, max_pixels)
        shape.rgb(first)  # some kinds of pixels decode and cannot be shown
        shown = [(first.pts, first.duration or 0), *((frame.pts, frame.duration or 0) for frame in frames)]
        damage, listed = reader.damage, reader.stamps_to_end()
        whole = summary(first, listed, rate(stream), shape, stream.codec_context.name)
        if damage is None:
            visited = replace(whole, frames=len(shown))
            return visited, _cut_short(path, visited, container, max_pixels)
        visited = replace(summary(first, shown, rate(stream), shape, whole.codec), frames=len(shown))
        return visited, _partial(damage, visited.frames, max(whole.frames, stream.frames))


def _cut_short(path: Source, seen: Probe, container: InputContainer, max_pixels: int) -> str:
    """A file that was not copied to its end reads as one that is shorter than its header says. Sound may well go on
    behind the last picture, so what counts is the last packet of any stream. Matroska counts from time 0, wherever the
    first frame is.
    """
    if container.duration is None or not kinds(container) & _SAY_HOW_LONG:
        return ""
    said = container.duration / av.time_base
    enough = said - max(_SHORTFALL, _SHORTFALL_SHARE * said)
    if seen.start + seen.duration >= enough or _last_packet(path, max_pixels) >= enough:
        return ""
    return _partial("the file ends early", seen.frames, f"about {round(said * seen.fps)}")


def _last_packet(path: Source, max_pixels: int) -> float:
    """When the last packet of any stream ends, in seconds."""
    end = 0.0
    with open_video(path, max_pixels) as (container, _), suppress(av.FFmpegError):
        for packet in container.demux():
            if packet.size and packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end


def _folder(path: str, max_pixels: int) -> tuple[Probe, str]:
    whole = probe_folder(path, max_pixels)
    times, files = numbered_images(path)
    for number, file in enumerate(files):
        try:
            decode_image(file, max_pixels=max_pixels)
        except MediaError as error:
            if not number:
                raise MediaError(f"{os.path.basename(file)}: {error}") from error
            seconds = times[number - 1] + 1 / FOLDER_RATE
            why = _partial(f"{os.path.basename(file)}: {error}", number, len(files))
            return replace(whole, frames=number, duration=seconds), why
    return whole, ""


def _partial(damage: object, seen: int, listed: int | str) -> str:
    return f"{damage}, {seen} of {listed} frames"
