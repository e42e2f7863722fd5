"""Manifests: one Arrow file per data set and split, memory-mapped, with one row per listed sample.

The file is uncompressed Arrow IPC. All loader processes share its memory pages, and no process copies the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from cover.errors import UserError
from cover.media.source import ByteRange, Media, is_url

SPLITS = ("train", "dev", "val", "test")
STATES = ("ok", "missing", "unreadable", "too_short")
_ROWS_PER_BATCH = 1 << 16
_STAT_THREADS, _ROWS_PER_STAT = 16, 4096


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, in label order.

    `source`: the origin of the names, a file name or a rule. `digest`: the first 12 hex digits of the SHA-256 of the
    names, joined by line feeds. Two results are comparable only if their digests are equal. `many`: whether the data
    set is multi-label, so that a sample has any number of classes.
    """

    names: tuple[str, ...]
    source: str
    digest: str
    many: bool = False

    @classmethod
    def of(cls, names: Sequence[str], source: str, many: bool = False) -> ClassList:
        """The class list of `names` in label order. Raises UserError if a name is repeated."""
        known: set[str] = set()
        for name in names:
            if name in known:
                raise UserError(f'{source}: the class "{name}" is listed twice; class names must differ')
            known.add(name)
        return cls(tuple(names), source, class_digest(names), many)


_CONTENT = ("path", "offset", "length", "start", "end", "size", "mtime_ns")  # columns that say what a row is read from


def hash64(text: str) -> int:
    """64 bits of a hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def class_digest(names: Sequence[str]) -> str:
    """The digest of a `ClassList` with these names."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Row:
    """One sample of a manifest.

    `source_id`: the origin of the sample, such as its YouTube id.
    `path`: the file, or the shard if `offset` and `length` (bytes) are set.
    `label`: the class of a single-label sample, None if not labelled.
    `labels`: the classes of a multi-label sample, ascending; empty for no class, None if not labelled.
    `start`, `end`: the segment in seconds inside the file, None for the whole file.
    `youtube_start`, `youtube_end`: seconds inside the original video.
    `frames`, `fps`, `width`, `height`, `codec`: as in `media.source.Probe`; pixels as displayed.
    `state`: one of `STATES`. `why`: the reason of a state other than `ok`.
    `damage`: the damage of a file that can be used up to this point. Empty if no damage is known.
    `deep`: whether the file was decoded to its last frame.
    `size` (bytes), `mtime_ns`: of the file when it was probed.
    `group`: the person, scene or session of the sample, by the catalog's key `group`. None if the source is the group.
    """

    sample_id: str
    source_id: str
    path: str
    offset: int | None
    length: int | None
    label: int | None
    start: float | None
    end: float | None
    youtube_start: float | None
    youtube_end: float | None
    frames: int
    fps: float
    width: int
    height: int
    codec: str
    state: str
    why: str
    size: int | None = None
    mtime_ns: int | None = None
    labels: list[int] | None = None
    deep: bool = False
    damage: str = ""
    group: str | None = None

    @property
    def group_id(self) -> str:
        """What stays on one side of a split together with this sample: its group, by default its source."""
        return self.source_id if self.group is None else self.group

    @property
    def source(self) -> str | ByteRange:
        """The input of the decoder: the file, or a byte range of the shard."""
        if self.offset is None or self.length is None:
            return self.path
        return ByteRange(self.path, self.offset, self.length)

    @property
    def seconds(self) -> float:
        """The duration of the segment or of the whole file, in seconds. 0 for an image."""
        whole = self.frames / self.fps if self.fps else 0.0
        end = whole if self.end is None else min(self.end, whole or self.end)
        return end - (self.start or 0.0)


_TYPES: dict[str, Any] = {
    "sample_id": pa.string(),
    "source_id": pa.string(),
    "path": pa.string(),
    "offset": pa.int64(),
    "length": pa.int64(),
    "label": pa.int32(),
    "start": pa.float64(),
    "end": pa.float64(),
    "youtube_start": pa.float64(),
    "youtube_end": pa.float64(),
    "frames": pa.int32(),
    "fps": pa.float64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "codec": pa.string(),
    "state": pa.string(),
    "why": pa.string(),
    "size": pa.int64(),
    "mtime_ns": pa.int64(),
    "labels": pa.list_(pa.int32()),
    "deep": pa.bool_(),
    "damage": pa.string(),
    "group": pa.string(),
}
_COLUMNS = [field.name for field in fields(Row)]


