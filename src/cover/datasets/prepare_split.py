"""Preparing one split: its files or shards, and its manifest.

The name of a file depends on its original and the settings, the name of a shard on its bytes. So no file is ever
overwritten, and the manifest of an earlier run stays valid until the new one replaces it. After that, files that the
new manifest does not name are removed.
"""

from __future__ import annotations

import errno
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import av

from cover.datasets.manifest import Manifest, Row, open_manifest, write_manifest
from cover.datasets.prepare_log import PreparedSample, PreparedShard, PrepareLog
from cover.datasets.probe import stat_files
from cover.datasets.shards import ShardEntry, key_of, write_shard
from cover.errors import UserError
from cover.media.decode import MediaError, decode_at, probe
from cover.media.encode import ENDINGS, Encoded, Encoding, encode_image, encode_video
from cover.media.source import ByteRange, Media, is_url

SPOOL = ".prepare"  # folder for temporary files in the output folder; a successful run removes it
VERSION = 2  # version of the encoding; with a new version all files are encoded again
_CRASHED = "the encoder crashed on it"
# Errors of the output folder. No other sample could be written either, so the run stops.
_DISK_NAMES = "ENOSPC EDQUOT EFBIG EIO EROFS EACCES EPERM ENOTDIR EEXIST"
_DISK_ERRORS = {getattr(errno, name) for name in _DISK_NAMES.split()}
# Errors of the machine or the network, not of the file. A later run tries these samples again.
_TEMPORARY_NAMES = (
    "ENOMEM EMFILE ENFILE EIO EAGAIN EINTR EBUSY ESTALE ETIMEDOUT ENOTCONN ECONNRESET EHOSTDOWN EHOSTUNREACH"
    " EACCES EPERM ENOENT ENODEV"
)
_TEMPORARY_ERRORS = {getattr(errno, name) for name in _TEMPORARY_NAMES.split()}
_SHARD = r"-[0-9]{6}-[0-9a-f]{16}\.tar"
_FILE = rf".+-[0-9a-f]{{20}}({'|'.join(map(re.escape, ENDINGS.values()))})"
_LATE = 1e-3  # seconds that the time of the last frame may differ after reading it again


class Stopped(OSError):
    """The output cannot be written, so the run stops."""


@dataclass(frozen=True)
class OutputLayout:
    """The form of prepared data: in the folder `out`, as files, or as shards of about `shard_bytes`.

    `url`: the address from which the folder will be read, None for its own path.
    """

    out: Path
    encoding: Encoding
    shard_bytes: int | None
    url: str | None


@dataclass(frozen=True, slots=True)
class PrepareItem:
    """A row to prepare.

    `row`: its number in the manifest. `key`: its name in file names. `made_of`: a digest of the original file and the
    settings. `tag`: `made_of` with its label, because a shard stores labels too.
    """

    row: int
    key: str
    made_of: str
    tag: str


# --- one sample (in a worker process) ---


def make(item: PrepareItem, manifest: Path, layout: OutputLayout, split: str) -> PreparedSample | Stopped:
    """Encode the sample of a row, verify it, and move it to its place. The record has the reason of a failure.

    Returns Stopped if the output folder cannot be written.
    """
    listed = _manifest(manifest, manifest.stat().st_mtime_ns)
    row, media = listed.row(item.row), listed.media
    if _origin_of(item.key, row, layout.encoding) != item.made_of:
        return Stopped(errno.ESTALE, "was written anew meanwhile", str(manifest))
    beside = layout.out / SPOOL / split / f"{item.key}.part"
    try:
        return _make(item, row, media, beside, layout, split)
    except MediaError as error:
        return _failed(item, row, str(error), again=is_url(row.path) or _is_temporary(error))
    except MemoryError:
        return _failed(item, row, "cannot be encoded: not enough memory", again=True)
    except (OSError, av.FFmpegError) as error:
        if error.errno in _DISK_ERRORS:
            return Stopped(error.errno, error.strerror, error.filename)
        return _failed(item, row, f"cannot be encoded: {error.strerror or error}", again=True)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _make(item: PrepareItem, row: Row, media: Media, beside: Path, layout: OutputLayout, split: str) -> PreparedSample:
    beside.parent.mkdir(parents=True, exist_ok=True)
    encoded = _encode(row, media, beside, layout.encoding)
    size = _sync(beside, media)
    _verify(beside, media, encoded)
    file = _file_of(item, layout, split, ENDINGS[encoded.codec])
    _move(beside, layout.out / file, row.mtime_ns)
    why = encoded.partial or ""
    outcome = "partial" if why else "copied" if encoded.copied else "prepared"
    properties = (encoded.frames, encoded.last, encoded.width, encoded.height, encoded.codec)
    again = _is_temporary(encoded.damage)
    return PreparedSample(item.made_of, row.path, outcome, why, file, size, *properties, again)


