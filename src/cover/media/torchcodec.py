"""Video decoding with torchcodec, an option beside PyAV. It can decode on the GPU (NVDEC).

It chooses the same frames as PyAV. PyAV opens every file first, and decodes the files that torchcodec does not handle:
containers other than MP4 and Matroska (torchcodec takes other frames if time stamps are out of order), mirrored or
transparent videos, files that torchcodec cannot decode, and files that were cut short.

Two differences remain. torchcodec hides damage inside a file, while PyAV ends the frames there. And in a stream without
full key frames (intra refresh) torchcodec 0.13 returns wrong pictures after a seek.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn

from cover.errors import UserError, install
from cover.media.selective import SEEKABLE
from cover.media.source import TOLERANCE, Decoded, Source, is_plain, read_source
from cover.media.stream import Reader, Shape, has_alpha, kinds, open_video
from cover.media.video import decode_video, first_frame


def version(device: str) -> str:
    """The version of torchcodec.

    Raises UserError if torchcodec is not installed, does not load, or cannot decode on `device` (cpu or cuda).
    """
    result = str(_torchcodec().__version__)
    if device == "cuda" and (not torch.cuda.is_available() or result.endswith("+cpu")):
        lacks = "torchcodec is a CPU build" if torch.cuda.is_available() else "there is no GPU here"
        raise UserError(f"decoder torchcodec_cuda: {lacks}; decoder torchcodec decodes on the CPU")
    return result


def decode_by_torchcodec(
    path: Source, wanted: Sequence[float], size_hint: int | None, max_pixels: int, device: str
) -> Decoded:
    """`video.decode_video` with torchcodec on `device`, cpu or cuda. The frames come back in host memory."""
    torchcodec = _torchcodec()
    with open_video(path, max_pixels) as (container, stream):
        reader = Reader(container, stream)
        first = first_frame(iter(reader), reader)
        shape = Shape.of(first, stream, size_hint, max_pixels)
        suited = bool(kinds(container) & SEEKABLE) and not shape.mirrored and not has_alpha(first)
        index = stream.index
    if not suited:
        return decode_video(path, wanted, size_hint, max_pixels)
    file = os.fspath(path) if is_plain(path) else read_source(path)
    try:
        decoder = torchcodec.decoders.VideoDecoder(file, stream_index=index, device=device, num_ffmpeg_threads=1)
        if _cut_short(decoder.metadata):
            return decode_video(path, wanted, size_hint, max_pixels)
        frames = _frames(decoder, np.asarray(wanted) + decoder.metadata.begin_stream_seconds + TOLERANCE)
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but no fault of the file
    except (RuntimeError, ValueError, IndexError):
        return decode_video(path, wanted, size_hint, max_pixels)
    width, height = shape.upright
    if frames.shape[2:] != (height, width):
        frames = fn.interpolate(frames, (height, width), mode="bilinear", antialias=True)
    return Decoded(frames.cpu().permute(0, 2, 3, 1).contiguous().numpy(), np.arange(len(frames)), None)


def _frames(decoder: Any, seconds: np.ndarray) -> torch.Tensor:
    """uint8 `(N, 3, H, W)`, the frames at N times. torchcodec refuses times outside the stream; they are replaced."""
    metadata = decoder.metadata
    first, past_end = metadata.begin_stream_seconds, seconds >= metadata.end_stream_seconds
    allowed = np.where(past_end, first, np.maximum(seconds, first))
    frames: torch.Tensor = decoder.get_frames_played_at(allowed.tolist()).data
    if past_end.any():
        frames[torch.from_numpy(past_end)] = decoder.get_frame_at(metadata.num_frames - 1).data
    return frames


def _cut_short(metadata: Any) -> bool:
    """Whether the header states more frames than the file has."""
    return (metadata.num_frames_from_header or 0) > (metadata.num_frames_from_content or 0)


def _torchcodec() -> Any:
    try:
        import torchcodec
        import torchcodec.decoders
    except ImportError:
        raise UserError(f"decoder torchcodec is not installed: {install('torchcodec')}") from None
    except (OSError, RuntimeError) as error:  # the import loads FFmpeg's shared libraries
        raise UserError(
            f"decoder torchcodec does not load ({str(error).splitlines()[0]}): it needs FFmpeg's shared libraries on"
            " the system (Debian: apt install ffmpeg); decoder pyav brings its own"
        ) from None
    return torchcodec
