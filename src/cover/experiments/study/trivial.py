"""Trivial methods on the clips of a study: the same training clips and the same measured clips as its arms."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cover.datasets.manifest import Manifest, open_manifest
from cover.evaluation.baseline_features import EXTRACTORS, Extractor, features_of
from cover.evaluation.baselines import (
    MOST_EVALUATED,
    MOST_FROZEN,
    MOST_TRAIN,
    START_FEATURES,
    fit_and_predict,
    most_frequent,
    sample_by_class,
    sample_rows,
)
from cover.evaluation.start_features import start_is_installed
from cover.evaluation.statistics import proportion
from cover.experiments.study.study_file import Study
from cover.experiments.study.subsets import MEASURED, TRAINING, Subset, SubsetBuilder


@dataclass(frozen=True)
class _Clips:
    """Clips of a subset: labels int64 `(N,)`, sources, and for each feature float32 `(N, D)`."""

    labels: npt.NDArray[np.int64]
    sources: list[str]
    values: dict[str, npt.NDArray[np.float32]]


def trivial_methods(study: Study, builder: SubsetBuilder, workers: int) -> list[dict[str, Any]]:
    """One row for each target and size: the accuracy of each of `baselines.RUNGS` with its interval over sources.

    With folds, every clip is measured once, by the methods fitted to the other folds. At a smaller size the training
    clips are those of the first seed. `workers`: processes that read files, 0 for none.
    """
    rows = []
    for target in study.targets:
        reader = _ClipReader(study, builder, target, workers)
        rows += [row for size in study.sizes if (row := _row(study, builder, target, size, reader)) is not None]
    return rows


def _row(study: Study, builder: SubsetBuilder, target: str, size: str, reader: _ClipReader) -> dict[str, Any] | None:
    folds = study.folds.get(target, 0)
    right: dict[str, list[npt.NDArray[np.bool_]]] = {}
    sources: list[str] = []
    for fold in range(max(1, folds)):
        subset = Subset(target, study.sizes[size].part, folds, fold, seed=study.seeds[0])
        paths = builder.entry(subset)["annotations"]
        train, measured = (open_manifest(Path(paths[split])) for split in ("train", MEASURED))
        fitted, _ = sample_by_class(train.usable, train.labels[train.usable].astype(np.int64), MOST_TRAIN)
        ours, theirs = reader.read(train, fitted), reader.read(measured, sample_rows(measured.usable, MOST_EVALUATED))
        if not len(ours.labels) or not len(theirs.labels):
            return None
        sources += theirs.sources
        guesses = {"prior": np.full(len(theirs.labels), most_frequent(ours.labels))}
        guesses |= {
            name: fit_and_predict(column, ours.labels, theirs.values[name])[0] for name, column in ours.values.items()
        }
        for name, predicted in guesses.items():
            right.setdefault(name, []).append(predicted == theirs.labels)
    rungs = {name: proportion(np.concatenate(parts), sources) for name, parts in right.items()}
    best = max(rungs, key=lambda name: rungs[name].value)
    values = {name: {"top1": each.value, "low": each.low, "high": each.high} for name, each in rungs.items()}
    return {"dataset": target, "size": size, "n": len(sources), "best": best, **values}


@dataclass
class _ClipReader:
    """Reads the clips of subsets of one data set.

    Features are read through the manifests of the catalog, so that one cache serves all folds and sizes.
    """

    study: Study
    builder: SubsetBuilder
    name: str
    workers: int
    _splits: list[tuple[Manifest, dict[str, int]]] = field(init=False)  # with sample id -> usable row
    _extractors: list[tuple[Extractor, ...]] = field(init=False)

    def __post_init__(self) -> None:
        catalog, study = self.builder.catalog, self.study
        own = catalog.spec(self.name).splits
        wanted = own if self.name in study.folds else (*TRAINING, study.split)
        paths = [catalog.manifest_path(self.name, split) for split in wanted if split in own]
        manifests = [open_manifest(path) for path in paths if path.is_file()]
        self._splits = [(manifest, _numbers(manifest)) for manifest in manifests]
        few = sum(len(numbers) for _, numbers in self._splits) <= MOST_FROZEN
        self._extractors = [EXTRACTORS, *([START_FEATURES] if few and start_is_installed() else [])]

    def read(self, subset: Manifest, rows: npt.NDArray[np.int64]) -> _Clips:
        """The rows (int64) of a subset with their features, without those that cannot be read."""
        clips = {row.sample_id: row for row in (subset.row(int(number)) for number in rows)}
        found: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
        for manifest, numbers in self._splits:
            id_of = {numbers[key]: key for key in clips if key in numbers}
            wanted = np.array(sorted(id_of), np.int64)
            for extractors in self._extractors:
                features = features_of(manifest, wanted, self.workers, extractors)
                for place, number in enumerate(features.rows.tolist()):
                    own = {name: column[place] for name, column in features.values.items()}
                    found.setdefault(id_of[number], {}).update(own)
        read = [key for key, row in clips.items() if key in found and row.label is not None]
        names = found[read[0]] if read else ()
        values = {name: np.stack([found[key][name] for key in read]) for name in names}
        return _Clips(
            np.array([clips[key].label for key in read], np.int64), [clips[key].source_id for key in read], values
        )


def _numbers(manifest: Manifest) -> dict[str, int]:
    """Sample id -> number of its row, for the usable rows."""
    usable = set(manifest.usable.tolist())
    return {row.sample_id: number for number, row in enumerate(manifest.rows()) if number in usable}
