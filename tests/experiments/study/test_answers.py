"""The answers that a study keeps: they come back as they were, and every interval follows from them alone."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cover.cli import main
from cover.errors import UserError
from cover.experiments.study.answers import read_answers, write_answers
from cover.experiments.study.arms import Measurement
from cover.experiments.study.recompute import recompute

SCRIPT = runpy.run_path(str(Path(__file__).with_name("independent.py")))
KEPT = sorted(path.parent for path in (Path(__file__).parents[3] / "studies").rglob("answers.arrow"))


def measurement(**changes: Any) -> Measurement:
    fields = {"kind": "arm", "arm": "alone", "target": "ut", "size": "whole", "origin": "start", "seed": 0, "fold": 0}
    return Measurement(**{**fields, "lr": 1e-3, "job": "run", "dataset": "ut", **changes})


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    measurements = [
        measurement(seed=seed, fold=fold, arm=arm, job=f"{arm}{fold}{seed}")
        for arm in ("alone", "videos")
        for seed in (3, 4)
        for fold in (0, 1)
    ]
    results = {}
    for each in measurements:
        ids = [f"clip{each.fold}_{number}" for number in range(5)]
        labels, predicted = rng.integers(0, 7, (2, 5)).tolist()
        part = {"ids": ids, "sources": [f"film{each.fold}"] * 5, "labels": labels, "predicted": predicted}
        results[each.job] = {"measured": {"ut": part}, "dev": {"ut": float(rng.random())} if each.seed == 3 else {}}
    write_answers(measurements, results, tmp_path / "answers.arrow")
    assert read_answers(tmp_path / "answers.arrow") == (measurements, results)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.arrow").write_bytes(b"ARROW1")
    with pytest.raises(UserError, match=r"answers\.arrow"):
        read_answers(tmp_path / "answers.arrow")


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.name)
def test_the_printed_intervals_follow_from_the_answers(folder: Path) -> None:
    """An independent script, with numpy and scipy alone, comes to the differences and intervals of results.json."""
    compared = 0
    for row, own in SCRIPT["recomputed"](folder):
        assert [row["difference"], row["low"], row["high"]] == pytest.approx(own, abs=1e-9), row["family"]
        compared += 1
    assert compared


@pytest.mark.parametrize("folder", KEPT, ids=lambda path: path.name)
def test_judging_a_kept_study_again_changes_nothing(folder: Path, tmp_path: Path) -> None:
    before = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for name in ("answers.arrow", "results.json", "study.yaml"):
        shutil.copy(folder / name, tmp_path / name)
    assert main(["study", "--recompute", str(tmp_path)]) == 0
    after = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert after["comparisons"] == before["comparisons"]
    assert after["pooled"] == before["pooled"]
    assert (tmp_path / "report.html").is_file()


def test_judging_again_adds_a_comparison_that_an_earlier_version_did_not_have(tmp_path: Path) -> None:
    folder = next(each for each in KEPT if each.name == "real_start")
    for name in ("answers.arrow", "study.yaml"):
        shutil.copy(folder / name, tmp_path / name)
    kept = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    of = [row["ours"] == "alone_long" for row in kept["comparisons"]]
    earlier = {**kept, "comparisons": [row for row, new in zip(kept["comparisons"], of, strict=True) if not new]}
    (tmp_path / "results.json").write_text(json.dumps(earlier), encoding="utf-8")
    judged = recompute(tmp_path)
    assert any(of)
    assert [row["before"] == "" for row in judged] == of
    assert [row["difference"] for row in judged] == [row["difference"] for row in kept["comparisons"]]


def test_a_study_kept_without_answers_is_judged_over_its_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its results stay; t over seeds is that of scipy; a difference in 5 seeds of +1 to +9 points is no proof."""
    from scipy import stats

    gains = np.array([0.01, 0.09, 0.03, 0.07, 0.02])
    arms = [
        {"arm": arm, "dataset": "ut", "size": "whole", "origin": "start", "by_seed": (0.5 + gain).tolist()}
        for arm, gain in (("alone", 0 * gains), ("videos", gains))
    ]
    row = {"family": "f", "claim": "a", "target": "ut", "ours": "videos", "theirs": "alone", "size": "whole"}
    row |= {"origin": "start", "items": 100, "verdict": "better"}
    kept = {"study": {"margin": 0.02}, "arms": arms, "transfers": [], "comparisons": [row]}
    (tmp_path / "results.json").write_text(json.dumps(kept))
    assert main(["study", "--recompute", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    (judged,) = json.loads((tmp_path / "out.json").read_text())["comparisons"]
    expected = stats.ttest_1samp(gains, 0)
    assert judged["p"] == pytest.approx(expected.pvalue)
    assert [judged["low"], judged["high"]] == pytest.approx(list(expected.confidence_interval()))
    assert judged["before"] == "better"
    assert json.loads((tmp_path / "results.json").read_text()) == kept
    assert main(["study", "--recompute", str(tmp_path / "nothing")]) == 2
    assert "nothing" in capsys.readouterr().err
