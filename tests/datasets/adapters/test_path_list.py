"""`path label` lists: any path, numbered and named labels, and what is wrong with a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cover.datasets.adapters import list_split
from cover.datasets.listing import read_pairs
from cover.errors import UserError

PATHS = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=30).map("x{}.mp4".format)


@given(rows=st.lists(st.tuples(PATHS, st.integers(0, 10**6)), min_size=1), separator=st.sampled_from([" ", "\t", ",", "  ", ", "]))
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
    assert [row.path for row in train.rows] == [str(tree.root / "my clips/a b.mp4"), "/elsewhere/-_a_b_c_d_e_000017_000027.mp4"]
    assert [row.label for row in [*train.rows, *val.rows]] == [1, 0, 2]
    assert [row.source_id for row in train.rows] == ["my clips/a b.mp4", "-_a_b_c_d_e"]


def test_numbers_alone(tree: Any) -> None:
    tree.write("train.csv", "a.mp4,0\nb.mp4,1\n")
    tree.write("val.csv", "c.mp4,2\n")
    assert list_split(tree.spec(format="list"), "train").classes.names == ("0", "1", "2")


def test_names(tree: Any) -> None:
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
def test_unsound(tree: Any, text: str, message: str) -> None:
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
        assert [Path(row.path).parent.name for row in rows] == [list_split(spec, split).classes.names[row.label or 0] for row in rows]
