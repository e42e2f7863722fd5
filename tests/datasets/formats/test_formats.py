"""Each format, on small trees in its own layout with awkward names, and on the published lists."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from cover.datasets.annotations import Listing
from cover.datasets.catalog import DatasetSpec, load_catalog
from cover.datasets.formats import list_split, list_splits
from cover.errors import UserError

ODD = ["it's here.mp4", 'a "quoted" name.mp4', "comma, and space.mp4", "-dash.mp4", "snø 雪.mp4"]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def spec_of(tmp_path: Path, **keys: object) -> DatasetSpec:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(json.dumps({"set": {"root": str(tmp_path), **keys}}), encoding="utf-8")  # JSON is YAML
    return load_catalog(catalog).spec("set")


def write_csv(path: Path, rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def names(listing: Listing) -> list[str | None]:
    return [None if row.label is None else listing.classes.names[row.label] for row in listing.rows]


KINETICS = ["label", "youtube_id", "time_start", "time_end", "split", "is_cc"]


def kinetics_tree(root: Path) -> DatasetSpec:
    train = [
        ["air drumming", "-_a_b_c_d_e", "17", "27"],
        ["abseiling", "__________A", "0", "10"],
        ["abseiling", "__________A", "50", "60"],
    ]
    train += [["abseiling", "untimed-AAA", "1", "11"], ["tasting, beer", "replaced_AA", "3", "13"]]
    write_csv(root / "annotations/train.csv", [KINETICS, *([*row, "train", "0"] for row in train)])
    write_csv(root / "annotations/val.csv", [KINETICS[:-1], ["abseiling", "v----------", "2", "12", "validate"]])
    write_csv(root / "annotations/test.csv", [KINETICS[1:-1], ["t----------", "2", "12", "test"]])
    touch(root / "train/-_a_b_c_d_e_000017_000027.mp4", root / "train/class folder/__________A_000050_000060.mp4")
    touch(
        root / "train/__________A.mp4",
        root / "videos_train/vol_01/untimed-AAA.mp4",
        root / "val/v----------_000002_000012.mkv",
    )
    touch(root / "train/replaced_AA_000003_000013.mp4", root / "val/__________A_000000_000010.mp4")
    touch(root / "replacement/replacement_for_corrupted_k400/replaced_AA_000003_000013.mp4")
    return spec_of(root, format="kinetics")


def test_kinetics_finds_clips_in_every_layout(tmp_path: Path) -> None:
    listing = list_split(kinetics_tree(tmp_path), "train")
    assert listing.classes.names == ("abseiling", "air drumming", "tasting, beer")
    assert names(listing) == ["air drumming", "abseiling", "abseiling", "abseiling", "tasting, beer"]
    assert [str(Path(row.path).relative_to(tmp_path)) for row in listing.rows] == [
        "train/-_a_b_c_d_e_000017_000027.mp4",
        # not there: the name without times may be either segment, val's copy is val's
        "train/__________A_000000_000010.mp4",
        "train/class folder/__________A_000050_000060.mp4",
        "videos_train/vol_01/untimed-AAA.mp4",
        "replacement/replacement_for_corrupted_k400/replaced_AA_000003_000013.mp4",
    ]
    row = listing.rows[0]
    assert (row.sample_id, row.source_id, row.youtube_start, row.youtube_end) == (
        "-_a_b_c_d_e_000017_000027",
        "-_a_b_c_d_e",
        17,
        27,
    )
    assert row.start is None


def test_kinetics_other_splits_share_the_classes(tmp_path: Path) -> None:
    spec = kinetics_tree(tmp_path)
    val, test = list_split(spec, "val"), list_split(spec, "test")
    assert names(val) == ["abseiling"]
    assert val.rows[0].path.endswith("val/v----------_000002_000012.mkv")
    assert names(test) == [None]
    assert val.classes == test.classes == list_split(spec, "train").classes


def test_kinetics_label_unknown_to_train(tmp_path: Path) -> None:
    spec = kinetics_tree(tmp_path)
    write_csv(tmp_path / "annotations/val.csv", [KINETICS[:-1], ["abseilling", "v----------", "2", "12", "val"]])
    with pytest.raises(
        UserError, match=r'val\.csv, row 2: label "abseilling" is not among the 3 classes.*did you mean "abseiling"'
    ):
        list_split(spec, "val")


@pytest.mark.parametrize(
    ("list_name", "map_name", "rows"), [("kinetics-400_val", "k400", 19906), ("kinetics-600_val", "k600", 30000)]
)
def test_kinetics_published_lists(test_data: Path, tmp_path: Path, list_name: str, map_name: str, rows: int) -> None:
    lists = test_data / "annotations"
    split_files = {
        "val": str(lists / f"{list_name}.csv"),
        "test": str(lists / f"{list_name.replace('val', 'test')}.csv"),
    }
    spec = spec_of(tmp_path, format="kinetics", annotations=split_files)
    listing = list_split(spec, "val")
    assert listing.classes.names == tuple((lists / f"label_map_{map_name}.txt").read_text().splitlines())
    assert len(listing.rows) == rows
    assert all(len(row.source_id) == 11 and row.label is not None for row in listing.rows)
    assert all(row.label is None for row in list_split(spec, "test").rows)


def test_kinetics_of_one_folder_per_class_or_named_by_id(tmp_path: Path) -> None:
    rows = [
        ["riding a bike", "-_a_b_c_d_e", "17", "27"],
        ["abseiling", "_b---------", "0", "10"],
        ["abseiling", "c__________", "5", "15"],
    ]
    write_csv(tmp_path / "annotations/validate.csv", [KINETICS[:-1], *([*row, "validate"] for row in rows)])
    touch(tmp_path / "videos_val/riding_a_bike/-_a_b_c_d_e_000017_000027.mp4", tmp_path / "videos_val/_b---------.mp4")
    touch(tmp_path / "videos/vol_03/c___________000005_000015.mp4", tmp_path / "lost+found/readme.mp4")
    listing = list_split(spec_of(tmp_path, format="kinetics"), "val")
    assert [str(Path(row.path).relative_to(tmp_path)) for row in listing.rows] == [
        "videos_val/riding_a_bike/-_a_b_c_d_e_000017_000027.mp4",
        "videos_val/_b---------.mp4",
        "videos/vol_03/c___________000005_000015.mp4",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["abseiling", "v----------", "2"], r"row 2: 3 cells where the header has 4"),
        (["abseiling", "v----------", "12", "2"], "row 2: time_start and time_end must be seconds"),
        (["abseiling", "v--", "2", "12"], 'row 2: "v--" is not a YouTube id of 11'),
        (["abseiling", "v----------", "2", "soon"], 'row 2: time_end "soon" is not a number'),
    ],
)
def test_kinetics_unsound_row(tmp_path: Path, row: list[str], message: str) -> None:
    write_csv(tmp_path / "train.csv", [KINETICS[:4], row])
    with pytest.raises(UserError, match=message):
        list_split(spec_of(tmp_path, format="kinetics"), "train")


def test_kinetics_list_without_a_column(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [["label", "id", "time_start", "time_end"]])
    with pytest.raises(UserError, match=r'train\.csv, row 1: no column "youtube_id" in the header'):
        list_split(spec_of(tmp_path, format="kinetics"), "train")


@pytest.mark.parametrize(("version", "count"), [("k400", 400), ("k600", 600), ("k700", 700), ("k710", 710)])
def test_kinetics_published_class_names(test_data: Path, tmp_path: Path, version: str, count: int) -> None:
    published = test_data / f"annotations/label_map_{version}.txt"
    names_of = published.read_text(encoding="utf-8").splitlines()
    write_csv(
        tmp_path / "train.csv",
        [KINETICS[:4], *([name, f"{i:011d}", "0", "10"] for i, name in enumerate(reversed(names_of)))],
    )
    values = list_split(spec_of(tmp_path, format="kinetics", classes=str(published)), "train")
    assert (values.classes.names, values.classes.source) == (tuple(names_of), published.name)
    assert [row.label for row in values.rows] == list(reversed(range(count)))
    results = list_split(spec_of(tmp_path, format="kinetics"), "train").classes
    # the merged 710 are in an order of their own
    assert (results.digest == values.classes.digest) == (version != "k710")


def ssv2_tree(root: Path, prefix: str) -> DatasetSpec:
    templates = [
        "Pushing [something] from right to left",
        'Showing [something] "as is"',
        "Pushing [something] from left to right",
    ]
    bare = [template.replace("[", "").replace("]", "") for template in templates]
    root.mkdir(exist_ok=True)
    (root / f"{prefix}labels.json").write_text(json.dumps({bare[1]: "2", bare[0]: "1", bare[2]: "0"}))
    items = [
        {"id": str(100 + i), "template": template, "label": "x", "placeholders": []}
        for i, template in enumerate(templates)
    ]
    (root / f"{prefix}train.json").write_text(json.dumps(items))
    (root / f"{prefix}validation.json").write_text(json.dumps(items[:1]))
    (root / f"{prefix}test.json").write_text(json.dumps([{"id": 7}]))
    touch(root / "20bn-something-something-v2/100.webm", root / "mp4/101.mp4")
    return spec_of(
        root.parent if prefix == "" else root, root=str(root.parent if prefix == "" else root), format="ssv2"
    )


@pytest.mark.parametrize(
    ("folder", "prefix"), [(".", "something-something-v2-"), ("labels", ""), ("labels", "something-something-v2-")]
)
def test_ssv2(tmp_path: Path, folder: str, prefix: str) -> None:
    spec = ssv2_tree(tmp_path / folder, prefix)
    listing = list_split(spec, "train")
    assert [row.label for row in listing.rows] == [1, 2, 0]
    assert [Path(row.path).name for row in listing.rows] == ["100.webm", "101.mp4", "102.webm"]
    assert [Path(row.path).exists() for row in listing.rows] == [True, True, False]
    assert [row.label for row in list_split(spec, "test").rows] == [None]


def test_ssv2_template_without_label(tmp_path: Path) -> None:
    spec = ssv2_tree(tmp_path, "something-something-v2-")
    (tmp_path / "something-something-v2-train.json").write_text(
        '[{"id": "1", "template": "Pushing [something] from right to lefts"}]'
    )
    with pytest.raises(
        UserError, match=r'train\.json, item 1: label "Pushing something from right to lefts".*did you mean'
    ):
        list_split(spec, "train")


def test_ssv2_folders_of_frames(tmp_path: Path) -> None:
    spec = ssv2_tree(tmp_path, "something-something-v2-")
    touch(tmp_path / "frames/102/000001.jpg", tmp_path / "frames/100/000001.jpg")
    rows = list_split(spec, "train").rows
    assert [str(Path(row.path).relative_to(tmp_path)) for row in rows] == [
        "20bn-something-something-v2/100.webm",  # rather than its frames
        "mp4/101.mp4",
        "frames/102",
    ]


def test_ssv2_published_templates(test_data: Path, tmp_path: Path) -> None:
    templates = (test_data / "annotations/label_map_ssv2.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "labels.json").write_text(
        json.dumps({name: str(label) for label, name in enumerate(templates)}), encoding="utf-8"
    )
    items = [
        {"id": str(label), "template": name.replace("something", "[something]", 1)}
        for label, name in enumerate(templates)
    ]
    (tmp_path / "train.json").write_text(json.dumps(items), encoding="utf-8")
    listing = list_split(spec_of(tmp_path, format="ssv2"), "train")
    assert (len(listing.classes.names), [row.label for row in listing.rows]) == (174, list(range(174)))
    values = list_split(
        spec_of(tmp_path, format="ssv2", classes=str(test_data / "annotations/label_map_ssv2.txt")), "train"
    )
    assert values.classes.digest == listing.classes.digest


def test_moments(tmp_path: Path) -> None:
    lines = [
        ["clapping/yt-0a_b-c1D2E3_12.mp4", "clapping", "3", "0"],
        *[["adult+female+singing/" + name, "adult+female+singing", "3", "1"] for name in ODD],
    ]
    write_csv(tmp_path / "trainingSet.csv", lines)
    write_csv(tmp_path / "validationSet.csv", lines[:1])
    (tmp_path / "moments_categories.txt").write_text("adult+female+singing,1\nclapping,0\n")
    touch(*(tmp_path / "training/adult+female+singing" / name for name in ODD))
    listing = list_split(spec_of(tmp_path, format="moments"), "train")
    assert listing.classes.names == ("clapping", "adult+female+singing")
    assert [row.label for row in listing.rows] == [0] + [1] * len(ODD)
    assert [Path(row.path).exists() for row in listing.rows] == [False] + [True] * len(ODD)
    assert listing.rows[0].source_id == "0a_b-c1D2E3"


def test_moments_published_classes(test_data: Path, tmp_path: Path) -> None:
    label_map = test_data / "annotations/label_map_mit.txt"
    write_csv(tmp_path / "trainingSet.csv", [["praying/a.mp4", "praying", "1", "0"]])
    listing = list_split(spec_of(tmp_path, format="moments", classes=str(label_map)), "train")
    assert len(listing.classes.names) == 339
    assert listing.classes.source == "label_map_mit.txt (Moments in Time v1)"
    assert listing.rows[0].label == 1


def test_moments_versions_do_not_mix(tmp_path: Path) -> None:
    write_csv(tmp_path / "trainingSet.csv", [["a+0/x.mp4", "a+0", "1", "0"]])
    results = []
    for count in (339, 305):
        (tmp_path / "moments_categories.txt").write_text("".join(f"a+{label},{label}\n" for label in range(count)))
        results.append(list_split(spec_of(tmp_path, format="moments"), "train").classes)
    assert [classes.source for classes in results] == [
        f"moments_categories.txt (Moments in Time {v})" for v in ("v1", "v2")
    ]
    assert results[0].digest != results[1].digest


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["clapping/a.mp4"], "row 2: expected `label/name.mp4,label"),
        (["b/b.mp4", "b"], 'row 2: label "b" is not among the 1 classes'),
    ],
)
def test_moments_unsound_row(tmp_path: Path, row: list[str], message: str) -> None:
    write_csv(tmp_path / "trainingSet.csv", [["clapping/a.mp4", "clapping"], row])
    (tmp_path / "moments_categories.txt").write_text("clapping,0\n")
    with pytest.raises(UserError, match=message):
        list_split(spec_of(tmp_path, format="moments"), "train")


def test_folder(tmp_path: Path) -> None:
    touch(
        *(tmp_path / "train/class, b" / name for name in ODD),
        tmp_path / "train/a/deeper/x.WEBM",
        tmp_path / "val/a/y.mp4",
    )
    touch(tmp_path / "train/a/notes.txt", tmp_path / "train/.hidden/z.mp4", tmp_path / "train/README.mp4")
    spec = spec_of(tmp_path, format="folder")
    listing = list_split(spec, "train")
    assert spec.media == "video"
    assert listing.classes.names == ("a", "class, b")
    assert sorted(Path(row.path).name for row in listing.rows) == sorted([*ODD, "x.WEBM"])
    assert all(Path(row.path).is_file() for row in listing.rows)
    assert list_split(spec, "val").rows[0].sample_id == "val/a/y.mp4"


def test_folder_without_splits_is_train(tmp_path: Path) -> None:
    touch(tmp_path / "cat/1.png", tmp_path / "dog/2.png")
    spec = spec_of(tmp_path, format="folder")
    assert (spec.media, spec.splits) == ("image", ("train", "dev"))
    assert names(list_split(spec, "train")) == ["cat", "dog"]


def test_folder_class_unknown_to_train(tmp_path: Path) -> None:
    touch(tmp_path / "train/cat/1.png", tmp_path / "test/cats/2.png")
    with pytest.raises(UserError, match=r'test: label "cats" is not among the 1 classes.*"cat"'):
        list_split(spec_of(tmp_path, format="folder"), "test")


def test_csv_of_names(tmp_path: Path) -> None:
    rows = [
        ["path", "label", "split", "take"],
        *[[name, "b, c", "train", "7"] for name in ODD],
        ["/elsewhere/x.mp4", "å", "train", ""],
    ]
    write_csv(tmp_path / "list.csv", [*rows, ["v.mp4", "å", "validation", "8"], ["w.mp4", "", "test", "9"]])
    spec = spec_of(
        tmp_path, format="csv", annotations=dict.fromkeys(["train", "val", "test"], "list.csv"), source="take"
    )
    listing = list_split(spec, "train")
    assert listing.classes.names == ("b, c", "å")
    assert [row.path for row in listing.rows] == [*(str(tmp_path / name) for name in ODD), "/elsewhere/x.mp4"]
    assert [row.source_id for row in listing.rows] == ["7"] * len(ODD) + ["/elsewhere/x.mp4"]
    assert names(list_split(spec, "val")) == ["å"]
    assert names(list_split(spec, "test")) == [None]


def test_csv_segments(tmp_path: Path) -> None:
    write_csv(
        tmp_path / "train.csv", [["path", "class", "start", "end"], ["a.mp4", "x", "1.5", "3"], ["a.mp4", "x", "", ""]]
    )
    rows = list_split(spec_of(tmp_path, format="csv"), "train").rows
    assert [(row.start, row.end) for row in rows] == [(1.5, 3.0), (None, None)]
    assert rows[0].sample_id != rows[1].sample_id


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ([["path", "label"], ["a.mp4", "1"], ["b.mp4", "2"]], {}, "no row has the label 0"),
        (
            [["path", "label", "class"], ["a.mp4", "0", "x"], ["b.mp4", "0", "y"]],
            {},
            'row 3: label 0 is "y" here and "x" before',
        ),
        (
            [["path", "label"], ["a.mp4", "2"]],
            {"classes": "classes.txt"},
            r"row 2: label 2 is outside the 2 classes of classes\.txt",
        ),
        (
            [["path", "label"], ["a.mp4", "won"]],
            {"classes": "classes.txt"},
            r'row 2: label "won" is not among the 2 classes of classes\.txt',
        ),
        ([["pth", "label"], ["a.mp4", "x"]], {}, 'row 1: no column "path".*did you mean "pth"'),
        ([["path", "label"], ["a.mp4", "x"], ["b.mp4", "y"], ["c.mp4", "x;y"]], {}, '"x;y" is several classes'),
        ([["path", "label"], ["a.mp4", "x", "y"]], {}, "row 2: 3 cells where the header has 2"),
        ([["path", "label"]], {"classes": "classes.txt"}, "split train is empty"),
        ([["path", "label", "split"], ["a.mp4", "x", "val"]], {}, 'no row of the split "train"'),
        ([["path", "label"], ["a.mp4", ""]], {}, "no class in any row"),
        ([["path", "label", "start", "end"], ["a.mp4", "x", "3", "2"]], {}, "row 2: start and end"),
        ([["path", "label", "start"], ["a.mp4", "x", "soon"]], {}, 'row 2: start "soon" is not a number'),
    ],
)
def test_csv_unsound(tmp_path: Path, rows: list[list[str]], keys: dict[str, str], message: str) -> None:
    write_csv(tmp_path / "train.csv", rows)
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=message) as error:
        list_split(spec_of(tmp_path, format="csv", media="video", **keys), "train")
    assert "\n" not in str(error.value)


def test_csv_lists_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many splits and files there are; and all splits at once are what they are one by one."""
    write_csv(
        tmp_path / "most.csv",
        [["path", "label", "split"], ["a.mp4", "x", "train"], ["b.mp4", "y", "val"], ["c.mp4", "y", "train"]],
    )
    write_csv(tmp_path / "rest.csv", [["split", "path"], ["none", "e.mp4"], ["test", "d.mp4"]])
    spec = spec_of(
        tmp_path, format="csv", media="video", annotations={"train": "most.csv", "val": "most.csv", "test": "rest.csv"}
    )
    one_by_one = {split: list_split(spec, split) for split in spec.annotations}
    opened: list[str] = []
    real = open

    def counted(file: str, *args: Any, **keys: Any) -> Any:
        opened.append(Path(file).name)
        return real(file, *args, **keys)

    monkeypatch.setattr("builtins.open", counted)
    assert list_splits(spec) == one_by_one
    assert sorted(opened) == ["most.csv", "rest.csv"]
    assert {split: [row.sample_id for row in listing.rows] for split, listing in one_by_one.items()} == {
        "train": ["a.mp4", "c.mp4"],
        "val": ["b.mp4"],
        "test": ["d.mp4"],
    }
    assert names(one_by_one["test"]) == [None]


