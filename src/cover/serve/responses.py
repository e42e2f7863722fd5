"""Responses of the server: the shapes of their JSON, as OpenAPI documents them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from cover.inference.predictor import Prediction

DIGITS = 6


@dataclass(frozen=True)
class ClassScore:
    """A class of a head and its probability, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class TimelinePart:
    """What is seen between two instants of a video, in seconds: for every head its likeliest classes."""

    start: float
    end: float
    heads: dict[str, list[ClassScore]]


@dataclass(frozen=True)
class PredictResponse:
    """What is seen in a file. `seconds`: of a video, 0 of an image. `damage`: what is broken in a file of which enough
    could be read.
    """

    media: Literal["video", "image"]
    seconds: float
    heads: dict[str, list[ClassScore]]
    timeline: list[TimelinePart]
    damage: str | None


@dataclass(frozen=True)
class ExplainedFrame:
    """A frame as a head looked at it. `time`: in seconds. `weight`: its part of the heat. `picture`: a JPEG as a data
    URL. `heat`: of its patches, row by row from the top, parts of the whole heat, which is 1 over all frames (0 where
    nothing speaks for the class).
    """

    time: float
    weight: float
    picture: str
    heat: list[list[float]]


@dataclass(frozen=True)
class ExplainResponse:
    """What a head's answer rests on: in the middle view, the places that speak for the class `name`, whose probability
    is that of all the head's views. `damage`: as in an answer.
    """

    media: Literal["video", "image"]
    seconds: float
    head: str
    name: str
    probability: float
    frames: list[ExplainedFrame]
    damage: str | None


@dataclass(frozen=True)
class ErrorResponse:
    """ExplainQuery there is no answer, in one line."""

    error: str


@dataclass(frozen=True)
class StatusResponse:
    """Whether the server lives, and whether it takes requests."""

    status: str


def class_scores(predictions: Sequence[Prediction], top: int) -> dict[str, list[ClassScore]]:
    """The likeliest `top` classes of every head."""
    return {each.head: [ClassScore(name, share) for name, share in each.top(top)] for each in predictions}


def frames(pixels: np.ndarray, heat: np.ndarray, times: Sequence[float]) -> list[ExplainedFrame]:
    """Frames, uint8 `(T, 3, size, size)`, each with its heat `(T, h, w)` and its time."""
    return [
        ExplainedFrame(
            time,
            round(float(warm.sum()), DIGITS),
            _data_url(frame),
            [[round(float(cell), DIGITS) for cell in row] for row in warm],
        )
        for frame, warm, time in zip(pixels, heat, times, strict=True)
    ]


def _data_url(frame: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(frame.transpose(1, 2, 0)).save(out, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def windows(results: Sequence[Mapping[str, list[ClassScore]]], seconds: float) -> list[TimelinePart]:
    """Equal parts of a video of `seconds`."""
    length = seconds / max(1, len(results))
    return [
        TimelinePart(round(number * length, 3), round((number + 1) * length, 3), dict(heads))
        for number, heads in enumerate(results)
    ]
