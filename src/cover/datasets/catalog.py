"""Catalogs: the data sets of a machine, with their folders, clip sampling and evaluation views.

A catalog is a YAML file, name -> entry. Every format has defaults for the keys that an entry leaves out: the paths of
the annotation lists, the kind of media, clip sampling, evaluation views and flips.

Sampling and views are those of the papers. TimeSformer samples Kinetics densely and Something-Something by segments,
with one clip and three crops. A Moments clip lasts 3 s and is sampled as a whole. The formats `folder`, `csv` and
`list` use segments, which work for clips of any length. Their crops are larger than those of the published sets
(`USER_CROPS`), because a user's set is mostly small and trained for fewer steps. Something-Something is not flipped
unless the catalog says `swap`, because its labels name left and right.
"""

from __future__ import annotations

import csv
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from cover.datasets.files import media_of, subfolders, unpack_hint, walk
from cover.datasets.hub_roots import download, is_hub_root, local_folder
from cover.datasets.manifest import SPLITS, Manifest, open_manifest, root_below
from cover.errors import UserError, nearest
from cover.media.sampling import Sampling, Views
from cover.media.source import Media
from cover.yaml_files import is_null, read_yaml, resolve, show

USER_CROPS = (0.6, 1.0)  # area of random crops; docs/learning.md has a comparison with (0.3, 1.0)


@dataclass(frozen=True)
class Convention:
    """The defaults of a format.

    `lists`: split -> paths below the root. The first path that exists is used. `media`: None if a data set of the
    format may have videos or images. `stratified`: whether a carved dev split has its fraction of every class; if not,
    a hash of the source id alone decides. The other fields are those of `DatasetSpec`.
    """

    lists: dict[str, tuple[str, ...]]
    media: Media | None
    sampling: str = "segments"
    views: str = "1x3"
    flip: Literal["allow", "never", "swap"] = "allow"
    crop_scale: tuple[float, float] = (0.3, 1.0)
    stratified: bool = False

    @property
    def places(self) -> list[str]:
        """All paths in `lists`, each once."""
        return list(dict.fromkeys(chain.from_iterable(self.lists.values())))


def _ssv2_lists(name: str) -> tuple[str, ...]:
    """The places of one list of Something-Something v2. Newer downloads have the short names."""
    full = f"something-something-v2-{name}.json"
    return full, f"labels/{full}", f"labels/{name}.json", f"{name}.json"


_FOLDERS = {"train": ("train",), "dev": ("dev",), "val": ("val", "validation", "valid"), "test": ("test",)}
CONVENTIONS: dict[str, Convention] = {
    "kinetics": Convention(
        {
            "train": ("annotations/train.csv", "train.csv"),
            "val": ("annotations/val.csv", "val.csv", "annotations/validate.csv", "validate.csv"),
            "test": ("annotations/test.csv", "test.csv"),
        },
        "video",
        sampling="dense",
    ),
    "ssv2": Convention(
        {"train": _ssv2_lists("train"), "val": _ssv2_lists("validation"), "test": _ssv2_lists("test")},
        "video",
        flip="never",
        crop_scale=(0.5, 1.0),
    ),
    "moments": Convention({"train": ("trainingSet.csv",), "val": ("validationSet.csv",)}, "video", sampling="whole"),
    "imagenet": Convention(
        {"train": ("train", "ILSVRC/Data/CLS-LOC/train"), "val": ("val", "ILSVRC/Data/CLS-LOC/val")}, "image"
    ),
    "folder": Convention(_FOLDERS, None, crop_scale=USER_CROPS, stratified=True),
    "csv": Convention({split: (f"{split}.csv",) for split in _FOLDERS}, None, crop_scale=USER_CROPS, stratified=True),
    "list": Convention(
        {split: (f"{split}.txt", f"annotations/{split}.txt", f"{split}.csv") for split in _FOLDERS},
        None,
        crop_scale=USER_CROPS,
        stratified=True,
    ),
    "splits": Convention(
        {
            "train": ("ucfTrainTestlist/trainlist01.txt", "trainlist01.txt", "testTrainMulti_7030_splits"),
            "test": ("ucfTrainTestlist/testlist01.txt", "testlist01.txt", "testTrainMulti_7030_splits"),
        },
        "video",
    ),
    "prepared": Convention({}, None),
}


