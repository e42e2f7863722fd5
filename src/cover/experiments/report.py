"""Reports of experiments: pages and Markdown files written from `templates/`, and the report of the demo and its runs.

A report is one file that needs nothing else. Its texts and captions are in the templates; this module and
`study.report` make the tables and charts that they show.
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
from cover.evaluation.statistics import compare_fractions, wilson
from cover.experiments.charts import MARKS, Bar, Line, Panel, bar, line_chart
from cover.experiments.run_files import RunHistory, read_log

FRAMES_SHOWN = 8
TALLEST_FRAME = 128
GAP = 3  # pixels between two frames
MARKDOWN_SIGNS = str.maketrans({**{sign: f"\\{sign}" for sign in "\\|*`["}, "<": "&lt;", "\u00a0": " "})


# --- tables, texts and templates --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A figure as text, a small note beneath it, and its CSS classes. `text` None: not run, shown as a dash.

    `narrow`: of a row's first cell, what replaces its columns of class `text` on narrow screens.
    """

    text: str | None
    note: str = ""
    tone: str = ""
    narrow: str = ""


@dataclass(frozen=True)
class Table:
    """Rows with as many cells as there are columns; the first cell of a row is its name. Without columns: a list of
    facts.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    kind: str = ""


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

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
    """A template as a whole HTML page; every value is escaped."""
    return _environment(html=True).get_template(template).render(data)


def render_markdown(template: str, **data: Any) -> str:
    """A template as Markdown, with one empty line between its parts."""
    lines = [line.rstrip() for line in _environment(html=False).get_template(template).render(data).split("\n")]
    spaced = [line for place, line in enumerate(lines) if line or (place and lines[place - 1])]
    return "\n".join(spaced).strip("\n") + "\n"


def write_text(text: str, path: Path) -> Path:
    """Write a file beside its place, then rename it; returns its path. A name that is no valid text does not lose the
    report.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(beside, path)
    return path


def percent(fraction: float | None, digits: int = 1) -> str | None:
    """A fraction in per cent; None stays None.

    >>> percent(0.6321)
    '63.2'
    """
    return None if fraction is None else f"{100 * fraction:.{digits}f}"


def points(difference: float) -> str:
    """A difference of fractions in points, always signed, but for zero."""
    text = f"{100 * difference:+.1f}"
    return "0.0" if text in ("-0.0", "+0.0") else text


# --- the report of the demo and its runs ------------------------------------------------------------------------------

# Key in the results -> column, and colour of its bars.
MEASURED = {
    "chance": ("chance", ""),
    "single": ("trained alone", "single"),
    "cotrained": ("co-trained", "cotrained"),
    "cotrained_shuffled": ("… frames shuffled", "shuffled"),
    "cotrained_single_frame": ("… one frame", "oneframe"),
}
RUN_TONES = {"co-train": "cotrained", "pre-train": "pretrained", "single": "single"}  # by a word of the run's title


