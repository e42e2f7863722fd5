"""The page on adding a format does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cover.datasets.formats import list_split
from cover.datasets.index import index
from cover.errors import UserError

PAGE = Path(__file__).parents[3] / "docs/adding_a_format.md"


@pytest.fixture
def diving(tree: Any) -> Any:
    """The page's example, and a data set in its layout."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    tree.write("diving48.py", code)
    tree.write("Diving48_vocab.json", '[["Back", "15som", "05Twis", "FREE"], ["Back", "15som", "NoTwis", "PIKE"]]')
    tree.write("Diving48_V2_train.json", '[{"vid_name": "a b", "label": 1, "start_frame": 0, "end_frame": 9}]')
    tree.write("Diving48_V2_test.json", '[{"vid_name": "c", "label": 0}]')
    return tree


def entry() -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return {**yaml.safe_load(text)["diving48"], "root": "."}


def test_page(diving: Any) -> None:
    spec = diving.spec(**entry())
    train = list_split(spec, "train")
    assert train.classes.names == ("Back 15som 05Twis FREE", "Back 15som NoTwis PIKE")
    assert (diving.below(train), train.rows[0].label, list_split(spec, "test").rows[0].label) == (["rgb/a b.mp4"], 1, 0)
    assert [(row["split"], row["missing"]) for row in index(diving.catalog(**entry()), 0)] == [
        ("train", 1),
        ("test", 1),
    ]


def test_page_complains(diving: Any) -> None:
    diving.write("Diving48_V2_test.json", '[{"vid_name": "c", "label": 0}, {"vid_name": "d", "label": 2}]')
    with pytest.raises(
        UserError, match=r"test\.json, item 2: label 2 is outside the 2 classes of Diving48_vocab\.json"
    ):
        list_split(diving.spec(**entry()), "test")


def test_function_that_is_not_there(diving: Any) -> None:
    spec = diving.spec(**{**entry(), "format": "diving48.py:diving"})
    with pytest.raises(
        UserError, match=r'set\.format: .*diving48\.py has no function "diving"; did you mean "diving48"'
    ):
        list_split(spec, "train")


def test_annotations_are_needed(diving: Any) -> None:
    with pytest.raises(UserError, match=r"set\.annotations: missing; this format needs them"):
        diving.spec(format="diving48.py:diving48", media="video")
