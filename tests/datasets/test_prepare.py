"""Prepared data are the originals, small and quick: the same samples at the same times, whatever happened while they
were made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cover.cli import main
from cover.datasets.catalog import load_catalog
from cover.datasets.exclusions import excluded_rows
from cover.datasets.index import index
from cover.datasets.manifest import Manifest, Row, open_manifest
from cover.datasets.overlap import overlap
from cover.datasets.prepare import prepare, print_prepare
from cover.errors import UserError
from cover.locks import LOCK
from cover.media.decode import decode_at, decode_image
from cover.media.encode import Encoding

MakeSet = Callable[..., Path]
SHARD = 40_000  # bytes
SAME = ("sample_id", "source_id", "label", "labels", "youtube_start", "youtube_end", "state")


@pytest.fixture
def clips(make_set: MakeSet) -> Path:
    """The catalog of twelve clips of two classes; one cannot be read, one is not there."""
    files = {f"clip {number}.mp4": "left" if number % 2 else "right" for number in range(12)}
    return make_set(files, corrupt=["clip 3.mp4"], absent=["clip 7.mp4"], flip="swap")


def manifest(catalog: Path, split: str = "train", name: str = "mine") -> Manifest:
    return open_manifest(load_catalog(catalog).manifest_path(name, split))


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, and the hash of its bytes; not the lock, which names its process."""
    files = (Path(place) / name for place, _, names in os.walk(folder) for name in names if name != LOCK)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def look(row: Row, shift: int = 0) -> np.ndarray:
    """float `(N, H, W, 3)`: the frames of a sample at five of its instants, or those `shift` places behind them."""
    if not row.fps:
        return decode_image(row.source)[None].astype(float)
    instants = [(row.start or 0.0) + row.seconds * part + shift / row.fps for part in (0.03, 0.27, 0.51, 0.77, 0.99)]
    return decode_at(row.source, instants).frames.astype(float)


