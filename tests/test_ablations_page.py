"""Every line of the page of ablations is a run that can be begun."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from cover.cli import main

ROOT = Path(__file__).parents[1]
LINES = [
    line
    for line in (ROOT / "docs/ablations.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("cover train")
]


@pytest.fixture(scope="module")
def pretrained(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stages") / "pretrain"
    short = ["--data.catalog", str(sandbox), "--steps", "1", "--batch", "4", "--workers", "0", "--out", str(run)]
    assert main(["train", str(ROOT / "recipes/sandbox/pretrain.yaml"), *short]) == 0
    return run


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split(" --", 2)[-1])
def test_a_line_runs_and_changes_what_it_says(line: str, pretrained: Path, sandbox: Path, tmp_path: Path) -> None:
    _, command, recipe, *words = shlex.split(line)
    assert words.pop(0) == "--out"
    words.pop(0)
    short = [
        "--data.catalog",
        str(sandbox),
        "--start.checkpoint",
        str(pretrained),
        "--steps",
        "2",
        "--batch",
        "8",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "run"),
        "--evaluate_every",
        "-1",
    ]
    assert main([command, str(ROOT / recipe), *short, *words]) == 0
    resolved = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text(encoding="utf-8"))
    section, key = words[0].removeprefix("--").split(".")
    assert resolved[section][key] == yaml.safe_load(words[1])
    end = json.loads((tmp_path / "run/log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert (end["event"], end["step"]) == ("end", 2)


def test_every_ablation_has_its_line() -> None:
    text = " ".join(LINES)
    for wanted in (
        "time additive",
        "image_temporal skip",
        "alpha 0 ",
        "alpha 0.5",
        "joint",
        "space",
        "temporal copied",
        "alternating",
    ):
        assert wanted in text + " "
