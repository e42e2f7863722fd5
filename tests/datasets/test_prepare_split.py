"""Whatever ends a run, the manifest that stands is right; what failed for a moment is tried again; nothing is left
lying about.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cover.datasets.catalog import load_catalog
from cover.datasets.index import index
from cover.datasets.manifest import Manifest, open_manifest
from cover.datasets.prepare import prepare
from cover.datasets.prepare_log import PreparedSample
from cover.datasets.prepare_split import OutputLayout, SplitJob, make
from cover.errors import UserError
from cover.locks import LOCK
from cover.media.decode import probe
from cover.media.encode import Encoding
from cover.media.source import read_bytes

MakeSet = Callable[..., Path]
SHARD = 3_000  # bytes: a few of these images
NAMES = [f"{number:02d}.png" for number in range(40)]

# `cover`, killed in front of the n-th renaming or removal of a file whose path holds some word.
KILLED = """
import os, signal, sys
from cover.cli import main

word, left = sys.argv[1], int(sys.argv[2])

def see(event, args):
    global left
    if event in ("os.rename", "os.remove") and word in f"{event} {args[0]}":
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(see)
sys.exit(main(sys.argv[3:]))
"""


def prepare_killed(word: str, after: int, catalog: Path, out: Path, shards: bool) -> bool:
    """Whether it was killed; else it has done its work."""
    options = ["--shards", "--shard-size", str(SHARD / 1e6)] if shards else []
    arguments = ["prepare", str(catalog), "--out", str(out), "--workers", "0", *options]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, word, str(after), *arguments], capture_output=True, check=False
    )
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


def manifest(catalog: Path, split: str = "train", name: str = "mine") -> Manifest:
    return open_manifest(load_catalog(catalog).manifest_path(name, split))


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, and the hash of its bytes; not the lock, which names its process."""
    files = (Path(place) / name for place, _, names in os.walk(folder) for name in names if name != LOCK)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def relist(catalog: Path, names: list[str]) -> None:
    """Replace the list of `mine`, and index it; new images are written."""
    root = catalog.parent / "mine"
    for name in names:
        if not (root / name).exists():
            rng = np.random.default_rng(sum(map(ord, name)))
            Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(root / name)
    lines = [f"{name},class {int(name.removesuffix('.png'), 36) % 6}\n" for name in names]
    (root / "list.csv").write_text("path,label\n" + "".join(lines))
    index(catalog, 0)


@pytest.fixture
def images(make_set: MakeSet) -> Path:
    """The catalog of 40 images of six classes, both train and val; small PNG files, which are copied."""
    return make_set({name: f"class {int(name.removesuffix('.png'), 36) % 6}" for name in NAMES})


def assert_right(out: Path, root: Path) -> None:
    """Every row of the manifests that stand shows the picture of its own sample, under its own label."""
    for file in sorted(out.glob("manifests/*.arrow")):
        for row in open_manifest(file).rows():
            name = row.sample_id if row.sample_id.endswith(".png") else f"{row.sample_id}.png"
            assert row.label == int(name.removesuffix(".png"), 36) % 6, row
            assert read_bytes(row.source) == (root / name).read_bytes(), f"{file.name} shows another picture for {name}"