def _failed(item: PrepareItem, row: Row, why: str, again: bool) -> PreparedSample:
    return PreparedSample(item.made_of, row.path, "failed", why, again=again)


def _is_temporary(problem: MediaError | None) -> bool:
    return problem is not None and problem.errno in _TEMPORARY_ERRORS


@lru_cache(maxsize=4)
def _manifest(path: Path, changed_ns: int) -> Manifest:
    """The manifest. Each process opens it once, and again if it changes."""
    return open_manifest(path)


def _encode(row: Row, media: Media, out: Path, encoding: Encoding) -> Encoded:
    if media == "image":
        return encode_image(row.source, out, encoding)
    return encode_video(row.source, out, encoding, row.start, row.end)


def _sync(file: Path, media: Media) -> int:
    """The size of a file in bytes. A video is flushed to disk first; for many small images this would take too long."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if media == "video":
            os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _verify(file: Path, media: Media, encoded: Encoded) -> None:
    """Read a file that was written. Raises OSError if it differs from `encoded`."""
    try:
        read = probe(file, media)
        if (read.frames, read.width, read.height) != (encoded.frames, encoded.width, encoded.height):
            raise OSError(f"read again it has {read.frames} frames of {read.width}x{read.height}, not {encoded.frames}")
        if media == "video":
            _verify_video(file, (read.frames - 1) / read.fps, encoded)
    except MediaError as error:
        raise OSError(f"read again it is damaged: {error}") from error


def _verify_video(file: Path, last: float, encoded: Encoded) -> None:
    if abs(last - encoded.last) > _LATE:
        raise OSError(f"read again its last frame is at {last:.3f} s, not {encoded.last:.3f}")
    if damage := decode_at(file, [0.0, encoded.last]).damage:
        raise damage


def _file_of(item: PrepareItem, layout: OutputLayout, split: str, ending: str) -> str:
    """The path of a sample below the output folder.

    Files are distributed over 256 folders, because a million files in one folder are slow on some disks.
    """
    if layout.shard_bytes:
        return f"{SPOOL}/{split}/{item.key}{ending}"
    return f"{split}/{item.made_of[-2:]}/{item.key.rpartition('-')[0]}-{item.made_of}{ending}"


def _move(beside: Path, file: Path, mtime_ns: int | None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if mtime_ns is not None:
        os.utime(beside, ns=(mtime_ns, mtime_ns))  # so a manifest does not depend on the date of preparing
    beside.replace(file)


# --- one split ---


class SplitJob:
    """The state of preparing one split: its finished rows and the rows in `todo`.

    `scope`: the `DatasetSpec.scope` of the originals. `catalog`: path of the catalog of the originals.
    """

    def __init__(
        self, name: str, split: str, manifest: Manifest, layout: OutputLayout, scope: str, catalog: str
    ) -> None:
        self.name, self.split, self.manifest, self.layout, self.scope = name, split, manifest, layout, scope
        self.folder = f"{name}/{split}"
        self.manifest_path = manifest_of(layout.out, name, split)
        self.original = manifest.digest()
        self.log = PrepareLog(origin_digest(layout.out, name, split), catalog)
        self.encoded, self.bytes_before = 0, 0
        self.items = list(self._items())
        self.total = len(self.items)
        self._done: dict[str, PreparedSample] = {}
        self._again: set[str] = set()  # keys of temporary failures of earlier runs that were not tried again yet
        self._places: dict[str, tuple[str, int, int]] = {}  # key -> shard (also an older one), offset and length
        self.shards: list[PreparedShard] = []
        # Items 0 to `_packed` - 1 are in shards. Items up to `_reach` - 1 are done without a gap, and those that are
        # not in a shard yet have `_waiting` bytes.
        self._packed = self._reach = self._waiting = 0
        self._recall()
        self.counts = Counter(done.outcome for done in self._done.values())
        todo = (item for item in self.items if item.key not in self._done)
        # Temporary failures come first, because no shard can be closed before they are tried again.
        self.todo = sorted(todo, key=lambda item: item.key not in self._again)
        self._shards_recalled = False

    def close(self) -> None:
        """Close the log."""
        self.log.__exit__()

    @property
    def settled(self) -> int:
        """The number of rows that are done, including failures."""
        return len(self._done)

    @property
    def bytes_after(self) -> int:
        """Bytes of all prepared samples."""
        return sum(done.bytes for done in self._done.values())

    def outcomes(self) -> Iterator[PreparedSample]:
        """The records of all rows, in order."""
        return (self._done[item.key] for item in self.items)

    def check_unchanged(self) -> None:
        """Raises UserError if a file in `todo` changed after `cover index`."""
        todo = {item.row for item in self.todo}
        rows = (row for number, row in enumerate(self.manifest.rows()) if number in todo)
        stamps = {row.path: (row.size, row.mtime_ns) for row in rows if row.offset is None and not is_url(row.path)}
        stats = (stat for part in stat_files(list(stamps)) for stat in part)
        changed = [path for path, stat in zip(stamps, stats) if stat != stamps[path]]
        if changed:
            first = f"{changed[0]} and {len(changed) - 1} more files have" if len(changed) > 1 else f"{changed[0]} has"
            raise UserError(f"{self.name} {self.split}: {first} changed since `cover index`; run it again first")

    def accept(self, item: PrepareItem, outcome: PreparedSample | Stopped | None) -> None:
        """Store the outcome of an item, None for a crash of its process. Raises Stopped or OSError."""
        if isinstance(outcome, Stopped):
            raise outcome
        done = outcome or _failed(item, self.manifest.row(item.row), _CRASHED, again=True)
        self.log.add(done)
        self._done[item.key] = done
        self.counts[done.outcome] += 1
        self.encoded += 1
        self._again.discard(item.key)
        self.pack()

    def finish(self) -> None:
        """Write the manifest, then remove files of earlier runs that are not needed any more. Raises OSError."""
        path, media, classes = self.manifest_path, self.manifest.media, self.manifest.classes
        root = self.layout.url or ".."
        write_manifest(path, self.name, self.split, media, classes, self._rows(), root, self.scope, self.original)
        samples = [self._record_of(item) for item in self.items]
        needed = {shard.shard for shard in self.shards} | {done.file for done in samples}
        _clear(self.layout.out, self.folder, self.log.earlier, needed)
        self.log.settle(samples, self.shards)  # last, because until then the log lists the files to remove
        for temporary in path.parent.glob(f".{path.name}.*"):  # of killed runs
            temporary.unlink()

    # --- rows ---

    def _items(self) -> Iterator[PrepareItem]:
        """The rows to prepare. Also sets `bytes_before`, in which every file counts once."""
        uses: Counter[str] = Counter()
        sizes: dict[str, int] = {}
        for number, row in enumerate(self.manifest.rows()):
            if row.state != "ok":
                continue
            sizes[row.path if row.offset is None else f"{row.path}:{row.offset}"] = row.length or row.size or 0
            key = key_of(row.sample_id, row.start, row.end)
            uses[key] += 1
            if uses[key] > 1:  # the same sample is listed several times
                key = key_of(row.sample_id, row.start, row.end, uses[key])
            made_of = _origin_of(key, row, self.layout.encoding)
            yield PrepareItem(number, key, made_of, f"{made_of} {row.label if row.labels is None else row.labels}")
        self.bytes_before = sum(sizes.values())

    def _rows(self) -> Iterator[Row]:
        """The rows of the new manifest: those of the original manifest, in the same order."""
        outputs = {item.row: item.key for item in self.items}
        for number, row in enumerate(self.manifest.rows()):
            key = outputs.get(number)
            yield row if key is None else _prepared(row, self._done[key], self._places.get(key))

    def _record_of(self, item: PrepareItem) -> PreparedSample:
        """The final record of an item. In a shard its file is the name of its member."""
        done = self._done[item.key]
        return replace(done, file=item.key + ENDINGS[done.codec]) if self.layout.shard_bytes and done.file else done

    # --- results of earlier runs ---

    def _recall(self) -> None:
        """Reuse results of earlier runs: existing files of unchanged rows, and failures that are not temporary."""
        in_shards = self._samples_in_shards() if self.layout.shard_bytes else {}
        for item in self.items:
            done = self.log.samples.get(item.made_of)
            if done is None:
                continue
            if done.again:
                self._again.add(item.key)
            elif (place := in_shards.get(item.made_of)) and place[2] == done.bytes:
                self._done[item.key], self._places[item.key] = done, place
            elif not done.file or _is_whole(self.layout, done):
                self._done[item.key] = done

    def _samples_in_shards(self) -> dict[str, tuple[str, int, int]]:
        """`made_of` -> shard, offset and length, for all samples in complete shards."""
        places: dict[str, tuple[str, int, int]] = {}
        for shard in self.log.shards:
            if _bytes_of(self.layout.out / shard.shard) == shard.bytes:
                items = zip(shard.samples, shard.places)
                places |= {tag.partition(" ")[0]: (shard.shard, *place) for tag, place in items if place}
        return places

    def _recall_shards(self, limit: int) -> None:
        """Reuse the shards of the first rows, up to the first shard that would be written differently now."""
        known: dict[str, list[PreparedShard]] = defaultdict(list)
        for shard in self.log.shards:
            known[shard.samples[0]].append(shard)
        while self._packed < self.total:
            same = (shard for shard in known[self.items[self._packed].tag] if self._would_write(shard, limit))
            existing = next(same, None)
            if existing is None:
                return
            self._note(existing, self.items[self._packed : self._packed + len(existing.samples)])

    def _would_write(self, shard: PreparedShard, limit: int) -> bool:
        """Whether the next shard would be equal to this one: the same name and samples, and the same last sample."""
        items = self.items[self._packed : self._packed + len(shard.samples)]
        if not shard.shard.startswith(f"{self.folder}-{len(self.shards):06d}-"):
            return False
        if [item.tag for item in items] != shard.samples:
            return False
        sizes = [self._done[item.key].bytes if item.key in self._done else -1 for item in items]
        if sizes != [place[1] if place else 0 for place in shard.places]:
            return False
        # A shard ends at the sample that reaches the limit, or at the last sample of the split.
        closed = sum(sizes[:-1]) < limit <= sum(sizes) or items[-1] is self.items[-1]
        return closed and _bytes_of(self.layout.out / shard.shard) == shard.bytes

    # --- shards ---

    def pack(self) -> None:
        """Write every shard that has all its samples. Raises OSError."""
        limit = self.layout.shard_bytes
        if not limit or self._again:  # a shard must not be closed before all its failures were tried again
            return
        if not self._shards_recalled:
            self._recall_shards(limit)
            self._shards_recalled = True
        while self._reach < self.total and (done := self._done.get(self.items[self._reach].key)):
            self._reach += 1
            self._waiting += done.bytes
            if self._waiting >= limit or self._reach == self.total:
                self._close_shard()

    def _close_shard(self) -> None:
        """Write one shard with the items from `_packed` to `_reach`, without failures."""
        items = self.items[self._packed : self._reach]
        members = [item for item in items if self._done[item.key].file]
        if not members:
            return
        out, stem = self.layout.out, self.layout.out / f"{self.folder}-{len(self.shards):06d}"
        path, places = write_shard(stem, [self._member(item) for item in members], out / SPOOL / f"{stem.name}.part")
        place_of = dict(zip((item.key for item in members), places))
        name, size = path.relative_to(out).as_posix(), path.stat().st_size
        tags = [item.tag for item in items]
        shard = PreparedShard(name, size, tags, [place_of.get(item.key) for item in items])
        self.log.add(shard)
        self._note(shard, items)
        for item in members:
            # Only temporary files are removed here. A manifest may name the others, so `finish` removes them.
            if (file := self._done[item.key].file).startswith(f"{SPOOL}/"):
                (out / file).unlink(missing_ok=True)

    def _member(self, item: PrepareItem) -> ShardEntry:
        done, place, row = self._done[item.key], self._places.get(item.key), self.manifest.row(item.row)
        source = ByteRange(str(self.layout.out / place[0]), *place[1:]) if place else self.layout.out / done.file
        return ShardEntry(item.key, ENDINGS[done.codec], source, row.label, row.labels)

    def _note(self, shard: PreparedShard, items: Sequence[PrepareItem]) -> None:
        """Add a written or reused shard with its items."""
        self.shards.append(shard)
        self._places |= {item.key: (shard.shard, *place) for item, place in zip(items, shard.places) if place}
        self._packed += len(items)
        self._reach, self._waiting = self._packed, 0


def manifest_of(out: Path, name: str, split: str) -> Path:
    """The path of the manifest of a prepared split."""
    return out / "manifests" / f"{name}-{split}.arrow"


def origin_digest(out: Path, name: str, split: str) -> Path:
    """The path of the prepare log of a split."""
    return out / "manifests" / f"{name}-{split}.made.jsonl"


def drop(out: Path, name: str, split: str) -> None:
    """Remove all files of a split that the catalog does not have any more. Raises OSError."""
    manifest, listed = manifest_of(out, name, split), origin_digest(out, name, split)
    if not listed.exists() and not manifest.exists():
        return
    with PrepareLog(listed, "") as log:
        manifest.unlink(missing_ok=True)
        _clear(out, f"{name}/{split}", log.earlier, set())
    listed.unlink()  # last, as in `finish`


def _origin_of(key: str, row: Row, encoding: Encoding) -> str:
    """A digest of everything that a file depends on: the original file and its stamp, the segment, the settings."""
    origin = [row.path, row.offset, row.length, row.size, row.mtime_ns, row.start, row.end]
    return sha256(repr([VERSION, key, origin, sorted(asdict(encoding).items())]).encode()).hexdigest()[:20]


def _prepared(row: Row, done: PreparedSample, place: tuple[str, int, int] | None) -> Row:
    """The row of a prepared sample: a file of its own, or a byte range of a shard.

    Its duration is that of the original, unless the original is damaged.
    """
    if done.outcome == "failed":
        return replace(row, state="unreadable", why=done.why)
    cut = done.outcome == "partial" and done.last > 0
    fps = 0.0 if not row.fps else (done.frames - 1) / done.last if cut else done.frames / row.seconds
    path, offset, length = place or (done.file, None, None)
    mtime_ns = None if place else row.mtime_ns  # a shard has no time of change for its members
    row = replace(row, damage=_damage(row, done), size=done.bytes, mtime_ns=mtime_ns, frames=done.frames, fps=fps)
    row = replace(row, path=path, offset=offset, length=length, start=None, end=None)
    return replace(row, width=done.width, height=done.height, codec=done.codec)


def _damage(row: Row, done: PreparedSample) -> str:
    """The damage in the original manifest, or the damage that encoding met, in the form of `decode.probe_deep`."""
    if row.damage or done.outcome != "partial":
        return row.damage
    return f"{done.why}, {done.frames} of {round(row.seconds * row.fps)} frames"


def _is_whole(layout: OutputLayout, done: PreparedSample) -> bool:
    """Whether the file of a record still exists. A temporary file for a shard counts only if shards are written."""
    if done.file.startswith(f"{SPOOL}/") and not layout.shard_bytes:
        return False
    return _bytes_of(layout.out / done.file) == done.bytes


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _clear(out: Path, folder: str, listed: Iterable[str], needed: set[str]) -> None:
    """Remove the files of a split from earlier runs, except `needed`: those in the log, and those of killed runs."""
    for file in {*listed, *_files_of(out, folder)} - needed:
        if "/" in file:  # failures have no file, and members of shards have no folder
            _remove(out, file)


def _files_of(out: Path, folder: str) -> Iterator[str]:
    """All shards and files of a split, recognised by their names."""
    name, _, split = folder.partition("/")
    yield from (f"{name}/{file}" for file in _names(out / name) if re.fullmatch(re.escape(split) + _SHARD, file))
    for place in _names(out / folder):
        if re.fullmatch("[0-9a-f]{2}", place):
            yield from (
                f"{folder}/{place}/{file}" for file in _names(out / folder / place) if re.fullmatch(_FILE, file)
            )


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(out: Path, file: str) -> None:
    """Remove a file of an earlier run, and its folders if they are empty then."""
    path = out / file
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()