def write_manifest(
    path: Path,
    name: str,
    split: str,
    media: Media,
    classes: ClassList,
    rows: Iterable[Row],
    root: str | None = None,
    scope: str | None = None,
    original: str | None = None,
) -> None:
    """Write the manifest of a split, with `rows` in their order.

    The file is written under another name and then renamed, so readers never see half a file. `root`: the base of
    relative paths in the rows: a URL, or a folder relative to the folder of the manifest. None if all paths are
    absolute. Only prepared data have `scope`, the `DatasetSpec.scope` of the originals, and `original`, the digest of
    the manifest of the originals.
    """
    metadata: dict[str, Any] = {"name": name, "split": split, "media": media, "root": root}
    metadata |= {key: value for key, value in (("scope", scope), ("original", original)) if value}
    metadata |= {"class_names": list(classes.names), "class_source": classes.source, "multi_label": classes.many}
    fields = [pa.field(column, _TYPES[column]) for column in _COLUMNS]
    schema = pa.schema(fields, metadata={"cover": json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in _batches(rows):
                columns = zip(*map(attrgetter(*_COLUMNS), batch))
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema)]
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, _ROWS_PER_BATCH)):
        yield batch


def root_below(folder: Path, root: str) -> Path:
    """The folder `root`, which may be relative to `folder`, as a normal absolute path.

    Symbolic links count only where `root` has `..`. So the paths of a copied catalog are those of the copy.
    """
    path = folder / root
    return Path(os.path.realpath(path) if ".." in Path(root).parts else os.path.normpath(path))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Inode, size and time of change: a rewritten manifest has another stamp."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_same(path: str, size: int, mtime_ns: int | None) -> bool:
    """Whether a file has this size and time of change; None for any time. True for a file that is not there."""
    try:
        now = os.stat(path)
    except OSError:
        return True  # reading it says what is wrong
    return now.st_size == size and mtime_ns in (None, now.st_mtime_ns)


