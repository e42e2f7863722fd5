"""The evaluation protocol: the split of a data set, the views of each sample, and the head that scores it.

A video is opened and decoded once for all its views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cover.datasets.catalog import Catalog, DatasetSpec
from cover.datasets.changes import renew
from cover.datasets.manifest import ClassList, Manifest
from cover.errors import UserError, nearest
from cover.media.decode import Decoder, decode_at, decode_image
from cover.media.sampling import Sampling, Views, view_times
from cover.media.source import TOLERANCE, Source
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.transforms.crop import crop_corners, short_side_scaled, view_crops

if TYPE_CHECKING:
    from cover.media.source import Media


@dataclass(frozen=True)
class ViewPlan:
    """The views of a file: clips of `frames` frames of `size` x `size` pixels, chosen by `sampling` and `views`."""

    sampling: Sampling
    views: Views
    frames: int
    size: int


HINT_SLACK = 2  # frames are decoded at up to this many times the size of the crop


def read_views(
    path: Source,
    media: Media,
    plans: Sequence[ViewPlan],
    duration: float = 0.0,
    start: float = 0.0,
    decoder: Decoder = "pyav",
) -> tuple[list[np.ndarray], str | None]:
    """The clips of a file for each plan. The file is decoded once.

    `duration`, `start`: the segment of a video in seconds. Returns for each plan uint8 `(temporal x spatial, T, 3,
    size, size)`, and the damage of the file or None. Images have T = 1 and spatial views only. Raises `MediaError` if
    the file cannot be read.
    """
    (clips,), partial = read_windows(path, media, plans, [(start, duration)], decoder)
    return clips, partial


def read_scaled(
    path: Source, media: Media, plan: ViewPlan, duration: float = 0.0, start: float = 0.0, decoder: Decoder = "pyav"
) -> tuple[ScaledViews, str | None]:
    """As `read_views` for one plan, without a copy of the pixels for each view."""
    hint = HINT_SLACK * plan.size
    if media == "image":
        return ScaledViews.of(decode_image(path, size_hint=hint)[None], np.zeros((1, 1), np.int64), plan), None
    ((times,),) = _times([plan], [(start, duration)])
    decoded = decode_at(path, times.ravel().tolist(), size_hint=hint, decoder=decoder)
    return ScaledViews.of(decoded.pictures, np.reshape(decoded.shown, times.shape), plan), decoded.partial


def read_windows(
    path: Source,
    media: Media,
    plans: Sequence[ViewPlan],
    windows: Sequence[tuple[float, float]],
    decoder: Decoder = "pyav",
) -> tuple[list[list[np.ndarray]], str | None]:
    """`read_views` for several windows of a video, each `(start, duration)` in seconds. The video is decoded once.

    Returns one list of clips per window, and the damage of the file or None.
    """
    hint = HINT_SLACK * max(plan.size for plan in plans)
    if media == "image":
        crops = _Crops(decode_image(path, size_hint=hint)[None])
        return [[crops.views(np.zeros((1, 1), np.int64), plan) for plan in plans] for _ in windows], None
    times = _times(plans, windows)
    wanted = np.concatenate([view.ravel() for window in times for view in window]).tolist()
    decoded = decode_at(path, wanted, size_hint=hint, decoder=decoder)
    return _cut(decoded.pictures, decoded.shown, times, plans), decoded.partial


def views_of_frames(
    pictures: np.ndarray, fps: float, plans: Sequence[ViewPlan], windows: Sequence[tuple[float, float]] | None
) -> list[list[np.ndarray]]:
    """`read_windows` for a video in memory, uint8 `(M, H, W, 3)`, of `fps` frames per second.

    `windows` None: one picture, M = 1, of which there are spatial views only.
    """
    if windows is None:
        return [[_Crops(pictures).views(np.zeros((1, 1), np.int64), plan) for plan in plans]]
    times = _times(plans, windows)
    wanted = np.concatenate([view.ravel() for window in times for view in window])
    shown = np.floor((wanted + TOLERANCE) * fps).astype(np.int64).clip(0, len(pictures) - 1)
    return _cut(pictures, shown, times, plans)


def views_of_stamped_frames(
    pictures: Sequence[np.ndarray], stamps: Sequence[float], plan: ViewPlan, window: tuple[float, float]
) -> np.ndarray:
    """The clips of one window of a video in memory: uint8 `(temporal x spatial, T, 3, size, size)`.

    `pictures`: frames of one size, uint8 `(H, W, 3)`. `stamps`: their ascending times in seconds. Only the frames that
    a clip shows are scaled.
    """
    ((times,),) = _times([plan], [window])
    shown = (np.searchsorted(np.asarray(stamps), times.ravel() + TOLERANCE, "right") - 1).clip(0)
    used, places = np.unique(shown, return_inverse=True)
    return _Crops(np.stack([pictures[number] for number in used])).views(places.reshape(times.shape), plan)


def _times(plans: Sequence[ViewPlan], windows: Sequence[tuple[float, float]]) -> list[list[np.ndarray]]:
    """For each window and plan the times of the frames of its views, float64 `(temporal, T)`, in seconds."""
    return [
        [start + view_times(plan.sampling, plan.frames, duration, plan.views.temporal) for plan in plans]
        for start, duration in windows
    ]


def _cut(
    pictures: np.ndarray, shown: np.ndarray, times: list[list[np.ndarray]], plans: Sequence[ViewPlan]
) -> list[list[np.ndarray]]:
    """For each window and plan its clips. `shown`: the index of the picture at each of `times`, in one row."""
    sizes = [view.size for window in times for view in window]
    places = iter(np.split(shown, np.cumsum(sizes)[:-1]))  # one part for each window and plan
    crops = _Crops(pictures)
    return [
        [crops.views(next(places).reshape(view.shape), plan) for view, plan in zip(window, plans, strict=True)]
        for window in times
    ]


class _Crops:
    """The crops of a file's pictures, uint8 `(M, H, W, 3)`. A picture is scaled once for all views that show it."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._pictures = pictures
        self._made: dict[tuple[int, int], list[np.ndarray]] = {}

    def views(self, shown: np.ndarray, plan: ViewPlan) -> np.ndarray:
        """uint8 `(temporal x spatial, T, 3, size, size)`. `shown`: int64 `(temporal, T)`, indices of pictures."""
        key = plan.size, plan.views.spatial
        if key not in self._made:
            self._made[key] = view_crops(self._pictures, *key)
        crops, spatial = self._made[key], plan.views.spatial
        views = np.empty((len(shown), spatial, shown.shape[1], *crops[0].shape[1:]), np.uint8)
        for (temporal, number), place in np.ndenumerate(shown):
            for crop, view in zip(crops, views[temporal, :, number], strict=True):
                view[...] = crop[place]
        return views.reshape(-1, *views.shape[2:])


