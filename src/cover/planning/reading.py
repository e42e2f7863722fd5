"""The time that one core needs to read a sample of each data set: measured, given by the user, or assumed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cover.console import track
from cover.errors import UserError
from cover.mixture.dataset import MixtureDataset
from cover.mixture.loader import SampleReader
from cover.mixture.mixture import Mixture
from cover.mixture.published import read_numbers
from cover.mixture.schedule import Draw
from cover.training.recipe import Recipe
from cover.training.train import make_reader

FILES = 24  # files of each data set that are measured, spread evenly over its rows
PATIENCE_S = 10.0  # seconds after which the measurement of a data set ends
# Assumed milliseconds of one core of a 2019 server for 16 frames of 224 px: of a 10 s clip with 240 lines, a 3 to 4 s
# clip, a JPEG of half a megapixel, and a clip from cover prepare (docs/preparing.md).
VIDEO_MS, SHORT_VIDEO_MS, IMAGE_MS, PREPARED_MS = 300.0, 100.0, 8.0, 20.0
_SHORT = ("ssv2", "moments")  # formats with short clips


@dataclass(frozen=True)
class ReadingCost:
    """The time to read a sample.

    `ms`: milliseconds of one core; if several crops share a decode, this is its time divided by their number.
    `origin`: where the number comes from.
    """

    ms: float
    origin: Literal["measured", "given", "assumed"]


def reading_costs(recipe: Recipe, mixture: Mixture, given: Mapping[str, float]) -> dict[str, ReadingCost]:
    """Data set -> cost. `given`: data set -> milliseconds, from `read_ms`. Other data sets are measured, if possible.

    A data set whose files are not on this machine has an assumed cost.
    """
    measured = _measure(recipe, [each for each in mixture.datasets if each.source and each.name not in given])
    costs = {}
    for each in mixture.datasets:
        if each.name in given:
            costs[each.name] = ReadingCost(given[each.name] / each.crops, "given")
        elif each.name in measured:
            costs[each.name] = ReadingCost(measured[each.name], "measured")
        else:
            costs[each.name] = ReadingCost(_assumed(each) / each.crops, "assumed")
    return costs


def read_ms(text: str, image_ms: float | None, mixture: Mixture) -> dict[str, float]:
    """Data set -> milliseconds, from the options of a command. Raises `UserError` for an unknown data set.

    `text`: one number for all video data sets, such as `14`, or one for each, such as `ssv2=14,kinetics400=20`.
    `image_ms`: for all image data sets.
    """
    every = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
    named = {} if every is not None else read_numbers("--decode-ms", text)
    for name in named:
        if name not in mixture.sizes:
            raise UserError(f'--decode-ms: "{name}" is not one of the recipe\'s data.sets')
    of_media = {"video": every, "image": image_ms}
    of_sets = {each.name: ms for each in mixture.datasets if (ms := of_media[each.media]) is not None}
    return {**of_sets, **named}


def _assumed(dataset: MixtureDataset) -> float:
    if dataset.media == "image":
        return IMAGE_MS
    if dataset.format == "prepared":
        return PREPARED_MS
    # A data set without a catalog entry has no format; its name is then one of the published data sets.
    short = dataset.format in _SHORT or (dataset.format is None and dataset.name in _SHORT)
    return SHORT_VIDEO_MS if short else VIDEO_MS


def _measure(recipe: Recipe, datasets: Sequence[MixtureDataset]) -> dict[str, float]:
    """Data set -> milliseconds of one core for a sample, measured with the reader of training.

    A data set without a readable file is left out.
    """
    if not datasets:
        return {}
    reader = make_reader(recipe, Mixture.open(recipe.data))
    measured = {each.name: _measure_one(reader, each) for each in track(datasets, "measure reading", len(datasets))}
    return {name: ms for name, ms in measured.items() if ms is not None}


def _measure_one(reader: SampleReader, dataset: MixtureDataset) -> float | None:
    usable = dataset.manifest.usable
    rows = usable[np.linspace(0, len(usable) - 1, min(FILES + 1, len(usable))).astype(int)]
    _seconds(reader, dataset, rows[:1])  # the first read also loads libraries
    seconds = _seconds(reader, dataset, rows[1:] if len(rows) > 1 else rows)
    return 1e3 * sum(seconds) / len(seconds) / dataset.crops if seconds else None


def _seconds(reader: SampleReader, dataset: MixtureDataset, rows: Iterable[int]) -> list[float]:
    """The seconds of one core for each readable file, until `PATIENCE_S` is over."""
    spent: list[float] = []
    began = time.monotonic()
    for row in rows:
        if time.monotonic() - began > PATIENCE_S:
            break
        draws = [Draw(dataset.name, int(row), 0, crop, 0 if crop else None) for crop in range(dataset.crops)]
        before = time.process_time()
        samples = reader.read_all(draws)
        if samples[0].weight:
            spent.append(time.process_time() - before)
    return spent
