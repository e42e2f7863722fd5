"""Reports of experiments: HTML pages and Markdown files from `templates/`, and the report of the demo.

A report is one file that needs no other file. Its texts and captions are in the templates. This module and
`study.study_report` compute the tables and charts.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from cover.console import clock
from cover.experiments.charts import MARKS, Bar, Line, Panel, Point, bar, line_chart
from cover.experiments.run_files import RunHistory, read_log

FRAMES_SHOWN = 8  # of a clip
TALLEST_FRAME = 128  # pixels
GAP = 3  # pixels between two frames
MARKDOWN_SIGNS = str.maketrans({**{sign: f"\\{sign}" for sign in "\\|*`["}, "<": "&lt;", "\u00a0": " "})


# --- tables, texts and templates --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, a small note below it, and its CSS classes (`tone`).

    `text` is None if there is no number; the page shows a dash. `narrow`, in the first cell of a row, replaces the
    columns of class `text` on narrow screens.
    """

    text: str | None
    note: str = ""
    tone: str = ""
    narrow: str = ""


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its name. Without `columns`, the rows are a list of facts."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    kind: str = ""


def plain(text: str) -> str:
    """The text on one line, with its special characters escaped for Markdown.

    >>> plain("a|b <i>")
    'a\\\\|b &lt;i>'
    """
    return " ".join(str(text).split()).translate(MARKDOWN_SIGNS)


