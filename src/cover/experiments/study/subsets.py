"""Subsets of data sets for the arms of a study, as manifests in the study's folder.

A subset is a part of a training set, a fold over all clips, a set with permuted labels, or stills of clips. As a
manifest, it is a data set like any other. So training and evaluation need no code for studies.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cover.console import track
from cover.datasets.catalog import Catalog, DatasetSpec
from cover.datasets.exclusions import excluded_rows
from cover.datasets.manifest import Manifest, Row, open_manifest, write_manifest
from cover.datasets.prepare import prepared_entry
from cover.datasets.splits import deal
from cover.errors import UserError
from cover.media.decode import MediaError, decode_at

TRAINING = ("train", "dev")
# Fields of a catalog entry, and of a row, that identify a subset in `SubsetBuilder.digest`.
READ_BY = ("media", "flip", "sampling", "views", "crop_scale")
KNOWN_BY = ("sample_id", "source_id", "label", "state", "start", "end", "frames", "fps", "width", "height", "codec")
MEASURED = "val"  # name of the reported split in a subset


@dataclass(frozen=True)
class Subset:
    """A subset of a data set.

    `part`: the fraction of its training clips; `seed` decides which. `folds`, `fold`: measure on one of the folds and
    train on the others. `permuted`: whether the training labels are permuted; `seed` decides how. `stills`: the number
    of images in place of each training clip; 0: the clips themselves.
    """

    dataset: str
    part: float = 1.0
    folds: int = 0
    fold: int = 0
    permuted: bool = False
    stills: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        """A name for files. It has the seed only if the subset depends on it."""
        words = [self.dataset]
        words += [f"part{self.part:g}"] if self.part < 1 else []
        words += [f"fold{self.fold + 1}of{self.folds}"] if self.folds else []
        words += ["permuted"] if self.permuted else []
        words += [f"stills{self.stills}"] if self.stills else []
        return "-".join(words + ([f"s{self.seed}"] if self.part < 1 or self.permuted else []))


class SubsetBuilder:
    """Builds each subset of a study once, from the data sets of `catalog`, in `folder`.

    `split`: the split that is reported. `dev`: the fraction of a fold's training groups for the choice of the
    checkpoint.

    >>> SubsetBuilder(catalog, Path("study/data"), "val", 0.1).entry(Subset("kinetics", part=0.1, seed=3))
    """

    def __init__(self, catalog: Catalog, folder: Path, split: str, dev: float) -> None:
        self.catalog, self.folder, self.split, self.dev = catalog, folder, split, dev
        self._excluded: dict[str, Any] = {}
        self._entries: dict[Subset, dict[str, Any]] = {}
        self._counts: dict[Subset, int] = {}
        self._digests: dict[Subset, str] = {}

    def entry(self, subset: Subset) -> dict[str, Any]:
        """The catalog entry of a subset. Its manifests are written first if they do not exist.

        Raises `UserError` if the catalog does not have the data set.
        """
        if subset not in self._entries:
            self._entries[subset] = self._build(subset)
        return self._entries[subset]

    def count(self, subset: Subset) -> int:
        """The number of training clips or images."""
        if subset not in self._counts:
            paths = self.entry(subset)["annotations"]
            self._counts[subset] = len(open_manifest(Path(paths["train"])).usable) if "train" in paths else 0
        return self._counts[subset]

    def lacks(self, subset: Subset) -> bool:
        """Whether a subset has no split to measure on."""
        return MEASURED not in self.entry(subset)["annotations"]

    def digest(self, subset: Subset) -> str:
        """12 hex digits of a hash over sampling and views, and the classes and rows of every split, without paths."""
        if subset not in self._digests:
            self._digests[subset] = self._digest(subset)
        return self._digests[subset]

    def _digest(self, subset: Subset) -> str:
        entry = self.entry(subset)
        content: list[Any] = [{key: entry[key] for key in READ_BY}]
        for split, path in entry["annotations"].items():
            manifest = open_manifest(Path(path))
            rows = [[*(getattr(row, key) for key in KNOWN_BY), *_own_group(row)] for row in manifest.rows()]
            content += [split, manifest.classes.digest, rows]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    def measured(self, subset: Subset) -> Manifest:
        """The manifest of the split to measure on."""
        return open_manifest(Path(self.entry(subset)["annotations"][MEASURED]))

    def _build(self, subset: Subset) -> dict[str, Any]:
        spec, splits = self.catalog.spec(subset.dataset), self._splits(subset)
        paths = {}
        for split, rows in splits.items():
            temporary = self.folder / f".{subset.name}-{split}.{os.getpid()}"
            classes = self._open(subset.dataset, "train").classes
            write_manifest(temporary, subset.dataset, split, "image" if subset.stills else spec.media, classes, rows)
            # The name contains a hash of the content, and an equal file stays. So another call, as with --dry-run,
            # leaves the files of a study that is running as they are.
            path = self.folder / f"{subset.name}-{split}-{open_manifest(temporary).digest()}.arrow"
            if path.is_file() and filecmp.cmp(temporary, path, shallow=False):
                temporary.unlink()
            else:
                temporary.replace(path)
            paths[split] = str(path.absolute())
        entry = prepared_entry(spec, paths)
        return {**entry, "media": "image", "views": "1x1"} if subset.stills else entry

    def _splits(self, subset: Subset) -> dict[str, list[Row]]:
        spec = self.catalog.spec(subset.dataset)
        splits = folded(self._all(spec), subset.folds, subset.fold, self.dev) if subset.folds else self._own(spec)
        if subset.part < 1:
            splits["train"] = part_of(splits["train"], subset.part, subset.seed)
        if subset.permuted:
            for split in TRAINING:
                splits[split] = permuted(splits.get(split, []), subset.seed)
        if subset.stills:
            splits = {"train": self._stills(splits["train"], subset)}
        return {split: rows for split, rows in splits.items() if rows}

    def _own(self, spec: DatasetSpec) -> dict[str, list[Row]]:
        """The data set's own splits. The reported split, if there is one, gets the name `MEASURED`."""
        splits = {split: self._rows(spec.name, split) for split in TRAINING if self._has(spec, split)}
        if self.split in spec.splits:
            splits[MEASURED] = list(self._open(spec.name, self.split).rows())
        return splits

    def _all(self, spec: DatasetSpec) -> list[Row]:
        """All labelled clips of all splits."""
        rows = [row for split in spec.splits if self._has(spec, split) for row in self._rows(spec.name, split)]
        return [row for row in rows if row.label is not None]

    def _has(self, spec: DatasetSpec, split: str) -> bool:
        """Whether a data set has a split. With few sources, a data set may have no `dev`."""
        return split in spec.splits and (split != "dev" or self.catalog.manifest_path(spec.name, split).is_file())

    def _rows(self, name: str, split: str) -> list[Row]:
        """The rows of a split, without those of `train` that `cover overlap` excludes."""
        rows, manifest = enumerate(self._open(name, split).rows()), self._open(name, split)
        if manifest.classes.many:
            raise UserError(f"{manifest.path.name}: a study needs data sets with one class for each sample")
        excluded = set(self._excluded_of(name).tolist()) if split == "train" else set()
        return [row for number, row in rows if number not in excluded]

    def _excluded_of(self, name: str) -> Any:
        if name not in self._excluded:
            self._excluded[name] = (excluded_rows(self.catalog, [name]) or {name: np.zeros(0, np.int64)})[name]
        return self._excluded[name]

    def _open(self, name: str, split: str) -> Manifest:
        return self.catalog.manifest(name, split)

    def _stills(self, rows: Sequence[Row], subset: Subset) -> list[Row]:
        """Rows of JPEG files, which show each clip at equal intervals. The files are written once."""
        ids = hashlib.sha256("\n".join(row.sample_id for row in rows).encode()).hexdigest()[:12]
        folder = self.folder / f"{subset.name}-stills-{ids}"
        folder.mkdir(parents=True, exist_ok=True)
        usable = [row for row in rows if row.state == "ok"]
        return [
            still
            for row in track(usable, f"stills of {subset.dataset}", len(usable))
            for still in stills(row, subset.stills, folder)
        ]


