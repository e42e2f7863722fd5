"""The predictor: a checkpoint that predicts the classes of files and computes their features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cover.errors import UserError, nearest
from cover.evaluation.protocol import ViewPlan
from cover.hardware import pick_device
from cover.inference.in_memory import Media, read_media, read_parts
from cover.inference.views import WINDOW_S, FileViews, TimeSpan, ViewRequest, Windows, window_of
from cover.media.decode import MediaError
from cover.media.sampling import Sampling, Views
from cover.model.backbone import Groups
from cover.model.cover import CoVeR
from cover.model.heads import NOT_FINITE
from cover.model.release import find_release, load_release
from cover.model.text import PROMPT, with_classes

if TYPE_CHECKING:
    from cover.inference.engines import Engine, EngineGraphs


@dataclass(frozen=True)
class Prediction:
    """The probabilities of one head for one file. Those of a multi-label head need not sum to 1."""

    head: str
    classes: tuple[str, ...]
    scores: np.ndarray  # float32 (classes,), in the order of `classes`

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most likely classes with their probabilities, the most likely first."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.classes[i], float(self.scores[i])) for i in order]


class Predictions(dict[str, Prediction]):
    """The predictions of all heads, by name, for one file or for its window from `start` to `end` seconds.

    `partial` says why the file could not be read to its end; None if it could.
    """

    partial: str | None = None
    start: float | None = None
    end: float | None = None

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` most likely classes of the only head. Raises `UserError` if there are several heads, or none."""
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

    def checked(self) -> ViewOutputs:
        """The outputs themselves. Raises `MediaError` if one of them is not finite, as with weights of a huge scale."""
        if not all(np.isfinite(values).all() for values in (self.features, *self.scores.values())):
            raise MediaError(NOT_FINITE)
        return self


