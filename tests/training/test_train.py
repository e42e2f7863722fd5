"""The three kinds of run on real files, and that stopping changes nothing: killed, terminated, resumed."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Command
from safetensors.torch import load_file

from cover import config
from cover.datasets.index import index
from cover.errors import UserError
from cover.model.backbones.timesformer import TimeSformerOptions
from cover.model.heads import head_of
from cover.model.release import find_release, load_release, read_config, steps_saved
from cover.training.recipe import Augment, Checkpoints, Data, Distributed, NonFinite, Optimizer, Recipe, Start
from cover.training.train import train

MakeSet = Callable[..., Path]
ALL = ["kinetics", "ssv2", "moments", "imagenet"]


def make_recipe(catalog: Path, out: Path, sets: list[str], **changes: Any) -> Recipe:
    base = Recipe(
        Data(sets, str(catalog), frames=4), str(out), steps=3, batch=8, workers=0, log_every=1, evaluate_every=-1
    )
    return replace(base, **changes)


def log_of(run: Path, event: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_release(run) / "model.safetensors")


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- the three kinds of recipe ----------------------------------------------------------------------------------------


def test_pretraining_then_cotraining_then_one_set_alone(sandbox: Path, tmp_path: Path) -> None:
    images = make_recipe(
        sandbox, tmp_path / "images", ["imagenet"], model=TimeSformerOptions(image_temporal="skip"), evaluate_every=0
    )
    pretrained = train(images)
    before = weights_of(pretrained)
    for name, value in before.items():
        if "temporal_attn.proj" in name:
            source = name.replace("temporal_attn", "attn")
            assert not torch.equal(value, before[source]), (
                "the spatial attention moved away from the untrained temporal one"
            )
        if "temporal_fc" in name:
            assert not value.any()
    (dev,) = log_of(pretrained, "dev")
    assert dev["datasets"]["imagenet"]["n_read"] == dev["datasets"]["imagenet"]["n_listed"] > 0

    start = Start(str(pretrained), "fresh")
    together = train(make_recipe(sandbox, tmp_path / "together", ALL, start=start, steps=4, batch=12))
    alone = train(make_recipe(sandbox, tmp_path / "alone", ["ssv2"], start=start))
    assert [head.name for head in load_release(find_release(together)).head_list] == ALL
    assert [head.name for head in load_release(find_release(alone)).head_list] == ["ssv2"]
    for run in (together, alone):
        moved = weights_of(run)
        assert all(
            not torch.equal(moved[name], before[name]) for name in moved if name in before and head_of(name) is None
        )
        assert all(moved[name].any() for name in moved)


def test_the_head_of_a_set_is_trained_whatever_its_name_in_a_mixture_of_images(sandbox: Path, tmp_path: Path) -> None:
    entry = yaml.safe_load(sandbox.read_text(encoding="utf-8"))["imagenet"]
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(yaml.safe_dump({"temporal_things": {**entry, "root": str(sandbox.parent / entry["root"])}}))
    index(catalog, workers=0)
    weights = weights_of(train(make_recipe(catalog, tmp_path / "run", ["temporal_things"])))
    assert weights["heads.temporal_things.bias"].any()
    assert not weights["backbone.blocks.0.temporal_fc.weight"].any()


def test_the_log_says_what_was_drawn(sandbox: Path, tmp_path: Path) -> None:
    run = train(make_recipe(sandbox, tmp_path / "run", ALL, steps=5, batch=12))
    (start,) = log_of(run, "start")
    lines = log_of(run)
    sizes = {name: metadata["train_samples"] for name, metadata in start["datasets"].items()}
    images = round(12 * sizes["imagenet"] / sum(sizes.values()))
    assert start["groups"] == [{"frames": 4, "samples": 12 - images}, {"frames": 1, "samples": images}]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        assert sum(line["rate_wanted"].values()) == pytest.approx(1)
        assert sum(line["rate_realised"].values()) == pytest.approx(1)
        assert sum(line["seen"].values()) == 12 * line["step"]
        for name, wanted in line["rate_wanted"].items():
            assert abs(line["rate_realised"][name] - wanted) < 1 / (12 * line["step"])
            assert line["epochs"][name] == line["seen"][name] / start["datasets"][name]["train_samples"]
        assert set(line["loss"]) == set(line["top1"]) <= set(ALL)
        assert line["samples_per_s"] > 0
        assert 0 <= line["wait_share"] <= 1
    assert lines[0]["loss"]["imagenet"] == pytest.approx(math.log(12), rel=0.03), "heads start near chance"
    metadata = read_config(find_release(run)).metadata
    assert (metadata["step"], metadata["frames"], set(metadata["datasets"])) == (5, 4, set(ALL))


def test_training_learns_what_can_be_learned_by_heart(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({f"{letter}.png": letter for letter in "abcd"}, crop_scale="[1, 1]")
    recipe = make_recipe(catalog, tmp_path / "run", ["mine"], steps=60, batch=4, augment=Augment(flip=False, colour=0))
    lines = log_of(train(recipe))
    assert lines[-1]["loss"]["mine"] < 0.1 * lines[0]["loss"]["mine"]
    assert lines[-1]["top1"]["mine"] == 1


def test_every_other_setting_at_once(sandbox: Path, tmp_path: Path) -> None:
    sgd = Optimizer("sgd", lr=0.01, max_grad_norm=0, schedule="constant")
    recipe = make_recipe(
        sandbox,
        tmp_path / "run",
        ["ssv2", "imagenet"],
        accumulation=2,
        precision="bf16",
        label_smoothing=0.1,
        optimizer=sgd,
        model=TimeSformerOptions(time="additive", image_temporal="skip", drop_path=0.2),
    )
    recipe = replace(recipe, data=replace(recipe.data, weights={"ssv2": 1, "imagenet": 3}, loss_weights={"ssv2": 2}))
    run = train(recipe)
    assert log_of(run)[-1]["rate_wanted"] == {"ssv2": 0.25, "imagenet": 0.75}
    assert all(math.isfinite(line["step_loss"]) for line in log_of(run))
    assert weights_of(run)["backbone.time_embed"].any()
    assert config.load(Recipe, run / "recipe.yaml") == recipe


def test_loss_weights_count_in_the_step_and_not_in_the_means(sandbox: Path, tmp_path: Path) -> None:
    recipe = make_recipe(sandbox, tmp_path / "plain", ["ssv2", "imagenet"], steps=1)
    weighed = replace(
        recipe, out=str(tmp_path / "weighed"), data=replace(recipe.data, loss_weights={"ssv2": 3.0, "imagenet": 0.0})
    )
    plain, changed = (log_of(train(one))[0] for one in (recipe, weighed))
    assert changed["loss"] == plain["loss"]
    assert plain["step_loss"] == pytest.approx(
        sum(plain["seen"][name] / 8 * plain["loss"][name] for name in plain["loss"]), rel=1e-5
    )
    assert changed["step_loss"] == pytest.approx(3 * plain["seen"]["ssv2"] / 8 * plain["loss"]["ssv2"], rel=1e-5)


def test_a_file_lost_after_indexing_is_counted_and_named(
    make_set: MakeSet, spoil: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    catalog = make_set({f"{letter}.mp4": letter for letter in "abcd"})
    spoil(tmp_path / "mine" / "b.mp4")
    run = train(make_recipe(catalog, tmp_path / "run", ["mine"], steps=2, batch=4, log_every=2))
    (line,) = log_of(run)
    assert line["files_damaged"] == 2
    assert all("b.mp4: unreadable" in note for note in line["files"])
    assert line["seen"] == {"mine": 8}
    record = capfd.readouterr().err.splitlines()
    assert any(" GB  2 damaged" in text for text in record)
    assert record[-1].startswith("2 draws were of damaged or unreadable files; ")


# --- stopping and going on --------------------------------------------------------------------------------------------

STEPS, SAVE_EVERY = 16, 4


def cover(*arguments: str) -> Command:
    return Command("train", *arguments)


def wait_for(process: Command, ready: Callable[[], bool]) -> None:
    while not ready():
        if process.poll() is not None:
            pytest.fail(f"ended too early:\n{process.stderr.read()}")
        time.sleep(0.01)


def logged_steps(run: Path) -> int:
    log = run / "log.jsonl"
    return sum('"train"' in line for line in log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


@pytest.fixture(scope="module")
def stopped(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two runs of one recipe: one unbroken, and one killed after its first checkpoint, resumed, terminated and resumed
    again.
    """
    folder = tmp_path_factory.mktemp("stopped")
    recipe = make_recipe(
        sandbox,
        folder / "broken",
        ALL,
        steps=STEPS,
        save_every=SAVE_EVERY,
        workers=2,
        model=TimeSformerOptions(drop_path=0.2),
        augment=Augment(colour=0.3),
        optimizer=Optimizer(lr=2e-3),
    )
    file, run = folder / "recipe.yaml", folder / "broken"
    file.write_text(config.dump(recipe), encoding="utf-8")
    unbroken = cover(str(file), "--out", str(folder / "unbroken"), "--workers", "0")

    killed = cover(str(file))
    wait_for(killed, lambda: bool(steps_saved(run)) and logged_steps(run) > SAVE_EVERY)
    killed.kill()
    killed.communicate(timeout=60)  # ends only when its workers have let go of the pipes: none of them may outlive it
    at_kill = steps_saved(run)[-1], logged_steps(run)
    with (run / "log.jsonl").open("a", encoding="utf-8") as log:
        # beyond the checkpoint, and torn
        log.write('{"event": "train", "step": 15, "step_loss": 0}\n{"event": "train", "step": 1')
    results: dict[str, Any] = {"recipe": recipe, "run": run, "at_kill": at_kill}

    terminated = cover(str(file), "--resume", "--workers", "0")
    wait_for(terminated, lambda: is_resumed(run, results["at_kill"][0]))
    terminated.send_signal(signal.SIGTERM)
    terminated.communicate()
    results |= {"at_term": (steps_saved(run)[-1], logged_steps(run)), "term_code": terminated.returncode}

    finished = cover(str(file), "--resume")
    results |= {"out": finished.communicate(), "code": finished.returncode}
    unbroken.communicate()
    return {**results, "unbroken": folder / "unbroken", "unbroken_code": unbroken.returncode}