def part_of(rows: Sequence[Row], part: float, seed: int) -> list[Row]:
    """Part of the rows: random groups until every class has the fraction `part` of its clips, at least one.

    A group is taken as a whole. The rows are in the order of `rows`.
    """
    targets: dict[int | None, float] = {}
    for row in rows:
        targets[row.label] = targets.get(row.label, 0) + part
    left = {label: max(1, round(count)) for label, count in targets.items()}  # clips that a class still needs
    by_group: dict[str, list[Row]] = {}
    for row in rows:
        by_group.setdefault(row.group_id, []).append(row)
    names = sorted(by_group)
    chosen: set[str] = set()
    for place in np.random.default_rng([seed, 1]).permutation(len(names)):
        own = by_group[names[place]]
        if any(left[row.label] > 0 for row in own):
            chosen.add(names[place])
            for row in own:
                left[row.label] -= 1
    return [row for row in rows if row.group_id in chosen]


def folded(rows: Sequence[Row], folds: int, fold: int, dev: float) -> dict[str, list[Row]]:
    """The splits for a fold: `MEASURED` is the fold itself; `dev` and `train` hold the other groups.

    `dev` is that of `SubsetBuilder`. Raises `UserError` if there are fewer groups than folds.
    """
    place = deal(rows, folds)
    others = [row for row in rows if place[row.group_id] != fold]
    groups = len({row.group_id for row in others})
    # With few groups, dev has one group. With one group, there is no dev.
    parts = min(groups, max(2, round(1 / dev))) if dev > 0 else 1
    chosen = deal(others, parts) if parts > 1 else dict.fromkeys((row.group_id for row in others), 1)
    return {
        "train": [row for row in others if chosen[row.group_id] != 0],
        "dev": [row for row in others if chosen[row.group_id] == 0],
        MEASURED: [row for row in rows if place[row.group_id] == fold],
    }


