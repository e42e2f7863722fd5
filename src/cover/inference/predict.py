"""What is in these files? `cover predict`: every input gets one row, in order, as soon as it is known."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from cover.console import Meter, flushed, say, write_json
from cover.errors import UserError
from cover.inference.features import FeatureFile, list_beside
from cover.inference.predictor import Predictor
from cover.inference.readers import Readers
from cover.inference.rows import Answer, Answerer, Row, Wishes, check_heads
from cover.inference.writing import CsvRows, Format, RowFile, Write, format_of, json_line, key_of, pretty
from cover.machine import default_workers

FILES_PER_WORKER = 8  # below, a reading process takes longer to start than it saves
FEW = 20  # files that need no display of progress


@dataclass(frozen=True)
class Targets:
    """Where results go: rows to stdout in a `format`, or to `out`, a file that an interrupted run is taken up from; features to `embed`;
    and all rows as one JSON list to `json`, `-` for stdout instead of rows."""

    format: Format | None = None
    out: Path | None = None
    embed: Path | None = None
    json: str | None = None


@dataclass(frozen=True)
class Means:
    """What does the work: `workers` reading processes (None: as many as help), on this machine or over a Ray cluster."""

    device: str = "auto"
    workers: int | None = None
    engine: Literal["pool", "ray"] = "pool"


def predict(checkpoint: str, files: Sequence[str], wishes: Wishes, targets: Targets, means: Means) -> int:
    """Predict every file of `files`, each listed once. A file that cannot be read is one line on stderr and a row with its reason.

    Returns how many could not be read, those of an earlier run included. Raises `UserError`.
    """
    _check(targets, means)
    predictor = Predictor.load(checkpoint, "cpu" if means.engine == "ray" else means.device)
    check_heads(predictor, checkpoint, targets.embed is not None)
    answerer = Answerer(predictor, wishes, checkpoint)
    with ExitStack() as stack:
        outlet = _Outlet(answerer, targets, stack)
        wanted = [file for file in files if key_of(file) not in outlet.done]
        if outlet.done:
            say(f"{targets.out}: goes on behind {len(outlet.done)} rows; {len(wanted)} of {len(files)} files are left")
        meter = stack.enter_context(outlet.meter(len(files), len(files) - len(wanted)))
        for answer in _answers(answerer, checkpoint, wanted, means):
            outlet.put(answer)
            if isinstance(meter, Meter):
                meter.advance()
    outlet.finish(files)
    return outlet.failed


def _check(targets: Targets, means: Means) -> None:
    if targets.embed and means.engine == "ray":
        raise UserError("--embed: features are written by --engine pool alone")
    if targets.embed and targets.out and targets.out.exists():
        raise UserError(f"--embed: cannot go on from the rows of an earlier run; give another --out than {targets.out}")
    if targets.json and targets.out and targets.out.exists() and format_of(targets.out, targets.format) == "csv":
        raise UserError(f"--json: cannot list the rows of an earlier .csv; leave it out, or give another --out than {targets.out}")
    _check_apart(targets)


def _check_apart(targets: Targets) -> None:
    """Raises `UserError` where two results go to one file."""
    named = {"--out": targets.out, "--json": targets.json if targets.json != "-" else None, "--embed": targets.embed}
    named["--embed's list of names"] = targets.embed and list_beside(targets.embed)
    taken: dict[str, str] = {}
    for option, path in named.items():
        if path:
            other = taken.setdefault(os.path.realpath(path), option)
            if other != option:
                raise UserError(f"{option}, {path}: {other} writes it too; name another file")


def _answers(answerer: Answerer, checkpoint: str, files: Sequence[str], means: Means) -> Iterator[Answer]:
    if means.engine == "ray":
        from cover.inference.ray_engine import answers_by_ray

        yield from answers_by_ray(checkpoint, answerer.wishes, files, means.workers, means.device)
        return
    most = default_workers() if means.workers is None else means.workers
    useful = most if answerer.gaze.windows or means.workers is not None else min(most, len(files) // FILES_PER_WORKER)
    with Readers(useful) as readers:
        yield from answerer.answers(files, readers)


class _Outlet:
    """Everything that is done with an answer."""

    def __init__(self, answerer: Answerer, targets: Targets, stack: ExitStack) -> None:
        self._targets, self._rows, self._earlier, self.failed = targets, list[Row](), dict[str, Row](), 0
        self._stdout: IO[str] = sys.stdout  # a live display may take its place
        csv_rows = CsvRows(list(answerer.plans), answerer.wishes.top)
        self._print: Write | None = None
        self._out = self._features = None
        self.done: set[str] = set()
        if targets.embed:
            self._features = stack.enter_context(FeatureFile(targets.embed, answerer.predictor.model.backbone.width))
        if targets.out:
            kind = format_of(targets.out, targets.format)
            self._out = stack.enter_context(RowFile(targets.out, kind, csv_rows, answerer.protocol))
            self.done, self.failed = self._out.done, self._out.failed
            if targets.json and self.done:
                self._earlier = self._out.rows()
        elif targets.json != "-":
            formats: dict[Format, Write] = {"pretty": pretty, "jsonl": json_line, "csv": csv_rows}
            self._print = formats[targets.format or "pretty"]
            with flushed(self._stdout):
                self._stdout.write(csv_rows.head_line() if targets.format == "csv" else "")

    def meter(self, total: int, done: int) -> Meter | ExitStack:
        """Shown where rows on the terminal are not progress enough."""
        enough = self._print and (self._stdout.isatty() or total <= FEW)
        return ExitStack() if enough else Meter("predict", total, done)

    def put(self, answer: Answer) -> None:
        """Write an answer everywhere, and tell what was wrong with its file."""
        row = answer.row
        trouble = next((f"{kind}: {row[key]}" for key, kind in (("error", "unreadable"), ("partial", "partial")) if key in row), None)
        if trouble:
            say(f"{key_of(row['file'])}: {trouble}")
        self.failed += "error" in row
        if self._print:
            with flushed(self._stdout):
                self._stdout.write(self._print(row))
        if self._out:
            self._out.write(row)
        if self._features:
            self._features.write(answer)
        if self._targets.json:
            self._rows.append(row)

    def finish(self, files: Sequence[str]) -> None:
        """The list of the rows of all `files`, and the files that were made."""
        with flushed(self._stdout):
            if self._targets.json:
                made = iter(self._rows)  # in the order of those files that had no row yet
                write_json([self._earlier.get(key_of(file)) or next(made) for file in files], self._targets.json)
            for path in (self._targets.out, self._targets.embed):
                if path and self._targets.json != "-":
                    print(path)
        if self._targets.out and self.failed:
            say(f"{self.failed} of {len(files)} files cannot be used; each has its row with the reason")
