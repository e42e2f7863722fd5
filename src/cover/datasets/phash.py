"""Perceptual hashes of images and videos, hashes of file contents, and an index of near hashes.

The hash of a frame has 64 bits. The frame becomes a 32 x 32 grey picture, and its cosine transform has the 64 lowest
frequencies without the mean. A bit is 1 if its coefficient is above the median. So brightness does not change the hash,
and size and encoding change few bits. A crop changes many bits, so central crops of every frame are hashed too, and the
whole of one frame may agree with a crop of the other. The mirrored frame is hashed too, for mirrored copies. Frames of
nearly one tone (black frames, titles, logos) are left out, because many different clips have them.

Two frames agree if their hashes differ in at most `RADIUS` bits. Two videos match if at least `AGREE` frames of each
agree with a frame of the other, and one pair differs in at most `SURE` bits. Two images match if they differ in at most
`SURE_IMAGE` bits. A mirrored copy matches in the same way, with all its frames mirrored. Hashes are cached in a file
until the media file changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from cover.console import Meter
from cover.datasets.probe import Stamp
from cover.media.decode import MediaError, decode_at, decode_image
from cover.media.source import ByteRange, Source
from cover.processes import ProcessPool

FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)  # times of the hashed frames, as fractions of the clip
CROPS = 4  # hashes of a frame: the whole frame, then three central crops, and behind them the mirrored whole frame
HASHES = CROPS + 1
RADIUS, SURE, AGREE, SURE_IMAGE = 10, 7, 3, 5
SIDE = 32  # pixels of the grey picture
_HINT = 96  # short side of decoded frames; the smallest crop of it still has more than SIDE pixels
# A frame is plain if its grey levels (0 to 255) have a standard deviation below the first number, or if more than the
# fraction in the second number is within the third number of the median.
_PLAIN_STD, _PLAIN_FRACTION, _PLAIN_BAND = 10.0, 0.7, 8
_BANDS, _BAND_BITS = 4, 16  # a hash has 4 bands of 16 bits
_PER_CHUNK = 1 << 22  # comparisons at once

Hashes = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]
_Buckets = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


# --- hashes of one frame ---


def _transform() -> npt.NDArray[np.float64]:
    """float64 `(10, SIDE)`: the rows of the cosine transform (DCT-II) for the frequencies 0 to 9."""
    frequency, place = np.arange(10)[:, None], np.arange(SIDE)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))


_DCT = _transform()
# The 64 lowest frequencies (u, v) by distance from (0, 0), which is the mean and is left out.
_LOWEST = sorted((u * u + v * v, u, v) for u in range(10) for v in range(10))[1:65]
_ROWS, _COLUMNS = [u for _, u, _ in _LOWEST], [v for _, _, v in _LOWEST]
_WEIGHTS = np.uint64(1) << np.arange(64, dtype=np.uint64)


def frame_hashes(pixels: npt.NDArray[np.uint8]) -> tuple[int, ...]:
    """The `HASHES` hashes of an RGB frame, uint8 `(H, W, 3)`. Empty if the frame is plain."""
    picture = Image.fromarray(pixels).convert("L")
    whole = _grey(picture, (0, 0, *picture.size))
    if is_plain(whole):
        return ()
    return (*(_hash(_grey(picture, box)) for box in _boxes(*picture.size)), _hash(whole[:, ::-1]))


def is_plain(grey: npt.NDArray[np.float64]) -> bool:
    """Whether a grey picture (0 to 255) has nearly one tone, or one tone with a little writing."""
    near = np.abs(grey - np.median(grey)) <= _PLAIN_BAND
    return bool(grey.std() < _PLAIN_STD or near.mean() > _PLAIN_FRACTION)


_FractionBox = tuple[float, float, float, float]  # left, top, right, bottom


def _boxes(width: int, height: int) -> list[_FractionBox]:
    """The boxes of the whole frame, of 0.9 and 0.8 of each side, and of the central square."""
    side = min(width, height)
    sizes = [(width, height), (0.9 * width, 0.9 * height), (0.8 * width, 0.8 * height), (side, side)]
    return [((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2) for w, h in sizes]


def _grey(picture: Image.Image, box: _FractionBox) -> npt.NDArray[np.float64]:
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box), np.float64)


def _hash(grey: npt.NDArray[np.float64]) -> int:
    # Comparing with the median gives as many ones as zeros, so hashes of different frames are far apart.
    lowest = (_DCT @ grey @ _DCT.T)[_ROWS, _COLUMNS]
    return int(_WEIGHTS[lowest > np.median(lowest)].sum(dtype=np.uint64))


# --- hashes of one file ---


def image_hashes(source: Source) -> tuple[int, ...] | None:
    """The hashes of an image. Empty if it is plain, None if it cannot be read."""
    try:
        return frame_hashes(decode_image(source, size_hint=_HINT))
    except MediaError:
        return None


def video_hashes(source: Source, start: float, seconds: float) -> tuple[int, ...] | None:
    """The hashes of the frames at `FRACTIONS` of a segment, frame after frame. Plain frames are left out.

    `start`, `seconds`: the segment. None if the file cannot be read.
    """
    times = [start + fraction * seconds for fraction in FRACTIONS]
    try:
        decoded = decode_at(source, times, size_hint=_HINT)
    except MediaError:
        return None
    hashes = [frame_hashes(frame) for frame in decoded.frames]
    if decoded.partial:  # times behind the damage all have the last frame, which must not count several times
        hashes = list(dict.fromkeys(hashes))
    return tuple(value for frame in hashes for value in frame)


# --- matching of many files ---


class HashIndex:
    """The index that matches the hashes of many videos, or of many images.

    `hashes`: for each item, the result of `video_hashes` or `image_hashes`. `group`: int64 `(items,)`. Only items of
    different groups are matched. `video`: whether the items are videos.
    """

    def __init__(self, hashes: list[tuple[int, ...]], group: npt.NDArray[np.int64], video: bool) -> None:
        self.group = group
        self.agree, self.sure = (AGREE, SURE) if video else (1, SURE_IMAGE)
        most = len(FRACTIONS) if video else 1
        # `hashes` (items, frames, HASHES) has zeros behind the first `count` (items,) frames of an item.
        self.count = np.array([len(item) // HASHES for item in hashes], np.int64)
        self.hashes = np.zeros((len(hashes), most, HASHES), np.uint64)
        for number, item in enumerate(hashes):
            self.hashes[number].reshape(-1)[: len(item)] = item
        self.count[self.count < self.agree] = 0  # too few frames for a match

    @property
    def comparable(self) -> npt.NDArray[np.bool_]:
        """bool `(items,)`: whether an item has enough frames for a match."""
        return self.count > 0

    def pairs(self) -> Pairs:
        """int64 `(pairs, 2)`: all matching items of different groups, sorted, with the lower number first."""
        near = self._near()
        matching = [part[np.isfinite(self.bits(part))] for part in _chunks(near, 1 << 16)]
        return np.concatenate([np.empty((0, 2), np.int64), *matching])

    def bits(self, pairs: Pairs) -> npt.NDArray[np.float64]:
        """float64 `(pairs,)`: for items that match, the mean number of bits between their frames; infinite for others.

        The first frame is compared with the first, and so on. If the numbers of frames differ, each frame of the item
        with fewer of them is compared with the nearest one. Of a copy and its mirror image, the nearer one counts.
        """
        upright, mirrored = (self._bits(pairs[:, 0], pairs[:, 1], form) for form in (0, CROPS))
        return np.minimum(upright, mirrored)

    def _bits(self, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], form: int) -> npt.NDArray[np.float64]:
        """`bits` of the pairs `(a, b)` with whole frames in one form: as they are (0) or mirrored (CROPS)."""
        # (pairs, frames of a, frames of b): the smaller distance, with the crops of b or with the crops of a.
        distance = np.minimum(self._distance(a, b, form), self._distance(b, a, form).swapaxes(1, 2))
        close = distance <= RADIUS
        # The number of frames that agree, in the item that has fewer of them.
        agreeing = np.minimum(close.any(2).sum(1), close.any(1).sum(1))
        match = (agreeing >= self.agree) & (distance.min((1, 2)) <= self.sure)
        frame, fewer = np.arange(distance.shape[1]), np.minimum(self.count[a], self.count[b])[:, None]
        of_a, of_b, in_order = distance.min(2), distance.min(1), distance.diagonal(axis1=1, axis2=2)
        nearest = np.where((self.count[a] < self.count[b])[:, None], of_a, of_b)
        nearest = np.where((self.count[a] == self.count[b])[:, None], in_order, nearest)
        total = np.where(frame < fewer, nearest, 0).sum(1, dtype=np.float64)
        return np.where(match, total / np.maximum(fewer[:, 0], 1), np.inf)

    def _distance(
        self, whole: npt.NDArray[np.int64], cropped: npt.NDArray[np.int64], form: int
    ) -> npt.NDArray[np.uint8]:
        """uint8 `(pairs, frames, frames)`: bits between whole frames of one item and frames of the other item.

        For each frame of the other item, the crop with the fewest different bits counts. `form`: the place of the whole
        frame's hash.
        """
        one, other = self.hashes[whole][:, :, None, form], self.hashes[cropped][:, None, :, :CROPS]
        bits = np.bitwise_count(one[..., None] ^ other).min(3)
        frame = np.arange(self.hashes.shape[1])
        absent = (frame >= self.count[whole][:, None])[:, :, None] | (frame >= self.count[cropped][:, None])[:, None]
        bits[absent] = 65  # more than any two hashes differ in
        return bits

    def _near(self) -> Pairs:
        """int64 `(pairs, 2)`: the items of different groups that have two frames within `sure` bits, all of them.

        The crops of every frame are looked up among whole frames and mirrored whole frames. If two hashes differ in at
        most 7 bits, then one of their four bands differs in at most 1 bit. So two hashes are compared only if one of
        their bands differs in at most 1 bit. For random hashes this is 17 in 65,536 per band, about one in a thousand
        over the four bands.
        """
        item, frame = np.nonzero(np.arange(self.hashes.shape[1]) < self.count[:, None])
        frames = self.hashes[item, frame]
        keys = []  # a pair (low, high) as the number low * items + high
        for band in range(_BANDS):
            for form in (0, CROPS):
                buckets = _buckets(frames[:, form], band)
                keys += [self._of_band(frames, item, band, form, buckets, part) for part in self._chunks(len(frames))]
        unique = np.unique(np.concatenate([np.empty(0, np.int64), *keys]))
        return np.stack(np.divmod(unique, max(1, len(self.group))), axis=1)

    def _chunks(self, frames: int) -> Iterator[slice]:
        """Slices of the frames, so that one slice makes about `_PER_CHUNK` comparisons."""
        lookups = CROPS * (1 + _BAND_BITS)  # buckets that one frame is compared with
        # A bucket has frames / 2**16 hashes on average. Buckets are uneven, so 4 times the mean is assumed.
        size = max(64, _PER_CHUNK * (1 << _BAND_BITS) // (lookups * max(1, frames) * 4))
        return (slice(first, first + size) for first in range(0, frames, size))

    def _of_band(
        self, frames: Hashes, item: npt.NDArray[np.int64], band: int, form: int, buckets: _Buckets, part: slice
    ) -> npt.NDArray[np.int64]:
        """The near pairs of the crops of some frames with all whole frames, through one band. Each pair is one number.

        `frames`: uint64 `(F, HASHES)`. `form`: the place of the whole frame's hash. `item`: int64 `(F,)`, the item of
        each frame. `part`: the frames to look up.
        """
        query, owner = frames[part, :CROPS].ravel(), np.repeat(item[part], CROPS)
        key = _band(query, band)[:, None] ^ _ONE_BIT_OFF  # (queries, 17): the buckets to search
        order, first, last = buckets
        counts = (last[key] - first[key]).ravel()  # hashes in each bucket
        # One element per comparison: `lookup` is the index of its (query, bucket), `place` its position in the bucket.
        lookup = np.repeat(np.arange(key.size), counts)
        place = np.arange(len(lookup)) - np.repeat(np.cumsum(counts) - counts, counts)
        candidate, query_of = order[first[key].ravel()[lookup] + place], lookup // key.shape[1]
        near = np.bitwise_count(query[query_of] ^ frames[candidate, form]) <= self.sure
        one, other = owner[query_of[near]], item[candidate[near]]
        low, high = np.minimum(one, other), np.maximum(one, other)
        apart = self.group[low] != self.group[high]
        return np.unique((low * len(self.group) + high)[apart])


# XOR with these gives a band itself and the 16 bands that differ in one bit.
_ONE_BIT_OFF = np.array([0, *(1 << bit for bit in range(_BAND_BITS))], np.int64)


def _band(hashes: Hashes, band: int) -> npt.NDArray[np.int64]:
    """Band number `band` of each hash, 0 to 65,535."""
    return ((hashes >> np.uint64(_BAND_BITS * band)) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)


def _buckets(hashes: Hashes, band: int) -> _Buckets:
    """`(order, first, last)`: the hashes with band value v are order[first[v]] to order[last[v] - 1]."""
    key = _band(hashes, band)
    last = np.cumsum(np.bincount(key, minlength=1 << _BAND_BITS))
    return np.argsort(key, kind="stable"), np.concatenate([[0], last[:-1]]), last


def _chunks(pairs: Pairs, size: int) -> Iterator[Pairs]:
    return (pairs[first : first + size] for first in range(0, len(pairs), size))


# --- hashes of many files, with a cache ---

_HASH_VERSION = 3  # cached hashes of another version are computed again
_FILES_PER_TASK = 16
_BLOCK = 1 << 20

Fingerprint = tuple[int, ...]  # numbers of 64 bits; empty if there is nothing to compare


class HashInput(NamedTuple):
    """The input of a hash function: a file, or `length` bytes of a shard from `offset` on.

    `start`, `seconds`: the segment of a video. Both are 0 for images and for hashes of bytes.
    """

    path: str
    offset: int | None = None
    length: int | None = None
    start: float = 0.0
    seconds: float = 0.0

    @property
    def source(self) -> str | ByteRange:
        """The input of the decoder."""
        if self.offset is None or self.length is None:
            return self.path
        return ByteRange(self.path, self.offset, self.length)


HashFunction = Callable[[HashInput], Fingerprint | None]


def of_bytes(item: HashInput) -> Fingerprint | None:
    """128 bits of BLAKE2b over the bytes of an input, None if it cannot be read."""
    digest, left = hashlib.blake2b(digest_size=16), -1 if item.length is None else item.length
    try:
        with open(item.path, "rb") as file:
            file.seek(item.offset or 0)
            while block := file.read(_BLOCK if left < 0 else min(_BLOCK, left)):
                digest.update(block)
                left -= len(block) if left >= 0 else 0
    except OSError:
        return None
    return int.from_bytes(digest.digest()[:8]), int.from_bytes(digest.digest()[8:])


def of_video(item: HashInput) -> Fingerprint | None:
    """`video_hashes` of an input."""
    return video_hashes(item.source, item.start, item.seconds)


def of_image(item: HashInput) -> Fingerprint | None:
    """`image_hashes` of an input."""
    return image_hashes(item.source)


def fingerprints(
    pool: ProcessPool,
    label: str,
    work: HashFunction,
    inputs: Iterable[HashInput],
    stamp: Mapping[str, Stamp],
    cache: Path,
) -> dict[HashInput, Fingerprint]:
    """Input -> fingerprint, for all inputs whose file exists and can be read.

    `work`: the hash function. `stamp`: path -> size and time of change of every existing file. `cache`: a file with the
    results of earlier calls. New results are added to it, also if the work is interrupted.
    """
    wanted = [item for item in dict.fromkeys(inputs) if item.path in stamp]
    cached = _read_cache(cache)
    known = {item: value for item, (then, value) in cached.items() if stamp.get(item.path) == then}
    todo = [item for item in wanted if item not in known]
    try:
        with Meter(label, len(todo)) as meter:
            for part in pool.as_completed(work, todo, _FILES_PER_TASK, lambda item: None):
                known.update((item, value) for item, value in part if value is not None)
                meter.advance(len(part))
    finally:
        if todo:
            others = {item: entry for item, entry in cached.items() if item.path not in stamp}
            _write_cache(cache, others | {item: (stamp[item.path], value) for item, value in known.items()})
    return {item: known[item] for item in wanted if item in known}


# --- the cache file ---

_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("start", pa.float64()),
        ("seconds", pa.float64()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("value", pa.list_(pa.uint64())),
    ],
    metadata={"cover": json.dumps({"fingerprints": _HASH_VERSION})},
)
_Cache = dict[HashInput, tuple[Stamp, Fingerprint]]


def _read_cache(cache: Path) -> _Cache:
    """The entries of the cache. Empty if the file is missing, damaged or of another version."""
    if not cache.is_file():
        return {}
    try:
        table = pa.ipc.open_file(pa.memory_map(str(cache))).read_all()
    except (pa.ArrowInvalid, OSError):
        return {}
    if not table.schema.equals(_SCHEMA, check_metadata=True):
        return {}
    columns = (column.to_pylist() for column in table.columns)
    return {HashInput(*item): ((size, mtime_ns), tuple(value)) for *item, size, mtime_ns, value in zip(*columns)}


def _write_cache(cache: Path, entries: _Cache) -> None:
    rows: Sequence[tuple[object, ...]] = [(*item, *stamp, value) for item, (stamp, value) in entries.items()]
    columns = list(zip(*rows)) or [()] * len(_SCHEMA)
    write_arrow(cache, pa.table([pa.array(c, field.type) for c, field in zip(columns, _SCHEMA)], schema=_SCHEMA))


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table under another name and rename the file, so readers never see half a table."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(beside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
