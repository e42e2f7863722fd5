"""What does a checkpoint get right, sample by sample? Kept in a file, so that two checkpoints can be compared on the same samples."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cover.console import write_json
from cover.datasets.catalog import Catalog
from cover.datasets.manifest import open_manifest
from cover.errors import UserError
from cover.evaluation.evaluate import evaluate
from cover.evaluation.reading import truth
from cover.evaluation.tasks import Task, find_tasks
from cover.mixture.loader import labels_of
from cover.model.device import pick_device
from cover.model.timesformer import TimeSformer
from cover.model.weights import load_release, read_config
from cover.training.starting import weights_digest

KEPT = ("split", "media", "views", "frames", "sampling", "classes", "class_digest", "head", "multi_label", "n_read", "n_listed", "map")


@dataclass(frozen=True)
class Measured:
    """A split under its protocol. `rows` int64 `(N,)` of its manifest that were read, ascending; `right` bool `(N,)`: the best class, alone
    in first place, is the sample's, or in a multi-label set one of the sample's."""

    protocol: dict[str, Any]
    rows: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    sources: npt.NDArray[np.int64]

    @property
    def measure(self) -> str:
        """The name of the share that `right` is of."""
        return "hit1" if self.protocol["multi_label"] else "top1"


class Gauge:
    """Measures one checkpoint; what has been measured already, under `folder`, is read instead. Raises `UserError`."""

    def __init__(self, release: Path, catalog: Catalog, folder: Path, device: str, workers: int) -> None:
        self.release, self.catalog, self.folder, self.device, self.workers = release, catalog, folder, device, workers

    def measure(self, dataset: str, split: str) -> Measured:
        """All readable samples of a split, each once."""
        path = self.folder / f"{dataset}-{split}-{self._digest}.json"
        spec, manifest = self.catalog.spec(dataset), open_manifest(self.catalog.manifest_path(dataset, split))
        config = read_config(self.release)
        frames = config["about"].get("frames", config["model"]["frames"])
        stamp = {"manifest": manifest.digest(), "views": str(spec.views), "sampling": str(spec.sampling), "frames": frames}
        found = _read(path)
        if found is None or found["stamp"] != stamp:
            found = {"stamp": stamp, **self._evaluated(dataset, split)}
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            write_json(found, beside)
            beside.replace(path)
        rows = np.asarray(found["rows"], np.int64)
        return Measured(found["protocol"], rows, np.asarray(found["right"], bool), manifest.sources(rows))

    @cached_property
    def _digest(self) -> str:
        return weights_digest(self.release)

    @cached_property
    def _loaded(self) -> tuple[TimeSformer, int]:
        model, about = load_release(self.release)
        return model.to(pick_device(self.device)), about.get("frames", model.config.frames)

    def _evaluated(self, dataset: str, split: str) -> dict[str, Any]:
        model, frames = self._loaded
        (task,) = find_tasks(self.catalog, model, frames, split, [dataset])
        seen: dict[int, bool] = {}

        def keep(task: Task, variant: str, numbers: Sequence[int], scores: torch.Tensor) -> None:
            labels = [[int(task.relabel[label]) for label in labels_of(task.manifest.row(number))] for number in numbers]
            seen.update(zip(numbers, right_answers(scores.mean(1), truth(labels, task)).tolist(), strict=True))

        result = evaluate(model, task, pick_device(self.device), self.workers, keep=keep)["plain"]
        rows = sorted(seen)
        return {"protocol": {key: result[key] for key in KEPT if key in result}, "rows": rows, "right": [int(seen[row]) for row in rows]}


def right_answers(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """bool `(N,)` of probabilities `(N, classes)`: what `metrics.TopK` counts as top-1, and of multi-label sets, whose `labels` are
    `(N, classes)`, what `metrics.MeanAveragePrecision` counts as `hit1`."""
    hot = labels > 0 if labels.ndim == 2 else torch.nn.functional.one_hot(labels, scores.shape[1]) > 0
    own, others = (torch.where(mask, scores, -torch.inf).max(1).values for mask in (hot, ~hot))
    return torch.where(hot.any(1), own > others, others < 0.5)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, and it is measured again") from None
