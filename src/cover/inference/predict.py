"""Batch prediction, `cover predict`: every file gets one row, in order, as soon as it is known."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from cover.console import Meter, flushed, say, write_json
from cover.datasets.files import walk
from cover.errors import UserError
from cover.inference.features import FeatureFile, list_beside
from cover.inference.predictor import Predictions, Predictor, ViewOutputs
from cover.inference.records import (
    Answer,
    CsvRows,
    OutputFormat,
    ResultRow,
    RowFile,
    Write,
    format_of,
    json_line,
    key_of,
    pretty,
)
from cover.inference.views import FileViews, ViewRequest, Windows, read_files, reading_pool
from cover.machine import default_workers
from cover.media.decode import Decoder, check_decoder
from cover.media.sampling import Views
from cover.media.source import is_url
from cover.processes import ProcessPool

FILES_PER_WORKER = 8  # below, a reading process takes longer to start than it saves
FEW = 20  # files that need no display of progress
BATCH_FRAMES = {"cpu": 64}  # of one forward pass, about; more does not make a CPU faster
GPU_BATCH_FRAMES = 512


@dataclass(frozen=True)
class PredictRequest:
    """What to predict of every file: the `top` classes of `heads` (None: all), in `views` (None: each head's own), of
    the whole file or of `windows`. Plain data, which can be sent to other machines.
    """

    top: int = 5
    heads: tuple[str, ...] | None = None
    views: str | None = None
    windows: Windows | None = None
    decoder: Decoder = "pyav"


@dataclass(frozen=True)
class PredictOutputs:
    """Where results go: rows to stdout in a `format`, or to `out`, a file that an interrupted run is taken up from;
    features to `embed`; and all rows as one JSON list to `json`, `-` for stdout instead of rows.
    """

    format: OutputFormat | None = None
    out: Path | None = None
    embed: Path | None = None
    json: str | None = None


@dataclass(frozen=True)
class PredictOptions:
    """What does the work: `workers` reading processes (None: as many as help), on this machine or over a Ray cluster."""

    device: str = "auto"
    workers: int | None = None
    engine: Literal["pool", "ray"] = "pool"


def predict(
    checkpoint: str, files: Sequence[str], request: PredictRequest, outputs: PredictOutputs, options: PredictOptions
) -> int:
    """Predict every file of `files`, each listed once. A file that cannot be read is one line on stderr and a row with
    its reason.

    Returns how many could not be read, those of an earlier run included. Raises `UserError`.
    """
    _check(outputs, options)
    predictor = Predictor.load(checkpoint, "cpu" if options.engine == "ray" else options.device)
    check_heads(predictor, checkpoint, outputs.embed is not None)
    answerer = Answerer(predictor, request, checkpoint)
    with ExitStack() as stack:
        outlet = _Outlet(answerer, outputs, stack)
        wanted = [file for file in files if key_of(file) not in outlet.done]
        if outlet.done:
            say(f"{outputs.out}: goes on behind {len(outlet.done)} rows; {len(wanted)} of {len(files)} files are left")
        meter = stack.enter_context(outlet.meter(len(files), len(files) - len(wanted)))
        for answer in _answers(answerer, checkpoint, wanted, options):
            outlet.put(answer)
            if isinstance(meter, Meter):
                meter.advance()
    outlet.finish(files)
    return outlet.failed


def _check(outputs: PredictOutputs, options: PredictOptions) -> None:
    if outputs.embed and options.engine == "ray":
        raise UserError("--embed: features are written by --engine pool alone")
    if outputs.embed and outputs.out and outputs.out.exists():
        raise UserError(f"--embed: cannot go on from the rows of an earlier run; give another --out than {outputs.out}")
    if outputs.json and outputs.out and outputs.out.exists() and format_of(outputs.out, outputs.format) == "csv":
        raise UserError(
            f"--json: cannot list the rows of an earlier .csv; leave it out, or give another --out than {outputs.out}"
        )
    _check_apart(outputs)


def _check_apart(outputs: PredictOutputs) -> None:
    """Raises `UserError` where two results go to one file."""
    named = {"--out": outputs.out, "--json": outputs.json if outputs.json != "-" else None, "--embed": outputs.embed}
    named["--embed's list of names"] = outputs.embed and list_beside(outputs.embed)
    chosen: dict[str, str] = {}
    for option, path in named.items():
        if path:
            other = chosen.setdefault(os.path.realpath(path), option)
            if other != option:
                raise UserError(f"{option}, {path}: {other} writes it too; name another file")


def _answers(answerer: Answerer, checkpoint: str, files: Sequence[str], options: PredictOptions) -> Iterator[Answer]:
    if options.engine == "ray":
        from cover.inference.ray_engine import answers_by_ray

        yield from answers_by_ray(checkpoint, answerer.request, files, options.workers, options.device)
        return
    most = default_workers() if options.workers is None else options.workers
    useful = (
        most
        if answerer.view_request.windows or options.workers is not None
        else min(most, len(files) // FILES_PER_WORKER)
    )
    with reading_pool(useful) as pool:
        yield from answerer.answers(files, pool)


class _Outlet:
    """Everything that is done with an answer."""

    def __init__(self, answerer: Answerer, outputs: PredictOutputs, stack: ExitStack) -> None:
        self._outputs, self._rows, self._earlier, self.failed = outputs, list[ResultRow](), dict[str, ResultRow](), 0
        self._stdout: IO[str] = sys.stdout  # a live display may take its place
        csv_rows = CsvRows(list(answerer.plans), answerer.request.top)
        self._print: Write | None = None
        self._out = self._features = None
        self.done: set[str] = set()
        if outputs.embed:
            self._features = stack.enter_context(FeatureFile(outputs.embed, answerer.predictor.model.backbone.width))
        if outputs.out:
            kind = format_of(outputs.out, outputs.format)
            self._out = stack.enter_context(RowFile(outputs.out, kind, csv_rows, answerer.protocol))
            self.done, self.failed = self._out.done, self._out.failed
            if outputs.json and self.done:
                self._earlier = self._out.rows()
        elif outputs.json != "-":
            formats: dict[OutputFormat, Write] = {"pretty": pretty, "jsonl": json_line, "csv": csv_rows}
            self._print = formats[outputs.format or "pretty"]
            with flushed(self._stdout):
                self._stdout.write(csv_rows.head_line() if outputs.format == "csv" else "")

    def meter(self, total: int, done: int) -> Meter | ExitStack:
        """Shown where rows on the terminal are not progress enough."""
        enough = self._print and (self._stdout.isatty() or total <= FEW)
        return ExitStack() if enough else Meter("predict", total, done)

    def put(self, answer: Answer) -> None:
        """Write an answer everywhere, and say what is wrong with its file."""
        row = answer.row
        if answer.problem is not None:
            say(key_of(str(answer.problem)))
            self.failed += answer.problem.kind == "unreadable"
        if self._print:
            with flushed(self._stdout):
                self._stdout.write(self._print(row))
        if self._out:
            self._out.write(row)
        if self._features:
            self._features.write(answer)
        if self._outputs.json:
            self._rows.append(row)

    def finish(self, files: Sequence[str]) -> None:
        """The list of the rows of all `files`, and the files that were made."""
        with flushed(self._stdout):
            if self._outputs.json:
                output = iter(self._rows)  # in the order of those files that had no row yet
                write_json([self._earlier.get(key_of(file)) or next(output) for file in files], self._outputs.json)
            for path in (self._outputs.out, self._outputs.embed):
                if path and self._outputs.json != "-":
                    print(path)
        if self._outputs.out and self.failed:
            say(f"{self.failed} of {len(files)} files cannot be used; each has its row with the reason")


# --- from views to rows


class Answerer:
    """A predictor with what is asked of it. Raises `UserError` for heads, views or a decoder that are not there.

    `source`: what the checkpoint was called, for the protocol.
    """

    def __init__(self, predictor: Predictor, request: PredictRequest, source: str) -> None:
        views = Views.parse(request.views) if request.views else None
        self.predictor, self.request = predictor, request
        self.plans = predictor.plans(request.heads, views)
        different = tuple(dict.fromkeys(self.plans.values())) or (predictor.whole(views),)
        self.view_request = ViewRequest(different, request.decoder, request.windows)
        windows = request.windows
        self.protocol: ResultRow = {
            "checkpoint": source,
            "step": predictor.metadata.get("step"),
            "decoder": check_decoder(request.decoder),
            "frames": predictor.metadata["frames"],
            "views": {head: str(plan.views) for head, plan in self.plans.items()},
            "sampling": {head: str(plan.sampling) for head, plan in self.plans.items()},
            "top": request.top,
            **({"window": windows.seconds, "stride": windows.stride} if windows else {}),
        }

    def answers(self, files: Sequence[str], pool: ProcessPool) -> Iterator[Answer]:
        """One answer per file, in their order, as soon as it is whole."""
        open_: Answer | None = None
        for batch in self._batches(read_files(files, self.view_request, pool)):
            outputs = iter(self.predictor.run([views for part in batch for clips in part.clips for views in clips]))
            for part in batch:
                open_ = open_ or self._begin(part)
                for span in part.spans:
                    self._add(open_, part, span, [next(outputs) for _ in self.view_request.plans])
                self._note(open_, part)
                if not part.rest:
                    yield open_
                    open_ = None

    def _batches(self, parts: Iterator[FileViews]) -> Iterator[list[FileViews]]:
        """As many as one forward pass should have; files that could not be read wait with the others, to keep the
        order.
        """
        most = BATCH_FRAMES.get(self.predictor.device.type, GPU_BATCH_FRAMES)
        batch: list[FileViews] = []
        present = 0
        for part in parts:
            batch.append(part)
            present += sum(views.shape[0] * views.shape[1] for clips in part.clips for views in clips)
            if present >= most:
                yield batch
                batch, present = [], 0
        if batch:
            yield batch

    def _begin(self, part: FileViews) -> Answer:
        row: ResultRow = {"file": part.file, "media": part.media}
        row |= {"timeline": {head: [] for head in self.plans}} if self._timed(part) else {"heads": {}}
        return Answer(row)

    def _timed(self, part: FileViews) -> bool:
        return self.view_request.windows is not None and part.media == "video"

    def _add(self, answer: Answer, part: FileViews, span: tuple[float, float], seen: list[ViewOutputs]) -> None:
        result = self.predictor.named(seen, self.view_request, self.plans, part, span)
        tops = {head: _top(result, head, self.request.top) for head in result}
        if self._timed(part):
            for head, top in tops.items():
                answer.row["timeline"][head].append(
                    {"start": _seconds(result.start), "end": _seconds(result.end), "top": top}
                )
        else:
            answer.row["heads"] = tops
        answer.features.append((result.start, result.end, seen[0].features))

    def _note(self, answer: Answer, part: FileViews) -> None:
        """Record what is wrong with the file: without any prediction it is unreadable, with a timeline that ends early
        it is partial.
        """
        if part.problem is not None:
            answer.problem = replace(part.problem, kind="partial" if answer.features else part.problem.kind)
            if answer.problem.kind == "unreadable":
                answer.row = {"file": part.file, "error": answer.problem.reason}
            else:
                answer.row["partial"] = answer.problem.reason
        answer.row["protocol"] = self.protocol


def _top(results: Predictions, head: str, k: int) -> list[list[Any]]:
    return [[name, round(fraction, 6)] for name, fraction in results[head].top(k)]


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def check_heads(predictor: Predictor, source: object, embedding: bool) -> None:
    """Raises `UserError` where a model without heads is asked for classes."""
    if not predictor.model.head_list and not embedding:
        raise UserError(
            f"{source}: has no head, so there is nothing to predict; --embed writes features, or train one with"
            f" start.checkpoint={source}"
        )


# --- which files are meant


def find_inputs(names: Iterable[str], listed: BinaryIO) -> list[str]:
    """Every file that `names` mean, each once, in their order.

    A folder means all videos and images below it, in sorted order; a pattern (`*`, `?`, `[...]`, `**`) the files that
    match, unless a file is called so; `-` the lines of `listed`, read alike. A file that does not exist is kept: it
    gets its row with the reason, and so does a name with brackets alone that matches nothing, as files are called by
    what downloads them (`title [id].mp4`). Raises `UserError` for a folder without videos and images, and where nothing
    is meant at all.
    """
    results = list(dict.fromkeys(path for name in _spread(names, listed) for path in _expand(name)))
    if not results:
        raise UserError("no files are given: name files, folders or patterns, or - for a list on stdin")
    return results


def _spread(names: Iterable[str], listed: BinaryIO) -> Iterator[str]:
    for name in names:
        if name == "-":
            yield from (os.fsdecode(line) for line in listed.read().splitlines() if line.strip())
        else:
            yield name


def _expand(name: str) -> list[str]:
    if is_url(name) or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        inside = list(walk(name, None))
        if not inside:
            raise UserError(
                f"{name}: there is no video or image in this folder, by their endings; name the files to have them read anyway"
            )
        return inside
    if glob.has_magic(name):
        matching = sorted(path for path in glob.glob(name, recursive=True) if not os.path.isdir(path))
        if not matching and ("*" in name or "?" in name):
            raise UserError(f"{name}: no file matches")
        return matching or [name]
    return [name]