@dataclass(frozen=True)
class PredictedClip:
    """A clip or image with its prediction: `frames` uint8 `(T, H, W, 3)` as the model saw them; `top`: (class,
    probability), best first.
    """

    dataset: str
    path: str
    frames: np.ndarray
    truth: str
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class DemoResults:
    """Everything that the report of a demo shows.

    `results`: `{wall_seconds, datasets: {name: {chance, single, cotrained, cotrained_shuffled, cotrained_single_frame,
    top5, mean_class, n_read, n_listed, classes, views, split, step, class_digest, media}}}`, accuracies between 0 and
    1, null or absent where not run. `stages`: (title, seconds). `runs`: title -> its `log.jsonl`; a title with
    "co-train", "pre-train" or "single" is drawn in that colour. `generated`: whether the data sets come from the
    sandbox.
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
    """Write `folder/report.html` and return its path. Where something is missing, the page says so in its place."""
    logs = {title: read_log(path) for title, path in demo.runs.items()}
    read = sorted({row["n_read"] for row in demo.datasets.values() if row.get("n_read")})
    page = render_page(
        "demo.html",
        title=f"One video model, {len(demo.datasets)} data sets",
        generated=demo.generated,
        samples=" to ".join(f"{count:,}" for count in dict.fromkeys([*read[:1], *read[-1:]])),
        numbers=numbers_table(demo.results) if demo.datasets else None,
        bars=[_accuracy_panel(name, row) for name, row in demo.datasets.items()],
        losses=_loss_panels(demo, logs),
        dev=_dev_panels(demo, logs),
        problems=[
            f"{title}: {log.problem or 'no train line in its log'}."
            for title, log in logs.items()
            if log.problem or not log.train
        ],
        mixtures=[_mixture(title, log) for title, log in logs.items() if len(log.sets()) > 1],
        clips=_clips(demo.clips),
        wall=clock(demo.results["wall_seconds"]) if demo.results.get("wall_seconds") is not None else "",
        stages=_stage_bars(demo),
        speeds=_speeds(logs),
        protocol=_protocol(demo),
        commands=demo.commands,
        environment=Table(
            [], [[Cell(key), Cell(value)] for key, value in demo.environment.items()], kind="small facts"
        ),
    )
    return write_text(page, folder / "report.html")


def numbers_markdown(results: Mapping[str, Any]) -> str:
    """The main table as Markdown: top-1 in per cent, with class counts and n read of n listed."""
    return render_markdown("table.md", table=numbers_table(results))


def numbers_table(results: Mapping[str, Any]) -> Table:
    """The main table: a row for each data set."""
    columns = ["data set", *(title for title, _ in MEASURED.values()), "classes", "read of listed", "views"]
    rows = []
    for name, row in (results.get("datasets") or {}).items():
        notes = {"chance": _chance_note(row), "cotrained": _against(row, "cotrained", "single")}
        notes["cotrained_shuffled"] = _against(row, "cotrained_shuffled", "cotrained")
        colour_operations = {"cotrained": "lead said", "cotrained_shuffled": "said"}
        figures = [Cell(percent(row.get(key)), notes.get(key, ""), colour_operations.get(key, "")) for key in MEASURED]
        sizes = [_text(row.get("classes")), _read_of_listed(row), _text(row.get("views"))]
        rows.append([Cell(name, _text(row.get("media")) or ""), *figures, *map(Cell, sizes)])
    return Table(columns, rows)


def _against(row: Mapping[str, Any], ours: str, theirs: str) -> str:
    """The difference of two accuracies of one data set and its verdict; empty where one was not measured."""
    first, second, samples = row.get(ours), row.get(theirs), row.get("n_read")
    if first is None or second is None or not samples:
        return ""
    return f"{points(first - second)} points: {compare_fractions(first, second, samples)}"


def _chance_note(row: Mapping[str, Any]) -> str:
    accuracy, chance, samples = row.get("cotrained"), row.get("chance"), row.get("n_read")
    if accuracy is None or chance is None or not samples:
        return ""
    return "" if wilson(accuracy, samples)[0] > chance else "not exceeded"


def _accuracy_panel(name: str, row: Mapping[str, Any]) -> Panel:
    bars = []
    for key, (title, tone) in MEASURED.items():
        accuracy = row.get(key)
        if tone and accuracy is not None:
            interval = wilson(accuracy, row["n_read"]) if row.get("n_read") else None
            bars.append(bar(title, accuracy, f"{percent(accuracy)} %", tone, row.get("chance"), interval))
    return Panel(name, bars=bars)


def _loss_panels(demo: DemoResults, logs: Mapping[str, RunHistory]) -> list[Panel]:
    panels = []
    for name in _trained_sets(demo, logs):
        classes = demo.datasets.get(name, {}).get("classes")
        guess = (math.log(classes), "guessing") if classes and classes > 1 else None
        panels += _curves(
            name, [Line(title, _tone(title), log.losses(name)) for title, log in logs.items()], guess, percent=False
        )
    return panels


def _dev_panels(demo: DemoResults, logs: Mapping[str, RunHistory]) -> list[Panel]:
    panels = []
    for name in _trained_sets(demo, logs):
        chance = demo.datasets.get(name, {}).get("chance")
        lines = [Line(title, _tone(title), log.dev_top1(name), smooth=False) for title, log in logs.items()]
        panels += _curves(name, lines, None if chance is None else (chance, "chance"), percent=True)
    return panels


def _curves(name: str, lines: Sequence[Line], reference: tuple[float, str] | None, percent: bool) -> list[Panel]:
    """The panel of a data set's curves, none where no run has points."""
    drawn = [line for line in lines if line.points]
    if not drawn:
        return []
    drawing = line_chart(name, drawn, f"samples of {name} seen", reference, percent)
    return [Panel(name, drawing=drawing, key=[(line.tone, line.label) for line in drawn])]


