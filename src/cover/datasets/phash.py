"""Perceptual hashes of images and videos, hashes of file contents, and an index that finds near ones.

A frame is hashed to 64 bits: the signs, about their median, of the 64 lowest frequencies of the cosine transform of a
32 x 32 grey picture, without the mean. Brightness cancels out; size and encoding change few bits. A crop changes many,
so every frame is also hashed as central crops of itself, and a pair may agree as crop and whole. Black frames and
frames of nearly one tone (leaders, titles, logos) are left out, because they say nothing of the clip.

Two frames agree within `RADIUS` bits. Two videos match where at least `AGREE` frames of each agree with a frame of the
other and one pair is within `SURE` bits; two images match within `SURE_IMAGE` bits. Hashes are cached in a file until
the media file changes.
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

FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)  # where in a clip its frames are taken
CROPS = 4  # hashes of a frame: the whole first
RADIUS, SURE, AGREE, SURE_IMAGE = 10, 7, 3, 5
SIDE = 32
_HINT = 96  # frames are decoded at about this short side: crops of it still hold SIDE pixels
_PLAIN_STD, _PLAIN_SHARE, _PLAIN_BAND = 10.0, 0.7, 8  # grey levels of 255
_BANDS, _BAND_BITS = 4, 16
_PER_CHUNK = 1 << 22  # hashes compared at once

Hashes = npt.NDArray[np.uint64]
Pairs = npt.NDArray[np.int64]
_Buckets = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


# --- one frame ---


def _transform() -> npt.NDArray[np.float64]:
    """Rows of the cosine transform (DCT-II) up to the highest frequency needed."""
    frequency, place = np.arange(10)[:, None], np.arange(SIDE)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))


_DCT = _transform()
_LOWEST = sorted((u * u + v * v, u, v) for u in range(10) for v in range(10))[1:65]
_ROWS, _COLUMNS = [u for _, u, _ in _LOWEST], [v for _, _, v in _LOWEST]
_WEIGHTS = np.uint64(1) << np.arange(64, dtype=np.uint64)


def frame_hashes(pixels: npt.NDArray[np.uint8]) -> tuple[int, ...]:
    """The `CROPS` hashes of an RGB frame, uint8 `(H, W, 3)`; none where it is plain."""
    picture = Image.fromarray(pixels).convert("L")
    if is_plain(_grey(picture, (0, 0, *picture.size))):
        return ()
    return tuple(_hash(_grey(picture, box)) for box in _boxes(*picture.size))


def is_plain(grey: npt.NDArray[np.float64]) -> bool:
    """Whether a grey picture (0 to 255) is nearly of one tone, or one tone with a little writing on it."""
    near = np.abs(grey - np.median(grey)) <= _PLAIN_BAND
    return bool(grey.std() < _PLAIN_STD or near.mean() > _PLAIN_SHARE)


_FractionBox = tuple[float, float, float, float]  # left, top, right, bottom


def _boxes(width: int, height: int) -> list[_FractionBox]:
    """The whole, 9/10 and 8/10 of each side, and the central square."""
    side = min(width, height)
    sizes = [(width, height), (0.9 * width, 0.9 * height), (0.8 * width, 0.8 * height), (side, side)]
    return [((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2) for w, h in sizes]


def _grey(picture: Image.Image, box: _FractionBox) -> npt.NDArray[np.float64]:
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box), np.float64)


def _hash(grey: npt.NDArray[np.float64]) -> int:
    lowest = (_DCT @ grey @ _DCT.T)[_ROWS, _COLUMNS]
    return int(_WEIGHTS[lowest > np.median(lowest)].sum(dtype=np.uint64))


# --- one file ---


def image_hashes(source: Source) -> tuple[int, ...] | None:
    """The hashes of an image, none where it is plain, None where it cannot be read."""
    try:
        return frame_hashes(decode_image(source, size_hint=_HINT))
    except MediaError:
        return None


def video_hashes(source: Source, start: float, seconds: float) -> tuple[int, ...] | None:
    """The hashes of the frames at `FRACTIONS` of a segment, frame after frame, plain ones left out; None where it
    cannot be read.
    """
    times = [start + fraction * seconds for fraction in FRACTIONS]
    try:
        decoded = decode_at(source, times, size_hint=_HINT)
    except MediaError:
        return None
    hashes = [frame_hashes(frame) for frame in decoded.frames]
    if decoded.partial:  # behind the damage the last frame stands in for all others
        hashes = list(dict.fromkeys(hashes))
    return tuple(value for frame in hashes for value in frame)


# --- many files ---


class HashIndex:
    """The hashes of many videos, or of many images, to be compared.

    `hashes`: one tuple per item, as `video_hashes` and `image_hashes` give them. `group`: int `(items,)`; pairs within
    a group are not looked for.
    """

    def __init__(self, hashes: list[tuple[int, ...]], group: npt.NDArray[np.int64], video: bool) -> None:
        self.group = group
        self.agree, self.sure = (AGREE, SURE) if video else (1, SURE_IMAGE)
        most = len(FRACTIONS) if video else 1
        self.count = np.array([len(item) // CROPS for item in hashes], np.int64)
        self.hashes = np.zeros((len(hashes), most, CROPS), np.uint64)
        for number, item in enumerate(hashes):
            self.hashes[number].reshape(-1)[: len(item)] = item
        self.count[self.count < self.agree] = 0  # too few frames to agree

    @property
    def comparable(self) -> npt.NDArray[np.bool_]:
        """bool `(items,)`: whether an item has frames enough to match anything."""
        return self.count > 0

    def pairs(self) -> Pairs:
        """int64 `(pairs, 2)`, the matching items of different groups, the lower number first, sorted; none is missed."""
        near = self._near()
        retained = [part[self.matches(part)] for part in _chunks(near, 1 << 16)]
        return np.concatenate([np.empty((0, 2), np.int64), *retained])

    def matches(self, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """bool `(pairs,)`: whether the items of each pair match."""
        a, b = pairs.T
        distance = np.minimum(self._distance(a, b), self._distance(b, a).swapaxes(1, 2))
        close = distance <= RADIUS
        agreeing = np.minimum(close.any(2).sum(1), close.any(1).sum(1))
        return (agreeing >= self.agree) & (distance.min((1, 2)) <= self.sure)

    def _distance(self, whole: npt.NDArray[np.int64], cropped: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Bits between every whole frame of one item and the likest crop of every frame of the other, `(pairs, frames,
        frames)`.
        """
        one, other = self.hashes[whole][:, :, None, 0], self.hashes[cropped][:, None]
        bits = np.bitwise_count(one[..., None] ^ other).min(3)
        frame = np.arange(self.hashes.shape[1])
        absent = (frame >= self.count[whole][:, None])[:, :, None] | (frame >= self.count[cropped][:, None])[:, None]
        bits[absent] = 65
        return bits

    def _near(self) -> Pairs:
        """Pairs of items with a pair of frames within `sure` bits.

        Hashes that differ in at most 7 bits differ in at most one in one of four bands of 16 bits: only hashes whose
        band is the same but for one bit are compared, about one in a thousand.
        """
        item, frame = np.nonzero(np.arange(self.hashes.shape[1]) < self.count[:, None])
        frames = self.hashes[item, frame]
        keys = []
        for band in range(_BANDS):
            buckets = _buckets(frames[:, 0], band)
            keys += [self._of_band(frames, item, band, buckets, part) for part in self._chunks(len(frames))]
        result = np.unique(np.concatenate([np.empty(0, np.int64), *keys]))
        return np.stack(np.divmod(result, max(1, len(self.group))), axis=1)

    def _chunks(self, frames: int) -> Iterator[slice]:
        probes = CROPS * (1 + _BAND_BITS)
        # buckets are uneven: 4 times the mean
        size = max(64, _PER_CHUNK * (1 << _BAND_BITS) // (probes * max(1, frames) * 4))
        return (slice(first, first + size) for first in range(0, frames, size))

    def _of_band(
        self, frames: Hashes, item: npt.NDArray[np.int64], band: int, buckets: _Buckets, part: slice
    ) -> npt.NDArray[np.int64]:
        """The near pairs, as one number each, of the crops of some frames with all whole frames, by way of one band."""
        query, owner = frames[part].ravel(), np.repeat(item[part], CROPS)
        key = _band(query, band)[:, None] ^ _ONE_BIT_OFF
        order, first, last = buckets
        counts = (last[key] - first[key]).ravel()
        requested = np.repeat(np.arange(key.size), counts)
        place = np.arange(len(requested)) - np.repeat(np.cumsum(counts) - counts, counts)
        present, requested = order[first[key].ravel()[requested] + place], requested // key.shape[1]
        near = np.bitwise_count(query[requested] ^ frames[present, 0]) <= self.sure
        one, other = owner[requested[near]], item[present[near]]
        low, high = np.minimum(one, other), np.maximum(one, other)
        apart = self.group[low] != self.group[high]
        return np.unique((low * len(self.group) + high)[apart])


_ONE_BIT_OFF = np.array([0, *(1 << bit for bit in range(_BAND_BITS))], np.int64)


def _band(hashes: Hashes, band: int) -> npt.NDArray[np.int64]:
    return ((hashes >> np.uint64(_BAND_BITS * band)) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)


def _buckets(hashes: Hashes, band: int) -> _Buckets:
    """Places of the hashes sorted by a band, and where each value of the band begins and ends among them."""
    key = _band(hashes, band)
    last = np.cumsum(np.bincount(key, minlength=1 << _BAND_BITS))
    return np.argsort(key, kind="stable"), np.concatenate([[0], last[:-1]]), last


def _chunks(pairs: Pairs, size: int) -> Iterator[Pairs]:
    return (pairs[first : first + size] for first in range(0, len(pairs), size))


_HASH_VERSION = 2  # of what the hashes mean: those of another are computed anew
_FILES_PER_TASK = 16
_BLOCK = 1 << 20

Fingerprint = tuple[int, ...]  # numbers of 64 bits, none where there is nothing to compare


class HashInput(NamedTuple):
    """A file, or `length` bytes of a shard from `offset` on; of a video `seconds` from `start` on, 0 for other pictures
    and for bytes.
    """

    path: str
    offset: int | None = None
    length: int | None = None
    start: float = 0.0
    seconds: float = 0.0

    @property
    def source(self) -> str | ByteRange:
        """What the decoder opens."""
        return (
            self.path if self.offset is None or self.length is None else ByteRange(self.path, self.offset, self.length)
        )


HashFunction = Callable[[HashInput], Fingerprint | None]


def of_bytes(portion: HashInput) -> Fingerprint | None:
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


def of_video(portion: HashInput) -> Fingerprint | None:
    """`phash.video_hashes` of a segment in seconds."""
    return video_hashes(portion.source, portion.start, portion.seconds)


def of_image(portion: HashInput) -> Fingerprint | None:
    """`phash.image_hashes`."""
    return image_hashes(portion.source)


def fingerprints(
    pool: ProcessPool,
    label: str,
    work: HashFunction,
    portions: Iterable[HashInput],
    stamp: Mapping[str, Stamp],
    cache: Path,
) -> dict[HashInput, Fingerprint]:
    """The fingerprints of all portions whose file exists (is in `stamp`) and can be read.

    What `cache` holds of files with the same size and time of change is taken from there; what is new is added to it,
    also where the work is interrupted.
    """
    wanted = [portion for portion in dict.fromkeys(portions) if portion.path in stamp]
    retained = _read_cache(cache)
    known = {portion: value for portion, (then, value) in retained.items() if stamp.get(portion.path) == then}
    todo = [portion for portion in wanted if portion not in known]
    try:
        with Meter(label, len(todo)) as meter:
            for part in pool.as_completed(work, todo, _FILES_PER_TASK, lambda portion: None):
                known.update((portion, value) for portion, value in part if value is not None)
                meter.advance(len(part))
    finally:
        if todo:
            others = {portion: item for portion, item in retained.items() if portion.path not in stamp}
            _write_cache(cache, others | {portion: (stamp[portion.path], value) for portion, value in known.items()})
    return {portion: known[portion] for portion in wanted if portion in known}


# --- the cache ---

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
    """What the cache holds: nothing where it is absent, torn or of another version, for then everything is computed
    anew.
    """
    if not cache.is_file():
        return {}
    try:
        table = pa.ipc.open_file(pa.memory_map(str(cache))).read_all()
    except (pa.ArrowInvalid, OSError):
        return {}
    if not table.schema.equals(_SCHEMA, check_metadata=True):
        return {}
    columns = (column.to_pylist() for column in table.columns)
    return {HashInput(*portion): ((size, mtime_ns), tuple(value)) for *portion, size, mtime_ns, value in zip(*columns)}


def _write_cache(cache: Path, kept: _Cache) -> None:
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
