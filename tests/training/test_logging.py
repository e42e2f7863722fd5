"""What a run says of itself: the figures of a window, where its time goes, what it shows, and what
others keep of it.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import commands
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cover import config
from cover.cli import main
from cover.errors import UserError
from cover.mixture.loader import packs
from cover.mixture.mixture import Mixture
from cover.training.logging import PHASES, Clock, RunLog, scalars_of
from cover.training.recipe import Data, Log, Recipe
from cover.training.step import StepSettings, forward_backward
from cover.training.train import build_model, make_reader, make_schedule, train

MakeSet = Callable[..., Path]
PAGE = Path(__file__).parents[2] / "docs/logs.md"
SETS = ["ssv2", "imagenet"]
TENSORBOARD = "TensorBoard is not installed: pip install -c constraints.txt -e '.[logs]'"


def make_recipe(catalog: Path, out: Path, **changes: Any) -> Recipe:
    base = Recipe(
        Data(SETS, str(catalog), frames=4), str(out), steps=4, batch=8, workers=0, log_every=2, evaluate_every=-1
    )
    return replace(base, **changes)


def lines_of(run: Path, event: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


class Hand:
    """A clock that goes when it is turned."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds

    def fail_after(self, seconds: float) -> None:
        self.seconds += seconds
        raise ZeroDivisionError


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> Hand:
    """The clock of every log from here on."""
    hand = Hand()
    monkeypatch.setattr("cover.training.logging.time", hand)
    return hand


def open_log(recipe: Recipe, **how: Any) -> RunLog:
    """The log of a run that takes no steps by itself."""
    mixture = Mixture.open(recipe.data)
    Path(recipe.out).mkdir()
    return RunLog(
        Path(recipe.out), recipe, mixture, make_schedule(recipe, mixture), build_model(recipe, mixture, None), 0, **how
    )


# --- the figures of a window ------------------------------------------------------------------------------------------


def test_the_rates_of_a_window_belong_together(sandbox: Path, tmp_path: Path) -> None:
    run = train(make_recipe(sandbox, tmp_path / "run"))
    (start,), (end,) = lines_of(run, "start"), lines_of(run, "end")
    clips = next(group["samples"] for group in start["groups"] if group["frames"] == 4)
    assert start["tokens_per_step"] == (4 * clips + 8 - clips) * (1 + 16), (
        "32 pixels are 4 x 4 patches, and a class token"
    )
    for line in (*lines_of(run), end):
        steps_per_s = line["samples_per_s"] / 8
        assert line["tokens_per_s"] == pytest.approx(steps_per_s * start["tokens_per_step"])
        assert line["flops_per_s"] == pytest.approx(steps_per_s * start["flops_per_step"])
        mfu = line["flops_per_s"] / start["peak_flops"]
        assert line["mfu"] == (pytest.approx(mfu) if mfu <= 1 else None)
        assert line["memory_bytes"] > 10**8, "torch alone takes more"
        assert sum(line["shares"].values()) == pytest.approx(1)
        assert line["wait_share"] == line["shares"]["data"]
    assert "fp32" in start["peak_from"]
    assert (end["step"], end["steps"]) == (4, 4)
    assert end["shares"]["checkpoint"] > 0 == lines_of(run)[0]["shares"]["checkpoint"]


def test_the_work_of_a_step_is_what_torch_counts(sandbox: Path, tmp_path: Path) -> None:
    recipe = make_recipe(sandbox, tmp_path / "run")
    mixture = Mixture.open(recipe.data)
    schedule, model = make_schedule(recipe, mixture), build_model(recipe, mixture, None)
    pack = next(packs(schedule, make_reader(recipe, mixture), 0, 1, 0))
    with FlopCounterMode(display=False) as counted:
        forward_backward(model, pack, StepSettings(8, torch.ones(2)))
    flops = open_log(recipe).work.flops
    # torch sees that the pixels need no gradient, and that two projections are merged; the count is of the published
    # function.
    assert 0.9 < counted.get_total_flops() / flops < 1.02