def _trained_sets(demo: DemoResults, logs: Mapping[str, RunHistory]) -> list[str]:
    trained = [name for log in logs.values() for name in log.sets()]
    return [name for name in dict.fromkeys([*demo.datasets, *trained]) if name in trained]


def _tone(title: str, other: str = "extra") -> str:
    return next((tone for word, tone in RUN_TONES.items() if word in title.lower()), other)


def _mixture(title: str, log: RunHistory) -> dict[str, Any]:
    """A run's rates, wanted and realised, after its last logged step."""
    last = log.last()
    wanted, realised, epochs, visited = (
        last.get(key) or {} for key in ("rate_wanted", "rate_realised", "epochs", "seen")
    )
    rows = [
        [
            Cell(name),
            Cell(percent(wanted.get(name), 2)),
            Cell(percent(realised.get(name), 2)),
            Cell(_number(epochs.get(name))),
            Cell(_text(visited.get(name))),
        ]
        for name in log.sets()
    ]
    table = Table(["data set", "wanted %", "realised %", "epochs seen", "samples seen"], rows)
    return {"title": title, "step": last.get("step", "?"), "table": table, "gap": percent(log.largest_rate_gap(), 3)}


def _clips(clips: Sequence[PredictedClip]) -> dict[str, list[dict[str, Any]]]:
    """Data set -> its predicted clips as the template shows them."""
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


def film_strip(frames: np.ndarray) -> dict[str, Any]:
    """Up to eight evenly spaced frames side by side as a PNG in a data URI. `frames`: uint8 `(T, H, W, 3)`, T at least
    1.
    """
    picked = frames[np.linspace(0, len(frames) - 1, min(FRAMES_SHOWN, len(frames))).round().astype(int)]
    small = [_fitted(frame) for frame in picked]
    width, height = small[0].size
    sheet = Image.new("RGBA", (len(small) * (width + GAP) - GAP, height))
    for number, frame in enumerate(small):
        sheet.paste(frame, (number * (width + GAP), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    # A short clip keeps the frame size of its neighbours; a lone image fills its place.
    fraction = 1.0 if len(small) == 1 else len(small) / FRAMES_SHOWN
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {
        "uri": f"data:image/png;base64,{data}",
        "width": sheet.width,
        "height": height,
        "fill": f"{100 * fraction:g}%",
    }


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
    rows = [
        [
            Cell(title),
            Cell(_text(log.last().get("step"))),
            Cell(_number(log.median("samples_per_s"))),
            Cell(percent(log.median("wait_share"))),
        ]
        for title, log in logs.items()
        if log.train
    ]
    return Table(["training run", "steps", "samples/s", "waiting for data %"], rows, kind="small")


def _protocol(demo: DemoResults) -> Table:
    rows = []
    for name, row in demo.datasets.items():
        figures = [percent(row.get(key)) for key in ("cotrained", "top5", "mean_class")]
        texts = [_text(row.get(key)) for key in ("split", "views", "step", "class_digest")]
        rows.append([Cell(name), *map(Cell, [*figures, _read_of_listed(row), *texts])])
    columns = [
        "data set",
        "top-1",
        "top-5",
        "mean over classes",
        "read of listed",
        "split",
        "views",
        "checkpoint step",
        "class list",
    ]
    return Table(columns, rows, kind="small")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _text(value: Any) -> str | None:
    return None if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _read_of_listed(row: Mapping[str, Any]) -> str | None:
    read, listed = row.get("n_read"), row.get("n_listed")
    return None if read is None else f"{read:,} of {'?' if listed is None else format(listed, ',')}"
