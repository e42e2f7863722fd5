"""Which pixels a number rests on: the views of a video or an image, decoded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cover.media.clips import Sampling, Views, view_times
from cover.media.decode import Decoder, decode_at, decode_image
from cover.media.source import Source
from cover.transforms.crop import view_crops

if TYPE_CHECKING:
    from cover.datasets.manifest import Media


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
    (clips,), partial = read_windows(path, media, plans, [(start, duration)], decoder)
    return clips, partial


def read_windows(
    path: Source, media: Media, plans: Sequence[ViewPlan], windows: Sequence[tuple[float, float]], decoder: Decoder = "pyav"
) -> tuple[list[list[np.ndarray]], str | None]:
    """`read_views` of several windows of a video, each `(start, duration)` in seconds, from one decode: one list of clips for each."""
    hint = HINT_SLACK * max(plan.size for plan in plans)
    if media == "image":
        crops = _Crops(decode_image(path, size_hint=hint)[None])
        return [[crops.views(np.zeros((1, 1), np.int64), plan) for plan in plans] for _ in windows], None
    times = [
        [start + view_times(plan.sampling, plan.frames, duration, plan.views.temporal) for plan in plans] for start, duration in windows
    ]
    flat = [instants for window in times for instants in window]
    decoded = decode_at(path, np.concatenate([t.ravel() for t in flat]).tolist(), size_hint=hint, decoder=decoder)
    places = iter(np.split(decoded.shown, np.cumsum([t.size for t in flat])[:-1]))
    crops = _Crops(decoded.pictures)
    return [
        [crops.views(next(places).reshape(instants.shape), plan) for instants, plan in zip(window, plans, strict=True)] for window in times
    ], decoded.partial


class _Crops:
    """The crops of a file's pictures, uint8 `(M, H, W, 3)`: every picture is scaled once, however many views show it."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._pictures = pictures
        self._made: dict[tuple[int, int], list[np.ndarray]] = {}

    def views(self, shown: np.ndarray, plan: ViewPlan) -> np.ndarray:
        """uint8 `(temporal x spatial, T, 3, size, size)`. `shown`: int64 `(temporal, T)`, places of pictures."""
        key = plan.size, plan.views.spatial
        if key not in self._made:
            self._made[key] = view_crops(self._pictures, *key)
        crops, spatial = self._made[key], plan.views.spatial
        views = np.empty((len(shown), spatial, shown.shape[1], *crops[0].shape[1:]), np.uint8)
        for (temporal, number), place in np.ndenumerate(shown):
            for crop, view in zip(crops, views[temporal, :, number], strict=True):
                view[...] = crop[place]
        return views.reshape(-1, *views.shape[2:])
