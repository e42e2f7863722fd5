"""Pictures of samples for reports: frames of a clip, or photographs of a class, side by side."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np

from cover.datasets.manifest import Manifest, Row
from cover.experiments.report import film_strip
from cover.media.decode import MediaError, decode_at, decode_image
from cover.media.source import Media

CLASSES_SHOWN = 24
FRAMES, PHOTOGRAPHS = 8, 4  # of a clip, and of a class
HEIGHT = 160  # pixels; frames are decoded no larger


def row_strip(row: Row, media: Media) -> dict[str, Any] | None:
    """Frames of a clip in time, or the photograph, as `film_strip` returns them. None if the file cannot be read."""
    try:
        if media == "image" or not row.fps:
            return film_strip([decode_image(row.source, size_hint=HEIGHT)])
        times = (row.start or 0.0) + (np.arange(FRAMES) + 0.5) * row.seconds / FRAMES
        return film_strip(list(decode_at(row.source, times.tolist(), size_hint=HEIGHT).frames))
    except MediaError:
        return None


def class_examples(manifest: Manifest) -> list[dict[str, Any]]:
    """For each class, up to `CLASSES_SHOWN`, its name and pictures: one clip, or a few photographs."""
    if manifest.classes.many:
        return []
    of_class: dict[int, list[int]] = {}
    for number in manifest.usable.tolist():
        of_class.setdefault(int(manifest.labels[number]), []).append(number)
    return [
        {"name": manifest.classes.names[label], "strip": strip}
        for label, numbers in sorted(of_class.items())[:CLASSES_SHOWN]
        if (strip := _of_class(manifest, numbers))
    ]


def _of_class(manifest: Manifest, numbers: list[int]) -> dict[str, Any] | None:
    # From the middle on, because the first files of a folder are often of one recording.
    half = len(numbers) // 2
    ordered = numbers[half:] + numbers[:half]
    if manifest.media == "video":  # a clip, if the class has one: there may be pictures among the videos
        clips = islice((row for row in map(manifest.row, ordered) if row.fps), PHOTOGRAPHS)
        if strip := next(filter(None, (row_strip(row, "video") for row in clips)), None):
            return strip
    pictures = []
    for row in (row for row in map(manifest.row, ordered[:PHOTOGRAPHS]) if manifest.media == "image" or not row.fps):
        try:
            pictures.append(decode_image(row.source, size_hint=HEIGHT))
        except MediaError:
            continue
    return film_strip(pictures) if pictures else None
