"""The measurement of learning: a run is done once, and its table counts complete seeds alone."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "learning.py"


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("benchmark_learning", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_a_finished_run_is_not_repeated(learning: Any, sandbox: Path, tmp_path: Path) -> None:
    changes = {"steps": 2, "batch": 4, "data.frames": 2, "model.motion": "both", "crop_scale": [0.9, 1.0]}
    job = learning.Job("factors", "ssv2", "motion both", 3, changes | {"initial": "heads"})
    log = tmp_path / "learning.jsonl"
    for jobs in ([job], [job], [job, replace(job, seed=4)]):
        learning.measure(jobs, {"ssv2": sandbox}, tmp_path, log)
    first, second = learning.finished(log)
    assert (first["seed"], second["seed"], first["changes"]["model.motion"]) == (3, 4, "both")
    assert 0 <= first["top1"] <= 1
    assert first["n_read"] == first["n_listed"] > 0
    (row,) = learning.table([first, second])
    assert row[:3] == ["factors", "ssv2", "motion both"]


def test_the_table_pools_the_folds_of_a_seed_and_leaves_out_seeds_that_lack_one(learning: Any) -> None:
    shared = {"plan": "targets", "dataset": "moves", "factor": "mini", "changes": {}, "folds": 2, "seconds": 60.0}
    counts = {(0, 0): (0.5, 10), (0, 1): (1.0, 30), (1, 0): (0.5, 10), (1, 1): (0.5, 30), (2, 0): (0.0, 10)}
    lines = [
        {**shared, "seed": seed, "fold": fold, "top1": top1, "n_read": n} for (seed, fold), (top1, n) in counts.items()
    ]
    ((*_, mean, interval, values, samples, minutes),) = learning.table(lines)
    assert (mean, values, samples, minutes) == ("68.8", "87.5, 50.0", "40", "1.0")  # (5 + 30) / 40 and (5 + 15) / 40
    low, high = map(float, interval.split(" to "))
    assert (low + high) / 2 == pytest.approx(68.75, abs=0.1)
    # Student's t with one degree of freedom: 12.71 times the standard error, 37.5 / 2
    assert (high - low) / 2 == pytest.approx(12.71 * 37.5 / 2, abs=0.1)