def apart(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float `(N,)`: how far pictures are from each other, of 255."""
    return np.abs(some - others).mean((1, 2, 3))


def assert_same_pictures(old: Row, new: Row) -> None:
    """Each picture is the one it was made of, and neither the one in front of it nor the one behind."""
    before, after = look(old), look(new)
    own = apart(before, after)
    assert own.mean() < 12, old.path
    for beside in (look(old, -1), look(old, 1)) if old.fps else ():
        other = apart(before, beside) > 1  # in front of the first frame and behind the last there is none
        assert other.sum() >= 4, old.path
        assert (own < apart(beside, after))[other].all(), old.path


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def assert_same_samples(before: Manifest, after: Manifest) -> None:
    assert after.classes == before.classes
    assert (after.name, after.split, after.media, len(after)) == (before.name, before.split, before.media, len(before))
    for old, new in zip(before.rows(), after.rows()):
        assert all(getattr(old, field) == getattr(new, field) for field in SAME), old
        if old.state == "ok":
            assert new.seconds == pytest.approx(old.seconds)
            assert_same_pictures(old, new)
        else:
            assert new == old


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shift_of_one_frame_would_be_seen(sandbox: Path, tmp_path: Path, shift: int) -> None:
    """What these tests compare pictures by."""
    prepare(sandbox, tmp_path / "fast", 0, ["ssv2"])
    before, after = manifest(sandbox, name="ssv2").row(0), manifest(tmp_path / "fast/catalog.yaml", name="ssv2").row(0)
    assert_same_pictures(before, after)
    with pytest.raises(AssertionError):
        assert_same_pictures(before, replace(after, start=shift / after.fps, end=after.seconds + shift / after.fps))


@pytest.mark.parametrize("shards", [None, SHARD])
def test_same_samples(clips: Path, tmp_path: Path, shards: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fast"
    results = prepare(clips, out, 0, shard_bytes=shards)
    counts = ("dataset", "split", "listed", "prepared", "copied", "partial", "failed", "unusable")
    assert [results[0][key] for key in counts] == ["mine", "train", 12, 10, 0, 0, 0, 2]
    for split in ("train", "val"):
        assert_same_samples(manifest(clips, split), manifest(out / "catalog.yaml", split))
    spec, original = load_catalog(out / "catalog.yaml").spec("mine"), load_catalog(clips).spec("mine")
    for key in ("media", "flip", "sampling", "views", "crop_scale", "splits"):
        assert getattr(spec, key) == getattr(original, key)
    assert results[0]["bytes_after"] == sum(
        row.size or 0 for row in manifest(out / "catalog.yaml").rows() if row.state == "ok"
    )
    assert list(out.rglob(".*")) == [out / LOCK]
    print_prepare(results)
    assert "prepared" in capsys.readouterr().out


def test_every_format_of_the_sandbox(sandbox: Path, tmp_path: Path) -> None:
    prepare(sandbox, tmp_path / "fast", 0, shard_bytes=SHARD)
    before, after = load_catalog(sandbox), load_catalog(tmp_path / "fast/catalog.yaml")
    for name, spec in after.specs.items():
        assert spec.sampling == before.spec(name).sampling
        for split in spec.splits:
            assert_same_samples(manifest(sandbox, split, name), manifest(after.path, split, name))


def test_shards_are_what_other_tools_read(clips: Path, tmp_path: Path) -> None:
    prepare(clips, tmp_path / "fast", 0, shard_bytes=SHARD)
    rows = [row for row in manifest(tmp_path / "fast/catalog.yaml").rows() if row.state == "ok"]
    shards = sorted(tmp_path.glob("fast/mine/train-*.tar"))
    assert [shard.name for shard in shards] == [
        f"train-{number:06d}-{digest(shard)}.tar" for number, shard in enumerate(shards)
    ]
    assert len(shards) > 1
    samples: list[dict[str, bytes]] = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                if not samples or samples[-1]["key"] != key.encode():
                    samples.append({"key": key.encode()})
                file = tar.extractfile(member)
                assert file
                samples[-1][ending] = file.read()
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
    assert [int(sample["cls"]) for sample in samples] == [row.label for row in rows]
    for sample, row in zip(samples, rows):
        assert row.offset
        assert row.length
        assert Path(row.path).read_bytes()[row.offset : row.offset + row.length] == sample["mp4"]


def test_several_labels_of_a_sample(clips: Path, tmp_path: Path) -> None:
    from cover.datasets.shards import ShardEntry, write_shard

    (tmp_path / "a.mp4").write_bytes(b"picture")
    members = [
        ShardEntry("one", ".mp4", tmp_path / "a.mp4", None, [0, 3]),
        ShardEntry("two", ".mp4", tmp_path / "a.mp4", None, None),
    ]
    shard, places = write_shard(tmp_path / "x", members, tmp_path / "x.part")
    assert [shard.read_bytes()[first : first + length] for first, length in places] == [b"picture"] * 2
    with tarfile.open(shard) as tar:
        assert tar.getnames() == ["one.mp4", "one.json", "two.mp4"]
        label = tar.extractfile("one.json")
        assert label
        assert json.load(label) == {"labels": [0, 3]}


def test_multi_label_set(make_set: MakeSet, tmp_path: Path) -> None:
    make_set({"a.mp4": "one", "b.mp4": "two"}, name="films")
    (tmp_path / "films/train.csv").write_text("path,labels\na.mp4,sit|drink\nb.mp4,\n")
    catalog = tmp_path / "many.yaml"
    catalog.write_text("mine: {format: csv, root: films, annotations: {train: train.csv}, dev: 0}")
    index(catalog, 0)
    prepare(catalog, tmp_path / "fast", 0, shard_bytes=SHARD)
    after = manifest(tmp_path / "fast/catalog.yaml")
    assert after.classes.many
    assert_same_samples(manifest(catalog), after)
    with tarfile.open(next(tmp_path.glob("fast/mine/train-000000-*.tar"))) as tar:
        assert [
            json.loads(tar.extractfile(name).read())["labels"] for name in tar.getnames() if name.endswith("json")
        ] == [[0, 1], []]


def test_names_of_any_kind(make_set: MakeSet, tmp_path: Path) -> None:
    names = ["a.b.png", "a/b.png".replace("/", "∕"), "ünï 🎾.png", "A.B.png", "x" * 200 + ".png", "-.png"]
    catalog = make_set(dict.fromkeys(names, "one"))
    prepare(catalog, tmp_path / "fast", 0, shard_bytes=SHARD)
    (shard,) = tmp_path.glob("fast/mine/train-*.tar")
    with tarfile.open(shard) as tar:
        keys = {name.partition(".")[0].lower() for name in tar.getnames()}
    assert len(keys) == len(names)  # also where a disk does not tell a from A
    assert all(key.isascii() and "/" not in key for key in keys)
    assert_same_samples(manifest(catalog), manifest(tmp_path / "fast/catalog.yaml"))


def test_segments_become_files(tmp_path: Path, make_set: MakeSet) -> None:
    make_set({"a.mp4": "one"}, name="films")
    listed = "path,label,start,end\na.mp4,one,0.2,0.7\na.mp4,one,0.5,\na.mp4,one,0.2,0.7\na.mp4,one,5,6\n"
    (tmp_path / "films/train.csv").write_text(listed)
    catalog = tmp_path / "segments.yaml"
    catalog.write_text("mine: {format: csv, root: films, annotations: {train: train.csv}, dev: 0}")
    index(catalog, 0)
    prepare(catalog, tmp_path / "fast", 0)
    before, after = manifest(catalog), manifest(tmp_path / "fast/catalog.yaml")
    assert_same_samples(before, after)
    assert [(row.start, row.end, row.frames) for row in islice(after.rows(), 3)] == [
        (None, None, 5),
        (None, None, 7),
        (None, None, 5),
    ]
    assert len({row.path for row in islice(after.rows(), 3)}) == 3


def test_damage_is_counted_and_listed(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, root = tmp_path / "mine/clip 0.mp4", tmp_path / "mine"
    data = bytearray(video.read_bytes())
    place = data.index(b"mdat") + 4
    size = int.from_bytes(data[place - 8 : place - 4])
    data[place + size // 2 : place + size - 8] = b"\xff" * (size // 2 - 8)
    video.write_bytes(data)
    (root / "clip 1.mp4").write_bytes(data[: place + 40] + b"\xff" * (size - 48) + data[place - 8 + size :])
    index(clips, 0)
    results = prepare(clips, tmp_path / "fast", 0)
    assert results[0]["partial"] + results[0]["failed"] == 2
    assert {failure["path"] for failure in results[0]["failures"]} == {str(video), str(root / "clip 1.mp4")}
    rows = list(manifest(tmp_path / "fast/catalog.yaml").rows())
    for row, failure in zip(rows[:2], results[0]["failures"]):
        assert row.state == ("ok" if failure["outcome"] == "partial" else "unreadable")
        assert failure["why"]
    assert 2 <= rows[0].frames < 12
    print_prepare(results)
    assert str(video) in capsys.readouterr().err
    assert prepare(clips, tmp_path / "fast", 0)[0]["failures"] == results[0]["failures"]


def test_folder_can_be_moved(clips: Path, tmp_path: Path) -> None:
    for shards, name in ((None, "files"), (SHARD, "shards")):
        prepare(clips, tmp_path / name, 0, shard_bytes=shards)
        moved = tmp_path / "else where" / name
        moved.parent.mkdir(exist_ok=True)
        shutil.move(tmp_path / name, moved)
        assert_same_samples(manifest(clips), manifest(moved / "catalog.yaml"))


def test_read_behind_a_url(clips: Path, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/bucket"
    prepare(clips, tmp_path / "fast", 0, shard_bytes=SHARD, url=address)
    shutil.copytree(tmp_path / "fast/mine", tmp_path / "bucket/mine")
    shutil.rmtree(tmp_path / "fast/mine")
    after = manifest(tmp_path / "fast/catalog.yaml")
    assert after.row(0).path.startswith(f"{address}/mine/train-")
    assert_same_samples(manifest(clips), after)


def test_only_what_changed_is_done_again(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    assert [result["encoded"] for result in prepare(clips, out, 0)] == [10, 10]
    before = tree(out)
    assert [result["encoded"] for result in prepare(clips, out, 0)] == [0, 0]
    assert tree(out) == before
    next(out.glob("mine/train/*/*.mp4")).unlink()
    assert [result["encoded"] for result in prepare(clips, out, 0)] == [1, 0]
    assert tree(out) == before
    shutil.copy(tmp_path / "mine/clip 1.mp4", tmp_path / "mine/clip 2.mp4")
    with pytest.raises(
        UserError, match=r"mine train: .*clip 2\.mp4 has changed since `cover index`; run it again first"
    ):
        prepare(clips, out, 0, encoding=Encoding(crf=30))
    index(clips, 0)
    assert [result["encoded"] for result in prepare(clips, out, 0)] == [1, 1]
    assert_same_samples(manifest(clips), manifest(out / "catalog.yaml"))
    assert [result["encoded"] for result in prepare(clips, out, 0, encoding=Encoding(short_side=32))] == [10, 10]
    assert {row.height for row in manifest(out / "catalog.yaml").rows() if row.state == "ok"} == {32}


def test_what_is_no_longer_listed_goes(clips: Path, tmp_path: Path) -> None:
    prepare(clips, tmp_path / "fast", 0)
    listed = (tmp_path / "mine/list.csv").read_text().splitlines(keepends=True)
    (tmp_path / "mine/list.csv").write_text("".join(listed[:-2]))
    index(clips, 0)
    prepare(clips, tmp_path / "fast", 0)
    prepare(clips, tmp_path / "anew", 0)
    assert tree(tmp_path / "fast") == tree(tmp_path / "anew")


@pytest.mark.parametrize("back", [False, True])
def test_files_become_shards_and_shards_files(clips: Path, tmp_path: Path, back: bool) -> None:
    kinds: list[int | None] = [SHARD, None] if back else [None, SHARD]
    prepare(clips, tmp_path / "fast", 0, shard_bytes=kinds[0])
    encoded = prepare(clips, tmp_path / "fast", 0, shard_bytes=kinds[1])[0]["encoded"]
    assert encoded == (10 if back else 0)
    prepare(clips, tmp_path / "anew", 0, shard_bytes=kinds[1])
    assert tree(tmp_path / "fast") == tree(tmp_path / "anew")


def test_sets_are_added_to_the_folder(make_set: MakeSet, tmp_path: Path) -> None:
    make_set({"a.mp4": "one", "b.mp4": "two"}, name="first")
    catalog = make_set({"a.png": "one", "b.png": "two"}, name="second")
    prepare(catalog, tmp_path / "fast", 0, ["first"])
    prepare(catalog, tmp_path / "fast", 0, ["second"])
    assert list(load_catalog(tmp_path / "fast/catalog.yaml").specs) == ["first", "second"]
    prepare(tmp_path / "fast/catalog.yaml", tmp_path / "again", 0, shard_bytes=SHARD)  # of what was prepared, shards
    assert_same_samples(manifest(catalog, name="second"), manifest(tmp_path / "again/catalog.yaml", name="second"))


@pytest.mark.parametrize("shards", [None, SHARD])
def test_any_number_of_workers_gives_the_same(clips: Path, tmp_path: Path, shards: int | None) -> None:
    for workers in (0, 3):
        prepare(clips, tmp_path / f"by{workers}", workers, shard_bytes=shards)
    assert tree(tmp_path / "by0") == tree(tmp_path / "by3")


@pytest.mark.parametrize("shards", [False, True])
def test_killed_and_run_again(make_set: MakeSet, tmp_path: Path, shards: bool) -> None:
    catalog = make_set({f"{number}.mp4": "ab"[number % 2] for number in range(40)})
    options = ["--shards", "--shard-size", SHARD / 1e6] if shards else []
    command = [*map(str, [sys.executable, "-m", "cover", "prepare", catalog, "--workers", 2, *options, "--out"])]
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    for enough in (3, 25, 60):
        running = subprocess.Popen(
            [*command, tmp_path / "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while running.poll() is None and made_so_far(tmp_path / "killed") < enough:
            time.sleep(0.005)
        assert running.poll() is None, "it was to be killed before its end"
        running.send_signal(signal.SIGKILL)
        running.wait()
        with (tmp_path / "killed/manifests/mine-train.made.jsonl").open("ab") as file:
            file.write(b'{"made_of": "a line that was cut o')
    retained = made_so_far(tmp_path / "killed")
    done = subprocess.run([*command, tmp_path / "killed", "--json", "-"], check=True, capture_output=True)
    lost = 40 if shards else 3  # a shard that was just being put into its place is made again, with all its samples
    assert sum(result["encoded"] for result in json.loads(done.stdout)) <= 80 - retained + lost
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def made_so_far(out: Path) -> int:
    """How many samples are known to be made: whole lines, and not those of a list that is just being written anew
    beside it.
    """
    lists = [file for file in out.glob("manifests/*.made.jsonl") if not file.name.startswith(".")]
    return sum(
        line.endswith(b"}\n") and b'"made_of": "' in line
        for file in lists
        for line in file.read_bytes().splitlines(keepends=True)
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shards", [None, SHARD])
def test_full_disk(clips: Path, tmp_path: Path, small_disk: Path, shards: int | None, workers: int) -> None:
    (small_disk / "other").write_bytes(b"x" * 4096 * 20)
    with pytest.raises(UserError) as stopped:
        prepare(clips, small_disk / "fast", workers, shard_bytes=shards)
    words = str(stopped.value)
    assert "the disk is full: " in words
    assert " of 20 samples are done" in words
    assert "more are needed; run the same command to go on" in words
    assert 0 < made_so_far(small_disk / "fast") < 20
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    (small_disk / "other").unlink()
    assert sum(result["encoded"] for result in prepare(clips, small_disk / "fast", 0, shard_bytes=shards)) < 20
    prepare(clips, tmp_path / "whole", 0, shard_bytes=shards)
    assert tree(small_disk / "fast") == tree(tmp_path / "whole")


def test_originals_are_safe(clips: Path, tmp_path: Path) -> None:
    before = tree(tmp_path / "mine")
    prepare(clips, tmp_path / "fast", 0)
    assert tree(tmp_path / "mine") == before
    for out, why in (
        (tmp_path, "holds the catalog of the originals"),
        (tmp_path / "mine", "is the same as the root of mine"),
        (tmp_path / "mine/fast", "is inside the root of mine"),
        (tmp_path / "mine/../mine/x", "is inside the root of mine"),
        (tmp_path.parent, "is around the root of mine"),
    ):
        with pytest.raises(UserError, match=why):
            prepare(clips, out, 0)
    (tmp_path / "others").mkdir()
    (tmp_path / "others/catalog.yaml").write_text(
        f"mine: {{format: csv, root: {tmp_path / 'mine'}, annotations: {{train: list.csv}}}}"
    )
    with pytest.raises(UserError, match="is the catalog of mine, which is not prepared"):
        prepare(clips, tmp_path / "others", 0)
    assert tree(tmp_path / "mine") == before


def test_wrong_use(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no data set "yours"'):
        prepare(clips, tmp_path / "fast", 0, ["yours"])
    with pytest.raises(UserError, match="--url: expected an address such as s3://"):
        prepare(clips, tmp_path / "fast", 0, url="bucket/folder")
    with pytest.raises(UserError, match='--url: fsspec knows no "nosuchproto://"; usual are s3://'):
        prepare(clips, tmp_path / "fast", 0, url="nosuchproto://bucket/folder")
    prepare(clips, tmp_path / "fast", 0)
    with pytest.raises(UserError, match="mine: prepared data need no index"):
        index(tmp_path / "fast/catalog.yaml", 0)
    (tmp_path / "manifests/mine-val.arrow").unlink()
    with pytest.raises(UserError, match=r"mine-val\.arrow: no such manifest; `cover index`"):
        prepare(clips, tmp_path / "fast", 0)


def test_training_reads_it(sandbox: Path, tmp_path: Path) -> None:
    from cover.training.recipe import Data, Recipe
    from cover.training.train import train

    prepare(sandbox, tmp_path / "fast", 0, ["ssv2", "imagenet"], shard_bytes=SHARD)
    data = Data(["ssv2", "imagenet"], str(tmp_path / "fast/catalog.yaml"), frames=2)
    run = train(Recipe(data, str(tmp_path / "run"), steps=2, batch=4, workers=0, evaluate_every=2))
    log = (run / "log.jsonl").read_text()
    assert '"event": "train"' in log
    assert "unreadable" not in log


def test_big_images_are_made_small(tmp_path: Path) -> None:
    for number in range(3):
        file = tmp_path / f"photos/train/a/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((400, 600, 3), 60 * number, np.uint8)).save(file)
    (tmp_path / "catalog.yaml").write_text("mine: {format: folder, root: photos, dev: 0}")
    index(tmp_path / "catalog.yaml", 0)
    result: dict[str, Any] = prepare(tmp_path / "catalog.yaml", tmp_path / "fast", 0)[0]
    assert (result["prepared"], result["copied"]) == (3, 0)
    for number, row in enumerate(manifest(tmp_path / "fast/catalog.yaml").rows()):
        assert (row.width, row.height, row.frames, row.fps, row.codec) == (384, 256, 1, 0, "jpeg")
        assert abs(decode_image(row.source).astype(int) - 60 * number).max() <= 1


def test_the_page_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/preparing.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for line in "".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).splitlines():
        program, *arguments = shlex.split(line)
        assert (program, main([*arguments, "--workers", "0"])) == ("cover", 0), line
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    named = [line.split()[0] for line in page.splitlines() if line.startswith("    fast/")]
    assert files >= {name for name in named if not name.endswith(".mp4")}
    (shard,) = (name for name in files if name.startswith("shards/ssv2/train-000000-"))
    assert (
        manifest(tmp_path / "shards/catalog.yaml", name="ssv2").row(0).path
        == f"s3://bucket/sandbox/{shard.removeprefix('shards/')}"
    )
    assert re.fullmatch(
        r"fast/ssv2/train/../.*\.mp4", min(name for name in files if name.startswith("fast/ssv2/train/"))
    )


def test_command_line(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["prepare", str(clips), "--out", str(tmp_path / "fast"), "--workers", "0"]
    assert main([*typed, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert [result["prepared"] for result in json.loads(out)] == [10, 10]
    assert f"next: cover train RECIPE --data.catalog {tmp_path / 'fast/catalog.yaml'}" in err
    assert main([*typed, "--key-interval", "0"]) == 2
    assert "--key-interval: expected seconds above 0, got 0" in capsys.readouterr().err
    assert main([*typed, "--shards", "--shard-size", "0"]) == 2
    assert "--shard-size: expected megabytes from 0.001" in capsys.readouterr().err
    with (tmp_path / "mine/clip 0.mp4").open("ab") as file:
        file.write(b"more")
    with pytest.raises(SystemExit, match="2"):
        main([*typed, "--crf", "99"])
    assert "99 is above 51" in capsys.readouterr().err
    assert main(typed) == 0  # what is made is not read again
    assert main([*typed, "--crf", "30"]) == 2
    assert "clip 0.mp4 has changed since `cover index`; run it again first" in capsys.readouterr().err


def test_exclusions_are_taken_over(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlap(clips, 0)
    prepare(clips, tmp_path / "fast", 0)
    before, after = (
        excluded_rows(load_catalog(catalog), ["mine"]) for catalog in (clips, tmp_path / "fast/catalog.yaml")
    )
    assert before
    assert after
    assert len(after["mine"]) > 0  # the list is both train and val
    assert after["mine"].tolist() == before["mine"].tolist()
    shutil.copy(tmp_path / "mine/clip 1.mp4", tmp_path / "mine/clip 2.mp4")
    index(clips, 0)
    capsys.readouterr()
    prepare(clips, tmp_path / "fast", 0)
    assert "exclusions.arrow is older than mine-" in capsys.readouterr().err
    with pytest.raises(UserError, match="stale"):
        excluded_rows(load_catalog(tmp_path / "fast/catalog.yaml"), ["mine"])


def test_exclusions_of_a_set_that_was_not_prepared_again(make_set: MakeSet, tmp_path: Path) -> None:
    make_set({"a0.png": "one", "a1.png": "two"}, name="a")
    catalog, root, out = (
        make_set({"b0.png": "one", "b1.png": "two"}, name="b"),
        tmp_path / "b",
        tmp_path / "fast/catalog.yaml",
    )
    prepare(catalog, tmp_path / "fast", 0)
    shutil.copy(root / "b0.png", root / "b2.png")
    with (root / "b2.png").open("ab") as file:
        file.write(b"its own bytes, so that nothing matches it")
    (root / "train.csv").write_text("path,label\nb2.png,one\nb0.png,one\nb1.png,two\n")
    catalog.write_text(
        catalog.read_text().replace("root: b, annotations: {train: list.csv", "root: b, annotations: {train: train.csv")
    )
    index(catalog, 0)
    overlap(catalog, 0)
    prepare(catalog, tmp_path / "fast", 0, ["a"])
    before, after = (excluded_rows(load_catalog(each), ["a"]) for each in (catalog, out))
    assert before
    assert after
    assert after["a"].tolist() == before["a"].tolist() == [0, 1]
    # rows 1 and 2 of b as it is are not those of b as it was prepared
    with pytest.raises(UserError, match="made without b"):
        excluded_rows(load_catalog(out), ["a", "b"])
    prepare(catalog, tmp_path / "fast", 0, ["b"])
    after = excluded_rows(load_catalog(out), ["a", "b"])
    assert after
    assert after["b"].tolist() == [1, 2]


def test_no_two_runs_in_one_folder(clips: Path, tmp_path: Path) -> None:
    prepare(clips, tmp_path / "fast", 0)
    lock = tmp_path / "fast/.lock"
    hold = (
        f"import fcntl; file = open({str(lock)!r}, 'r+'); fcntl.flock(file, "
        f"fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another command is writing there"):
            prepare(clips, tmp_path / "fast", 0)
        other.communicate("\n")
    prepare(clips, tmp_path / "fast", 0)


@pytest.mark.skipif(not shutil.which("strace"), reason="strace makes the system call fail")
def test_file_system_without_locks(clips: Path, tmp_path: Path) -> None:
    without = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-o",
        str(tmp_path / "trace"),
        "-e",
        "trace=flock",
        "-e",
        "inject=flock:error=ENOSYS",
    ]
    typed = [sys.executable, "-m", "cover", "prepare", str(clips), "--out", str(tmp_path / "fast"), "--workers", "0"]
    ended = subprocess.run([*without, *typed], capture_output=True, text=True, check=False)
    if "ENOSYS" not in (tmp_path / "trace").read_text():
        pytest.skip(f"strace may not trace here: {ended.stderr}")
    assert ended.returncode == 0, ended.stderr
    assert "cannot be locked (Function not implemented): " in ended.stderr


def test_trouble_is_told_where_it_is(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "fast"
    out.mkdir()
    (out / "manifests").write_text("in the way")
    with pytest.raises(UserError) as refused:
        prepare(clips, out, 0)
    assert str(refused.value) == f"{out / 'manifests/mine-train.made.jsonl'}: Not a directory"
    (out / "manifests").unlink()
    (out / ".prepare").write_text("in the way")
    with pytest.raises(UserError) as refused:
        prepare(clips, out, 0)
    assert str(refused.value).startswith(f"{out / '.prepare/mine'}")
    assert "Not a directory: 0 of 20 samples are done (0 B) and kept; run the same command to go on" in str(
        refused.value
    )


def test_file_that_may_not_grow(clips: Path, tmp_path: Path) -> None:
    """A limit of the process stands for a full disk where none can be mounted."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, "
        "5000)); from cover.cli import main; sys.exit(main())"
    )
    typed = ["prepare", str(clips), "--out", str(tmp_path / "fast"), "--workers", "0"]
    ended = subprocess.run([sys.executable, "-c", limited, *typed], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"{tmp_path / 'fast'}: the disk is full: 0 of 20 samples are done" in ended.stderr
