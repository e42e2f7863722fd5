"""Mixtures for a plan, on a machine that may not have the data.

The sizes come from manifests, from the command line, or from the published figures of known data sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cover.datasets.catalog import CONVENTIONS, Catalog, load_catalog
from cover.datasets.manifest import ClassList, Manifest, open_manifest
from cover.errors import UserError
from cover.media.source import Media
from cover.mixture.dataset import MixtureDataset, rows_of_size
from cover.mixture.mixture import Mixture
from cover.mixture.rates import Data
from cover.yaml_files import read_yaml

ANY_FORMAT = ("prepared", "folder", "csv", "list")  # a published data set may also be stored in one of these
SIZES_READ = 1000  # manifest rows that the mean file size is computed from


@dataclass(frozen=True)
class _Published:
    pattern: str  # regular expression for the data set's name
    format: str
    media: Media
    rows: int
    classes: int
    file_bytes: float | None = None


# Training rows of the copies that are in use. Sources: mmaction2's lists (Kinetics, ImageNet-1k), the data set's own
# page (Something-Something V2 with 19.4 GB in 220,847 files, and the whole ImageNet), the MTV paper (Moments in Time
# v1). If only the format of a data set is known, the first entry of that format is used.
PUBLISHED = (
    _Published(r"k(inetics)?[-_]?400", "kinetics", "video", 240_436, 400),
    _Published(r"k(inetics)?[-_]?600", "kinetics", "video", 383_393, 600),
    _Published(r"k(inetics)?[-_]?700", "kinetics", "video", 542_357, 700),
    _Published(r"ssv2|something.*", "ssv2", "video", 168_913, 174, 19.4e9 / 220_847),
    _Published(r"mit|moments.*", "moments", "video", 791_297, 339),
    _Published(r"imagenet([-_]?1k)?|in[-_]?1k", "imagenet", "image", 1_281_167, 1000),
    _Published(r"imagenet[-_]?2[12]k|in[-_]?2[12]k", "imagenet", "image", 14_197_122, 21_841),
)


def read_numbers(option: str, text: str) -> dict[str, float]:
    """Parse `ssv2=168913,mine=5000` into name -> number. Raises `UserError`, which names the option, for other text."""
    numbers: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        good = re.fullmatch(r"\s*[A-Za-z0-9][\w-]*\s*", name) and re.fullmatch(r"\s*\d+(\.\d+)?\s*", value)
        if not good or not float(value):
            raise UserError(
                f'{option}: "{part}" is no NAME=NUMBER above 0; write for example {option} ssv2=168913,mine=5000'
            )
        numbers[name.strip()] = float(value)
    return numbers


def planned_mixture(
    data: Data,
    sizes: Mapping[str, float] | None = None,
    classes: Mapping[str, float] | None = None,
    file_kb: Mapping[str, float] | None = None,
) -> Mixture:
    """The mixture of a recipe's `data`, from manifests on this machine or from published figures.

    `sizes` (rows), `classes` and `file_kb` (kB per file) map data set names to numbers that replace these figures.
    Samples can be read (`MixtureDataset.source`) only if every data set has a manifest. Raises `UserError` if the size
    of a data set is not known.
    """
    sizes, classes, file_kb = sizes or {}, classes or {}, file_kb or {}
    data.check()
    for option, value in (("--sizes", sizes), ("--classes", classes), ("--file-kb", file_kb)):
        for name in value:
            if name not in data.sets:
                raise UserError(f'{option}: "{name}" is not one of the recipe\'s data.sets ({", ".join(data.sets)})')
    datasets = _datasets_of(data, sizes, classes)
    return Mixture(data, [_from_options(each, sizes, classes, file_kb) for each in datasets])


def _datasets_of(data: Data, sizes: Mapping[str, float], classes: Mapping[str, float]) -> list[MixtureDataset]:
    path = Path(data.catalog)
    catalog, entries = _catalog(path), _entries(path)
    manifests = {name: _manifest(catalog, path, name) for name in data.sets}
    if catalog and all(manifests.values()):
        opened = Mixture.open(data, catalog)
        return [replace(each, file_bytes=_mean_file(each.manifest)) for each in opened.datasets]
    return [
        _from_manifest(name, open_manifest(place), entries.get(name, {}).get("format"))
        if place
        else _from_published(name, entries.get(name, {}), sizes, classes)
        for name, place in manifests.items()
    ]


def _from_options(
    dataset: MixtureDataset, sizes: Mapping[str, float], classes: Mapping[str, float], file_kb: Mapping[str, float]
) -> MixtureDataset:
    """The data set with the numbers from the command line in place of its own."""
    name = dataset.name
    if name in file_kb:
        dataset = replace(dataset, file_bytes=1e3 * file_kb[name])
    if name in sizes:
        dataset = replace(dataset, rows=rows_of_size(sizes[name]), origin="given")
    return replace(dataset, classes=_unnamed(name, classes[name]), origin="given") if name in classes else dataset


def _unnamed(dataset: str, count: float) -> ClassList:
    """A class list of `count` placeholder names.

    No other data set has these names, so a shared head gets the largest size that it can have.
    """
    return ClassList.of([f"{dataset}: class {number}" for number in range(int(count))], "not known")


def _catalog(path: Path) -> Catalog | None:
    """The catalog, or None if it is not valid on this machine. A plan works without it."""
    try:
        return load_catalog(path)
    except UserError:
        return None


def _entries(path: Path) -> dict[str, Any]:
    """The entries of a catalog file, unchecked. Raises `UserError` if the file is not valid YAML."""
    if not path.is_file():
        return {}
    return {name: entry for name, entry in read_yaml(path).items() if isinstance(entry, dict)}


def _manifest(catalog: Catalog | None, path: Path, name: str) -> Path | None:
    if catalog is not None and name in catalog.specs and "train" in catalog.specs[name].splits:
        place = catalog.manifest_path(name, "train")
    else:
        place = path.parent / "manifests" / f"{name}-train.arrow"
    return place if place.is_file() else None


def _from_manifest(name: str, manifest: Manifest, form: str | None) -> MixtureDataset:
    """A data set from its manifest alone. Its catalog entry is not valid on this machine."""
    media, size = manifest.media, _mean_file(manifest)
    return MixtureDataset(name, manifest.usable, media=media, classes=manifest.classes, format=form, file_bytes=size)


def _mean_file(manifest: Manifest) -> float | None:
    """Mean bytes of a sample (its file, or its byte range of a shard) over evenly spaced usable rows."""
    usable = manifest.usable
    chosen = usable[:: max(1, len(usable) // SIZES_READ)]
    rows = [manifest.row(int(number)) for number in chosen]
    sizes = [size for row in rows if (size := row.size if row.length is None else row.length) is not None]
    return float(np.mean(sizes)) if sizes else None


def _from_published(
    name: str, entry: Mapping[str, Any], sizes: Mapping[str, float], classes: Mapping[str, float]
) -> MixtureDataset:
    """A data set without a manifest, from the options and the published figures. Raises `UserError` if they lack it."""
    form = entry.get("format")
    published = _published(name, form)
    rows = sizes.get(name, published.rows if published else None)
    count = classes.get(name, published.classes if published else None)
    if rows is None or count is None:
        option, value = ("--sizes", "SAMPLES") if rows is None else ("--classes", "CLASSES")
        raise UserError(
            f"{name}: it has no manifest and no published size; run cover index, or give {option} {name}={value}"
        )
    media = entry.get("media") or (published.media if published else None) or _media_of(form)
    if media not in ("video", "image"):
        raise UserError(f"{name}: videos or images? write `media: video` or `image` at {name} in the catalog")
    size = published.file_bytes if published else None
    dataset = MixtureDataset.of_size(name, media, rows, _unnamed(name, count))
    return replace(dataset, format=form, origin="published", file_bytes=size)


def _media_of(form: str | None) -> Media | None:
    convention = CONVENTIONS.get(str(form))
    return convention.media if convention else None


def _published(name: str, form: str | None) -> _Published | None:
    """The published figures of a data set, by its name, otherwise by its format; None if there are none.

    A name with two digits names an edition, such as `imagenet30k`. An unknown edition has no published figures.
    """
    for each in PUBLISHED:
        if re.fullmatch(each.pattern, name, re.IGNORECASE) and form in (None, each.format, *ANY_FORMAT):
            return each
    numbered = re.search(r"\d{2}", name)
    return None if numbered else next((each for each in PUBLISHED if each.format == form), None)
