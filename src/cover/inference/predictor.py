"""What a checkpoint sees in a file: the likeliest classes of every head."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cover.console import write_json
from cover.datasets.files import media_of
from cover.datasets.manifest import Media
from cover.errors import UserError, nearest
from cover.evaluation.protocol import ViewPlan, read_views
from cover.media.clips import Sampling, Views
from cover.media.decode import MediaError, probe
from cover.model.device import pick_device
from cover.model.timesformer import TimeSformer
from cover.model.weights import find_release, load_release


@dataclass(frozen=True)
class Prediction:
    """Probabilities of one head for one file, likeliest first: of a multi-label head each class has its own, and they add up to any sum."""

    head: str
    classes: tuple[str, ...]
    scores: np.ndarray  # float32 (classes,), in the order of `classes`

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The `k` likeliest classes with their probabilities."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.classes[i], float(self.scores[i])) for i in order]


class Predictor:
    """A model ready for files: each head looks at a video as its own data set, or the first of those, is looked at in evaluation.

    >>> predictor = Predictor.load("runs/cotrain")
    >>> predictor("clip.mp4")["ssv2"].top(3)
    """

    def __init__(self, model: TimeSformer, about: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.model, self.about, self.device = model.to(device).eval(), about, device

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Predictor:
        """From a run, a checkpoint or a release folder. Raises `UserError`."""
        return cls(*load_release(find_release(path)), device=device)

    def plan(self, head: str, views: Views | None = None) -> ViewPlan:
        """How `head` looks at a video. Raises `UserError` for a head that the model does not have."""
        sets = self.about["datasets"]
        known = {each.name: sets[each.datasets[0]] for each in self.model.head_list if each.datasets[0] in sets}
        if head not in known:
            raise UserError(f'the checkpoint has no head "{head}"{nearest(head, known)}')
        sampling, own = known[head]["sampling"], Views.parse(known[head]["views"])
        return ViewPlan(Sampling.parse(sampling), views or own, self.about["frames"], self.model.config.size)

    def __call__(self, path: str | Path, heads: list[str] | None = None, views: Views | None = None) -> dict[str, Prediction]:
        """The predictions of all heads, or of `heads`, for a video or an image. Raises `MediaError` where it cannot be read."""
        named = heads or [head.name for head in self.model.head_list]
        plans = {head: self.plan(head, views) for head in named}
        clips = self._clips(str(path), list(dict.fromkeys(plans.values())))
        scores = {plan: self._scores(pixels) for plan, pixels in clips.items()}
        classes = {head.name: head.classes for head in self.model.head_list}
        return {head: Prediction(head, classes[head], scores[plan][head]) for head, plan in plans.items()}

    def _clips(self, path: str, plans: list[ViewPlan]) -> dict[ViewPlan, np.ndarray]:
        media = kind_of(path)
        found = probe(path, media)
        seconds = found.frames / found.fps if found.fps else 0.0  # a manifest's own measure, also where the rate changes
        return dict(zip(plans, read_views(path, media, plans, seconds)[0], strict=True))

    @torch.inference_mode()
    def _scores(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        pixels = torch.from_numpy(clips).to(self.device).flatten(0, 1)
        logits = self.model(self.model.normalize(pixels), (clips.shape[:2],))
        return {head.name: head.probabilities(logits[head.name]).mean(0).cpu().numpy() for head in self.model.head_list}


def kind_of(path: str) -> Media:
    """Whether a file is a video or an image, by its ending; of an unknown ending, by whether it opens as an image."""
    media = media_of(path)
    if media is None:
        try:
            probe(path, "image")
            return "image"
        except MediaError:
            return "video"
    return media


def predict_files(
    checkpoint: Path, files: Sequence[str], k: int, heads: list[str] | None, views: str | None, json_target: str | None, device: str
) -> int:
    """Print the `k` likeliest classes of every head for every file; a file that cannot be read is one line on stderr.

    Returns how many files could not be read. Raises `UserError` for a wrong checkpoint, head or views.
    """
    predictor = Predictor.load(checkpoint, pick_device(device))
    if not predictor.model.head_list:
        raise UserError(f"{checkpoint}: has no head, so there is nothing to predict; train one with start.checkpoint={checkpoint}")
    plan = Views.parse(views) if views else None
    for head in heads or []:
        predictor.plan(head)
    results: list[dict[str, Any]] = []
    failed = 0
    for file in files:
        try:
            found = predictor(file, heads, plan)
        except MediaError as error:
            failed += 1
            results.append({"file": file, "error": str(error)})
            print(f"{file}: unreadable: {error}", file=sys.stderr)
            continue
        tops = {head: prediction.top(k) for head, prediction in found.items()}
        results.append({"file": file, "heads": tops})
        if json_target != "-":
            print("\n".join(_lines(file, tops)))
    if json_target:
        write_json(results, json_target)
    return failed


def _lines(file: str, tops: dict[str, list[tuple[str, float]]]) -> list[str]:
    lines = [file]
    for head, top in tops.items():
        lines += [f"  {head if not place else '':<12} {share:6.1%}  {name}" for place, (name, share) in enumerate(top)]
    return lines
