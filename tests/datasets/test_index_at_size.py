"""Indexing that is killed, parted between jobs, or done to the last frame ends in the very same manifests."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cover.cli import main
from cover.datasets.index import IndexShard, ProbeOptions, index, index_share
from cover.datasets.manifest import open_manifest
from cover.errors import UserError

FILES = 400


def write_images(root: Path, count: int = FILES) -> Path:
    """A csv list of one large picture under many names (so that there is time to kill the reader), among them a broken
    one and one that is not there.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "0.png")
    for number in range(1, count - 1):
        os.link(root / "0.png", root / f"{number}.png")
    (root / f"{count - 1}.png").write_bytes(b"no image")
    rows = [*(f"{number}.png,{'ab'[number % 2]}" for number in range(count)), "gone.png,a"]
    (root / "train.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (root / "catalog.yaml").write_text("mine: {format: csv, root: .}\n")
    return root / "catalog.yaml"


def write_clip(path: Path, frames: int = 40) -> Path:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(frames):
            container.mux(
                stream.encode(
                    av.VideoFrame.from_ndarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8), format="rgb24")
                )
            )
        container.mux(stream.encode())
    return path


def bytes_of(catalog: Path) -> dict[str, bytes]:
    """All that lies beside the manifests."""
    return {file.name: file.read_bytes() for file in (catalog.parent / "manifests").iterdir()}


def start_anew(catalog: Path) -> None:
    for file in (catalog.parent / "manifests").iterdir():
        file.unlink()


def total(results: list[dict[str, Any]], key: str) -> int:
    return sum(result[key] for result in results)


# --- killed


