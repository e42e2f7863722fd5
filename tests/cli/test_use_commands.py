"""evaluate, predict, explain, serve: what they refuse and print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cover import CoVeR
from cover.model.backbones import named_config
from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.heads import Head
from cover.model.release import save_release

MakeSet = Callable[..., Path]
Cover = Callable[..., tuple[int, str, str]]
SERVE_NUMBERS = (
    "port",
    "queue",
    "pack-frames",
    "max-mb",
    "max-seconds",
    "max-megapixels",
    "upload-seconds",
    "deadline",
    "workers",
)


def test_no_such_checkpoint(refused: Callable[..., str], sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "nowhere: does not exist" in refused("evaluate", tmp_path / "nowhere", "--catalog", sandbox)
    assert "empty: has no checkpoint in it" in refused("evaluate", tmp_path / "empty", "--catalog", sandbox)
    assert "nowhere: does not exist" in refused("predict", tmp_path / "nowhere", "a.mp4")


def test_a_checkpoint_whose_heads_do_not_match(refused: Callable[..., str], sandbox: Path, tmp_path: Path) -> None:
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("ssv2", ("a", "b")),)
    )
    save_release(tmp_path / "release", model, {"step": 1, "frames": 2, "datasets": {}})
    assert 'head "ssv2" was trained on class list' in refused("evaluate", tmp_path / "release", "--catalog", sandbox)
    assert 'has no head "kinetics"; its heads: ssv2' in refused(
        "evaluate", tmp_path / "release", "kinetics", "--catalog", sandbox
    )


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
def test_evaluate_refuses(
    trained: Path, sandbox: Path, refused: Callable[..., str], arguments: list[str], part: str
) -> None:
    assert part in refused("evaluate", trained, "--catalog", sandbox, *arguments)


def test_a_model_that_was_never_trained_is_evaluated(cover: Cover, make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({"a.mp4": "left", "b.mp4": "right"})
    CoVeR(named_config("mini", size=16, frames=3), (Head("mine", ("left", "right")),)).save_pretrained(
        tmp_path / "bare"
    )
    code, out, err = cover("evaluate", tmp_path / "bare", "--catalog", catalog, "--workers", 0)
    assert code == 0, err
    titles, row = (re.split(r"\s{2,}", line.strip()) for line in out.splitlines()[:2])
    record = dict(zip(titles, row, strict=True))
    assert (record["frames"], record["step"], record["read"]) == ("3", "-", "2")


def test_names_may_stand_behind_options(cover: Cover, trained: Path, sandbox: Path) -> None:
    code, out, _ = cover(
        "evaluate",
        trained,
        "imagenet",
        "--catalog",
        sandbox,
        "--workers",
        0,
        "--json",
        "-",
        "kinetics",
        "--views",
        "1x1",
    )
    assert (code, [row["dataset"] for row in json.loads(out)]) == (0, ["imagenet", "kinetics"])
    code, out, _ = cover("index", sandbox, "--workers", 0, "--json", "-", "imagenet")
    assert (code, {row["dataset"] for row in json.loads(out)}) == (0, {"imagenet"})


def test_results_that_cannot_be_written(
    refused: Callable[..., str], trained: Path, sandbox: Path, tmp_path: Path
) -> None:
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
    (result,) = json.loads(out)
    assert (code, result["file"], {len(top) for top in result["heads"].values()}) == (0, str(image), {2})
    code, out, _ = cover("index", sandbox, "imagenet", "--workers", 0, "--json", "-")
    assert [(row["split"], row["probed"]) for row in json.loads(out)] == [("train", 0), ("dev", 0), ("val", 0)]
    assert code == 0


def test_tables_on_stdout_and_json_in_a_file(cover: Cover, trained: Path, sandbox: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "out.json"
    code, out, _ = cover(
        "evaluate",
        trained,
        "imagenet",
        "ssv2",
        "--catalog",
        sandbox,
        "--workers",
        0,
        "--shuffle-frames",
        "--json",
        target,
    )
    assert code == 0
    rows = json.loads(target.read_text())
    assert [(row["dataset"], row["variant"]) for row in rows] == [
        ("imagenet", "plain"),
        ("ssv2", "plain"),
        ("ssv2", "shuffled"),
    ]
    first, second = out.split("\n\n")
    assert [line.split()[0] for line in first.splitlines()] == ["data", "imagenet", "ssv2", "ssv2"]
    assert [line.split()[0] for line in second.splitlines()] == ["trivial", "imagenet", "ssv2"]
    assert ["baselines" in row for row in rows] == [True, True, False]


def test_trivial_methods_may_be_left_out(cover: Cover, trained: Path, sandbox: Path) -> None:
    arguments = ("imagenet", "--catalog", sandbox, "--workers", 0, "--no-baselines")
    code, out, _ = cover("evaluate", trained, *arguments)
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, ["data", "imagenet"])
    _, out, _ = cover("evaluate", trained, *arguments, "--json", "-")
    assert all("baselines" not in row for row in json.loads(out))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--head", "ssv3"], 'did you mean "ssv2"'),
        (["--views", "x"], "as in 1x3"),
        (["--top", "0"], "--top"),
        (["--top", "few"], "--top"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_predict_refuses(trained: Path, refused: Callable[..., str], arguments: list[str], part: str) -> None:
    assert part in refused("predict", trained, "a.mp4", *arguments)


def test_a_file_whose_name_is_no_text(trained: Path, sandbox: Path, tmp_path: Path) -> None:
    source = next((sandbox.parent / "imagenet_like" / "val").rglob("*.JPEG"))
    odd = os.fsencode(tmp_path) + b"/\xff.jpg"
    try:
        Path(os.fsdecode(odd)).write_bytes(source.read_bytes())
    except OSError:
        pytest.skip("this file system holds valid names only")
    command = [
        sys.executable,
        "-m",
        "cover",
        "predict",
        os.fspath(trained),
        odd,
        "--json",
        os.fspath(tmp_path / "out.json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"\\udcff.jpg" in done.stdout
    (result,) = json.loads((tmp_path / "out.json").read_text())
    assert os.fsencode(result["file"]) == odd


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
