"""`cover filter`: a teacher chooses web clips and images for the classes they were searched for (OmniSource).

Source: Duan et al., 2020, "Omni-sourced Webly-supervised Learning for Video Recognition". A row of a web data set has
the class of its query as its label. It is kept if the probability that a network trained on the target data gives this
class reaches a threshold. Long videos are cut to the windows that the teacher likes. Rows that are also in an
evaluation split are left out first, by the list of `cover overlap`.

The result is a folder with manifests and a catalog, whose data sets have the classes of the teacher's head. The
probabilities are kept beside them, so that another threshold, or an interrupted run, does not compute them again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from cover.console import Meter, print_table, say
from cover.datasets.catalog import Catalog, DatasetSpec, load_catalog
from cover.datasets.changes import changed_files
from cover.datasets.exclusions import excluded_rows
from cover.datasets.manifest import ClassList, Manifest, Row, open_manifest, write_manifest
from cover.datasets.prepare import prepared_entry
from cover.datasets.probe import CRASHED
from cover.errors import UserError, nearest
from cover.evaluation.protocol import ViewPlan, normalized_class, read_windows
from cover.inference.predict import BATCH_FRAMES, GPU_BATCH_FRAMES
from cover.inference.predictor import Predictor
from cover.inference.views import CHUNK_FRAMES, TimeSpan, Windows, reading_pool
from cover.media.decode import Decoder, MediaError, check_decoder
from cover.media.sampling import Views
from cover.media.source import Media
from cover.model.heads import Head
from cover.model.release import weights_digest
from cover.processes import ProcessPool
from cover.yaml_files import Dumper

SUFFIX = "_filtered"  # of the names of the new data sets
SCORES, CATALOG = "scores", "catalog.yaml"


@dataclass(frozen=True)
class FilterOptions:
    """Which rows are kept, and how they are scored.

    `head`: the teacher's head, None for its only one. `threshold`: the lowest probability of the query class.
    `class_thresholds`: class -> its own. `most`: the best clips of a class that are kept, 0 for all. `windows`: of
    videos that are longer than a window; None to keep or drop videos as a whole. `per_video`: the best windows of a
    video that are kept, 0 for all. `views`: as in "1x3", None for those of the head. `duplicates`: whether rows that
    are in an evaluation split are dropped.
    """

    head: str | None = None
    threshold: float = 0.5
    class_thresholds: Mapping[str, float] | None = None
    most: int = 0
    windows: Windows | None = None
    per_video: int = 0
    views: str | None = None
    duplicates: Literal["drop", "keep"] = "drop"
    decoder: Decoder = "pyav"
    device: str = "auto"
    workers: int = 0


@dataclass(frozen=True)
class ScoredSpan:
    """A window of a row, or the whole row: seconds inside the file, and the probability of the query class."""

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class ScoredRow:
    """The spans of a row in their order; none if the file could not be read. `problem`: its damage, empty for none."""

    spans: tuple[ScoredSpan, ...]
    problem: str = ""


@dataclass(frozen=True)
class KeptSpan:
    """A span that is kept: the number of its row, and whether it is a window and not the whole row."""

    row: int
    span: ScoredSpan
    cut: bool


def filter_web(
    checkpoint: str | Path, catalog_path: str | Path, names: Sequence[str], out: Path, options: FilterOptions
) -> list[dict[str, Any]]:
    """Filter the train splits of the data sets `names` into the folder `out`, each as `NAME_filtered`.

    Returns one dict per data set: `dataset`, `manifest`, the numbers of rows `listed`, `unusable`, `no_class`,
    `duplicates`, `unreadable`, `damaged`, `refused`, `kept`, the number of `clips` (or images) kept, and `classes`,
    class -> number of clips. Every listed row is in exactly one of the counts up to `kept`, except that `damaged` rows
    are among the refused and kept ones. Raises `UserError`.
    """
    _check(names, options)
    catalog = load_catalog(catalog_path)
    predictor = Predictor.load(checkpoint, options.device)
    head = _head_of(predictor, options.head)
    thresholds = _thresholds(head, options)
    plan = predictor.plan(head.name, Views.parse(options.views) if options.views else None)
    teacher = _Teacher(predictor, head, plan, weights_digest(checkpoint), options)
    sources = [_Source.open(catalog, name, head) for name in dict.fromkeys(names)]
    duplicates = _duplicates(catalog, [source.spec.name for source in sources], options)
    try:
        (out / SCORES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be made: {error.strerror}") from None
    results: list[dict[str, Any]] = []
    entries: dict[str, Any] = {}
    with reading_pool(options.workers) as pool:
        for source in sources:
            result, entry = _filter_one(source, teacher, thresholds, duplicates[source.spec.name], out, pool)
            results.append(result)
            entries |= entry
    _write_catalog(out, entries)
    return results


def _check(names: Sequence[str], options: FilterOptions) -> None:
    if not names:
        raise UserError("name the web data sets to filter, as in cover filter TEACHER web_clips web_images")
    if not 0 <= options.threshold <= 1:
        raise UserError(f"--threshold: {options.threshold:g} is no probability from 0 to 1")
    check_decoder(options.decoder)


def _head_of(predictor: Predictor, name: str | None) -> Head:
    heads = {head.name: head for head in predictor.model.head_list}
    if name is None and len(predictor.model.default_heads) == 1:
        return predictor.model.default_heads[0]
    if name is None:
        raise UserError(f"which head? give --head with one of {', '.join(heads) or 'a checkpoint that has a head'}")
    if name not in heads:
        raise UserError(f'--head: the checkpoint has no head "{name}"{nearest(name, heads)}')
    return heads[name]


def _thresholds(head: Head, options: FilterOptions) -> np.ndarray:
    """The threshold of each class of the head, float64 `(classes,)`."""
    thresholds = np.full(len(head.classes), options.threshold)
    for name, value in (options.class_thresholds or {}).items():
        if name not in head.classes:
            raise UserError(f'--class-threshold: head "{head.name}" has no class "{name}"{nearest(name, head.classes)}')
        if not 0 <= value <= 1:
            raise UserError(f"--class-threshold: {name}={value:g} is no probability from 0 to 1")
        thresholds[head.classes.index(name)] = value
    return thresholds


def _duplicates(catalog: Catalog, names: Sequence[str], options: FilterOptions) -> dict[str, set[int]]:
    """Data set -> its rows that are in an evaluation split too."""
    if options.duplicates == "keep":
        return {name: set() for name in names}
    listed = excluded_rows(catalog, names)
    if listed is None:
        raise UserError(
            f"no list of duplicates beside {catalog.path.name}: run `cover overlap {catalog.path} --frames`, or give"
            " --duplicates keep"
        )
    return {name: set(rows.tolist()) for name, rows in listed.items()}


# --- the rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A web data set. `columns`: int64 `(classes,)`, the column of each of its classes in the head, -1 for none."""

    spec: DatasetSpec
    manifest: Manifest
    columns: np.ndarray

    @classmethod
    def open(cls, catalog: Catalog, name: str, head: Head) -> _Source:
        spec = catalog.spec(name)
        manifest = open_manifest(catalog.manifest_path(name, "train"))
        if manifest.classes.many:
            raise UserError(f"{name}: has any number of classes for each sample; a web sample has that of its query")
        places = {normalized_class(each): place for place, each in enumerate(head.classes)}
        columns = np.array([places.get(normalized_class(each), -1) for each in manifest.classes.names], np.int64)
        if not (columns >= 0).any():
            first = manifest.classes.names[0] if manifest.classes.names else "none"
            raise UserError(f'{name}: none of its classes ("{first}", ...) is one of head "{head.name}"')
        return cls(spec, manifest, columns)

    def column(self, row: Row) -> int:
        """The column of the query class of a row in the head, -1 for none."""
        return -1 if row.label is None else int(self.columns[row.label])