@cache
def _environment(html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cover.experiments"),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters["plain"] = plain
    kind = "html" if html else "md"
    environment.globals.update(html=html, layout=f"page.{kind}", blocks=f"blocks.{kind}", marks=MARKS)
    return environment


def render_page(template: str, **data: Any) -> str:
    """A template as an HTML page. Every value is escaped."""
    return _environment(html=True).get_template(template).render(data)


def render_markdown(template: str, **data: Any) -> str:
    """A template as Markdown, with one empty line between its blocks."""
    lines = [line.rstrip() for line in _environment(html=False).get_template(template).render(data).split("\n")]
    spaced = [line for place, line in enumerate(lines) if line or (place and lines[place - 1])]
    return "\n".join(spaced).strip("\n") + "\n"


def write_text(text: str, path: Path) -> Path:
    """Write a file and return its path. The file has another name until it is complete.

    Characters that are not valid in UTF-8, as in some file names, become backslash escapes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
    return path


def percent(fraction: float | None, digits: int = 1) -> str | None:
    """A fraction in per cent; None stays None.

    >>> percent(0.6321)
    '63.2'
    """
    return None if fraction is None else f"{100 * fraction:.{digits}f}"


def points(difference: float) -> str:
    """A difference of fractions in points, with a sign unless it is zero."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


# --- the report of the demo and its runs ------------------------------------------------------------------------------

# By key in the results: title of the column, and colour class of the bars.
MEASURED = {
    "chance": ("chance", ""),
    "single": ("trained alone", "single"),
    "cotrained": ("co-trained", "cotrained"),
    "cotrained_shuffled": ("… frames shuffled", "shuffled"),
    "cotrained_single_frame": ("… one frame", "oneframe"),
}
TRIVIAL = {"thumbnail": "thumbnail", "motion": "motion"}  # by key in the results: title of the column
RUN_TONES = {"co-train": "cotrained", "pre-train": "pretrained", "single": "single"}  # by a word in the run's title


@dataclass(frozen=True)
class PredictedClip:
    """A clip or an image with its prediction.

    `frames`: the input of the model, uint8 `(T, H, W, 3)`. `truth`: the class of the label. `top`: the most likely
    classes with their probabilities, the most likely first.
    """

    dataset: str
    path: str
    frames: np.ndarray
    truth: str
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class DemoResults:
    """The contents of the report of a demo.

    `results`: `{wall_seconds, datasets: {name: {chance, single, cotrained, cotrained_shuffled, cotrained_single_frame,
    prior, thumbnail, motion, top5, mean_class, n_read, n_listed, classes, views, split, step, class_digest, media,
    intervals, differences}}}`. Accuracies are between 0 and 1; one that was not measured is null or absent.
    `intervals`: `[low, high]` of an accuracy, by its key. `differences`: of an accuracy to the one it is compared with,
    by its key, with its interval, p-value and verdict. `stages`: titles and seconds. `runs`:
    the `log.jsonl` of each run by title; "co-train", "pre-train" or "single" in a title decides its colour.
    `generated`: whether the data sets are those of the sandbox.
    """

    results: dict[str, Any]
    stages: list[tuple[str, float]] = field(default_factory=list)
    runs: dict[str, Path] = field(default_factory=dict)
    clips: list[PredictedClip] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    generated: bool = True

    @property
    def datasets(self) -> dict[str, dict[str, Any]]:
        """The results by data set."""
        return dict(self.results.get("datasets") or {})


def write_demo_report(folder: Path, demo: DemoResults) -> Path:
    """Write `folder/report.html` and return its path. The page says what is missing."""
    logs = {title: read_log(path) for title, path in demo.runs.items()}
    read = sorted({row["n_read"] for row in demo.datasets.values() if row.get("n_read")})
    problems = {title: log.problem or "no train line in its log" for title, log in logs.items()}
    wall = demo.results.get("wall_seconds")
    facts = [[Cell(key), Cell(value)] for key, value in demo.environment.items()]
    page = render_page(
        "demo.html",
        title=f"One video model, {len(demo.datasets)} data sets",
        generated=demo.generated,
        samples=" to ".join(f"{count:,}" for count in dict.fromkeys([*read[:1], *read[-1:]])),
        numbers=numbers_table(demo.results) if demo.datasets else None,
        bars=[_accuracy_panel(name, row) for name, row in demo.datasets.items()],
        losses=_loss_panels(demo, logs),
        dev=_dev_panels(demo, logs),
        problems=[f"{title}: {problems[title]}." for title, log in logs.items() if log.problem or not log.train],
        mixtures=[_mixture(title, log) for title, log in logs.items() if len(log.sets()) > 1],
        clips=_clips(demo.clips),
        wall="" if wall is None else clock(wall),
        stages=_stage_bars(demo),
        speeds=_speeds(logs),
        protocol=_protocol(demo),
        commands=demo.commands,
        environment=Table([], facts, kind="small facts"),
    )
    return write_text(page, folder / "report.html")


def numbers_markdown(results: Mapping[str, Any]) -> str:
    """The main table as Markdown: top-1 in per cent, numbers of classes, samples read and samples listed."""
    return render_markdown("table.md", table=numbers_table(results))


def numbers_table(results: Mapping[str, Any]) -> Table:
    """The main table, with a row for each data set."""
    datasets = results.get("datasets") or {}
    # Results of earlier versions have no trivial methods.
    trivial = {
        key: title for key, title in TRIVIAL.items() if any(row.get(key) is not None for row in datasets.values())
    }
    chance, *models = MEASURED
    keys = [chance, *trivial, *models]
    titles = {**trivial, **{key: title for key, (title, _) in MEASURED.items()}}
    columns = ["data set", *(titles[key] for key in keys), "classes", "read of listed", "views"]
    rows = []
    for name, row in datasets.items():
        notes = {"chance": _chance_note(row), "cotrained": _against(row, "cotrained", "single")}
        notes |= {key: _trivial_note(row, key) for key in trivial}
        notes["cotrained_shuffled"] = _against(row, "cotrained_shuffled", "cotrained")
        tones = {"cotrained": "lead said", "cotrained_shuffled": "said"}
        figures = [Cell(percent(row.get(key)), notes.get(key, ""), tones.get(key, "")) for key in keys]
        sizes = [_text(row.get("classes")), _read_of_listed(row), _text(row.get("views"))]
        rows.append([Cell(name, _text(row.get("media")) or ""), *figures, *map(Cell, sizes)])
    return Table(columns, rows)


def _against(row: Mapping[str, Any], ours: str, theirs: str) -> str:
    """The difference of two accuracies of a data set and its verdict; empty if one of them was not measured."""
    first, second, tested = row.get(ours), row.get(theirs), (row.get("differences") or {}).get(ours)
    if first is None or second is None:
        return ""
    return f"{points(first - second)} points" + (f": {tested['verdict']}" if tested else "")


def _chance_note(row: Mapping[str, Any]) -> str:
    chance, interval = row.get("chance"), _interval_of(row, "cotrained")
    if chance is None or interval is None:
        return ""
    return "" if interval[0] > chance else "not exceeded"


def _interval_of(row: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """The interval of an accuracy; None if it was not measured or its samples have too few sources."""
    low, high = (row.get("intervals") or {}).get(key) or (None, None)
    return None if low is None or high is None else (low, high)


def _trivial_note(row: Mapping[str, Any], key: str) -> str:
    trivial, accuracy = row.get(key), row.get("cotrained")
    return "above the model" if trivial is not None and accuracy is not None and trivial > accuracy else ""


def _accuracy_panel(name: str, row: Mapping[str, Any]) -> Panel:
    bars = []
    for key, (title, tone) in MEASURED.items():
        accuracy = row.get(key)
        if tone and accuracy is not None:
            interval = _interval_of(row, key)
            bars.append(bar(title, accuracy, f"{percent(accuracy)} %", tone, row.get("chance"), interval))
    return Panel(name, bars=bars)


def _loss_panels(demo: DemoResults, logs: Mapping[str, RunHistory]) -> list[Panel]:
    panels = []
    for name in _trained_sets(demo, logs):
        classes = demo.datasets.get(name, {}).get("classes")
        guess = (math.log(classes), "guessing") if classes and classes > 1 else None
        lines = [(title, _tone(title), log.losses(name), True) for title, log in logs.items()]
        panels += curves(name, lines, guess, percent=False)
    return panels


def _dev_panels(demo: DemoResults, logs: Mapping[str, RunHistory]) -> list[Panel]:
    panels = []
    for name in _trained_sets(demo, logs):
        chance = demo.datasets.get(name, {}).get("chance")
        lines = [(title, _tone(title), log.dev_top1(name), False) for title, log in logs.items()]
        panels += curves(name, lines, None if chance is None else (chance, "chance"), percent=True)
    return panels


def curves(
    name: str,
    given: Sequence[tuple[str, str, Sequence[Point], bool]],
    reference: tuple[float, str] | None,
    percent: bool,
) -> list[Panel]:
    """A list with the panel of a data set's curves; empty if no run has two points, which a curve needs.

    `given`: label, colour class and points of each run, and whether its running mean is drawn.
    """
    lines = [Line(*each) for each in given if len(each[2]) > 1]
    if not lines:
        return []
    drawing = line_chart(name, lines, f"training samples of {name}", reference, percent)
    return [Panel(name, drawing=drawing, key=[(line.tone, line.label) for line in lines])]


def _trained_sets(demo: DemoResults, logs: Mapping[str, RunHistory]) -> list[str]:
    trained = [name for log in logs.values() for name in log.sets()]
    return [name for name in dict.fromkeys([*demo.datasets, *trained]) if name in trained]


def _tone(title: str, other: str = "extra") -> str:
    return next((tone for word, tone in RUN_TONES.items() if word in title.lower()), other)


def _mixture(title: str, log: RunHistory) -> dict[str, Any]:
    """The wanted and the realised rates of a run, at its last logged step."""
    last = log.last()
    wanted, realised, epochs, samples = (
        last.get(key) or {} for key in ("rate_wanted", "rate_realised", "epochs", "seen")
    )
    rows = []
    for name in log.sets():
        rates = [percent(wanted.get(name), 2), percent(realised.get(name), 2)]
        figures = [*rates, _number(epochs.get(name)), _text(samples.get(name))]
        rows.append([Cell(name), *map(Cell, figures)])
    table = Table(["data set", "wanted %", "realised %", "epochs", "samples"], rows)
    return {"title": title, "step": last.get("step", "?"), "table": table, "gap": percent(log.largest_rate_gap(), 3)}


def _clips(clips: Sequence[PredictedClip]) -> dict[str, list[dict[str, Any]]]:
    """The predicted clips of each data set, in the form that the template needs."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for clip in clips:
        tops = [bar(name, p, f"{100 * p:.0f} %", "truth" if name == clip.truth else "other") for name, p in clip.top]
        groups.setdefault(clip.dataset, []).append(
            {
                "still": len(clip.frames) == 1,
                "strip": film_strip(clip.frames) if len(clip.frames) else None,
                "path": clip.path,
                "name": Path(clip.path).name,
                "truth": clip.truth,
                "right": bool(clip.top) and clip.top[0][0] == clip.truth,
                "top": tops,
            }
        )
    return groups


def film_strip(frames: np.ndarray | Sequence[np.ndarray]) -> dict[str, Any]:
    """Up to eight frames at equal intervals, side by side, as a WebP picture in a data URI.

    `frames`: uint8 `(H, W, 3)` each, at least one. Their sizes may differ.
    """
    chosen = [
        frames[place] for place in np.linspace(0, len(frames) - 1, min(FRAMES_SHOWN, len(frames))).round().astype(int)
    ]
    small = [_fitted(frame) for frame in chosen]
    height = max(frame.height for frame in small)
    sheet = Image.new("RGBA", (sum(frame.width + GAP for frame in small) - GAP, height))
    left = 0
    for frame in small:
        sheet.paste(frame, (left, 0))
        left += frame.width + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=82)
    # The frames of a short clip are as large as those of other clips. A single image has the full width.
    fraction = 1.0 if len(small) == 1 else len(small) / FRAMES_SHOWN
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return {"uri": uri, "width": sheet.width, "height": height, "fill": f"{100 * fraction:g}%"}


def _fitted(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    scale = TALLEST_FRAME / picture.height
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), TALLEST_FRAME), Image.Resampling.LANCZOS)


def _stage_bars(demo: DemoResults) -> list[Bar]:
    total = demo.results.get("wall_seconds") or sum(seconds for _, seconds in demo.stages) or 1.0
    return [bar(title, seconds / total, clock(seconds), _tone(title, "plain")) for title, seconds in demo.stages]


def _speeds(logs: Mapping[str, RunHistory]) -> Table:
    rows = []
    for title, log in logs.items():
        if log.train:
            speed, waiting = _number(log.median("samples_per_s")), percent(log.median("wait_share"))
            rows.append([Cell(title), Cell(_text(log.last().get("step"))), Cell(speed), Cell(waiting)])
    return Table(["training run", "steps", "samples/s", "waiting for data %"], rows, kind="small")


def _protocol(demo: DemoResults) -> Table:
    rows = []
    for name, row in demo.datasets.items():
        figures = [percent(row.get(key)) for key in ("cotrained", "top5", "mean_class")]
        texts = [_text(row.get(key)) for key in ("split", "views", "step", "class_digest")]
        rows.append([Cell(name), *map(Cell, [*figures, _read_of_listed(row), *texts])])
    accuracies = ["top-1", "top-5", "mean over classes"]
    columns = ["data set", *accuracies, "read of listed", "split", "views", "checkpoint step", "class list"]
    return Table(columns, rows, kind="small")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _text(value: Any) -> str | None:
    return None if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _read_of_listed(row: Mapping[str, Any]) -> str | None:
    read, listed = row.get("n_read"), row.get("n_listed")
    return None if read is None else f"{read:,} of {'?' if listed is None else format(listed, ',')}"
