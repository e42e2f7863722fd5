"""Indexing real encoded files: states, reruns, dev, interruptions."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cover.datasets import probe
from cover.datasets.index import index, print_index
from cover.datasets.manifest import open_manifest
from cover.errors import UserError


def write_video(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 64, 48
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 8, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_tree(root: Path) -> Path:
    """Five listed train files: two good, one absent, one that is no video, one of one frame; one good one in val."""
    write_video(root / "good, one.mp4", 20)
    write_video(root / "gøød.mp4", 10)
    write_video(root / "short.mp4", 1)
    write_video(root / "val.mp4", 10)
    (root / "corrupt.mp4").write_bytes(b"no video at all" * 100)
    names = ['"good, one.mp4",a', "gøød.mp4,b", "short.mp4,a", "corrupt.mp4,b", "absent.mp4,a"]
    (root / "train.csv").write_text("path,label\n" + "\n".join(names) + "\n", encoding="utf-8")
    (root / "val.csv").write_text("path,label\nval.mp4,a\n")
    (root / "catalog.yaml").write_text("mine: {format: csv, root: ., dev: 0}\n")
    return root / "catalog.yaml"


def by_split(results: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {result["split"]: result for result in results}


@pytest.mark.parametrize("workers", [0, 2])
def test_states(tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    results = index(write_tree(tmp_path), workers)
    train, val = by_split(results)["train"], by_split(results)["val"]
    assert {state: train[state] for state in ("listed", "ok", "missing", "unreadable", "too_short")} == {
        "listed": 5,
        "ok": 2,
        "missing": 1,
        "unreadable": 1,
        "too_short": 1,
    }
    assert train["hours"] == pytest.approx(3 / 3600)
    assert (train["probed"], val["probed"], val["classes"]) == (4, 1, 2)
    assert train["class_digest"] == val["class_digest"]
    manifest = open_manifest(Path(train["manifest"]))
    row = manifest.row(0)
    assert (row.state, row.frames, row.fps, row.width, row.height, row.codec) == ("ok", 20, 10, 64, 48, "mpeg4")
    assert [manifest.row(i).state for i in range(5)] == ["ok", "ok", "too_short", "unreadable", "missing"]
    assert all(manifest.row(i).why for i in (2, 3, 4))
    print_index(results)
    out, err = capsys.readouterr()
    assert "too short" in out
    assert err.count("mine train:") == 3
    assert "absent.mp4: no such file" in err


def test_rerun_probes_only_what_changed(tmp_path: Path) -> None:
    catalog = write_tree(tmp_path)
    index(catalog, 0)
    assert [result["probed"] for result in index(catalog, 0)] == [0, 0]
    write_video(tmp_path / "absent.mp4", 5)
    write_video(tmp_path / "corrupt.mp4", 5)
    (tmp_path / "gøød.mp4").unlink()
    train = by_split(index(catalog, 0))["train"]
    assert (train["probed"], train["ok"], train["missing"], train["unreadable"]) == (2, 3, 1, 0)
    os.utime(tmp_path / "val.mp4", ns=(1, 1))
    assert [result["probed"] for result in index(catalog, 0)] == [0, 1]
    assert [result["probed"] for result in index(catalog, 0, force=True)] == [4, 1]


def test_interrupted_run_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = write_tree(tmp_path)
    real, calls = probe.probe, []

    def interrupted(path: str, media: Any) -> probe.MediaError:
        calls.append(path)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return real(path, media)

    monkeypatch.setattr(probe, "probe", interrupted)
    monkeypatch.setattr(probe, "_CHUNK", 1)
    with pytest.raises(KeyboardInterrupt):
        index(catalog, 0)
    assert not list((tmp_path / "manifests").glob("mine-*"))
    monkeypatch.setattr(probe, "probe", real)
    assert sum(result["probed"] for result in index(catalog, 0)) == 5 - 2
    assert sorted(file.name for file in (tmp_path / "manifests").iterdir()) == ["mine-train.arrow", "mine-val.arrow"]


def test_segments_of_one_file(tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", 30)
    (tmp_path / "train.csv").write_text("path,label,start,end\nlong.mp4,a,0,1\nlong.mp4,a,2.5,\nlong.mp4,a,9,12\n")
    (tmp_path / "catalog.yaml").write_text("mine: {format: csv, root: .}\n")
    for _ in range(2):  # the second time from the manifest
        train = index(tmp_path / "catalog.yaml", 0)[0]
        assert (train["ok"], train["too_short"]) == (2, 1)
        assert train["hours"] == pytest.approx(1.5 / 3600)


def test_bad_list_ends_before_any_file_is_opened(tmp_path: Path) -> None:
    catalog = write_tree(tmp_path)
    (tmp_path / "val.csv").write_text("path,label\nval.mp4,c\n")
    with pytest.raises(UserError, match=r'val\.csv, row 2: label "c"'):
        index(catalog, 0)
    assert not (tmp_path / "manifests").exists()
    with pytest.raises(UserError, match='no data set "yours"'):
        index(catalog, 0, names=["yours"])


def test_dev_is_a_manifest_of_its_own(tmp_path: Path) -> None:
    for number in range(24):
        path = tmp_path / f"train/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not an image")
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("mine: {format: folder, root: ., dev: 0.3}")
    results = by_split(index(catalog, 0))
    assert results["train"]["listed"] + results["dev"]["listed"] == 24
    assert results["dev"]["listed"] > 0
    catalog.write_text("mine: {format: folder, root: ., dev: 0.5}")
    assert sum(result["probed"] for result in index(catalog, 0)) == 0  # rows that changed split keep their probe


def test_dead_worker_costs_no_file(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(200)]
    with probe.Prober(1) as prober:
        parts = prober.probe(paths, "image")
        result = next(parts)
        for child in multiprocessing.active_children():
            child.kill()
        result += [pair for part in parts for pair in part]
    assert sorted(path for path, _ in result) == sorted(paths)
    assert {facts.state for _, facts in result} == {"missing"}


FILES = Path(__file__).parents[1] / "media" / "files"


@pytest.mark.parametrize("deep", [False, True])
def test_odd_files_cost_no_other_file(tmp_path: Path, deep: bool) -> None:
    """A camera's Motion-JPEG with EXIF data, a playlist and an empty file beside a good one."""
    write_video(tmp_path / "good.mp4", 10)
    for name in ("canon_exif.avi", "canon_exif.mov"):
        (tmp_path / name).write_bytes((FILES / name).read_bytes())
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (tmp_path / "empty.mp4").touch()
    names = ["canon_exif.avi", "list.mp4", "good.mp4", "canon_exif.mov", "empty.mp4"]
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"{name},x\n" for name in names))
    (tmp_path / "catalog.yaml").write_text("mine: {format: csv, root: ., dev: 0}\n")
    (result,) = index(tmp_path / "catalog.yaml", 0, deep=deep)
    assert [row.state for row in open_manifest(Path(result["manifest"])).rows()] == [
        "ok",
        "unreadable",
        "ok",
        "ok",
        "unreadable",
    ]
    assert result["partial"] == 0
    assert [Path(row["path"]).name for row in result["unusable"]] == ["list.mp4", "empty.mp4"]


def test_classes_that_differ_only_in_case(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 10)
    (tmp_path / "train.csv").write_text("path,label\na.mp4,Drinking\na.mp4,drinking\na.mp4,eating\n")
    (tmp_path / "catalog.yaml").write_text("mine: {format: csv, root: ., dev: 0}\n")
    (result,) = index(tmp_path / "catalog.yaml", 0)
    assert any('"Drinking" and "drinking"' in warning for warning in result["warnings"])
