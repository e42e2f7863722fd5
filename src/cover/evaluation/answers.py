"""The answers of a model to single samples: what a report draws its confusions, mistakes and calibration from.

A run folder has them in `answers.json`, one entry for each data set that was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cover.datasets.manifest import Manifest
from cover.errors import UserError
from cover.evaluation.metrics import Outcomes

ANSWERS = "answers.json"


@dataclass(frozen=True)
class Answers:
    """The answers to the read samples of a single-label data set, as columns.

    `manifest`: path of the manifest, and `digest` of its rows. `rows`: the rows in it. `truth`, `predicted`: places in
    `classes`; -1 where two classes share the highest score. `confidence`: the score of the predicted class.
    `measured`: the split, or the number of folds. `listed`: samples that should have been read.
    """

    dataset: str
    measured: str
    manifest: str
    digest: str
    classes: list[str]
    listed: int
    rows: list[int]
    truth: list[int]
    predicted: list[int]
    confidence: list[float]

    @classmethod
    def of(
        cls, dataset: str, measured: str, manifest: Manifest, classes: Sequence[str], listed: int, outcomes: Outcomes
    ) -> Answers:
        """The answers of an evaluation. `outcomes`: merged, so in the order of the rows."""
        return cls(
            dataset,
            measured,
            str(manifest.path),
            manifest.digest(),
            list(classes),
            listed,
            outcomes.rows.tolist(),
            outcomes.labels.tolist(),
            outcomes.predicted.tolist(),
            [round(score, 6) for score in outcomes.confidence.tolist()],
        )


def write_answers(folder: Path, answers: Sequence[Answers]) -> Path:
    """Write `folder/answers.json`. It has another name until it is complete."""
    path = folder / ANSWERS
    beside = path.with_name(f".{ANSWERS}")
    beside.write_text(json.dumps([asdict(each) for each in answers]), encoding="utf-8", errors="backslashreplace")
    beside.replace(path)
    return path


def read_answers(folder: Path) -> list[Answers]:
    """The answers of a run folder; none if it has no file. Raises `UserError` if the file is damaged."""
    path = folder / ANSWERS
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return [Answers(**entry) for entry in entries]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, and run the command again") from None
