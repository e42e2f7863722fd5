"""What is wrong with some files or odd about a list is said and counted, and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cover.cli import main
from cover.datasets.formats import list_split
from cover.datasets.index import index, print_index
from cover.errors import UserError


def only(results: list[dict[str, Any]]) -> dict[str, Any]:
    (result,) = results
    return result


def test_warnings_about_a_list(tree: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tree.write("train.csv", "path,label\n" + "".join(f"{name}.mp4,{name[0]}\n" for name in ("a1", "a2", "a1", "b1")))
    tree.write("names.txt", "a\nb\n" + "".join(f"other {n}\n" for n in range(7)))
    result = only(index(tree.catalog(format="csv", classes="names.txt", dev=0), 0))
    assert (result["listed"], result["missing"]) == (4, 4)
    assert result["warnings"] == [
        "listed more than once: a1.mp4",
        "classes without a usable sample: a, b, other 0, other 1, other 2, ... (9 in all)",
    ]
    print_index([result])
    assert "set train: listed more than once: a1.mp4" in capsys.readouterr().err


def test_root_that_does_not_exist(tree: Any) -> None:
    tree.write("train.csv", "path,label\na.mp4,a\n")
    lists = {"train": str(tree.root / "train.csv")}
    result = only(index(tree.catalog(format="csv", root="gone", annotations=lists, media="video", dev=0), 0))
    assert (result["missing"], result["warnings"][0]) == (1, f"the root {tree.root / 'gone'} does not exist")


def test_unlabelled_split_lacks_no_class(tree: Any) -> None:
    tree.write("test.json", '[{"id": "1"}]')
    tree.write("labels.json", '{"Pushing something": "0"}')
    assert only(index(tree.catalog(format="ssv2"), 0))["warnings"] == []


def test_wrong_endings_and_empty_files(tree: Any) -> None:
    names = ["empty.mp4", "text.mp4", "notes.txt", "gone.mp4", "picture.mp4"]
    tree.touch("empty.mp4")
    tree.write("text.mp4", "no video")
    tree.write("notes.txt", "no video")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tree.root / "picture.mp4", format="png")
    tree.write("train.csv", "path,label\n" + "".join(f"{name},a\n" for name in names))
    catalog = tree.catalog(format="csv", dev=0)
    result = only(index(catalog, 0))
    assert (result["listed"], result["ok"], result["unreadable"], result["missing"], result["too_short"]) == (
        5,
        0,
        3,
        1,
        1,
    )
    assert next(row["why"] for row in result["unusable"]) == "empty file"
    assert main(["index", str(catalog), "--workers", "0"]) == 1


def test_files_left_out_of_class_folders(tree: Any) -> None:
    tree.touch("train/a/1.mp4", "train/a/Thumbs.db", "train/a/deeper/x.jpg", "train/readme.txt")
    result = only(index(tree.catalog(format="folder", media="video", dev=0), 0))
    assert result["listed"] == 1
    assert (
        result["warnings"][0] == "left out, because their ending is not one of video files: "
        "2 files in class folders, the first train/a/Thumbs.db"
    )


def test_folders_of_frames_are_indexed(tree: Any) -> None:
    tree.write(
        "train.json", '[{"id": "1", "template": "Pushing [something]"}, {"id": "2", "template": "Pushing [something]"}]'
    )
    tree.write("labels.json", '{"Pushing something": "0"}')
    tree.touch("frames/2/notes.txt")
    (tree.root / "frames/1").mkdir()
    for number in range(1, 13):
        Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(tree.root / f"frames/1/{number:05d}.jpg")
    catalog = tree.catalog(format="ssv2", dev=0)
    result = only(index(catalog, 0))
    assert (result["ok"], result["unreadable"], result["hours"]) == (1, 1, pytest.approx(1 / 3600))
    assert only(index(catalog, 0))["probed"] == 0


def test_folder_that_cannot_be_listed(
    tree: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree.touch("train/a/1.mp4", "train/b/2.mp4")
    catalog, real = tree.catalog(format="folder", media="video"), os.scandir

    def scandir(folder: str | Path) -> Any:
        if str(folder).endswith("train/b"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main(["index", str(catalog), "--workers", "0"]) == 2
    assert "train/b: this folder cannot be listed: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "file", "data", "where"),
    [
        (
            "kinetics",
            "train.csv",
            b"label,youtube_id,time_start,time_end\nab\xe9,abcdefghijk,0,10\n",
            r"train\.csv, row 2",
        ),
        ("moments", "trainingSet.csv", b"a/x.mp4,a\n\na/\xe9.mp4,a\n", r"trainingSet\.csv, row 3"),
        ("ssv2", "labels.json", b'{"P\xe9": "0"}', r"labels\.json, row 1"),
        ("list", "train.txt", b"\xff\xfea\x00", r"train\.txt, row 1: not UTF-8 \(byte 0xff at 0\)"),
        ("csv", "train.csv", b"path,label\n" + b"a.mp4,x\n" * 9000 + b"\xe9.mp4,x\n", r"train\.csv, row 9002"),
    ],
)
def test_lists_that_are_not_utf8(tree: Any, form: str, file: str, data: bytes, where: str) -> None:
    if form == "ssv2":
        tree.write("train.json", '[{"id": "1", "template": "P"}]')
    (tree.root / file).write_bytes(data)
    with pytest.raises(UserError, match=where) as error:
        list_split(tree.spec(format=form, media="video"), "train")
    assert "\n" not in str(error.value)
