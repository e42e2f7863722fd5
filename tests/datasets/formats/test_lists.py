"""A csv list with any number of classes in a cell: what is none of them, what is not known, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cover.datasets.annotations import read_pairs
from cover.datasets.catalog import load_catalog
from cover.datasets.formats import list_split
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.errors import UserError

PAGE = Path(__file__).parents[3] / "docs/csv.md"


def labels_of(tree: Any, split: str = "train", **keys: object) -> list[list[int] | None]:
    listing = list_split(tree.spec(format="csv", media="video", **keys), split)
    assert listing.classes.many
    assert all(row.label is None for row in listing.rows)
    return [row.labels for row in listing.rows]


def test_names(tree: Any) -> None:
    tree.write_csv(
        "train.csv",
        [["path", "labels"], ["a.mp4", "run|åka; far"], ["b.mp4", " jump | run|run|"], ["c.mp4", ""], ["d.mp4", "?"]],
    )
    listing = list_split(tree.spec(format="csv", media="video"), "train")
    assert listing.classes.names == ("jump", "run", "åka; far")
    assert [row.labels for row in listing.rows] == [[1, 2], [0, 1], [], None]
    assert listing.warnings == ("1 of 4 samples have no class, which counts; where the classes are not known, write ?",)


def test_a_separator_of_its_own(tree: Any) -> None:
    tree.write_csv("train.csv", [["path", "classes"], ["a.mp4", "/m/09x0r,/m/05zppz"], ["b.mp4", "/m/09x0r"]])
    assert labels_of(tree, separator=",") == [[0, 1], [1]]
    assert labels_of(tree) == [[1], [0]], "by default the comma is part of a name"


@pytest.mark.parametrize("classes", [None, "names.txt"])
def test_numbers(tree: Any, classes: str | None) -> None:
    tree.write_csv("train.csv", [["path", "labels"], ["a.mp4", "10|2"], ["b.mp4", "0|1|3|4|5|6|7|8|9"]])
    tree.write("names.txt", "\n".join("abcdefghijk"))
    keys = {"classes": classes} if classes else {}
    assert labels_of(tree, **keys) == [[2, 10], [0, 1, 3, 4, 5, 6, 7, 8, 9]]
    names = list_split(tree.spec(format="csv", media="video", **keys), "train").classes.names
    assert names == (tuple("abcdefghijk") if classes else tuple(map(str, range(11))))


def test_a_split_without_the_column_is_not_labelled(tree: Any) -> None:
    tree.write_csv("train.csv", [["path", "labels"], ["a.mp4", "x|y"]])
    tree.write_csv("test.csv", [["path"], ["b.mp4"]])
    assert labels_of(tree, "test") == [None]


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        (
            [["path", "label", "labels"], ["a.mp4", "x", "x|y"]],
            {},
            r'train\.csv: has a column "labels" and a column "label"; keep label',
        ),
        ([["path", "labels", "classes"], ["a.mp4", "x", "x|y"]], {}, 'a column "labels" and a column "classes"'),
        ([["path", "labels"], ["a.mp4", ""], ["b.mp4", "?"]], {}, "no class in any row; it needs a column"),
        ([["path", "labels"], ["a.mp4", "0|2"]], {}, "no row has the label 1"),
        (
            [["path", "labels"], ["a.mp4", "0|9"]],
            {"classes": "names.txt"},
            r"row 2: label 9 is outside the 2 classes of names\.txt",
        ),
        (
            [["path", "labels"], ["a.mp4", "one|won"]],
            {"classes": "names.txt"},
            'row 2: label "won" is not among the 2 classes',
        ),
        (
            [["path", "label"], ["a.mp4", "x"], ["b.mp4", "y"], ["c.mp4", "x|y"]],
            {},
            r'"x\|y" is several classes; call the column labels',
        ),
        ([["path", "labels"], ["a.mp4", "x"]], {"separator": ""}, "separator: expected text"),
    ],
)
def test_unsound(tree: Any, rows: list[list[str]], keys: dict[str, str], message: str) -> None:
    tree.write_csv("train.csv", rows)
    tree.write("names.txt", "one\ntwo")
    with pytest.raises(UserError, match=message) as error:
        list_split(tree.spec(format="csv", media="video", **keys), "train")
    assert "\n" not in str(error.value)


def test_the_manifest_has_every_label(make_set: Any) -> None:
    files = {"a.png": "x|z", "gone.png": "y", "b.png": "", "c.png": "?", "d.png": "z"}
    path = make_set(files, absent=["gone.png"], column="labels")
    manifest = open_manifest(load_catalog(path).manifest_path("mine", "val"))
    assert manifest.classes.many
    assert (
        [row.labels for row in manifest.rows()]
        == [manifest.row(i).labels for i in range(5)]
        == [[0, 2], [1], [], None, [2]]
    )
    assert manifest.labelled.tolist() == [True, True, True, False, True]
    assert manifest.usable.tolist() == [0, 2, 4], "a sample of no class is usable, one of unknown classes is not"
    assert manifest.class_counts().tolist() == [1, 1, 2]
    assert (manifest.labels == -1).all()


def test_index_says_what_is_odd(make_set: Any) -> None:
    path = make_set({"a.png": "x|y", "gone.png": "z", "b.png": ""}, absent=["gone.png"], column="labels")
    (train, _) = index(path, 0)
    assert [remark.split(";")[0] for remark in train["warnings"]] == [
        "1 of 3 samples have no class, which counts",
        "classes without a usable sample: z",
    ]
    assert train["classes"] == 3


def test_the_page(tree: Any) -> None:
    """Its lists and its catalog, as they stand there."""
    text = PAGE.read_text(encoding="utf-8")
    single, several = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    (catalog, recipe) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    entries = yaml.safe_load(catalog)
    tree.write("single/list.csv", single)
    tree.write("several/train.csv", several)
    tree.write("catalog.yaml", catalog.replace("/data/clips", "single").replace("/data/homes", "several"))
    results = {row["dataset"]: row for row in index(tree.root / "catalog.yaml", 0) if row["split"] == "train"}
    assert set(results) == set(entries)
    manifests = {name: open_manifest(Path(row["manifest"])) for name, row in results.items()}
    assert [manifest.classes.many for manifest in manifests.values()] == [False, True]
    homes = manifests["homes"]
    assert [[homes.classes.names[i] for i in row.labels or ()] for row in homes.rows()] == [
        ["drink", "sit down"],
        ["laugh"],
        [],
        [],
    ]
    assert np.flatnonzero(homes.labelled).tolist() == [0, 1, 2]
    assert set(yaml.safe_load(recipe)["data"]) == {"sets", "heads"}


PATHS = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=30).map(
    "x{}.mp4".format
)


@given(
    rows=st.lists(st.tuples(PATHS, st.integers(0, 10**6)), min_size=1),
    separator=st.sampled_from([" ", "\t", ",", "  ", ", "]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_path_survives(tmp_path: Path, rows: list[tuple[str, int]], separator: str) -> None:
    file = tmp_path / "train.txt"
    file.write_text("".join(f"{path}{separator}{label}\n" for path, label in rows), encoding="utf-8")
    assert [(path, int(label)) for _, path, label in read_pairs(str(file))] == rows


def test_numbers_with_names(tree: Any) -> None:
    tree.write("train.txt", "my clips/a b.mp4 1\n/elsewhere/-_a_b_c_d_e_000017_000027.mp4 0\n")
    tree.write("val.txt", "\nvål/雪.mp4\t2\n")
    tree.write("names.txt", "arm wrestling\nbee keeping\nclean and jerk\n")
    spec = tree.spec(format="list", classes="names.txt")
    train, val = list_split(spec, "train"), list_split(spec, "val")
    assert spec.media == "video"
    assert train.classes.names == val.classes.names == ("arm wrestling", "bee keeping", "clean and jerk")
    assert [row.path for row in train.rows] == [
        str(tree.root / "my clips/a b.mp4"),
        "/elsewhere/-_a_b_c_d_e_000017_000027.mp4",
    ]
    assert [row.label for row in [*train.rows, *val.rows]] == [1, 0, 2]
    assert [row.source_id for row in train.rows] == ["my clips/a b.mp4", "-_a_b_c_d_e"]


def test_numbers_alone(tree: Any) -> None:
    tree.write("train.csv", "a.mp4,0\nb.mp4,1\n")
    tree.write("val.csv", "c.mp4,2\n")
    assert list_split(tree.spec(format="list"), "train").classes.names == ("0", "1", "2")


def test_names_for_path_list(tree: Any) -> None:
    tree.write("train.txt", "a.png dog\nb.png cat\n")
    tree.write("val.txt", "c.png cot\n")
    spec = tree.spec(format="list")
    assert (spec.media, list_split(spec, "train").classes.names) == ("image", ("cat", "dog"))
    with pytest.raises(UserError, match=r'val\.txt, row 1: label "cot" is not among the 2 classes.*did you mean "cat"'):
        list_split(spec, "val")


def test_folders_of_frames_with_their_number(tree: Any) -> None:
    tree.write("train.txt", "some frames/v_1 132 1\nclip 12.mp4 0\n")
    rows = list_split(tree.spec(format="list"), "train").rows
    assert [(row.sample_id, row.label) for row in rows] == [("some frames/v_1", 1), ("clip 12.mp4", 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4\n", "row 2: expected `path label`"),
        ("a.mp4 0\nmy clip.mp4\n", "row 2: no label behind the path"),
        ("a.mp4 0\nb.mp4 2\n", "no line has the label 1"),
        ("a.mp4 0\nb.mp4 -1\n", 'row 2: label "-1" is no class number'),
        ("a.mp4 0\nb.mp4 1\nc.mp4 1\nd.mp4 two\n", 'row 4: label "two" is no class number, as 2 others are'),
        ("", "the split train is empty"),
    ],
)
def test_unsound_for_path_list(tree: Any, text: str, message: str) -> None:
    tree.write("train.txt", text)
    tree.write("names.txt", "a\nb\n")
    for keys in ({}, {"classes": "names.txt"}) if "-1" in text else ({},):
        with pytest.raises(UserError, match=message):
            list_split(tree.spec(format="list", media="video", **keys), "train")


@pytest.mark.parametrize("header", ["path label", "video_path\tclass", "file,label_id", "name frames label"])
@pytest.mark.parametrize("labels", ["0 1 2 3", "run jump run walk"])
def test_a_header_line_is_left_out_and_said(tree: Any, header: str, labels: str) -> None:
    if "frames" in header and "run" in labels:
        pytest.skip("a header of other words cannot be told from a name")
    tree.write("train.txt", "\n".join([header, *(f"{n}.mp4 {label}" for n, label in enumerate(labels.split()))]))
    listing = list_split(tree.spec(format="list", media="video"), "train")
    assert listing.classes.names == tuple(sorted(set(labels.split())))
    assert tree.below(listing) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    (warning,) = listing.warnings
    assert "train.txt, row 1" in warning
    assert "header" in warning


def test_a_first_line_that_is_no_header(tree: Any) -> None:
    tree.write("train.txt", "path.mp4 label\nb.mp4 other\n")
    listing = list_split(tree.spec(format="list"), "train")
    assert (listing.classes.names, listing.warnings) == (("label", "other"), ())


@pytest.mark.parametrize("form", ["list", "csv"])
def test_numbers_from_one_with_given_names(tree: Any, form: str) -> None:
    tree.write("names.txt", "run\njump\nwalk\n")
    if form == "list":
        tree.write("train.txt", "a.mp4 1\nb.mp4 3\n")
        tree.write("val.txt", "c.mp4 2\n")
    else:
        tree.write("train.csv", "path,label\na.mp4,1\nb.mp4,3\n")
        tree.write("val.csv", "path,label\nc.mp4,2\n")
    spec = tree.spec(format=form, media="video", classes="names.txt")
    listings = [list_split(spec, split) for split in ("train", "val")]
    assert [row.label for listing in listings for row in listing.rows] == [0, 2, 1]
    assert all("numbered from 1" in listing.warnings[0] for listing in listings)
    with pytest.raises(UserError, match="give `classes: FILE`"):
        list_split(tree.spec(format=form, media="video"), "train")


@pytest.mark.parametrize(
    "line",
    ["a b.mp4\triding a bike", "a b.mp4 riding a bike", "a b.mp4, riding a bike ", "a b\u3000.mp4\u00a0riding a bike"],
)
def test_names_with_spaces(tree: Any, line: str) -> None:
    tree.write("train.txt", f"{line}\nc.mp4 bike\n")
    listing = list_split(tree.spec(format="list", media="video"), "train")
    assert listing.classes.names == ("bike", "riding a bike")
    assert [Path(row.path).name for row in listing.rows] == [line[: line.index(".mp4") + 4], "c.mp4"]


def test_the_longest_given_name(tree: Any) -> None:
    """Folders of frames have no ending that shows where the path is over."""
    tree.write("names.txt", "bike\na bike\nriding a bike\n")
    tree.write("train.txt", "frames/1 riding a bike\nframes/2 of a bike\nframes/3 bike\n")
    listing = list_split(tree.spec(format="list", media="video", classes="names.txt"), "train")
    assert [(row.sample_id, row.label) for row in listing.rows] == [
        ("frames/1", 2),
        ("frames/2 of", 1),
        ("frames/3", 0),
    ]


# --- csv ---


def test_spaces_around_cells(tree: Any) -> None:
    rows = [
        "path, label",
        "a.mp4, drinking",
        "b.mp4,drinking ",
        "c.mp4,drinking",
        "d.mp4,\u00a0drinking\u200b",
        " e.mp4 ,eating",
    ]
    tree.write("train.csv", "\n".join(rows))
    listing = list_split(tree.spec(format="csv", media="video"), "train")
    assert listing.classes.names == ("drinking", "eating")
    assert tree.below(listing) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"]
    (warning,) = listing.warnings
    assert "4 rows" in warning
    assert "train.csv, row 2" in warning


def test_spaces_around_cells_of_published_lists(tree: Any) -> None:
    tree.write(
        "train.csv", "label,youtube_id,time_start,time_end\nrun ,abcdefghijk,1,11\n\u3000run, abcdefghijl,1,11\n"
    )
    listing = list_split(tree.spec(format="kinetics"), "train")
    assert (listing.classes.names, [row.source_id for row in listing.rows]) == (
        ("run",),
        ["abcdefghijk", "abcdefghijl"],
    )
    assert "2 rows" in listing.warnings[0]
    tree.write("trainingSet.csv", "run/a.mp4,run ,1,0\nrun/b.mp4,run,1,0\n")
    listing = list_split(tree.spec(format="moments"), "train")
    assert listing.classes.names == ("run",)
    assert "1 rows, the first" in listing.warnings[0]


def test_a_file_whose_name_has_a_space_at_its_end(tree: Any) -> None:
    tree.touch("a.mp4 ")
    tree.write("train.csv", "path,label\na.mp4 ,x\nb.mp4,y\n")
    assert tree.below(list_split(tree.spec(format="csv", media="video"), "train")) == ["a.mp4 ", "b.mp4"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(tree: Any, separator: str) -> None:
    rows = [
        "path,label,start,end",
        '"a;b.mp4",run,0.5,1.25'.replace("0.5", "0,5").replace("1.25", "1,25"),
        "c.mp4,jump,,",
    ]
    text = "\n".join(rows).replace("0,5", "0§5").replace("1,25", "1§25").replace(",", separator).replace("§", ",")
    tree.write("train.csv", text)
    first, second = list_split(tree.spec(format="csv", media="video"), "train").rows
    assert (first.path, first.start, first.end) == (str(tree.root / "a;b.mp4"), 0.5, 1.25)
    assert (second.label, second.start) == (0, None)


def test_columns_of_other_names(tree: Any) -> None:
    tree.write(
        "list.csv",
        "File;activity;class;fold;person;path\na.mp4;run;9;Train;p1;x\nb.mp4;run;9;val;p2;x\nc.mp4;run;9;train;p3;x\n",
    )
    columns = {"path": "File", "label": "activity", "split": "fold", "group": "person"}
    keys = {"format": "csv", "media": "video", "annotations": {"train": "list.csv", "val": "list.csv"}}
    listing = list_split(tree.spec(**keys, columns=columns), "train")
    assert listing.classes.names == ("run",)
    assert [(Path(row.path).name, row.group) for row in listing.rows] == [("a.mp4", "p1"), ("c.mp4", "p3")]
    wrong = [
        ({"label": "action"}, r'list\.csv, row 1: no column "action" .*set\.columns\.label'),
        ({"lable": "activity"}, 'set.columns: unknown column "lable"; did you mean "label"'),
        ({"label": ""}, "set.columns: label: expected text"),
    ]
    for columns, message in wrong:
        with pytest.raises(UserError, match=message):
            list_split(tree.spec(**keys, columns=columns), "train")
    with pytest.raises(UserError, match=r"set\.group: columns\.group names the column already"):
        tree.spec(**keys, columns={"group": "person"}, group="person")
    with pytest.raises(UserError, match=r"set\.columns: goes with csv"):
        tree.spec(format="folder", media="video", annotations={"train": "."}, columns={"path": "File"})


@pytest.mark.parametrize("name", ["tennis7", "utinteraction6"])
def test_real(test_data: Path, tree: Any, name: str) -> None:
    spec = tree.spec(root=str(test_data / name), format="list", classes="classes.txt")
    for split in ("train", "test"):
        rows = list_split(spec, split).rows
        assert all(Path(row.path).is_file() for row in rows)
        assert [Path(row.path).parent.name for row in rows] == [
            list_split(spec, split).classes.names[row.label or 0] for row in rows
        ]
