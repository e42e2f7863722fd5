"""What may change when a run is resumed, how a run ends at a signal, and checkpoints by time."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cover import config
from cover.cli import main
from cover.datasets.index import index
from cover.errors import UserError
from cover.model.release import find_release, steps_saved
from cover.training.checkpoint import SaveClock, last_whole
from cover.training.recipe import Checkpoints, Data, Optimizer, Recipe
from cover.training.train import StopSignal, train

# --- what may change, and what may not --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 steps in a project that can be moved: its catalog, its files and its folder."""
    project = tmp_path_factory.mktemp("begun") / "project"
    shutil.copytree(sandbox.parent, project / "sandbox", copy_function=shutil.copy2)
    data = Data(["imagenet"], str(project / "sandbox/catalog.yaml"))
    constant = Optimizer(schedule="constant", warmup=0.0)
    recipe = Recipe(data, str(project / "run"), 4, 8, optimizer=constant, workers=0, log_every=1, evaluate_every=-1)
    return train(recipe).parent


@pytest.fixture
def project(begun: Path, tmp_path: Path) -> Path:
    """The project at another place, one step before its end."""
    shutil.copytree(begun, tmp_path / "moved", copy_function=shutil.copy2)
    run = tmp_path / "moved/run"
    (run / "checkpoints/step-0000002").mkdir(exist_ok=True)
    return tmp_path / "moved"


def recipe_in(project: Path, **changes: Any) -> Recipe:
    recipe = config.load(Recipe, project / "run/recipe.yaml")
    recipe = replace(recipe, out=str(project / "run"), **changes)
    return replace(recipe, data=replace(recipe.data, catalog=str(project / "sandbox/catalog.yaml")))


def weights(run: Path) -> bytes:
    return (find_release(run) / "model.safetensors").read_bytes()


def test_a_moved_run_with_other_intervals_is_prolonged_as_if_it_had_been_longer(begun: Path, project: Path) -> None:
    longer = {"steps": 6, "save_every": 1, "log_every": 2, "evaluate_every": 3}
    assert train(recipe_in(project, **longer), resume=True) == project / "run"
    whole = replace(recipe_in(project, steps=6), out=str(project / "whole"))
    assert weights(train(whole)) == weights(project / "run")
    kept = config.load(Recipe, project / "run/recipe.yaml")
    assert (kept.out, kept.steps, kept.log_every) == (str(project / "run"), 6, 2)


def test_the_catalog_may_be_written_in_another_form(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    recipe = recipe_in(project)
    (project / "link.yaml").symlink_to("sandbox/catalog.yaml")
    for form in ("sandbox/catalog.yaml", "./sandbox/../sandbox/catalog.yaml"):
        train(replace(recipe, out="run", data=replace(recipe.data, catalog=form)), resume=True)
        assert "has all its 4 steps already" in capsys.readouterr().err
    said = config.load(Recipe, project / "run/recipe.yaml")
    assert said.out == "run"


@pytest.mark.parametrize(
    ("entry", "key"), [("flip: never", "flip"), ("crop_scale: [0.9, 1]", "crop_scale"), ("dev: 0.5", "rows")]
)
def test_another_catalog_entry_is_refused_and_changes_nothing(project: Path, entry: str, key: str) -> None:
    catalog = project / "sandbox/catalog.yaml"
    text = catalog.read_text(encoding="utf-8")
    catalog.write_text(text.replace("format: imagenet\n", f"format: imagenet\n  {entry}\n"), encoding="utf-8")
    index(catalog, 0, ["imagenet"])
    before = (project / "run/recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=f"begun with .*{key}.* of imagenet"):
        train(recipe_in(project), resume=True)
    assert (project / "run/recipe.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "optimizer",
    [Optimizer(), Optimizer(schedule="constant", warmup=0.5), Optimizer(schedule="steps", milestones=[0.5])],
)
def test_more_steps_that_would_change_the_past_are_refused(project: Path, optimizer: Optimizer) -> None:
    before = recipe_in(project, optimizer=optimizer)
    (project / "run/recipe.yaml").write_text(config.dump(before), encoding="utf-8")
    with pytest.raises(UserError, match=f"--start.checkpoint {project / 'run'} --out NEW"):
        train(replace(before, steps=12), resume=True)


@pytest.mark.parametrize("damage", ["missing", "other", "bytes"])
def test_a_run_without_its_log_is_refused_in_one_line(project: Path, damage: str) -> None:
    log = project / "run/log.jsonl"
    log.unlink()
    if damage != "missing":
        log.write_bytes(b"\xff\xfe\n" if damage == "bytes" else b'{"event": "train", "step": 1}\n')
    with pytest.raises(UserError, match=r"log\.jsonl: .*--start.checkpoint") as refused:
        train(recipe_in(project), resume=True)
    assert "\n" not in str(refused.value)


# --- signals and time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(
    project: Path, capfd: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    run = project / "other"
    log = run / "log.jsonl"

    def send() -> None:
        until = time.monotonic() + 60
        while not (log.exists() and '"train"' in log.read_text()) and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(SystemExit) as ended:
        main(["train", str(project / "run/recipe.yaml"), "--out", str(run), "--steps", "100000"])
    sender.join()
    assert ended.value.code == 128 + number
    step = last_whole(run)
    said = capfd.readouterr().err
    assert f"stopped after {step} of 100000 steps; saved in {run}/checkpoints/step-{step:07d}" in said
    assert f"next: cover train {run}/recipe.yaml --resume" in said


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup does this
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_checkpoints_by_time(project: Path) -> None:
    by_time = recipe_in(project, steps=5, checkpoints=Checkpoints(minutes=1e-7, keep=9))
    assert steps_saved(train(replace(by_time, out=str(project / "often")))) == [1, 2, 3, 4, 5]
    hourly = replace(by_time, out=str(project / "seldom"), checkpoints=Checkpoints(minutes=60, keep=9))
    assert steps_saved(train(hourly)) == [5]


def test_one_rank_asks_for_a_checkpoint_and_once() -> None:
    leading, other = SaveClock(1e-9, True), SaveClock(1e-9, False)
    assert [leading.due(), leading.due(), other.due(), SaveClock(0, True).due()] == [True, False, False, False]
    leading.restart()
    assert leading.due()
