"""Tables, charts and pictures of the answers to single samples: confusions, classes, calibration and mistakes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cover.datasets.manifest import Manifest
from cover.evaluation.answers import Answers
from cover.evaluation.metrics import calibration_error
from cover.experiments.charts import Bar, Panel, bar
from cover.experiments.examples import row_strip
from cover.experiments.report import Cell, Table

MOST_CLASSES = 24  # in a matrix; with more classes the most frequent confusions are listed
CONFUSIONS = 15
CLASSES_SHOWN = 40  # bars; of more classes the best and the worst
MISTAKES = 8
BINS = 10  # of the confidence
LEAST_ANSWERS = 20  # for a calibration


@dataclass(frozen=True)
class MatrixCell:
    """A cell of a confusion matrix: a count, and its fraction of the row in per cent."""

    count: int
    shade: int
    right: bool


def counts_of(answers: Answers) -> np.ndarray:
    """int64 `(classes, classes)`: the samples of each true class (row) with each predicted class (column)."""
    counts = np.zeros((len(answers.classes), len(answers.classes)), np.int64)
    pairs = [(t, p) for t, p in zip(answers.truth, answers.predicted, strict=True) if p >= 0]
    if pairs:
        np.add.at(counts, tuple(np.array(pairs).T), 1)
    return counts


def confusion_table(answers: Answers) -> dict[str, Any] | None:
    """The confusion matrix of at most `MOST_CLASSES` classes. Classes without samples and predictions are left out."""
    counts = counts_of(answers)
    totals = np.bincount(answers.truth, minlength=len(counts)) if answers.truth else np.zeros(len(counts), np.int64)
    shown = np.flatnonzero(totals + counts.sum(0))
    if not 1 < len(shown) <= MOST_CLASSES:
        return None
    rows = [
        (
            answers.classes[truth],
            int(totals[truth]),
            [
                MatrixCell(
                    int(counts[truth, said]), round(100 * counts[truth, said] / max(totals[truth], 1)), truth == said
                )
                for said in shown
            ],
        )
        for truth in shown
    ]
    return {"classes": [answers.classes[place] for place in shown], "rows": rows}


def confusions(answers: Answers) -> Table | None:
    """The most frequent wrong answers, for sets with too many classes for a matrix."""
    counts = counts_of(answers)
    np.fill_diagonal(counts, 0)
    if not counts.any() or len(counts) <= MOST_CLASSES:
        return None
    totals, rows = Counter(answers.truth), list[list[Cell]]()
    for place in np.argsort(-counts, axis=None, kind="stable")[:CONFUSIONS]:
        truth, said = (int(each) for each in np.unravel_index(place, counts.shape))
        if counts[truth, said]:
            names = [Cell(answers.classes[truth]), Cell(answers.classes[said], tone="text")]
            rows.append([*names, Cell(f"{counts[truth, said]} of {totals[truth]}")])
    return Table(["class", "is taken for", "samples"], rows)


def class_panel(answers: Answers) -> Panel | None:
    """A bar for each class, the best first: the fraction of its samples that are right."""
    counts, totals = counts_of(answers), Counter(answers.truth)
    found = sorted(
        ((counts[place, place] / total, place) for place, total in totals.items()),
        key=lambda each: (-each[0], answers.classes[each[1]]),
    )
    if not found:
        return None
    half = CLASSES_SHOWN // 2
    shown = found if len(found) <= CLASSES_SHOWN else [*found[:half], *found[-half:]]
    chance = 1 / len(answers.classes)
    bars = [
        bar(answers.classes[place], value, f"{counts[place, place]} of {totals[place]}", "cotrained", chance)
        for value, place in shown
    ]
    return Panel("", bars=bars, left_out=len(found) - len(shown))


@dataclass(frozen=True)
class CalibrationPanel(Panel):
    """Bars of the fraction right by confidence. `value`: the expected calibration error, 0 to 1."""

    value: float = 0.0


def calibration_panel(answers: Answers) -> CalibrationPanel | None:
    """The fraction right among answers of each confidence, with a mark at their mean. None for few answers."""
    if len(answers.rows) < LEAST_ANSWERS:
        return None
    confidence = np.asarray(answers.confidence)
    right = np.equal(answers.predicted, answers.truth)
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bars: list[Bar] = []
    for number in np.unique(place):
        own = place == number
        mean, fraction = float(confidence[own].mean()), float(right[own].mean())
        label = f"{100 * number // BINS} to {100 * (number + 1) // BINS} % sure"
        bars.append(bar(label, fraction, f"{int(right[own].sum())} of {int(own.sum())}", "pretrained", mean))
    return CalibrationPanel("", bars=bars, value=calibration_error(confidence, right))


def mistakes(answers: Answers, manifest: Manifest) -> list[dict[str, Any]]:
    """The wrong answers with the highest confidence, with their pictures, in the form that the template needs."""
    wrong = [
        place for place, (t, p) in enumerate(zip(answers.truth, answers.predicted, strict=True)) if t != p and p >= 0
    ]
    wrong.sort(key=lambda place: -answers.confidence[place])
    return [_mistake(answers, place, manifest) for place in wrong[:MISTAKES]]


def _mistake(answers: Answers, place: int, manifest: Manifest) -> dict[str, Any]:
    row = manifest.row(answers.rows[place])
    said, sure = answers.classes[answers.predicted[place]], answers.confidence[place]
    return {
        "still": manifest.media == "image" or not row.fps,  # a picture among videos too
        "strip": row_strip(row, manifest.media),
        "path": row.sample_id,
        "name": Path(row.sample_id).name,
        "truth": answers.classes[answers.truth[place]],
        "right": False,
        "top": [bar(said, sure, f"{100 * sure:.0f} %", "other")],
    }
