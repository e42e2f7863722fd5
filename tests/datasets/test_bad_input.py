"""Whatever is wrong with a data set, `cover index` says it in one line that names the place, and nothing vanishes
unsaid.

One small set of each format, two training samples of two classes and one for evaluation; each case damages it in one
way.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cover.cli import main

KINETICS = "label,youtube_id,time_start,time_end,split\n"
LISTS: dict[str, dict[str, str]] = {
    "kinetics": {
        "train.csv": KINETICS + "jump,aaaaaaaaaaa,0,10,train\nrun,bbbbbbbbbbb,0,10,train\n",
        "val.csv": KINETICS + "run,ccccccccccc,0,10,val\n",
    },
    "ssv2": {
        "labels.json": '{"Pushing it": "0", "Lifting it": "1"}',
        "train.json": '[{"id": "1", "template": "Pushing [it]"},\n {"id": "2", "template": "Lifting [it]"}]',
        "validation.json": '[{"id": "3", "template": "Lifting [it]"}]',
    },
    "moments": {
        "trainingSet.csv": "jump/a.mp4,jump,3,0\nrun/b.mp4,run,3,0\n",
        "validationSet.csv": "run/c.mp4,run,3,0\n",
        "moments_categories.txt": "jump,0\nrun,1\n",
    },
    "imagenet": {},
    "folder": {},
    "csv": {"train.csv": "path,label\na.mp4,jump\nb.mp4,run\n", "val.csv": "path,label\nc.mp4,run\n"},
    "list": {"train.txt": "a.mp4 jump\nb.mp4 run\n", "val.txt": "c.mp4 run\n"},
    "splits": {
        "trainlist01.txt": "jump/a.avi 1\nrun/b.avi 2\n",
        "testlist01.txt": "run/c.avi\n",
        "classInd.txt": "1 jump\n2 run\n",
    },
}
FILES = {
    "kinetics": [
        f"{split}/{id * 11}_000000_000010.mp4" for split, id in (("train", "a"), ("train", "b"), ("val", "c"))
    ],
    "ssv2": [f"20bn-something-something-v2/{id}.webm" for id in (1, 2, 3)],
    "moments": ["training/jump/a.mp4", "training/run/b.mp4", "validation/run/c.mp4"],
    "imagenet": ["train/n00000001/a.JPEG", "train/n00000002/b.JPEG", "val/n00000002/c.JPEG"],
    "folder": ["train/jump/a.mp4", "train/run/b.mp4", "val/run/c.mp4"],
    "csv": ["a.mp4", "b.mp4", "c.mp4"],
    "list": ["a.mp4", "b.mp4", "c.mp4"],
    "splits": ["jump/a.avi", "run/b.avi", "run/c.avi"],
}
LISTED = {form: next(iter(files)) if form != "ssv2" else "train.json" for form, files in LISTS.items() if files}
FORMATS = list(LISTS)
Damage = Callable[[Path, str], object]


@pytest.fixture
def pictures(sandbox: Path) -> dict[str, Path]:
    """A clip and an image, to be copied."""
    results = {
        "video": sandbox.parent.glob("moments_like/training/*/*.mp4"),
        "image": sandbox.parent.glob("imagenet_like/train/*/*.JPEG"),
    }
    return {media: next(files) for media, files in results.items()}


class Bench:
    """Builds a good set, damages it, and indexes it: exit code, what stderr says without the root's own path, and the
    counts.
    """

    def __init__(self, folder: Path, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.root, self.pictures, self.capsys = folder, folder / "set", pictures, capsys

    def build(self, form: str, **keys: object) -> None:
        for name, text in LISTS[form].items():
            self.put(name).write_text(text, encoding="utf-8")
        for name in FILES[form]:
            shutil.copyfile(self.pictures["image" if form == "imagenet" else "video"], self.put(name))
        entry = {"format": form, "root": "set", "dev": 0, **keys}
        (self.folder / "catalog.yaml").write_text(json.dumps({"mine": entry}))

    def put(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def index(self) -> tuple[int, str]:
        code = main(
            ["index", str(self.folder / "catalog.yaml"), "--workers", "0", "--json", str(self.folder / "out.json")]
        )
        return code, self.capsys.readouterr().err.replace(f"{self.folder}/", "")

    def refuses(self, form: str, message: str, damage: Damage, **keys: object) -> None:
        """Exit 2 with one line, in which `message` is found."""
        self.build(form, **keys)
        damage(self.root, form)
        code, err = self.index()
        lines = [line for line in err.splitlines() if line.startswith("cover index: ")]
        assert (code, len(lines)) == (2, 1), err
        assert "Traceback" not in err
        assert re.search(message, lines[0]), lines[0]

    def counts(self, form: str, damage: Damage, code: int, **keys: object) -> dict[str, Any]:
        """Done, with this exit code; the result for train."""
        self.build(form, **keys)
        damage(self.root, form)
        assert self.index()[0] == code
        train: dict[str, Any] = json.loads((self.folder / "out.json").read_text())[0]
        assert train["split"] == "train"
        return train


@pytest.fixture
def bench(tmp_path: Path, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, pictures, capsys)


def listed(change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of the training list."""

    def damage(root: Path, form: str) -> None:
        path = root / LISTED[form]
        assert change(path.read_bytes()) != path.read_bytes()
        path.write_bytes(change(path.read_bytes()))

    return damage


