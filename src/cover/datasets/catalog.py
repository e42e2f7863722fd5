"""The catalog: the data sets of this machine, where they lie and how each is read. A YAML file, checked key by key."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

from cover.datasets.conventions import CONVENTIONS, Convention, convention_of, find_annotations, guess_media
from cover.datasets.files import unpack_hint
from cover.datasets.manifest import SPLITS, Media
from cover.errors import UserError, nearest
from cover.media.clips import Sampling, Views
from cover.yaml_files import is_null, read_yaml, resolve, show

Flip = Literal["allow", "never", "swap"]
_PUBLISHED = ("kinetics", "ssv2", "moments", "imagenet")  # formats whose ids mean the same in every copy
PREPARED = "prepared"  # the format of what `cover prepare` writes: its lists are manifests
_REQUIRED: Any = object()


@dataclass(frozen=True)
class DatasetSpec:
    """One data set of a catalog, its defaults filled in.

    `format`: one of `CONVENTIONS`, or `FILE.py:FUNCTION` with an absolute path.
    `annotations`: split -> path (an absolute one) of a list, or of a folder of class folders. `classes`: path of a file with one name
    per line, if given. `flip`: horizontal flips allowed, never made, or made with left/right classes swapped. `crop_scale`: the area
    range of a random-resized crop. `dev`: the fraction of train to carve out. `source`: the csv column that gives the source id.
    `separator`: what parts the classes in one cell of a multi-label csv file.
    """

    name: str
    format: str
    root: Path
    media: Media
    annotations: dict[str, str]
    classes: str | None
    flip: Flip
    sampling: Sampling
    views: Views
    crop_scale: tuple[float, float]
    dev: float
    source: str | None = None
    separator: str = "|"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are indexed, `dev` among them where it is carved out of train."""
        carved = "dev" if self.dev > 0 and "train" in self.annotations else None
        return tuple(split for split in SPLITS if split in self.annotations or split == carved)

    @property
    def scope(self) -> str:
        """Within what its source ids mean the same: the format where a publisher gives them, else a digest of the root, below which a
        path or a column of one's own means something."""
        if self.format in _PUBLISHED:
            return self.format
        return f"root {sha256(os.path.normpath(self.root).encode(errors='surrogateescape')).hexdigest()[:16]}"


@dataclass(frozen=True)
class Catalog:
    """The data sets of one catalog file, by name."""

    path: Path
    specs: dict[str, DatasetSpec]

    def spec(self, name: str) -> DatasetSpec:
        """The data set called `name`. Raises UserError, naming the nearest, where there is none."""
        if name not in self.specs:
            raise UserError(f'{self.path.name}: no data set "{name}"{nearest(name, self.specs)}')
        return self.specs[name]

    def manifest_path(self, name: str, split: str) -> Path:
        """Where the manifest of a split is. Raises UserError for a data set or a split that the catalog does not have."""
        spec = self.spec(name)
        if split not in spec.splits:
            raise UserError(f'{self.path.name}: {name} has no split "{split}"{nearest(split, spec.splits)}')
        if spec.format == PREPARED:
            return Path(spec.annotations[split])
        return self.path.parent / "manifests" / f"{name}-{split}.arrow"


def load_catalog(path: str | Path) -> Catalog:
    """Read and check a catalog. Raises UserError naming the file, the key and the nearest valid one."""
    path = Path(path).absolute()
    tree = read_yaml(path)
    if not tree:
        raise UserError(f"{path.name}: no data set in it; write one as `name: {{format: folder, root: /data/mine}}`")
    return Catalog(path, {name: _within_reach(path, name, keys) for name, keys in tree.items()})


def _within_reach(path: Path, name: str, given: Any) -> DatasetSpec:
    try:
        return _read_spec(path, name, given)
    except PermissionError as error:
        raise UserError(f"{path.name}: {name}: {error.filename} cannot be read: {error.strerror}; is its folder readable?") from None


class _Keys:
    """The keys of one data set, taken one by one; every complaint names the file, the data set and the key."""

    def __init__(self, where: str, keys: dict[str, Any]) -> None:
        self.where, self.keys = where, keys

    def wrong(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.where}.{key}: {problem}")

    def take(self, key: str, read: Callable[[Any], Any], default: Any = _REQUIRED) -> Any:
        if key not in self.keys:
            if default is _REQUIRED:
                raise self.wrong(key, "missing; it is required")
            return default
        try:
            return read(self.keys[key])
        except UserError as error:
            raise self.wrong(key, str(error)) from None


_KNOWN = ("format", "root", "annotations", "media", "classes", "flip", "sampling", "views", "crop_scale", "dev", "source", "separator")


