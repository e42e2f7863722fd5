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
        ("a.mp4 0\nb.mp4 -1\n", 'row 1: label "0"|row 2: label "-1"'),
        ("", "the split train is empty"),
    ],
)
def test_unsound_for_path_list(tree: Any, text: str, message: str) -> None:
    tree.write("train.txt", text)
    keys = {} if "-1" not in text else {"classes": "names.txt"}
    tree.write("names.txt", "a\nb\n")
    with pytest.raises(UserError, match=message):
        list_split(tree.spec(format="list", media="video", **keys), "train")


@pytest.mark.parametrize("name", ["tennis7", "utinteraction6"])
def test_real(test_data: Path, tree: Any, name: str) -> None:
    spec = tree.spec(root=str(test_data / name), format="list", classes="classes.txt")
    for split in ("train", "test"):
        rows = list_split(spec, split).rows
        assert all(Path(row.path).is_file() for row in rows)
        assert [Path(row.path).parent.name for row in rows] == [
            list_split(spec, split).classes.names[row.label or 0] for row in rows
        ]
