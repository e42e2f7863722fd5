"""Evaluation from cached outputs of the first stages of a network: the views of a split, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cover.distributed import ProcessGroup
from cover.evaluation.protocol import EvaluationTask, ViewPlan
from cover.evaluation.view_reader import batch_size, read_batches, targets_of
from cover.media.decode import FileProblem
from cover.mixture.loader import labels_of
from cover.mixture.prefix_cache import Computed, PrefixCache
from cover.mixture.prefix_files import PrefixFiles
from cover.model.cover import CoVeR


def trained_cache(model: CoVeR, group: ProcessGroup | None = None, folder: str | Path = "") -> PrefixCache | None:
    """The cache with the stages and the dtype that a released model was trained with; None if it had no cache.

    `group`, `folder`: as in `PrefixCache`.
    """
    settings = model.metadata.get("cache")
    return PrefixCache(model, settings["stages"], group, settings["dtype"], folder) if settings else None


def cache_views(cache: PrefixCache, model: CoVeR, task: EvaluationTask, workers: int) -> PrefixFiles:
    """Compute the views of all evaluated samples of a split that are missing; returns their files.

    Every rank of the cache must call it. Raises `UserError` as `PrefixCache.fill`, and if the cache is not of `model`.
    """
    cache.check(model)
    plan, rows = task.plan(model.backbone.pixels.size), task.evaluated(task.manifest.usable)
    views = task.view_count
    files, ingredients = cache.files(model, task.manifest, task.clip_frames, views, _settings(task, plan))
    entries = np.stack([np.repeat(rows, views), np.tile(np.arange(views), len(rows))], axis=1)

    def compute(missing: npt.NDArray[np.int64]) -> Iterator[Computed]:
        return _outputs(cache, model, task, plan, missing, workers)

    cache.fill(files, ingredients, task.manifest, entries, compute)
    return files


def _settings(task: EvaluationTask, plan: ViewPlan) -> dict[str, object]:
    video = task.manifest.media == "video"
    return {
        "purpose": "evaluation",
        "size": plan.size,
        "frames": task.clip_frames,
        "precision": "fp32",
        "temporal_x_spatial": str(plan.views) if video else f"1x{plan.views.spatial}",
        "sampling": str(plan.sampling) if video else None,
        "decoder": task.decoder if video else None,
    }


def _outputs(
    cache: PrefixCache,
    model: CoVeR,
    task: EvaluationTask,
    plan: ViewPlan,
    missing: npt.NDArray[np.int64],
    workers: int,
) -> Iterator[Computed]:
    """The outputs of all views of the rows in `missing`. A file is opened once for all its views."""
    views, device = task.view_count, model.mean.device
    blank = torch.zeros(views, task.clip_frames, 3, plan.size, plan.size, device=device)

    def prepare(pixels: Tensor) -> Tensor:
        return model.normalize(pixels.to(device))

    for batch in read_batches(task, plan, np.unique(missing[:, 0]), workers):
        clips = [blank if sample is None else sample.clips(prepare) for _, _, sample, _ in batch]
        pixels = torch.cat(clips).flatten(0, 1)
        group = (len(batch) * views, task.clip_frames)
        outputs = model.forward_prefix(pixels, (group,), cache.stages).unflatten(0, group)
        entries = [(number, view) for number, *_ in batch for view in range(views)]
        problems = [problem for *_, problem in batch for _ in range(views)]
        yield np.array(entries), outputs, [False] * len(entries), problems


def cached_batches(
    task: EvaluationTask,
    rows: npt.NDArray[np.int64],
    files: PrefixFiles,
    problems: list[FileProblem],
    count: Callable[[int], None],
) -> Iterator[tuple[list[int], Tensor, npt.NDArray[np.generic]]]:
    """As `view_reader.batches`, with the outputs of the first stages `(B, V, T, ...)` in place of clips."""
    size = batch_size(task)
    for first in range(0, len(rows), size):
        numbers = [int(number) for number in rows[first : first + size]]
        samples = [(number, files.read_row(number)) for number in numbers]
        problems += [sample.problem for _, sample in samples if sample.problem]
        read = [(number, sample.values) for number, sample in samples if sample.readable]
        count(len(numbers))
        if read:
            labels = [
                [int(task.relabel[label]) for label in labels_of(task.manifest.row(number))] for number, _ in read
            ]
            yield [number for number, _ in read], targets_of(labels, task), np.stack([values for _, values in read])