def permuted(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows with permuted labels. The number of clips of each class does not change."""
    order = np.random.default_rng([seed, 2]).permutation(len(rows))
    return [replace(row, label=rows[other].label) for row, other in zip(rows, order)]


def stills(row: Row, count: int, folder: Path) -> Iterable[Row]:
    """Rows of `count` images that show a clip at equal intervals. An unreadable clip gives none.

    The images are JPEG files in `folder`. Existing files are reused.
    """
    times = (row.start or 0.0) + (np.arange(count) + 0.5) / count * row.seconds
    stem = row.sample_id.replace("/", "__")
    paths = [folder / f"{stem}-{number}.jpg" for number in range(count)]
    if not all(path.exists() for path in paths):
        try:
            decoded = decode_at(row.source, times.tolist())
        except MediaError:
            return
        for path, shown in zip(paths, decoded.shown):
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            Image.fromarray(decoded.pictures[shown]).save(temporary, "jpeg", quality=95)
            temporary.replace(path)  # an image that is there is whole
    for number, path in enumerate(paths):
        yield replace(
            row,
            sample_id=f"{row.sample_id}#{number}",
            path=str(path.absolute()),
            offset=None,
            length=None,
            start=None,
            end=None,
            frames=1,
            fps=0.0,
            codec="jpeg",
            size=None,
            mtime_ns=None,
        )


def _own_group(row: Row) -> list[str]:
    """The group of a row, if it is not its source; so the digests of data sets without groups stay as they are."""
    return [] if row.group is None else [row.group]
