"""Evaluation of `cover add`: the accuracy of old and new heads before and after training, on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cover.datasets.catalog import Catalog
from cover.datasets.manifest import open_manifest
from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.evaluation.answers import Answers
from cover.evaluation.cached_views import trained_cache
from cover.evaluation.evaluate import evaluate
from cover.evaluation.metrics import temperature
from cover.evaluation.protocol import EvaluationTask, find_tasks
from cover.evaluation.statistics import Estimate, difference, in_common, judge, proportion
from cover.evaluation.view_reader import targets_of
from cover.experiments.run_files import read_result, write_result
from cover.hardware import pick_device
from cover.mixture.dataset import make_heads
from cover.mixture.loader import labels_of
from cover.model.cover import CoVeR
from cover.model.heads import Head, head_of
from cover.model.release import load_release, read_config, read_weights, weights_digest
from cover.training.recipe import Recipe

SPLITS = ("val", "dev", "test")  # to evaluate on, in order of preference
MARGIN = 0.02  # a head with a smaller loss of top-1 counts as not worse
TRAINING_ONLY = ("dropout",)  # settings without effect in evaluation
BACKBONE = ""  # name of the network without its heads, in `unchanged`
PROTOCOL = (
    "split",
    "media",
    "views",
    "frames",
    "sampling",
    "classes",
    "class_digest",
    "head",
    "multi_label",
    "n_read",
    "n_listed",
    "map",
)


# --- the data sets of a release ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OldSets:
    """The data sets of a release.

    `heads`: the head of each data set. `absent`: for each data set that cannot be replayed on this machine, the reason.
    """

    heads: dict[str, Head]
    absent: dict[str, str]

    @property
    def replayable(self) -> list[str]:
        """The data sets whose training samples are on this machine."""
        return [name for name in self.heads if name not in self.absent]

    @property
    def shared(self) -> dict[str, list[str]]:
        """`data.heads` of a recipe for the replayable data sets: all heads without the name of their only data set."""
        heads = (self.heads[name] for name in self.replayable)
        return {head.name: list(head.datasets) for head in heads if head.serves}


def old_sets(heads: Sequence[Head], catalog: Catalog) -> OldSets:
    """The data sets of `heads`, and the reasons why some of them cannot be replayed on this machine.

    A head with several data sets is replayed only with all of them, because its class list is made from theirs.
    """
    absent: dict[str, str] = {}
    for head in heads:
        reasons = {name: reason for name in head.datasets if (reason := why_absent(name, catalog))}
        if not reasons and not _same_classes(head, catalog):
            reasons = dict.fromkeys(head.datasets, f'its classes are not those of the head "{head.name}"')
        if reasons:
            absent |= dict.fromkeys(head.datasets, f'it shares the head "{head.name}" with one that is absent')
            absent |= reasons
    return OldSets({name: head for head in heads for name in head.datasets}, absent)


def why_absent(name: str, catalog: Catalog, split: str = "train") -> str:
    """The reason why no row of a split can be read; empty if rows can be read."""
    if name not in catalog.specs:
        return f"not in {catalog.path.name}"
    if split not in catalog.specs[name].splits:
        return f"has no split {split}"
    path = catalog.manifest_path(name, split)
    if not path.is_file():
        return f"not indexed (cover index {catalog.path.name} {name})"
    return "" if len(open_manifest(path).usable) else "none of its files is here and readable"


def _same_classes(head: Head, catalog: Catalog) -> bool:
    """Whether the class lists of the head's data sets give the class list of the head."""
    classes = {name: catalog.manifest(name, "train").classes for name in head.datasets}
    if len({each.many for each in classes.values()}) > 1:
        return False
    (ours,) = make_heads(classes, {head.name: head.datasets})
    return (ours.classes, ours.loss) == (head.classes, head.loss)


def split_of(name: str, catalog: Catalog, preferred: str | None) -> str | None:
    """The split to evaluate a data set on: `preferred`, else the first of `SPLITS` that it has, else None."""
    order = [preferred, *SPLITS] if preferred else SPLITS
    return next((split for split in order if split and not why_absent(name, catalog, split)), None)


def split_of_new(name: str, catalog: Catalog, requested: str | None) -> str:
    """The split to evaluate the new data set on: `requested` (the option --split), else the first of `SPLITS`.

    Raises `UserError` if it does not have the split.
    """
    split = split_of(name, catalog, requested)
    if split is None:
        splits = ", ".join(SPLITS)
        raise UserError(
            f"{name}: no readable and labelled sample in {splits} to measure; give dev a fraction, or use --folds"
        )
    if requested and split != requested:
        reason = why_absent(name, catalog, requested)
        raise UserError(f"--split {requested}: {name} {reason}; it could be measured on {split}")
    return split


