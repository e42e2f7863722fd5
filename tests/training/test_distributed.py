"""The same recipe in one process and in several: the same losses, under DDP and FSDP2, also across a
change of either.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cover import config
from cover.distributed import ProcessGroup, workers_of_a_rank
from cover.errors import UserError
from cover.machine import cores
from cover.model.backbones.timesformer import TimeSformerOptions
from cover.model.release import find_release, steps_saved
from cover.training.checkpoint import problem_of
from cover.training.recipe import Augment, Checkpoints, Data, Distributed, Optimizer, Recipe
from cover.training.train import train

Launch = Callable[..., Any]
STEPS = 10
SGD, ADAMW = Optimizer("sgd", lr=0.02), Optimizer()
RTOL = {"sgd": 1e-5, "adamw": 1e-4}


def make_recipe(catalog: Path, out: Path, **changes: Any) -> Recipe:
    data = Data(["ssv2", "imagenet"], str(catalog), frames=4, weights={"ssv2": 1, "imagenet": 1})
    base = Recipe(
        data,
        str(out),
        steps=STEPS,
        batch=8,
        workers=0,
        log_every=1,
        evaluate_every=-1,
        save_every=STEPS // 2,
        checkpoints=Checkpoints(5),
    )
    return replace(base, **changes)


def written(recipe: Recipe, folder: Path) -> Path:
    file = folder / f"{Path(recipe.out).name}.yaml"
    file.write_text(config.dump(recipe), encoding="utf-8")
    return file


def log_of(run: Path, event: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["step_loss"] for line in log_of(run)}


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_release(run) / "model.safetensors")


def same(results: dict[int, float], wanted: dict[int, float], rtol: float) -> bool:
    return results == {step: pytest.approx(loss, rel=rtol) for step, loss in wanted.items()}


@pytest.fixture(scope="module")
def alone(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Optimizer], Path]:
    """The run of one process with an optimizer."""
    outputs: dict[str, Path] = {}

    def run(optimizer: Optimizer) -> Path:
        if optimizer.name not in outputs:
            recipe = make_recipe(
                sandbox, tmp_path_factory.mktemp("alone") / "run", optimizer=optimizer, evaluate_every=STEPS
            )
            outputs[optimizer.name] = train(recipe)
        return outputs[optimizer.name]

    return run


@pytest.fixture(scope="module")
def together(
    sandbox: Path, tmp_path_factory: pytest.TempPathFactory, launch: Launch
) -> Callable[[str, Optimizer], Path]:
    """The run of two ranks with a strategy and an optimizer."""
    outputs: dict[tuple[str, str], Path] = {}

    def run(strategy: str, optimizer: Optimizer) -> Path:
        if (strategy, optimizer.name) not in outputs:
            folder = tmp_path_factory.mktemp("together")
            recipe = make_recipe(sandbox, folder / "run", optimizer=optimizer, evaluate_every=STEPS)
            if optimizer is SGD:  # the time is up after every step, by the clock of one rank
                recipe = replace(recipe, checkpoints=Checkpoints(minutes=1e-7, keep=99))
            code, said = launch("train", written(recipe, folder), "--distributed.strategy", strategy, ranks=2).ended()
            assert code == 0, said
            outputs[strategy, optimizer.name] = folder / "run"
        return outputs[strategy, optimizer.name]

    return run


# --- the same run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [
        ("ddp", SGD),
        ("fsdp", ADAMW),
        pytest.param("ddp", ADAMW, marks=pytest.mark.full),
        pytest.param("fsdp", SGD, marks=pytest.mark.full),
    ],
    ids=["ddp-sgd", "fsdp-adamw", "ddp-adamw", "fsdp-sgd"],
)
def test_two_ranks_train_as_one(
    alone: Callable[[Optimizer], Path], together: Callable[[str, Optimizer], Path], strategy: str, optimizer: Optimizer
) -> None:
    one, two = alone(optimizer), together(strategy, optimizer)
    assert same(losses(two), losses(one), RTOL[optimizer.name])
    for name in ("grad_norm", "seen", "loss", "lr"):
        assert [line[name] for line in log_of(two)] == [pytest.approx(line[name], rel=1e-3) for line in log_of(one)], (
            name
        )
    assert [line["top1"] for line in log_of(two)] == [line["top1"] for line in log_of(one)]
    assert log_of(two, "start")[0]["ranks"] == 2
    assert optimizer is not SGD or steps_saved(two) == list(range(1, STEPS + 1))
    counts = [{name: item["n_read"] for name, item in log_of(run, "dev")[0]["datasets"].items()} for run in (one, two)]
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 0
    for name, value in weights_of(one).items():
        torch.testing.assert_close(weights_of(two)[name], value, rtol=0, atol=2e-3 * float(value.abs().max()) + 1e-4)


@pytest.mark.full
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_other_setting_at_once(sandbox: Path, tmp_path: Path, launch: Launch, strategy: str, ranks: int) -> None:
    """Micro-batches, pairs that are mixed, an average of the weights, recomputed blocks; frozen parameters in a mixture
    of images.
    """
    for name, data in (("both", {}), ("images", {"sets": ["imagenet"], "weights": {}})):
        recipe = make_recipe(
            sandbox,
            tmp_path / f"{name}-one",
            accumulation=2,
            batch=48,
            ema=0.9,
            steps=3,
            save_every=0,
            optimizer=SGD,
            model=TimeSformerOptions(drop_path=0.2, checkpointing=True),
            augment=Augment(mixup=0.8, randaugment="m7-n2", erase=0.2),
        )
        recipe = replace(recipe, data=replace(recipe.data, **data))
        one, many = train(recipe), tmp_path / f"{name}-many"
        code, said = launch(
            "train", written(recipe, tmp_path), "--out", many, "--distributed.strategy", strategy, ranks=ranks
        ).ended()
        assert code == 0, said
        assert same(losses(many), losses(one), 1e-5)


# --- resumed by others ------------------------------------------------------------------------------------------------


def half(run: Path, folder: Path) -> Path:
    """A copy of a run as it was after its first checkpoint."""
    copy = folder / "half"
    shutil.copytree(run, copy, symlinks=True)
    last = steps_saved(copy)[-1]
    shutil.rmtree(copy / "checkpoints" / f"step-{last:07d}")
    return copy


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("fsdp", "ddp"),
        pytest.param("ddp", "fsdp", marks=pytest.mark.full),
        pytest.param("fsdp", "fsdp", marks=pytest.mark.full),
    ],
)
def test_a_checkpoint_of_one_strategy_is_resumed_under_the_other(
    together: Callable[[str, Optimizer], Path],
    alone: Callable[[Optimizer], Path],
    launch: Launch,
    tmp_path: Path,
    before: str,
    after: str,
) -> None:
    run = half(together(before, ADAMW), tmp_path)
    recipe = replace(config.load(Recipe, run / "recipe.yaml"), out=str(run), distributed=Distributed(after))
    (run / "recipe.yaml").write_text(config.dump(recipe), encoding="utf-8")
    code, said = launch("train", written(recipe, tmp_path), "--resume", ranks=2).ended()
    assert code == 0, said
    assert steps_saved(run) == [STEPS // 2, STEPS]
    assert same(losses(run), losses(alone(ADAMW)), RTOL["adamw"])
    if before == after:
        unbroken = weights_of(together(before, ADAMW))
        assert all(torch.equal(value, unbroken[name]) for name, value in weights_of(run).items())


def test_a_checkpoint_of_two_ranks_is_resumed_by_one(
    together: Callable[[str, Optimizer], Path], alone: Callable[[Optimizer], Path], tmp_path: Path
) -> None:
    run = half(together("fsdp", ADAMW), tmp_path)
    recipe = replace(
        config.load(Recipe, run / "recipe.yaml"), out=str(run), accumulation=2, workers=1, distributed=Distributed()
    )
    (run / "recipe.yaml").write_text(config.dump(replace(recipe, accumulation=1)), encoding="utf-8")
    train(recipe, resume=True)
    assert same(losses(run), losses(alone(ADAMW)), RTOL["adamw"])


# --- what befalls the ranks -------------------------------------------------------------------------------------------


def long(catalog: Path, out: Path, **changes: Any) -> Recipe:
    return make_recipe(catalog, out, **{"steps": 60, "save_every": 5, "checkpoints": Checkpoints(2), **changes})


@pytest.mark.full
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_rank_is_killed_and_torchrun_starts_anew(
    sandbox: Path, tmp_path: Path, launch: Launch, strategy: str
) -> None:
    model = TimeSformerOptions(drop_path=0.2, dropout=0.1)
    recipe = long(sandbox, tmp_path / "run", model=model, ema=0.9, distributed=Distributed(strategy))
    file, run = written(recipe, tmp_path), tmp_path / "run"
    running = launch("train", file, ranks=2, torchrun=True, restarts=2)
    running.until(lambda: bool(steps_saved(run)) and max(losses(run)) % 5 == 3)
    os.kill(running.ranks()[1], signal.SIGKILL)
    code, said = running.ended()
    assert code == 0, said
    assert list(losses(run)) == list(range(1, 61))
    code, said = launch("train", file, "--out", tmp_path / "unbroken", ranks=2).ended()
    assert code == 0, said
    unbroken = weights_of(tmp_path / "unbroken")
    assert all(torch.equal(value, unbroken[name]) for name, value in weights_of(run).items())


def test_termination_of_torchrun_saves_and_leaves(sandbox: Path, tmp_path: Path, launch: Launch) -> None:
    run = tmp_path / "run"
    running = launch("train", written(long(sandbox, run, steps=2000, save_every=0), tmp_path), ranks=2, torchrun=True)
    running.until(lambda: run.exists() and (run / "log.jsonl").exists() and len(losses(run)) > 2)
    running.process.send_signal(signal.SIGTERM)
    code, _ = running.ended()
    assert code != 0
    (saved,) = steps_saved(run)
    assert saved == max(losses(run))
    assert problem_of(run / "checkpoints" / f"step-{saved:07d}") == ""


POISON = '''
import sys

import torch

from cover.cli import main
from cover.model.cover import CoVeR

calls, normalize = 0, CoVeR.normalize


def poisoned(self, frames):
    """Frames as they come out of augmentation, with one value of the second sample of rank 1 spoiled at the fourth
    step.
    """
    global calls
    calls += 1
    pixels = normalize(self, frames)
    if calls == 4 and torch.distributed.get_rank() == 1:
        pixels[4, 0, 5, 5] = torch.nan
    return pixels


CoVeR.normalize = poisoned
sys.exit(main())
'''


@pytest.mark.parametrize("policy", ["stop", pytest.param("skip", marks=pytest.mark.full)])
def test_a_value_that_is_not_a_number_on_one_rank(sandbox: Path, tmp_path: Path, launch: Launch, policy: str) -> None:
    script, run = tmp_path / "poison.py", tmp_path / "run"
    script.write_text(POISON)
    recipe = make_recipe(sandbox, run, steps=6, save_every=3)
    code, said = launch(
        "train", written(recipe, tmp_path), "--nonfinite.policy", policy, ranks=2, torchrun=True, script=script
    ).ended()
    (line,) = [json.loads(text) for text in (run / "nonfinite.jsonl").read_text().splitlines()]
    assert (line["step"], line["cause"]) == (4, "loss")
    (draw,) = line["draws"]
    assert draw["dataset"] == "ssv2"
    assert Path(draw["path"]).is_file()
    assert "step 4: the loss is nan" in said
    if policy == "stop":
        assert code != 0
        assert said.count("set nonfinite.policy to skip") == 1
        assert steps_saved(run) == [3]
    else:
        assert code == 0, said
        assert [line["step"] for line in log_of(run)] == [1, 2, 3, 4, 5, 6]
        assert all(value.isfinite().all() for value in weights_of(run).values())


@pytest.mark.full
def test_a_batch_that_the_ranks_cannot_share(sandbox: Path, tmp_path: Path, launch: Launch) -> None:
    recipe = written(make_recipe(sandbox, tmp_path / "run", batch=6), tmp_path)
    code, said = launch("train", recipe, ranks=2, torchrun=True).ended()
    assert code != 0
    assert said.count("not a multiple of ranks x accumulation = 2") == 1
    assert not (tmp_path / "run").exists()


PAGE = Path(__file__).parents[2] / "docs/many_machines.md"


@pytest.mark.full
def test_the_command_of_the_page(sandbox: Path, tmp_path: Path, launch: Launch) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    command = shlex.split(block)
    module = command.index("-m")
    assert (command[0], command[module : module + 3]) == ("torchrun", ["-m", "cover", "train"])
    recipe = written(make_recipe(sandbox, tmp_path / "run", steps=2), tmp_path)
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command[1:-1], recipe],
        capture_output=True,
        text=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout == f"{tmp_path / 'run'}\n"  # once, whatever the number of ranks
    assert launched.stderr.count("next: cover evaluate") == 1


def test_the_page_names_what_there_is() -> None:
    text, known = PAGE.read_text(encoding="utf-8"), {line.partition(":")[0] for line in config.keys(Recipe)}
    named = set(re.findall(r"`(?:--)?((?:checkpoints|distributed|nonfinite|data)\.(?!jsonl)\w+)", text))
    assert {"checkpoints.best", "distributed.timeout", "nonfinite.budget", "data.unreadable"} <= named <= known
    for recipe in re.findall(r"train (recipes/\S+)", text):
        assert (PAGE.parents[1] / recipe).is_file()


# --- one process ------------------------------------------------------------------------------------------------------


def test_alone_a_sum_is_the_value_itself() -> None:
    group, value = ProcessGroup(torch.device("cpu")), torch.tensor([1.0, 2.0])
    assert group.leads
    assert torch.equal(group.total(value), torch.tensor([1.0, 2.0]))
    assert group.gather("x") == ["x"]
    assert group.once(lambda: 3) == 3
    with pytest.raises(UserError, match="as it is"):
        group.once(lambda: fail("as it is"))


def fail(text: str) -> None:
    raise UserError(text)


def test_ranks_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert workers_of_a_rank(-1) == min(16, max(1, cores() // 2))
    assert workers_of_a_rank(3) == 3
