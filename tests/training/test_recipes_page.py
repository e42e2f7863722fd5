"""docs/recipes.md says what is so: its commands run, its settings load, its limits are the code's, its table is the
folder's.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cover import config
from cover.model.backbones import named_config
from cover.model.cover import CoVeR
from cover.training.budget import FROM_RANDOM, FROM_START
from cover.training.optim import describe_patterns
from cover.training.recipe import Recipe
from cover.training.train import train
from cover.transforms import randaugment

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line)[2:] for line in re.findall(r"^    (cover train recipes/sandbox/.*)$", PAGE, re.MULTILINE)]


def block(first: str) -> str:
    """The indented block of the page that begins with a line."""
    lines = PAGE[PAGE.index(f"    {first}\n") :].splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("    "))
    return "\n".join(line[4:] for line in lines[:end])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_commands_run(command: list[str], sandbox: Path, tmp_path: Path) -> None:
    short = [] if "--steps" in command else ["--steps", "2"]
    here = [
        "--data.catalog",
        str(sandbox),
        "--out",
        str(tmp_path / "run"),
        "--batch",
        "16",
        "--workers",
        "0",
        "--evaluate_every",
        "-1",
    ]
    recipe = config.load(Recipe, ROOT / command[0], [*command[1:], *here, *short, "--start.checkpoint", ""])
    assert (train(recipe) / "log.jsonl").is_file()


def test_there_are_as_many_commands_as_were_meant() -> None:
    assert len(COMMANDS) == 5


@pytest.mark.parametrize("first", ["optimizer:", "augment:"])
def test_the_settings_load(first: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"data: {{sets: [ssv2, imagenet]}}\nout: x\nsteps: 1\n{block(first)}\n", encoding="utf-8")
    recipe = config.load(Recipe, file)
    if first == "optimizer:":
        assert recipe.optimizer.layer_decay == 0.75
        lines = describe_patterns(CoVeR(named_config("Ti/16")), recipe.optimizer.patterns)
        assert "frozen: 24 parameters" in lines[0]
    else:
        assert recipe.augment.of("imagenet").randaugment == "m9-n2"


def test_the_limits_of_randaugment_are_the_code_s() -> None:
    names = {
        "colour",
        "contrast",
        "brightness",
        "sharpness",
        "autocontrast",
        "equalize",
        "solarize",
        "posterize",
        "identity",
        "rotate",
    }
    section = " ".join(PAGE[PAGE.index("**RandAugment**") : PAGE.index("**Mixup and cutmix.**")].split())
    assert names | {"shear_x", "shear_y", "translate_x", "translate_y"} == set(randaugment.OPERATIONS)
    assert all(name in section for name in (*names, "shear", "translate", "fourteen"))
    assert len(randaugment.OPERATIONS) == 14
    limits = (
        randaugment.DEGREES,
        randaugment.SHEAR,
        randaugment.TRANSLATE,
        randaugment.FEWEST_BITS,
        randaugment.FACTOR,
    )
    for text, limit in zip(
        ("to {:.0f} degrees", "shear ({})", "translate ({}", "8 to {} bits", "1 +- {}"), limits, strict=True
    ):
        assert text.format(limit) in section


def test_the_table_names_the_recipes_of_the_folder() -> None:
    table = PAGE[PAGE.index("## The recipes in `recipes/full`") :]
    named = {name for line in table.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert named == {path.stem for path in (ROOT / "recipes" / "full").glob("*.yaml")} - {"catalog"}


def test_the_table_of_auto_is_that_of_the_code() -> None:
    for start, budget in (("`start.checkpoint`", FROM_START), ("random weights", FROM_RANDOM)):
        row = f"| {start} | {budget.updates:,} | {budget.least_epochs} epochs of N | {budget.most_epochs} epochs of N |"
        assert row in PAGE
