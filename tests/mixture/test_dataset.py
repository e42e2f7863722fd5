"""Which head every class goes to: alone, shared, single-label and multi-label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cover.datasets.manifest import ClassList
from cover.errors import UserError
from cover.mixture.dataset import LabelMap, make_heads
from cover.model.heads import Head
from cover.training.recipe import Data, Recipe

SETS = {
    "k400": ClassList.of(["archery", "yoga"], "k400"),
    "homes": ClassList.of(["drink", "laugh", "sit"], "homes", many=True),
    "ssv2": ClassList.of(["push"], "ssv2"),
    "k600": ClassList.of(["abseiling", "yoga", "zumba"], "k600"),
    "sounds": ClassList.of(["laugh", "bark"], "sounds", many=True),
}


def labels_of(name: str, heads: tuple[Head, ...]) -> LabelMap:
    return LabelMap.of(name, SETS[name], heads)


def test_each_set_has_a_head_of_its_own() -> None:
    heads = make_heads(SETS, {})
    assert [head.name for head in heads] == list(SETS)
    assert [head.classes for head in heads] == [classes.names for classes in SETS.values()]
    assert [head.loss for head in heads] == ["softmax", "sigmoid", "softmax", "softmax", "sigmoid"]
    assert all(head.datasets == (head.name,) for head in heads)
    assert labels_of("k600", heads).targets.tolist() == [[-1, -1, -1, 0, -1], [-1, -1, -1, 1, -1], [-1, -1, -1, 2, -1]]
    assert labels_of("k400", heads).multi_hot is None
    for name, columns in {"homes": [0, 1, 2], "sounds": [3, 4]}.items():
        labels = labels_of(name, heads)
        assert labels.width == 5
        assert labels.multi_hot is not None
        assert labels.multi_hot.tolist() == columns


def test_a_shared_head_has_the_union_in_the_order_of_its_list() -> None:
    heads = make_heads(SETS, {"kinetics": ["k600", "k400"], "any": ["homes", "sounds"]})
    assert heads == (
        Head("kinetics", ("abseiling", "yoga", "zumba", "archery"), "softmax", ("k600", "k400")),
        Head("any", ("drink", "laugh", "sit", "bark"), "sigmoid", ("homes", "sounds")),
        Head("ssv2", ("push",)),
    )
    assert labels_of("k400", heads).targets.tolist() == [[3, -1, -1], [1, -1, -1]]
    sounds = labels_of("sounds", heads)
    assert sounds.targets.tolist() == [[-1, 0, -1]] * 2
    assert sounds.multi_hot is not None
    assert (sounds.multi_hot.tolist(), sounds.width) == ([1, 3], 4)
    targets, multi_hot = sounds.rows_of([0, 1])
    assert multi_hot is not None
    assert (targets.tolist(), multi_hot.tolist()) == ([-1, 0, -1], [0, 1, 0, 1])


def test_a_head_of_one_set_may_have_another_name() -> None:
    (head,) = make_heads({"k400": SETS["k400"]}, {"actions": ["k400"]})
    assert (head.name, head.datasets) == ("actions", ("k400",))


def test_the_order_of_the_mixture_does_not_change_a_shared_head() -> None:
    turned = dict(reversed(SETS.items()))
    shared = {"kinetics": ["k400", "k600"]}
    assert make_heads(SETS, shared)[0] == next(head for head in make_heads(turned, shared) if head.name == "kinetics")


def test_one_class_and_any_number_do_not_mix() -> None:
    with pytest.raises(
        UserError, match=r"data\.heads\.all: a sample of k400 has one class, one of homes any number"
    ) as error:
        make_heads(SETS, {"all": ["k400", "homes"]})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"both": ["k400", "k60"]}, r'data\.heads\.both: "k60" is not one of data\.sets; did you mean "k600"'),
        ({"both": []}, r"data\.heads\.both: name the data sets"),
        ({"a": ["k400"], "b": ["k400"]}, '"k400" is there twice'),
        ({"a": ["k400", "k400"]}, '"k400" is there twice'),
        ({"k400": ["k600"]}, r'data\.heads\.k400: the data set "k400" has a head of this name'),
        ({"a.b": ["k400"]}, '"a.b" cannot name a head'),
    ],
)
def test_unsound_recipes(heads: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Recipe(Data(["k400", "k600"], heads=heads), "out", 1)
    assert "\n" not in str(error.value)


def test_a_recipe_names_shared_heads(tmp_path: Path) -> None:
    from cover import config

    (tmp_path / "r.yaml").write_text("data: {sets: [a, b], heads: {c: [a, b]}}\nout: runs/x\nsteps: 1\n")
    recipe: Any = config.load(Recipe, tmp_path / "r.yaml")
    assert recipe.data.heads == {"c": ["a", "b"]}
    (tmp_path / "again.yaml").write_text(config.dump(recipe))
    assert config.load(Recipe, tmp_path / "again.yaml") == recipe