def convention_of(form: str) -> Convention:
    """The defaults of a format. A user's own format (`FILE.py:FUNCTION`) has the general defaults."""
    return CONVENTIONS.get(form, Convention({}, None, stratified=True))


def find_annotations(form: str, root: Path) -> dict[str, str]:
    """Split -> absolute path of its annotation list or folder, at the usual places of the format.

    A `folder` or `imagenet` (21k) data set with class folders directly in its root has only a train split.
    """
    paths: dict[str, str] = {}
    for split, places in convention_of(form).lists.items():
        for place in places:
            if split not in paths and (root / place).exists():
                paths[split] = str(root / place)
    if not paths and any(_is_class_folder(form, name) for name in subfolders(root)):
        return {"train": str(root)}
    return paths


def _is_class_folder(form: str, name: str) -> bool:
    return form == "folder" or (form == "imagenet" and re.fullmatch(r"n\d{8}", name) is not None)


def guess_media(annotations: dict[str, str]) -> Media | None:
    """The kind of media, from the first file name with a known ending. None if there is none in the first 1000."""
    for place in annotations.values():
        samples = walk(place, None) if Path(place).is_dir() else _cells(Path(place))
        for sample in islice(samples, 1000):
            if media := media_of(sample):
                return media
    return None


def _cells(file: Path) -> Iterator[str]:
    """The words of a list. Errors in the list are ignored here, because its format reports them."""
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
            yield from (word for cells in csv.reader(lines) for cell in cells for word in cell.split())
    except (OSError, csv.Error):
        return


Flip = Literal["allow", "never", "swap"]
_PUBLISHED = (
    "kinetics",
    "ssv2",
    "moments",
    "imagenet",
)  # formats whose source ids are the same in every copy
_GROUPED = ("csv", "folder", "list")  # formats with the key `group`; a user's own format may have it too
PREPARED = "prepared"  # the format that `cover prepare` writes; its annotation lists are manifests
_REQUIRED: Any = object()


@dataclass(frozen=True)
class GroupRule:
    """Where the group of a sample comes from. One of the two fields is set.

    `column`: a column of the csv file. An empty cell means that the source is the group. `path`: a regular expression
    that is searched in the path of a sample, as it is listed. Its first capturing group is the group, or the whole
    match without one.
    """

    column: str | None = None
    path: str | None = None

    def of_path(self, path: str, where: str, name: str) -> str | None:
        """The group of a path, None for a column. `where`: the row, for messages. `name`: the data set.

        Raises UserError if the pattern does not match the path.
        """
        if self.path is None:
            return None
        match = re.search(self.path, path)
        group = match and match[1 if match.re.groups else 0]
        if not group:
            raise UserError(f"{where}: {name}.group.path: the pattern {self.path} finds no group in {path}")
        return group


