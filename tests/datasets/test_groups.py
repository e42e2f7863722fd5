"""The catalog's key `group`: from a csv column or from the path, into the manifest, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from cover.datasets.catalog import GroupRule, load_catalog
from cover.datasets.formats import list_split, list_splits
from cover.datasets.index import index
from cover.datasets.manifest import open_manifest
from cover.datasets.prepare import prepare
from cover.errors import UserError

PATTERN = r"{path: '(p\d+)_'}"


def spec_of(folder: Path, **keys: object) -> Any:
    text = ", ".join(f"{key}: {value}" for key, value in {"root": ".", **keys}.items())
    (folder / "catalog.yaml").write_text(f"mine: {{{text}}}\n", encoding="utf-8")
    return load_catalog(folder / "catalog.yaml").spec("mine")


def write_csv(folder: Path, *rows: str) -> None:
    (folder / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def groups_of(spec: Any) -> list[str | None]:
    return [row.group for row in list_split(spec, "train").rows]


def test_a_csv_column(tmp_path: Path) -> None:
    write_csv(tmp_path, "path,label,person,film", "a.png,x,anna,f1", "b.png,y,,f1", "c.png,x,berta,f2")
    spec = spec_of(tmp_path, format="csv", group="person", source="film")
    assert groups_of(spec) == ["anna", None, "berta"]
    rows = list_split(spec, "train").rows
    assert [row.source_id for row in rows] == ["f1", "f1", "f2"]
    assert [row.group_id for row in rows] == ["anna", "f1", "berta"], "an empty cell is a group by source"
    assert list_splits(spec)["train"].rows == rows


def test_a_pattern_in_csv_and_list(tmp_path: Path) -> None:
    write_csv(tmp_path, "path,label", "deep/p01_a.png,x", "p2_b.png,y")
    assert groups_of(spec_of(tmp_path, format="csv", group=PATTERN)) == ["p01", "p2"]
    assert groups_of(spec_of(tmp_path, format="csv", group=r"{path: 'p\d'}")) == ["p0", "p2"], "the whole match"
    (tmp_path / "train.txt").write_text("deep/p01_a.png x\np2_b.png y\n")
    assert groups_of(spec_of(tmp_path, format="list", group=PATTERN)) == ["p01", "p2"]


def test_a_pattern_in_a_folder(tmp_path: Path) -> None:
    for name in ("x/p01_a.png", "y/p01_b.png", "y/sub/p2_c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert groups_of(spec_of(tmp_path, format="folder", group=PATTERN)) == ["p01", "p01", "p2"]
    assert groups_of(spec_of(tmp_path, format="folder")) == [None, None, None]


def test_a_pattern_for_a_format_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from cover.datasets.annotations import ListedSample, Listing\n"
        "from cover.datasets.manifest import ClassList\n"
        "def own(spec, split):\n"
        "    names = ['p1_a.png', 'p2_b.png']\n"
        "    rows = [ListedSample(n, n, str(spec.root / n), 0) for n in names]\n"
        "    rows.append(ListedSample('c', 'c', str(spec.root / 'c.png'), 0, group='given'))\n"
        "    return Listing(ClassList.of(['x'], 'own'), rows)\n"
    )
    keys = {"format": "own.py:own", "media": "image", "annotations": "{train: none}"}
    assert groups_of(spec_of(tmp_path, **keys)) == [None, None, "given"]
    assert groups_of(spec_of(tmp_path, **keys, group=PATTERN)) == ["p1", "p2", "given"]
    with pytest.raises(UserError, match=r"none, p1_a\.png: mine\.group\.path: the pattern z finds no group in p1_a"):
        list_split(spec_of(tmp_path, **keys, group="{path: z}"), "train")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"format": "csv", "group": "persn"},
            r'train\.csv, row 1: no column "persn" in the header, which mine\.group names; did you mean "person"',
        ),
        (
            {"format": "csv", "group": PATTERN},
            r"train\.csv, row 3: mine\.group\.path: the pattern \(p\\d\+\)_ finds no group in b\.png",
        ),
        ({"format": "list", "group": PATTERN}, r"train\.txt, row 2: mine\.group\.path: .* finds no group in b\.png"),
        ({"format": "csv", "group": r"{path: '(q)?_'}"}, r"row 2: mine\.group\.path: .* finds no group in p1_a\.png"),
        ({"format": "list", "group": "person"}, r'mine\.group: expected \{path: PATTERN\}, got "person"'),
        ({"format": "csv", "group": "{pth: x}"}, r"mine\.group: expected \{path: PATTERN\}"),
        ({"format": "csv", "group": "{path: '(x'}"}, r"mine\.group: path: \(x is no regular expression"),
        ({"format": "csv", "group": "[a]"}, r"mine\.group: expected text"),
        (
            {"format": "kinetics", "annotations": "{train: train.csv}", "group": "person"},
            r"mine\.group: goes with csv, folder, list; the groups of kinetics are its source ids",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, keys: dict[str, str], message: str) -> None:
    write_csv(tmp_path, "path,label,person", "p1_a.png,x,anna", "b.png,y,berta")
    (tmp_path / "train.txt").write_text("p1_a.png x\nb.png y\n")
    with pytest.raises(UserError, match=message) as error:
        list_split(spec_of(tmp_path, media="video" if keys["format"] == "kinetics" else "image", **keys), "train")
    assert "\n" not in str(error.value)


def test_a_folder_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/odd.png").touch()
    with pytest.raises(UserError, match=r"mine\.group\.path: the pattern .* finds no group in x/odd\.png"):
        list_split(spec_of(tmp_path, format="folder", group=PATTERN), "train")


def test_groups_stay_in_manifests_of_prepared_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(data / f"{number}.png")
    write_csv(data, "path,label,person", *(f"{number}.png,x,p{number % 2}" for number in range(4)))
    spec_of(tmp_path, format="csv", root="data", group="person", dev=0)
    index(tmp_path / "catalog.yaml", 0)
    for folder in (tmp_path, tmp_path / "small"):
        manifest = open_manifest(folder / "manifests/mine-train.arrow")
        assert [row.group for row in manifest.rows()] == ["p0", "p1", "p0", "p1"]
        assert manifest.sources(np.array([0, 1, 2, 3])).tolist() == [0, 1, 0, 1]
        assert manifest.sources(np.array([3, 1])).tolist() == [0, 0]
        if folder == tmp_path:
            prepare(tmp_path / "catalog.yaml", tmp_path / "small", 0)


def test_a_manifest_from_before_there_were_groups(tmp_path: Path) -> None:
    write_csv(tmp_path, "path,label", "a.png,x", "b.png,y")
    spec_of(tmp_path, format="csv", dev=0)
    index(tmp_path / "catalog.yaml", 0)
    path = tmp_path / "manifests/mine-train.arrow"
    new = open_manifest(path)
    table = pa.ipc.open_file(str(path)).read_all().drop_columns(["group"])
    with pa.ipc.new_file(path.with_name("old.arrow"), table.schema) as file:
        file.write_table(table)
    old = open_manifest(path.with_name("old.arrow"))
    assert list(old.rows()) == list(new.rows())
    assert old.row(1) == new.row(1)
    assert old.sources(np.array([0, 1])).tolist() == new.sources(np.array([0, 1])).tolist() == [0, 1]
    assert old.draws_digest() == new.draws_digest()


def test_given_splits_with_a_group_on_both_sides(tmp_path: Path) -> None:
    write_csv(tmp_path, "path,label,person", "a.png,x,anna", "b.png,y,berta")
    (tmp_path / "val.csv").write_text("path,label,person\nc.png,x,anna\nd.png,y,clara\n")
    spec_of(tmp_path, format="csv", group="person", dev=0)
    (warning,) = [line for line in index(tmp_path / "catalog.yaml", 0)[0]["warnings"] if "groups in" in line]
    assert "groups in train and in val, so that figures on val flatter: anna" in warning


def test_rules_are_plain_data() -> None:
    assert GroupRule(path=r"(\w+)_\d+").of_path("serve/ball_03.mp4", "list, row 1", "mine") == "ball"
    assert GroupRule(column="scene").of_path("serve/ball_03.mp4", "list, row 1", "mine") is None
