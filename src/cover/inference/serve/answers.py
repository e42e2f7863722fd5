"""What does a client get back? The shapes of the JSON, as OpenAPI documents them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cover.inference.predictor import Prediction


@dataclass(frozen=True)
class Guess:
    """A class of a head and its probability, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class Window:
    """What is seen between two instants of a video, in seconds: for every head its likeliest classes."""

    start: float
    end: float
    heads: dict[str, list[Guess]]


@dataclass(frozen=True)
class Answer:
    """What is seen in a file. `seconds`: of a video, 0 of an image. `damage`: what is broken in a file of which enough could be read."""

    media: Literal["video", "image"]
    seconds: float
    heads: dict[str, list[Guess]]
    timeline: list[Window]
    damage: str | None


@dataclass(frozen=True)
class Problem:
    """Why there is no answer, in one line."""

    error: str


@dataclass(frozen=True)
class State:
    """Whether the server lives, and whether it takes requests."""

    status: str


def guesses(predictions: Sequence[Prediction], top: int) -> dict[str, list[Guess]]:
    """The likeliest `top` classes of every head."""
    return {each.head: [Guess(name, share) for name, share in each.top(top)] for each in predictions}


def windows(found: Sequence[Mapping[str, list[Guess]]], seconds: float) -> list[Window]:
    """Equal parts of a video of `seconds`."""
    length = seconds / max(1, len(found))
    return [Window(round(number * length, 3), round((number + 1) * length, 3), dict(heads)) for number, heads in enumerate(found)]