# --- one checkpoint on one split --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleResults:
    """Correct and wrong predictions on a split, with the protocol.

    `rows`: int64 `(N,)`, the manifest rows that were read, ascending. `right`: bool `(N,)`, whether the class with the
    highest score is the class of the sample, or one of its classes in a multi-label data set; a tie is wrong.
    `sources`: int64 `(N,)`, the sources of the samples. `answers`: None for a multi-label data set. `temperature`: that
    of `metrics.temperature`, if the evaluator calibrates.
    """

    protocol: dict[str, Any]
    rows: npt.NDArray[np.int64]
    right: npt.NDArray[np.bool_]
    sources: npt.NDArray[np.int64]
    answers: Answers | None = None
    temperature: float | None = None

    @property
    def measure(self) -> str:
        """The name of the accuracy that is the mean of `right`."""
        return "hit1" if self.protocol["multi_label"] else "top1"


class Evaluator:
    """Evaluates one checkpoint sample by sample. Results are stored in `folder` and reused. Raises `UserError`.

    `cache`: the folder of the cached outputs that the checkpoint was trained from, None to compute all outputs.
    `calibrate`: also find the temperature of the head, for a single-label data set.
    """

    def __init__(
        self,
        release: Path,
        catalog: Catalog,
        folder: Path,
        device: str,
        workers: int,
        cache: Path | None = None,
        calibrate: bool = False,
    ) -> None:
        self.release, self.catalog, self.folder, self.device, self.workers = release, catalog, folder, device, workers
        self.cache, self.calibrate = cache, calibrate

    def measure(self, dataset: str, split: str) -> SampleResults:
        """The results on all readable samples of a split."""
        path = self.folder / f"{dataset}-{split}-{self._digest}.json"
        spec, manifest = self.catalog.spec(dataset), self.catalog.manifest(dataset, split)
        stamp: dict[str, Any] = {
            "manifest": manifest.digest(),
            "views": str(spec.views),
            "sampling": str(spec.sampling),
        }
        stamp["frames"] = read_config(self.release).frames
        result = read_result(path)
        wanted = {"answers", "temperature"} if self.calibrate else {"answers"}
        # A stored result counts only for the same samples and the same views.
        if result is None or result["stamp"] != stamp or not wanted <= result.keys():
            result = {"stamp": stamp, **self._evaluate(dataset, split)}
            write_result(result, path)
        rows = np.asarray(result["rows"], np.int64)
        answers = Answers(**result["answers"]) if result["answers"] else None
        right = np.asarray(result["right"], bool)
        sources, found = manifest.sources(rows), result.get("temperature")
        return SampleResults(result["protocol"], rows, right, sources, answers, found if self.calibrate else None)

    @cached_property
    def _digest(self) -> str:
        return weights_digest(self.release)

    @cached_property
    def _model(self) -> CoVeR:
        return load_release(self.release).to(pick_device(self.device))

    def _evaluate(self, dataset: str, split: str) -> dict[str, Any]:
        model = self._model
        (task,) = find_tasks(self.catalog, model, model.frames, split, [dataset])
        right: dict[int, bool] = {}
        held_out = list[tuple[torch.Tensor, torch.Tensor]]()  # scores of each view, and labels

        def keep(task: EvaluationTask, variant: str, numbers: Sequence[int], scores: torch.Tensor) -> None:
            labels = [
                [int(task.relabel[label]) for label in labels_of(task.manifest.row(number))] for number in numbers
            ]
            targets = targets_of(labels, task)
            right.update(zip(numbers, right_answers(scores.mean(1), targets).tolist(), strict=True))
            if self.calibrate and not task.manifest.classes.many:
                held_out.append((scores, targets))

        device, answers = pick_device(self.device), list[Answers]()
        prefix = None if self.cache is None else trained_cache(model, ProcessGroup(device), self.cache)
        result = evaluate(model, task, device, self.workers, keep=keep, prefix=prefix, answers=answers)["plain"]
        rows = sorted(right)
        protocol = {key: result[key] for key in PROTOCOL if key in result}
        kept = asdict(answers[0]) if answers else None
        known = [int(right[row]) for row in rows]
        found: dict[str, Any] = {"protocol": protocol, "rows": rows, "right": known, "answers": kept}
        if self.calibrate:
            columns = [torch.cat(each) for each in zip(*held_out)]
            found["temperature"] = temperature(*columns) if columns else None
        return found