def first_file(change: Callable[[Path], object]) -> Damage:
    """Change the first training sample's file."""
    return lambda root, form: change(root / FILES[form][0])


def only_archives(root: Path, form: str) -> None:
    shutil.rmtree(root)
    root.mkdir()
    (root / "part_1.tar.gz").write_bytes(b"x")
    (root / "data.zip.part").write_bytes(b"x")


def packed_classes(root: Path, form: str) -> None:
    """Class folders that are still tar files, as ImageNet comes."""
    for folder in (root / "train").iterdir():
        shutil.rmtree(folder)
        folder.with_suffix(".tar").write_bytes(b"x")


def no_files(root: Path, form: str) -> None:
    for name in FILES[form]:
        (root / name).unlink()
    (root / "videos.tar").write_bytes(b"x")


# --- what cannot be indexed: exit 2, one line -------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_root_that_does_not_exist(bench: Bench, form: str) -> None:
    bench.refuses(form, r"catalog\.yaml: mine\.root: set does not exist", lambda root, form: shutil.rmtree(root))


@pytest.mark.parametrize("form", FORMATS)
def test_root_with_archives_alone(bench: Bench, form: str) -> None:
    hint = (
        r"not given, and set has none of .*; set holds data\.zip\.part, "
        r"part_1\.tar\.gz: fetch them whole and unpack them"
    )
    bench.refuses(form, hint, only_archives)


@pytest.mark.parametrize("form", ["folder", "imagenet"])
def test_class_folders_that_are_still_packed(bench: Bench, form: str) -> None:
    bench.refuses(form, r"no (class )?folder .*in set/train.*; set/train holds (jump|n00000001)\.tar, ", packed_classes)
    shutil.rmtree(bench.root)
    bench.refuses(
        form, r"in set; set holds data\.zip\.part, .*unpack", only_archives, annotations={"train": "."}, media="image"
    )


@pytest.mark.parametrize("form", list(LISTED))
def test_list_that_is_not_utf8(bench: Bench, form: str) -> None:
    word = b"Lifting" if form == "ssv2" else b"run"
    row = 3 if form in ("kinetics", "csv") else 2
    message = rf"set/{re.escape(LISTED[form])}, row {row}: not UTF-8 \(byte 0xfc at \d+\); save the file as UTF-8"
    bench.refuses(form, message, listed(lambda data: data.replace(word, b"r\xfcn")))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("kinetics", "row 3: 4 cells where the header has 5; a cell is missing, or the row was cut off"),
        ("ssv2", r"train\.json, row 2: not JSON \(.*column \d+\); fetch the file whole"),
        ("moments", "row 2: expected `label/name.mp4,label,...`"),
        ("csv", "row 3: 1 cells where the header has 2"),
        ("list", "row 2: expected `path label`"),
        ("splits", "row 2: expected `Class/video.avi`"),
    ],
)
def test_list_that_was_cut_off(bench: Bench, form: str, message: str) -> None:
    bench.refuses(form, message, listed(lambda data: data[:-8]))


@pytest.mark.parametrize("form", list(LISTED))
def test_empty_list(bench: Bench, form: str) -> None:
    bench.refuses(
        form, rf"set/{re.escape(LISTED[form])}(: empty| lists no sample|, row 1: not JSON)", listed(lambda data: b"")
    )


@pytest.mark.parametrize(
    ("form", "column", "message"),
    [
        ("csv", b"path", r'train\.csv, row 1: no column "path" in the header; known: label, other'),
        ("kinetics", b"time_end", r'train\.csv, row 1: no column "time_end"'),
        ("csv", b"label", "no class in any row; it needs a column label or class"),
        ("kinetics", b"label", "no list of train has a label; add a column label"),
    ],
)
def test_column_that_is_missing(bench: Bench, form: str, column: bytes, message: str) -> None:
    bench.refuses(form, message, listed(lambda data: data.replace(column, b"other", 1)))


