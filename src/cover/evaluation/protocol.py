"""Which pixels a number rests on: the views of a video or an image, decoded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cover.datasets.manifest import Media
from cover.media.augment import crop_resize, view_box
from cover.media.clips import Sampling, Views, view_times
from cover.media.decode import decode_at, decode_image


@dataclass(frozen=True)
class ViewPlan:
    """How a file is looked at: `frames` of `size` pixels per clip, taken by `sampling`, in `views`."""

    sampling: Sampling
    views: Views
    frames: int
    size: int


def read_views(
    path: str, media: Media, plans: Sequence[ViewPlan], duration: float = 0.0, start: float = 0.0
) -> tuple[list[np.ndarray], str | None]:
    """The clips of a file under each plan, from one decode; `duration` and `start` in seconds (videos only).

    Returns for each plan uint8 `(temporal x spatial, T, 3, size, size)` (T = 1 for images, which have spatial views alone) and what
    was damaged. Raises `MediaError` where nothing can be read.
    """
    hint = max(plan.size for plan in plans)
    if media == "image":
        pixels = decode_image(path, size_hint=hint)[None]
        return [_crops(pixels, plan) for plan in plans], None
    times = [start + view_times(plan.sampling, plan.frames, duration, plan.views.temporal) for plan in plans]
    decoded = decode_at(path, np.concatenate([t.ravel() for t in times]).tolist(), size_hint=hint)
    clips, place = [], 0
    for plan, plan_times in zip(plans, times, strict=True):
        frames = decoded.frames[place : place + plan_times.size]
        place += plan_times.size
        parts = frames.reshape(*plan_times.shape, *frames.shape[1:])
        clips.append(np.concatenate([_crops(part, plan) for part in parts]))
    return clips, decoded.partial


def _crops(frames: np.ndarray, plan: ViewPlan) -> np.ndarray:
    """uint8 `(T, H, W, 3)` as `(spatial, T, 3, size, size)`."""
    height, width = frames.shape[1:3]
    boxes = (view_box(width, height, crop, plan.views.spatial) for crop in range(plan.views.spatial))
    return np.stack([crop_resize(frames, box, plan.size) for box in boxes])
