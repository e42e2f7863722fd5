"""sandbox, index, overlap: what they refuse, count and print."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cover.model.backbones.timesformer import TimeSformerConfig
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.release import save_release

MakeSet = Callable[..., Path]
Cover = Callable[..., tuple[int, str, str]]


def catalog_of(folder: Path, text: str) -> Path:
    (folder / "catalog.yaml").write_text(text)
    return folder / "catalog.yaml"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: {format: kinetcs, root: .}", ["a.format", 'did you mean "kinetics"']),
        ("a: {format: csv, root: .}\na: {format: csv, root: .}", ['"a" is given twice, first on line 1']),
        ("a: {format: csv, rooot: .}", ["rooot", 'did you mean "root"']),
        ("a: {format: csv, root: .}", ["a.annotations", "train.csv"]),
        ("a: {format: csv, root: ., media: video, annotations: {train: absent.csv}}", ["absent.csv: cannot be read"]),
        ("a b: {format: csv, root: .}", ["'a b' cannot name a data set"]),
        ("- a", ["line 1: expected keys"]),
        ("a: {format: [", ["line 1, column 14: not YAML"]),
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
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{sets: [mine], catalog: {catalog}}}\nout: {tmp_path / 'run'}\nsteps: 1\nworkers: 0\n"
    )
    assert "nothing to train on" in refused("train", tmp_path / "recipe.yaml")


def test_names_that_a_catalog_does_not_have(sandbox: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    assert 'did you mean "kinetics"' in refused("index", sandbox, "kinetcs")
    assert "absent.yaml: cannot be read" in refused("index", tmp_path / "absent.yaml")


def test_a_folder_of_something_else(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty and holds no sandbox" in refused("sandbox", tmp_path, "--workers", 0)
    assert "size 0" in refused("sandbox", tmp_path / "new", "--size", 0)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--difficulty", "worst"), ("--difficulty", "worst", "easy", "hard")),
        (("--val", "0"), ("--val", "0")),
        (("--val", "10001"), ("val is 10001", "10000")),
        (("--low-contrast", "1.5"), ("low_contrast is 1.5",)),
        (("--pan", "nan"), ("pan is nan",)),
    ],
)
def test_wrong_values_of_the_sandbox(
    refused: Callable[..., str], tmp_path: Path, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    line = refused("sandbox", tmp_path / "new", *words)
    assert all(word in line for word in named)
    assert not (tmp_path / "new").exists()


def test_overlap_counts_and_trains_without_what_it_found(cover: Cover, make_set: MakeSet, tmp_path: Path) -> None:
    make_set({"a.png": "x"}, name="first")
    # a and d are the same
    catalog = make_set({"d.png": "x", "e.png": "y", "f.png": "y"}, name="second", annotations="{train: list.csv}")
    code, out, err = cover("overlap", catalog, "--frames", "--workers", 0, "--json", tmp_path / "leaks.json")
    assert code == 0
    assert next(line.split() for line in out.splitlines() if line.startswith("first val")) == [
        "first",
        "val",
        "second",
        "train",
        "0",
        "1",
        "1",
        "/",
        "1",
        "1",
        "1",
        "/",
        "1",
    ]
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
    code, out, _ = cover(
        "overlap", sandbox, "ssv2", "--workers", 0, "--json", "-", "--out", tmp_path / "list", "imagenet"
    )
    result = json.loads(out)
    assert (code, {row["dataset"] for row in result["splits"]}, result["kinds"]) == (
        0,
        {"ssv2", "imagenet"},
        ["source", "file"],
    )
    assert [row["excluded"] for row in result["excluded"]] == [0, 0]
    assert (tmp_path / "list" / "exclusions.arrow").is_file()


def test_overlap_refuses(refused: Callable[..., str], sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert 'did you mean "kinetics"' in refused("overlap", sandbox, "kinetcs")
    assert "absent.yaml: cannot be read" in refused("overlap", tmp_path / "absent.yaml")
    assert "file: cannot be made" in refused("overlap", sandbox, "--out", tmp_path / "file")
    (tmp_path / "train.csv").write_text("path,label\na.png,x\n")
    catalog = catalog_of(tmp_path, "mine: {format: csv, root: .}\n")
    assert "mine-train.arrow: no such manifest; `cover index`" in refused("overlap", catalog)


def test_a_stale_list_of_exclusions(
    cover: Cover, refused: Callable[..., str], make_set: MakeSet, tmp_path: Path
) -> None:
    catalog = make_set({"a.png": "x", "b.png": "y"}, annotations="{train: list.csv}")
    cover("overlap", catalog, "--workers", 0)
    (tmp_path / "mine/b.png").write_bytes((tmp_path / "mine/a.png").read_bytes())
    cover("index", catalog, "--workers", 0)
    (tmp_path / "recipe.yaml").write_text(
        f"data: {{sets: [mine], catalog: {catalog}}}\nout: {tmp_path / 'run'}\nsteps: 1\nworkers: 0\n"
    )
    line = refused("train", tmp_path / "recipe.yaml")
    assert f"stale: mine-train.arrow has changed since it was made; run `cover overlap {catalog}` again" in line


def test_unusable_files_are_counted_and_give_exit_code_1(cover: Cover, make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set({"a.mp4": "x", "b.mp4": "y", "gone.mp4": "y"}, absent=["gone.mp4"])
    code, out, err = cover("index", catalog, "--workers", 0)
    assert code == 1
    assert "gone.mp4: no such file" in err
    assert "listed" in out
    model = CoVeR(
        TimeSformerConfig(width=16, depth=1, attention_heads=2, patch=8, size=16), (Head("mine", ("x", "y")),)
    )
    metadata = {"step": 1, "frames": 2, "datasets": {"mine": {"sampling": "whole", "views": "1x1"}}}
    save_release(tmp_path / "release", model, metadata)
    code, out, _ = cover("evaluate", tmp_path / "release", "--catalog", catalog, "--workers", 0, "--json", "-")
    (row,) = json.loads(out)
    assert (code, row["n_read"], row["n_listed"]) == (1, 2, 3)
    code, out, err = cover("predict", tmp_path / "release", tmp_path / "mine" / "a.mp4", tmp_path / "mine" / "gone.mp4")
    assert code == 1
    assert "a.mp4\n" in out
    assert len(err.splitlines()) == 1


def test_a_listed_file_whose_name_is_no_text(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "train" / "a") + b"/\xff.jpg")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system holds valid names only")
    line = refused("index", catalog_of(tmp_path, "mine: {format: folder, root: .}\n"), "--workers", 0)
    assert "\\udcff.jpg': the file's name is not valid UTF-8" in line
