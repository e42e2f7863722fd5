"""A data set's folder, grown file by file, and its catalog entry."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from cover.datasets.annotations import Listing
from cover.datasets.catalog import DatasetSpec, load_catalog


class Tree:
    """A folder to grow a data set in."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def touch(self, *names: str) -> None:
        """Empty files."""
        for name in names:
            self.write(name, "")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_csv(self, name: str, rows: list[list[str]]) -> None:
        self.touch(name)
        with (self.root / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    def catalog(self, **keys: object) -> Path:
        """A catalog of one data set, `set`, whose root is this folder."""
        self.write("catalog.yaml", json.dumps({"set": {"root": ".", **keys}}))  # JSON is YAML
        return self.root / "catalog.yaml"

    def spec(self, **keys: object) -> DatasetSpec:
        return load_catalog(self.catalog(**keys)).spec("set")

    def below(self, listing: Listing) -> list[str]:
        """The rows' paths, relative to this folder."""
        return [str(Path(row.path).relative_to(self.root)) for row in listing.rows]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty folder to grow a data set in."""
    return Tree(tmp_path)
