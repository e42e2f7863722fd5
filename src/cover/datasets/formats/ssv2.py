"""The format `ssv2` (Something-Something v2): JSON lists, one video per id.

`something-something-v2-labels.json` (newer downloads: `labels.json`), beside the lists, maps a template without its
brackets to its label. `-train.json` and `-validation.json` have items `{id, template, ...}`, `-test.json` only ids. The
videos may be in any folder under the root: `20bn-something-something-v2/<id>.webm` as published, mp4 in re-encoded
copies, or a folder of frames named by the id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cover.datasets.annotations import Labels, ListedSample, Listing, classes_from_catalog, read_json
from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import find_clips
from cover.datasets.manifest import ClassList
from cover.errors import UserError

_LABELS = ("something-something-v2-labels.json", "labels.json")


def ssv2(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split. Raises UserError for an invalid list or a template outside the class list."""
    classes = _classes(spec)
    labels = Labels(classes)
    file = spec.annotations[split]
    items = _items(file)
    clips = find_clips(spec.root, {video for _, video, _ in items})
    rows = []
    for where, video, template in items:
        path = clips.get(video) or str(spec.root / "20bn-something-something-v2" / f"{video}.webm")
        rows.append(ListedSample(video, video, path, _label(labels, template, where)))
    return Listing(classes, rows)


def _label(labels: Labels, template: Any, where: str) -> int | None:
    return None if template is None else labels.of(_bare(str(template)), where)


def _bare(template: str) -> str:
    """A template without its brackets.

    >>> _bare("Pulling [something] from left to right")
    'Pulling something from left to right'
    """
    return template.replace("[", "").replace("]", "")


def _items(file: str) -> list[tuple[str, str, Any]]:
    """`(where, id, template or None)` of every item of a list."""
    items = read_json(file)
    if not isinstance(items, list):
        raise UserError(f"{file}: expected a JSON list of objects with an id")
    parsed = []
    for number, item in enumerate(items, start=1):
        where = f"{file}, item {number}"
        if not isinstance(item, dict) or not isinstance(item.get("id"), str | int):
            raise UserError(f"{where}: expected an object with an id")
        parsed.append((where, str(item["id"]), item.get("template")))
    return parsed


def _classes(spec: DatasetSpec) -> ClassList:
    """The classes of the published label file, or of the file of the catalog's `classes` key."""
    if spec.classes and not spec.classes.endswith(".json"):
        given = classes_from_catalog(spec)
        assert given is not None
        return ClassList.of([_bare(name) for name in given.names], given.source)
    file = spec.classes or _label_file(spec)
    index = read_json(file)
    try:
        order = sorted(index, key=lambda name: int(index[name]))
        complete = [int(index[name]) for name in order] == list(range(len(order)))
    except (TypeError, ValueError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f'{file}: expected {{"template": "label"}} with the labels 0, 1, 2, ... each once')
    return ClassList.of([_bare(name) for name in order], Path(file).name)


def _label_file(spec: DatasetSpec) -> str:
    folders = [Path(file).parent for file in spec.annotations.values()] + [spec.root, spec.root / "labels"]
    for folder in folders:
        for name in _LABELS:
            if (folder / name).is_file():
                return str(folder / name)
    raise UserError(f"{spec.name}: no {_LABELS[0]} or {_LABELS[1]} beside its lists; give it with `classes: FILE`")
