"""`cover study --recompute`: judges a study that was run before with the statistics of this version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cover import config
from cover.console import say, write_json
from cover.errors import UserError
from cover.evaluation.statistics import LEVEL, Estimate, detectable_over_seeds, judge, over_seeds, sign_flip
from cover.experiments.run_files import read_result
from cover.experiments.study.answers import ANSWERS, read_answers
from cover.experiments.study.comparisons import compare, pool, results_by_arm
from cover.experiments.study.runner import MARKDOWN, REPORT, RESULTS, STUDY
from cover.experiments.study.study_file import Study
from cover.experiments.study.study_report import write_study_report
from cover.experiments.study.summary import KINDS
from cover.experiments.study.worth import worth_study

JUDGED_AGAIN = "judged_again.json"


def recompute(folder: Path) -> list[dict[str, Any]]:
    """Judge the study in `folder` again. Returns its comparisons, each with its verdict `before`.

    With the answers of the clips, `results.json` and the report are written again. A study that was kept without them
    has the accuracy of each seed only: its results stay as they are, and the new verdicts, from a t over seeds that
    takes the clips as given, go into `judged_again.json`. Raises `UserError` if the folder holds no study.
    """
    summary = read_result(folder / RESULTS)
    if summary is None:
        raise UserError(f"{folder}: no {RESULTS} is there; give the folder of a study that has been run")
    if networks := summary["study"].get("models"):
        raise UserError(f"{folder}: a study of several networks; give {folder / next(iter(networks))}, or another")
    before = {_name(row): row["verdict"] for row in summary["comparisons"]}
    if (folder / ANSWERS).is_file():
        _from_answers(summary, folder)
        write_json(summary, folder / RESULTS)
        write_study_report(summary, folder / REPORT, folder / MARKDOWN)
        # An earlier version may not have had a comparison.
        return [{**row, "before": before.get(_name(row), "")} for row in summary["comparisons"]]
    say(f"{folder}: no {ANSWERS}, so from the accuracies of the seeds; the clips are taken as given")
    rows = [{**row, "before": before[_name(row)]} for row in _from_seeds(summary)]
    write_json({"comparisons": rows}, folder / JUDGED_AGAIN)
    return rows


def _from_answers(summary: dict[str, Any], folder: Path) -> None:
    """Replace the accuracies, comparisons and pooled differences of a summary."""
    study = config.load(Study, folder / STUDY)
    worth = {row["target"] for row in summary["comparisons"] if row["claim"] == "worth"}
    for target in worth:
        study = worth_study(study, target)
    measurements, results = read_answers(folder / ANSWERS)
    of_kind = {kind: results_by_arm(measurements, results, kind) for kind in KINDS}
    for kind, key in KINDS.items():
        for row in summary[key]:
            row.update(of_kind[kind][row["arm"], row["dataset"], row["size"], row["origin"]].estimate())
    level = (summary.get("look") or {}).get("level", LEVEL)
    summary["comparisons"] = compare(study, of_kind["arm"], of_kind["transfer"], level)
    summary["pooled"] = pool(summary["comparisons"], study.margin, level)


def _from_seeds(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The comparisons from the accuracies of each seed."""
    kept = {(row["arm"], row["dataset"], row["size"], row["origin"]): row for row in summary["arms"]}
    kept |= {(row["arm"], row["dataset"], row["size"], ""): row for row in summary["transfers"]}
    rows = []
    for family in dict.fromkeys(row["family"] for row in summary["comparisons"]):
        own = [row for row in summary["comparisons"] if row["family"] == family]
        gains = {_name(row): _gain(row, kept) for row in own}
        estimates = {_name(row): over_seeds(gains[_name(row)], row["items"]) for row in own}
        judged = judge(estimates, summary["study"]["margin"])
        rows += [_judged(row, gains[_name(row)], estimates[_name(row)], judged[_name(row)]) for row in own]
    return rows


def _judged(row: Mapping[str, Any], gain: np.ndarray, estimate: Estimate, judged: tuple[float, str]) -> dict[str, Any]:
    p, verdict = judged
    figures = {"difference": estimate.value, "low": estimate.low, "high": estimate.high, "error": estimate.error}
    tests = {"p": estimate.p, "p_holm": p, "p_sign_flip": sign_flip(gain[:, None]), "verdict": verdict}
    return {**row, **figures, **tests, "detectable": detectable_over_seeds(gain)}


def _gain(row: Mapping[str, Any], kept: Mapping[tuple[str, str, str, str], Mapping[str, Any]]) -> np.ndarray:
    """float64 `(seeds,)`: the difference of a comparison with every seed."""

    def of(arm: str, size: str) -> np.ndarray:
        return np.array(kept[arm, row["target"], size, row["origin"]]["by_seed"])

    if row["claim"] == "d":
        ours, theirs = (of(row["size"], size) - of("alone", size) for size in (row["ours"], row["theirs"]))
        return ours - theirs
    return of(row["ours"], row["size"]) - of(row["theirs"], row["size"])


def _name(row: Mapping[str, Any]) -> str:
    return "|".join(row[key] for key in ("family", "target", "size", "origin", "ours", "theirs"))
