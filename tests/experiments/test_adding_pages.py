"""The commands of the pages on one's own data and on adding a head do what these say, on generated clips and in fewer
steps.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.experiments.add import add_recipe as settings
from cover.model.release import find_release, read_config

DOCS = Path(__file__).parents[2] / "docs"
ADDING, OWN = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("adding_a_head", "own_data"))


def write_files(page: str) -> list[str]:
    """The YAML blocks of a page under the names that they begin with."""
    blocks = re.findall(r"```yaml\n# (\S+)\n(.*?)```", page, re.DOTALL)
    for name, text in blocks:
        Path(name).write_text(text, encoding="utf-8")
    return [name for name, _ in blocks]


def commands_of(page: str) -> list[list[str]]:
    """The words behind `cover` of every line of the blocks that are executed."""
    return [
        shlex.split(line)[1:]
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
    ]


def run(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints; it has to end well. The generated data are there."""
    if command[0] == "sandbox" or command[:2] == ["index", "sandbox/catalog.yaml"]:
        return ""
    code = main([*command, *([] if command[0] == "overlap" else ["--workers", "0"])])
    output = capsys.readouterr()
    assert code == 0, (command, output.err)
    return output.out


def test_adding_a_head(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sandbox").symlink_to(sandbox.parent)
    assert write_files(ADDING) == ["release.yaml", "mine.yaml"]
    commands = commands_of(ADDING)
    kinds = [command[0] for command in commands]
    assert kinds == [
        "sandbox",
        "index",
        "train",
        "add",
        "predict",
        "add",
        "add",
        "add",
        "train",
        "add",
        "plan",
        "train",
        "evaluate",
    ]
    for place, command in enumerate(commands):
        few = ["--steps", "2"] if command[:2] == ["train", "release.yaml"] else []
        if place == 9:
            before = (find_release("runs/by_hand") / "model.safetensors").stat().st_mtime_ns
        run([*command, *few], capsys)
    assert (find_release("runs/by_hand") / "model.safetensors").stat().st_mtime_ns == before, (
        "measured, and not trained again"
    )
    for out in ("runs/ssv2_probe", "runs/ssv2_replay", "runs/ssv2_alone", "runs/mine"):
        assert [head.name for head in read_config(find_release(out)).heads][:1] == ["ssv2"]
        assert {head.name for head in read_config(find_release(out)).heads} == {"ssv2", "kinetics", "imagenet"}
    assert json.loads(Path("runs/ssv2_probe/add/results.json").read_text(encoding="utf-8"))["compare"]


def test_the_settings_are_those_of_the_code() -> None:
    table = ADDING[ADDING.index("## Its settings") :]
    alone, probe = settings.BUDGETS["alone"], settings.BUDGETS["probe"]
    assert f"{alone.updates:,} steps, from {alone.least_epochs} to {alone.most_epochs}" in table
    assert f"(`probe`: to {probe.most_epochs})" in table
    assert (settings.BATCH, settings.LEAST_BATCH, settings.BATCH * settings.STEPS_IN_AN_EPOCH) == (32, 8, 256)
    assert (settings.PROBE.lr, settings.PROBE.weight_decay, settings.PROBE.warmup) == (1e-2, 0, 0.05)
    assert (settings.FINE.lr, settings.FINE.layer_decay, settings.FINE.head_lr, settings.FINE.warmup) == (
        5e-4,
        0.75,
        4,
        0.1,
    )
    assert (settings.SMOOTHING, settings.REPLAY, settings.REPLAY_ALPHA) == (0.1, 0.5, 0.5)


def make_clips(sandbox: Path) -> None:
    """A folder for each class, and the lists of the same clips, as the page has them."""
    sources = sorted((sandbox.parent / "kinetics_like").rglob("*.mp4"))[:10]
    for number, clip in enumerate(sources):
        target = Path("clips") / ("serve", "smash")[number % 2] / f"{number:03}.mp4"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, target)
    lines = [f"{clip} {clip.parent.name}\n" for clip in sorted(Path("clips").rglob("*.mp4"))]
    Path("train.txt").write_text("".join(lines[::2]), encoding="utf-8")
    Path("val.txt").write_text("".join(lines[1::2]), encoding="utf-8")


def test_own_data(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sandbox").symlink_to(sandbox.parent)
    make_clips(sandbox)
    assert write_files(OWN) == ["catalog.yaml", "scratch.yaml", "groups.yaml"]
    for spec in load_catalog("groups.yaml").specs.values():
        assert spec.group
        assert spec.group.of_path("serve/court3_001.mp4", "", spec.name) == "court3"
    commands = commands_of(OWN)
    assert [command[0] for command in commands] == [
        "fit",
        "index",
        "plan",
        "train",
        "evaluate",
        "train",
        "evaluate",
        "predict",
        "predict",
        "evaluate",
    ]
    printed = []
    for command in commands:
        less = {"add": ["--epochs", "1"], "train": ["--steps", "2", "--batch", "8"]}.get(command[0], [])
        if command[0] == "fit":
            less = ["--heads", "linear"]
        printed.append(run([*command, *less], capsys))
    assert "report.html" in printed[0]
    assert "mine" in printed[1]
    assert "listed" in printed[1]
    assert "by fold" in printed[-1]
    with Path("predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list(Path("clips").rglob("*.mp4")))