def is_resumed(run: Path, saved: int) -> bool:
    """Whether a step has been logged since the run went on from step `saved`."""
    _, resumed, since = (
        (run / "log.jsonl").read_text(encoding="utf-8").rpartition(f'{{"event": "start", "step": {saved},')
    )
    return bool(resumed) and '"train"' in since


def test_resumed_runs_repeat_the_loss_sequence(stopped: dict[str, Any]) -> None:
    assert (stopped["unbroken_code"], stopped["code"]) == (0, 0), stopped["out"]
    timing = {"seconds", "samples_per_s", "tokens_per_s", "flops_per_s", "mfu", "memory_bytes", "wait_share", "shares"}
    broken, unbroken = (
        [{k: v for k, v in line.items() if k not in timing} for line in log_of(stopped[run])]
        for run in ("run", "unbroken")
    )
    assert [line["step"] for line in broken] == list(range(1, STEPS + 1))
    assert broken == unbroken


def test_resumed_runs_end_with_the_same_weights(stopped: dict[str, Any]) -> None:
    broken, unbroken = weights_of(stopped["run"]), weights_of(stopped["unbroken"])
    assert broken.keys() == unbroken.keys()
    assert [name for name in broken if not torch.equal(broken[name], unbroken[name])] == []


def test_the_kill_came_between_checkpoints_and_the_last_ones_are_kept(stopped: dict[str, Any]) -> None:
    saved, logged = stopped["at_kill"]
    assert SAVE_EVERY <= saved <= logged < STEPS
    assert next(line["step"] for line in log_of(stopped["run"], "start")) == 0
    assert steps_saved(stopped["run"]) == [STEPS - SAVE_EVERY, STEPS]


