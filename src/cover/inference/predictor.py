"""A checkpoint ready for files: the likeliest classes of every head, and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cover.errors import UserError, nearest
from cover.evaluation.protocol import ViewPlan
from cover.hardware import pick_device
from cover.inference.views import FileViews, TimeSpan, ViewRequest, Windows, read_file, read_files
from cover.media.decode import MediaError
from cover.media.sampling import Sampling, Views
from cover.model.cover import CoVeR
from cover.model.release import load_release, release_folder
from cover.processes import ProcessPool


@dataclass(frozen=True)
class Prediction:
    """Probabilities of one head for one file, likeliest first: of a multi-label head each class has its own, and they
    add up to any sum.
    """

    head: str
    classes: tuple[str, ...]
    scores: np.ndarray  # float32 (classes,), in the order of `classes`

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` likeliest classes with their probabilities."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.classes[i], float(self.scores[i])) for i in order]


class Predictions(dict[str, Prediction]):
    """Head -> its prediction for one file, or for the window from `start` to `end` seconds. `partial` says what cut the
    file short.
    """

    partial: str | None = None
    start: float | None = None
    end: float | None = None

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` likeliest classes of the only head. Raises `UserError` where there are several to choose from, or
        none.
        """
        if len(self) != 1:
            raise UserError(
                f'{len(self)} heads have predictions: choose one, as in predictions["{next(iter(self), "head")}"].top()'
            )
        return next(iter(self.values())).top(k)


@dataclass(frozen=True)
class ViewOutputs:
    """Means over one set of views: `scores`, float32 `(classes,)` of each head, and `features`, float32 `(D,)`."""

    scores: dict[str, np.ndarray]
    features: np.ndarray


