"""What is to be made of each row of one split, and where does it end up? The files or shards of a split, and its manifest."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import av

from cover.datasets.made import Done, Made, Shard
from cover.datasets.manifest import Manifest, Media, Row, open_manifest, write_manifest
from cover.datasets.probing import stat_files
from cover.datasets.shards import Member, key_of, write_shard
from cover.errors import UserError
from cover.media.decode import decode_at, probe
from cover.media.encode import ENDINGS, Encoded, Encoding, encode_image, encode_video
from cover.media.results import MediaError
from cover.media.source import is_url

SPOOL = ".prepare"  # in the output folder: files on their way; gone when a run ends well
VERSION = 1  # of how files are made: a change makes all of them anew
_CRASHED = "the encoder crashed on it"
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
_LATE = 1e-3  # seconds that the last frame's time may differ when it is read again


class Stopped(OSError):
    """The output cannot be written: nothing further would be either."""


@dataclass(frozen=True)
class Layout:
    """Where prepared data lie: in the folder `out`, in files or in shards of about `shard_bytes`, read from `url` if that is given."""

    out: Path
    encoding: Encoding
    shard_bytes: int | None
    url: str | None


@dataclass(frozen=True, slots=True)
class Item:
    """A row to be made: its number in the manifest, its key among the files, its origin and the settings in a digest, and its class."""

    row: int
    key: str
    made_of: str
    tag: str


# --- one sample, in a worker process


def make(item: Item, manifest: Path, layout: Layout, split: str) -> Done | Stopped:
    """Encode a row's sample, read it again, and move it to its place. What fails is told by the outcome."""
    listed = _manifest(manifest, manifest.stat().st_mtime_ns)
    row, media = listed.row(item.row), listed.media
    if _made_of(item.key, row, layout.encoding) != item.made_of:
        return Stopped(errno.ESTALE, f"{manifest.name} was written anew meanwhile")
    beside = layout.out / SPOOL / split / f"{item.key}.part"
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        encoded = _encode(row, media, beside, layout.encoding)
        size = _settle(beside, media)
        _verify(beside, media, encoded)
        file = _file_of(item, layout, split, ENDINGS[encoded.codec])
        _move(beside, layout.out / file, row.mtime_ns)
    except MediaError as error:
        return Done(item.made_of, row.path, "failed", str(error))
    except (OSError, av.FFmpegError) as error:
        if error.errno in _DISK:
            return Stopped(error.errno, error.strerror)
        return Done(item.made_of, row.path, "failed", f"cannot be encoded: {error.strerror}")
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    outcome = "partial" if encoded.partial else "copied" if encoded.copied else "prepared"
    return Done(
        item.made_of, row.path, outcome, encoded.partial or "", file, size,
        encoded.frames, encoded.last, encoded.width, encoded.height, encoded.codec,
    )  # fmt: skip


@lru_cache(maxsize=4)
def _manifest(path: Path, changed_ns: int) -> Manifest:
    """Opened once by each process, and again where it has changed."""
    return open_manifest(path)


def _encode(row: Row, media: Media, out: Path, how: Encoding) -> Encoded:
    return encode_image(row.source, out, how) if media == "image" else encode_video(row.source, out, how, row.start, row.end)