@dataclass(frozen=True)
class DatasetSpec:
    """One data set of a catalog, with all defaults filled in.

    `format`: a key of `CONVENTIONS`, or `FILE.py:FUNCTION` with an absolute path.
    `annotations`: split -> absolute path of a list, or of a folder with class folders.
    `classes`: path of a file with one class name per line, or None.
    `flip`: horizontal flips are allowed, never done, or done with left and right exchanged in the class (`swap`).
    `sampling`, `views`: clip sampling of training and views of evaluation.
    `crop_scale`: lowest and highest area of a random-resized crop, as fractions of the frame.
    `dev`: fraction of the train split that becomes the dev split.
    `source`: name of the csv column with the source id, or None.
    `group`: the rule for the groups, which stay on one side of a split. None if the source of a sample is its group.
    `separator`: text between the classes in one cell of a multi-label csv file.
    `given_root`: the key `root` as the catalog has it; it may be relative to the catalog's folder.
    `columns`: our name of a csv column (`path`, `label`, ...) -> its name in the file.
    `stills`: whether a data set of videos also has pictures. Each is a clip that repeats its one frame.
    `licence`: the terms of the data set, for model cards; empty if the catalog does not say them.
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
    group: GroupRule | None = None
    given_root: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    stills: bool = False
    licence: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data set, in the order of `SPLITS`. `dev` is included if it is carved out of train."""
        carved = "dev" if self.dev > 0 and "train" in self.annotations else None
        return tuple(split for split in SPLITS if split in self.annotations or split == carved)

    @property
    def scope(self) -> str:
        """The namespace of the source ids. Equal ids of two data sets match only within one scope.

        It is the format if a publisher assigns the ids. Otherwise it is a digest of the root folder.
        """
        if self.format in _PUBLISHED:
            return self.format
        return f"root {sha256(os.path.normpath(self.root).encode(errors='surrogateescape')).hexdigest()[:16]}"


@dataclass(frozen=True)
class Catalog:
    """The data sets of one catalog file, by name. `not_loaded`: those on the Hub that were not downloaded yet."""

    path: Path
    specs: dict[str, DatasetSpec]
    not_loaded: tuple[str, ...] = ()

    def spec(self, name: str) -> DatasetSpec:
        """The data set `name`. Raises UserError, with the nearest name, if the catalog does not have it."""
        if name in self.not_loaded:
            command = self.index_command(name)
            raise UserError(f"{self.path.name}: {name}.root: was not downloaded, or is gone; run `{command}`")
        if name not in self.specs:
            raise UserError(f'{self.path.name}: no data set "{name}"{nearest(name, self.specs)}')
        return self.specs[name]

    def manifest_path(self, name: str, split: str) -> Path:
        """The path of a split's manifest. Raises UserError if the catalog does not have the data set or the split."""
        spec = self.spec(name)
        if split not in spec.splits:
            raise UserError(f'{self.path.name}: {name} has no split "{split}"{nearest(split, spec.splits)}')
        if spec.format == PREPARED:
            return Path(spec.annotations[split])
        return self.path.parent / "manifests" / f"{name}-{split}.arrow"

    def manifest(self, name: str, split: str, without: npt.NDArray[np.int64] | None = None) -> Manifest:
        """The manifest of a split, with the rows `without` (int64) not usable.

        Raises UserError as `manifest_path` and `open_manifest`, and if the manifest lists files of another folder than
        the root in the catalog, as after a copy or a change of the catalog.
        """
        path, spec = self.manifest_path(name, split), self.spec(name)
        carved = split == "dev" and "dev" not in spec.annotations
        if carved and not path.is_file() and self.has_manifest(name, "train"):
            raise UserError(
                f"{name} has no dev split: `cover index` could carve none out of its training samples, and says why;"
                f" raise its key dev in {self.path.name}, evaluate on another split, or use --folds"
            )
        manifest = open_manifest(path, without)
        if spec.format != PREPARED and not manifest.is_below(spec.root):
            raise UserError(
                f"{manifest.path}: lists files of another folder than the root of {name}, {spec.root};"
                f" run `{self.index_command(name)}`"
            )
        return manifest

    def has_manifest(self, name: str, split: str) -> bool:
        """Whether a data set has a split that is indexed. A small data set may have no `dev`."""
        return split in self.spec(name).splits and self.manifest_path(name, split).is_file()

    def index_command(self, *names: str) -> str:
        """The command that writes the manifests of data sets."""
        return shlex.join(["cover", "index", str(self.path), *names])


def load_catalog(path: str | Path) -> Catalog:
    """Read and check a catalog. Raises UserError, with the file, the key and the nearest valid key."""
    path = Path(path).absolute()
    tree = read_yaml(path)
    if not tree:
        raise UserError(f"{path.name}: no data set in it; write one as `name: {{format: folder, root: /data/mine}}`")
    specs = {name: _read_entry(path, name, keys) for name, keys in tree.items()}
    there = {name: spec for name, spec in specs.items() if spec is not None}
    return Catalog(path, there, tuple(name for name in specs if name not in there))


