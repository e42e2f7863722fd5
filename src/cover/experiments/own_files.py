"""A user's own files as a data set of a catalog: a folder of classes, a csv file or a list.

What is found out here is said in a note: columns, groups, pictures among videos, and the folder that paths are below.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cover.console import say_lines
from cover.datasets.annotations import read_pairs, read_table, stripped
from cover.datasets.catalog import COLUMNS, find_annotations, load_catalog
from cover.datasets.files import few, media_of, subfolders, unpack_hint, walk
from cover.datasets.manifest import SPLITS
from cover.errors import UserError
from cover.media.source import Media
from cover.yaml_files import Dumper

HELD_OUT = 0.2  # fraction of train that becomes dev, if there is no other split
CATALOG = "catalog.yaml"
_FIRST_LINE = "# the data set of cover fit "
NO_GROUPS = "none"  # value of --group: every file is a group of its own
_READ = 200_000  # rows of a list from which columns and groups are found out
LEAST_GROUPS = 3  # of every class; with fewer, names that look like groups are left alone
LEAST_FILES = 1.5  # in a group, on average
# In this order: a folder in the class folder, and what is before the last number of a file's name.
_IN_FOLDER = r"(?:^|/)[^/]+/([^/]+)/[^/]+$"
_BEFORE_NUMBER = r"([^/]+?)[ _.-]+(?:clip|part|take|shot|[cpts])?[ _-]?\(?\d+\)?\.\w+$"
_GROUP_COLUMN = re.compile(
    r"(?:.*_)?(?:group|scene|person|subject|session|patient|actor|player|source|youtube_id|video_id|recording|sequence)"
    r"(?:_id|_group)?",
    re.IGNORECASE,
)
_LABEL_COLUMNS = (
    *("category", "target", "action", "activity", "species", "gesture", "pose"),
    *("name", "tag", "annotation", "verb", "sport", "y"),
)
_SPLIT_COLUMNS = ("subset", "partition", "set", "phase")


# Cells by column, the file, and the columns that are taken already -> the column that was found.
_Finder = Callable[[dict[str, list[str]], str, dict[str, str]], str | None]


@dataclass(frozen=True)
class OwnRequest:
    """Where a user's files are, and what is known of them.

    `place`: a folder with one subfolder for each class, or with a list in it, or a list. `group`: a column or a pattern
    on the path, `none`, or None to find it out. `media`: videos or images only; None for what is there. `columns`: our
    name of a csv column -> its name in the file.
    """

    place: Path
    group: str | None = None
    media: Media | None = None
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OwnData:
    """A catalog entry for a user's files, and a line for everything that was found out."""

    name: str
    entry: dict[str, Any]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Listed:
    """The samples of a user's files: path and class. `root`: the folder that the paths are below.

    `group`: the column that names groups. `may_group`: columns without a known meaning in which some cells are equal.
    """

    entry: dict[str, Any]
    root: Path
    samples: list[tuple[str, str]]
    notes: list[str]
    group: Any = None
    may_group: tuple[str, ...] = ()


def own_data(request: OwnRequest) -> OwnData:
    """Find out how the files are laid out. No media file is opened. Raises `UserError`, with what to do."""
    place = request.place
    if not place.exists():
        raise UserError(f"{place}: no such folder or list")
    listed = _of_list(place, request) if place.is_file() else _of_folder(place, request)
    entry, notes = dict(listed.entry), list(listed.notes)
    classes = Counter(label for _, label in listed.samples)
    if len(classes) == 1:
        raise UserError(
            f'{place}: all {len(listed.samples)} files are of one class, "{next(iter(classes))}"; add another'
        )
    entry |= _media_entry(place, listed, request.media, notes)
    if group := _group(listed, request, notes):
        entry["group"] = group
    if "dev" not in entry.get("annotations", find_annotations(entry["format"], listed.root)):
        entry["dev"] = HELD_OUT
    return OwnData(_name_of(_folder_of(place)), entry, tuple(notes))


