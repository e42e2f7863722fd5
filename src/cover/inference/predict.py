"""Batch prediction, `cover predict`: one row for every file, in order, as soon as it is ready."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from cover.console import Meter, flushed, say, write_json
from cover.datasets.files import matching, walk
from cover.errors import UserError
from cover.inference.features import FeatureFile, list_beside
from cover.inference.predictor import Predictions, Predictor, ViewOutputs
from cover.inference.records import (
    Answer,
    CsvRows,
    OutputFormat,
    ResultRow,
    RowFile,
    SegmentCsv,
    Write,
    format_of,
    json_line,
    key_of,
    pretty,
    segment_entry,
    subtitles_of,
    write_subtitles,
)
from cover.inference.segments import SegmentRule, find_segments
from cover.inference.views import WINDOW_S, FileViews, ViewRequest, Windows, read_files, reading_pool
from cover.machine import default_workers
from cover.media.decode import Decoder, FileProblem, MediaError, check_decoder
from cover.media.sampling import Views
from cover.media.source import is_url
from cover.model.text import PROMPT
from cover.processes import ProcessPool
from cover.safe_text import printable

if TYPE_CHECKING:
    from cover.inference.engines import Engine

FILES_PER_WORKER = 8  # with fewer files, the start of a reading process takes longer than it saves
FEW = 20  # up to this number of files, no progress is shown
BATCH_FRAMES = {"cpu": 64}  # approximate number of frames in a forward pass; more do not make a CPU faster
GPU_BATCH_FRAMES = 512


@dataclass(frozen=True)
class PredictRequest:
    """The prediction that every file gets: the `top` most likely classes of `heads` (None: all heads).

    `views`, as in "1x3": None for the views of each head. `windows`: None for the whole file. `segments`: the rule that
    makes segments of the windows, which are those of `default_windows` if none are given. `classes`: predicted in place
    of the heads, in the text `prompt` (`Predictor.load`). All fields are plain data, which can be sent to other
    machines.
    """

    top: int = 5
    heads: tuple[str, ...] | None = None
    views: str | None = None
    windows: Windows | None = None
    decoder: Decoder = "pyav"
    segments: SegmentRule | None = None
    classes: tuple[str, ...] = ()
    prompt: str | None = None


@dataclass(frozen=True)
class PredictOutputs:
    """The outputs of `predict`.

    Rows go to the file `out`, or to stdout, in a `format`. An interrupted run continues with the rows in `out`.
    Features go to the file `embed`. All rows go as one JSON list to `json`; `-` is stdout, in place of the rows.
    """

    format: OutputFormat | None = None
    out: Path | None = None
    embed: Path | None = None
    json: str | None = None


@dataclass(frozen=True)
class PredictOptions:
    """The device, the number of reading processes (None: as many as help), and what computes.

    `engine`: an engine on this machine, or `ray`, which is `eager` on a Ray cluster.
    """

    device: str = "auto"
    workers: int | None = None
    engine: Engine | Literal["ray"] = "eager"


def predict(
    checkpoint: str, files: Sequence[str], request: PredictRequest, outputs: PredictOutputs, options: PredictOptions
) -> int:
    """Predict all `files`, which are listed once each.

    A file that cannot be read gives a line on stderr and a row with the reason. Returns the number of such files, with
    those of the earlier run that this one continues. Raises `UserError`.
    """
    _check(outputs, options)
    _check_subtitles(files, request, outputs)
    here: tuple[str, Engine] = ("cpu", "eager") if options.engine == "ray" else (options.device, options.engine)
    predictor = Predictor.load(checkpoint, *here, request.classes, request.prompt)
    check_heads(predictor, checkpoint, outputs.embed is not None)
    answerer = Answerer(predictor, request, checkpoint)
    with ExitStack() as stack:
        writer = _AnswerWriter(answerer, outputs, stack)
        remaining = [file for file in files if key_of(file) not in writer.done]
        if writer.done:
            left = f"{len(remaining)} of {len(files)} files are left"
            say(f"{outputs.out}: continues after {len(writer.done)} rows; {left}")
        if predictor.graphs:
            from cover.inference.engines import CALIBRATION_CLIPS, prepare_engine

            prepare_engine(predictor, answerer.view_request, remaining[:CALIBRATION_CLIPS], textures=False)
        meter = stack.enter_context(writer.meter(len(files), len(files) - len(remaining)))
        for answer in _answers(answerer, checkpoint, remaining, options):
            writer.write(answer)
            if isinstance(meter, Meter):
                meter.advance()
    writer.finish(files)
    return writer.failed


def _check(outputs: PredictOutputs, options: PredictOptions) -> None:
    if outputs.embed and options.engine == "ray":
        raise UserError("--embed: cannot go with --engine ray, which writes no features")
    if outputs.embed and outputs.out and outputs.out.exists():
        raise UserError(f"--embed: cannot continue the rows of an earlier run; give another --out than {outputs.out}")
    if outputs.json and outputs.out and outputs.out.exists() and format_of(outputs.out, outputs.format) == "csv":
        raise UserError(
            f"--json: cannot list the rows of an earlier .csv; leave it out, or give another --out than {outputs.out}"
        )
    _check_apart(outputs)


def _check_subtitles(files: Sequence[str], request: PredictRequest, outputs: PredictOutputs) -> None:
    if outputs.out is None or subtitles_of(outputs.out) is None:
        return
    if request.segments is None or outputs.format is not None:
        raise UserError(f"--out {outputs.out}: subtitles show --segments, and have no --format")
    if len(files) != 1:
        raise UserError(f"--out {outputs.out}: subtitles are of one video, and {len(files)} files are given")


def _check_apart(outputs: PredictOutputs) -> None:
    """Raise `UserError` if two outputs go to the same file."""
    paths = {"--out": outputs.out, "--json": outputs.json if outputs.json != "-" else None, "--embed": outputs.embed}
    paths["--embed's list of names"] = outputs.embed and list_beside(outputs.embed)
    options: dict[str, str] = {}
    for option, path in paths.items():
        if path:
            other = options.setdefault(os.path.realpath(path), option)
            if other != option:
                raise UserError(f"{option}, {path}: {other} writes it too; name another file")


def _answers(answerer: Answerer, checkpoint: str, files: Sequence[str], options: PredictOptions) -> Iterator[Answer]:
    if options.engine == "ray":
        from cover.inference.ray_engine import answers_by_ray

        yield from answers_by_ray(checkpoint, answerer.request, files, options.workers, options.device)
        return
    workers = default_workers() if options.workers is None else options.workers
    if options.workers is None and not answerer.view_request.windows:
        workers = min(workers, len(files) // FILES_PER_WORKER)
    with reading_pool(workers) as pool:
        yield from answerer.answers(files, pool)


class _AnswerWriter:
    """Writes answers to all outputs.

    `done`: the names of the files that have a row from an earlier run. `failed`: the number of files that could not be
    read, with those of the earlier run.
    """

    def __init__(self, answerer: Answerer, outputs: PredictOutputs, stack: ExitStack) -> None:
        self._outputs, self._rows, self._earlier, self.failed = outputs, list[ResultRow](), dict[str, ResultRow](), 0
        self._stdout: IO[str] = sys.stdout  # a live display may replace sys.stdout
        csv_rows = (SegmentCsv if answerer.request.segments else CsvRows)(list(answerer.plans), answerer.request.top)
        self._print: Write | None = None
        self._out: RowFile | None = None
        self._subtitles = outputs.out if outputs.out and subtitles_of(outputs.out) else None
        self._features: FeatureFile | None = None
        self.done: set[str] = set()
        if outputs.embed:
            self._features = stack.enter_context(FeatureFile(outputs.embed, answerer.predictor.model.backbone.width))
        if outputs.out and not self._subtitles:
            kind = format_of(outputs.out, outputs.format)
            self._out = stack.enter_context(RowFile(outputs.out, kind, csv_rows, answerer.protocol))
            self.done, self.failed = self._out.done, self._out.failed
            if outputs.json and self.done:
                self._earlier = self._out.rows()
        elif outputs.json != "-" and not self._subtitles:
            csv_text = (lambda row: _on_terminal(csv_rows(row))) if self._stdout.isatty() else csv_rows
            formats: dict[OutputFormat, Write] = {"pretty": pretty, "jsonl": json_line, "csv": csv_text}
            self._print = formats[outputs.format or "pretty"]
            with flushed(self._stdout):
                self._stdout.write(csv_rows.head_line() if outputs.format == "csv" else "")

    def meter(self, total: int, done: int) -> Meter | ExitStack:
        """A display of progress. There is none (an empty `ExitStack`) if rows on the terminal show the progress."""
        shown_by_rows = self._print and (self._stdout.isatty() or total <= FEW)
        return ExitStack() if shown_by_rows else Meter("predict", total, done)

    def write(self, answer: Answer) -> None:
        """Write an answer to all outputs, and its problem to stderr."""
        row = answer.row
        if answer.problem is not None:
            say(key_of(str(answer.problem)))
            self.failed += answer.problem.kind == "unreadable"
        if self._print:
            with flushed(self._stdout):
                self._stdout.write(self._print(row))
        if self._out:
            self._out.write(row)
        if self._subtitles and not answer.failed and not write_subtitles(self._subtitles, row):
            say(f"{self._subtitles}: empty, since no class reaches the probability of --segments")
        if self._features:
            self._features.write(answer)
        if self._outputs.json:
            self._rows.append(row)

    def finish(self, files: Sequence[str]) -> None:
        """Write the JSON list of all rows, and print the paths of the outputs."""
        with flushed(self._stdout):
            if self._outputs.json:
                new_rows = iter(self._rows)  # in the order of the files without an earlier row
                write_json([self._earlier.get(key_of(file)) or next(new_rows) for file in files], self._outputs.json)
            for path in (self._outputs.out, self._outputs.embed):
                if path and path.exists() and self._outputs.json != "-":
                    print(path)
        if self._outputs.out and self.failed:
            say(f"{self.failed} of {len(files)} files cannot be used; each has its row with the reason")


def _on_terminal(lines: str) -> str:
    """Lines of CSV for a terminal, which would obey the control characters that a file holds."""
    return "".join(printable(line) + "\n" for line in lines.removesuffix("\n").split("\n"))


# --- from views to rows -----------------------------------------------------------------------------------------------


class Answerer:
    """A predictor and the request that it answers for every file.

    `source` is the name of the checkpoint in the protocol. Raises `UserError` if a head, the views or the decoder are
    not available.
    """

    def __init__(self, predictor: Predictor, request: PredictRequest, source: str) -> None:
        views = Views.parse(request.views) if request.views else None
        self.predictor, self.request = predictor, request
        self.plans = predictor.plans(request.heads, views)
        different = tuple(dict.fromkeys(self.plans.values())) or (predictor.whole(views),)
        windows = request.windows or (default_windows(predictor, self.plans) if request.segments else None)
        self.view_request = ViewRequest(different, request.decoder, windows)
        self.protocol: ResultRow = {
            "checkpoint": source,
            "step": predictor.metadata.get("step"),
            "decoder": check_decoder(request.decoder),
            "frames": predictor.metadata["frames"],
            "views": {head: str(plan.views) for head, plan in self.plans.items()},
            "sampling": {head: str(plan.sampling) for head, plan in self.plans.items()},
            "top": request.top,
            **({} if predictor.engine == "eager" else {"engine": predictor.engine}),
            **({"window": windows.seconds, "stride": windows.stride} if windows else {}),
            **({"classes": list(request.classes), "prompt": request.prompt or PROMPT} if request.classes else {}),
            **({"segments": asdict(request.segments)} if request.segments else {}),
        }

    def answers(self, files: Sequence[str], pool: ProcessPool) -> Iterator[Answer]:
        """Yield one answer per file, in the order of `files`, as soon as it is complete."""
        open_: Answer | None = None  # the answer for a file some of whose windows are not read yet
        for batch in self._batches(read_files(files, self.view_request, pool)):
            outputs = iter(self.predictor.run([views for part in batch for clips in part.clips for views in clips]))
            for part in batch:
                open_ = open_ or self._begin(part)
                for span in part.spans:
                    spans_outputs = [next(outputs) for _ in self.view_request.plans]
                    if not open_.failed:
                        self._add(open_, part, span, spans_outputs)
                self._note(open_, part)
                if not part.rest:
                    self._finish(open_)
                    yield open_
                    open_ = None

    def _batches(self, parts: Iterator[FileViews]) -> Iterator[list[FileViews]]:
        """Group files for forward passes. A batch also holds the unreadable files between them, in order."""
        enough = BATCH_FRAMES.get(self.predictor.device.type, GPU_BATCH_FRAMES)
        batch: list[FileViews] = []
        frames = 0
        for part in parts:
            batch.append(part)
            frames += sum(views.shape[0] * views.shape[1] for clips in part.clips for views in clips)
            if frames >= enough:
                yield batch
                batch, frames = [], 0
        if batch:
            yield batch

    def _begin(self, part: FileViews) -> Answer:
        row: ResultRow = {"file": part.file, "media": part.media}
        kind = "segments" if self.request.segments else "timeline"
        row |= {kind: {head: [] for head in self.plans}} if self._has_timeline(part) else {"heads": {}}
        return Answer(row)

    def _has_timeline(self, part: FileViews) -> bool:
        return self.view_request.windows is not None and part.media == "video"

    def _add(self, answer: Answer, part: FileViews, span: tuple[float, float], outputs: list[ViewOutputs]) -> None:
        """Add the predictions of one span to an answer. The answer fails if they are not finite."""
        try:
            result = self.predictor.by_head(outputs, self.view_request, self.plans, part, span)
        except MediaError as error:
            answer.fail(FileProblem(part.file, "unreadable", str(error)))
            return
        answer.features.append((result.start, result.end, outputs[0].features))
        if "segments" in answer.row:
            answer.windows.append((span, [each.scores for each in result.values()]))
            return
        tops = {head: _top(result, head, self.request.top) for head in result}
        if self._has_timeline(part):
            window = {"start": _seconds(result.start), "end": _seconds(result.end)}
            for head, top in tops.items():
                answer.row["timeline"][head].append({**window, "top": top})
        else:
            answer.row["heads"] = tops

    def _finish(self, answer: Answer) -> None:
        """Make segments of all windows of a video."""
        rule, windows = self.request.segments, answer.windows
        if rule is None or answer.failed or "segments" not in answer.row:
            return
        classes = {head.name: head.classes for head in self.predictor.model.head_list}
        for place, head in enumerate(self.plans):
            scores = np.stack([scores[place] for _, scores in windows])
            found = find_segments([span for span, _ in windows], scores, rule)
            answer.row["segments"][head] = [segment_entry(each, classes[head][each.label]) for each in found]
        windows.clear()

    def _note(self, answer: Answer, part: FileViews) -> None:
        """Add the problem of a file and the protocol to an answer.

        A file without any prediction is unreadable. A file whose timeline ends early is partial.
        """
        if part.problem is not None and not answer.failed:
            problem = replace(part.problem, kind="partial" if answer.features else part.problem.kind)
            if problem.kind == "unreadable":
                answer.fail(problem)
            else:
                answer.problem, answer.row["partial"] = problem, problem.reason
        answer.row["protocol"] = self.protocol


def default_windows(predictor: Predictor, heads: Iterable[str]) -> Windows:
    """Windows of the seconds that a clip of the heads spans, four of which begin in that time."""
    seconds = max(map(predictor.window, heads), default=WINDOW_S)
    return Windows(seconds, seconds / 4)


def _top(results: Predictions, head: str, k: int) -> list[list[Any]]:
    return [[name, round(score, 6)] for name, score in results[head].top(k)]


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def check_heads(predictor: Predictor, source: object, embedding: bool) -> None:
    """Raise `UserError` if the model has no heads and its features are not written either (`embedding`)."""
    if not predictor.model.head_list and not embedding:
        raise UserError(
            f"{source}: has no head, so there is nothing to predict; --embed writes features, or train one with"
            f" start.checkpoint={source}"
        )


# --- names of files on the command line -------------------------------------------------------------------------------


def find_inputs(names: Iterable[str], listed: BinaryIO) -> list[str]:
    """The files that `names` stand for, each once, in order.

    A folder stands for all videos and images in it and below it, sorted. A pattern (`*`, `?`, `[...]`, `**`) stands for
    the files that match, unless a file has this name. `-` stands for the lines of `listed`, which are read like names.

    A file that does not exist stays in the list, and later gets a row with the reason. So does a pattern with brackets
    only that matches nothing, because downloaded files have such names (`title [id].mp4`).

    Raises `UserError` for a folder without videos and images, for a pattern with `*` or `?` that matches nothing, and
    if there are no files at all.
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
                f"{name}: there is no video or image in this folder, by their endings; name files to read them anyway"
            )
        return inside
    if glob.has_magic(name):
        found = matching(name)
        if not found and ("*" in name or "?" in name):
            raise UserError(f"{name}: no file matches")
        return found or [name]
    return [name]
