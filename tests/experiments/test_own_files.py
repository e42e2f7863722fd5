"""A user's files as a catalog entry: what is found out of folders, tables and lists, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cover.datasets.catalog import load_catalog
from cover.errors import UserError
from cover.experiments.own_files import OwnRequest, default_run, own_data, write_own_catalog


@pytest.fixture
def touch(tmp_path: Path) -> Callable[..., Path]:
    """touch(folder, names...) -> the folder, with these empty files in it. No media file is opened here."""

    def make(folder: str, *names: str) -> Path:
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).touch()
        return tmp_path / folder

    return make


def test_a_table_with_other_columns(touch: Callable[..., Path], tmp_path: Path) -> None:
    names = [f"videos/{number}.mp4" for number in range(12)]
    folder = touch("set", *names)
    rows = [
        f"{number};{number}.mp4;{('jump', 'long run')[number % 2]};{('train', 'test')[number % 3 == 0]};p{number // 2}"
        for number in range(12)
    ]
    (folder / "labels.csv").write_text("\n".join(["n;file;activity;subset;person_id", *rows]), encoding="utf-8")
    own = own_data(OwnRequest(folder / "labels.csv"))
    assert own.entry["columns"] == {"path": "file", "label": "activity", "split": "subset"}
    assert own.entry["group"] == "person_id"
    assert own.entry["root"] == str(folder / "videos")
    spec = load_catalog(write_own_catalog(own, tmp_path / "out", folder)).spec("set")
    assert spec.splits == ("train", "dev", "test")
    assert len(own.notes) == 5, "three columns, the folder and the groups are said"
    given = own_data(OwnRequest(folder / "labels.csv", group="none", columns={"label": "person_id"}))
    assert given.entry["columns"]["label"] == "person_id"
    assert "group" not in given.entry


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"label": "clas"}, "x.csv has no column clas; it has file, sport"),
        ({"lable": "sport"}, "lable is none of path, label"),
    ],
)
def test_columns_that_are_not_there(touch: Callable[..., Path], columns: dict[str, str], named: str) -> None:
    folder = touch("set", "a.mp4")
    (folder / "x.csv").write_text("file,sport\na.mp4,x\nb.mp4,y\n", encoding="utf-8")
    with pytest.raises(UserError, match=named):
        own_data(OwnRequest(folder / "x.csv", columns=columns))


def test_a_class_column_in_another_spelling_beside_one_that_repeats(touch: Callable[..., Path]) -> None:
    folder = touch("set", *(f"{number}.mp4" for number in range(4)))
    rows = [f"{number}.mp4;{'ab'[number % 2]};{'xy'[number // 2]}" for number in range(4)]
    (folder / "x.csv").write_text("\n".join(["video;Klasse;notes", *rows]), encoding="utf-8")
    assert own_data(OwnRequest(folder / "x.csv")).entry["columns"] == {"path": "video", "label": "Klasse"}


def test_a_list_with_spaces_in_labels(touch: Callable[..., Path], tmp_path: Path) -> None:
    folder = touch("set", "a 1.mp4", "b.mp4")
    (folder / "mine.txt").write_text("a 1.mp4 drop shot\nb.mp4 long serve\n", encoding="utf-8")
    own = own_data(OwnRequest(folder / "mine.txt"))
    assert (own.entry["format"], own.entry["annotations"], own.entry["dev"]) == ("list", {"train": "mine.txt"}, 0.2)


@pytest.mark.parametrize(
    ("name", "pattern_of"),
    [
        ("court{group}_{number:03}.mp4", "court0"),
        ("v_Archery_g0{group}_c{number:02}.avi", "v_Archery_g00"),
        ("person {group}/{number}.mp4", "person 0"),
        ("IMG_{number}{group}.mp4", None),  # one group for all
        ("{group}{number}{number}x.mp4", None),
    ],
)
def test_groups_are_found_in_names(
    touch: Callable[..., Path], name: str, pattern_of: str | None, tmp_path: Path
) -> None:
    names = [name.format(group=group, number=number) for group in range(3) for number in range(4)]
    folder = touch("set", *(f"{label}/{each}" for label in ("serve", "smash") for each in names))
    own = own_data(OwnRequest(folder))
    assert ("group" in own.entry) == (pattern_of is not None)
    if pattern_of:
        rule = load_catalog(write_own_catalog(own, tmp_path / "out", folder)).spec("set").group
        assert rule
        assert rule.of_path(f"smash/{names[0]}", "", "set") == pattern_of
    assert "group" not in own_data(OwnRequest(folder, group="none")).entry
    assert own_data(OwnRequest(folder, group="(x)")).entry["group"] == {"path": "(x)"}


def test_pictures_among_videos(touch: Callable[..., Path]) -> None:
    folder = touch("set", "a/1.mp4", "a/2.JPG", "b/3.mp4")
    assert own_data(OwnRequest(folder)).entry | {"dev": 0} == {
        "format": "folder",
        "root": str(folder),
        "media": "video",
        "stills": True,
        "dev": 0,
    }
    assert own_data(OwnRequest(touch("stills", "a/1.jpg", "b/2.png"))).entry["media"] == "image"


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["a/1.mp4", "a/2.mp4"], '"a"'),
        (["1.mp4", "2.mp4"], "2 files lie in no class folder"),
        (["a/notes.pdf"], "no video or image file"),
        ([], "folder for each class"),
        (["clips.zip"], "clips.zip"),
    ],
)
def test_folders_without_classes(touch: Callable[..., Path], tmp_path: Path, names: list[str], named: str) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=named) as error:
        own_data(OwnRequest(touch("set", *names)))
    assert str(tmp_path / "set") in str(error.value)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ("file,one,two\na.mp4,x,x\nb.mp4,y,y\nc.mp4,x,x\nd.mp4,y,y\n", "--columns label=NAME, one of one, two"),
        ("name,label\nalpha,x\nbeta,y\n", "no column names video or image files"),
        ("path,label\nelsewhere/a.mp4,x\nb/c.mp4,y\n", "elsewhere/a.mp4"),
        ("path,label\n", "no row"),
    ],
)
def test_tables_that_do_not_say_enough(touch: Callable[..., Path], table: str, named: str) -> None:
    folder = touch("set", "a.mp4")
    (folder / "x.csv").write_text(table, encoding="utf-8")
    with pytest.raises(UserError, match=named):
        own_data(OwnRequest(folder / "x.csv"))


def test_a_catalog_for_other_data_is_not_replaced(touch: Callable[..., Path], tmp_path: Path) -> None:
    folder = touch("set", "a/1.mp4", "b/1.mp4")
    for _ in range(2):
        write_own_catalog(own_data(OwnRequest(folder)), tmp_path / "out", folder)
    write_own_catalog(own_data(OwnRequest(folder)), tmp_path / "out", folder / ".." / "set")
    write_own_catalog(own_data(OwnRequest(folder)), tmp_path / "out", folder)
    with pytest.raises(UserError, match=r"--out .*out: .*set with other options"):
        write_own_catalog(own_data(OwnRequest(folder, group="(.)")), tmp_path / "out", folder)
    other = touch("other", "a/1.mp4", "b/1.mp4")
    with pytest.raises(UserError, match=r"--out .*out: has the model of \S*set;"):
        write_own_catalog(own_data(OwnRequest(other)), tmp_path / "out", other)


def test_columns_that_may_be_groups_are_named(touch: Callable[..., Path]) -> None:
    folder = touch("table", *(f"{number}.mp4" for number in range(6)))
    rows = [f"{number}.mp4,{'ab'[number % 2]},court {number // 2},{number},same" for number in range(6)]
    (folder / "mine.csv").write_text("\n".join(["path,label,Aufnahme,Nummer,Ort", *rows]), encoding="utf-8")
    (note,) = (note for note in own_data(OwnRequest(folder / "mine.csv")).notes if note.startswith("no groups"))
    assert "a column (Aufnahme) says" in note


def test_lists_of_one_folder_have_runs_of_their_own(touch: Callable[..., Path]) -> None:
    folder = touch("table", "mine.csv", "drop shots.txt", "train.csv")
    names = [default_run(each) for each in (folder, folder / "mine.csv", folder / "drop shots.txt")]
    assert names == ["table", "table_mine", "table_drop_shots"]
    assert default_run(folder / "train.csv") == "table", "what its folder stands for"