def test_rows_stay_right_while_shards_are_made_anew(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    prepare(images, out, 0, shard_bytes=SHARD)
    assert_right(out, tmp_path / "mine")
    relist(images, [f"a{number}.png" for number in range(6)] + NAMES)
    kills = 0
    for kills in count():
        if not prepare_killed("", 3 + 8 * kills, images, out, shards=True):
            break
        assert_right(out, tmp_path / "mine")
    assert kills > 3
    assert_right(out, tmp_path / "mine")
    assert len(manifest(out / "catalog.yaml")) == 46
    prepare(images, tmp_path / "anew", 0, shard_bytes=SHARD)
    assert tree(out) == tree(tmp_path / "anew")


def test_rows_stay_right_while_files_are_made_anew(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    prepare(clips, out, 0, encoding=Encoding(short_side=32))
    for kills in (3, 9, 21):
        assert prepare_killed("", kills, clips, out, shards=False)
        for row in manifest(out / "catalog.yaml").rows():
            assert (probe(row.path).height, os.path.getsize(row.path)) == (row.height, row.size)
    prepare(clips, out, 0)
    prepare(clips, tmp_path / "anew", 0)
    assert tree(out) == tree(tmp_path / "anew")


@pytest.fixture
def clips(make_set: MakeSet) -> Path:
    """The catalog of eight clips, both train and val."""
    return make_set({f"{number}.mp4": "ab"[number % 2] for number in range(8)})


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize(
    "word", ["os.remove {}/mine/train", "os.rename {}/manifests/.mine-train.made.jsonl", ".part", "/val"]
)
def test_what_a_killed_run_left_goes(images: Path, tmp_path: Path, shards: bool, word: str) -> None:
    """Killed while old files are removed, before the list of them is renewed, or before it is noted what was made."""
    out, size = tmp_path / "fast", SHARD if shards else None
    prepare(images, out, 0, shard_bytes=size)
    relist(images, [*NAMES[3:30], "new.png", "newer.png", "newest.png"])
    assert prepare_killed(word.format(out), 0 if "made" in word else 2, images, out, shards)
    relist(images, NAMES[5:20])
    prepare(images, out, 0, shard_bytes=size)
    prepare(images, tmp_path / "anew", 0, shard_bytes=size)
    assert tree(out) == tree(tmp_path / "anew")


def test_a_file_that_was_not_noted_goes(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    # in place already: it is its temporary name that is about to go
    prepare_killed("os.remove", 5, images, out, shards=False)
    lying = [file for file in out.glob("mine/train/*/*") if file.is_file()]
    noted = (out / "manifests/mine-train.made.jsonl").read_text()
    assert any(file.name not in noted for file in lying)
    relist(images, NAMES[20:])
    (out / "mine/train/00").mkdir(exist_ok=True)
    for foreign in (out / "mine/notes.txt", out / "mine/train/00/notes.png"):
        foreign.write_text("a file that somebody else put there")
    prepare(images, out, 0)
    foreign_gone = tree(out)
    assert {"mine/notes.txt", "mine/train/00/notes.png"} <= foreign_gone.keys()
    prepare(images, tmp_path / "anew", 0)
    assert foreign_gone.keys() - tree(tmp_path / "anew").keys() == {"mine/notes.txt", "mine/train/00/notes.png"}


@pytest.mark.parametrize("shards", [False, True])
def test_a_split_that_is_dropped_goes(images: Path, tmp_path: Path, shards: bool) -> None:
    out, size, entry = tmp_path / "fast", SHARD if shards else None, images.read_text()
    prepare(images, out, 0, shard_bytes=size)
    images.write_text(entry.replace(", val: list.csv", ""))
    assert prepare_killed(f"os.remove {out}/mine/val", 2, images, out, shards)
    assert list(out.glob("mine/val*"))
    prepare(images, out, 0, shard_bytes=size)
    assert not list(out.rglob("*val*"))
    prepare(images, tmp_path / "anew", 0, shard_bytes=size)
    assert tree(out) == tree(tmp_path / "anew")


def test_of_shards_only_what_is_new_is_encoded(images: Path, tmp_path: Path) -> None:
    prepare(images, tmp_path / "fast", 0, shard_bytes=SHARD)
    relist(images, ["new.png", *NAMES[1:]])
    assert [result["encoded"] for result in prepare(images, tmp_path / "fast", 0, shard_bytes=SHARD)] == [1, 1]
    assert [result["encoded"] for result in prepare(images, tmp_path / "fast", 0, shard_bytes=2 * SHARD)] == [0, 0]
    prepare(images, tmp_path / "anew", 0, shard_bytes=2 * SHARD)
    assert tree(tmp_path / "fast") == tree(tmp_path / "anew")


# --- failures of the moment


@contextmanager
def killing_readers_of(file: Path) -> Iterator[list[int]]:
    """Kill every process that is seen to have a file open, as a system does that is short of memory."""
    killed: list[int] = []
    ended = threading.Event()
    watch = threading.Thread(target=_kill_readers, args=(str(file), killed, ended))
    watch.start()
    try:
        yield killed
    finally:
        ended.set()
        watch.join()


def _children() -> list[int]:
    """The processes that any thread of this one has started."""
    results: list[int] = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended
            results += map(int, (thread / "children").read_text().split())
    return results


def _kill_readers(file: str, killed: list[int], ended: threading.Event) -> None:
    while not ended.wait(0.002):
        for process in _children():
            with suppress(OSError):
                if any(os.readlink(place) == file for place in Path(f"/proc/{process}/fd").iterdir()):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)


@pytest.fixture
def long_clip(make_set: MakeSet, tmp_path: Path) -> tuple[Path, Path]:
    """A catalog of nine clips, and the fifth, which takes a second or so."""
    catalog = make_set({f"{number}.mp4": "ab"[number % 2] for number in range(9)}, annotations="{train: list.csv}")
    slow = tmp_path / "mine/4.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(slow), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height = 640, 480
        for _ in range(150):
            pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    index(catalog, 0)
    return catalog, slow


@pytest.mark.parametrize("shards", [None, 40_000])
def test_worker_that_was_killed(long_clip: tuple[Path, Path], tmp_path: Path, shards: int | None) -> None:
    (catalog, slow), out = long_clip, tmp_path / "fast"
    stamps: list[dict[Path, int]] = []
    for _ in range(2):
        with killing_readers_of(slow) as killed:
            result = prepare(catalog, out, 1, shard_bytes=shards)[0]
        assert killed
        assert result["failures"] == [{"path": str(slow), "outcome": "failed", "why": "the encoder crashed on it"}]
        stamps.append({file: file.stat().st_mtime_ns for file in out.glob("mine/train*.tar")})
    assert result["encoded"] == 1  # tried again, and it alone
    assert stamps[0] == stamps[1]  # a gap that stays is no reason to write shards anew
    result = prepare(catalog, out, 0, shard_bytes=shards)[0]
    assert (result["encoded"], result["prepared"], result["failed"]) == (1, 9, 0)
    prepare(catalog, tmp_path / "anew", 0, shard_bytes=shards)
    assert tree(out) == tree(tmp_path / "anew")


def test_failures_that_are_remembered_are_those_of_the_file(make_set: MakeSet, tmp_path: Path) -> None:
    catalog = make_set(
        {"0.mp4": "a", "1.mp4": "b", "2.png": "a", "3.mp4": "b"}, annotations="{train: list.csv}", media="video"
    )
    layout = OutputLayout(tmp_path / "fast", Encoding(), None, None)
    job = SplitJob("mine", "train", manifest(catalog), layout, "root", str(catalog))
    job.close()
    work = {"manifest": job.manifest.path, "layout": layout, "split": job.folder}
    assert outcome(make(job.items[0], **work)) == ("prepared", False)
    with only_open_files():
        starved = make(job.items[1], **work)
    assert outcome(starved) == ("failed", True)
    assert "Too many open files" in starved.why
    damaged = (tmp_path / "mine/3.mp4").read_bytes()
    (tmp_path / "mine/3.mp4").write_bytes(damaged[:48] + b"\xff" * (len(damaged) - 48))
    assert outcome(make(job.items[-1], **work)) == ("failed", False)
    (tmp_path / "mine/3.mp4").unlink()
    assert outcome(make(job.items[-1], **work)) == ("failed", True)


def outcome(done: Any) -> tuple[str, bool]:
    assert isinstance(done, PreparedSample), done
    return done.outcome, done.again


@contextmanager
def only_open_files() -> Iterator[None]:
    """This process can open no further file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_store_that_was_out_of_reach(clips: Path, tmp_path: Path) -> None:
    prepare(clips, tmp_path / "first", 0, url=f"file://{tmp_path}/bucket")
    fast = tmp_path / "first/catalog.yaml"
    result = prepare(fast, tmp_path / "second", 0)[0]
    assert result["failed"] == 8
    assert "cannot be read" in result["failures"][0]["why"]
    shutil.copytree(tmp_path / "first/mine", tmp_path / "bucket/mine")
    result = prepare(fast, tmp_path / "second", 0)[0]
    assert (result["prepared"], result["failed"], result["encoded"]) == (8, 0, 8)


# --- damaged originals


@pytest.mark.parametrize("deep", [False, True])
def test_a_damage_is_still_told(clips: Path, tmp_path: Path, deep: bool) -> None:
    video = tmp_path / "mine/0.mp4"
    data = bytearray(video.read_bytes())
    place = data.index(b"mdat") + 4
    size = int.from_bytes(data[place - 8 : place - 4])
    data[place + size // 2 : place + size - 8] = b"\xff" * (size // 2 - 8)
    video.write_bytes(data)
    index(clips, 0, deep=deep)
    result = prepare(clips, tmp_path / "fast", 0)[0]
    before, after = manifest(clips).row(0), manifest(tmp_path / "fast/catalog.yaml").row(0)
    assert after.state == "ok"
    assert after.damage.startswith(f"{result['failures'][0]['why']}, {after.frames} of 12 frames")
    assert after.damage == before.damage or not deep
    assert [row.damage for row in manifest(tmp_path / "fast/catalog.yaml").rows()][1:] == [""] * 7
    assert prepare(clips, tmp_path / "fast", 0)[0]["encoded"] == 0  # it is the file's own


def test_folder_of_frames_with_a_bad_one(tmp_path: Path) -> None:
    folder = tmp_path / "films/one"
    folder.mkdir(parents=True)
    for number in range(10):
        Image.fromarray(np.full((48, 64, 3), 25 * number, np.uint8)).save(folder / f"{number:05d}.png")
    (folder / "00006.png").write_bytes(b"")
    (tmp_path / "films/train.csv").write_text("path,label\none,a\n")
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("mine: {format: csv, root: films, media: video, annotations: {train: train.csv}, dev: 0}")
    assert index(catalog, 0, deep=True)[0]["partial"] == 1
    result = prepare(catalog, tmp_path / "fast", 0)[0]
    assert (result["partial"], result["failed"]) == (1, 0)
    before, after = manifest(catalog).row(0), manifest(tmp_path / "fast/catalog.yaml").row(0)
    assert (after.frames, after.state, after.damage) == (6, "ok", "00006.png: empty file, 6 of 10 frames")
    assert after.damage == before.damage
    assert after.seconds == pytest.approx(before.seconds)


# --- records


def test_records_that_do_not_fit_are_dropped(images: Path, tmp_path: Path) -> None:
    out, listed = tmp_path / "fast", tmp_path / "fast/manifests/mine-train.made.jsonl"
    prepare(images, out, 0, shard_bytes=SHARD)
    before = tree(out)
    header, *lines = listed.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    samples, shards = [r for r in records if "made_of" in r], [r for r in records if "shard" in r]
    odd = [
        {**samples[0], "colour": "red"},
        {"made_of": samples[1]["made_of"]},
        {**samples[2], "bytes": "many"},
        {**samples[3], "origin": None},
        {**shards[0], "samples": []},
        {**shards[1], "places": [[1]]},
        {**shards[2], "shard": 3},
        {"shard": "mine/train-1.tar"},
        {},
    ]
    listed.write_text("\n".join([header, *map(json.dumps, [*odd, *samples[4:], *shards[3:]])]) + "\n")
    result = prepare(images, out, 0, shard_bytes=SHARD)[0]
    assert result["failed"] == 0
    assert 0 < result["encoded"] < 40
    assert tree(out) == before


def test_sets_of_the_same_name_from_two_catalogs(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    prepare(images, out, 0)
    before = tree(out)
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "mine", other / "mine")
    (other / "catalog.yaml").write_text(
        "mine: {format: csv, root: mine, media: image, annotations: {test: list.csv}, dev: 0}"
    )
    index(other / "catalog.yaml", 0)
    with pytest.raises(UserError) as refused:
        prepare(other / "catalog.yaml", out, 0)
    assert f"--out: {out} holds mine of {images}, which is not {other / 'catalog.yaml'}; name another folder" in str(
        refused.value
    )
    assert "\n" not in str(refused.value)
    assert tree(out) == before
    for file in out.glob("manifests/mine-*"):
        file.unlink()
    prepare(other / "catalog.yaml", out, 0)
