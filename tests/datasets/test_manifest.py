"""Manifests give back what was written, lazily, in this process and in others."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cover.datasets.manifest import ClassList, Row, open_manifest, write_manifest
from cover.errors import UserError

CLASSES = ClassList.of(["a", "b, 雪"], "classes.txt")
ROW = Row(
    sample_id='odd "id"',
    source_id="-s",
    path="/x/ø.mp4",
    offset=None,
    length=None,
    label=1,
    start=0.5,
    end=None,
    youtube_start=10.0,
    youtube_end=None,
    frames=30,
    fps=29.97,
    width=320,
    height=240,
    codec="h264",
    state="ok",
    why="",
    size=12,
    mtime_ns=2**60,
)
ROWS = [
    ROW,
    replace(ROW, label=None),
    replace(ROW, state="missing", why="no such file", offset=7, length=9),
    replace(ROW, label=0),
]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "manifests/mine-val.arrow"
    write_manifest(path, "mine", "val", "video", CLASSES, iter(ROWS))
    manifest = open_manifest(path)
    assert (manifest.name, manifest.split, manifest.media, manifest.classes) == ("mine", "val", "video", CLASSES)
    assert [manifest.row(i) for i in range(len(manifest))] == ROWS == list(manifest.rows())
    assert (manifest.labels.dtype, manifest.labels.tolist()) == (np.int32, [1, -1, 1, 0])
    assert (manifest.usable.dtype, manifest.usable.tolist()) == (np.int64, [0, 3])
    assert manifest.counts() == {"ok": 3, "missing": 1, "unreadable": 0, "too_short": 0}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_many_batches(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    write_manifest(
        path, "mine", "train", "video", CLASSES, (replace(ROW, sample_id=str(i), label=i % 2) for i in range(70_000))
    )
    manifest = open_manifest(path)
    assert [manifest.row(i).sample_id for i in (0, 65_535, 65_536, 69_999)] == ["0", "65535", "65536", "69999"]
    assert manifest.labels.sum() == 35_000


def test_rows_stay_on_disk_and_travel_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    write_manifest(path, "mine", "train", "video", CLASSES, [ROW] * 50_000)
    before = pa.total_allocated_bytes()
    manifest = open_manifest(path)
    assert pa.total_allocated_bytes() - before < 100_000 < path.stat().st_size
    message = pickle.dumps(manifest)
    assert len(message) < 1_000
    assert pickle.loads(message).row(49_999) == ROW


def test_no_rows(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.arrow", "mine", "train", "image", CLASSES, [])
    manifest = open_manifest(tmp_path / "m.arrow")
    assert (len(manifest), manifest.usable.size, manifest.counts()["ok"]) == (0, 0, 0)


def test_failed_write_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    write_manifest(path, "mine", "train", "video", CLASSES, ROWS)
    with pytest.raises(ZeroDivisionError):
        write_manifest(path, "mine", "train", "video", CLASSES, (replace(ROW, frames=1 // n) for n in (1, 0)))
    assert len(open_manifest(path)) == len(ROWS)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_class_list() -> None:
    assert (
        CLASSES.digest
        == ClassList.of(("a", "b, 雪"), "elsewhere").digest
        != ClassList.of(["b, 雪", "a"], "classes.txt").digest
    )
    with pytest.raises(UserError, match='"a" is listed twice'):
        ClassList.of(["a", "a"], "classes.txt")


def test_not_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such manifest; `cover index`"):
        open_manifest(tmp_path / "gone.arrow")
    (tmp_path / "m.arrow").write_bytes(b"ARROW1 and then nothing")
    with pytest.raises(UserError, match="not a manifest"):
        open_manifest(tmp_path / "m.arrow")


# --- any number of labels ---------------------------------------------------------------------------------------------

MANY = ClassList.of(["a", "b", "c"], "classes.txt", many=True)
HELD: list[list[int] | None] = [[0, 2], [], None, [1]]


def test_many_labels_round_trip(tmp_path: Path) -> None:
    rows = [replace(ROW, label=None, labels=labels) for labels in HELD]
    write_manifest(
        tmp_path / "m.arrow", "mine", "train", "video", MANY, [*rows, replace(rows[0], state="missing", why="gone")]
    )
    manifest = open_manifest(tmp_path / "m.arrow")
    assert manifest.classes == MANY != CLASSES
    assert [manifest.row(i) for i in range(4)] == rows == list(manifest.rows())[:4]
    assert manifest.labelled.tolist() == [True, True, False, True, True]
    assert (manifest.usable.tolist(), manifest.class_counts().tolist()) == ([0, 1, 3], [2, 1, 2])
    assert open_manifest(tmp_path / "m.arrow", np.array([3])).usable.tolist() == [0, 1]


def test_class_counts_of_one_label_each(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.arrow", "mine", "val", "video", CLASSES, ROWS)
    assert open_manifest(tmp_path / "m.arrow").class_counts().tolist() == [1, 2], "missing ones are listed too"


def test_many_labels_stay_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    write_manifest(
        path, "mine", "train", "video", MANY, (replace(ROW, label=None, labels=[i % 3]) for i in range(50_000))
    )
    before = pa.total_allocated_bytes()
    manifest = open_manifest(path)
    assert manifest.row(49_999).labels == [49_999 % 3]
    assert pa.total_allocated_bytes() - before < 100_000 < path.stat().st_size
    assert manifest.class_counts().sum() == len(manifest.usable) == 50_000


def test_a_manifest_written_before_there_were_many_labels(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    write_manifest(path, "mine", "train", "video", CLASSES, ROWS)
    old = pa.ipc.open_file(str(path)).read_all().drop_columns(["labels"])
    with pa.OSFile(str(tmp_path / "old.arrow"), "wb") as file, pa.ipc.new_file(file, old.schema) as writer:
        writer.write_table(old)
    with pytest.raises(UserError, match=r"another version; run `cover index --force`"):
        open_manifest(tmp_path / "old.arrow")


def test_a_manifest_written_anew_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.arrow"
    write_manifest(path, "mine", "train", "video", CLASSES, ROWS)
    manifest = open_manifest(path)
    manifest.check_unchanged()
    write_manifest(path, "mine", "train", "video", CLASSES, ROWS[::-1])
    assert manifest.row(0) == ROWS[0]  # the file that was opened is still there
    with pytest.raises(UserError, match=r"m\.arrow: was written anew while it was in use"):
        manifest.check_unchanged()
    path.unlink()
    with pytest.raises(UserError, match="written anew"):
        manifest.check_unchanged()
