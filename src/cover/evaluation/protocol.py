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
        return [view_crops(pixels, plan.size, plan.views.spatial) for plan in plans], None
    times = [start + view_times(plan.sampling, plan.frames, duration, plan.views.temporal) for plan in plans]
    decoded = decode_at(path, np.concatenate([t.ravel() for t in times]).tolist(), size_hint=hint, decoder=decoder)
    clips, place = [], 0
    for plan, plan_times in zip(plans, times, strict=True):
        frames = decoded.frames[place : place + plan_times.size]
        place += plan_times.size
        crops = view_crops(frames, plan.size, plan.views.spatial)
        crops = crops.reshape(len(crops), *plan_times.shape, *crops.shape[2:])
        clips.append(crops.swapaxes(0, 1).reshape(-1, *crops.shape[2:]))
    return clips, decoded.partial
