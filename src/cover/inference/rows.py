"""What is said of each input? One row per file: its classes, or its timeline, or why there is none, with the protocol behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cover.errors import UserError
from cover.inference.looking import Gaze, Look, Windows, looks
from cover.inference.predictor import Predictions, Predictor
from cover.inference.readers import Readers
from cover.media.clips import Views
from cover.media.decode import Decoder, check_decoder

Row = dict[str, Any]
BATCH_FRAMES = {"cpu": 64}  # of one forward pass, about; more does not make a CPU faster
GPU_BATCH_FRAMES = 512


@dataclass(frozen=True)
class Wishes:
    """What is asked of every file: the `top` classes of `heads` (None: all), in `views` (None: each head's own), of the whole file or of
    `windows`. Plain data, so that other machines can be told."""

    top: int = 5
    heads: tuple[str, ...] | None = None
    views: str | None = None
    windows: Windows | None = None
    decoder: Decoder = "pyav"


@dataclass
class Answer:
    """A file's row, and the features of each of its parts: float32 `(D,)` with start and end in seconds, None for the whole."""

    row: Row
    features: list[tuple[float | None, float | None, np.ndarray]] = field(default_factory=list)


class Answerer:
    """A predictor with what is asked of it. Raises `UserError` for heads, views or a decoder that are not there.

    `source`: what the checkpoint was called, for the protocol.
    """

    def __init__(self, predictor: Predictor, wishes: Wishes, source: str) -> None:
        views = Views.parse(wishes.views) if wishes.views else None
        self.predictor, self.wishes = predictor, wishes
        self.plans = predictor.plans(wishes.heads, views)
        different = tuple(dict.fromkeys(self.plans.values())) or (predictor.whole(views),)
        self.gaze = Gaze(different, wishes.decoder, wishes.windows)
        windows = wishes.windows
        self.protocol: Row = {
            "checkpoint": source, "step": predictor.metadata.get("step"), "decoder": check_decoder(wishes.decoder),
            "frames": predictor.metadata["frames"], "views": {head: str(plan.views) for head, plan in self.plans.items()},
            "sampling": {head: str(plan.sampling) for head, plan in self.plans.items()}, "top": wishes.top,
            **({"window": windows.seconds, "stride": windows.stride} if windows else {}),
        }  # fmt: skip

    def answers(self, files: Sequence[str], readers: Readers) -> Iterator[Answer]:
        """One answer per file, in their order, as soon as it is whole."""
        open_: Answer | None = None
        for batch in self._batches(looks(files, self.gaze, readers)):
            seen = iter(self.predictor.run([views for part in batch for clips in part.clips for views in clips]))
            for part in batch:
                open_ = open_ or self._begin(part)
                for span in part.spans:
                    self._add(open_, part, span, [next(seen) for _ in self.gaze.plans])
                self._note(open_, part)
                if not part.rest:
                    yield open_
                    open_ = None

    def _batches(self, parts: Iterator[Look]) -> Iterator[list[Look]]:
        """As many looks as one forward pass should see; those with nothing to see wait with the others, for the order's sake."""
        most = BATCH_FRAMES.get(self.predictor.device.type, GPU_BATCH_FRAMES)
        batch: list[Look] = []
        held = 0
        for part in parts:
            batch.append(part)
            held += sum(views.shape[0] * views.shape[1] for clips in part.clips for views in clips)
            if held >= most:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    def _begin(self, part: Look) -> Answer:
        row: Row = {"file": part.file, "media": part.media}
        row |= {"timeline": {head: [] for head in self.plans}} if self._timed(part) else {"heads": {}}
        return Answer(row)

    def _timed(self, part: Look) -> bool:
        return self.gaze.windows is not None and part.media == "video"

    def _add(self, answer: Answer, part: Look, span: tuple[float, float], seen: list[Any]) -> None:
        found = self.predictor.named(seen, self.gaze, self.plans, part, span)
        tops = {head: _top(found, head, self.wishes.top) for head in found}
        if self._timed(part):
            for head, top in tops.items():
                answer.row["timeline"][head].append({"start": _seconds(found.start), "end": _seconds(found.end), "top": top})
        else:
            answer.row["heads"] = tops
        answer.features.append((found.start, found.end, seen[0].features))

    def _note(self, answer: Answer, part: Look) -> None:
        """What was wrong with the file: no prediction at all is an error, a timeline that ends early is not the whole."""
        if part.error is not None and not answer.features:
            answer.row = {"file": part.file, "error": part.error}
        elif part.partial or part.error:
            answer.row["partial"] = part.partial or part.error
        answer.row["protocol"] = self.protocol


def _top(found: Predictions, head: str, k: int) -> list[list[Any]]:
    return [[name, round(share, 6)] for name, share in found[head].top(k)]


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def check_heads(predictor: Predictor, source: object, embedding: bool) -> None:
    """Raises `UserError` where a model without heads is asked for classes."""
    if not predictor.model.head_list and not embedding:
        raise UserError(f"{source}: has no head, so there is nothing to predict; --embed writes features, or train one with"
                        f" start.checkpoint={source}")  # fmt: skip
