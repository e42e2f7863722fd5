"""How much may a client ask for, and how is it told that it asked for too much?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What bounds a request. Sizes in bytes, times in seconds.

    `body`: of any request, whatever its route. `upload_s`: for a body to arrive. `seconds` and `pixels`: of a video, of a picture.
    `decode_s` and `memory`: for decoding one file, beyond which its process is killed or refused more. `deadline_s`: from the last byte of
    an upload to its answer. `queue`: predictions under way at once. `explanations`: made at once, since each has the model to itself for as
    long as several predictions. `header_s`: for the head of a request. `connections`: at once.
    """

    body: int = 64 * MEGABYTE
    upload_s: float = 30.0
    seconds: float = 600.0
    pixels: int = 64_000_000
    decode_s: float = 10.0
    memory: int = 2048 * MEGABYTE
    deadline_s: float = 30.0
    queue: int = 64
    explanations: int = 2
    header_s: float = 10.0
    connections: int = 512


@dataclass(frozen=True)
class Batching:
    """`frames`: most of them in a forward pass. `wait_s`: how long the first of a Pack waits for others to fill it."""

    frames: int = 64
    wait_s: float = 0.005


class Refused(Exception):
    """A request that gets no prediction: an HTTP status and one line that says why."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})

    def __reduce__(self) -> tuple[type[Refused], tuple[int, str, dict[str, str]]]:
        return Refused, (self.status, self.text, self.headers)  # it comes out of the decoding processes


def busy(text: str) -> Refused:
    """Too much at once: the client may come back."""
    return Refused(429, text, {"retry-after": "1"})


def late() -> Refused:
    """The server has more to do than it can in time."""
    return Refused(503, "the server is too busy to answer in time; try again later", {"retry-after": "5"})