def test_the_first_wait_for_data_is_the_start_and_no_part_of_the_rates(
    sandbox: Path, tmp_path: Path, hand: Hand
) -> None:
    log = open_log(make_recipe(sandbox, tmp_path / "run"))
    with log:
        for waited in (6, 1):
            with log.spending("data"):
                hand.seconds += waited
            hand.seconds += 0.5
            log.advance()
        log.window(2, 1.0, 1.0, 1e-3)
    (line,) = lines_of(tmp_path / "run")
    assert line["shares"]["start"] == pytest.approx(6 / 8)
    assert line["shares"]["data"] == pytest.approx(1 / 8)
    assert line["samples_per_s"] == pytest.approx(2 * 8 / 2)


def test_a_cpu_that_is_faster_than_its_measured_peak_has_no_mfu(sandbox: Path, tmp_path: Path, hand: Hand) -> None:
    log = open_log(make_recipe(sandbox, tmp_path / "run"))
    with log:
        for step, peak in ((1, 0.9), (2, 1.1)):
            hand.seconds += 0.5
            log.peak = peak * log.work.flops / 0.5  # FLOP/s
            log.advance()
            log.window(step, 1.0, 1.0, 1e-3)
    too_low, right = lines_of(tmp_path / "run")
    assert (too_low["mfu"], right["mfu"]) == (None, pytest.approx(1 / 1.1))


