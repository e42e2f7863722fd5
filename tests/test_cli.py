"""What is typed: bad input is one line and exit code 2, help shows an example, results and narration keep to their own streams."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cover import CoVeR, __version__
from cover.cli import main
from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.heads import Head
from cover.model.release import save_release

MakeSet = Callable[..., Path]
Cover = Callable[..., tuple[int, str, str]]
COMMANDS = (
    "sandbox", "index", "overlap", "prepare", "train", "add", "plan", "describe", "evaluate", "transfer", "study", "predict", "explain",
    "serve", "import-weights", "export", "doctor", "demo",
)  # fmt: skip
SERVE_NUMBERS = ("port", "queue", "pack-frames", "max-mb", "max-seconds", "max-megapixels", "upload-seconds", "deadline", "workers")


@pytest.fixture
def cover(capfd: pytest.CaptureFixture[str]) -> Cover:
    """Types a command: cover("train", "recipe.yaml") -> exit code, stdout, stderr."""

    def typed(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return typed


@pytest.fixture
def refused(cover: Cover) -> Callable[..., str]:
    """Types a command that must be refused in one line; returns that line."""

    def typed(*arguments: object) -> str:
        code, out, err = cover(*arguments)
        assert (code, out) == (2, ""), err
        (line,) = err.splitlines()
        assert line.startswith("cover")
        return line

    return typed


@pytest.fixture
def recipe(tmp_path: Path, sandbox: Path) -> Path:
    """A recipe of two steps that writes into a folder with a space in its name."""
    file = tmp_path / "recipe.yaml"
    data = f"data: {{sets: [ssv2, imagenet], catalog: {sandbox}, frames: 2}}"
    file.write_text(f"{data}\nout: {tmp_path / 'a run'}\nsteps: 2\nbatch: 4\nworkers: 0\n")
    return file


def catalog_of(folder: Path, text: str) -> Path:
    (folder / "catalog.yaml").write_text(text)
    return folder / "catalog.yaml"


# --- recipes ----------------------------------------------------------------------------------------------------------------------


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
def test_a_recipe_that_is_wrong(recipe: Path, refused: Callable[..., str], arguments: list[str], parts: list[str]) -> None:
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
    catalog = catalog_of(tmp_path, f"ssv2: {{format: folder, root: {tmp_path}, media: video, annotations: {{train: a}}}}\n")
    line = refused("train", recipe, "--data.catalog", catalog, "--data.sets", "[ssv2]")
    assert "ssv2-train.arrow: no such manifest; `cover index`" in line


def test_heads_of_a_start_that_do_not_match(refused: Callable[..., str], recipe: Path, tmp_path: Path) -> None:
    model = CoVeR(TimeSformerConfig(width=128, depth=4, attention_heads=4, patch=8, size=32, frames=2), (Head("ssv2", ("a", "b")),))
    save_release(tmp_path / "release", model, {})
    assert 'its head "ssv2" has other classes (2) than this run' in refused("train", recipe, "--start.checkpoint", tmp_path / "release")


# --- catalogs ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: {format: kinetcs, root: .}", ["a.format", 'did you mean "kinetics"']),
        ("a: {format: csv, root: .}\na: {format: csv, root: .}", ['"a" is given twice, first on line 1']),
        ("a: {format: csv, rooot: .}", ["rooot", 'did you mean "root"']),
        ("a: {format: csv, root: .}", ["a.annotations", "train.csv"]),
        ("a: {format: csv, root: ., media: video, annotations: {train: absent.csv}}", ["absent.csv: cannot be read"]),
        ("a b: {format: csv, root: .}", ["'a b' cannot name a data set"]),
        ("- a", ["no data set in it"]),
        ("a: {format: [", ["line 1: not YAML"]),
    ],
)
def test_a_catalog_that_is_wrong(tmp_path: Path, refused: Callable[..., str], text: str, parts: list[str]) -> None:
    line = refused("index", catalog_of(tmp_path, text))
    assert [part for part in parts if part not in line] == []


def write_lists(folder: Path, train: str, classes: str = "cat\ndog\n") -> Path:
    (folder / "train.csv").write_text(train)
    (folder / "classes.txt").write_text(classes)
    return catalog_of(folder, "mine: {format: csv, root: ., media: image, classes: classes.txt}\n")


def test_a_label_outside_the_class_list(tmp_path: Path, refused: Callable[..., str]) -> None:
    line = refused("index", write_lists(tmp_path, "path,label\na.png,cat\nb.png,dgo\n"))
    assert 'train.csv, row 3: label "dgo" is not among the 2 classes of classes.txt; did you mean "dog"?' in line
    line = refused("index", write_lists(tmp_path, "path,label\na.png,0\nb.png,2\n"))
    assert "train.csv, row 3: label 2 is outside the 2 classes of classes.txt" in line


def test_an_empty_split(tmp_path: Path, cover: Cover, refused: Callable[..., str]) -> None:
    catalog = write_lists(tmp_path, "path,label\n")
    code, _, err = cover("index", catalog, "--workers", 0)
    if code:  # refused at once, or else no run begins with it
        assert (code, len(err.splitlines())) == (2, 1)
        return
    (tmp_path / "recipe.yaml").write_text(f"data: {{sets: [mine], catalog: {catalog}}}\nout: {tmp_path / 'run'}\nsteps: 1\nworkers: 0\n")
    assert "nothing to train on" in refused("train", tmp_path / "recipe.yaml")


def test_names_that_a_catalog_does_not_have(sandbox: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    assert 'did you mean "kinetics"' in refused("index", sandbox, "kinetcs")
    assert "absent.yaml: cannot be read" in refused("index", tmp_path / "absent.yaml")


# --- checkpoints ------------------------------------------------------------------------------------------------------------------


def test_no_such_checkpoint(refused: Callable[..., str], sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "nowhere: does not exist" in refused("evaluate", tmp_path / "nowhere", "--catalog", sandbox)
    assert "empty: has no checkpoint in it" in refused("evaluate", tmp_path / "empty", "--catalog", sandbox)
    assert "nowhere: does not exist" in refused("predict", tmp_path / "nowhere", "a.mp4")


def test_a_checkpoint_whose_heads_do_not_match(refused: Callable[..., str], sandbox: Path, tmp_path: Path) -> None:
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("ssv2", ("a", "b")),))
    save_release(tmp_path / "release", model, {"step": 1, "frames": 2, "datasets": {}})
    assert 'head "ssv2" was trained on class list' in refused("evaluate", tmp_path / "release", "--catalog", sandbox)
    assert 'has no head "kinetics"; its heads: ssv2' in refused("evaluate", tmp_path / "release", "kinetics", "--catalog", sandbox)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["kinetcs"], 'did you mean "kinetics"'),
        (["--split", "valid"], "invalid choice: 'valid'"),
        (["--split", "test"], 'has no split "test"'),
        (["--views", "3"], "as in 1x3"),
        (["--catalog", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--seed", "-1"], "seed"),
        (["--device", "gpu"], "device: gpu"),
        (["--by-names", "ssv2=kinetics", "--by-names", "ssv2=moments"], "ssv2 is given twice"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_evaluate_refuses(trained: Path, sandbox: Path, refused: Callable[..., str], arguments: list[str], part: str) -> None:
    assert part in refused("evaluate", trained, "--catalog", sandbox, *arguments)


def test_a_model_that_was_never_trained_is_evaluated(cover: Cover, make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({"a.mp4": "left", "b.mp4": "right"})
    CoVeR(named_config("mini", size=16, frames=3), (Head("mine", ("left", "right")),)).save_pretrained(tmp_path / "bare")
    code, out, err = cover("evaluate", tmp_path / "bare", "--catalog", catalog, "--workers", 0)
    assert code == 0, err
    titles, row = (re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[:2])
    told = dict(zip(titles, row, strict=True))
    assert (told["frames"], told["step"], told["read"]) == ("3", "-", "2")


def test_transfer_refuses(trained: Path, refused: Callable[..., str]) -> None:
    target = ["--target", "ssv2", "--epochs", "1"]
    assert '"run": write NAME=CHECKPOINT' in refused("transfer", "--source", "run", *target)
    assert "a is given twice" in refused("transfer", "--source", f"a={trained}", "--source", f"a={trained}", *target)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(["--head", "ssv3"], 'did you mean "ssv2"'), (["--views", "x"], "as in 1x3"), (["--top", "0"], "--top"), (["--top", "few"], "--top")],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_predict_refuses(trained: Path, refused: Callable[..., str], arguments: list[str], part: str) -> None:
    assert part in refused("predict", trained, "a.mp4", *arguments)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--head", "ssv3"], 'did you mean "ssv2"'),
        (["--class", "Moving something upp"], 'did you mean "Moving something up"'),
        (["--head", "imagenet", "--class", "nothing"], '--class: imagenet has no class "nothing"'),
        (["--method", "magic"], "--method"),
        ([], "a.mp4: unreadable: "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else "",
)
def test_explain_refuses(trained: Path, refused: Callable[..., str], arguments: list[str], part: str) -> None:
    assert part in refused("explain", trained, "a.mp4", *arguments)


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


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--decode-seconds", "9999999"], "9999999 is above 86400"),
        (["--wait-ms", "99999999999999"], "99999999999999 is above 60000"),
        *((["--" + name, "9" * 20], f"argument --{name}: ") for name in SERVE_NUMBERS),
        (["--host", ""], "argument --host: expected an address"),
        (["--host", " "], "argument --host: expected an address"),
    ],
    ids=str,
)
def test_serve_refuses(refused: Callable[..., str], arguments: list[str], part: str) -> None:
    assert part in refused("serve", "nowhere", *arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_argument(refused: Callable[..., str], command: str, tmp_path: Path) -> None:
    needed = {
        "sandbox": [tmp_path], "predict": ["a", "b"], "explain": ["a", "b"], "doctor": [], "demo": [],
        "import-weights": ["a", "--out", "b"],
        "prepare": ["a", "--out", "b"], "add": ["a", "--data", "b"],
        "transfer": ["--source", "a=b", "--target", "c", "--epochs", "1"],
        "export": ["a", "--format", "transformers", "--out", "b"],
    }  # fmt: skip
    line = refused(command, *needed.get(command, ["a"]), "--colour-of-the-sky", "blue")
    assert command in ("train", "add", "plan", "study") or "--colour-of-the-sky" in line


def test_no_command_and_a_wrong_one(refused: Callable[..., str]) -> None:
    assert "COMMAND" in refused()
    assert "trian" in refused("trian")


def test_a_folder_of_something_else(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no sandbox" in refused("sandbox", tmp_path, "--workers", 0)
    assert "size 0" in refused("sandbox", tmp_path / "new", "--size", 0)


def test_no_traceback_from_a_real_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cover.cli", "evaluate", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"cover evaluate: {tmp_path / 'nowhere'}: does not exist; give a run folder, a checkpoint or a release"
    ]


# --- help -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(cover: Cover, command: str) -> None:
    code, out, err = cover(command, "--help")
    assert (code, err) == (0, "")
    assert f"example:\n  cover {command} " in out


def test_help_lists_every_command_and_train_every_key(cover: Cover) -> None:
    code, out, _ = cover("--help")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("    ") and line[4] != " "] == list(COMMANDS)
    assert cover("--version") == (0, f"cover {__version__}\n", "")
    code, out, err = cover("train", "--keys")
    assert (code, err) == (0, "")
    assert any(line.startswith("optimizer.lr: float = 0.001") and "peak learning rate" in line for line in out.splitlines())


# --- results on stdout, narration on stderr -----------------------------------------------------------------------------------------


def test_names_may_stand_behind_options(cover: Cover, trained: Path, sandbox: Path) -> None:
    code, out, _ = cover("evaluate", trained, "imagenet", "--catalog", sandbox, "--workers", 0, "--json", "-", "kinetics", "--views", "1x1")
    assert (code, [row["dataset"] for row in json.loads(out)]) == (0, ["imagenet", "kinetics"])
    code, out, _ = cover("index", sandbox, "--workers", 0, "--json", "-", "imagenet")
    assert (code, {row["dataset"] for row in json.loads(out)}) == (0, {"imagenet"})


def test_results_that_cannot_be_written(refused: Callable[..., str], trained: Path, sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "out.json"
    arguments = ("imagenet", "--catalog", sandbox, "--workers", 0, "--json", target)
    assert f"{target}: cannot be written" in refused("evaluate", trained, *arguments)


def test_json_alone_on_stdout(cover: Cover, trained: Path, sandbox: Path) -> None:
    code, out, err = cover("evaluate", trained, "imagenet", "--catalog", sandbox, "--workers", 0, "--json", "-")
    (row,) = json.loads(out)
    assert (code, row["dataset"], row["n_read"]) == (0, "imagenet", row["n_listed"])
    assert "top-1" not in err
    image = next((sandbox.parent / "imagenet_like" / "val").rglob("*.JPEG"))
    code, out, _ = cover("predict", trained, image, "--top", 2, "--json", "-")
    (found,) = json.loads(out)
    assert (code, found["file"], {len(top) for top in found["heads"].values()}) == (0, str(image), {2})
    code, out, _ = cover("index", sandbox, "imagenet", "--workers", 0, "--json", "-")
    assert [(row["split"], row["probed"]) for row in json.loads(out)] == [("train", 0), ("dev", 0), ("val", 0)]
    assert code == 0


def test_tables_on_stdout_and_json_in_a_file(cover: Cover, trained: Path, sandbox: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.json"
    code, out, _ = cover(
        "evaluate", trained, "imagenet", "ssv2", "--catalog", sandbox, "--workers", 0, "--shuffle-frames", "--json", target
    )
    assert code == 0
    rows = json.loads(target.read_text())
    assert [(row["dataset"], row["variant"]) for row in rows] == [("imagenet", "plain"), ("ssv2", "plain"), ("ssv2", "shuffled")]
    assert [line.split()[0] for line in out.splitlines()] == ["data", "imagenet", "ssv2", "ssv2"]


def test_describe_the_network_of_the_article(cover: Cover) -> None:
    """431 M parameters and 17.6 T multiply-adds in three views, as UniFormerV2 prints them for CoVeR."""
    asked = ("L/16", "--frames", 16, "--size", 448, "--heads", "k400=400,ssv2=174,mit=339,imagenet=1000")
    code, out, err = cover("describe", *asked)
    assert (code, err) == (0, "")
    rows = dict(re.split(r" {2,}", line.strip()) for line in out.splitlines() if re.search(r"\S {2,}\S", line))
    assert (rows["parameters"], rows["multiply-adds of 1x3 views"], rows["tokens of a clip"]) == ("431.9 M", "17.63 T", "12,560")
    code, out, err = cover("describe", *asked, "--json", "-")
    facts = json.loads(out)
    assert (code, err, facts["preset"], facts["views"], facts["heads"]["mit"]) == (0, "", "L/16", "1x3", 339)
    assert facts["multiply_adds_per_protocol"] == 3 * facts["multiply_adds_per_view"]
    assert facts["parameters"] == facts["parameters_body"] + facts["parameters_heads"]


def test_describe_a_step_and_write_it(cover: Cover, tmp_path: Path) -> None:
    code, out, _ = cover("describe", "mini", "--batch", 2, "--images", 4, "--views", "2x1", "--json", tmp_path / "cost.json")
    assert code == 0
    assert "heads (none; --heads names them)" in out
    assert "a training step of 2 clips and 4 images" in out
    facts = json.loads((tmp_path / "cost.json").read_text())
    assert facts["multiply_adds_per_step"] == 3 * (2 * facts["multiply_adds_per_view"] + 4 * facts["multiply_adds_per_image"])
    assert facts["multiply_adds_per_protocol"] == 2 * facts["multiply_adds_per_view"]
    assert facts["activation_bytes_checkpointed"] < facts["activation_bytes"]
    assert facts["activation_bytes_bf16"] < facts["activation_bytes"]


def test_overlap_counts_and_trains_without_what_it_found(cover: Cover, make_set: MakeSet, tmp_path: Path) -> None:
    make_set({"a.png": "x"}, name="first")
    catalog = make_set({"d.png": "x", "e.png": "y", "f.png": "y"}, name="second", annotations="{train: list.csv}")  # a and d are the same
    code, out, err = cover("overlap", catalog, "--frames", "--workers", 0, "--json", tmp_path / "leaks.json")
    assert code == 0
    assert next(line.split() for line in out.splitlines() if line.startswith("first val")) == [
        "first", "val", "second", "train", "0", "1", "1", "/", "1", "1", "1", "/", "1",
    ]  # fmt: skip
    assert err.splitlines()[-1] == f"next: cover train RECIPE --data.catalog {catalog}"
    rows = json.loads((tmp_path / "leaks.json").read_text())["excluded"]
    assert [(row["dataset"], row["excluded"]) for row in rows] == [("first", 1), ("second", 1)]
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{sets: [second], catalog: {catalog}}}\nout: {tmp_path / 'run'}\nsteps: 1\nbatch: 2\nworkers: 0\n"
    )
    code, _, err = cover("train", tmp_path / "recipe.yaml", "--evaluate_every", "-1")
    assert code == 0
    assert "being in evaluation splits too: second 1" in err


def test_overlap_as_json_and_of_named_sets(cover: Cover, sandbox: Path, tmp_path: Path) -> None:
    code, out, _ = cover("overlap", sandbox, "ssv2", "--workers", 0, "--json", "-", "--out", tmp_path / "list", "imagenet")
    found = json.loads(out)
    assert (code, {row["dataset"] for row in found["splits"]}, found["kinds"]) == (0, {"ssv2", "imagenet"}, ["source", "file"])
    assert [row["excluded"] for row in found["excluded"]] == [0, 0]
    assert (tmp_path / "list" / "exclusions.arrow").is_file()


def test_overlap_refuses(refused: Callable[..., str], sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert 'did you mean "kinetics"' in refused("overlap", sandbox, "kinetcs")
    assert "absent.yaml: cannot be read" in refused("overlap", tmp_path / "absent.yaml")
    assert "file: cannot be made" in refused("overlap", sandbox, "--out", tmp_path / "file")
    (tmp_path / "train.csv").write_text("path,label\na.png,x\n")
    catalog = catalog_of(tmp_path, "mine: {format: csv, root: .}\n")
    assert "mine-train.arrow: no such manifest; `cover index`" in refused("overlap", catalog)


def test_a_stale_list_of_exclusions(cover: Cover, refused: Callable[..., str], make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({"a.png": "x", "b.png": "y"}, annotations="{train: list.csv}")
    cover("overlap", catalog, "--workers", 0)
    (tmp_path / "mine/b.png").write_bytes((tmp_path / "mine/a.png").read_bytes())
    cover("index", catalog, "--workers", 0)
    (tmp_path / "recipe.yaml").write_text(f"data: {{sets: [mine], catalog: {catalog}}}\nout: {tmp_path / 'run'}\nsteps: 1\nworkers: 0\n")
    line = refused("train", tmp_path / "recipe.yaml")
    assert f"stale: mine-train.arrow has changed since it was made; run `cover overlap {catalog}` again" in line


def test_train_prints_the_run_and_says_what_to_type_next(cover: Cover, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    code, out, err = cover("train", recipe, "--evaluate_every", "-1")
    assert (code, out) == (0, f"{run}\n")
    following = err.splitlines()[-1]
    assert following.startswith("next: cover ")
    code, out, _ = cover(*shlex.split(following.removeprefix("next: cover ")), "--workers", "0", "--views", "1x1")
    assert code == 0
    assert "imagenet" in out


def test_unusable_files_are_counted_and_give_exit_code_1(cover: Cover, make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({"a.mp4": "x", "b.mp4": "y", "gone.mp4": "y"}, absent=["gone.mp4"])
    code, out, err = cover("index", catalog, "--workers", 0)
    assert code == 1
    assert "gone.mp4: no such file" in err
    assert "listed" in out
    model = CoVeR(TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("mine", ("x", "y")),))
    about = {"step": 1, "frames": 2, "datasets": {"mine": {"sampling": "whole", "views": "1x1"}}}
    save_release(tmp_path / "release", model, about)
    code, out, _ = cover("evaluate", tmp_path / "release", "--catalog", catalog, "--workers", 0, "--json", "-")
    (row,) = json.loads(out)
    assert (code, row["n_read"], row["n_listed"]) == (1, 2, 3)
    code, out, err = cover("predict", tmp_path / "release", tmp_path / "mine" / "a.mp4", tmp_path / "mine" / "gone.mp4")
    assert code == 1
    assert "a.mp4\n" in out
    assert len(err.splitlines()) == 1


def test_a_file_whose_name_is_no_text(trained: Path, sandbox: Path, tmp_path: Path) -> None:
    source = next((sandbox.parent / "imagenet_like" / "val").rglob("*.JPEG"))
    odd = os.fsencode(tmp_path) + b"/\xff.jpg"
    try:
        Path(os.fsdecode(odd)).write_bytes(source.read_bytes())
    except OSError:
        pytest.skip("this file system holds valid names only")
    command = [sys.executable, "-m", "cover.cli", "predict", os.fspath(trained), odd, "--json", os.fspath(tmp_path / "out.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"\\udcff.jpg" in done.stdout
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert os.fsencode(found["file"]) == odd


def test_a_listed_file_whose_name_is_no_text(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "train" / "a") + b"/\xff.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system holds valid names only")
    line = refused("index", catalog_of(tmp_path, "mine: {format: folder, root: .}\n"), "--workers", 0)
    assert "\\udcff.jpg': the file's name is not valid UTF-8" in line
