"""Twenty kills at random moments in one run with everything random switched on end in the very weights of the unbroken
run.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cover import config
from cover.model.backbones.timesformer import TimeSformerOptions
from cover.model.release import find_release, steps_saved
from cover.training.recipe import Augment, Data, Recipe

KILLS, STEPS, SAVE_EVERY = 20, 240, 6


def digest(run: Path) -> str:
    return hashlib.sha256((find_release(run) / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ranks", [0, 2])
def test_twenty_kills(sandbox: Path, tmp_path: Path, launch: Callable, ranks: int) -> None:
    recipe = Recipe(
        Data(["ssv2", "imagenet"], str(sandbox), frames=4, crops=2, weights={"ssv2": 1, "imagenet": 1}),
        str(tmp_path / "broken"),
        steps=STEPS,
        batch=16,
        workers=1,
        log_every=1,
        evaluate_every=-1,
        save_every=SAVE_EVERY,
        ema=0.99,
        label_smoothing=0.1,
        model=TimeSformerOptions(drop_path=0.2, dropout=0.1, head_dropout=0.1),
        augment=Augment(randaugment="m7-n2", erase=0.25, mixup=0.8, cutmix=1.0),
    )
    recipe_file, run = tmp_path / "recipe.yaml", tmp_path / "broken"
    recipe_file.write_text(config.dump(recipe), encoding="utf-8")
    code, said = launch("train", recipe_file, "--out", tmp_path / "unbroken", ranks=ranks).ended()
    assert code == 0, said
    chance, last = random.Random(0), 0
    for number in range(KILLS):
        running = launch("train", recipe_file, "--requeue", ranks=ranks, torchrun=ranks > 0)
        running.until(partial(started, run, last, time.time_ns()))
        time.sleep(chance.uniform(0, 1.5))
        for pid in running.ranks() if number % 2 else []:  # else they end with their torchrun
            os.kill(pid, signal.SIGKILL)
        running.process.kill()
        _, said = running.ended()
        last = max([0, *steps_saved(run)])
        assert last < STEPS, f"finished too early: {said}"
    code, said = launch("train", recipe_file, "--requeue", ranks=ranks).ended()
    assert code == 0, said
    assert digest(run) == digest(tmp_path / "unbroken")


def started(run: Path, last: int, since: int) -> bool:
    """Whether a step beyond the checkpoint that a run went on from has been logged since then (ns), by it and not by
    the one before.
    """
    log = run / "log.jsonl"
    return log.exists() and log.stat().st_mtime_ns > since and f'"step": {last + 1},' in log.read_text(encoding="utf-8")
