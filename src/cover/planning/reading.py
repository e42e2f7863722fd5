"""The time that one core takes to read a sample of each data set: measured here, given, or assumed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cover.console import track
from cover.errors import UserError
from cover.mixture.loader import Member, SampleReader
from cover.mixture.schedule import Draw
from cover.training.holdings import Holding, read_numbers
from cover.training.recipe import Recipe
from cover.training.train import make_reader

FILES = 24  # of each data set, spread evenly over its rows
PATIENCE_S = 10.0  # for each data set
# Milliseconds of one core of a 2019 server for 16 frames of 224 px, where nothing else is known: a 10 s clip of 240 lines, a 3 to 4 s
# clip, a JPEG of half a megapixel, and a clip that cover prepare wrote (docs/preparing.md).
VIDEO_MS, SHORT_VIDEO_MS, IMAGE_MS, PREPARED_MS = 300.0, 100.0, 8.0, 20.0
_SHORT = ("ssv2", "moments")


@dataclass(frozen=True)
class ReadingCost:
    """`ms` of one core for a sample, its share of a decode that several crops use; where that comes from."""

    ms: float
    origin: Literal["measured", "given", "assumed"]


def reading_costs(
    recipe: Recipe, holdings: Sequence[Holding], members: Sequence[Member] | None, given: Mapping[str, float]
) -> dict[str, ReadingCost]:
    """Data set -> cost. `given`: milliseconds by name, as `read_ms` has them; a set that is not in it is measured where its files are."""
    measured = _measure(recipe, [m for m in members or () if m.spec.name not in given])
    costs = {}
    for each in holdings:
        crops = recipe.data.crops if each.media == "video" else 1
        if each.name in given:
            costs[each.name] = ReadingCost(given[each.name] / crops, "given")
        elif each.name in measured:
            costs[each.name] = ReadingCost(measured[each.name], "measured")
        else:
            costs[each.name] = ReadingCost(_assumed(each) / crops, "assumed")
    return costs


def read_ms(text: str, image_ms: float | None, holdings: Sequence[Holding]) -> dict[str, float]:
    """`14` for every video set, or `ssv2=14,kinetics400=20`, and `image_ms` for every image set, by name. Raises `UserError`."""
    every = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None
    named = {} if every is not None else read_numbers("--decode-ms", text)
    for name in named:
        if name not in [each.name for each in holdings]:
            raise UserError(f'--decode-ms: "{name}" is not one of the recipe\'s data.sets')
    of_media = {"video": every, "image": image_ms}
    told = {each.name: ms for each in holdings if (ms := of_media[each.media]) is not None}
    return {**told, **named}


def _assumed(holding: Holding) -> float:
    if holding.media == "image":
        return IMAGE_MS
    if holding.form == "prepared":
        return PREPARED_MS
    return SHORT_VIDEO_MS if holding.form in _SHORT or (holding.form is None and holding.name in _SHORT) else VIDEO_MS


def _measure(recipe: Recipe, members: Sequence[Member]) -> dict[str, float]:
    """Milliseconds of CPU for a sample, by the reader that training uses; sets whose files cannot be read are left out."""
    if not members:
        return {}
    reader = make_reader(recipe, members)
    found = {member.spec.name: _of_one(recipe, reader, member) for member in track(members, "measure reading", len(members))}
    return {name: ms for name, ms in found.items() if ms is not None}


def _of_one(recipe: Recipe, reader: SampleReader, member: Member) -> float | None:
    usable = member.manifest.usable
    rows = usable[np.linspace(0, len(usable) - 1, min(FILES + 1, len(usable))).astype(int)]
    crops = recipe.data.crops if member.manifest.media == "video" else 1
    _seconds(reader, member, rows[:1], crops)  # the first pays for what is loaded once
    seconds = _seconds(reader, member, rows[1:] if len(rows) > 1 else rows, crops)
    return 1e3 * sum(seconds) / len(seconds) / crops if seconds else None


def _seconds(reader: SampleReader, member: Member, rows: Iterable[int], crops: int) -> list[float]:
    """Of one core for each file that can be read, until there is no more patience."""
    spent: list[float] = []
    began = time.monotonic()
    for row in rows:
        if time.monotonic() - began > PATIENCE_S:
            break
        draws = [Draw(member.spec.name, int(row), 0, crop, 0 if crop else None) for crop in range(crops)]
        before = time.process_time()
        samples = reader.read_all(draws)
        if samples[0].weight:
            spent.append(time.process_time() - before)
    return spent
