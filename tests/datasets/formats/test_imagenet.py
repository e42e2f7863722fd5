"""ImageNet by class folders, by lists, and flat with every file that tells the labels."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cover.datasets.formats import list_split
from cover.errors import UserError

WNIDS = ["n01440764", "n02012849", "n03126707"]
DEVKIT = "ILSVRC2012_devkit_t12/data/"


@pytest.fixture
def flat(tree: Any) -> Any:
    """Three classes in train, and of three validation images the first and the third, under another ending."""
    tree.touch(*(f"train/{wnid}/{wnid}_1.JPEG" for wnid in WNIDS))
    tree.touch("val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000003.jpg")
    return tree


def test_kaggle_layout(tree: Any) -> None:
    data = "ILSVRC/Data/CLS-LOC"
    tree.touch(
        *(f"{data}/train/{wnid}/{wnid}_1.JPEG" for wnid in reversed(WNIDS)), f"{data}/val/ILSVRC2012_val_00000001.JPEG"
    )
    tree.write("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\n")
    tree.write("LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,n02012849 1 2 3 4\n")
    spec = tree.spec(format="imagenet")
    listing = list_split(spec, "train")
    assert listing.classes.names == ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")
    assert [(row.sample_id, row.label) for row in listing.rows] == [
        ("n01440764_1", 0),
        ("n02012849_1", 1),
        ("n03126707_1", 2),
    ]
    assert [row.label for row in list_split(spec, "val").rows] == [1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n" + "".join(f"ILSVRC2012_val_0000000{n},{WNIDS[-n]} 1 2\n" for n in (1, 2, 3)),
        ),
        ("ILSVRC2012_img_val.txt", "".join(f"ILSVRC2012_val_0000000{n}.JPEG {WNIDS[-n]}\n" for n in (1, 2, 3))),
        ("meta/val.txt", "".join(f"ILSVRC2012_val_0000000{n}.JPEG {3 - n}\n" for n in (1, 2, 3))),
        ("val.txt", "".join(f"ILSVRC2012_val_0000000{n}.JPEG,{3 - n}\n" for n in (1, 2, 3))),
        ("imagenet_2012_validation_synset_labels.txt", "".join(f"{WNIDS[-n]}\n" for n in (1, 2, 3))),
    ],
)
def test_flat_val(flat: Any, name: str, text: str) -> None:
    flat.write(name, text)
    listing = list_split(flat.spec(format="imagenet"), "val")
    # the second is missing
    assert flat.below(listing) == [f"val/ILSVRC2012_val_0000000{n}" for n in ("1.JPEG", "2.JPEG", "3.jpg")]
    assert [row.label for row in listing.rows] == [2, 1, 0]


def test_flat_val_holds_what_its_list_lacks(flat: Any) -> None:
    flat.write("val.txt", "ILSVRC2012_val_00000003.JPEG n02012849\n")
    rows = list_split(flat.spec(format="imagenet"), "val").rows
    assert [(row.sample_id[-1], row.label) for row in rows] == [("3", 1), ("1", None)]


def test_flat_val_with_devkit(flat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flat.write(f"{DEVKIT}ILSVRC2012_validation_ground_truth.txt", "2\n3\n1\n")
    spec = flat.spec(format="imagenet")
    monkeypatch.setitem(sys.modules, "scipy.io", None)  # as if not installed
    with pytest.raises(UserError, match=r"meta\.mat: reading it takes scipy: pip install scipy; or give"):
        list_split(spec, "val")
    numbered = [(1, WNIDS[2], "crane"), (2, WNIDS[0], "tench"), (3, WNIDS[1], "crane")]  # not in the order of wnids
    monkeypatch.setitem(sys.modules, "scipy", SimpleNamespace())
    monkeypatch.setitem(
        sys.modules, "scipy.io", SimpleNamespace(loadmat=lambda path, squeeze_me: {"synsets": numbered})
    )
    assert [row.label for row in list_split(spec, "val").rows] == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    flat.write(f"{DEVKIT}synsets.txt", "".join(f"{wnid}\n" for _, wnid, _ in numbered))
    assert [row.label for row in list_split(spec, "val").rows] == [0, 1, 2]
    flat.write(f"{DEVKIT}ILSVRC2012_validation_ground_truth.txt", "2\n4\n1\n")
    with pytest.raises(UserError, match=r'ground_truth\.txt, row 2: "4" is not the number of a class'):
        list_split(spec, "val")


def test_real_meta_mat(flat: Any) -> None:
    scipy_io, numpy = pytest.importorskip("scipy.io"), pytest.importorskip("numpy")
    flat.write(f"{DEVKIT}ILSVRC2012_validation_ground_truth.txt", "2\n3\n1\n")
    synsets = numpy.array(
        [(1, WNIDS[2], "crane"), (2, WNIDS[0], "tench"), (3, WNIDS[1], "crane")],
        dtype=[("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")],
    )
    scipy_io.savemat(flat.root / DEVKIT / "meta.mat", {"synsets": synsets[:, None]})
    assert [row.label for row in list_split(flat.spec(format="imagenet"), "val").rows] == [0, 1, 2]


def test_flat_val_without_labels(flat: Any) -> None:
    with pytest.raises(
        UserError, match=r"images without class folders.*LOC_val_solution\.csv, ILSVRC2012_img_val\.txt"
    ):
        list_split(flat.spec(format="imagenet"), "val")


def test_folder_that_is_not_there(flat: Any) -> None:
    spec = flat.spec(format="imagenet", annotations={"train": "train", "val": "vall"})
    with pytest.raises(UserError, match=r"the split val is empty: .*/vall does not exist"):
        list_split(spec, "val")


def test_flat_test_is_unlabelled(flat: Any) -> None:
    flat.touch("test/ILSVRC2012_test_00000001.JPEG")
    flat.write("val.txt", "ILSVRC2012_val_00000003.JPEG n02012849\n")
    rows = list_split(flat.spec(format="imagenet", annotations={"train": "train", "test": "test"}), "test").rows
    assert [(row.sample_id, row.label) for row in rows] == [("ILSVRC2012_test_00000001", None)]


def test_lists_for_all_splits(flat: Any) -> None:
    flat.write(
        "meta/train.txt",
        "".join(f"{wnid}/{wnid}_{n}.JPEG {label}\n" for label, wnid in enumerate(WNIDS) for n in (1, 2)),
    )
    flat.write("meta/val.txt", "ILSVRC2012_val_00000001.JPEG 2\n")
    flat.write("wnids.txt", "\n".join(WNIDS))
    annotations = {"train": "meta/train.txt", "val": "meta/val.txt"}
    spec = flat.spec(format="imagenet", annotations=annotations, classes="wnids.txt")
    train = list_split(spec, "train")
    assert [row.label for row in train.rows] == [0, 0, 1, 1, 2, 2]
    assert flat.below(train)[:2] == ["train/n01440764/n01440764_1.JPEG", "train/n01440764/n01440764_2.JPEG"]
    assert flat.below(list_split(spec, "val"))[0] == "val/ILSVRC2012_val_00000001.JPEG"
    flat.write("meta/val.txt", "ILSVRC2012_val_00000001.JPEG 3\n")
    with pytest.raises(UserError, match=r"val\.txt, row 1: label 3 is outside the 3 classes of wnids\.txt"):
        list_split(spec, "val")


def test_21k_is_class_folders_alone(tree: Any) -> None:
    tree.touch("n02012849/n02012849_5.JPEG", "n00004475/n00004475_7.JPEG", "n00004475/n00004475_9.JPEG", "readme/x.jpg")
    tree.write("words.txt", "n00004475\torganism, being\nn00005787\tbenthos\n")
    spec = tree.spec(format="imagenet", dev=0)
    listing = list_split(spec, "train")
    assert spec.splits == ("train",)
    assert listing.classes.names == ("organism, being", "n02012849")
    assert [row.label for row in listing.rows] == [0, 0, 1]


@pytest.mark.parametrize(("name", "classes"), [("imagenet_synsets.txt", 1000), ("imagenet_synset_to_lemma.txt", 21844)])
def test_published_wnids(test_data: Path, tree: Any, name: str, classes: int) -> None:
    tree.touch("val/n01443537/b.JPEG")
    listing = list_split(tree.spec(format="imagenet", classes=str(test_data / "annotations" / name)), "val")
    assert len(listing.classes.names) == classes
    assert listing.rows[0].label == (
        1 if classes == 1000 else listing.classes.names.index("goldfish, Carassius auratus")
    )


def test_no_wnid_anywhere(tree: Any) -> None:
    tree.touch("train/goldfish/a.JPEG")
    with pytest.raises(UserError, match=r"no folder named by a wnid.*or give the wnids with `classes: FILE`"):
        list_split(tree.spec(format="imagenet"), "train")
