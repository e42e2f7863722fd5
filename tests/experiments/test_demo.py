"""The whole story at toy size: everything it promises is there, and what it says to type next can be typed."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import commands
import pytest
import yaml

from cover.experiments.demo import environment

SETS = ("kinetics", "ssv2", "moments", "imagenet")


@dataclass(frozen=True)
class DemoRun:
    """What the demo left behind: its folder and its output."""

    out: Path
    done: subprocess.CompletedProcess[str]


def cover(*arguments: str) -> subprocess.CompletedProcess[str]:
    return commands.run(*arguments)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoRun:
    """The demo in a folder whose name has a space in it."""
    out = tmp_path_factory.mktemp("my demo")
    return DemoRun(out, cover("demo", "--out", str(out), "--scale", "0.002", "--workers", "0"))


def test_it_ends_well_and_says_where_the_report_is_and_what_to_type_next(demo: DemoRun) -> None:
    assert demo.done.returncode == 0, demo.done.stderr
    assert "Traceback" not in demo.done.stderr
    report, following, own = demo.done.stdout.splitlines()[-3:]
    assert own.startswith("next:   cover fit ")
    assert report == f"report: {demo.out / 'report.html'}"
    command, *arguments = shlex.split(following.removeprefix("next:"))
    assert command == "cover"
    predicted = cover(*arguments)
    assert predicted.returncode == 0, predicted.stderr
    assert all(name in predicted.stdout for name in SETS)


def test_what_is_wrong_with_the_own_files_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    done = cover("demo", "--out", str(tmp_path / "demo"), "--own", str(tmp_path / "absent"))
    assert done.returncode == 2
    assert str(tmp_path / "absent") in done.stderr
    assert not (tmp_path / "demo").exists()


def test_the_command_names_a_difficulty_that_is_not_the_default() -> None:
    commands = [environment(Path("out"), 1.0, 0, difficulty)["command"] for difficulty in ("medium", "hard")]
    assert commands == [
        "cover demo --out out --scale 1 --seed 0",
        "cover demo --out out --scale 1 --seed 0 --difficulty hard",
    ]


def test_the_results_keep_their_contract(demo: DemoRun) -> None:
    results = json.loads((demo.out / "results.json").read_text())
    assert results["wall_seconds"] > 0
    assert results["difficulty"] == "medium"
    assert tuple(results["datasets"]) == SETS
    for name, row in results["datasets"].items():
        assert row["chance"] == 1 / row["classes"]
        assert row["n_read"] == row["n_listed"] > 0
        measured = {key for key in ("single", "cotrained", "cotrained_shuffled") if row[key] is not None}
        assert measured == {"single", "cotrained", *([] if name == "imagenet" else ["cotrained_shuffled"])}
        for key in measured:
            assert 0 <= row[key] <= 1
            assert math.isclose(row[key] * row["n_read"], round(row[key] * row["n_read"]), abs_tol=1e-9)


def test_the_report_holds_every_set_and_nothing_from_outside(demo: DemoRun) -> None:
    page = (demo.out / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in SETS)
    assert "data:image/" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page


def test_the_single_runs_are_the_cotraining_with_one_set(demo: DemoRun) -> None:
    cotrain, alone = ({"cotrain": None}, {})
    for file in (demo.out / "recipes").glob("*.yaml"):
        (cotrain if file.stem == "cotrain" else alone)[file.stem] = yaml.safe_load(file.read_text())
    together = cotrain["cotrain"]
    assert set(alone) == {"pretrain", *(f"single_{name}" for name in SETS)}
    log = [json.loads(line) for line in (demo.out / "runs" / "cotrain" / "log.jsonl").read_text().splitlines()]
    visited = [line for line in log if line["event"] == "train"][-1]["seen"]
    for name in SETS:
        single = alone[f"single_{name}"]
        assert single["data"]["sets"] == [name]
        differing = {key for key in together if together[key] != single[key]}
        assert differing <= {"data", "out", "batch", "steps"}
        assert abs(single["steps"] * single["batch"] - visited[name]) <= single["batch"] / 2
    assert together["start"] == {
        "checkpoint": str(demo.out / "runs" / "pretrain"),
        "temporal": "fresh",
        "heads": "drop",
        "text": "",
    }


def test_it_can_be_run_again(demo: DemoRun) -> None:
    """A second time nothing is generated or trained anew, and the numbers are the same."""
    first = json.loads((demo.out / "results.json").read_text())
    weights = (demo.out / "runs" / "cotrain" / "checkpoints").glob("step-*/model.safetensors")
    before = {path: path.stat().st_mtime_ns for path in weights}
    again = cover("demo", "--out", str(demo.out), "--scale", "0.002", "--workers", "0")
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert json.loads((demo.out / "results.json").read_text())["datasets"] == first["datasets"]