@dataclass(frozen=True)
class ScaledViews:
    """The V views of a file as places in its scaled frames, which are in memory once.

    `frames`: uint8 `(M, h, w, 3)`, with a short side of `size`. `shown`: int64 `(V, T)`, the frames of each view.
    `corners`: top and left of the spatial views, which take turns.
    """

    frames: np.ndarray
    shown: np.ndarray
    corners: Sequence[tuple[int, int]]
    size: int

    @classmethod
    def of(cls, pictures: np.ndarray, shown: np.ndarray, plan: ViewPlan) -> ScaledViews:
        """The views of `pictures`, uint8 `(M, H, W, 3)`. `shown`: int64 `(temporal, T)`, indices of pictures."""
        scaled, spatial = short_side_scaled(pictures, plan.size).permute(0, 2, 3, 1).numpy(), plan.views.spatial
        corners = crop_corners((scaled.shape[1], scaled.shape[2]), plan.size, spatial)
        return cls(scaled, np.repeat(shown, spatial, axis=0), corners, plan.size)

    def clips(self, prepare: Callable[[Tensor], Tensor]) -> Tensor:
        """The views `(V, T, 3, size, size)`, of frames that `prepare` has put on their device and normalised."""
        frames = prepare(torch.from_numpy(self.frames).permute(0, 3, 1, 2))
        shown, spatial = torch.from_numpy(self.shown), len(self.corners)
        shape = *self.shown.shape, 3, self.size, self.size
        clips = torch.empty(shape, dtype=frames.dtype, device=frames.device)
        for number, (top, left) in enumerate(self.corners):
            crop = frames[:, :, top : top + self.size, left : left + self.size]
            clips[number::spatial] = crop[shown[number::spatial].to(frames.device)]
        return clips


@dataclass(frozen=True)
class EvaluationTask:
    """One data set to evaluate: its manifest, its views and its head.

    `classes`: the evaluated classes, in the order of the data set. They are all its classes, or those that the head of
    another data set has too.
    `columns`: int64 `(classes,)`, the columns of these classes in the head. On a shared head a data set uses only its
    own classes, so its accuracy can be compared with that of a head of its own.
    `relabel`: int64 `(manifest classes,)`, the index of each class in `classes`, -1 for classes that are not evaluated.
    `renew`: how the manifest is written anew, for messages.
    """

    spec: DatasetSpec
    manifest: Manifest
    views: Views
    frames: int
    head: Head
    classes: tuple[str, ...]
    columns: Tensor
    relabel: np.ndarray
    decoder: Decoder = "pyav"
    renew: str = "run cover index"

    @property
    def mapped(self) -> bool:
        """Whether the head is that of another data set, used for the class names that both have."""
        return len(self.classes) < len(self.manifest.classes.names) or self.spec.name not in self.head.datasets

    @property
    def clip_frames(self) -> int:
        """Frames of one view; 1 for images."""
        return self.frames if self.manifest.media == "video" else 1

    @property
    def view_count(self) -> int:
        """Views of one sample. Images have spatial views only."""
        return (self.views.temporal if self.manifest.media == "video" else 1) * self.views.spatial

    def plan(self, size: int) -> ViewPlan:
        """The views of the files, with frames of `size` pixels."""
        return ViewPlan(self.spec.sampling, self.views, self.frames, size)

    def evaluated(self, rows: np.ndarray) -> np.ndarray:
        """The rows, of the manifest rows `rows`, whose class is evaluated."""
        return rows if self.manifest.classes.many else rows[self.relabel[self.manifest.labels[rows]] >= 0]