def _read_spec(path: Path, name: str, given: Any) -> DatasetSpec:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
        raise UserError(f"{path.name}: {name!r} cannot name a data set: use letters, digits, _ and -")
    if not isinstance(given, dict):
        raise UserError(f"{path.name}: {name}: expected keys such as format and root, got {show(given)}")
    keys = _Keys(f"{path.name}: {name}", given)
    for key in given:
        if key not in _KNOWN:
            raise keys.wrong(key, f"unknown key{nearest(key, _KNOWN)}")
    form = keys.take("format", _format_in(path.parent))
    convention = convention_of(form)
    root = path.parent / keys.take("root", _text)
    annotations = _annotations(keys, form, root)
    media = _media(keys, form, annotations)
    classes = keys.take("classes", _text, None)
    return DatasetSpec(
        name=name, format=form, root=root, media=media, annotations=annotations,
        classes=str(root / classes) if classes else None,
        flip=keys.take("flip", _one_of(("allow", "never", "swap")), convention.flip),
        sampling=keys.take("sampling", lambda value: Sampling.parse(_text(value)), Sampling.parse(convention.sampling)),
        views=keys.take("views", lambda value: Views.parse(_text(value)), _views(convention, media)),
        crop_scale=keys.take("crop_scale", _range, convention.crop_scale),
        dev=keys.take("dev", _fraction, 0.0 if "dev" in annotations or form == PREPARED else 0.05),
        source=keys.take("source", _text, None),
        separator=keys.take("separator", _text, "|"),
    )  # fmt: skip


def _annotations(keys: _Keys, form: str, root: Path) -> dict[str, str]:
    given = keys.take("annotations", _paths, None)
    found = find_annotations(form, root) if given is None else {split: str(root / file) for split, file in given.items()}
    if not found and not root.is_dir():
        raise keys.wrong("root", f"{root} {'is not a folder' if root.exists() else 'does not exist'}")
    if not found:
        places = ", ".join(convention_of(form).looked_for)
        hint = unpack_hint(root)
        problem = f"not given, and {root} has none of {places}" if places else "missing; this format needs them"
        raise keys.wrong("annotations", problem + (hint and f"; {hint}"))
    if "dev" in found and keys.take("dev", _fraction, 0.0):
        raise keys.wrong("dev", "annotations give a dev split already; drop one of the two")
    return found


def _media(keys: _Keys, form: str, annotations: dict[str, str]) -> Media:
    convention = convention_of(form).media
    media = keys.take("media", _one_of(("video", "image")), convention or guess_media(annotations))
    if media is None:
        for split, place in annotations.items():
            if not Path(place).exists():
                raise keys.wrong(f"annotations.{split}", f"{place} does not exist")
        hint = next(filter(None, map(unpack_hint, annotations.values())), "") or "write `media: video` or `image`"
        raise keys.wrong("media", f"the file endings do not say whether these are videos or images; {hint}")
    if convention and media != convention:
        raise keys.wrong("media", f"{form} holds {convention}s")
    return cast(Media, media)


def _views(convention: Convention, media: Media) -> Views:
    return Views.parse(convention.views if media == "video" else "1x1")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or is_null(value):
        raise UserError(f"expected text, got {show(value)}")
    return str(value)


def _one_of(known: Any) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise UserError(f"unknown value {show(value)}{nearest(str(value), known)}")
        return str(value)

    return read


def _format_in(folder: Path) -> Callable[[Any], str]:
    """Reads a known format, or `FILE.py:FUNCTION`, the file relative to `folder`."""

    def read(value: Any) -> str:
        file, _, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        if not file.endswith(".py"):
            return _one_of(CONVENTIONS)(value)
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} does not exist")
        return f"{folder / file}:{function}"

    return read


def _paths(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"expected a path for each split, as {{train: train.csv, val: val.csv}}, got {show(value)}")
    for split in value:
        if split not in SPLITS:
            raise UserError(f'unknown split "{split}"{nearest(split, SPLITS)}')
    return {split: _path(split, file) for split, file in value.items()}


def _path(split: str, value: Any) -> str:
    try:
        return _text(value)
    except UserError as error:
        raise UserError(f"{split}: {error}") from None


def _number(value: Any) -> float:
    number = resolve(value)
    if type(number) not in (int, float):
        raise UserError(f"expected a number, got {show(value)}")
    return float(number)


def _fraction(value: Any) -> float:
    number = _number(value)
    if not 0 <= number < 1:
        raise UserError(f"expected a fraction of train from 0 to below 1, got {show(value)}")
    return number


def _range(value: Any) -> tuple[float, float]:
    low, high = map(_number, value) if isinstance(value, list) and len(value) == 2 else (0.0, 0.0)
    if not 0 < low <= high <= 1:
        raise UserError(f"expected [low, high] with 0 < low <= high <= 1, got {show(value)}")
    return low, high
