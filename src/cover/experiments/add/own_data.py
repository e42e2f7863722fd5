"""A catalog for a folder or a list of a user's own files, so that nobody has to write one for a first model."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import yaml

from cover.console import say_lines
from cover.datasets.catalog import find_annotations, load_catalog
from cover.datasets.files import subfolders
from cover.datasets.manifest import SPLITS
from cover.errors import UserError
from cover.yaml_files import Dumper

HELD_OUT = 0.2  # fraction of train that becomes dev, if there is no other split
CATALOG = "catalog.yaml"


def own_files(data: str, catalog: Path) -> Path | None:
    """The folder or list that `--data` names; None if it is the name of a data set in `catalog`.

    Raises `UserError` if it is neither.
    """
    if catalog.is_file() and data in load_catalog(catalog).specs:
        return None
    if Path(data).exists():
        return Path(data)
    if not catalog.is_file():
        raise UserError(f"--data: {data}: no such folder or list, and there is no {catalog}")
    return None


def write_own_catalog(place: Path, out: Path, group: str | None = None) -> tuple[Path, str]:
    """Write `out/catalog.yaml` with one data set for `place`; returns its path and the name of the data set.

    The data set has the name of the folder. `place`: a folder with one subfolder for each class, or with a list
    (`train.txt`, `train.csv`), or such a list. `group`: as the key `group` of a catalog; a text with a parenthesis is a
    pattern on the path. An existing catalog with other content is not replaced. Raises `UserError`.
    """
    folder = place.resolve().parent if place.is_file() else place.resolve()
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", folder.name).strip("_-")
    entry = _entry(place)
    if group is not None:
        entry["group"] = {"path": group} if "(" in group else group
    path = out / CATALOG
    text = f"# the data set of cover add --data {place}\n"
    text += yaml.dump({name or "mine": entry}, Dumper=Dumper, sort_keys=False, default_flow_style=None, width=1000)
    try:
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path}: is there already, for other data or other options; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {path}: cannot be written: {error.strerror}") from None
    load_catalog(path)  # a wrong entry is reported before any work
    say_lines(text)
    return path, name or "mine"


def _entry(place: Path) -> dict[str, Any]:
    root = place.resolve() if place.is_dir() else place.resolve().parent
    if place.is_file():
        form = {".csv": "csv", ".txt": "list"}.get(place.suffix.lower())
        if form is None:
            raise UserError(f"--data: {place}: is no folder, no .csv and no .txt list")
        splits = _splits_in(place) if form == "csv" else ["train"]
        entry: dict[str, Any] = {"format": form, "root": str(root)}
        entry["annotations"] = dict.fromkeys(splits, place.name)
    else:
        form = next((form for form in ("list", "csv", "folder") if _fits(form, root)), None)
        if form is None:
            raise UserError(
                f"--data: {place}: has no train.txt, no train.csv and no folder for each class (place/class/file)"
            )
        entry = {"format": form, "root": str(root)}
        if form != "folder":  # lists of one kind, not those of another format beside them
            kind = ".txt" if form == "list" else ".csv"
            names = {split: f"{split}{kind}" for split in SPLITS if (root / f"{split}{kind}").is_file()}
            entry["annotations"] = names
    if form != "folder" and (root / "classes.txt").is_file():
        entry["classes"] = "classes.txt"
    if "dev" not in entry.get("annotations", find_annotations(form, root)):
        entry["dev"] = HELD_OUT
    return entry


def _splits_in(table: Path) -> list[str]:
    """The splits that the column `split` of a table names, in the order of `SPLITS`; train if it has no such column."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            found = {(row.get("split") or "").strip() for row in csv.DictReader(file)}
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--data: {table}: cannot be read: {error}") from None
    return [split for split in SPLITS if split in found] or ["train"]


def _fits(form: str, root: Path) -> bool:
    """Whether a folder has the lists of a format, or class folders."""
    if form != "folder":
        return (root / ("train.txt" if form == "list" else "train.csv")).is_file()
    return bool(find_annotations(form, root)) and bool(subfolders(root))
