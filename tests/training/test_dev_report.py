"""The last results on dev stand beside trivial methods at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cover.datasets.catalog import load_catalog
from cover.evaluation.baselines import baselines
from cover.training.dev_report import dev_report
from cover.training.recipe import Data, Recipe

Cover = Callable[..., tuple[int, str, str]]


def recipe_of(sandbox: Path, run: Path) -> Recipe:
    return Recipe(Data(["ssv2", "imagenet"], str(sandbox), frames=2), str(run), steps=2, batch=4, workers=0)


def write_log(run: Path, *top1: float) -> None:
    """A log with an evaluation for each of `top1`, with an interval of 0.1 to both sides."""
    run.mkdir()
    lines = []
    for step, value in enumerate(top1, 1):
        interval = {"low": value - 0.1, "high": value + 0.1}
        result = {"top1": value, "top1_interval": interval, "n_read": 10}
        empty = {"top1": None, "top1_interval": None, "n_read": 0}
        lines.append(json.dumps({"event": "dev", "step": step, "datasets": {"ssv2": result, "imagenet": empty}}))
    (run / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_last_evaluation_counts(sandbox: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_log(run, 0.05, 1.0)
    (line,) = dev_report(run, recipe_of(sandbox, run), 0)
    found = baselines(load_catalog(sandbox), "ssv2", "dev", 0)
    assert line.startswith("ssv2 dev: top-1 100.0% (90.0% to 110.0%) of 10 samples; ")
    for name in ("prior", "thumbnail", "motion"):
        assert f"{found[name]['top1']:.1%} ({found[name]['low']:.1%} to {found[name]['high']:.1%})" in line


def test_a_model_at_chance_is_named(sandbox: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_log(run, 0.05)
    _, advice = dev_report(run, recipe_of(sandbox, run), 0)
    for part in ("ssv2: not above chance", "--data ssv2", str(sandbox), "--steps"):
        assert part in advice


def test_a_run_that_was_not_evaluated(sandbox: Path, trained: Path, tmp_path: Path) -> None:
    assert dev_report(trained, recipe_of(sandbox, tmp_path), 0) == []


def test_the_command_prints_it(sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from cover.cli import main

    file = tmp_path / "recipe.yaml"
    data = f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 2}}"
    file.write_text(f"{data}\nout: {tmp_path / 'run'}\nsteps: 2\nbatch: 4\nworkers: 0\n", encoding="utf-8")
    assert main(["train", str(file)]) == 0
    out, err = capfd.readouterr()
    assert out.split() == [str(tmp_path / "run")]
    reported = [line for line in err.splitlines() if " dev: top-1" in line]
    assert [line.split()[0] for line in reported] == ["ssv2", "imagenet"]
    assert "motion" in reported[0]
    assert "motion" not in reported[1]
