"""The manifests for clusters: YAML and shell that can be read, whose commands `cover train` takes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cover.cli import main

FOLDER = Path(__file__).parents[1] / "clusters"


def kubernetes() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text(encoding="utf-8"))
    return job


def commands() -> dict[str, list[str]]:
    """The words behind torchrun in each manifest."""
    slurm = (FOLDER / "slurm.sh").read_text(encoding="utf-8").replace('"$@"', "recipes/full/cover_b.yaml")
    sky = yaml.safe_load((FOLDER / "skypilot.yaml").read_text(encoding="utf-8"))["run"]
    trainer = kubernetes()["spec"]["trainer"]
    shell = {
        name: shlex.split(text.replace("\\\n", " "), comments=True) for name, text in (("slurm", slurm), ("sky", sky))
    }
    words = {name: all_words[all_words.index("torchrun") + 1 :] for name, all_words in shell.items()}
    return {**words, "kubernetes": [*trainer["command"][1:], *trainer["args"]]}


@pytest.mark.parametrize("name", ["slurm", "sky", "kubernetes"])
def test_the_command_is_one_of_cover(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = commands()[name]
    place = words.index("-m")
    assert words[place : place + 3] == ["-m", "cover", "train"]
    with pytest.raises(SystemExit) as done:  # every option is known: --help ends it with 0, an unknown one with 2
        main(["train", *words[place + 3 :], "--help"])
    assert done.value.code == 0
    options = {word for word in words[place + 3 :] if word.startswith("--")}
    assert options <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_torchrun_knows_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    from torch.distributed.run import get_args_parser

    for words in commands().values():
        numbers = [re.sub(r"\$\w+", "4", word) for word in words]
        arguments = get_args_parser().parse_args(numbers)
        assert (arguments.module, arguments.training_script) == (True, "cover")
        assert arguments.max_restarts == 3


def test_shell_and_volumes() -> None:
    subprocess.run(["bash", "-n", str(FOLDER / "slurm.sh")], check=True)
    patch = kubernetes()["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = patch["template"]["spec"]["template"]["spec"]
    mounted = {each["name"] for container in pod["containers"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
