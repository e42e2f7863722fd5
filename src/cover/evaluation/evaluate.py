"""How good is a model on a split: every readable sample once, nothing dropped, padded or replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cover.console import Meter
from cover.datasets.catalog import load_catalog
from cover.evaluation.metrics import MeanAveragePrecision, TopK
from cover.evaluation.outcomes import Outcomes
from cover.evaluation.protocol import ViewPlan
from cover.evaluation.reading import Variant, batches, varied
from cover.evaluation.scorefile import ScoreFile
from cover.evaluation.tasks import Task, find_tasks
from cover.media.clips import Views
from cover.media.decode import Decoder, FileProblem, check_decoder
from cover.model.cover import CoVeR
from cover.model.device import pick_device
from cover.model.release import find_release, load_release

SHOWN_NOTES = 20
T = TypeVar("T")
Keep = Callable[[Task, Variant, list[int], Tensor], None]  # task, variant, rows, scores (B, V, classes)


class Among(Protocol):
    """The processes that evaluate together: this one's place, how many there are, and how all get what each has."""

    @property
    def rank(self) -> int: ...
    @property
    def ranks(self) -> int: ...
    def gather(self, value: T) -> list[T]: ...


class _Alone:
    rank, ranks = 0, 1

    def gather(self, value: T) -> list[T]:
        return [value]


ALONE: Among = _Alone()


def evaluate(
    model: CoVeR,
    task: Task,
    device: torch.device | str,
    workers: int,
    variants: Sequence[Variant] = ("plain",),
    seed: int = 0,
    among: Among = ALONE,
    keep: Keep | None = None,
) -> dict[Variant, dict[str, Any]]:
    """Every labelled sample of a split through the model, each file opened and decoded once for all views and variants.

    `plain`: the frames in order. `shuffled`: the frames of every clip in a random order of its own. `reversed`: backwards. `single`: the
    middle frame alone, as an image. The scores of the views are averaged after the softmax. Several processes take every so many rows
    each, and all return the whole result. `keep` is given the scores of every view. Returns for each variant the metrics of
    `metrics.TopK` and `outcomes.Outcomes`, or of `metrics.MeanAveragePrecision` of a multi-label set, together with the protocol.
    """
    listed = int(task.those(np.flatnonzero(task.manifest.labelled)).size)
    rows = task.those(task.manifest.usable)[among.rank :: among.ranks]
    plan = ViewPlan(task.spec.sampling, task.views, task.frames, model.backbone.pixels.size)
    seen = {variant: _Seen.of(task, listed) for variant in variants}
    problems: list[FileProblem] = []
    with Meter(f"evaluate {task.spec.name} {task.manifest.split}", len(rows)) as meter:
        for numbers, labels, clips in batches(task, plan, rows, workers, problems, meter.advance):
            for variant in variants:
                scores = _scores(model, varied(clips, variant, numbers, seed), task, device)
                seen[variant].update(numbers, scores.mean(1), labels)
                if keep is not None:
                    keep(task, variant, numbers, scores)
    problems = [problem for part in among.gather(problems) for problem in part]
    return {variant: {**own.gathered(among).result(task, seed), **_protocol(task, variant, problems)} for variant, own in seen.items()}


@dataclass
class _Seen:
    """What has been seen of a split: the metrics, and of single-label sets the outcomes of its samples."""

    metric: TopK | MeanAveragePrecision
    outcomes: Outcomes | None

    @classmethod
    def of(cls, task: Task, listed: int) -> _Seen:
        if task.manifest.classes.many:
            return cls(MeanAveragePrecision(task.manifest.class_counts(), listed), None)
        return cls(TopK(len(task.classes), listed), Outcomes())

    def update(self, numbers: list[int], scores: Tensor, labels: Tensor) -> None:
        self.metric.update(scores, labels)
        if self.outcomes is not None:
            self.outcomes.update(numbers, scores, labels)

    def gathered(self, among: Among) -> _Seen:
        first, *others = among.gather(self)
        for other in others:
            first.metric.merge(other.metric)  # type: ignore[arg-type]
        if first.outcomes is not None:
            first.outcomes.merge([other.outcomes for other in others if other.outcomes is not None])
        return first

    def result(self, task: Task, seed: int) -> dict[str, Any]:
        more = self.outcomes.result(task.manifest.sources(self.outcomes.rows), task.classes, seed) if self.outcomes is not None else {}
        return {**self.metric.result(), **more}


def _protocol(task: Task, variant: Variant, problems: Sequence[FileProblem]) -> dict[str, Any]:
    video, names = task.manifest.media == "video", task.manifest.classes.names
    return {
        "dataset": task.spec.name, "split": task.manifest.split, "media": task.manifest.media, "variant": variant,
        "views": str(task.views) if video else f"1x{task.views.spatial}", "frames": task.frames if video and variant != "single" else 1,
        "sampling": str(task.spec.sampling) if video else None, "classes": len(names),
        "class_digest": task.manifest.classes.digest, "decoder": check_decoder(task.decoder) if video else None,
        "head": task.head.name, "head_classes": len(task.head.classes), "multi_label": task.manifest.classes.many,
        "unmapped": [name for name in names if name not in set(task.classes)] if task.mapped else None,
        "not_ok": {k: n for k, n in task.manifest.counts().items() if n and k != "ok"},
        "notes": [str(problem) for problem in problems[:SHOWN_NOTES]], "n_notes": len(problems),
    }  # fmt: skip


@torch.inference_mode()
def _scores(model: CoVeR, clips: np.ndarray, task: Task, device: torch.device | str) -> Tensor:
    """Softmax or sigmoid of the task's classes for every view, float `(B, V, classes)`, on the CPU."""
    samples, views, frames = clips.shape[:3]
    pixels = torch.from_numpy(clips).to(device).flatten(0, 2)
    logits = model(model.normalize(pixels), ((samples * views, frames),))[task.head.name]
    return task.head.probabilities(logits[:, task.columns.to(device)]).view(samples, views, -1).cpu()


def evaluate_release(
    checkpoint: Path, catalog: Path, split: str, names: Sequence[str], views: str | None, variants: Sequence[Variant],
    device: str, workers: int, seed: int, decoder: Decoder = "pyav", other_heads: Mapping[str, str] | None = None,
    scores: Path | None = None, among: Among = ALONE,
) -> list[dict[str, Any]]:  # fmt: skip
    """The results of a checkpoint on a split, one per data set and variant.

    `other_heads`: as of `find_tasks`. `scores`: where the scores of every view and sample go (`scorefile`). Raises `UserError`.
    """
    check_decoder(decoder)
    folder = find_release(checkpoint)
    model = load_release(folder)
    seen_as = Views.parse(views) if views else None
    tasks = find_tasks(load_catalog(catalog), model, model.frames, split, names, seen_as, decoder, other_heads)
    where = pick_device(device)
    model.to(where)
    results = []
    with ScoreFile(scores, among.rank, among.ranks) as kept:
        for task in tasks:
            found = evaluate(model, task, where, workers, _for_media(variants, task), seed, among, kept.keep if scores else None)
            more = {"class_names": list(task.classes), "checkpoint": str(folder), "step": model.metadata.get("step"), "seed": seed}
            results += [{**one, **more} for one in found.values()]
    return results


def _for_media(variants: Sequence[Variant], task: Task) -> list[Variant]:
    """An image has one frame: only `plain` says anything of it."""
    return [variant for variant in variants if variant == "plain" or task.manifest.media == "video"]