def test_termination_saves_the_step_it_is_in(stopped: dict[str, Any]) -> None:
    assert stopped["term_code"] == 128 + signal.SIGTERM
    saved, logged = stopped["at_term"]
    assert saved == logged < STEPS


def test_a_finished_run_resumes_to_nothing(sandbox: Path, tmp_path: Path) -> None:
    recipe = make_recipe(sandbox, tmp_path / "run", ["imagenet"], steps=2)
    run = train(recipe)
    before, lines = (find_release(run) / "model.safetensors").read_bytes(), log_of(run)
    assert train(replace(recipe, workers=1, device="cpu"), resume=True) == run
    assert (find_release(run) / "model.safetensors").read_bytes() == before
    assert log_of(run) == lines


def test_a_run_does_not_go_on_with_other_rows(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({f"{letter}.png": letter for letter in "abcd"})
    recipe = make_recipe(catalog, tmp_path / "run", ["mine"], steps=2, batch=2)
    train(recipe)
    index(catalog, 0, force=True)
    assert train(recipe, resume=True) == tmp_path / "run"  # the same rows, whenever they were indexed
    (catalog.parent / "mine" / "b.png").unlink()
    index(catalog, 0)
    with pytest.raises(UserError, match="begun with other rows of mine"):
        train(recipe, resume=True)


def test_a_run_stopped_before_its_first_checkpoint_begins_again(sandbox: Path, tmp_path: Path) -> None:
    recipe = make_recipe(sandbox, tmp_path / "run", ["imagenet"], steps=2)
    wanted = [line["step_loss"] for line in log_of(train(replace(recipe, out=str(tmp_path / "whole"))))]
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(config.dump(recipe), encoding="utf-8")
    (run / "log.jsonl").write_text('{"event": "start", "step": 0}\n{"event": "train", "step": 1, "step_loss": 9}\n')
    assert [line["step_loss"] for line in log_of(train(recipe, resume=True))] == wanted
    assert len(log_of(run, "start")) == 1


# --- what is wrong before the first step ------------------------------------------------------------------------------


def test_a_full_folder_is_not_overwritten(trained: Path, sandbox: Path) -> None:
    with pytest.raises(UserError, match="--resume, or choose another folder") as error:
        train(make_recipe(sandbox, trained, ALL))
    assert str(trained) in one_line(error)


def test_nothing_to_resume(sandbox: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to resume") as error:
        train(make_recipe(sandbox, tmp_path / "nothing", ALL), resume=True)
    one_line(error)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("optimizer.lr", {"optimizer": Optimizer(lr=5e-4)}),
        ("steps", {"steps": 9}),
        ("data.frames", {"frames": 2}),
        ("seed", {"seed": 1}),
    ],
)
def test_a_changed_recipe_is_not_resumed(trained: Path, key: str, changes: dict[str, Any]) -> None:
    recipe = config.load(Recipe, trained / "recipe.yaml")
    frames = changes.pop("frames", recipe.data.frames)
    before = (trained / "log.jsonl").read_bytes()
    with pytest.raises(UserError, match=f"was begun with {key} ") as error:
        train(replace(recipe, data=replace(recipe.data, frames=frames), **changes), resume=True)
    one_line(error)
    assert (trained / "log.jsonl").read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint(sandbox: Path, tmp_path: Path) -> None:
    wild = Optimizer("sgd", lr=1e6, warmup=0, max_grad_norm=0, momentum=0)
    recipe = make_recipe(sandbox, tmp_path / "run", ["imagenet"], steps=8, optimizer=wild, save_every=100)
    with pytest.raises(UserError, match=r"lower optimizer\.lr") as error:
        train(recipe)
    one_line(error)
    assert steps_saved(tmp_path / "run") == []