def test_csv_list_in_bounded_memory(tmp_path: Path) -> None:
    """Beside the rows that it gives, reading a list holds a few bytes a row."""
    with (tmp_path / "train.csv").open("w") as file:
        file.write("path,label,split\n")
        file.writelines(
            f"videos/some_longer_name_{number:07d}.mp4,class {number % 50},train\n" for number in range(20_000)
        )
    spec = spec_of(tmp_path, format="csv", media="video")
    tracemalloc.start()
    try:
        listing = list_split(spec, "train")
        present, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing.rows) == 20_000
    assert (peak - present) / len(listing.rows) < 80


@pytest.mark.parametrize(("name", "classes", "train", "test"), [("tennis7", 7, 280, 91), ("utinteraction6", 6, 83, 37)])
def test_csv_real(test_data: Path, tmp_path: Path, name: str, classes: int, train: int, test: int) -> None:
    spec = spec_of(
        tmp_path, root=str(test_data / name), format="csv", annotations={"train": "index.csv", "test": "index.csv"}
    )
    listings = {split: list_split(spec, split) for split in ("train", "test")}
    assert {split: len(listing.rows) for split, listing in listings.items()} == {"train": train, "test": test}
    assert listings["train"].classes.names == tuple((test_data / name / "classes.txt").read_text().split())
    assert len(listings["test"].classes.names) == classes
    for split, listing in listings.items():
        listed = [line.rsplit(" ", 1) for line in (test_data / name / f"{split}.txt").read_text().splitlines()]
        assert [(row.sample_id, row.label) for row in listing.rows] == [(path, int(label)) for path, label in listed]
        assert all(Path(row.path).is_file() for row in listing.rows)


def test_unreadable_list(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read: No such file"):
        list_split(spec_of(tmp_path, format="csv", media="video", annotations={"train": "gone.csv"}), "train")
    (tmp_path / "train.csv").write_bytes(b"path,label\n\xff\xfe.mp4,x\n")
    with pytest.raises(UserError, match=r"train\.csv, row 2: not UTF-8 \(byte 0xff at 11\)"):
        list_split(spec_of(tmp_path, format="csv", media="video"), "train")
