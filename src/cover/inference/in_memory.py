"""Pictures and clips in memory as inputs of a predictor: NumPy arrays, torch tensors, images of Pillow, and lists."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from av.video.frame import VideoFrame
from PIL import Image

from cover.errors import UserError
from cover.evaluation.protocol import ViewPlan, views_of_frames
from cover.inference.views import FileViews, ViewRequest, read_file, read_files
from cover.media.decode import MediaError
from cover.media.image import picture_of
from cover.media.source import MAX_PIXELS, check_size
from cover.processes import ProcessPool

# A path or URL of a file; or a picture; or a clip, as one array or as a list or an iterator of its frames.
Media = str | os.PathLike[str] | np.ndarray | torch.Tensor | Image.Image | Sequence[Any] | Iterator[Any]
TAKEN = (
    "a predictor takes a path, an image of Pillow, or uint8 RGB pixels: a picture (H, W, 3) or a clip (T, H, W, 3), "
    "with the colours last, or before height and width"
)


def read_media(media: Media, request: ViewRequest, fps: float | None = None) -> FileViews:
    """The views of a whole file, picture or clip. `fps`: frames per second of a clip in memory.

    Raises `UserError` for anything else, and `MediaError` if a file cannot be read.
    """
    (part,) = read_parts(media, request, fps)
    return part


def read_parts(media: Media, request: ViewRequest, fps: float | None = None) -> Iterator[FileViews]:
    """As `read_media`, with the windows of `request`, of which a part has some."""
    if not isinstance(media, str | os.PathLike):
        yield _views_in_memory(frames_of(media), request, fps)
        return
    path = os.fspath(media)
    if not isinstance(path, str):
        raise UserError(f"{path!r}: give the path as a text")
    if request.windows is None:
        yield read_file(path, request)
        return
    for part in read_files([path], request, ProcessPool(0)):
        if part.problem is not None and part.problem.kind == "unreadable":
            raise MediaError(part.problem.reason)
        yield part


def _views_in_memory(frames: np.ndarray, request: ViewRequest, fps: float | None) -> FileViews:
    """The views of frames, uint8 `(T, H, W, 3)`, as one part with all windows."""
    name, count = f"pixels {tuple(frames.shape)}", len(frames)
    if count == 1:
        return FileViews(name, "image", [(0.0, 0.0)], views_of_frames(frames, 1.0, request.plans, None), [])
    if fps is None:
        rates = [_rate_without_fps(count, plan, request) for plan in request.plans]
        parts = [
            views_of_frames(frames, rate, [plan], [(0.0, count / rate)]) for plan, rate in zip(request.plans, rates)
        ]
        clips = [clip for ((clip,),) in parts]
        return FileViews(name, "video", [(0.0, count / rates[0])], [clips], [])
    if not 0 < fps < math.inf:
        raise UserError(f"fps: {fps} is not a number of frames per second")
    spans = request.windows.spans(count / fps) if request.windows else [(0.0, count / fps)]
    return FileViews(name, "video", spans, views_of_frames(frames, fps, request.plans, spans), [])


def _rate_without_fps(count: int, plan: ViewPlan, request: ViewRequest) -> float:
    """A rate with which the views of a clip of `count` frames are the same as with any other.

    Raises `UserError` if they depend on the rate.
    """
    if request.windows:
        raise UserError("fps: windows are in seconds, so give the frames per second of the clip, as in fps=25")
    if plan.sampling.kind != "dense":
        return 1.0
    if count != plan.frames:
        apart = f"{plan.frames} frames, {plan.sampling.interval:.3g} s apart"
        raise UserError(
            f"fps: the network takes {apart}, and the clip has {count}: give the frames per second of the clip, as in "
            f"fps=25, or exactly these {plan.frames}"
        )
    return 1 / plan.sampling.interval  # the only dense clip is the clip itself


def frames_of(media: Any) -> np.ndarray:
    """The frames of a picture or a clip, uint8 `(T, H, W, 3)` RGB; a picture has T = 1. Raises `UserError`.

    A frame may be one of PyAV. An iterator is read to its end; `Predictor.live` is for one without an end.
    """
    if isinstance(media, Image.Image):
        return _checked(picture_of(media)[None])
    if isinstance(media, torch.Tensor):
        return _checked(_pixels(media.detach().cpu().numpy()))
    if isinstance(media, np.ndarray):
        return _checked(_pixels(media))
    if isinstance(media, VideoFrame):
        return _checked(media.to_ndarray(format="rgb24")[None])
    if isinstance(media, Iterator) and not hasattr(media, "read"):  # an open file iterates over its lines
        media = list(media)
    if not isinstance(media, Sequence) or isinstance(media, bytes | bytearray) or not media:
        raise UserError(f"{TAKEN}; not {_name(media)}")
    if isinstance(media[0], str | os.PathLike):
        raise UserError("a list of paths: call the predictor for each of them; a list holds the frames of one clip")
    pictures = [frames_of(each) for each in media]
    shapes = sorted({picture.shape for picture in pictures})
    if len(shapes) > 1 or shapes[0][0] != 1:
        shown = " and ".join(str(shape[1:] if shape[0] == 1 else shape) for shape in shapes[:2])
        raise UserError(f"a list of frames: they must be pictures of one size, not {shown}")
    return np.concatenate(pictures)


def _pixels(array: np.ndarray) -> np.ndarray:
    """Pixels with the colours last, and with an axis of frames. Raises `UserError` for another shape or dtype."""
    shape = "x".join(map(str, array.shape))
    if array.dtype != np.uint8:
        advice = "; multiply by 255 and round" if array.dtype.kind == "f" else ""
        raise UserError(f"pixels of {array.dtype} {shape}: give uint8 from 0 to 255{advice}")
    if array.ndim not in (3, 4):
        raise UserError(f"pixels of shape {shape}: {TAKEN}")
    last, first = array.shape[-1] == 3, array.shape[-3] == 3
    if last == first:
        which = "it is not clear which axis has the colours" if last else "no axis has 3 colours where it should"
        raise UserError(f"pixels of shape {shape}: {which}; {TAKEN}")
    if not array.size:
        raise UserError(f"pixels of shape {shape}: there is no frame, or it has no pixels")
    pixels = array if last else np.moveaxis(array, -3, -1)
    return pixels if pixels.ndim == 4 else pixels[None]


def _checked(frames: np.ndarray) -> np.ndarray:
    try:
        check_size(frames.shape[2], frames.shape[1], MAX_PIXELS)
    except MediaError as error:
        raise UserError(str(error)) from None
    # torch takes only arrays that can be written, and none that go backwards.
    return np.require(frames, requirements=["C", "W"])


def _name(value: Any) -> str:
    return "an empty list" if isinstance(value, Sequence) and not value else f"an object of type {type(value).__name__}"
