"""What is each file's fingerprint, of its bytes or of its pictures? Computed once, and kept until the file changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from cover.console import Meter
from cover.datasets.alike import image_hashes, video_hashes
from cover.datasets.probing import Stamp
from cover.media.source import Part
from cover.processes import ProcessPool

_VERSION = 2  # of what the hashes mean: those of another are computed anew
_CHUNK = 16
_BLOCK = 1 << 20

Fingerprint = tuple[int, ...]  # numbers of 64 bits, none where there is nothing to compare


class Portion(NamedTuple):
    """A file, or `length` bytes of a shard from `offset` on; of a video `seconds` from `start` on, 0 for other pictures and for bytes."""

    path: str
    offset: int | None = None
    length: int | None = None
    start: float = 0.0
    seconds: float = 0.0

    @property
    def source(self) -> str | Part:
        """What the decoder opens."""
        return self.path if self.offset is None or self.length is None else Part(self.path, self.offset, self.length)


Work = Callable[[Portion], Fingerprint | None]


def of_bytes(portion: Portion) -> Fingerprint | None:
    """128 bits of BLAKE2b over a portion's bytes; None where it cannot be read."""
    digest, left = hashlib.blake2b(digest_size=16), -1 if portion.length is None else portion.length
    try:
        with open(portion.path, "rb") as file:
            file.seek(portion.offset or 0)
            while block := file.read(_BLOCK if left < 0 else min(_BLOCK, left)):
                digest.update(block)
                left -= len(block) if left >= 0 else 0
    except OSError:
        return None
    return int.from_bytes(digest.digest()[:8]), int.from_bytes(digest.digest()[8:])


def of_video(portion: Portion) -> Fingerprint | None:
    """`alike.video_hashes` of a segment in seconds."""
    return video_hashes(portion.source, portion.start, portion.seconds)


def of_image(portion: Portion) -> Fingerprint | None:
    """`alike.image_hashes`."""
    return image_hashes(portion.source)


def fingerprints(
    pool: ProcessPool, label: str, work: Work, portions: Iterable[Portion], stamp: Mapping[str, Stamp], cache: Path
) -> dict[Portion, Fingerprint]:
    """The fingerprints of all portions whose file exists (is in `stamp`) and can be read.

    What `cache` holds of files with the same size and time of change is taken from there; what is new is added to it, also where the
    work is interrupted.
    """
    wanted = [portion for portion in dict.fromkeys(portions) if portion.path in stamp]
    kept = _read(cache)
    known = {portion: value for portion, (then, value) in kept.items() if stamp.get(portion.path) == then}
    todo = [portion for portion in wanted if portion not in known]
    try:
        with Meter(label, len(todo)) as meter:
            for part in pool.as_completed(work, todo, _CHUNK, lambda portion: None):
                known.update((portion, value) for portion, value in part if value is not None)
                meter.advance(len(part))
    finally:
        if todo:
            others = {portion: held for portion, held in kept.items() if portion.path not in stamp}
            _write(cache, others | {portion: (stamp[portion.path], value) for portion, value in known.items()})
    return {portion: known[portion] for portion in wanted if portion in known}


# --- the cache -------------------------------------------------------------------------------------------------------------------

_SCHEMA = pa.schema(
    [
        ("path", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("start", pa.float64()), ("seconds", pa.float64()),
        ("size", pa.int64()), ("mtime_ns", pa.int64()), ("value", pa.list_(pa.uint64())),
    ],
    metadata={"cover": json.dumps({"fingerprints": _VERSION})},
)  # fmt: skip
_Kept = dict[Portion, tuple[Stamp, Fingerprint]]


def _read(cache: Path) -> _Kept:
    """What the cache holds: nothing where it is absent, torn or of another version, for then everything is computed anew."""
    if not cache.is_file():
        return {}
    try:
        table = pa.ipc.open_file(pa.memory_map(str(cache))).read_all()
    except (pa.ArrowInvalid, OSError):
        return {}
    if not table.schema.equals(_SCHEMA, check_metadata=True):
        return {}
    columns = (column.to_pylist() for column in table.columns)
    return {Portion(*portion): ((size, mtime_ns), tuple(value)) for *portion, size, mtime_ns, value in zip(*columns)}


def _write(cache: Path, kept: _Kept) -> None:
    rows: Sequence[tuple[object, ...]] = [(*portion, *stamp, value) for portion, (stamp, value) in kept.items()]
    columns = list(zip(*rows)) or [()] * len(_SCHEMA)
    write_arrow(cache, pa.table([pa.array(c, field.type) for c, field in zip(columns, _SCHEMA)], schema=_SCHEMA))


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table beside and rename it, so that a reader sees the old one or the new one whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
