"""What does a recipe mix? Sizes, classes and make-up of a step, from manifests where there are any, else from published sizes or as told.

So a run can be planned on a machine that holds none of its data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cover.datasets.catalog import Catalog, load_catalog
from cover.datasets.conventions import CONVENTIONS
from cover.datasets.manifest import Manifest, Media, open_manifest
from cover.errors import UserError
from cover.mixture.loader import Member
from cover.mixture.schedule import Group, Source, rates_by, split_batch, steps_for
from cover.model.release import find_release, read_config
from cover.training.recipe import Recipe
from cover.training.train import find_members
from cover.yaml_files import read_yaml

ANY_FORM = ("prepared", "folder", "csv", "list")  # in which a published data set may lie too
SIZES_READ = 1000  # rows of a manifest that its mean file size is taken from


@dataclass(frozen=True)
class Holding:
    """The training rows of one data set. `names` of its classes where they are known, `file_bytes` of a file on average.

    `origin`: the manifest, the options, or published figures.
    """

    name: str
    media: Media
    rows: int
    classes: int
    origin: Literal["manifest", "given", "published"]
    form: str | None = None
    names: tuple[str, ...] | None = None
    file_bytes: float | None = None


@dataclass(frozen=True)
class _Published:
    pattern: str  # of a data set's name
    form: str
    media: Media
    rows: int
    classes: int
    file_bytes: float | None = None


# Training rows of the copies that people train on: mmaction2's lists (Kinetics, ImageNet-1k), the data set's page (Something-Something V2,
# 19.4 GB in 220,847 files; the whole ImageNet), MTV's count (Moments in Time v1). The first of a format is what its name alone means.
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
    """`ssv2=168913,mine=5000` as name -> number. Raises `UserError`."""
    found: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        if not re.fullmatch(r"\s*[A-Za-z0-9][\w-]*\s*", name) or not re.fullmatch(r"\s*\d+(\.\d+)?\s*", value) or not float(value):
            raise UserError(f'{option}: "{part}" is no NAME=NUMBER above 0; write for example {option} ssv2=168913,mine=5000')
        found[name.strip()] = float(value)
    return found


def find_holdings(
    recipe: Recipe, sizes: Mapping[str, float], classes: Mapping[str, float], file_kb: Mapping[str, float]
) -> tuple[list[Holding], list[Member] | None]:
    """The data sets of a recipe in its order, and its members where all of them have a manifest.

    `sizes`, `classes`, `file_kb` (kB a file) by name stand before everything else. Raises `UserError` where a size is not to be found.
    """
    for option, given in (("--sizes", sizes), ("--classes", classes), ("--file-kb", file_kb)):
        for name in given:
            if name not in recipe.data.sets:
                raise UserError(f'{option}: "{name}" is not one of the recipe\'s data.sets ({", ".join(recipe.data.sets)})')
    path = Path(recipe.data.catalog)
    catalog, entries = _catalog(path), _entries(path)
    manifests = {name: _manifest(catalog, path, name) for name in recipe.data.sets}
    members = find_members(recipe, catalog) if catalog and all(manifests.values()) else None
    found = {member.spec.name: _of_manifest(member.spec.name, member.manifest, member.spec.format) for member in members or ()}
    for name, place in manifests.items():
        if name not in found and place:
            found[name] = _of_manifest(name, open_manifest(place), entries.get(name, {}).get("format"))
    holdings = [found.get(name) or _otherwise(name, entries.get(name, {}), sizes, classes) for name in recipe.data.sets]
    return [_told(each, sizes, classes, file_kb) for each in holdings], members


def _told(holding: Holding, sizes: Mapping[str, float], classes: Mapping[str, float], file_kb: Mapping[str, float]) -> Holding:
    """A holding as the options will have it."""
    name = holding.name
    if name in file_kb:
        holding = replace(holding, file_bytes=1e3 * file_kb[name])
    if name in sizes:
        holding = replace(holding, rows=int(sizes[name]), origin="given")
    return replace(holding, classes=int(classes[name]), names=None, origin="given") if name in classes else holding


def _catalog(path: Path) -> Catalog | None:
    """The catalog, None where it or what it names is not on this machine: `cover plan` then does without."""
    try:
        return load_catalog(path)
    except UserError:
        return None


def _entries(path: Path) -> dict[str, Any]:
    """What the catalog says of each data set, nothing of it checked. Raises `UserError` where it is there and is no catalog."""
    if not path.is_file():
        return {}
    return {name: entry for name, entry in read_yaml(path).items() if isinstance(entry, dict)}


def _manifest(catalog: Catalog | None, path: Path, name: str) -> Path | None:
    if catalog is not None and name in catalog.specs and "train" in catalog.specs[name].splits:
        place = catalog.manifest_path(name, "train")
    else:
        place = path.parent / "manifests" / f"{name}-train.arrow"
    return place if place.is_file() else None


def _of_manifest(name: str, manifest: Manifest, form: str | None) -> Holding:
    classes = manifest.classes.names
    return Holding(name, manifest.media, len(manifest.usable), len(classes), "manifest", form, classes, _mean_file(manifest))


def _mean_file(manifest: Manifest) -> float | None:
    """Bytes of a sample's file, or of its stretch of a shard, over evenly chosen usable rows."""
    usable = manifest.usable
    chosen = usable[:: max(1, len(usable) // SIZES_READ)]
    rows = [manifest.row(int(number)) for number in chosen]
    sizes = [size for row in rows if (size := row.size if row.length is None else row.length) is not None]
    return float(np.mean(sizes)) if sizes else None


def _otherwise(name: str, entry: Mapping[str, Any], sizes: Mapping[str, float], classes: Mapping[str, float]) -> Holding:
    """A data set without a manifest."""
    form = entry.get("format")
    published = _published(name, form)
    rows = sizes.get(name, published.rows if published else None)
    count = classes.get(name, published.classes if published else None)
    if rows is None or count is None:
        option, value = ("--sizes", "SAMPLES") if rows is None else ("--classes", "CLASSES")
        raise UserError(f"{name}: it has no manifest and no published size; run cover index, or give {option} {name}={value}")
    media = entry.get("media") or (published.media if published else None) or _media_of(form)
    if media not in ("video", "image"):
        raise UserError(f"{name}: videos or images? write `media: video` or `image` at {name} in the catalog")
    return Holding(name, media, int(rows), int(count), "published", form, None, published.file_bytes if published else None)


def _media_of(form: Any) -> Media | None:
    convention = CONVENTIONS.get(str(form))
    return convention.media if convention else None


def _published(name: str, form: Any) -> _Published | None:
    """By the data set's name, else by its format; an ImageNet that is told to be another one, such as 21k, has none."""
    for each in PUBLISHED:
        if re.fullmatch(each.pattern, name, re.IGNORECASE) and form in (None, each.form, *ANY_FORM):
            return each
    numbered = re.search(r"\d{2}", name)
    return None if numbered else next((each for each in PUBLISHED if each.form == form), None)


def classes_of_heads(recipe: Recipe, holdings: Sequence[Holding]) -> dict[str, int]:
    """Head -> classes. Of a shared head the union by name; where names are not known their sum, which is the most it can be."""
    head_of = {name: head for head, names in recipe.data.heads.items() for name in names}
    served: dict[str, list[Holding]] = {}
    for each in holdings:
        served.setdefault(head_of.get(each.name, each.name), []).append(each)
    return {head: _union(members) for head, members in served.items()}


def _union(members: Sequence[Holding]) -> int:
    if all(each.names is not None for each in members):
        return len({name for each in members for name in each.names or ()})
    return sum(each.classes for each in members)


def classes_kept(recipe: Recipe, trained: Mapping[str, int]) -> dict[str, int]:
    """Head -> classes of what the starting checkpoint adds to the heads `trained` (`start.heads: keep`); none where it is not here."""
    if recipe.start.heads == "drop":
        return {}
    try:
        theirs = read_config(find_release(recipe.start.checkpoint)).heads
    except UserError:
        return {}
    return {head.name: len(head.classes) for head in theirs if head.name not in trained}


def step_groups(recipe: Recipe, holdings: Sequence[Holding], devices: int) -> tuple[Group, ...]:
    """What a step holds over all devices. Raises `UserError` where it cannot be shared out over them."""
    rates = rates_by({each.name: each.rows for each in holdings}, recipe.data.alpha, recipe.data.weights, recipe.data.epochs)
    sources = [_source(recipe, each, rates[each.name]) for each in holdings]
    mixing = bool(recipe.augment.mixup or recipe.augment.cutmix)
    return split_batch(sources, recipe.batch, devices * recipe.accumulation, mixing)


def steps_of(recipe: Recipe, holdings: Sequence[Holding]) -> int:
    """Optimizer steps, also where the recipe leaves them to the wanted epochs of its data sets."""
    return recipe.steps or steps_for({each.name: each.rows for each in holdings}, recipe.data.epochs, recipe.batch)


def _source(recipe: Recipe, holding: Holding, rate: Any) -> Source:
    frames = recipe.data.frames if holding.media == "video" else 1
    rows = np.broadcast_to(np.int64(0), holding.rows)  # their number is all that is asked for
    return Source(holding.name, rows, frames, rate, recipe.data.crops if frames > 1 else 1)


def drawn_by_the_end(groups: Sequence[Group], steps: int) -> dict[str, float]:
    """Samples of each data set in `steps` steps: what the schedule draws is this, rounded up or down."""
    return {
        source.name: float(steps * group.samples * share)
        for group in groups
        for source, share in zip(group.sources, group.shares, strict=True)
    }
