"""Pictures and frame differences of a few hundred numbers for each sample, cached in a file beside the manifest.

`baselines` fits linear classifiers to them. Every file is decoded once for all its features.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cover.console import Meter, say
from cover.datasets.manifest import Manifest, Row
from cover.media.decode import FileProblem, MediaError, decode_at, decode_image
from cover.media.sampling import Sampling, view_times
from cover.media.source import Media
from cover.processes import ProcessPool

# A change of the definition of a feature needs a new number: features in the files of another one are not used.
DEFINITION = 1
HEIGHT, WIDTH = 12, 16  # pixels of a small picture
FRAMES, BINS = 16, 5  # frames of the whole sample, and the parts of its time over which differences are averaged
CELL = 2  # side in pixels of a cell of differences, so there are 6 x 8 cells
SIZE_HINT = 48  # pixels; a decoder may scale the short side down to this
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # weights of red, green and blue (ITU-R BT.601)
FILES_OF_A_WORKER = 64  # a process starts in about a second, in which it would read about this many files

Features = dict[str, npt.NDArray[np.float32]]  # name -> (D,), or (N, D) for N samples
Extractor = Callable[[Row, Media], Features]


# --- features of one sample -------------------------------------------------------------------------------------------


def pixel_features(row: Row, media: Media) -> Features:
    """`thumbnail`: the middle frame at 12 x 16 pixels, RGB, float32 `(576,)`, 0 to 255. Raises MediaError.

    For a video also `motion`, float32 `(240,)`: the differences of 16 frames at equal distances over the whole sample,
    in grey at 12 x 16 pixels. Absolute differences of neighbouring frames are averaged in 5 parts of the time and 6 x 8
    cells, and their logarithm log(1 + x) is taken.
    """
    if media == "image":
        return {"thumbnail": _small(decode_image(row.source, size_hint=SIZE_HINT)).ravel()}
    times = [view_times(Sampling("whole"), count, row.seconds, 1)[0] for count in (1, FRAMES)]
    frames = decode_at(row.source, ((row.start or 0.0) + np.concatenate(times)).tolist(), size_hint=SIZE_HINT)
    pictures = np.stack([_small(picture) for picture in frames.pictures])[frames.shown]
    return {"thumbnail": pictures[0].ravel(), "motion": _motion(pictures[1:] @ GREY)}


def _small(picture: np.ndarray) -> npt.NDArray[np.float32]:
    """A picture uint8 `(H, W, 3)` at 12 x 16 pixels, whatever its shape; every pixel is the mean of its area."""
    return np.asarray(Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float32)


def _motion(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The feature `motion` from grey frames float32 `(T, 12, 16)`."""
    differences = np.abs(np.diff(grey, axis=0))
    cells = differences.reshape(-1, HEIGHT // CELL, CELL, WIDTH // CELL, CELL).mean((2, 4))
    parts = np.stack([part.mean(0) for part in np.array_split(cells, BINS)])
    return np.log1p(parts).ravel().astype(np.float32)


# --- features of the rows of a manifest -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleFeatures:
    """The features of the rows of a manifest that could be read.

    `rows`: int64 `(N,)`, ascending. `values`: name -> float32 `(N, D)`. `unreadable`: rows that could not be read.
    """

    rows: npt.NDArray[np.int64]
    values: Features
    unreadable: npt.NDArray[np.int64]

    def of(self, rows: npt.NDArray[np.int64]) -> SampleFeatures:
        """The features of those of `rows` (int64, ascending) that are here."""
        chosen = np.isin(self.rows, rows)
        values = {name: column[chosen] for name, column in self.values.items()}
        return SampleFeatures(self.rows[chosen], values, np.intersect1d(self.unreadable, rows))


# What is read of every sample, in one file for all of them. `start_features` is another extractor, with its own file.
EXTRACTORS: tuple[Extractor, ...] = (pixel_features,)
NO_FEATURES = SampleFeatures(np.zeros(0, np.int64), {}, np.zeros(0, np.int64))


def cache_file(manifest: Manifest, extractors: Sequence[Extractor] = EXTRACTORS) -> Path:
    """The file with the features of a manifest's rows, beside the manifest."""
    kind = "baselines" if extractors is EXTRACTORS else "-".join(extractor.__name__ for extractor in extractors)
    return manifest.path.with_suffix(f".{kind}.npz")


def features_of(
    manifest: Manifest, rows: npt.NDArray[np.int64], workers: int, extractors: Sequence[Extractor] = EXTRACTORS
) -> SampleFeatures:
    """The features of `rows` (int64, ascending). Rows that are not in the cache file are read, and added to it.

    The features in the file count only for the same content of the manifest, `DEFINITION` and extractors. A row that
    cannot be read is listed and not replaced. If the file cannot be written, that is said and nothing else happens.
    """
    key = _key(manifest, extractors)
    known = _load(cache_file(manifest, extractors), key)
    missing = np.setdiff1d(rows, np.union1d(known.rows, known.unreadable))
    if len(missing):
        known = _joined(known, _read(manifest, missing, workers, extractors))
        _save(cache_file(manifest, extractors), known, key)
    return known.of(rows)


def _read(
    manifest: Manifest, rows: npt.NDArray[np.int64], workers: int, extractors: Sequence[Extractor]
) -> SampleFeatures:
    """Decode the files of `rows` in up to `workers` processes, 0 for this process."""
    read: dict[int, Features] = {}
    unreadable: list[int] = []
    items = [manifest.row(int(number)) for number in rows]
    processes = 0 if len(rows) < FILES_OF_A_WORKER else min(workers, len(rows) // FILES_OF_A_WORKER)
    what = "small pictures" if extractors is EXTRACTORS else "frozen features"
    label = f"{what} of {manifest.name} {manifest.split}"
    with Meter(label, len(rows)) as meter, ProcessPool(processes) as pool:
        work = partial(_extract, extractors=extractors, media=manifest.media)
        for number, features in zip(rows.tolist(), pool.map(work, items, _lost), strict=True):
            if isinstance(features, FileProblem):
                unreadable.append(number)
            else:
                read[number] = features
            meter.advance()
    names = next(iter(read.values()), {})
    values = {name: np.stack([features[name] for features in read.values()]) for name in names}
    return SampleFeatures(np.array(list(read), np.int64), values, np.array(unreadable, np.int64))


def _extract(row: Row, extractors: Sequence[Extractor], media: Media) -> Features | FileProblem:
    try:
        return {name: value for extractor in extractors for name, value in extractor(row, media).items()}
    except MediaError as error:
        return FileProblem(row.path, "unreadable", str(error))


def _lost(row: Row) -> FileProblem:
    return FileProblem(row.path, "unreadable", "decoding ends or stops its process")


def _joined(first: SampleFeatures, second: SampleFeatures) -> SampleFeatures:
    rows = np.concatenate([first.rows, second.rows])
    order = np.argsort(rows)
    parts: Sequence[Mapping[str, np.ndarray]] = [each.values for each in (first, second) if len(each.rows)]
    values = {name: np.concatenate([part[name] for part in parts])[order] for name in (parts[0] if parts else ())}
    return SampleFeatures(rows[order], values, np.union1d(first.unreadable, second.unreadable))


# --- the cache file ---------------------------------------------------------------------------------------------------


def _load(path: Path, key: str) -> SampleFeatures:
    """The features in the cache file; none if there is no file, or if it is of another manifest or definition."""
    if not path.exists():
        return NO_FEATURES
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return NO_FEATURES
            values = {name.removeprefix("feature."): file[name] for name in file.files if name.startswith("feature.")}
            return SampleFeatures(file["rows"], values, file["unreadable"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        say(f"{path}: is damaged ({error}) and is written again")
        return NO_FEATURES


def _save(path: Path, features: SampleFeatures, key: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    values: dict[str, Any] = {f"feature.{name}": column for name, column in features.values.items()}
    try:
        with temporary.open("wb") as file:
            np.savez(file, key=np.array(key), rows=features.rows, unreadable=features.unreadable, **values)
        temporary.replace(path)
    except OSError as error:
        say(f"{path}: cannot be written ({error.strerror or error}); these files are read again next time")
        temporary.unlink(missing_ok=True)


def _key(manifest: Manifest, extractors: Sequence[Extractor]) -> str:
    names = " ".join(extractor.__name__ for extractor in extractors)
    return f"{DEFINITION} {names} {manifest.digest()}"