def test_columns_that_are_odd(bench: Bench) -> None:
    bench.refuses("csv", "row 1: no column .*; part the cells by commas", listed(lambda data: data.replace(b",", b"|")))
    bench.refuses("csv", 'row 1: two columns "path"; keep one', listed(lambda data: data.replace(b"label", b"path")))
    bench.refuses("csv", 'row 1: no column "take"', lambda root, form: None, source="take")


@pytest.mark.parametrize("form", FORMATS)
def test_label_outside_the_class_list(bench: Bench, form: str) -> None:
    def rename(root: Path, form: str) -> None:
        if form in LISTED:
            name = next(name for name in LISTS[form] if name.startswith(("val", "test")))
            text = LISTS[form][name]
            (root / name).write_text(text.replace("run", "swim").replace("Lifting", "Dropping"))
        else:
            folder = (root / FILES[form][2]).parent
            folder.rename(folder.with_name({"imagenet": "n00000009", "folder": "swim"}[form]))

    place = {"ssv2": r"validation\.json, item 1", "folder": "set/val", "imagenet": "set/val/n00000009"}.get(
        form, r"(val|test).*, row [12]"
    )
    bench.refuses(form, rf'{place}: label "(swim|Dropping it|n00000009)" is not among the 2 classes of ', rename)


@pytest.mark.parametrize("form", ["kinetics", "ssv2", "folder", "csv", "list", "splits"])
def test_class_list_that_is_unsound(bench: Bench, form: str) -> None:
    def write(text: str) -> Damage:
        return lambda root, form: (root / "names.txt").write_text(text)

    bench.refuses(form, r"set/names\.txt: no class in it; write one name per line", write(""), classes="names.txt")
    bench.refuses(
        form, r'set/names\.txt, row 3: the class "a" is listed twice', write("a\nb\na\n"), classes="names.txt"
    )
    bench.refuses(form, r"set/gone\.txt: cannot be read: No such file", write(""), classes="gone.txt")


@pytest.mark.parametrize("form", ["folder", "kinetics", "ssv2"])
def test_folder_whose_name_is_not_utf8(bench: Bench, form: str) -> None:
    def rename(root: Path, form: str) -> None:
        folder = (root / FILES[form][0]).parent
        folder.rename(os.fsdecode(os.fsencode(folder.parent / "caf") + b"\xe9"))

    bench.refuses(form, r"caf\\udce9.* name is not valid UTF-8; rename the f", rename)


def test_media_of_another_kind(bench: Bench) -> None:
    message = (
        "set/train lists no sample; left out, because their ending is not one of image files: 2 "
        "files in class folders, the first train/jump/a.mp4"
    )
    bench.refuses("folder", message, lambda root, form: None, media="image")


@pytest.fixture
def without_override(bench: Bench) -> Iterator[None]:
    """Root may read what it likes; without these two capabilities it may not. They are of the thread that gives them
    up.
    """
    if sys.platform != "linux":
        pytest.skip("capabilities are Linux's")
    libc, head, data = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, data) == 0
    before = data[0]
    data[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, data) == 0
    yield
    for folder, folders, files in os.walk(bench.folder):
        for name in [".", *folders, *files]:
            (Path(folder) / name).chmod(0o755)
    data[0] = before
    assert libc.capset(head, data) == 0


@pytest.mark.usefixtures("without_override")
@pytest.mark.parametrize("form", FORMATS)
def test_what_may_not_be_read(bench: Bench, form: str) -> None:
    if form not in ("moments", "csv", "list"):  # the others are listed file by file
        folder = (Path("set") / FILES[form][0]).parent
        bench.refuses(
            form,
            f"{folder}: this folder cannot be listed: Permission denied",
            lambda root, f: (root.parent / folder).chmod(0),
        )
        (bench.folder / folder).chmod(0o755)
    if form in LISTED:
        bench.refuses(
            form,
            rf"{LISTED[form]}: cannot be read: Permission denied",
            lambda root, form: (root / LISTED[form]).chmod(0),
        )
        (bench.root / LISTED[form]).chmod(0o644)
    result = bench.counts(form, first_file(lambda path: path.chmod(0)), 1)
    assert (result["unreadable"], result["unusable"][0]["why"]) == (1, "cannot be read: Permission denied")
    (bench.root / FILES[form][0]).chmod(0o644)
    bench.refuses(
        form, r"catalog\.yaml: mine: set/.* cannot be read: Permission denied", lambda root, form: root.chmod(0)
    )


