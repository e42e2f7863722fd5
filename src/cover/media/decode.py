"""Decoding of media files: probing, and frames at given times.

PyAV (FFmpeg's libraries) or torchcodec decode videos, Pillow decodes images. A folder of numbered images is a video of
12 frames per second, the rate of Something-Something. Times are seconds from the first frame of the file. A file that
cannot be used raises `MediaError` with a short reason. Nothing is ever replaced.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Literal

import av
import numpy as np
from av.container import InputContainer

from cover.media.image import FOLDER_RATE, decode_folder, decode_image, numbered_images, probe_folder, probe_image
from cover.media.source import MAX_PIXELS, PICTURES, Decoded, FileProblem, MediaError, Probe, Source, is_plain
from cover.media.stream import Reader, Shape, kinds, open_video
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
    "is_picture",
    "probe",
    "probe_deep",
]

Decoder = Literal["pyav", "torchcodec", "torchcodec_cuda"]
DECODERS: tuple[Decoder, ...] = ("pyav", "torchcodec", "torchcodec_cuda")
# Containers with a duration in their header. FFmpeg estimates the duration of other containers from their content.
_STATES_DURATION = {"mov", "matroska", "avi"}
# A file that is shorter than its header by less than both is whole: headers are rounded, and sound comes in blocks.
_SHORTFALL, _SHORTFALL_FRACTION = 0.5, 0.05  # seconds, and a fraction of the duration


def probe(path: Source, media: Literal["video", "image"] = "video", *, max_pixels: int = MAX_PIXELS) -> Probe:
    """The properties of a file, without decoding all of it. Raises MediaError.

    Two frames of a video are decoded; then only the packets with a displayed frame are counted. So damage inside later
    packets is not detected here, but in `decode_at`. A few codecs put extra pictures into their own packets, and their
    count can be one or two too high. An image is decoded, at reduced size if its format allows it.
    """
    if media == "image":
        return probe_image(path, max_pixels)
    return probe_folder(os.fspath(path), max_pixels) if _is_folder(path) else probe_video(path, max_pixels)


def decode_at(
    path: Source,
    times: Sequence[float],
    *,
    size_hint: int | None = None,
    max_pixels: int = MAX_PIXELS,
    decoder: Decoder = "pyav",
) -> Decoded:
    """The frames shown at `times`, in the order of `times`.

    `times`: seconds from the first frame, in any order, with repeats. The frame at t is the last one that starts at or
    before t (within 1 ms). Before the first frame it is the first, past the end the last. `size_hint`: frames with a
    longer short side are scaled down to this many pixels. Display rotation, mirroring and pixel aspect are applied.
    Decoding uses one thread, and reads no more of the file than these frames need. A picture, by its ending, is a video
    of one frame, which it shows at all times.

    Raises MediaError if the file has no frame or a frame has more than `max_pixels` pixels; for a folder of images,
    also if one of the images is damaged or has another size than the others. Raises UserError if `decoder` is not
    installed.
    """
    wanted = np.asarray(times, dtype=np.float64)
    assert wanted.size > 0, "at least one time"
    assert np.isfinite(wanted).all(), "times are finite"
    if _is_folder(path):
        return decode_folder(os.fspath(path), wanted.tolist(), size_hint, max_pixels)
    if is_picture(path):
        picture = decode_image(path, size_hint=size_hint, max_pixels=max_pixels)
        return Decoded(picture[None], np.zeros(wanted.size, np.int64), None)
    if decoder == "pyav":
        return decode_video(path, wanted.tolist(), size_hint, max_pixels)
    from cover.media.torchcodec import decode_by_torchcodec

    device = "cuda" if decoder == "torchcodec_cuda" else "cpu"
    return decode_by_torchcodec(path, wanted.tolist(), size_hint, max_pixels, device)


def _is_folder(path: Source) -> bool:
    return is_plain(path) and os.path.isdir(path)


def is_picture(path: Source) -> bool:
    """Whether the ending of a file is that of a picture."""
    return os.path.splitext(os.fspath(path))[1].lower() in PICTURES


def check_decoder(decoder: Decoder) -> str:
    """The decoder and its version, for the protocol. Raises UserError if it is not installed or does not load."""
    if decoder == "pyav":
        return f"pyav {av.__version__}"
    from cover.media.torchcodec import version

    return f"{decoder} {version('cuda' if decoder == 'torchcodec_cuda' else 'cpu')}"


# --- every frame of a file ---


def probe_deep(
    path: Source, media: Literal["video", "image"] = "video", *, max_pixels: int = MAX_PIXELS
) -> tuple[Probe, str]:
    """The properties of a file, and its damage, from decoding all of it. Raises MediaError if it has no frame.

    For a whole file the properties are those of `probe`, with an exact number of frames for every codec. For a damaged
    video they describe the frames before the damage, and the second value is `REASON, N of M frames`. Otherwise the
    second value is empty. An image is decoded at full size; a damaged image raises MediaError.
    """
    if media == "image":
        decode_image(path, max_pixels=max_pixels)
        return probe_image(path, max_pixels), ""
    if _is_folder(path):
        return _probe_all_images(os.fspath(path), max_pixels)
    return _probe_all_frames(path, max_pixels)


def _probe_all_frames(path: Source, max_pixels: int) -> tuple[Probe, str]:
    with open_video(path, max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = first_frame(frames, reader)
        shape = Shape.of(first, stream, None, max_pixels)
        shape.rgb(first)  # some pixel formats can be decoded, but not converted to RGB
        shown = [(reader.stamp(frame), frame.duration or 0) for frame in chain([first], frames)]
        damage, stamps = reader.damage, reader.stamps_to_end()
        whole = summary(first, stamps, reader, shape)
        if damage is None:
            decoded = replace(whole, frames=len(shown))
            return decoded, _missing_end(path, decoded, container, max_pixels)
        decoded = replace(summary(first, shown, reader, shape), frames=len(shown))
        return decoded, _partial(damage, decoded.frames, max(whole.frames, stream.frames))


def _missing_end(path: Source, decoded: Probe, container: InputContainer, max_pixels: int) -> str:
    """The damage of a file that is shorter than its header states, for example after a broken copy; otherwise empty.

    The last packet of any stream counts, because sound may go on behind the last picture. Durations count from time 0
    and not from the first frame, as in Matroska.
    """
    if container.duration is None or not kinds(container) & _STATES_DURATION:
        return ""
    stated = container.duration / av.time_base
    enough = stated - max(_SHORTFALL, _SHORTFALL_FRACTION * stated)
    if decoded.start + decoded.duration >= enough or _last_packet(path, max_pixels) >= enough:
        return ""
    return _partial("the file ends early", decoded.frames, f"about {round(stated * decoded.fps)}")


def _last_packet(path: Source, max_pixels: int) -> float:
    """The end of the last packet of any stream, in seconds."""
    end = 0.0
    with open_video(path, max_pixels) as (container, _), suppress(av.FFmpegError):
        for packet in container.demux():
            if packet.size and packet.pts is not None and packet.time_base:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end


def _probe_all_images(path: str, max_pixels: int) -> tuple[Probe, str]:
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


def _partial(damage: object, decoded: int, total: int | str) -> str:
    return f"{damage}, {decoded} of {total} frames"
