"""Preparing one split: its files or shards, and its manifest.

A file is named by what it is made of, a shard by its bytes: nothing is ever written over, so that the manifest that
stands is right until the next one does. Only then what is no longer named is removed.
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

SPOOL = ".prepare"  # in the output folder: files on their way; gone when a run ends well
VERSION = 2  # of how files are made: a change makes all of them anew
_CRASHED = "the encoder crashed on it"
_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
}
_TEMPORARY = {  # troubles of a machine or a network, not of a file
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.EAGAIN,
    errno.EINTR,
    errno.EBUSY,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENODEV,
}
_SHARD = r"-[0-9]{6}-[0-9a-f]{16}\.tar"
_FILE = rf".+-[0-9a-f]{{20}}({'|'.join(map(re.escape, ENDINGS.values()))})"
_LATE = 1e-3  # seconds that the last frame's time may differ when it is read again


class Stopped(OSError):
    """The output cannot be written: nothing further would be either."""


@dataclass(frozen=True)
class OutputLayout:
    """Where prepared data lie: in the folder `out`, in files or in shards of about `shard_bytes`, read from `url` if
    that is given.
    """

    out: Path
    encoding: Encoding
    shard_bytes: int | None
    url: str | None


@dataclass(frozen=True, slots=True)
class PrepareItem:
    """A row to be made: its number in the manifest, its key among the files, its origin and the settings in a digest,
    and its class.
    """

    row: int
    key: str
    made_of: str
    tag: str


# --- one sample, in a worker process ---


def make(item: PrepareItem, manifest: Path, layout: OutputLayout, split: str) -> PreparedSample | Stopped:
    """Encode a row's sample, read it again, and move it to its place. What fails is told by the outcome."""
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
        if error.errno in _DISK:
            return Stopped(error.errno, error.strerror, error.filename)
        return _failed(item, row, f"cannot be encoded: {error.strerror or error}", again=True)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _make(item: PrepareItem, row: Row, media: Media, beside: Path, layout: OutputLayout, split: str) -> PreparedSample:
    beside.parent.mkdir(parents=True, exist_ok=True)
    encoded = _encode(row, media, beside, layout.encoding)
    size = _settle(beside, media)
    _verify(beside, media, encoded)
    file = _file_of(item, layout, split, ENDINGS[encoded.codec])
    _move(beside, layout.out / file, row.mtime_ns)
    why = encoded.partial or ""
    return PreparedSample(
        item.made_of,
        row.path,
        "partial" if why else "copied" if encoded.copied else "prepared",
        why,
        file,
        size,
        encoded.frames,
        encoded.last,
        encoded.width,
        encoded.height,
        encoded.codec,
        _is_temporary(encoded.damage),
    )


def _failed(item: PrepareItem, row: Row, why: str, again: bool) -> PreparedSample:
    return PreparedSample(item.made_of, row.path, "failed", why, again=again)


def _is_temporary(problem: MediaError | None) -> bool:
    return problem is not None and problem.errno in _TEMPORARY


@lru_cache(maxsize=4)
def _manifest(path: Path, changed_ns: int) -> Manifest:
    """Opened once by each process, and again where it has changed."""
    return open_manifest(path)


def _encode(row: Row, media: Media, out: Path, how: Encoding) -> Encoded:
    return (
        encode_image(row.source, out, how)
        if media == "image"
        else encode_video(row.source, out, how, row.start, row.end)
    )


def _settle(file: Path, media: Media) -> int:
    """The size in bytes of a file that is on the disk, as far as the system can tell: of images, that is not waited
    for.
    """
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if media == "video":
            os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _verify(file: Path, media: Media, encoded: Encoded) -> None:
    """Read what was written. Raises OSError where it is not what was meant."""
    try:
        result = probe(file, media)
        if (result.frames, result.width, result.height) != (encoded.frames, encoded.width, encoded.height):
            raise OSError(
                f"read again it has {result.frames} frames of {result.width}x{result.height}, not {encoded.frames}"
            )
        if media == "video":
            _verify_video(file, (result.frames - 1) / result.fps, encoded)
    except MediaError as error:
        raise OSError(f"read again it is damaged: {error}") from error