def find_tasks(
    catalog: Catalog,
    model: CoVeR,
    frames: int,
    split: str,
    names: Sequence[str] = (),
    views: Views | None = None,
    decoder: Decoder = "pyav",
    other_heads: Mapping[str, str] | None = None,
) -> list[EvaluationTask]:
    """The tasks for the data sets `names`; by default for all data sets of the catalog that `model` has a head for.

    `other_heads`: data set -> head of another data set that scores it, for the class names that both have. Raises
    `UserError` if heads and classes do not match.
    """
    other_heads = other_heads or {}
    heads = {name: head for head in model.head_list for name in head.datasets}
    by_name = {head.name: head for head in model.head_list}
    tasks = []
    chosen = names or [name for name in heads if name in catalog.specs]
    for name in [*chosen, *(name for name in other_heads if name not in names)]:
        spec, wanted = catalog.spec(name), other_heads.get(name)
        if wanted is not None and wanted not in by_name:
            raise UserError(f'the checkpoint has no head "{wanted}"{nearest(wanted, by_name)}')
        if wanted is None and name not in heads:
            raise UserError(f'the checkpoint has no head "{name}"; its heads: {", ".join(heads)}')
        manifest = catalog.manifest(name, split)
        head = by_name[wanted] if wanted else heads[name]
        classes, columns, relabel = _head_by_names(head, manifest) if wanted else _own_head(head, manifest)
        task_views = views or spec.views
        scored_by = (head, classes, columns, relabel)
        tasks.append(EvaluationTask(spec, manifest, task_views, frames, *scored_by, decoder, renew(catalog, name)))
    if not tasks:
        raise UserError(f"{catalog.path.name} has none of the checkpoint's heads: {', '.join(heads)}")
    return tasks


def _own_head(head: Head, manifest: Manifest) -> tuple[tuple[str, ...], Tensor, np.ndarray]:
    """`classes`, `columns` and `relabel` for a data set that the head was trained on.

    Raises `UserError` if the class lists do not match.
    """
    ours, file = manifest.classes, manifest.path.name
    _check_kind(head, manifest)
    if len(head.datasets) == 1 and ours.names != head.classes:
        digest = ClassList.of(head.classes, "checkpoint").digest
        raise UserError(f'head "{head.name}" was trained on class list {digest}, but {file} has {ours.digest}')
    unknown = [name for name in ours.names if name not in set(head.classes)]
    if unknown:
        raise UserError(f'head "{head.name}" lacks {len(unknown)} classes of {file}, the first: "{unknown[0]}"')
    return ours.names, torch.tensor(head.places(ours.names)), np.arange(len(ours.names))


def _head_by_names(head: Head, manifest: Manifest) -> tuple[tuple[str, ...], Tensor, np.ndarray]:
    """`classes`, `columns` and `relabel` for the class names that a head and another data set have in common.

    Case and underscores are ignored. Raises `UserError` if there are fewer than two common names.
    """
    ours, file = manifest.classes, manifest.path.name
    _check_kind(head, manifest)
    if ours.many:
        raise UserError(f"{file}: a class map by name is for sets of one class a sample")
    places = {normalized_class(name): place for place, name in enumerate(head.classes)}
    shared = [name for name in ours.names if normalized_class(name) in places]
    if len(shared) < 2:
        count = f"{len(shared)} of the {len(ours.names)} class names of {file}"
        raise UserError(f'head "{head.name}" has {count}; two or more are needed')
    relabel = np.full(len(ours.names), -1)
    relabel[[ours.names.index(name) for name in shared]] = np.arange(len(shared))
    return tuple(shared), torch.tensor([places[normalized_class(name)] for name in shared]), relabel


def _check_kind(head: Head, manifest: Manifest) -> None:
    if manifest.classes.many != (head.loss == "sigmoid"):
        theirs, there = ("any number of classes", "one") if head.loss == "sigmoid" else ("one class", "any number")
        raise UserError(
            f'head "{head.name}" was trained on samples of {theirs}, but {manifest.path.name} has {there} for each'
        )


def normalized_class(name: str) -> str:
    """A class name without the differences of case and underscores between data sets."""
    return name.replace("_", " ").casefold()