class Predictor:
    """A model that predicts files.

    The views of a head are those of its data set in evaluation. If a head has several data sets, the first counts. A
    clip has as many frames as in training, or as the model's configuration says.

    >>> predictor = Predictor.load("runs/cotrain")
    >>> predictor("clip.mp4")["ssv2"].top(3)
    """

    def __init__(self, model: CoVeR, device: torch.device | str = "cpu") -> None:
        self.model, self.device = model.to(device).eval(), torch.device(device)
        self.metadata: dict[str, Any] = {"frames": model.frames, **model.metadata}
        self.graphs: EngineGraphs | None = None  # of an engine other than `eager`

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: torch.device | str = "cpu",
        engine: Engine = "eager",
        classes: Sequence[str] = (),
        prompt: str | None = None,
    ) -> Predictor:
        """Load the folder of a run, a checkpoint or a release, or a Hub id (`owner/name`). `device` may be `auto`.

        `engine`: what computes the network (`cover.inference.engines`). `classes`: with names, the only head is
        `classes`, made of them by the text network of a CLIP or SigLIP 2; `prompt` is the text of a class, with `{}`
        where its name goes. Raises `UserError`.
        """
        torch_device = pick_device(device) if isinstance(device, str) else device
        folder = find_release(path)
        model = load_release(folder)
        if classes:
            model = with_classes(model, folder, classes, prompt or PROMPT)
        predictor = cls(model, device=torch_device)
        if engine != "eager":
            from cover.inference.engines import EngineGraphs

            predictor.graphs = EngineGraphs(engine, predictor.model, folder)
        return predictor

    @property
    def engine(self) -> Engine:
        """What computes the network."""
        return self.graphs.kind if self.graphs else "eager"

    def pack_features(self, pixels: Tensor, groups: Groups) -> Tensor:
        """The features `(S, D)` of a Pack. `pixels`: uint8 `(F, 3, size, size)`, on the CPU; see `CoVeR.forward`."""
        pixels = pixels.to(self.device)
        if self.graphs:
            return self.graphs(pixels, groups)
        return self.model.forward_features(self.model.normalize(pixels), groups)

    def plan(self, head: str, views: Views | None = None) -> ViewPlan:
        """The views of a video for `head`. `views` replaces the number of views of its data set.

        Raises `UserError` if the model does not have the head, or does not hold the sampling and views of its data set.
        """
        sources = {each.name: each.datasets[0] for each in self.model.head_list}
        if head not in sources:
            raise UserError(f'the checkpoint has no head "{head}"{nearest(head, sources)}')
        try:
            record = self.metadata["datasets"][sources[head]]
            sampling, own = Sampling.parse(record["sampling"]), Views.parse(record["views"])
        except (KeyError, TypeError):
            raise UserError(
                f'the checkpoint does not say which views head "{head}" needs: its config.json needs, under'
                f' metadata.datasets, an entry such as "{sources[head]}": {{"sampling": "segments", "views": "1x3"}}'
            ) from None
        return ViewPlan(sampling, views or own, self.metadata["frames"], self.model.backbone.pixels.size)

    def plans(self, heads: Sequence[str] | None = None, views: Views | None = None) -> dict[str, ViewPlan]:
        """The `plan` of each of `heads`, by default of `CoVeR.default_heads`."""
        return {head: self.plan(head, views) for head in heads or [head.name for head in self.model.default_heads]}

    def window(self, head: str) -> float:
        """The seconds of video that a clip of `head` spans in training (`window_of`). Raises `UserError` as `plan`."""
        plan = self.plan(head)
        (sets,) = (each.datasets for each in self.model.head_list if each.name == head)
        return window_of(plan, self.metadata["datasets"][sets[0]].get("seconds", WINDOW_S))

    def whole(self, views: Views | None = None) -> ViewPlan:
        """The views of a video for a model without heads: frames at equal intervals over the whole video."""
        size = self.model.backbone.pixels.size
        return ViewPlan(Sampling("whole"), views or Views(1, 1), self.metadata["frames"], size)

    def __call__(
        self, media: Media, heads: list[str] | None = None, views: Views | None = None, *, fps: float | None = None
    ) -> Predictions:
        """The predictions of `heads` for a video or an image, by default of `CoVeR.default_heads`.

        `media`: a path or URL, an image of Pillow, or pixels in memory: uint8 RGB, an array or a tensor, a picture
        `(H, W, 3)` or a clip `(T, H, W, 3)`, also with the colours before height and width, or a list of the frames of
        a clip. `fps`: frames per second of a clip in memory. A clip of as many frames as the network takes, and a head
        whose clips are equal parts of a video (`segments`, `whole`), do not need it.

        Raises `UserError` if the media is none of these, and `MediaError` if a file cannot be read, or if the scores
        are not finite.
        """
        plans = self.plans(heads, views)
        request = ViewRequest(tuple(dict.fromkeys(plans.values())))
        (only,) = self.predictions(read_media(media, request, fps), request, plans)
        return only

    def timeline(
        self,
        media: Media,
        window: float,
        stride: float | None = None,
        heads: list[str] | None = None,
        views: Views | None = None,
        *,
        fps: float | None = None,
    ) -> list[Predictions]:
        """The predictions for windows of `window` seconds of a video, in order.

        A window starts every `stride` seconds (default: `window`). It is treated as a video of its length. `media` and
        `fps`: as in a call; a clip in memory needs `fps`. Raises as a call.
        """
        plans = self.plans(heads, views)
        request = ViewRequest(tuple(dict.fromkeys(plans.values())), windows=Windows(window, stride or window))
        parts = read_parts(media, request, fps)
        return [result for part in parts for result in self.predictions(part, request, plans)]

    def live(
        self,
        frames: Iterable[tuple[float, Any]],
        stride: float = 1.0,
        window: float | None = None,
        heads: list[str] | None = None,
        views: Views | None = None,
    ) -> Iterator[Predictions]:
        """The predictions for a video while its frames arrive: one every `stride` seconds, and one at the end.

        `frames`: pairs of a time in seconds, never earlier than the one before, and a picture as in a call, all of one
        size. `window`: the seconds before a prediction that it rests on, its `start` and `end`, counted from the first
        frame. By default the seconds that a clip of the head spans (`Predictor.window`). A stream network reads every
        frame once, at its own rate, and rests on half of a window or more. `cover.media.live.LiveSource` gives
        the frames of a camera or an address.

        Raises `UserError` for other frames, and `MediaError` if scores are not finite.
        """
        from cover.inference.live import live_predictions

        return live_predictions(self, frames, self.plans(heads, views), stride, window)

    def features(
        self, media: Media, head: str | None = None, views: Views | None = None, *, fps: float | None = None
    ) -> np.ndarray:
        """The backbone's features of a file, float32 `(D,)`: the mean over the views of `head` (default: the first
        of `CoVeR.default_heads`).

        `media` and `fps`: as in a call. Raises as a call.
        """
        heads = [head] if head else [each.name for each in self.model.default_heads[:1]]
        request = ViewRequest(tuple(self.plans(heads, views).values()) if heads else (self.whole(views),))
        ((clips,),) = read_media(media, request, fps).clips
        return self.run([clips])[0].checked().features

    def predictions(self, part: FileViews, request: ViewRequest, plans: dict[str, ViewPlan]) -> list[Predictions]:
        """The predictions for each span of the views of a file."""
        outputs = iter(self.run([views for clips in part.clips for views in clips]))
        return [self.by_head([next(outputs) for _ in request.plans], request, plans, part, span) for span in part.spans]

    def by_head(
        self,
        outputs: Sequence[ViewOutputs],
        request: ViewRequest,
        plans: dict[str, ViewPlan],
        part: FileViews,
        span: TimeSpan,
    ) -> Predictions:
        """The predictions of each head for one span, from `outputs`, one for each plan of `request`.

        Raises `MediaError` if they are not finite.
        """
        classes = {head.name: head.classes for head in self.model.head_list}
        of_plan = dict(zip(request.plans, (output.checked() for output in outputs), strict=True))
        result = Predictions(
            {head: Prediction(head, classes[head], of_plan[plan].scores[head]) for head, plan in plans.items()}
        )
        result.partial = part.partial
        if request.windows and part.media == "video":
            result.start, result.end = span[0], span[0] + span[1]
        return result

    @torch.inference_mode()
    def run(self, clips: Sequence[np.ndarray]) -> list[ViewOutputs]:
        """One forward pass over sets of views, each uint8 `(views, T, 3, size, size)`, where an image has T = 1.

        Returns the outputs of each set. An empty list gives an empty list, without a forward pass.
        """
        if not clips:  # every file of a batch was unreadable
            return []
        order = sorted(range(len(clips)), key=lambda number: -clips[number].shape[1])  # images last
        groups = tuple(
            (sum(len(clips[number]) for number in same), frames)
            for frames, same in groupby(order, key=lambda number: clips[number].shape[1])
        )
        pixels = torch.cat([torch.from_numpy(clips[number]).flatten(0, 1) for number in order])
        features = self.pack_features(pixels, groups)  # (sum of views, D)
        logits = self.model.forward_head(features)
        probabilities = {head.name: head.probabilities(logits[head.name]).cpu() for head in self.model.head_list}
        sizes = [len(clips[number]) for number in order]
        # for each head a list over the sets, in `order`: float32 (classes,)
        means = {name: [part.mean(0).numpy() for part in rows.split(sizes)] for name, rows in probabilities.items()}
        vectors = [part.mean(0).numpy() for part in features.float().cpu().split(sizes)]
        outputs = {}
        for place, number in enumerate(order):
            outputs[number] = ViewOutputs({name: parts[place] for name, parts in means.items()}, vectors[place])
        return [outputs[number] for number in range(len(clips))]