# --- what is counted, or said and left out: exit 1 or 0 ---------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("change", "state", "why"),
    [
        (lambda path: path.write_bytes(b""), "unreadable", "empty file"),
        (lambda path: path.write_bytes(b"<html>404</html>"), "unreadable", "not an? (video|image)"),
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "unreadable", "not a video|damaged image"),
        (lambda path: (path.unlink(), path.symlink_to("/nowhere/at/all")), "missing", "no such file"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "unreadable", "symbolic links"),
    ],
)
def test_file_that_cannot_be_used(
    bench: Bench, form: str, change: Callable[[Path], object], state: str, why: str
) -> None:
    result = bench.counts(form, first_file(change), 1)
    assert (result["listed"], result["ok"], result[state]) == (2, 1, 1)
    (row,) = result["unusable"]
    assert re.search(why, row["why"]), row
    assert row["path"] == str(bench.root / FILES[form][0])
    assert any(remark.startswith("classes without a usable sample: ") for remark in result["warnings"])


@pytest.mark.parametrize("form", FORMATS)
def test_file_of_another_ending(bench: Bench, form: str) -> None:
    in_folders = form in ("folder", "imagenet")
    result = bench.counts(form, first_file(lambda path: path.rename(path.with_suffix(".txt"))), 0 if in_folders else 1)
    if in_folders:
        (remark,) = (remark for remark in result["warnings"] if remark.startswith("left out, because their ending "))
        assert "1 files in class folders, the first " in remark
        assert remark.endswith(FILES[form][0].replace("JPEG", "txt").replace("mp4", "txt"))
    else:
        assert result["missing"] == 1


@pytest.mark.parametrize("form", list(LISTED))
def test_files_that_are_still_packed(bench: Bench, form: str) -> None:
    result = bench.counts(form, no_files, 1)
    assert result["missing"] == 2
    assert (
        f"files are missing, and {bench.root} holds videos.tar: fetch them whole and unpack them" in result["warnings"]
    )


@pytest.mark.parametrize(
    "name", ["20bn-something-something-v2-00", "a.tar.gz.part", "videos/train_3.tgz", "b.zip.001", "c.mp4.crdownload"]
)
def test_names_of_archives_and_unfinished_downloads(bench: Bench, name: str) -> None:
    result = bench.counts("csv", lambda root, form: (bench.put(name).write_bytes(b"x"), (root / "a.mp4").unlink()), 1)
    assert f"files are missing, and {bench.root} holds {name}: fetch them whole and unpack them" in result["warnings"]


@pytest.mark.parametrize("form", list(LISTED))
def test_id_that_is_listed_twice(bench: Bench, form: str) -> None:
    def double(data: bytes) -> bytes:
        if form == "ssv2":
            return json.dumps([*json.loads(data), json.loads(data)[0] | {"template": "Lifting [it]"}]).encode()
        row = data.splitlines(keepends=True)[1 if form in ("kinetics", "csv") else 0]
        return data + (row if form == "splits" else row.replace(b"jump", b"run").replace(b"run/a", b"jump/a"))

    result = bench.counts(form, listed(double), 0)
    assert result["listed"] == 3
    results = [remark.rpartition(": ")[0] for remark in result["warnings"]]
    # there the folder is the class
    different = ["listed more than once, with different labels"] if form != "splits" else []
    assert results == ["listed more than once", *different]


@pytest.mark.parametrize("form", ["csv", "kinetics", "ssv2"])
def test_list_without_labels(bench: Bench, form: str) -> None:
    def no_labels(root: Path, form: str) -> None:
        if form != "ssv2":
            (root / "names.txt").write_text("jump\nrun\n")
        listed(lambda data: data.replace(b"template" if form == "ssv2" else b"label", b"other"))(root, form)

    result = bench.counts(form, no_labels, 0, **({} if form == "ssv2" else {"classes": "names.txt"}))
    assert result["warnings"] == ["2 of 2 samples have no label: they are neither trained on nor evaluated"]


@pytest.mark.parametrize("form", ["folder", "imagenet"])
def test_picture_beside_the_class_folders(bench: Bench, form: str) -> None:
    result = bench.counts(
        form, first_file(lambda path: shutil.copyfile(path, path.parent.parent / f"stray{path.suffix}")), 0
    )
    assert result["listed"] == 2
    (remark,) = result["warnings"]
    assert re.fullmatch(r"left out, because they lie in no class folder: 1 files, the first .*train/stray\.\w+", remark)


def test_class_folder_that_is_named_by_no_wnid(bench: Bench) -> None:
    def misname(root: Path, form: str) -> None:
        (root / "train/n00000001").rename(root / "train/n0001")
        (root / "train" / os.fsdecode(b"caf\xe9")).mkdir()

    result = bench.counts("imagenet", misname, 0)
    assert result["warnings"] == [
        f"left out, for their names are no wnids: caf\\udce9, n0001 in {bench.root / 'train'}"
    ]