def right_answers(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which samples are predicted correctly, bool `(N,)`, from probabilities `(N, classes)`.

    With `labels` int64 `(N,)` this is the top-1 of `metrics.TopK`. With multi-hot labels `(N, classes)` it is the
    `hit1` of `metrics.MeanAveragePrecision`.
    """
    multi_hot = labels > 0 if labels.ndim == 2 else torch.nn.functional.one_hot(labels, scores.shape[1]) > 0
    own, others = (torch.where(mask, scores, -torch.inf).max(1).values for mask in (multi_hot, ~multi_hot))
    return torch.where(multi_hot.any(1), own > others, others < 0.5)


# --- before and after -------------------------------------------------------------------------------------------------


def measure_old(before: Evaluator, old: OldSets, splits: Mapping[str, str | None]) -> dict[str, SampleResults | str]:
    """For each old data set, the results of its head on its split, or the reason why there are none."""
    results: dict[str, SampleResults | str] = {}
    for name in old.heads:
        split = splits.get(name)
        if split is None:
            known = name in before.catalog.specs
            results[name] = f"no sample in {', '.join(SPLITS)}" if known else f"not in {before.catalog.path.name}"
            continue
        try:
            results[name] = before.measure(name, split)
        except UserError as error:  # for example another class list; the training can go on without this result
            results[name] = str(error)
    return results


def compare_old(
    results: Mapping[str, SampleResults | str], release: Path, after: Evaluator, old: OldSets, recipe: Recipe
) -> list[dict[str, Any]]:
    """One row for each old data set: its accuracy before and after, and the difference on the same samples.

    If a head and the backbone did not change at all, the results before are also those after.
    """
    same = unchanged(release, after.release)
    rows: list[dict[str, Any]] = []
    for name, before in results.items():
        head = old.heads[name].name
        row = {"dataset": name, "head": head, "trained": name in recipe.data.sets}
        row["unchanged"] = {head, BACKBONE} <= same
        if isinstance(before, str):
            rows.append({**row, "why_not": before})
            continue
        now = before if row["unchanged"] else after.measure(name, before.protocol["split"])
        ours, theirs, sources = _paired(now, before)
        estimates = {
            "before": asdict(proportion(theirs, sources)),
            "after": asdict(proportion(ours, sources)),
            # Without a change there is nothing to estimate.
            "difference": asdict(
                Estimate(0.0, 0.0, 0.0, 1.0) if row["unchanged"] else difference(ours, theirs, sources)
            ),
        }
        rows.append({**row, **now.protocol, "measure": now.measure, **estimates})
    measured = {row["dataset"]: row for row in rows if "difference" in row}
    verdicts = judge({name: Estimate(**row["difference"]) for name, row in measured.items()}, MARGIN)
    for name, (_, word) in verdicts.items():
        measured[name]["verdict"] = word
    return rows


def _paired(
    ours: SampleResults, theirs: SampleResults
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """The correct predictions of both on the samples that both have read, and the sources of these samples."""
    mine, others = in_common(ours.rows, theirs.rows)
    return ours.right[mine], theirs.right[others], ours.sources[mine]


def unchanged(before: Path, after: Path) -> set[str]:
    """The heads whose tensors are equal in both releases, and `BACKBONE` if all other tensors and settings are too."""
    theirs, ours = read_weights(before), read_weights(after)
    parts = {BACKBONE: _settings(before) == _settings(after)}
    for name, value in theirs.items():
        part = head_of(name) or BACKBONE
        parts[part] = parts.get(part, True) and name in ours and torch.equal(ours[name], value)
    return {part for part, same in parts.items() if same}


def _settings(release: Path) -> tuple[dict[str, Any], int]:
    """The settings that, with the tensors, determine the output of a release for a clip, and the frames of a clip."""
    config = read_config(release)
    settings = {"family": config.backbone.family, **asdict(config.backbone)}
    return {name: value for name, value in settings.items() if name not in TRAINING_ONLY}, config.frames


def accuracy(results: SampleResults) -> dict[str, Any]:
    """The accuracy with its interval and protocol."""
    return {**results.protocol, "measure": results.measure, **asdict(proportion(results.right, results.sources))}


def gain_over(ours: SampleResults, theirs: SampleResults) -> dict[str, Any]:
    """The gain of `ours` over `theirs`: `difference` is ours minus theirs, `alone` the accuracy of theirs."""
    mine, others, sources = _paired(ours, theirs)
    gain = difference(mine, others, sources)
    ((_, word),) = judge({"": gain}, MARGIN).values()
    return {"alone": asdict(proportion(others, sources)), "difference": asdict(gain), "verdict": word}