class Predictor:
    """A model ready for files: each head looks at a video as its own data set, or the first of those, is looked at in
    evaluation.

    Of a model that was not trained here, clips have the frames of its configuration.

    >>> predictor = Predictor.load("runs/cotrain")
    >>> predictor("clip.mp4")["ssv2"].top(3)
    """

    def __init__(self, model: CoVeR, device: torch.device | str = "cpu") -> None:
        self.model, self.device = model.to(device).eval(), torch.device(device)
        self.metadata: dict[str, Any] = {"frames": model.frames, **model.metadata}

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Predictor:
        """From a run, a checkpoint, a release folder or a Hub id (`owner/name`); `device` may be `auto`. Raises
        `UserError`.
        """
        where = pick_device(device) if isinstance(device, str) else device
        return cls(load_release(release_folder(path)), device=where)

    def plan(self, head: str, views: Views | None = None) -> ViewPlan:
        """How `head` looks at a video. Raises `UserError` for a head that the model does not have, or that nothing is
        known of.
        """
        sources = {each.name: each.datasets[0] for each in self.model.head_list}
        if head not in sources:
            raise UserError(f'the checkpoint has no head "{head}"{nearest(head, sources)}')
        try:
            record = self.metadata["datasets"][sources[head]]
            sampling, own = Sampling.parse(record["sampling"]), Views.parse(record["views"])
        except (KeyError, TypeError):
            raise UserError(
                f'the checkpoint does not say how head "{head}" looks at a video: its config.json needs, under metadata.datasets,'
                f' "{sources[head]}": {{"sampling": "segments", "views": "1x3"}} or the like'
            ) from None
        return ViewPlan(sampling, views or own, self.metadata["frames"], self.model.backbone.pixels.size)

    def plans(self, heads: Sequence[str] | None = None, views: Views | None = None) -> dict[str, ViewPlan]:
        """`plan` of each of `heads`, or of all."""
        return {head: self.plan(head, views) for head in heads or [head.name for head in self.model.head_list]}

    def whole(self, views: Views | None = None) -> ViewPlan:
        """How a model without heads looks at a video: evenly over all of it."""
        return ViewPlan(
            Sampling("whole"), views or Views(1, 1), self.metadata["frames"], self.model.backbone.pixels.size
        )

    def __call__(self, path: str | Path, heads: list[str] | None = None, views: Views | None = None) -> Predictions:
        """The predictions of all heads, or of `heads`, for a video or an image. Raises `MediaError` where it cannot be
        read.
        """
        plans = self.plans(heads, views)
        request = ViewRequest(tuple(dict.fromkeys(plans.values())))
        (only,) = self.predictions(read_file(str(path), request), request, plans)
        return only

    def timeline(
        self,
        path: str | Path,
        window: float,
        stride: float | None = None,
        heads: list[str] | None = None,
        views: Views | None = None,
    ) -> list[Predictions]:
        """The predictions for every stretch of `window` seconds of a video, one each `stride` seconds (default:
        `window`), in order.

        Each is looked at as a video of that length. Raises `MediaError` where the file cannot be read.
        """
        plans = self.plans(heads, views)
        request = ViewRequest(tuple(dict.fromkeys(plans.values())), windows=Windows(window, stride or window))
        results: list[Predictions] = []
        for part in read_files([str(path)], request, ProcessPool(0)):
            if part.problem is not None and part.problem.kind == "unreadable":
                raise MediaError(part.problem.reason)
            results += self.predictions(part, request, plans)
        return results

    def features(self, path: str | Path, head: str | None = None, views: Views | None = None) -> np.ndarray:
        """The normalised class token, float32 `(D,)`: the mean over the views of `head` (default: the first). Raises
        `MediaError`.
        """
        named = [head] if head else [each.name for each in self.model.head_list[:1]]
        request = ViewRequest(tuple(self.plans(named, views).values()) if named else (self.whole(views),))
        ((clips,),) = read_file(str(path), request).clips
        return self.run([clips])[0].features

    def predictions(self, part: FileViews, request: ViewRequest, plans: dict[str, ViewPlan]) -> list[Predictions]:
        """Those for each span of what was read of a file."""
        visited = iter(self.run([views for clips in part.clips for views in clips]))
        return [self.named([next(visited) for _ in request.plans], request, plans, part, span) for span in part.spans]

    def named(
        self,
        seen: Sequence[ViewOutputs],
        request: ViewRequest,
        plans: dict[str, ViewPlan],
        part: FileViews,
        span: TimeSpan,
    ) -> Predictions:
        """The outputs for each of the request's plans, given to the heads that use it."""
        classes = {head.name: head.classes for head in self.model.head_list}
        by_plan = dict(zip(request.plans, seen, strict=True))
        result = Predictions(
            {head: Prediction(head, classes[head], by_plan[plan].scores[head]) for head, plan in plans.items()}
        )
        result.partial = part.partial
        if request.windows and part.media == "video":
            result.start, result.end = span[0], span[0] + span[1]
        return result

    @torch.inference_mode()
    def run(self, clips: Sequence[np.ndarray]) -> list[ViewOutputs]:
        """One forward pass over any mix of sets of views, each uint8 `(views, T, 3, size, size)`, images with T = 1.
        None over none.
        """
        if not clips:  # every file of a batch was unreadable
            return []
        order = sorted(range(len(clips)), key=lambda number: -clips[number].shape[1])  # images last
        groups = tuple(
            (sum(len(clips[number]) for number in same), frames)
            for frames, same in groupby(order, key=lambda number: clips[number].shape[1])
        )
        pixels = torch.cat([torch.from_numpy(clips[number]).flatten(0, 1) for number in order]).to(self.device)
        features = self.model.forward_features(self.model.normalize(pixels), groups)
        logits = self.model.forward_head(features)
        shares = {head.name: head.probabilities(logits[head.name]).cpu() for head in self.model.head_list}
        sizes = [len(clips[number]) for number in order]
        means = {name: [part.mean(0).numpy() for part in fraction.split(sizes)] for name, fraction in shares.items()}
        vectors = [part.mean(0).numpy() for part in features.float().cpu().split(sizes)]
        visited = [
            ViewOutputs({name: parts[place] for name, parts in means.items()}, vector)
            for place, vector in enumerate(vectors)
        ]
        back = dict(zip(order, visited, strict=True))
        return [back[number] for number in range(len(clips))]
