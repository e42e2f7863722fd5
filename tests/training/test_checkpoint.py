"""Faults and their outcomes: files damaged, disks full or read-only, folders renamed; which checkpoints are kept; the
exact resume.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cover import config
from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerOptions
from cover.model.release import find_release, load_release, steps_saved
from cover.training.checkpoint import cut_lines, problem_of
from cover.training.recipe import Augment, Checkpoints, Data, NonFinite, Optimizer, Recipe
from cover.training.retention import best_step, dev_scores
from cover.training.step import StepResult, train_step
from cover.training.train import train

Launch = Callable[..., Any]
MakeSet = Callable[..., Path]


def make_recipe(catalog: Path, out: Path, **changes: Any) -> Recipe:
    base = Recipe(
        Data(["ssv2", "imagenet"], str(catalog), frames=4),
        str(out),
        steps=6,
        batch=8,
        workers=0,
        log_every=1,
        evaluate_every=-1,
    )
    return replace(base, **{"save_every": 2, **changes})


def written(recipe: Recipe, folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(config.dump(recipe), encoding="utf-8")
    return file


def log_of(run: Path, event: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_release(run) / "model.safetensors")


def same_weights(run: Path, other: Path) -> bool:
    result, wanted = weights_of(run), weights_of(other)
    return result.keys() == wanted.keys() and all(torch.equal(value, wanted[name]) for name, value in result.items())


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def whole(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of six steps with checkpoints of steps 2, 4 and 6, everything random switched on."""
    recipe = make_recipe(
        sandbox,
        tmp_path_factory.mktemp("whole") / "run",
        ema=0.9,
        checkpoints=Checkpoints(3),
        label_smoothing=0.1,
        model=TimeSformerOptions(drop_path=0.2, dropout=0.2, head_dropout=0.1),
        augment=Augment(randaugment="m7-n2", erase=0.3, mixup=0.8, cutmix=1.0),
    )
    return train(recipe)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of `whole` to be damaged."""
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:07d}"


def recipe_of(run: Path) -> Recipe:
    return replace(config.load(Recipe, run / "recipe.yaml"), out=str(run))


def resume(run: Path, **changes: Any) -> None:
    recipe = recipe_of(run)
    (run / "recipe.yaml").write_text(config.dump(recipe), encoding="utf-8")
    train(replace(recipe, **changes), resume=True)


# --- resumed to the last bit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4])
def test_from_any_checkpoint_a_run_ends_in_the_same_weights(run: Path, whole: Path, step: int) -> None:
    for later in [saved for saved in steps_saved(run) if saved > step]:
        shutil.rmtree(checkpoint(run, later))
    resume(run)
    assert same_weights(run, whole)
    assert [line["step_loss"] for line in log_of(run)] == [line["step_loss"] for line in log_of(whole)]


def test_a_release_of_a_run_with_an_average_is_the_average(whole: Path, sandbox: Path, tmp_path: Path) -> None:
    recipe = replace(recipe_of(whole), out=str(tmp_path / "plain"), ema=0.0)
    assert not same_weights(train(recipe), whole)
    assert [line["step_loss"] for line in log_of(tmp_path / "plain")] == [line["step_loss"] for line in log_of(whole)]


def test_what_does_not_change_the_result_may_change_at_a_resume(run: Path, whole: Path) -> None:
    shutil.rmtree(checkpoint(run, 6))
    data = replace(recipe_of(run).data, unreadable=0.1)
    resume(run, workers=1, data=data, checkpoints=Checkpoints(1, background=False), nonfinite=NonFinite("skip"))
    assert same_weights(run, whole)
    assert steps_saved(run) == [6]


# --- damage -----------------------------------------------------------------------------------------------------------


def cut_short(folder: Path) -> None:
    os.truncate(folder / "state" / "__0_0.distcp", 5000)


def flip_a_bit(folder: Path) -> None:
    with (folder / "state" / "__0_0.distcp").open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)[0]
        file.seek(100_000)
        file.write(bytes([byte ^ 4]))


def lose_a_file(folder: Path) -> None:
    (folder / "state" / ".metadata").unlink()


def lose_the_list(folder: Path) -> None:
    (folder / "complete.json").unlink()


def tear_the_list(folder: Path) -> None:
    os.truncate(folder / "complete.json", 50)


DAMAGE = {
    cut_short: "state/__0_0.distcp is cut short or changed",
    flip_a_bit: "state/__0_0.distcp is damaged",
    lose_a_file: ".metadata is missing",
    lose_the_list: "has no complete.json: torn, or of an earlier version",
    tear_the_list: "complete.json cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    run: Path, whole: Path, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(checkpoint(run, 6))
    resume(run)
    assert f"step-0000006: {DAMAGE[damage]}" in capsys.readouterr().err
    assert (run / "checkpoints" / "damaged-step-0000006").is_dir()
    assert same_weights(run, whole)
    assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("listed", [False, True], ids=["this version", "an earlier version, which listed the card"])
def test_an_edited_model_card_is_no_damage(run: Path, listed: bool) -> None:
    folder = checkpoint(run, 6)
    facts = json.loads((folder / "complete.json").read_text(encoding="utf-8"))
    assert "model.safetensors" in facts["files"]
    assert "README.md" not in facts["files"]
    if listed:
        facts["files"]["README.md"] = {"bytes": 1, "sha256": ""}
        (folder / "complete.json").write_text(json.dumps(facts), encoding="utf-8")
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write("\nOur own words.\n")
    assert problem_of(folder) == ""


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(run: Path) -> None:
    for step in (2, 4, 6):
        flip_a_bit(checkpoint(run, step))
    with pytest.raises(UserError, match="no other checkpoint to go on from") as error:
        resume(run)
    assert "step-0000002" in one_line(error)
    assert steps_saved(run) == [2], "the first is left as it is"


def test_a_checkpoint_half_written_is_none(run: Path, whole: Path) -> None:
    checkpoint(run, 6).rename(run / "checkpoints" / ".step-0000006.writing")
    assert steps_saved(run) == [2, 4]
    assert find_release(run) == checkpoint(run, 4)
    resume(run)
    assert same_weights(run, whole)
    assert not (run / "checkpoints" / ".step-0000006.writing").exists()


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_stops_the_run_and_leaves_the_checkpoint_before(
    sandbox: Path, tmp_path: Path, launch: Launch
) -> None:
    """The limit on the size of a file, set while the run goes on, stands for the end of the disk."""
    run = tmp_path / "run"
    running = launch("train", written(make_recipe(sandbox, run, steps=5000, save_every=4), tmp_path))
    running.until(lambda: bool(steps_saved(run)))
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))
    code, said = running.ended()
    assert code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("cover train:")]
    assert "cannot be written: File too large; the checkpoint before it is intact" in line
    assert problem_of(find_release(run)) == ""
    assert not list((run / "checkpoints").glob(".step*"))


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.full
def test_a_small_disk(sandbox: Path, tmp_path: Path, launch: Launch) -> None:
    with small_disk(tmp_path / "disk", "42m") as disk:
        run = disk / "run"
        code, said = launch(
            "train", written(make_recipe(sandbox, run, steps=200, checkpoints=Checkpoints(20)), tmp_path)
        ).ended()
        assert code == 2
        (line,) = [line for line in said.splitlines() if line.startswith("cover train:")]
        assert "No space left on device; the checkpoint before it is intact" in line
        assert problem_of(find_release(run)) == ""


@pytest.mark.full
def test_a_disk_that_becomes_read_only(sandbox: Path, tmp_path: Path, launch: Launch) -> None:
    with small_disk(tmp_path / "disk", "200m") as disk:
        run, recipe = disk / "run", make_recipe(sandbox, disk / "run", steps=5000, save_every=10, log_every=100_000)
        running = launch("train", written(recipe, tmp_path))
        running.until(lambda: bool(steps_saved(run)))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=False)
        code, said = running.ended()
        assert code == 2
        assert "Read-only file system; the checkpoint before it is intact" in said
        assert problem_of(find_release(run)) == ""
        with pytest.raises(UserError, match="cannot be written: Read-only file system") as error:
            train(replace(recipe, out=str(disk / "other")))
        one_line(error)


def test_a_place_that_cannot_hold_checkpoints_is_found_before_the_first_step(sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"out: .*cannot be written: File exists") as error:
        train(make_recipe(sandbox, tmp_path / "run"))
    one_line(error)


# --- data that go away ------------------------------------------------------------------------------------------------


def test_a_data_folder_renamed_while_training_stops_the_run(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({f"{letter}.png": letter for letter in "abcdefgh"})
    recipe = Recipe(
        Data(["mine"], str(catalog)),
        str(tmp_path / "run"),
        steps=5000,
        batch=4,
        workers=0,
        log_every=1,
        evaluate_every=-1,
    )
    away = threading.Thread(target=rename_after_a_step, args=(tmp_path,))
    away.start()
    with pytest.raises(
        UserError, match=r"of the last \d+ draws of mine could not be read, more than data\.unreadable"
    ) as error:
        train(recipe)
    away.join()
    assert "go on with --resume" in one_line(error)
    assert log_of(tmp_path / "run")[-1]["files_damaged"] == 4
    assert all("unreadable" in note for note in log_of(tmp_path / "run")[-1]["files"])
    assert steps_saved(tmp_path / "run") == []


def rename_after_a_step(folder: Path) -> None:
    log = folder / "run" / "log.jsonl"
    while not (log.exists() and log_of(folder / "run")):
        time.sleep(0.01)
    (folder / "mine").rename(folder / "elsewhere")


def test_a_share_that_is_allowed_goes_on(make_set: MakeSet, spoil: Callable[[Path], None], tmp_path: Path) -> None:
    catalog = make_set({f"{letter}.png": letter for letter in "abcdefgh"})
    spoil(tmp_path / "mine" / "b.png")
    recipe = Recipe(
        Data(["mine"], str(catalog)), str(tmp_path / "run"), steps=8, batch=4, workers=0, log_every=1, evaluate_every=-1
    )
    assert len(log_of(train(recipe))) == 8
    with pytest.raises(UserError, match="2 of the last 16 draws of mine"):
        train(replace(recipe, out=str(tmp_path / "strict"), data=replace(recipe.data, unreadable=0.1)))


# --- numbers that are not ---------------------------------------------------------------------------------------------


def test_a_wild_run_ends_without_a_checkpoint_and_names_its_draws(sandbox: Path, tmp_path: Path) -> None:
    wild = Optimizer("sgd", lr=1e6, warmup=0, max_grad_norm=0, momentum=0)
    with pytest.raises(UserError, match=r"lower optimizer\.lr") as error:
        train(make_recipe(sandbox, tmp_path / "run", steps=8, optimizer=wild, save_every=100))
    line = json.loads((tmp_path / "run" / "nonfinite.jsonl").read_text(encoding="utf-8"))
    assert f"step {line['step']}: " in one_line(error)
    assert line["draws"]
    assert {draw["dataset"] for draw in line["draws"]} <= {"ssv2", "imagenet"}
    assert steps_saved(tmp_path / "run") == []


def test_a_gradient_that_is_not_finite_is_skipped_and_recorded(
    sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def step(model: torch.nn.Module, *value: Any) -> StepResult:
        calls.append(len(calls) + 1)
        hook = next(p for p in model.parameters() if p.requires_grad).register_hook(
            lambda gradient: gradient * (torch.inf if calls[-1] == 2 else 1)
        )
        try:
            return train_step(model, *value)
        finally:
            hook.remove()

    monkeypatch.setattr("cover.training.train.train_step", step)
    run = train(make_recipe(sandbox, tmp_path / "run", steps=3, nonfinite=NonFinite("skip", 2), log_every=1))
    (line,) = [json.loads(text) for text in (run / "nonfinite.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (line["step"], line["cause"]) == (2, "gradient")
    assert len(line["draws"]) == make_recipe(sandbox, tmp_path).batch
    assert all(math.isfinite(draw["loss"]) for draw in line["draws"])
    assert all(value.isfinite().all() for value in weights_of(run).values())
    assert [each["grad_norm"] is None for each in log_of(run)] == [False, True, False]


def test_skipping_has_a_budget(sandbox: Path, tmp_path: Path) -> None:
    wild = Optimizer("sgd", lr=1e6, warmup=0, max_grad_norm=0, momentum=0)
    recipe = make_recipe(sandbox, tmp_path / "run", steps=12, optimizer=wild, nonfinite=NonFinite("skip", 2))
    with pytest.raises(UserError, match=r"3 updates left out, more than nonfinite\.budget \(2\)") as error:
        train(recipe)
    one_line(error)
    assert len((tmp_path / "run" / "nonfinite.jsonl").read_text(encoding="utf-8").splitlines()) == 3


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_best_by_mean_rank_is_not_the_best_by_mean_score() -> None:
    scores = {
        2: {"a": 0.90, "b": 0.10, "c": 0.10},
        4: {"a": 0.30, "b": 0.12, "c": 0.12},
        6: {"a": 0.20, "b": 0.11, "c": 0.13},
    }
    assert best_step(scores, [2, 4, 6], "mean_rank") == 4  # ranks 1 3 3, 2 1 2, 3 2 1
    assert best_step(scores, [2, 4, 6], "a") == 2
    assert best_step(scores, [4, 6], "c") == 6
    assert best_step(scores, [2, 4, 6], "") is None
    assert best_step(scores, [8], "mean_rank") is None


def test_of_equals_the_earliest_is_the_best() -> None:
    assert (
        best_step({4: {"a": 0.5}, 2: {"a": 0.5}}, [2, 4], "mean_rank")
        == best_step({4: {"a": 0.5}, 2: {"a": 0.5}}, [2, 4], "a")
        == 2
    )


def test_the_last_and_the_best_are_kept(sandbox: Path, tmp_path: Path) -> None:
    recipe = make_recipe(sandbox, tmp_path / "run", steps=8, checkpoints=Checkpoints(1, "ssv2"))
    run = train(replace(recipe, evaluate_every=2))
    scores = {step: item["ssv2"] for step, item in dev_scores(run / "log.jsonl").items()}
    assert list(scores) == [2, 4, 6, 8]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert steps_saved(run) == sorted({best, 8})
    assert (run / "checkpoints" / "best").resolve() == checkpoint(run, best).resolve()
    assert load_release(find_release(run / "checkpoints" / "best")).metadata["step"] == best


def test_lines_beyond_a_step_are_cut_and_a_torn_one(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 1')
    cut_lines(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_signal_while_a_checkpoint_is_written_waits_for_it(sandbox: Path, tmp_path: Path, launch: Launch) -> None:
    run = tmp_path / "run"
    running = launch("train", written(make_recipe(sandbox, run, steps=5000, save_every=1), tmp_path))
    running.until(lambda: len(steps_saved(run)) > 1)
    running.process.send_signal(signal.SIGINT)
    code, said = running.ended()
    assert code == 128 + signal.SIGINT, said
    assert steps_saved(run)[-1] == log_of(run)[-1]["step"]
    assert [problem_of(checkpoint(run, step)) for step in steps_saved(run)] == ["", ""]