def _filter_one(
    source: _Source, teacher: _Teacher, thresholds: np.ndarray, duplicates: set[int], out: Path, pool: ProcessPool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The counts of one data set and its catalog entry."""
    name = source.spec.name
    rows = list(source.manifest.rows())
    fates = {number: _fate(row, source, number in duplicates) for number, row in enumerate(rows)}
    scored = teacher.scores(source, [number for number, fate in fates.items() if not fate], rows, out, pool)
    kept = [
        kept
        for number, result in scored.items()
        for kept in _liked(number, rows[number], result, float(thresholds[source.column(rows[number])]), teacher)
    ]
    kept = _best_of_each_class(kept, lambda item: source.column(rows[item.row]), teacher.options.most)
    manifest = out / "manifests" / f"{name}{SUFFIX}-train.arrow"
    classes = ClassList.of(teacher.head.classes, f'head "{teacher.head.name}" of the teacher')
    new = [_new_row(rows[item.row], source.column(rows[item.row]), item) for item in kept]
    scope = source.manifest.scope or source.spec.scope
    write_manifest(manifest, f"{name}{SUFFIX}", "train", source.manifest.media, classes, new, scope=scope)
    counts = Counter(fates.values())
    unreadable = sum(not result.spans for result in scored.values())
    accepted = len({item.row for item in kept})
    result = {
        "dataset": name,
        "manifest": str(manifest),
        "listed": len(rows),
        **{fate: counts[fate] for fate in ("unusable", "no_class", "duplicates")},
        "unreadable": unreadable,
        "damaged": sum(bool(result.spans and result.problem) for result in scored.values()),
        "refused": len(scored) - unreadable - accepted,
        "kept": accepted,
        "clips": len(kept),
        "classes": dict(Counter(teacher.head.classes[row.label] for row in new if row.label is not None)),
    }
    entry = prepared_entry(source.spec, {"train": str(manifest.relative_to(out))})
    return result, {f"{name}{SUFFIX}": entry}


def _fate(row: Row, source: _Source, duplicate: bool) -> str:
    """Why a row is not scored; empty if it is."""
    if row.state != "ok":
        return "unusable"
    if source.column(row) < 0:
        return "no_class"
    return "duplicates" if duplicate else ""


def _liked(number: int, row: Row, scored: ScoredRow, threshold: float, teacher: _Teacher) -> list[KeptSpan]:
    """The spans of a row that are kept, in their order: the best ones that do not overlap with a better one."""
    chosen: list[ScoredSpan] = []
    for span in sorted(scored.spans, key=lambda span: (-span.score, span.start)):
        apart = all(span.end <= other.start or span.start >= other.end for other in chosen)
        if span.score >= threshold and apart:
            chosen.append(span)
    chosen = chosen[: teacher.options.per_video or None]
    cut = teacher.is_cut(row)
    return [KeptSpan(number, span, cut) for span in sorted(chosen, key=lambda span: span.start)]


def _best_of_each_class(kept: Sequence[KeptSpan], class_of: Any, most: int) -> list[KeptSpan]:
    """The `most` spans of each class with the highest scores (0: all), in their order."""
    if not most:
        return list(kept)
    order = sorted(range(len(kept)), key=lambda place: (-kept[place].span.score, place))
    taken: Counter[int] = Counter()
    chosen = []
    for place in order:
        taken[class_of(kept[place])] += 1
        if taken[class_of(kept[place])] <= most:
            chosen.append(place)
    return [kept[place] for place in sorted(chosen)]


def _new_row(row: Row, label: int, item: KeptSpan) -> Row:
    if not item.cut:
        return replace(row, label=label)
    start, end = item.span.start, item.span.end
    # Second 0 of the file in the original video.
    first = None if row.youtube_start is None else row.youtube_start - (row.start or 0.0)
    return replace(
        row,
        label=label,
        sample_id=f"{row.sample_id}#{start:g}-{end:g}",
        start=start,
        end=end,
        youtube_start=None if first is None else first + start,
        youtube_end=None if first is None else first + end,
    )


def _write_catalog(out: Path, entries: Mapping[str, Any]) -> None:
    text = yaml.dump(
        dict(entries), Dumper=Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000
    )
    (out / CATALOG).write_text(text, encoding="utf-8")


# --- the teacher's probabilities --------------------------------------------------------------------------------------

_Item = tuple[int, Row, list[TimeSpan], bool]  # number of the row, the row, its windows, whether they are its last
_Read = tuple[_Item, list[list[np.ndarray]], str]  # the clips of each window, and the damage or the reason


@dataclass(frozen=True)
class _Teacher:
    """The network that scores, one head of it, and the views of a file. `digest`: of its weights."""

    predictor: Predictor
    head: Head
    plan: ViewPlan
    digest: str
    options: FilterOptions

    def is_cut(self, row: Row) -> bool:
        """Whether the windows of a row are scored, and not the row as a whole."""
        windows = self.options.windows
        return windows is not None and row.fps > 0 and row.seconds > windows.seconds

    def protocol(self, manifest: Manifest) -> dict[str, Any]:
        """Everything that the probabilities depend on, as JSON values."""
        windows = self.options.windows if manifest.media == "video" else None
        return {
            "weights": self.digest,
            "head": self.head.name,
            "frames": self.plan.frames,
            "size": self.plan.size,
            "sampling": str(self.plan.sampling),
            "views": str(self.plan.views),
            "window": windows and windows.seconds,
            "stride": windows and windows.stride,
            "decoder": self.options.decoder,
            "manifest": manifest.digest(),
        }

    def scores(
        self, source: _Source, numbers: Sequence[int], rows: Sequence[Row], out: Path, pool: ProcessPool
    ) -> dict[int, ScoredRow]:
        """The scores of the rows `numbers`: those of an earlier run, the others computed and stored."""
        file = _ScoreFile(out / SCORES / f"{source.spec.name}.jsonl", self.protocol(source.manifest))
        left = [number for number in numbers if number not in file.scored]
        if len(left) < len(numbers):
            say(f"{file.path}: {len(numbers) - len(left)} of {len(numbers)} rows are scored already")
        source.manifest.check_unchanged()
        found = changed_files(source.manifest, np.array(left, np.int64))
        if found.changed:
            say(f"warning: {found}")
        with file, Meter(f"score {source.spec.name}", len(numbers), len(numbers) - len(left)) as meter:
            for number, result in self._score(source, left, rows, pool):
                file.add(number, result)
                meter.advance()
        return {number: file.scored[number] for number in numbers}

    def _score(
        self, source: _Source, numbers: Sequence[int], rows: Sequence[Row], pool: ProcessPool
    ) -> Iterator[tuple[int, ScoredRow]]:
        media, spans, problem = source.manifest.media, list[ScoredSpan](), ""
        items = (item for number in numbers for item in self._items(number, rows[number]))
        work = partial(_read, media=media, plan=self.plan, decoder=self.options.decoder)
        for batch in self._batches(pool.map(work, items, lambda item: (item, [], CRASHED))):
            outputs = iter(self.predictor.run([clips for _, windows, _ in batch for (clips,) in windows]))
            for (number, row, times, last), windows, why in batch:
                column = source.column(row)
                for (start, length), _ in zip(times, windows, strict=False):
                    score = float(next(outputs).scores[self.head.name][column])
                    spans.append(ScoredSpan(round(start, 3), round(start + length, 3), round(score, 6)))
                problem = problem or why
                if last:
                    yield number, ScoredRow(tuple(spans), problem)
                    spans, problem = [], ""

    def _items(self, number: int, row: Row) -> Iterator[_Item]:
        """The windows of a row in parts that are decoded at a time."""
        begin = row.start or 0.0
        if self.options.windows is None or not self.is_cut(row):
            yield number, row, [(begin, row.seconds)], True
            return
        spans = [(begin + start, length) for start, length in self.options.windows.spans(row.seconds)]
        chunk = max(1, CHUNK_FRAMES // (self.plan.frames * self.plan.views.temporal))
        for at in range(0, len(spans), chunk):
            yield number, row, spans[at : at + chunk], at + chunk >= len(spans)

    def _batches(self, parts: Iterator[_Read]) -> Iterator[list[_Read]]:
        """Group parts for forward passes, in their order."""
        enough = BATCH_FRAMES.get(self.predictor.device.type, GPU_BATCH_FRAMES)
        batch: list[_Read] = []
        frames = 0
        for part in parts:
            batch.append(part)
            frames += sum(clips.shape[0] * clips.shape[1] for (clips,) in part[1])
            if frames >= enough:
                yield batch
                batch, frames = [], 0
        if batch:
            yield batch


def _read(item: _Item, media: Media, plan: ViewPlan, decoder: Decoder) -> _Read:
    try:
        windows, partial_ = read_windows(item[1].source, media, [plan], item[2], decoder)
    except MediaError as error:
        return item, [], str(error)
    return item, windows, partial_ or ""


class _ScoreFile:
    """A file of JSON lines: the protocol, then the scores of each row. An incomplete last line is removed.

    `scored`: row number -> its scores. Raises `UserError` if the file was written with another protocol or cannot be
    written.
    """

    def __init__(self, path: Path, protocol: Mapping[str, Any]) -> None:
        self.path = path
        self.scored: dict[int, ScoredRow] = {}
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            theirs = self._read(whole.splitlines())
            self._file = path.open("r+b" if data else "w+b", buffering=0)
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror}") from None
        if theirs is None:
            self._write(protocol)
        else:
            self._check(theirs, protocol)

    def _read(self, lines: Sequence[bytes]) -> dict[str, Any] | None:
        """Read the scores; returns the protocol, None for an empty file."""
        try:
            self.scored = dict(map(_scored_of, lines[1:]))
            return dict(json.loads(lines[0])) if lines else None
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.path}: holds no scores of cover filter; give another --out") from None

    def __enter__(self) -> _ScoreFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, number: int, result: ScoredRow) -> None:
        """Append the scores of a row."""
        spans = [[span.start, span.end, span.score] for span in result.spans]
        self._write({"row": number, "spans": spans, **({"problem": result.problem} if result.problem else {})})
        self.scored[number] = result

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}; the same command continues from here"
            ) from None

    def _check(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        for key in sorted(theirs.keys() | ours.keys()):
            if theirs.get(key) != ours.get(key):
                values = f"{key} {json.dumps(theirs.get(key))}, this run has {json.dumps(ours.get(key))}"
                raise UserError(f"{self.path}: was written with {values}; give another --out, or remove the file")


def _scored_of(line: bytes) -> tuple[int, ScoredRow]:
    record = json.loads(line)
    return int(record["row"]), ScoredRow(
        tuple(ScoredSpan(*span) for span in record["spans"]), record.get("problem", "")
    )


# --- results ----------------------------------------------------------------------------------------------------------

_COUNTS = {
    "listed": "listed",
    "unusable": "unusable",
    "no_class": "no class",
    "duplicates": "duplicates",
    "unreadable": "unreadable",
    "refused": "refused",
    "kept": "kept",
    "clips": "clips",
}


def print_filter(results: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Print the results of `filter_web`: a table on stdout, and on stderr the entries for a catalog."""
    rows = [[result["dataset"], *(f"{result[key]:,}" for key in _COUNTS), len(result["classes"])] for result in results]
    print_table(["data set", *_COUNTS.values(), "classes"], rows)
    for result in results:
        if result["damaged"]:
            say(f"{result['dataset']}: {result['damaged']} of the scored files are damaged; their scores count")
        if not result["clips"]:
            say(f"{result['dataset']}: nothing is kept; lower --threshold")
    say(f"the data sets are in {out / CATALOG}; to train on them beside others, copy its entries with root: {out}")
