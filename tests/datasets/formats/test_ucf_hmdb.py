"""UCF101 and HMDB51 by their own division files."""

from __future__ import annotations

from typing import Any

import pytest

from cover.datasets.formats import list_split
from cover.errors import UserError


@pytest.fixture
def ucf(tree: Any) -> Any:
    tree.write("ucfTrainTestlist/classInd.txt", "1 YoYo\n2 Archery\n")
    tree.write("ucfTrainTestlist/trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 1\r\nArchery/v_Archery_g09_c02.avi 2\r\n")
    tree.write("ucfTrainTestlist/testlist01.txt", "Archery/v_Archery_g01_c01.avi\n")
    tree.touch("UCF-101/YoYo/v_YoYo_g08_c01.avi", "mp4/Archery/v_Archery_g01_c01.mp4")
    return tree


def test_ucf(ucf: Any) -> None:
    spec = ucf.spec(format="splits")
    train, test = list_split(spec, "train"), list_split(spec, "test")
    assert train.classes.names == ("YoYo", "Archery")  # the order of classInd.txt
    # the second is missing
    assert ucf.below(train) == ["UCF-101/YoYo/v_YoYo_g08_c01.avi", "Archery/v_Archery_g09_c02.avi"]
    assert ucf.below(test) == ["mp4/Archery/v_Archery_g01_c01.mp4"]
    assert [row.label for row in [*train.rows, *test.rows]] == [0, 1, 1]
    assert [row.source_id for row in train.rows] == ["v_YoYo_g08", "v_Archery_g09"]


def test_ucf_unsound(ucf: Any) -> None:
    spec = ucf.spec(format="splits")
    ucf.write("ucfTrainTestlist/testlist01.txt", "Archery/v_Archery_g01_c01.avi\nYoyo/v_YoYo_g08_c01.avi\n")
    with pytest.raises(UserError, match=r'testlist01\.txt, row 2: label "Yoyo".*did you mean "YoYo"'):
        list_split(spec, "test")
    ucf.write("ucfTrainTestlist/testlist01.txt", "v_Archery_g01_c01.avi\n")
    with pytest.raises(UserError, match=r"testlist01\.txt, row 1: expected `Class/video\.avi`"):
        list_split(spec, "test")
    ucf.write("ucfTrainTestlist/classInd.txt", "0 YoYo\n1 Archery\n")
    with pytest.raises(UserError, match=r"classInd\.txt: expected lines `1 Class`"):
        list_split(spec, "train")


@pytest.fixture
def hmdb(tree: Any) -> Any:
    folder = "testTrainMulti_7030_splits"
    tree.write(
        f"{folder}/clap_test_split1.txt",
        "#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi 1 \na (b)_clap_u_cm_np1_fr_bad_1.avi 2 \nc.avi 0 \n",
    )
    tree.write(f"{folder}/brush_hair_test_split1.txt", "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n")
    tree.write(f"{folder}/clap_test_split2.txt", "c.avi 1 \n")
    tree.write(f"{folder}/brush_hair_test_split2.txt", "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 2 \n")
    tree.touch(
        "hmdb51_org/clap/#20_Rhythm_clap_u_nm_np1_fr_goo_0.avi",
        "hmdb51_org/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi",
    )
    return tree


def test_hmdb(hmdb: Any) -> None:
    spec = hmdb.spec(format="splits")
    train = list_split(spec, "train")
    assert train.classes.names == ("brush_hair", "clap")
    assert [row.source_id for row in train.rows] == ["April_09", "#20_Rhythm"]
    assert all(path.startswith("hmdb51_org/") for path in hmdb.below(train))
    assert hmdb.below(list_split(spec, "test")) == ["clap/a (b)_clap_u_cm_np1_fr_bad_1.avi"]


def test_hmdb_second_division(hmdb: Any) -> None:
    pattern = "testTrainMulti_7030_splits/*_test_split2.txt"
    spec = hmdb.spec(format="splits", annotations={"train": pattern, "val": pattern})
    assert [row.sample_id for row in list_split(spec, "train").rows] == ["clap/c"]
    with pytest.raises(UserError, match='"brush_hair" is not among the 1 classes'):
        list_split(spec, "val")


def test_hmdb_unsound(hmdb: Any) -> None:
    hmdb.write("testTrainMulti_7030_splits/clap_test_split1.txt", "a.avi 1\nb.avi 3\n")
    with pytest.raises(UserError, match=r"clap_test_split1\.txt, row 2: expected `video\.avi 1`"):
        list_split(hmdb.spec(format="splits"), "train")
    spec = hmdb.spec(format="splits", annotations={"train": "nowhere"})
    with pytest.raises(UserError, match="neither a list nor a folder or pattern"):
        list_split(spec, "train")