def open_manifest(path: Path, without: npt.NDArray[np.int64] | None = None) -> Manifest:
    """Map a manifest into memory. The rows `without` (int64) are not usable.

    Raises UserError if the file does not exist or is not a manifest of this version.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; `cover index` on the catalog beside it writes one")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        metadata = json.loads(table.schema.metadata[b"cover"])
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest ({error}); run `cover index --force` on the catalog") from None
    if table.schema.names == _COLUMNS[:-1]:  # written before there were groups
        table = table.append_column("group", pa.nulls(len(table), pa.string()))
    if table.schema.names != _COLUMNS:
        raise UserError(f"{path}: a manifest of another version; run `cover index --force` on the catalog")
    return Manifest(path, table, metadata, without)


class Manifest:
    """A memory-mapped manifest: `name`, `split`, `media`, `classes`, and rows that are read on request.

    `scope`: the `DatasetSpec.scope` of the originals, only in manifests of prepared data. `original`: the digest of the
    manifest of the originals, only in manifests of prepared data. `without`: int64 numbers of rows that are not usable,
    None for none.
    """

    def __init__(
        self, path: Path, table: Any, metadata: dict[str, Any], without: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.path, self.without = path, without
        self._stamp = _stamp(path)
        self._table = table
        self.name: str = metadata["name"]
        self.split: str = metadata["split"]
        self.media: Media = metadata["media"]
        self.classes = ClassList.of(metadata["class_names"], metadata["class_source"], metadata["multi_label"])
        self.scope: str | None = metadata.get("scope")
        self.original: str | None = metadata.get("original")
        root: str | None = metadata.get("root")
        self._root = root if root is None or is_url(root) else self._folder_of(root)

    def _folder_of(self, root: str) -> str:
        """The base of relative paths. The folder of manifests itself may be a link, so its `..` is the folder above."""
        folder, above = self.path.absolute().parent, root == ".." or root.startswith("../")
        return str(root_below(folder.parent, root[3:]) if above else root_below(folder, root))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_manifest, (self.path, self.without)  # a worker process maps the file itself, so no rows are pickled

    def check_unchanged(self) -> None:
        """Raises UserError if the file was rewritten after it was opened.

        Worker processes that open it now would read other rows than this process.
        """
        if _stamp(self.path) != self._stamp:
            raise UserError(
                f"{self.path}: was written anew while it was in use (cover index); start this command again"
            )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, index: int) -> Row:
        """Row `index`, 0 to `len(self) - 1`."""
        assert 0 <= index < len(self), f"row {index} of {len(self)}"
        return self._with_full_path(Row(*(column[index].as_py() for column in self._table.columns)))

    def rows(self) -> Iterator[Row]:
        """All rows in order. This is faster than calling `row` for every row."""
        for batch in self._table.to_batches():
            columns = [column.to_pylist() for column in batch.columns]
            yield from (self._with_full_path(Row(*values)) for values in zip(*columns))

    def _with_full_path(self, row: Row) -> Row:
        path = self._full_path(row.path)
        return row if path == row.path else replace(row, path=path)

    def _full_path(self, path: str) -> str:
        if self._root is None or os.path.isabs(path) or is_url(path):
            return path
        return f"{self._root.rstrip('/')}/{path}"

    def is_below(self, root: Path) -> bool:
        """Whether the paths are relative to the folder `root`, or, if they are absolute, whether one is below it.

        True without rows. All paths of a manifest of an earlier version are absolute.
        """
        if self._root is not None:
            return self._root == str(root)
        return not len(self) or bool(
            pa.compute.any(pa.compute.starts_with(self._table["path"], f"{root}{os.sep}")).as_py()
        )

    def digest(self) -> str:
        """16 hex digits of a hash of the file's bytes."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, hashlib.blake2b).hexdigest()[:16]

    def draws_digest(self) -> str:
        """12 hex digits of a hash of everything that the draws of a schedule depend on.

        This is the usable rows, the sample ids and the labels. Other columns may change without changing a run.
        """
        result = hashlib.blake2b(self.usable.tobytes() + self.labels.tobytes(), digest_size=6)
        for chunk in self._table["sample_id"].chunks:
            for buffer in chunk.buffers()[1:]:  # offsets and characters; buffer 0 is the validity mask
                result.update(buffer)
        return result.hexdigest()

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32 `(rows,)`, -1 if a row has no label. All -1 in a multi-label data set."""
        filled: npt.NDArray[np.int32] = self._table["label"].fill_null(-1).to_numpy()
        return filled

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """bool `(rows,)`: whether the class, or the classes, of a row are known."""
        column = self._table["labels" if self.classes.many else "label"]
        known: npt.NDArray[np.bool_] = column.is_valid().to_numpy()
        return known

    def class_counts(self) -> npt.NDArray[np.int64]:
        """int64 `(classes,)`: the number of rows of each class, usable or not."""
        column = self._table["labels" if self.classes.many else "label"]
        present = pa.compute.list_flatten(column) if self.classes.many else column.drop_null()
        return np.bincount(present.to_numpy(), minlength=len(self.classes.names)).astype(np.int64)

    @cached_property
    def usable(self) -> npt.NDArray[np.int64]:
        """int64, ascending: the numbers of the labelled rows with state `ok` that are not in `without`."""
        ok = pa.compute.equal(self._table["state"], "ok").to_numpy()
        if self.without is not None:
            ok = ok & ~np.isin(np.arange(len(self)), self.without)
        return np.flatnonzero(ok & self.labelled).astype(np.int64)

    def sources(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 `(len(rows),)`: a number for the group of each row. Rows of one `Row.group_id` have the same number."""
        own = self._table.select(["group", "source_id"]).take(pa.array(rows))
        ids = pa.compute.coalesce(own["group"], own["source_id"]).to_pylist()
        return np.unique(np.asarray(ids, dtype=object), return_inverse=True)[1]

    @cached_property
    def content_keys(self) -> npt.NDArray[np.uint64]:
        """uint64 `(rows,)`: a hash of what each row is read from, the same in every manifest with that row.

        It is of the full path, the byte range, the segment, and the size and time of change of the file.
        """
        columns = self._table.select(list(_CONTENT)).to_pydict()
        columns["path"] = [self._full_path(path) for path in columns["path"]]
        return np.array([hash64(repr(values)) for values in zip(*columns.values())], np.uint64)

    @cached_property
    def label_keys(self) -> npt.NDArray[np.uint64]:
        """uint64 `(rows,)`: a hash of the names of the classes of each row."""
        name = "labels" if self.classes.many else "label"
        listed = [None if value is None else np.atleast_1d(value) for value in self._table[name].to_pylist()]
        names = [None if own is None else [self.classes.names[label] for label in own] for own in listed]
        return np.array([hash64(repr(own)) for own in names], np.uint64)

    @cached_property
    def sample_keys(self) -> npt.NDArray[np.uint64]:
        """uint64 `(rows,)`: a hash of each sample id, the same in every manifest and on every machine."""
        return np.array([hash64(sample_id) for sample_id in self._table["sample_id"].to_pylist()], np.uint64)

    def changed_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of `rows` (int64) whose local file has another size or time of change than when it was indexed.

        Prepared files may have been copied, so only their size counts. Files that do not exist, and rows without a
        recorded size or time, are not among them. Many threads ask the file system at once, because a network file
        system takes its time for each answer.
        """
        columns = self._table.select(["path", "size", "mtime_ns"]).take(pa.array(rows))
        firsts = range(0, len(rows), _ROWS_PER_STAT)
        parts = [(rows[first : first + _ROWS_PER_STAT], columns.slice(first, _ROWS_PER_STAT)) for first in firsts]
        with ThreadPoolExecutor(_STAT_THREADS, "stat") as threads:
            return np.concatenate([np.zeros(0, np.int64), *threads.map(self._changed, *zip(*parts))])

    def _changed(self, rows: npt.NDArray[np.int64], columns: Any) -> npt.NDArray[np.int64]:
        changed, same = [], dict[str, bool]()
        for number, path, size, time in zip(rows.tolist(), *columns.to_pydict().values(), strict=True):
            if size is None or time is None:  # also the samples of shards
                continue
            if path not in same:
                full = self._full_path(path)
                same[path] = is_url(full) or _is_same(full, size, None if self.original else time)
            if not same[path]:
                changed.append(number)
        return np.array(changed, np.int64)

    def counts(self) -> dict[str, int]:
        """State -> number of rows, for all states."""
        results = {item["values"]: item["counts"] for item in self._table["state"].value_counts().to_pylist()}
        return {state: results.get(state, 0) for state in STATES}
