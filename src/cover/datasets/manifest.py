"""Manifests: one Arrow file per data set and split, memory-mapped, with one row per listed sample.

Uncompressed Arrow IPC, so that any number of loader processes share the pages of one file and none of them holds rows
on its heap.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
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


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, in label order.

    `source` says where the names come from (a file name or a rule); `digest` is the first 12 hex digits of the SHA-256
    of the names joined by line feeds: two results are comparable only where it is the same. `many`: a sample has any
    number of the classes (multi-label), not one of them.
    """

    names: tuple[str, ...]
    source: str
    digest: str
    many: bool = False

    @classmethod
    def of(cls, names: Sequence[str], source: str, many: bool = False) -> ClassList:
        """Names in label order. Raises UserError where one is given twice."""
        visited: set[str] = set()
        for name in names:
            if name in visited:
                raise UserError(f'{source}: the class "{name}" is listed twice; class names must differ')
            visited.add(name)
        return cls(tuple(names), source, class_digest(names), many)


def class_digest(names: Sequence[str]) -> str:
    """The digest of a `ClassList`."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Row:
    """One sample. Times are seconds; `start` and `end` count inside the file, `youtube_start` and `youtube_end` inside
    the original video. `offset` and `length` (bytes) are set where `path` is a shard. Width and height are as
    displayed. `why` says what makes a row unusable, empty if `ok`. `damage` says what is wrong with a file that is
    usable up to there, empty where nothing is known to be. `deep`: the file was decoded to its last frame. `size`
    (bytes) and `mtime_ns` are the file's when it was probed. A row of a multi-label set has `labels`, ascending (empty:
    of no class; None: not labelled), and no `label`.
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

    @property
    def source(self) -> str | ByteRange:
        """What the decoder opens: the file, or a stretch of the shard."""
        return (
            self.path if self.offset is None or self.length is None else ByteRange(self.path, self.offset, self.length)
        )

    @property
    def seconds(self) -> float:
        """How long the sample lasts: its segment where it has one, else the whole file; 0 for an image."""
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
    """Write `rows` in their order. The file is written beside and renamed, so that a reader sees the old one or the new
    one whole.

    `root`: what the rows' relative paths are relative to, a URL or a folder relative to the manifest's own; None: they
    are whole. `scope` and `original`: of prepared data, `DatasetSpec.scope` of the originals and the digest of their
    manifest.
    """
    metadata: dict[str, Any] = {"name": name, "split": split, "media": media, "root": root} | (
        {"scope": scope} if scope else {}
    )
    metadata |= {"original": original} if original else {}
    metadata |= {"class_names": list(classes.names), "class_source": classes.source, "multi_label": classes.many}
    schema = pa.schema(
        [pa.field(column, _TYPES[column]) for column in _COLUMNS], metadata={"cover": json.dumps(metadata)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            for batch in _batches(rows):
                columns = list(zip(*map(attrgetter(*_COLUMNS), batch)))
                writer.write_batch(
                    pa.record_batch([pa.array(c, field.type) for c, field in zip(columns, schema)], schema=schema)
                )
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, _ROWS_PER_BATCH)):
        yield batch


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def open_manifest(path: Path, without: npt.NDArray[np.int64] | None = None) -> Manifest:
    """Map a manifest into memory; the rows `without` are never usable. Raises UserError where it is absent or is not a
    manifest.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest; `cover index` on the catalog beside it writes one")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        metadata = json.loads(table.schema.metadata[b"cover"])
    except (pa.ArrowInvalid, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest ({error}); run `cover index --force` on the catalog") from None
    if table.schema.names != _COLUMNS:
        raise UserError(f"{path}: a manifest of another version; run `cover index --force` on the catalog")
    return Manifest(path, table, metadata, without)


class Manifest:
    """A memory-mapped manifest: `name`, `split`, `media`, `classes`, and rows read one by one when asked for. `scope`:
    of prepared data, within what the originals' source ids mean the same; None: the catalog's `DatasetSpec.scope` says.
    `original`: of prepared data, the digest of the manifest that they were made from.

    `without`: int64 numbers of rows that are held but not usable, None for none.
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
        self._root = root if root is None or is_url(root) else os.path.normpath(path.absolute().parent / root)

    def __reduce__(self) -> tuple[Any, ...]:
        return open_manifest, (self.path, self.without)  # a worker process maps the file too; it is not sent the rows

    def check_unchanged(self) -> None:
        """Raises UserError where the file was written anew since it was opened: processes that open it now would see
        other rows.
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
        return self._located(Row(*(column[index].as_py() for column in self._table.columns)))

    def rows(self) -> Iterator[Row]:
        """All rows in order, a batch at a time: faster than `row` one by one."""
        for batch in self._table.to_batches():
            yield from (
                self._located(Row(*values)) for values in zip(*(column.to_pylist() for column in batch.columns))
            )

    def _located(self, row: Row) -> Row:
        """With its whole path."""
        if self._root is None or os.path.isabs(row.path) or is_url(row.path):
            return row
        return replace(row, path=f"{self._root.rstrip('/')}/{row.path}")

    def digest(self) -> str:
        """16 hex digits over the file's bytes: whether anything at all has changed."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, hashlib.blake2b).hexdigest()[:16]

    def draws_digest(self) -> str:
        """12 hex digits over what a schedule and its draws rest on: which rows may be drawn, their ids and their
        labels.
        """
        result = hashlib.blake2b(self.usable.tobytes() + self.labels.tobytes(), digest_size=6)
        for chunk in self._table["sample_id"].chunks:
            for buffer in chunk.buffers()[1:]:
                result.update(buffer)
        return result.hexdigest()

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """int32 `(rows,)`, -1 where a row has no label: everywhere in a multi-label set, whose rows have `labels`."""
        filled: npt.NDArray[np.int32] = self._table["label"].fill_null(-1).to_numpy()
        return filled

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """bool `(rows,)`: whether it is known which class, or which classes, a row has."""
        column = self._table["labels" if self.classes.many else "label"]
        known: npt.NDArray[np.bool_] = column.is_valid().to_numpy()
        return known

    def class_counts(self) -> npt.NDArray[np.int64]:
        """int64 `(classes,)`: how many rows, usable or not, have each class."""
        column = self._table["labels" if self.classes.many else "label"]
        present = pa.compute.list_flatten(column) if self.classes.many else column.drop_null()
        return np.bincount(present.to_numpy(), minlength=len(self.classes.names)).astype(np.int64)

    @cached_property
    def usable(self) -> npt.NDArray[np.int64]:
        """int64 indices, ascending, of the labelled rows with state `ok`, those in `without` left out: what may be
        read.
        """
        ok = pa.compute.equal(self._table["state"], "ok").to_numpy()
        if self.without is not None:
            ok = ok & ~np.isin(np.arange(len(self)), self.without)
        return np.flatnonzero(ok & self.labelled).astype(np.int64)

    def sources(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """int64 `(len(rows),)`: the same number for rows of one source id."""
        return np.unique(
            np.asarray(self._table["source_id"].take(pa.array(rows)).to_pylist(), dtype=object), return_inverse=True
        )[1]

    def counts(self) -> dict[str, int]:
        """Rows in each of the states, 0 included."""
        results = {item["values"]: item["counts"] for item in self._table["state"].value_counts().to_pylist()}
        return {state: results.get(state, 0) for state in STATES}