def kill_in_the_middle(catalog: Path, *options: str) -> int:
    """Starts `cover index`, kills it when its first findings are on disk, and returns how many it left."""
    command = [sys.executable, "-m", "cover", "index", str(catalog), "--workers", "2", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder, deadline = catalog.parent / "manifests", time.monotonic() + 60
    while not any(file.stat().st_size for file in folder.glob(".mine.found.*")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "it found nothing"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (cache,) = folder.glob(".mine.found.*")
    return cache.read_bytes().count(b"\n[") + cache.read_bytes().startswith(b"[")


def test_killed_run_is_continued(tmp_path: Path) -> None:
    catalog = write_images(tmp_path)
    assert total(index(catalog, 0), "probed") == FILES
    whole = bytes_of(catalog)
    start_anew(catalog)
    done = kill_in_the_middle(catalog)
    assert 0 < done < FILES
    assert not list((tmp_path / "manifests").glob("mine-*"))
    results = index(catalog, 2)
    assert FILES - done <= total(results, "probed") <= FILES - done + 1  # the last line may have been torn
    assert bytes_of(catalog) == whole


def test_killed_share_is_continued(tmp_path: Path) -> None:
    catalog = write_images(tmp_path)
    index(catalog, 0)
    whole = bytes_of(catalog)
    start_anew(catalog)
    done = kill_in_the_middle(catalog, "--shard", "1/1")
    (result,) = index_share(catalog, IndexShard(1, 1), ProbeOptions(2))
    assert FILES - done <= result["probed"] <= FILES - done + 1
    assert total(index(catalog, 0), "probed") == 0
    assert bytes_of(catalog) == whole


def test_killed_run_that_believes_no_earlier_one_is_continued(tmp_path: Path) -> None:
    catalog = write_images(tmp_path)
    index(catalog, 0)
    whole = bytes_of(catalog)
    done = kill_in_the_middle(catalog, "--force")
    assert 0 < done < FILES
    assert FILES - done <= total(index(catalog, 2, force=True), "probed") <= FILES - done + 1
    assert bytes_of(catalog) == whole
    assert total(index(catalog, 0, force=True), "probed") == FILES  # that one came to its end: the next begins anew


def test_forced_share_begins_anew_once_it_is_through(tmp_path: Path) -> None:
    catalog = write_images(tmp_path, 20)
    for _ in range(2):
        assert index_share(catalog, IndexShard(1, 1), ProbeOptions(0, force=True))[0]["probed"] == 20
    assert index_share(catalog, IndexShard(1, 1), ProbeOptions(0))[0]["probed"] == 0


def test_share_that_is_still_running_keeps_its_journal(tmp_path: Path) -> None:
    catalog = write_images(tmp_path)
    command = [sys.executable, "-m", "cover", "index", str(catalog), "--workers", "1", "--shard", "1/1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder, deadline = catalog.parent / "manifests", time.monotonic() + 60
    while not any(file.stat().st_size for file in folder.glob(".mine.found.*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    index(catalog, 0)
    (cache,) = folder.glob(".mine.found.1-of-1.*")
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    assert cache.read_bytes().count(b"\n[") == FILES
    index(catalog, 0)
    assert not list(folder.glob(".mine.found.*"))


def test_half_written_manifest_of_a_killed_run_goes(tmp_path: Path) -> None:
    catalog = write_images(tmp_path, 3)
    index(catalog, 0)
    old, young = (tmp_path / f"manifests/.mine-train.arrow.{pid}" for pid in (1, 2))
    old.touch()
    young.touch()
    os.utime(old, (1, 1))
    index(catalog, 0)
    assert not old.exists()
    assert young.exists()


# --- shares


def test_shares_are_one_run(tmp_path: Path) -> None:
    catalog = write_images(tmp_path, 60)
    index(catalog, 0)
    whole = bytes_of(catalog)
    start_anew(catalog)
    results = [index_share(catalog, IndexShard(number, 3), ProbeOptions(0))[0] for number in (1, 2, 3)]
    assert [result["files"] for result in results] != [0, 0, 61]
    assert total(results, "files") == 61
    assert (
        total(results, "probed"),
        total(results, "ok"),
        total(results, "missing"),
        total(results, "unreadable"),
    ) == (60, 59, 1, 1)
    assert len({result["probe_cache"] for result in results}) == 3
    assert total(index_share(catalog, IndexShard(2, 3), ProbeOptions(0)), "probed") == 0  # a job that is started twice
    assert total(index(catalog, 0), "probed") == 0
    assert bytes_of(catalog) == whole


def test_jobs_side_by_side(tmp_path: Path) -> None:
    catalog = write_images(tmp_path, 60)
    index(catalog, 0)
    whole = bytes_of(catalog)
    start_anew(catalog)
    command = [sys.executable, "-m", "cover", "index", str(catalog), "--workers", "0", "--shard"]
    jobs = [
        subprocess.Popen([*command, f"{number}/2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for number in (1, 2)
    ]
    said = [job.communicate() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert f"next: cover index {catalog}" in said[0][1]
    assert total(index(catalog, 0), "probed") == 0
    assert bytes_of(catalog) == whole


def test_what_changed_since_its_share_was_probed_is_probed_again(tmp_path: Path) -> None:
    catalog = write_images(tmp_path, 20)
    for number in (1, 2):
        index_share(catalog, IndexShard(number, 2), ProbeOptions(0))
    (tmp_path / "7.png").unlink()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "7.png")
    with (tmp_path / "train.csv").open("a") as file:
        file.write("more.png,a\n")
    os.link(tmp_path / "0.png", tmp_path / "more.png")
    results = index(catalog, 0)
    assert total(results, "probed") == 2
    rows = [row for result in results for row in open_manifest(Path(result["manifest"])).rows()]
    assert {row.sample_id: row.width for row in rows if row.sample_id in ("7.png", "more.png")} == {
        "7.png": 30,
        "more.png": 500,
    }


def test_a_missing_share_is_made_up_for(tmp_path: Path) -> None:
    catalog = write_images(tmp_path, 60)
    first = index_share(catalog, IndexShard(1, 2), ProbeOptions(0))[0]
    assert total(index(catalog, 0), "probed") == 60 - first["probed"]


def test_force_in_shares_believes_no_earlier_run(tmp_path: Path) -> None:
    catalog = write_images(tmp_path, 20)
    index(catalog, 0)
    for number in (1, 2):
        assert index_share(catalog, IndexShard(number, 2), ProbeOptions(0, force=True))[0]["probed"] > 0
    assert total(index(catalog, 0), "probed") == 0


def test_shares_are_even() -> None:
    paths = [f"/data/k400/train/class_{n % 400}/{n:011d}_000010_000020.mp4" for n in range(32_000)]
    random.Random(0).shuffle(paths)
    sizes = Counter({number: len(IndexShard(number, 16).of(paths)) for number in range(1, 17)})
    assert sizes.total() == len(paths)
    assert max(sizes.values()) - min(sizes.values()) < 400


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/", "a/b", "1/0", "-1/4", "1/4/2", "²/4"])
def test_shares_that_are_none(text: str) -> None:
    with pytest.raises(
        UserError, match=r"--shard .*: expected NUMBER/COUNT, the number from 1 to the count, as in 3/16"
    ):
        IndexShard.parse(text)


# --- to the last frame


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A catalog of a sound clip, one that ends early, two segments of one, and one of which a frame is left."""
    write_clip(tmp_path / "sound.mp4")
    data = write_clip(tmp_path / "half.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    lines = ["sound.mp4,a,,", "half.mp4,b,,", "half.mp4,b,0,1", "half.mp4,b,3.5,4"]
    (tmp_path / "train.csv").write_text("path,label,start,end\n" + "\n".join(lines) + "\n")
    (tmp_path / "catalog.yaml").write_text("mine: {format: csv, root: ., dev: 0}\n")
    return tmp_path / "catalog.yaml"


def rows_of(result: dict[str, Any]) -> list[Any]:
    return list(open_manifest(Path(result["manifest"])).rows())


def test_deep_finds_damage(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shallow,) = index(clips, 0)
    assert (shallow["ok"], shallow["too_short"], shallow["partial"]) == (3, 1, 0)
    before = rows_of(shallow)
    (deep,) = index(clips, 2, deep=True)
    assert (deep["probed"], deep["ok"], deep["too_short"], deep["partial"]) == (2, 3, 1, 2)
    after = rows_of(deep)
    assert replace(after[0], deep=False) == before[0]
    # The cut packet is counted by neither, and no picture is lost that waits in the decoder.
    assert 5 < after[1].frames == before[1].frames < 40
    assert after[1].damage == after[2].damage == f"the file ends early, {after[1].frames} of 40 frames"
    assert (after[3].why, after[3].damage) == ("0 frames in the segment", after[1].damage)
    assert [row["why"] for row in deep["unusable"]][2] == f"0 frames in the segment; partial: {after[1].damage}"
    assert main(["index", str(clips), "--workers", "0"]) == 1
    out, err = capsys.readouterr()
    assert "partial" in out
    assert f"mine train: partial: {clips.parent / 'half.mp4'}: the file ends early, {after[1].frames}" in err


def test_deep_is_not_forgotten(clips: Path) -> None:
    index(clips, 0, deep=True)
    whole = bytes_of(clips)
    assert [row["probed"] for row in (*index(clips, 0), *index(clips, 0, deep=True))] == [0, 0]
    assert bytes_of(clips) == whole
    write_clip(clips.parent / "sound.mp4", 20)
    (changed,) = index(clips, 0)
    assert (changed["probed"], changed["partial"]) == (1, 2)
    assert [row.deep for row in rows_of(changed)] == [False, True, True, True]
    assert index(clips, 0, deep=True)[0]["probed"] == 1


def test_deep_journal_is_not_overruled_by_a_shallow_share(clips: Path) -> None:
    index_share(clips, IndexShard(1, 1), ProbeOptions(0, deep=True))
    index_share(clips, IndexShard(1, 2), ProbeOptions(0, force=True))
    index_share(clips, IndexShard(2, 2), ProbeOptions(0, force=True))
    assert (index(clips, 0)[0]["probed"], index(clips, 0)[0]["partial"]) == (0, 2)


def test_damaged_images_are_unreadable_only_to_a_deep_run_that_decodes_them(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "train.csv").write_text("path,label\na.jpg,a\nb.jpg,a\n")
    (tmp_path / "catalog.yaml").write_text("mine: {format: csv, root: ., dev: 0}\n")
    (result,) = index(tmp_path / "catalog.yaml", 0, deep=True)
    assert (result["ok"], result["unreadable"], result["partial"]) == (1, 1, 0)


# --- what is out of reach


def test_file_out_of_reach_is_not_missing(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "train.csv").write_text(f"path,label\nloop.png,a\n{'x' * 300}.png,a\nloop.png/a.png,a\ngone.png,a\n")
    (tmp_path / "catalog.yaml").write_text("mine: {format: csv, root: ., dev: 0}\n")
    for _ in range(2):
        (result,) = index(tmp_path / "catalog.yaml", 0)
        assert (result["unreadable"], result["missing"], result["probed"]) == (3, 1, 0)
        assert [row["why"] for row in result["unusable"]][:2] == [
            "Too many levels of symbolic links",
            "File name too long",
        ]


def test_archives_that_were_not_unpacked_are_named(tmp_path: Path) -> None:
    for name in ("part_1.tar.gz", "part_2.tar.gz.part", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "train.csv").write_text("path,label\na.mp4,a\n")
    (tmp_path / "catalog.yaml").write_text("mine: {format: csv, root: ., dev: 0}\n")
    remark = index(tmp_path / "catalog.yaml", 0)[0]["warnings"][-1]
    assert (
        remark == f"files are missing, and {tmp_path} holds part_1.tar.gz, "
        f"part_2.tar.gz.part: fetch them whole and unpack them"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
def test_full_disk(tmp_path: Path) -> None:
    catalog = write_images(tmp_path, 60)
    command = (
        f"ulimit -f 1; exec {shlex.join([sys.executable, '-m', 'cover', 'index', str(catalog), '--workers', '0'])}"
    )
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert (
        ".mine.found.all.jsonl: cannot be written: File too large; run the command again to go on from here"
        in done.stderr
    )
    assert 0 < total(index(catalog, 0), "probed") < 60