def default_run(place: Path) -> str:
    """The name of the run folder for a user's files: that of their folder, and of a list also its own.

    `train.csv` and `train.txt` are what a folder with them stands for.

    >>> default_run(Path("table/tennis shots.csv")), default_run(Path("table/train.csv"))
    ('table_tennis_shots', 'table')
    """
    own = place.stem if place.is_file() and place.stem not in SPLITS else ""
    return _name_of(_folder_of(place)) + (f"_{_name_of(Path(own))}" if own else "")


def _folder_of(place: Path) -> Path:
    return place.resolve().parent if place.is_file() else place.resolve()


def _name_of(path: Path) -> str:
    """The name of a file or folder as that of a data set."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", path.name).strip("_-") or "mine"


def write_own_catalog(own: OwnData, out: Path, place: Path) -> Path:
    """Write `out/catalog.yaml` with the data set, and print it. A catalog with other content is not replaced."""
    path = out / CATALOG
    text = f"{_FIRST_LINE}{place}\n"
    text += yaml.dump(
        {own.name: own.entry}, Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000
    )
    try:
        before = path.read_text(encoding="utf-8") if path.is_file() else text
        if before.partition("\n")[2] != text.partition("\n")[2]:
            others = before.partition("\n")[0].removeprefix(_FIRST_LINE)
            options = " with other options" if others == str(place) else ""
            raise UserError(f"--out {out}: has the model of {others}{options}; choose another folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: {path}: cannot be written: {error.strerror}") from None
    load_catalog(path)  # a wrong entry is reported before any work
    say_lines(text)
    return path


# --- folders ----------------------------------------------------------------------------------------------------------


def _of_folder(place: Path, request: OwnRequest) -> _Listed:
    root = place.resolve()
    for form, ending in (("list", ".txt"), ("csv", ".csv")):
        names = {split: f"{split}{ending}" for split in SPLITS if (root / f"{split}{ending}").is_file()}
        if "train" in names:
            return _of_lists(form, root, names, request)
    tops = find_annotations("folder", root)
    classes = {split: subfolders(top) for split, top in tops.items()}
    samples = [
        (str(Path(path).relative_to(root)), name)
        for split, top in tops.items()
        for name in classes[split]
        for path in walk(Path(top) / name, request.media)
    ]
    if not samples:
        raise UserError(f"{place}: {_why_empty(root, request)}")
    empty = sorted({name for names in classes.values() for name in names} - {label for _, label in samples})
    notes = [f"no file in {few(empty)}: these classes stay empty"] if empty else []
    return _Listed({"format": "folder", "root": str(root)}, root, samples, notes)


def _why_empty(root: Path, request: OwnRequest) -> str:
    kind = f"{request.media} " if request.media else "video or image "
    loose = sum(1 for _ in zip(walk(root, request.media), range(1000)))
    if hint := unpack_hint(root):
        return hint
    if loose:
        return f"{loose} files lie in no class folder; make a folder for each class, as in {root.name}/serve/001.mp4"
    return f"no {kind}file in it; it needs a folder for each class with files in it, as in {root.name}/serve/001.mp4"


# --- lists ------------------------------------------------------------------------------------------------------------


def _of_list(place: Path, request: OwnRequest) -> _Listed:
    form = {".csv": "csv", ".tsv": "csv", ".txt": "list"}.get(place.suffix.lower())
    if form is None:
        raise UserError(f"{place}: is no folder, no .csv and no .txt list")
    return _of_lists(form, place.resolve().parent, {"train": place.name}, request)


def _of_lists(form: str, folder: Path, names: dict[str, str], request: OwnRequest) -> _Listed:
    """Lists in a folder, split -> name. A csv file may have all splits in a column."""
    entry: dict[str, Any] = {"format": form, "root": str(folder)}
    if form == "csv":
        listed = _of_table(folder, names, request)
    else:
        pairs = [(path, label) for name in names.values() for _, path, label in read_pairs(str(folder / name))]
        listed = _Listed({"annotations": names}, folder, pairs[:_READ], [])
    if not listed.samples:
        raise UserError(f"{folder / next(iter(names.values()))}: no row in it")
    root, notes = _root_of(folder, [path for path, _ in listed.samples], request.place)
    entry |= {**listed.entry, "root": str(root)}
    if root != folder:
        lists = listed.entry["annotations"]
        entry["annotations"] = {split: str(folder / name) for split, name in lists.items()}
    if (folder / "classes.txt").is_file() and form == "list":
        entry["classes"] = str(folder / "classes.txt") if root != folder else "classes.txt"
    return _Listed(entry, root, listed.samples, [*listed.notes, *notes], listed.group, listed.may_group)


def _root_of(folder: Path, paths: Sequence[str], place: Path) -> tuple[Path, list[str]]:
    """The folder that the paths of a list are below: that of the list, one inside it, or the one above."""
    few_paths = paths[:: max(1, len(paths) // 20)]

    def there(root: Path) -> int:
        return sum((root / path).exists() for path in few_paths)

    if there(folder):
        return folder, []
    others = [folder / name for name in subfolders(folder)] + [folder.parent]
    best = max(others, key=there)
    if not there(best):
        raise UserError(
            f"{place}: its files are not there: {paths[0]} is neither in {folder} nor in a folder inside it; put the"
            " list where its paths begin"
        )
    return best, [f"paths of the list are below {best}"]


def _of_table(folder: Path, names: dict[str, str], request: OwnRequest) -> _Listed:
    file = str(folder / names["train"])
    table = read_table(file, (), {}, {})
    rows = [[stripped(cell) for cell in row] for (_, row), _ in zip(table.rows, range(_READ))]
    cells = {name: [row[place] for row in rows] for place, name in enumerate(table.header) if name}
    columns = dict(request.columns)
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise UserError(f"--columns {ours}={theirs}: {ours} is none of {', '.join(COLUMNS)}")
        if theirs not in cells:
            raise UserError(f"--columns {ours}={theirs}: {file} has no column {theirs}; it has {', '.join(cells)}")
    notes: list[str] = []
    if not rows:
        return _Listed({}, folder, [], notes)
    finders: dict[str, _Finder] = {"path": _path_column, "label": _label_column, "split": _split_column}
    for ours, find in finders.items():
        if ours not in columns and ours not in cells and (found := find(cells, file, columns)):
            columns[ours] = found
            notes.append(f'column "{found}" is taken for the {ours}; --columns {ours}=NAME takes another')
    entry: dict[str, Any] = {"annotations": names}
    splits = _splits_in(cells.get(columns.get("split", "split"), []))
    if len(names) == 1 and splits:
        entry["annotations"] = dict.fromkeys(splits, names["train"])
    if columns:
        entry["columns"] = columns
    own = {ours: columns.get(ours, ours) for ours in ("path", "label")}
    label = next(name for name in (columns.get("label"), "class", "label", "labels", "classes") if name in cells)
    free = [name for name in cells if name not in {*columns.values(), *own.values(), label, "split"}]
    group = next((name for name in free if _GROUP_COLUMN.fullmatch(name)), None)
    may_group = tuple(name for name in free if 1 < len(set(cells[name])) < len(rows))
    return _Listed(entry, folder, list(zip(cells[own["path"]], cells[label])), notes, group, may_group)


def _path_column(cells: dict[str, list[str]], file: str, taken: dict[str, str]) -> str:
    """The column most of whose cells name media files."""
    counts = {name: sum(media_of(cell) is not None for cell in column) for name, column in cells.items()}
    best = max(counts, key=lambda name: counts[name])
    if 2 * counts[best] < len(cells[best]):
        raise UserError(f"{file}: no column names video or image files; the columns are {', '.join(cells)}")
    return best


def _label_column(cells: dict[str, list[str]], file: str, taken: dict[str, str]) -> str | None:
    """The column with a usual name, or else the only one whose texts repeat. None if there is one with our name."""
    if not {"class", "labels", "classes"}.isdisjoint(cells) or not {"class", "labels", "classes"}.isdisjoint(taken):
        return None
    free = {name: column for name, column in cells.items() if name not in taken.values() and name != "split"}
    usual = [name for name in free if name.lower() in _LABEL_COLUMNS or re.search("label|class|klass", name, re.I)]
    repeated = [name for name, column in free.items() if _repeats(column)]
    found = usual[:1] if len(usual) == 1 else repeated
    if len(found) != 1:
        raise UserError(f"{file}: which column has the classes? --columns label=NAME, one of {', '.join(free)}")
    return found[0]


def _repeats(column: Sequence[str]) -> bool:
    """Whether the cells are names of which most occur several times."""
    counts = Counter(column)
    return 1 < len(counts) <= len(column) / 2 and not all(re.fullmatch(r"[\d.,:-]*", cell) for cell in counts)


def _split_column(cells: dict[str, list[str]], file: str, taken: dict[str, str]) -> str | None:
    return next((name for name in cells if name.lower() in _SPLIT_COLUMNS and _splits_in(cells[name])), None)


def _splits_in(column: Iterable[str]) -> list[str]:
    """The splits that a column names, in the order of `SPLITS`; empty if it does not name train."""
    found = {cell.lower() for cell in column}
    names = {"val": {"val", "valid", "validation"}, "test": {"test", "testing"}, "train": {"train", "training"}}
    splits = [split for split in SPLITS if found & (names.get(split, {split}))]
    return splits if "train" in splits else []


# --- media and groups -------------------------------------------------------------------------------------------------


def _media_entry(place: Path, listed: _Listed, media: Media | None, notes: list[str]) -> dict[str, Any]:
    """The keys `media` and `stills`. Videos and pictures together are videos, of which pictures have one frame."""
    count = Counter(media_of(path) for path, _ in listed.samples)
    videos, images = count["video"], count["image"]
    if not videos and not images:
        raise UserError(f"{place}: {listed.samples[0][0]}: the endings of the files say neither video nor image")
    if media or not (videos and images):
        return {"media": media or ("video" if videos else "image")}
    notes.append(
        f"{videos} videos and {images} pictures: a picture counts as a clip of one frame; --media video or image takes"
        " one kind only"
    )
    return {"media": "video", "stills": True}


def _group(listed: _Listed, request: OwnRequest, notes: list[str]) -> Any:
    """The value of the key `group`; None without groups."""
    if request.group == NO_GROUPS:
        return None
    if request.group is not None:
        return {"path": request.group} if "(" in request.group else request.group
    if "group" in request.columns or "source" in request.columns:
        return None
    if listed.group:
        notes.append(f'groups: the column "{listed.group}"; --group takes another, --group none goes without')
        return listed.group
    for pattern, what in ((_IN_FOLDER, "folders in the class folders"), (_BEFORE_NUMBER, "file names")):
        if pattern == _IN_FOLDER and listed.entry["format"] != "folder":
            continue
        if found := _groups_by(pattern, listed.samples):
            example = next(iter(found))
            notes.append(
                f'{len(set(found.values()))} groups, from the {what}: {example} is of "{found[example]}"; files of one'
                " group stay on one side of every split; --group none goes without"
            )
            return {"path": pattern}
    columns = f" ({few(listed.may_group)})" if listed.may_group else ""
    notes.append(
        "no groups found: clips cut from one recording, or of one person, may be on both sides of a split, which"
        rf" flatters the figures; --group '(scene\d+)' or a column{columns} says what belongs together"
    )
    return None


def _groups_by(pattern: str, samples: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Path -> group, if a pattern fits all paths and gives groups of several files, some in every class; else empty."""
    found: dict[str, str] = {}
    groups = defaultdict(set)
    for path, label in samples:
        match = re.search(pattern, path)
        if not match or not match[1]:
            return {}
        found[path] = match[1]
        groups[label].add(match[1])
    several = len(found) >= LEAST_FILES * len(set(found.values()))
    return found if several and min(map(len, groups.values())) >= LEAST_GROUPS else {}
