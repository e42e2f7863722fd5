"""Which pixels a number rests on: the views of a video or an image, decoded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cover.datasets.manifest import Media
from cover.media.augment import view_crops
from cover.media.clips import Sampling, Views, view_times
from cover.media.decode import Decoder, decode_at, decode_image
from cover.media.source import Source


@dataclass(frozen=True)
class ViewPlan:
    """How a file is looked at: `frames` of `size` pixels per clip, taken by `sampling`, in `views`."""

    sampling: Sampling
    views: Views
    frames: int
    size: int


HINT_SLACK = 2  # frames come no larger than this many times what the crop needs


def read_views(
    path: Source, media: Media, plans: Sequence[ViewPlan], duration: float = 0.0, start: float = 0.0, decoder: Decoder = "pyav"
) -> tuple[list[np.ndarray], str | None]:
    """The clips of a file under each plan, from one decode; `duration` and `start` in seconds (videos only).

    Returns for each plan uint8 `(temporal x spatial, T, 3, size, size)` (T = 1 for images, which have spatial views alone) and what
    was damaged. Raises `MediaError` where nothing can be read.
    """
    hint = HINT_SLACK * max(plan.size for plan in plans)
    if media == "image":
        pixels = decode_image(path, size_hint=hint)[None]
        return [_views(pixels, np.zeros((1, 1), np.int64), plan) for plan in plans], None
    times = [start + view_times(plan.sampling, plan.frames, duration, plan.views.temporal) for plan in plans]
    decoded = decode_at(path, np.concatenate([t.ravel() for t in times]).tolist(), size_hint=hint, decoder=decoder)
    ends = np.cumsum([t.size for t in times])
    shown = [part.reshape(t.shape) for part, t in zip(np.split(decoded.shown, ends[:-1]), times, strict=True)]
    return [_views(decoded.pictures, part, plan) for part, plan in zip(shown, plans, strict=True)], decoded.partial


def _views(pictures: np.ndarray, shown: np.ndarray, plan: ViewPlan) -> np.ndarray:
    """uint8 `(temporal x spatial, T, 3, size, size)`: every picture is scaled once. `shown`: int64 `(temporal, T)`, places of pictures."""
    crops, spatial = view_crops(pictures, plan.size, plan.views.spatial), plan.views.spatial
    views = np.empty((len(shown), spatial, shown.shape[1], *crops[0].shape[1:]), np.uint8)
    for (temporal, number), place in np.ndenumerate(shown):
        for crop, view in zip(crops, views[temporal, :, number], strict=True):
            view[...] = crop[place]
    return views.reshape(-1, *views.shape[2:])