def download_roots(path: str | Path, names: Sequence[str] | None = None, update: bool = False) -> None:
    """Download the data sets `names` (default: all) that are on the Hub. `update`: their newest version.

    Raises UserError for an invalid catalog or root, or if the Hub does not give it.
    """
    path = Path(path).absolute()
    for name, keys in read_yaml(path).items():
        root = keys.get("root") if isinstance(keys, dict) else None
        if is_hub_root(root) and (names is None or name in names):
            try:
                download(path, str(root), update)
            except UserError as error:
                raise UserError(f"{path.name}: {name}.root: {error}") from None


# --- reading one entry ---


def _read_entry(path: Path, name: str, value: Any) -> DatasetSpec | None:
    """One data set, None if it is on the Hub and was not downloaded yet."""
    try:
        return _read_spec(path, name, value)
    except PermissionError as error:
        raise UserError(
            f"{path.name}: {name}: {error.filename} cannot be read: {error.strerror}; is its folder readable?"
        ) from None


class _Keys:
    """The keys of one entry. Every error names the file, the data set and the key."""

    def __init__(self, where: str, keys: dict[str, Any]) -> None:
        self.where, self.keys = where, keys

    def wrong(self, key: str, problem: str) -> UserError:
        """The error for the value of a key."""
        return UserError(f"{self.where}.{key}: {problem}")

    def take(self, key: str, read: Callable[[Any], Any], default: Any = _REQUIRED) -> Any:
        """The value of a key, checked and converted by `read`, or the default. Raises UserError."""
        if key not in self.keys:
            if default is _REQUIRED:
                raise self.wrong(key, "missing; it is required")
            return default
        try:
            return read(self.keys[key])
        except UserError as error:
            raise self.wrong(key, str(error)) from None


_KNOWN = tuple(field.name for field in fields(DatasetSpec) if field.name not in ("name", "given_root"))


def _read_spec(path: Path, name: str, values: Any) -> DatasetSpec | None:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name, re.ASCII):
        raise UserError(f"{path.name}: {name!r} cannot name a data set: use letters, digits, _ and -")
    if not isinstance(values, dict):
        raise UserError(f"{path.name}: {name}: expected keys such as format and root, got {show(values)}")
    keys = _Keys(f"{path.name}: {name}", values)
    for key in values:
        if key not in _KNOWN:
            raise keys.wrong(key, f"unknown key{nearest(key, _KNOWN)}")
    form = keys.take("format", _format_in(path.parent))
    convention = convention_of(form)
    given_root = keys.take("root", _text)
    if is_hub_root(given_root):
        folder = keys.take("root", lambda text: local_folder(path, str(text)))
        if folder is None:
            return None
        given_root = str(folder)
    root = root_below(path.parent, given_root)
    annotations = _annotations(keys, form, root)
    media = _media(keys, form, annotations)
    classes = keys.take("classes", _text, None)
    columns = keys.take("columns", _columns_in(form), {})
    for column in ("source", "group"):
        if column in columns and column in values:
            raise keys.wrong(column, f"columns.{column} names the column already; drop one of the two")
    return DatasetSpec(
        name=name,
        format=form,
        root=root,
        media=media,
        annotations=annotations,
        classes=str(root / classes) if classes else None,
        flip=keys.take("flip", _one_of(("allow", "never", "swap")), convention.flip),
        sampling=keys.take("sampling", lambda value: Sampling.parse(_text(value)), Sampling.parse(convention.sampling)),
        views=keys.take("views", lambda value: Views.parse(_text(value)), _views(convention, media)),
        crop_scale=keys.take("crop_scale", _range, convention.crop_scale),
        dev=keys.take("dev", _fraction, 0.0 if "dev" in annotations or form == PREPARED else 0.05),
        source="source" if "source" in columns else keys.take("source", _text, None),
        separator=keys.take("separator", _text, "|"),
        group=GroupRule("group") if "group" in columns else keys.take("group", _group_in(form), None),
        given_root=given_root,
        columns=columns,
        stills=keys.take("stills", _stills_in(media), False),
        licence=keys.take("licence", _text, ""),
    )