def _verify_video(file: Path, last: float, encoded: Encoded) -> None:
    if abs(last - encoded.last) > _LATE:
        raise OSError(f"read again its last frame is at {last:.3f} s, not {encoded.last:.3f}")
    if damage := decode_at(file, [0.0, encoded.last]).damage:
        raise damage


def _file_of(item: PrepareItem, layout: OutputLayout, split: str, ending: str) -> str:
    """Relative to the output folder. Files lie in 256 folders: not every disk likes a million in one."""
    if layout.shard_bytes:
        return f"{SPOOL}/{split}/{item.key}{ending}"
    return f"{split}/{item.made_of[-2:]}/{item.key.rpartition('-')[0]}-{item.made_of}{ending}"


def _move(beside: Path, file: Path, mtime_ns: int | None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if mtime_ns is not None:
        os.utime(beside, ns=(mtime_ns, mtime_ns))  # so that a manifest is the same, whenever its files were made
    beside.replace(file)


# --- a split ---


class SplitJob:
    """One split on its way: which of its rows are made, which are still to do. `scope`: of the originals' source ids;
    `catalog`: the originals'.
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
        # keys of what failed in earlier runs for reasons of the moment, until it is tried
        self._again: set[str] = set()
        # shard, offset and length of what lies in one, be it an older one
        self._places: dict[str, tuple[str, int, int]] = {}
        self.shards: list[PreparedShard] = []
        # items in shards; items done without a gap; bytes of those between
        self._packed = self._reach = self._waiting = 0
        self._recall()
        self.counts = Counter(done.outcome for done in self._done.values())
        todo = (item for item in self.items if item.key not in self._done)
        self.todo = sorted(todo, key=lambda item: item.key not in self._again)
        self._shards_recalled = False

    def close(self) -> None:
        """Let go of the list of what was made."""
        self.log.__exit__()

    @property
    def settled(self) -> int:
        """How many rows are done, failures among them."""
        return len(self._done)

    @property
    def bytes_after(self) -> int:
        return sum(done.bytes for done in self._done.values())

    def outcomes(self) -> Iterator[PreparedSample]:
        """What became of the rows, in their order."""
        return (self._done[item.key] for item in self.items)

    def check_unchanged(self) -> None:
        """Raises UserError where a file to be read is not as `cover index` found it."""
        todo = {item.row for item in self.todo}
        rows = (row for number, row in enumerate(self.manifest.rows()) if number in todo)
        stamps = {row.path: (row.size, row.mtime_ns) for row in rows if row.offset is None and not is_url(row.path)}
        results = (stat for part in stat_files(list(stamps)) for stat in part)
        changed = [path for path, stat in zip(stamps, results) if stat != stamps[path]]
        if changed:
            first = f"{changed[0]} and {len(changed) - 1} more files have" if len(changed) > 1 else f"{changed[0]} has"
            raise UserError(f"{self.name} {self.split}: {first} changed since `cover index`; run it again first")

    def accept(self, item: PrepareItem, outcome: PreparedSample | Stopped | None) -> None:
        """Take note of what became of an item, None being a crash. Raises Stopped, OSError."""
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
        """Write the manifest, and remove what an earlier run made and this one does not need. Raises OSError."""
        manifest, root = self.manifest, self.layout.url or ".."
        write_manifest(
            self.manifest_path,
            self.name,
            self.split,
            manifest.media,
            manifest.classes,
            self._rows(),
            root,
            self.scope,
            self.original,
        )
        samples = [self._as_kept(item) for item in self.items]
        retained = {shard.shard for shard in self.shards} | {done.file for done in samples}
        _clear(self.layout.out, self.folder, self.log.earlier, retained)
        self.log.settle(samples, self.shards)  # last: until then it lists what is to be removed
        for litter in self.manifest_path.parent.glob(f".{self.manifest_path.name}.*"):
            litter.unlink()

    # --- rows ---

    def _items(self) -> Iterator[PrepareItem]:
        visited: Counter[str] = Counter()
        sizes: dict[str, int] = {}
        for number, row in enumerate(self.manifest.rows()):
            if row.state != "ok":
                continue
            sizes[row.path if row.offset is None else f"{row.path}:{row.offset}"] = row.length or row.size or 0
            key = key_of(row.sample_id, row.start, row.end)
            visited[key] += 1
            if visited[key] > 1:
                key = key_of(row.sample_id, row.start, row.end, visited[key])
            made_of = _origin_of(key, row, self.layout.encoding)
            yield PrepareItem(number, key, made_of, f"{made_of} {row.label if row.labels is None else row.labels}")
        self.bytes_before = sum(sizes.values())

    def _rows(self) -> Iterator[Row]:
        outputs = {item.row: item.key for item in self.items}
        for number, row in enumerate(self.manifest.rows()):
            key = outputs.get(number)
            yield row if key is None else _prepared(row, self._done[key], self._places.get(key))

    def _as_kept(self, item: PrepareItem) -> PreparedSample:
        """A member of a shard goes by its own name."""
        done = self._done[item.key]
        return replace(done, file=item.key + ENDINGS[done.codec]) if self.layout.shard_bytes and done.file else done

    # --- what earlier runs left ---

    def _recall(self) -> None:
        """What was made of the rows as they are now and still lies somewhere; what failed for good."""
        stock = self._stock() if self.layout.shard_bytes else {}
        for item in self.items:
            done = self.log.samples.get(item.made_of)
            if done is None:
                continue
            if done.again:
                self._again.add(item.key)
            elif (place := stock.get(item.made_of)) and place[2] == done.bytes:
                self._done[item.key], self._places[item.key] = done, place
            elif not done.file or _is_whole(self.layout, done):
                self._done[item.key] = done

    def _stock(self) -> dict[str, tuple[str, int, int]]:
        """`made_of` -> shard, offset and length, of all that lies in shards."""
        whole = [shard for shard in self.log.shards if _bytes_of(self.layout.out / shard.shard) == shard.bytes]
        present = (
            (tag, shard.shard, place) for shard in whole for tag, place in zip(shard.samples, shard.places) if place
        )
        return {tag.partition(" ")[0]: (shard, *place) for tag, shard, place in present}

    def _recall_shards(self, limit: int) -> None:
        """The shards of the first rows, as long as they are what would be written now."""
        known: dict[str, list[PreparedShard]] = defaultdict(list)
        for shard in self.log.shards:
            known[shard.samples[0]].append(shard)
        while self._packed < self.total:
            same = (shard for shard in known[self.items[self._packed].tag] if self._would_write(shard, limit))
            standing = next(same, None)
            if standing is None:
                return
            self._note(standing, self.items[self._packed : self._packed + len(standing.samples)])

    def _would_write(self, shard: PreparedShard, limit: int) -> bool:
        """Whether the next shard would be just this one: the same samples, closed at the same one."""
        items = self.items[self._packed : self._packed + len(shard.samples)]
        if (
            not shard.shard.startswith(f"{self.folder}-{len(self.shards):06d}-")
            or [item.tag for item in items] != shard.samples
        ):
            return False
        present = [self._done[item.key].bytes if item.key in self._done else -1 for item in items]
        if present != [place[1] if place else 0 for place in shard.places]:
            return False
        closed = sum(present[:-1]) < limit <= sum(present) or items[-1] is self.items[-1]
        return closed and _bytes_of(self.layout.out / shard.shard) == shard.bytes

    # --- shards ---

    def pack(self) -> None:
        """Close every shard whose samples are all there. Raises OSError."""
        limit = self.layout.shard_bytes
        if not limit or self._again:  # whether a shard has a gap is known only when all gaps have been tried
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
        items = self.items[self._packed : self._reach]
        present = [item for item in items if self._done[item.key].file]
        if not present:
            return
        out, stem = self.layout.out, self.layout.out / f"{self.folder}-{len(self.shards):06d}"
        path, places = write_shard(stem, [self._member(item) for item in present], out / SPOOL / f"{stem.name}.part")
        place_of = dict(zip((item.key for item in present), places))
        shard = PreparedShard(
            path.relative_to(out).as_posix(),
            path.stat().st_size,
            [item.tag for item in items],
            [place_of.get(item.key) for item in items],
        )
        self.log.add(shard)
        self._note(shard, items)
        for item in present:
            # what a manifest may name is for `finish` to remove
            if (file := self._done[item.key].file).startswith(f"{SPOOL}/"):
                (out / file).unlink(missing_ok=True)

    def _member(self, item: PrepareItem) -> ShardEntry:
        done, place, row = self._done[item.key], self._places.get(item.key), self.manifest.row(item.row)
        source = ByteRange(str(self.layout.out / place[0]), *place[1:]) if place else self.layout.out / done.file
        return ShardEntry(item.key, ENDINGS[done.codec], source, row.label, row.labels)

    def _note(self, shard: PreparedShard, items: Sequence[PrepareItem]) -> None:
        self.shards.append(shard)
        self._places |= {item.key: (shard.shard, *place) for item, place in zip(items, shard.places) if place}
        self._packed += len(items)
        self._reach, self._waiting = self._packed, 0


def manifest_of(out: Path, name: str, split: str) -> Path:
    """Where the manifest of a prepared split is."""
    return out / "manifests" / f"{name}-{split}.arrow"


def origin_digest(out: Path, name: str, split: str) -> Path:
    """Where the list of what was made of a split is."""
    return out / "manifests" / f"{name}-{split}.made.jsonl"


def drop(out: Path, name: str, split: str) -> None:
    """Remove all of a split that the catalog no longer has. Raises OSError."""
    manifest, listed = manifest_of(out, name, split), origin_digest(out, name, split)
    if not listed.exists() and not manifest.exists():
        return
    with PrepareLog(listed, "") as log:
        manifest.unlink(missing_ok=True)
        _clear(out, f"{name}/{split}", log.earlier, set())
    listed.unlink()  # last, as in `finish`


def _origin_of(key: str, row: Row, how: Encoding) -> str:
    """A digest of all that a file depends on: its origin as it was, the segment, the settings."""
    origin = [row.path, row.offset, row.length, row.size, row.mtime_ns, row.start, row.end]
    return sha256(repr([VERSION, key, origin, sorted(asdict(how).items())]).encode()).hexdigest()[:20]


def _prepared(row: Row, done: PreparedSample, place: tuple[str, int, int] | None) -> Row:
    """A row whose sample is a file, or a stretch of a shard, of its own. It lasts as long as before, unless a damage
    cut it short.
    """
    if done.outcome == "failed":
        return replace(row, state="unreadable", why=done.why)
    cut = done.outcome == "partial" and done.last > 0
    fps = 0.0 if not row.fps else (done.frames - 1) / done.last if cut else done.frames / row.seconds
    path, offset, length = place or (done.file, None, None)
    return replace(
        row,
        path=path,
        offset=offset,
        length=length,
        start=None,
        end=None,
        frames=done.frames,
        fps=fps,
        width=done.width,
        height=done.height,
        codec=done.codec,
        damage=_damage(row, done),
        size=done.bytes,
        mtime_ns=None if place else row.mtime_ns,
    )


def _damage(row: Row, done: PreparedSample) -> str:
    """What the index found holds; a damage that it had not found is written as it would (`decode.probe_deep`)."""
    if row.damage or done.outcome != "partial":
        return row.damage
    return f"{done.why}, {done.frames} of {round(row.seconds * row.fps)} frames"


def _is_whole(layout: OutputLayout, done: PreparedSample) -> bool:
    """Whether the file is still there; one on its way into a shard is not enough where files are wanted."""
    if done.file.startswith(f"{SPOOL}/") and not layout.shard_bytes:
        return False
    return _bytes_of(layout.out / done.file) == done.bytes


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _clear(out: Path, folder: str, listed: Iterable[str], kept: set[str]) -> None:
    """Remove what earlier runs made of a split, but for `kept`: what is listed, and what one left that was killed
    before it could.
    """
    for file in {*listed, *_lying(out, folder)} - kept:
        if "/" in file:  # neither a failure nor a member of a shard
            _remove(out, file)


def _lying(out: Path, folder: str) -> Iterator[str]:
    """All shards and files of a split, by their names."""
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
    """A file that an earlier run made, and the folders that are empty without it."""
    path = out / file
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()