def _settle(file: Path, media: Media) -> int:
    """The size in bytes of a file that is on the disk, as far as the system can tell: of images, that is not waited for."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        if media == "video":
            os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _verify(file: Path, media: Media, encoded: Encoded) -> None:
    """Read what was written. Raises MediaError where it is not what was meant."""
    found = probe(file, media)
    if (found.frames, found.width, found.height) != (encoded.frames, encoded.width, encoded.height):
        raise MediaError(f"read again it has {found.frames} frames of {found.width}x{found.height}, not {encoded.frames}")
    if media == "video":
        last = (found.frames - 1) / found.fps
        if abs(last - encoded.last) > _LATE:
            raise MediaError(f"read again its last frame is at {last:.3f} s, not {encoded.last:.3f}")
        if damage := decode_at(file, [0.0, encoded.last]).partial:
            raise MediaError(f"read again it is damaged: {damage}")


def _file_of(item: Item, layout: Layout, split: str, ending: str) -> str:
    """Relative to the output folder. Files lie in 256 folders: not every disk likes a million in one."""
    if layout.shard_bytes:
        return f"{SPOOL}/{split}/{item.key}{ending}"
    return f"{split}/{item.key[-2:]}/{item.key}{ending}"


def _move(beside: Path, file: Path, mtime_ns: int | None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if mtime_ns is not None:
        os.utime(beside, ns=(mtime_ns, mtime_ns))  # so that a manifest is the same, whenever its files were made
    beside.replace(file)


# --- a split


class Job:
    """One split on its way: which of its rows are made, which are still to do."""

    def __init__(self, name: str, split: str, manifest: Manifest, layout: Layout) -> None:
        self.name, self.split, self.manifest, self.layout = name, split, manifest, layout
        self.folder = f"{name}/{split}"
        self.manifest_path = layout.out / "manifests" / f"{name}-{split}.arrow"
        self.made = Made(self.manifest_path.with_suffix(".made.jsonl"))
        self.encoded, self.bytes_before = 0, 0
        self.items = list(self._items())
        self.total = len(self.items)
        self._done: dict[str, Done] = {}
        self.counts: Counter[str] = Counter()
        self._places: dict[str, tuple[int, int]] = {}
        self.shards: list[Shard] = []
        self._packed = self._reach = self._waiting = 0  # items in shards; items done without a gap; bytes of those between
        self._recall()
        self.counts.update(done.outcome for done in self._done.values())
        self.todo = [item for item in self.items if item.key not in self._done]

    def close(self) -> None:
        """Let go of the list of what was made."""
        self.made.__exit__()

    @property
    def settled(self) -> int:
        """How many rows are done, failures among them."""
        return len(self._done)

    @property
    def bytes_after(self) -> int:
        return sum(done.bytes for done in self._done.values())

    def outcomes(self) -> Iterator[Done]:
        """What became of the rows, in their order."""
        return (self._done[item.key] for item in self.items)

    def check_unchanged(self) -> None:
        """Raises UserError where a file to be read is not as `cover index` found it."""
        todo = {item.row for item in self.todo}
        rows = (row for number, row in enumerate(self.manifest.rows()) if number in todo)
        stamps = {row.path: (row.size, row.mtime_ns) for row in rows if row.offset is None and not is_url(row.path)}
        found = (stat for part in stat_files(list(stamps)) for stat in part)
        changed = [path for path, stat in zip(stamps, found) if stat != stamps[path]]
        if changed:
            first = f"{changed[0]} and {len(changed) - 1} more files have" if len(changed) > 1 else f"{changed[0]} has"
            raise UserError(f"{self.name} {self.split}: {first} changed since `cover index`; run it again first")

    def accept(self, item: Item, outcome: Done | Stopped | None) -> None:
        """Take note of what became of an item, None being a crash. Raises Stopped, OSError."""
        if isinstance(outcome, Stopped):
            raise outcome
        done = outcome or Done(item.made_of, self.manifest.row(item.row).path, "failed", _CRASHED)
        self.made.add(done)
        self._done[item.key] = done
        self.counts[done.outcome] += 1
        self.encoded += 1
        self.pack()

    def finish(self) -> None:
        """Write the manifest, and remove what an earlier run made and this one does not need. Raises OSError."""
        earlier = {done.file for done in self.made.samples.values()} | {shard.shard for shard in self.made.shards}
        self.manifest_path.parent.mkdir(exist_ok=True)
        manifest, root = self.manifest, self.layout.url or ".."
        write_manifest(self.manifest_path, self.name, self.split, manifest.media, manifest.classes, self._rows(), root)
        samples = [self._as_kept(self._done[item.key]) for item in self.items]
        self.made.settle(samples, self.shards)
        for file in earlier - {done.file for done in samples} - {shard.shard for shard in self.shards} - {""}:
            _remove(self.layout.out, file)
        for litter in self.manifest_path.parent.glob(f".{self.manifest_path.name}.*"):
            litter.unlink()

    # --- rows

    def _items(self) -> Iterator[Item]:
        seen: Counter[str] = Counter()
        sizes: dict[str, int] = {}
        for number, row in enumerate(self.manifest.rows()):
            if row.state != "ok":
                continue
            sizes[row.path if row.offset is None else f"{row.path}:{row.offset}"] = row.length or row.size or 0
            key = key_of(row.sample_id, row.start, row.end)
            seen[key] += 1
            if seen[key] > 1:
                key = key_of(row.sample_id, row.start, row.end, seen[key])
            made_of = _made_of(key, row, self.layout.encoding)
            yield Item(number, key, made_of, f"{made_of} {row.label if row.labels is None else row.labels}")
        self.bytes_before = sum(sizes.values())

    def _rows(self) -> Iterator[Row]:
        made = {item.row: item.key for item in self.items}
        for number, row in enumerate(self.manifest.rows()):
            key = made.get(number)
            yield row if key is None else _prepared(row, self._done[key], self._places.get(key), self._shard_of.get(key))

    def _as_kept(self, done: Done) -> Done:
        """A member of a shard goes by its own name."""
        return replace(done, file=Path(done.file).name) if self.layout.shard_bytes and done.file else done

    # --- what earlier runs left

    def _recall(self) -> None:
        self._shard_of: dict[str, str] = {}
        if self.layout.shard_bytes:
            self._recall_shards(self.layout.shard_bytes)
        for item in self.items[self._packed :]:
            done = self.made.samples.get(item.made_of)
            if done and (not done.file or _is_whole(self.layout, done)):
                self._done[item.key] = done

    def _recall_shards(self, limit: int) -> None:
        """The shards that hold the first rows as they are now, each closed where it would be closed now."""
        known = {shard.shard: shard for shard in self.made.shards}
        while shard := known.get(f"{self.folder}-{len(self.shards):06d}.tar"):
            items = self.items[self._packed : self._packed + len(shard.samples)]
            payload = [place[1] for place in shard.places if place]
            closed = sum(payload) >= limit and sum(payload[:-1]) < limit
            if [item.tag for item in items] != shard.samples or not (closed or items[-1] is self.items[-1]):
                return
            if _bytes_of(self.layout.out / shard.shard) != shard.bytes:
                return
            self._done |= {item.key: self.made.samples[item.made_of] for item in items}
            self._note(shard, items)

    # --- shards

    def pack(self) -> None:
        """Close every shard whose samples are all there. Raises OSError."""
        limit = self.layout.shard_bytes
        while limit and self._reach < self.total and (done := self._done.get(self.items[self._reach].key)):
            self._reach += 1
            self._waiting += done.bytes
            if self._waiting >= limit or self._reach == self.total:
                self._close_shard()

    def _close_shard(self) -> None:
        items = self.items[self._packed : self._reach]
        held = [item for item in items if self._done[item.key].file]
        if not held:
            return
        rows = {item.key: self.manifest.row(item.row) for item in held}
        files = {item.key: self.layout.out / self._done[item.key].file for item in held}
        members = [Member(item.key, files[item.key], rows[item.key].label, rows[item.key].labels) for item in held]
        name = f"{self.folder}-{len(self.shards):06d}.tar"
        path = self.layout.out / name
        places = dict(zip(files, write_shard(path, members, self.layout.out / SPOOL / f"{path.name}.part")))
        shard = Shard(name, path.stat().st_size, [item.tag for item in items], [places.get(item.key) for item in items])
        self.made.add(shard)
        self._note(shard, items)
        for file in files.values():
            file.unlink()

    def _note(self, shard: Shard, items: list[Item]) -> None:
        self.shards.append(shard)
        for item, place in zip(items, shard.places):
            if place:
                self._places[item.key], self._shard_of[item.key] = (place[0], place[1]), shard.shard
        self._packed += len(items)
        self._reach, self._waiting = self._packed, 0


def _made_of(key: str, row: Row, how: Encoding) -> str:
    """A digest of all that a file depends on: its origin as it was, the segment, the settings."""
    origin = [row.path, row.offset, row.length, row.size, row.mtime_ns, row.start, row.end]
    return sha256(repr([VERSION, key, origin, sorted(asdict(how).items())]).encode()).hexdigest()[:20]


def _prepared(row: Row, done: Done, place: tuple[int, int] | None, shard: str | None) -> Row:
    """A row whose sample is a file, or a stretch of a shard, of its own. It lasts as long as before, unless a damage cut it short."""
    if done.outcome == "failed":
        return replace(row, state="unreadable", why=done.why)
    cut = done.outcome == "partial" and done.last > 0
    fps = 0.0 if not row.fps else (done.frames - 1) / done.last if cut else done.frames / row.seconds
    offset, length = place or (None, None)
    return replace(
        row, path=shard or done.file, offset=offset, length=length, start=None, end=None, frames=done.frames, fps=fps,
        width=done.width, height=done.height, codec=done.codec, why="", size=done.bytes, mtime_ns=None if shard else row.mtime_ns,
    )  # fmt: skip


def _is_whole(layout: Layout, done: Done) -> bool:
    """Whether the file is still there; one on its way into a shard is not enough where files are wanted."""
    if done.file.startswith(f"{SPOOL}/") and not layout.shard_bytes:
        return False
    return _bytes_of(layout.out / done.file) == done.bytes


def _bytes_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _remove(out: Path, file: str) -> None:
    """A file that an earlier run made, and the folders that are empty without it."""
    path = out / file
    with suppress(OSError):
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()
