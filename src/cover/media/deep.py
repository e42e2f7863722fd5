"""Does every frame of a file decode? The slow sibling of `decode.probe`, which takes a file's packets at their word."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import av
from av.container import InputContainer

from cover.media import frame_folder, video
from cover.media.images import decode_image, probe_image
from cover.media.results import MAX_PIXELS, MediaError, Probe
from cover.media.source import Source, is_plain
from cover.media.stream import Reader, Shape, kinds, open_video, rate

_SAY_HOW_LONG = {"mov", "matroska", "avi"}  # containers whose header has a length; elsewhere it is estimated from what is there
_SHORTFALL, _SHORTFALL_SHARE = 0.5, 0.05  # seconds, and of the length: headers are rounded, and sound is cut in blocks


def probe_deep(path: Source, media: Literal["video", "image"] = "video", *, max_pixels: int = MAX_PIXELS) -> tuple[Probe, str]:
    """Measure a file by decoding all of it. Raises MediaError where it has no frame.

    Of a sound file the measures are those of `decode.probe`, but for the few codecs whose packets do not tell the number of pictures:
    here it is counted. Of a damaged one they are of the frames up to the damage, as many as are ever shown, and the second value says
    so, `partial: REASON, N of M frames`; else it is empty. An image is decoded at full size, and is whole or not at all.
    """
    if media == "image":
        decode_image(path, max_pixels=max_pixels)
        return probe_image(path, max_pixels), ""
    return _folder(os.fspath(path), max_pixels) if is_plain(path) and os.path.isdir(path) else _video(path, max_pixels)


def _video(path: Source, max_pixels: int) -> tuple[Probe, str]:
    with open_video(path, max_pixels) as (container, stream):
        reader = Reader(container, stream)
        frames = iter(reader)
        first = video.first_frame(frames, reader)
        shape = Shape.of(first, stream, None, max_pixels)
        shape.rgb(first)  # some kinds of pixels decode and cannot be shown
        shown = [(first.pts, first.duration or 0), *((frame.pts, frame.duration or 0) for frame in frames)]
        damage, listed = reader.damage, reader.stamps_to_end()
        whole = video.summary(first, listed, rate(stream), shape, stream.codec_context.name)
        if damage is None:
            seen = replace(whole, frames=len(shown))
            return seen, _cut_short(path, seen, container, max_pixels)
        seen = replace(video.summary(first, shown, rate(stream), shape, whole.codec), frames=len(shown))
        return seen, _partial(damage, seen.frames, max(whole.frames, stream.frames))


def _cut_short(path: Source, seen: Probe, container: InputContainer, max_pixels: int) -> str:
    """A file that was not copied to its end reads as one that is shorter than its header says. Sound may well go on behind the last
    picture, so what counts is the last packet of any stream. Matroska counts from time 0, wherever the first frame is."""
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
    whole = frame_folder.probe_folder(path, max_pixels)
    times, files = frame_folder.numbered_images(path)
    for number, file in enumerate(files):
        try:
            decode_image(file, max_pixels=max_pixels)
        except MediaError as error:
            if not number:
                raise MediaError(f"{os.path.basename(file)}: {error}") from error
            seconds = times[number - 1] + 1 / frame_folder.FOLDER_RATE
            why = _partial(f"{os.path.basename(file)}: {error}", number, len(files))
            return replace(whole, frames=number, duration=seconds), why
    return whole, ""


def _partial(damage: str, seen: int, listed: int | str) -> str:
    return f"partial: {damage}, {seen} of {listed} frames"
