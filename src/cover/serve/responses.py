"""Responses of the server, as JSON and in the OpenAPI document."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from cover.inference.predictor import Prediction
from cover.inference.segments import SegmentRule, find_segments

DIGITS = 6


@dataclass(frozen=True)
class ClassScore:
    """A class of a head and its probability, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class TimelinePart:
    """The most likely classes of every head in a part of a video. `start` and `end` are in seconds."""

    start: float
    end: float
    heads: dict[str, list[ClassScore]]


@dataclass(frozen=True)
class SegmentPart:
    """A stretch of a video in which a class is seen. `start` and `end` are in seconds.

    `probability`, `peak`: the mean and the largest of its parts.
    """

    start: float
    end: float
    name: str
    probability: float
    peak: float


@dataclass(frozen=True)
class PredictResponse:
    """The most likely classes of every head for a file.

    `seconds`: length of a video; 0 for an image. `timeline`: the equal parts of a video, if they were requested.
    `segments`: for every head the neighbouring parts that show a class, joined: one of them has a probability of at
    least 0.5, all at least 0.3.
    `damage`: what is damaged in a file of which enough could be read; null if nothing is.
    """

    media: Literal["video", "image"]
    seconds: float
    heads: dict[str, list[ClassScore]]
    timeline: list[TimelinePart]
    segments: dict[str, list[SegmentPart]]
    damage: str | None


@dataclass(frozen=True)
class ExplainedFrame:
    """A frame of the explained view.

    `time`: in seconds. `weight`: the sum of its heat. `picture`: the pixels that the model saw, a JPEG as a data URL.
    `heat`: heat of its patches, row by row from the top. The heat of all frames together is 1, or 0 if nothing speaks
    for the class.
    """

    time: float
    weight: float
    picture: str
    heat: list[list[float]]


@dataclass(frozen=True)
class ExplainResponse:
    """The patches of the middle view that speak for the class `name` of a head.

    `probability`: the probability of the class over all views of the head. `seconds` and `damage` are those of
    `PredictResponse`.
    """

    media: Literal["video", "image"]
    seconds: float
    head: str
    name: str
    probability: float
    frames: list[ExplainedFrame]
    damage: str | None


@dataclass(frozen=True)
class HeadDescription:
    """A head: the number of its classes, its data sets with their training samples (null: not known), its loss."""

    classes: int
    datasets: dict[str, int | None]
    multi_label: bool


@dataclass(frozen=True)
class ModelDescription:
    """A model of the server.

    `default_heads`: the heads that answer a request that names none.
    `text`: whether it predicts class names that are typed (`classes` of a prediction). `live_seconds`: what a live
    prediction looks at.
    """

    name: str
    network: str
    pixels: int
    frames: int
    step: int | None
    engine: str
    heads: dict[str, HeadDescription]
    default_heads: list[str]
    text: bool
    live_seconds: float


@dataclass(frozen=True)
class ErrorResponse:
    """The reason why there is no result, in one line."""

    error: str


@dataclass(frozen=True)
class StatusResponse:
    """The state of the server."""

    status: str


def class_scores(predictions: Sequence[Prediction], top: int) -> dict[str, list[ClassScore]]:
    """The `top` most likely classes of every head."""
    return {each.head: [ClassScore(name, score) for name, score in each.top(top)] for each in predictions}


def frames(pixels: np.ndarray, heat: np.ndarray, times: Sequence[float]) -> list[ExplainedFrame]:
    """Frames, uint8 `(T, 3, size, size)`, with their heat, float `(T, h, w)`, and their times in seconds."""
    results = []
    for frame, cells, time in zip(pixels, heat, times, strict=True):
        rows = [[round(float(cell), DIGITS) for cell in row] for row in cells]
        results.append(ExplainedFrame(time, round(float(cells.sum()), DIGITS), _data_url(frame), rows))
    return results


def _data_url(frame: np.ndarray) -> str:
    """A frame, uint8 `(3, size, size)`, as a JPEG in a data URL."""
    out = io.BytesIO()
    Image.fromarray(frame.transpose(1, 2, 0)).save(out, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def segments(parts: Sequence[Sequence[Prediction]], seconds: float) -> dict[str, list[SegmentPart]]:
    """The segments of every head, from the predictions for the equal parts of a video of `seconds`."""
    length = seconds / max(1, len(parts))
    spans = [(number * length, length) for number in range(len(parts))]
    return {
        head[0].head: [
            SegmentPart(round(each.start, 3), round(each.end, 3), head[0].classes[each.label], each.score, each.peak)
            for each in find_segments(spans, np.stack([prediction.scores for prediction in head]), SegmentRule())
        ]
        for head in zip(*parts)
    }


def windows(results: Sequence[Mapping[str, list[ClassScore]]], seconds: float) -> list[TimelinePart]:
    """The timeline of a video of `seconds`, from the results of its equal parts."""
    length = seconds / max(1, len(results))
    return [
        TimelinePart(round(number * length, 3), round((number + 1) * length, 3), dict(heads))
        for number, heads in enumerate(results)
    ]
