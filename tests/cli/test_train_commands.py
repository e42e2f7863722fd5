"""train, describe: what they refuse and print."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

Cover = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--optimiser.lr", "1"], ["optimiser", 'did you mean "optimizer"']),
        (["--optimizer.lrr", "1"], ["optimizer.lrr", 'did you mean "optimizer.lr"']),
        (["--stepps=3"], ["stepps", 'did you mean "steps"']),
        (["--steps", "many"], ["steps: expected int", '"many"']),
        (["--optimizer.name", "adam"], ["optimizer.name", '"adamw" or "sgd"']),
        (["--steps"], ["--steps needs a value"]),
        (["--seed", "-1"], ["seed: -1"]),
        (["--batch", "1"], ["batch: 1 is too small"]),
        (["--accumulation", "3"], ["batch: a step of 4 holds", "not a multiple of ranks x accumulation = 3"]),
        (["--data.sets", "[ssv3]"], ['no data set "ssv3"', 'did you mean "ssv2"']),
        (["--data.catalog", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["--data.weights", "{ssv2: 1}"], ["data.weights.imagenet"]),
        (["--model.preset", "minni"], ["minni", 'did you mean "mini"']),
        (["--model.size", "33"], ["33 is not a multiple of the patch"]),
        (["--start.checkpoint", "nowhere"], ["nowhere: does not exist"]),
        (["--device", "gpu"], ["device: gpu cannot be used"]),
        (["--resume"], ["no run to resume"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_a_recipe_that_is_wrong(
    recipe: Path, refused: Callable[..., str], arguments: list[str], parts: list[str]
) -> None:
    line = refused("train", recipe, *arguments)
    assert [part for part in parts if part not in line] == []
    assert not (recipe.parent / "a run" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("steps: [", "line 1"),
        ("", '"data.sets" is missing'),
        ("stepz: 1", 'did you mean "steps"'),
        ("data: {sets: [ssv2]}", '"out" is missing'),
    ],
)
def test_a_recipe_file_that_is_none(tmp_path: Path, refused: Callable[..., str], text: str, part: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert part in refused("train", tmp_path / "mine.yaml")


def test_which_recipe(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "which recipe?" in refused("train")
    assert "absent.yaml: cannot be read" in refused("train", tmp_path / "absent.yaml")


def test_a_run_that_is_there_already(refused: Callable[..., str], trained: Path) -> None:
    assert "already holds a run" in refused("train", trained / "recipe.yaml")
    assert "was begun with steps 4, not 9" in refused("train", trained / "recipe.yaml", "--resume", "--steps", "9")


def test_a_manifest_that_is_missing(refused: Callable[..., str], recipe: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(f"ssv2: {{format: folder, root: {tmp_path}, media: video, annotations: {{train: a}}}}\n")
    line = refused("train", recipe, "--data.catalog", catalog, "--data.sets", "[ssv2]")
    assert "ssv2-train.arrow: no such manifest; `cover index`" in line


def test_heads_of_a_start_that_do_not_match(refused: Callable[..., str], recipe: Path, tmp_path: Path) -> None:
    model = CoVeR(
        TimeSformerConfig(width=128, depth=4, attention_heads=4, patch=8, size=32, frames=2),
        (Head("ssv2", ("a", "b")),),
    )
    save_release(tmp_path / "release", model, {})
    assert 'its head "ssv2" has other classes (2) than this run' in refused(
        "train", recipe, "--start.checkpoint", tmp_path / "release"
    )


def test_train_prints_the_run_and_says_what_to_type_next(cover: Cover, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    code, out, err = cover("train", recipe, "--evaluate_every", "-1")
    assert (code, out) == (0, f"{run}\n")
    following = err.splitlines()[-1]
    assert following.startswith("next: cover ")
    code, out, _ = cover(*shlex.split(following.removeprefix("next: cover ")), "--workers", "0", "--views", "1x1")
    assert code == 0
    assert "imagenet" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["C/16"], 'unknown model preset "C/16"'),
        (["mini", "--size", "30"], "image size 30 is not a multiple of the patch 8"),
        (["mini", "--size", "0"], "--size: 0 is below 1"),
        (["mini", "--frames", "99999"], "--frames: 99999 is above 4096"),
        (["mini", "--heads", "k400"], 'heads: "k400" is no NAME=CLASSES; write for example --heads k400=400,ssv2=174'),
        (["mini", "--heads", "a=1,a=2"], 'heads: "a" is given twice'),
        (["mini", "--heads", "a=0"], "heads: a=0, but a head has 1 to 1,000,000 classes"),
        (["mini", "--heads", "keys=3"], "heads: no head can have this name"),
        (["mini", "--attention", "jont"], "--attention: invalid choice: 'jont'"),
        (["mini", "--views", "3"], "as in 1x3"),
        (["mini", "--batch", "0"], "give --batch or --images"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_describe_refuses(refused: Callable[..., str], arguments: list[str], part: str) -> None:
    assert part in refused("describe", *arguments)


def test_describe_the_network_of_the_article(cover: Cover) -> None:
    """431 M parameters and 17.6 T multiply-adds in three views, as UniFormerV2 prints them for CoVeR."""
    requested = ("L/16", "--frames", 16, "--size", 448, "--heads", "k400=400,ssv2=174,mit=339,imagenet=1000")
    code, out, err = cover("describe", *requested)
    assert (code, err) == (0, "")
    rows = dict(re.split(r" {2,}", line.strip()) for line in out.splitlines() if re.search(r"\S {2,}\S", line))
    assert (rows["parameters"], rows["multiply-adds of 1x3 views"], rows["tokens of a clip"]) == (
        "431.9 M",
        "17.63 T",
        "12,560",
    )
    code, out, err = cover("describe", *requested, "--json", "-")
    facts = json.loads(out)
    assert (code, err, facts["preset"], facts["views"], facts["heads"]["mit"]) == (0, "", "L/16", "1x3", 339)
    assert facts["multiply_adds_per_protocol"] == 3 * facts["multiply_adds_per_view"]
    assert facts["parameters"] == facts["parameters_body"] + facts["parameters_heads"]


def test_describe_a_release(cover: Cover, refused: Callable[..., str], tmp_path: Path) -> None:
    heads = (Head("pets", ("cat", "dog", "owl")),)
    save_release(tmp_path / "pets", CoVeR(named_config("mini", frames=4), heads), {"frames": 6})
    code, out, _ = cover("describe", tmp_path / "pets", "--json", "-")
    own = json.loads(out)
    _, out, _ = cover("describe", "mini", "--frames", 6, "--heads", "pets=3", "--json", "-")
    assert code == 0
    assert own == json.loads(out) | {"preset": str(tmp_path / "pets")}
    assert "--size: the network of" in refused("describe", tmp_path / "pets", "--size", 64)
    assert str(tmp_path) in refused("describe", tmp_path)


def test_describe_a_step_and_write_it(cover: Cover, tmp_path: Path) -> None:
    code, out, _ = cover(
        "describe", "mini", "--batch", 2, "--images", 4, "--views", "2x1", "--json", tmp_path / "cost.json"
    )
    assert code == 0
    assert "heads (none; --heads names them)" in out
    assert "a training step of 2 clips and 4 images" in out
    facts = json.loads((tmp_path / "cost.json").read_text())
    assert facts["multiply_adds_per_step"] == 3 * (
        2 * facts["multiply_adds_per_view"] + 4 * facts["multiply_adds_per_image"]
    )
    assert facts["multiply_adds_per_protocol"] == 2 * facts["multiply_adds_per_view"]
    assert facts["activation_bytes_checkpointed"] < facts["activation_bytes"]
    assert facts["activation_bytes_bf16"] < facts["activation_bytes"]


@pytest.mark.parametrize(
    ("annotations", "dev", "wanted"),
    [
        ("{train: list.csv, val: list.csv}", 0, []),
        ("{train: list.csv, test: list.csv}", 0, ["--split", "test"]),
        ("{train: list.csv}", 0.5, ["--split", "dev"]),
        ("{train: list.csv}", 0.05, ["--folds", "5"]),
    ],
)
def test_the_next_command_measures_a_split_that_is_there(
    cover: Cover, make_set: Callable[..., Path], tmp_path: Path, annotations: str, dev: float, wanted: list[str]
) -> None:
    catalog = make_set({f"{n}.png": ("left", "right")[n % 2] for n in range(8)}, annotations=annotations, dev=dev)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    text = f"data: {{sets: [mine], catalog: {catalog}}}\nout: {run}\nsteps: 1\nbatch: 2\nworkers: 0\n"
    recipe.write_text(f"{text}evaluate_every: -1\n", encoding="utf-8")
    code, _, err = cover("train", recipe)
    assert code == 0
    (line,) = [line for line in err.splitlines() if line.startswith("next: ")]
    typed = shlex.split(line)[2:]
    assert typed == ["evaluate", str(run), *["mine"] * ("--folds" in wanted), "--catalog", str(catalog), *wanted]
    if "--folds" not in wanted:
        assert cover(*typed, "--workers", "0", "--no-baselines")[0] == 0
        return
    code, _, err = cover("evaluate", run, "--catalog", catalog, "--split", "dev")
    assert code == 2
    assert "mine has no dev split" in err
    assert "no such manifest" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "RECIPE", "--out", ""),
        ("add", "a", "--data", "b", "--out", ""),
        ("prepare", "a", "--out", ""),
        ("demo", "--out", ""),
        ("sandbox", ""),
        ("predict", "a", "b", "--out", ""),
    ],
)
def test_an_empty_path_is_refused(refused: Callable[..., str], recipe: Path, arguments: tuple[str, ...]) -> None:
    assert "empty" in refused(*(str(recipe) if each == "RECIPE" else each for each in arguments))


def test_a_result_that_could_not_be_written_is_refused_before_the_work(
    refused: Callable[..., str], recipe: Path, tmp_path: Path
) -> None:
    assert f"--json: {tmp_path}: is a folder" in refused("plan", recipe, "--json", tmp_path)


@pytest.mark.parametrize("device", ["meta", "gpu", "cuda:99", ""])
def test_a_device_that_computes_nothing(refused: Callable[..., str], recipe: Path, device: str) -> None:
    assert "cannot be used" in refused("train", recipe, "--device", device)
