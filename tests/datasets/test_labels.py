"""Classes of several data sets are related by their names, one to one, and sets that share them get a shared head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cover.cli import main
from cover.datasets.labels import LabelRelation, relate, related_sets, shared_heads
from cover.errors import UserError

MakeSet = Callable[..., Path]


def pairs(left: list[str], right: list[str]) -> list[tuple[str, str, str]]:
    return [(pair.kind, pair.left, pair.right) for pair in relate(left, right)]


def test_kinds_of_pairs() -> None:
    """Renames between the editions of Kinetics, and names of other sets for the same actions."""
    left = ["archery", "making bed", "hugging", "Playing Guitar", "passing football (in game)", "yoga", "ski jumping"]
    right = ["making the bed", "archery", "hugging (not baby)", "playing_guitar", "passing american football (in game)"]
    assert pairs(left, [*right, "juggling soccer ball"]) == [
        ("exact", "archery", "archery"),
        ("normalised", "Playing Guitar", "playing_guitar"),
        ("near", "making bed", "making the bed"),
        ("near", "hugging", "hugging (not baby)"),
    ]


def test_brackets_tell_classes_apart() -> None:
    assert pairs(["passing (in game)"], ["passing (not in game)"]) == []
    assert pairs(["opening bottle"], ["opening wine bottle", "opening bottle (not wine)"]) == [
        ("near", "opening bottle", "opening bottle (not wine)")
    ]


def test_the_editions_of_kinetics(test_data: Path) -> None:
    """Of 400 classes, 368 have the same name in Kinetics-600. Kinetics-710 says which of its classes each one is."""
    names = {
        edition: (test_data / f"annotations/label_map_{edition}.txt").read_text(encoding="utf-8").splitlines()
        for edition in ("k400", "k600", "k710")
    }
    assert sum(pair.kind == "exact" for pair in relate(names["k400"], names["k600"])) == 368
    place = json.loads((test_data / "annotations/k710_to_k400.json").read_text(encoding="utf-8"))
    same = {(names["k710"][number], name) for number, name in zip(place, names["k400"], strict=True)}
    found = {(pair.left, pair.right) for pair in relate(names["k710"], names["k400"])}
    assert found <= same
    assert len(found) == 393


def test_each_name_is_in_one_pair_and_the_surest_is_taken() -> None:
    found = pairs(["riding a horse", "riding horses"], ["riding horse"])
    assert found == [("near", "riding a horse", "riding horse")]
    assert pairs(["Run", "run"], ["RUN", "run"]) == [("exact", "run", "run"), ("normalised", "Run", "RUN")]


def test_nothing_in_common() -> None:
    assert pairs(["a", "the"], ["b", "x"]) == []
    assert pairs([], ["b"]) == []
    assert pairs(["+", "👍"], ["-", "👎"]) == []
    assert pairs(["läuft"], ["la\u0308uft"]) == [("normalised", "läuft", "la\u0308uft")]


def test_many_names_of_the_same_words() -> None:
    """Each finds its own partner, although all are near."""
    left = [f"playing instrument {number:03} in the street" for number in range(60)]
    right = [name.replace("instrument", "instruments") for name in reversed(left)]
    found = relate(left, right)
    assert len(found) == 60
    assert all(pair.right == pair.left.replace("instrument", "instruments") for pair in found)


def relation(left: str, right: str, shares: bool) -> LabelRelation:
    return LabelRelation(left, right, 2, 2, relate(["a", "b"], ["a", "b"] if shares else ["c", "d"]))


def test_groups_of_sets_that_share_a_head() -> None:
    relations = [
        relation("a", "b", True),
        relation("a", "c", False),
        relation("b", "c", True),
        relation("d", "e", True),
    ]
    assert shared_heads(relations) == [["a", "b", "c"], ["d", "e"]]
    assert shared_heads([LabelRelation("a", "b", 1, 1, relate(["x"], ["x"]), same_kind=False)]) == []


def test_a_catalog(make_set: MakeSet, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    make_set({"a.png": "cat", "b.png": "dog", "c.png": "big horse"}, "one")
    make_set({"a.png": "cat", "b.png": "dog", "c.png": "Big_Horse"}, "two")
    catalog = make_set({"a.png": "cat|dog"}, "many", column="labels")
    assert main(["labels", str(catalog), "--json", str(tmp_path / "labels.json")]) == 0
    out, err = capsys.readouterr()
    assert 'normalised: one "big horse" - two "Big_Horse"' in out
    assert "[one, two]" in err
    found = json.loads((tmp_path / "labels.json").read_text())
    assert found["shared_heads"] == [["one", "two"]]
    assert [(each["left"], each["right"], each["same_kind"]) for each in found["relations"]] == [
        ("one", "two", True),
        ("one", "many", False),
        ("two", "many", False),
    ]


def test_sets_that_cannot_be_compared(make_set: MakeSet, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = make_set({"a.png": "cat"}, "one")
    with pytest.raises(UserError, match=r"two or more indexed data sets.*cover index"):
        related_sets(catalog)
    catalog.write_text(catalog.read_text() + "two: {format: csv, root: one, annotations: {train: list.csv}}\n")
    with pytest.raises(UserError, match="two: not indexed; run `cover index"):
        related_sets(catalog, ["one", "two"])
    assert main(["labels", str(catalog), "--near", "2"]) == 2