def _annotations(keys: _Keys, form: str, root: Path) -> dict[str, str]:
    given = keys.take("annotations", _paths, {})
    paths = {split: str(root / file) for split, file in given.items()} or find_annotations(form, root)
    if not paths and not root.is_dir():
        raise keys.wrong("root", f"{root} {'is not a folder' if root.exists() else 'does not exist'}")
    if not paths:
        places = ", ".join(convention_of(form).places)
        hint = unpack_hint(root)
        problem = f"not given, and {root} has none of {places}" if places else "missing; this format needs them"
        raise keys.wrong("annotations", problem + (hint and f"; {hint}"))
    if "dev" in paths and keys.take("dev", _fraction, 0.0):
        raise keys.wrong("dev", "annotations give a dev split already; drop one of the two")
    return paths


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


def _stills_in(media: Media) -> Callable[[Any], bool]:
    """A reader of the key `stills` in an entry of a kind of media."""

    def read(value: Any) -> bool:
        found = resolve(value)
        if not isinstance(found, bool):
            raise UserError(f"expected true or false, got {show(value)}")
        if found and media == "image":
            raise UserError("goes with media: video, where it adds the pictures")
        return found

    return read


def _views(convention: Convention, media: Media) -> Views:
    return Views.parse(convention.views if media == "video" else "1x1")


# --- values of keys ---


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
    """A reader of the key `format`: a known format, or `FILE.py:FUNCTION` with a path relative to `folder`."""

    def read(value: Any) -> str:
        file, _, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        if not file.endswith(".py"):
            return _one_of(CONVENTIONS)(value)
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} does not exist")
        return f"{folder / file}:{function}"

    return read


COLUMNS = ("path", "label", "class", "labels", "classes", "split", "start", "end", "source", "group")


def _columns_in(form: str) -> Callable[[Any], dict[str, str]]:
    """A reader of the key `columns` in an entry of the format `form`: our name of a csv column -> its name there."""

    def read(value: Any) -> dict[str, str]:
        if form != "csv":
            raise UserError(f"goes with csv; {form} has no columns")
        if not isinstance(value, dict) or not value:
            raise UserError(f"expected names of columns, as {{path: file, label: activity}}, got {show(value)}")
        for column in value:
            if column not in COLUMNS:
                raise UserError(f'unknown column "{column}"{nearest(str(column), COLUMNS)}')
        return {column: _named_text(column, name) for column, name in value.items()}

    return read


def _group_in(form: str) -> Callable[[Any], GroupRule]:
    """A reader of the key `group` in an entry of the format `form`."""

    def read(value: Any) -> GroupRule:
        if form in CONVENTIONS and form not in _GROUPED:
            raise UserError(f"goes with {', '.join(_GROUPED)}; the groups of {form} are its source ids")
        if isinstance(value, dict) and set(value) == {"path"}:
            return GroupRule(path=_pattern(value["path"]))
        if isinstance(value, dict) or form != "csv":
            raise UserError(f"expected {{path: PATTERN}}, got {show(value)}")
        return GroupRule(column=_text(value))

    return read


def _pattern(value: Any) -> str:
    text = _text(value)
    try:
        re.compile(text)
    except re.error as error:
        raise UserError(f"path: {text} is no regular expression: {error}") from None
    return text


def _paths(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"expected a path for each split, as {{train: train.csv, val: val.csv}}, got {show(value)}")
    for split in value:
        if split not in SPLITS:
            raise UserError(f'unknown split "{split}"{nearest(split, SPLITS)}')
    return {split: _named_text(split, file) for split, file in value.items()}


def _named_text(name: str, value: Any) -> str:
    try:
        return _text(value)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


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