def test_what_several_ranks_counted_is_one_line(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({f"{letter}.mp4": letter for letter in "abcd"})
    (tmp_path / "mine" / "b.mp4").write_bytes(b"lost")
    recipe = make_recipe(catalog, tmp_path / "run", data=Data(["mine"], str(catalog), frames=4), batch=4)
    log = open_log(recipe, reduce=lambda tensor: 2 * tensor)  # as if another rank had counted the same
    mixture = Mixture.open(recipe.data)
    with log:
        log.note(next(packs(make_schedule(recipe, mixture), make_reader(recipe, mixture), 0, 1, 0)))
        log.tally.sums += torch.tensor([[6.0], [2.0], [3.0]])
        log.spent("communication", 0.0)
        time.sleep(0.02)
        log.window(1, 2.0, 1.0, 1e-3)
    (line,) = lines_of(tmp_path / "run")
    assert (line["loss"], line["top1"]) == ({"mine": 2.0}, {"mine": pytest.approx(2 / 3)})
    assert line["files_damaged"] == 2
    assert sum(line["shares"].values()) == pytest.approx(1)
    assert line["mfu"] == pytest.approx(line["flops_per_s"] / (2 * log.peak)), "two devices have twice the peak"


def test_a_rank_that_does_not_write_takes_part_in_the_sums_alone(
    sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sums = []
    log = open_log(
        make_recipe(sandbox, tmp_path / "run"), reduce=lambda tensor: sums.append(tensor.shape) or tensor, writes=False
    )
    with log:
        log.advance()
        log.window(1, 1.0, 1.0, 1e-3)
    assert len(sums) == 2
    assert list((tmp_path / "run").iterdir()) == []
    assert capfd.readouterr().err == ""


def test_what_is_not_a_number_is_null(sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with open_log(make_recipe(sandbox, tmp_path / "run")) as log:
        log.tally.sums += torch.tensor([[float("nan"), 1.0], [0.0, 0.0], [2.0, 2.0]])
        log.window(1, float("nan"), float("inf"), 1e-3)
    text = (tmp_path / "run" / "log.jsonl").read_text()
    assert not re.search(r"NaN|Infinity", text)
    (line,) = lines_of(tmp_path / "run")
    assert (line["step_loss"], line["grad_norm"], line["loss"]) == (None, None, {"ssv2": None, "imagenet": 0.5})
    assert "loss not finite  ssv2 not finite 0.0%" in capfd.readouterr().err


# --- where the time goes ----------------------------------------------------------------------------------------------


def test_the_phases_are_all_the_time(hand: Hand) -> None:
    clock = Clock()
    with clock.spending("data"):
        hand.seconds += 5
    with pytest.raises(ZeroDivisionError), clock.spending("checkpoint"):
        hand.fail_after(2)
    hand.seconds += 3
    clock.spent("communication", 1)
    result = clock.take()
    assert set(result) == {*PHASES, "compute"}
    assert result["data"] == 5
    assert result["checkpoint"] == 2, "time counts, whatever came of it"
    assert result["compute"] == 2
    assert sum(result.values()) == 10
    assert clock.take()["data"] == 0, "every take begins anew"
    with pytest.raises(KeyError):
        clock.spent("coffee", 1)


# --- what is shown ----------------------------------------------------------------------------------------------------

PLAIN = re.compile(
    r"step  ?\d+/12  left +\d+:\d\d  loss \d+\.\d{3}  ssv2 \d\.\d{3} \d+\.\d%  imagenet \d\.\d{3} \d+\.\d%"
    r"  lr \d\.\d\de-\d\d  gradient \d+\.\d\d  [\d.e+]+ samples/s  MFU \d+%  \d+\.\d GB  waiting for data \d+%"
)


def test_plain_lines_where_nothing_can_be_redrawn(
    sandbox: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(make_recipe(sandbox, tmp_path / "run", steps=12, log_every=3, batch=16))
    said = capfd.readouterr().err.splitlines()
    assert "\x1b" not in "".join(said)
    windows = [line for line in said if line.startswith("step ")]
    assert [line.split()[1] for line in windows] == ["3/12", "6/12", "9/12", "12/12"]
    assert all(PLAIN.fullmatch(line) for line in windows), windows
    assert windows[-1].split()[3] == "0:00"
    assert re.match(r"12 steps in 0:.* samples/s; time: .*compute \d+%", said[-1])


ON_A_TERMINAL = """
import sys
from cover.training.progress import ProgressView
from cover.console import Meter, say
line = {"step": 1, "loss": {"a [b]": 1.5}, "top1": {"a [b]": 0.25}, "epochs": {"a [b]": 0.5, "c": 0},
        "step_loss": 1.5, "grad_norm": 1.0,
        "lr": 1e-3, "samples_per_s": 12.0, "mfu": 0.5, "memory_bytes": 10**9, "wait_share": 0.005,
        "shares": {"data": 0.005, "compute": 0.795, "checkpoint": 0.2}}
with ProgressView("train x", 3, 0, ["a [b]", "c"]) as view:
    view.show(line)
    view.advance()
    say("between")
    with Meter("evaluate c", 2) as meter:
        meter.advance()
    {ending}
"""


def on_a_terminal(ending: str, **environment: str) -> str:
    """What the process writes to the terminal that it believes its stderr to be, 80 columns wide."""
    leader, follower = pty.openpty()
    env = {
        **{k: v for k, v in os.environ.items() if k != "NO_COLOR"},
        "TERM": "xterm-256color",
        "COLUMNS": "80",
        **environment,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL.replace("{ending}", ending)], stderr=follower, env=env
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 65536)
        except OSError:  # the other end is closed: the process has ended
            break
    process.wait()
    os.close(leader)
    return shown.decode()


@pytest.mark.parametrize(
    "ending", ["pass", "raise SystemExit(143)", "raise KeyboardInterrupt", "raise RuntimeError('lost')"]
)
def test_the_live_view_gives_the_terminal_back(ending: str) -> None:
    shown = on_a_terminal(ending)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"
    words = [re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", line).strip() for line in shown.split("\n")]
    last = len(words) - 1 - words[::-1].index("time: compute 80%, writing checkpoints 20%")
    assert words[last - 4 : last - 2] == ["loss  top-1  epochs", "a [b]  1.500  25.0%    0.50"]
    assert words[last - 1] == "lr 1.00e-03  gradient 1.00  12 samples/s  MFU 50%  1.0 GB"
    assert re.match(r"train x .* 1/3 .* left", words[last - 5])
    assert words[words.index("between") + 1].startswith("train x"), "what is said meanwhile stands above the block"
    assert "evaluate" not in "".join(words[last - 5 :])
    if "lost" in ending:
        assert words.index("RuntimeError: lost") > last


def test_no_colour_where_none_is_wanted() -> None:
    colours = re.compile(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|9[0-7])[\d;]*m")
    assert colours.search(on_a_terminal("pass"))
    assert not colours.search(on_a_terminal("pass", NO_COLOR="1"))


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines() -> None:
    shown = on_a_terminal("pass", TERM="dumb")
    assert "\x1b" not in shown
    assert shown.splitlines()[0].startswith("step 1/3  left")


# --- what others keep of it -------------------------------------------------------------------------------------------


def test_figures_have_the_names_of_the_log() -> None:
    line = {
        "event": "train",
        "step": 7,
        "seconds": 3.0,
        "loss": {"a": 1},
        "lr": 0.5,
        "mfu": None,
        "files": ["y"],
        "seen": {"a": 3},
    }
    assert scalars_of(line) == {"loss/a": 1.0, "lr": 0.5, "seen/a": 3.0}
    dev = {"event": "dev", "step": 7, "datasets": {"a": {"top1": 0.5, "views": "1x3"}}}
    assert scalars_of(dev) == {"dev/a/top1": 0.5}


def test_tensorboard_after_a_resume_has_every_step_once(sandbox: Path, tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=TENSORBOARD)
    recipe = make_recipe(sandbox, tmp_path / "run", log_every=1, save_every=2, log=Log(tensorboard=True))
    run = train(recipe)
    shutil.rmtree(run / "checkpoints" / "step-0000004")  # as if it had been killed before
    train(recipe, resume=True)
    logged = reading.EventAccumulator(str(run / "tensorboard"))
    logged.Reload()
    lines = lines_of(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for tag, values in {
        "loss/imagenet": [line["loss"]["imagenet"] for line in lines],
        "lr": [line["lr"] for line in lines],
        "shares/compute": [line["shares"]["compute"] for line in lines],
    }.items():
        result = logged.Scalars(tag)
        assert [event.step for event in result] == [1, 2, 3, 4]
        assert [event.value for event in result] == pytest.approx(values, rel=1e-6)


def test_wandb_offline(sandbox: Path, tmp_path: Path) -> None:
    """In processes of their own: W&B's writer lets go of its file when its process ends."""
    pytest.importorskip("wandb")
    recipe, run = make_recipe(sandbox, tmp_path / "run", log=Log(wandb="cover-tests")), tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(config.dump(recipe), encoding="utf-8")
    for more in ([], ["--resume"]):
        command = ["train", tmp_path / "recipe.yaml", *more]
        done = commands.run(*command, env={**os.environ, "WANDB_MODE": "offline"})
        assert (done.returncode, done.stdout.strip()) == (0, str(run)), done.stderr
        assert "wandb:" not in done.stderr
    first, second = sorted((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert first.name == second.name == f"run-{(run / 'wandb.id').read_text().strip()}.wandb", "one run at W&B"
    assert all(name in first.read_bytes() for name in (b"samples_per_s", b"loss/ssv2", b"shares/data"))


@pytest.mark.parametrize(("package", "log"), [("tensorboard", Log(tensorboard=True)), ("wandb", Log(wandb="mine"))])
def test_a_package_that_is_missing(
    package: str, log: Log, sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to say that there is none
    with pytest.raises(
        UserError, match=rf"^log\.{package}: needs the package {package}: pip install .*, or leave log"
    ) as error:
        train(make_recipe(sandbox, tmp_path / "run", log=log))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_other_logs(sandbox: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=TENSORBOARD)
    recipe = make_recipe(sandbox, tmp_path / "run", steps=1)
    train(recipe)
    assert train(replace(recipe, log=Log(tensorboard=True)), resume=True) == tmp_path / "run"


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard", reason=TENSORBOARD)
    shutil.copytree(PAGE.parents[1] / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    page = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL):
        for line in block.splitlines():
            name, *words = shlex.split(line)
            assert name == "cover"
            assert main([*words, "--workers", "0"]) == 0, capfd.readouterr().err
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    capfd.readouterr()
    exec(compile(script, str(PAGE), "exec"), {})
    assert re.search(r"^ *10 .* waiting for data \d+%", capfd.readouterr().out, re.MULTILINE)
    line = lines_of(tmp_path / "runs/logged")[-1]
    keys = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert set(line) - {"event"} <= set(re.findall(r"`(\w+)`", " ".join(keys))), "every key is on the page"