def test_a_start_whose_heads_have_other_classes(make_set: MakeSet, tmp_path: Path) -> None:
    make_set({"a.png": "cat", "b.png": "dog"}, name="pets")
    first = train(make_recipe(tmp_path / "catalog.yaml", tmp_path / "first", ["pets"], steps=1, batch=2))
    (tmp_path / "catalog.yaml").unlink()
    (tmp_path / "pets").rename(tmp_path / "old")
    catalog = make_set({"a.png": "cat", "b.png": "dog", "c.png": "cow"}, name="pets")
    with pytest.raises(UserError, match='its head "pets" has other classes') as error:
        train(make_recipe(catalog, tmp_path / "second", ["pets"], start=Start(str(first)), steps=1, batch=2))
    one_line(error)


def test_a_set_without_a_usable_row(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({"a.mp4": "x", "b.mp4": "y"}, absent=["a.mp4"], corrupt=["b.mp4"])
    with pytest.raises(UserError, match="none of its 2 rows is readable and labelled") as error:
        train(make_recipe(catalog, tmp_path / "run", ["mine"]))
    one_line(error)


def test_a_name_that_no_head_can_have(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({"a.png": "x", "b.png": "y"}, name="train")
    with pytest.raises(UserError, match='"train" cannot name a head') as error:
        train(make_recipe(catalog, tmp_path / "run", ["train"]))
    one_line(error)


def test_a_default_head_that_the_model_lacks(make_set: MakeSet, tmp_path: Path) -> None:
    recipe = make_recipe(make_set({"a.png": "x", "b.png": "y"}, name="pets"), tmp_path / "run", ["pets"])
    with pytest.raises(UserError, match=r'default_head: .*no head "pet"; did you mean "pets"') as error:
        train(replace(recipe, default_head="pet"))
    one_line(error)


def test_a_folder_that_cannot_be_made(sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as error:
        train(make_recipe(sandbox, tmp_path / "file" / "run", ["imagenet"]))
    one_line(error)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"frames": 0}, "data.frames"),
        ({"alpha": math.nan}, "data.alpha"),
        ({"weights": {"ssv3": 1}}, "data.weights"),
        ({"loss_weights": {"ssv2": -1}}, "data.loss_weights"),
        ({"sets": ["ssv2", "ssv2"]}, "data.sets"),
        ({"sets": []}, "data.sets"),
        ({"model": TimeSformerOptions(drop_path=1)}, "model.drop_path"),
        ({"model": TimeSformerOptions(size=0)}, "model.size"),
        ({"optimizer": Optimizer(lr=-1)}, "optimizer.lr"),
        ({"optimizer": Optimizer(betas=(0.9, 1.0))}, "optimizer.betas"),
        ({"optimizer": Optimizer(warmup=2)}, "optimizer.warmup"),
        ({"optimizer": Optimizer(max_grad_norm=-1)}, "optimizer.max_grad_norm"),
        ({"augment": Augment(colour=2)}, "augment.colour"),
        ({"checkpoints": Checkpoints(keep=0)}, "checkpoints.keep"),
        ({"checkpoints": Checkpoints(best="ssv3")}, "checkpoints.best"),
        ({"nonfinite": NonFinite(budget=-1)}, "nonfinite.budget"),
        ({"distributed": Distributed(timeout=0)}, "distributed.timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_out_of_range(changes: dict[str, Any], key: str) -> None:
    of_data = {
        name: changes.pop(name) for name in ("frames", "alpha", "weights", "loss_weights", "sets") if name in changes
    }
    with pytest.raises(UserError, match=rf"^{key}[.:]") as error:
        Recipe(Data(**{"sets": ["ssv2"], **of_data}), "runs/x", **{"steps": 1, **changes})
    one_line(error)


def test_memory_that_is_used_up_is_one_line(sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr("cover.training.train.train_step", full)
    recipe = Recipe(
        Data(["ssv2"], str(sandbox), frames=4), str(tmp_path / "run"), steps=2, batch=8, accumulation=2, workers=0
    )
    with pytest.raises(UserError, match=r"4 samples at once do not fit.*raise accumulation"):
        train(recipe)
