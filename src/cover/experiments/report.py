"""How is a study shown to people? One self-contained `report.html`, and its main table as Markdown."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cover.console import clock
from cover.experiments import finding
from cover.experiments.charts import Line, bar, line_chart
from cover.experiments.finding import percent
from cover.experiments.page import cell, film_strip, gone, page, row_head, section, table
from cover.experiments.run_log import RunLog, read_log

# What was measured, by its key in the results: its words, its colour.
MEASURED = {
    "chance": ("chance", ""),
    "single": ("trained alone", "single"),
    "cotrained": ("co-trained", "cotrained"),
    "cotrained_shuffled": ("… frames shuffled", "shuffled"),
    "cotrained_single_frame": ("… one frame", "oneframe"),
}
COLUMNS = ["data set", *(words for words, _ in MEASURED.values()), "classes", "read of listed", "views"]


@dataclass(frozen=True)
class Strip:
    """One predicted clip or image: `frames` uint8 `(T, H, W, 3)` as the model saw them, `top` (class name, probability) best first."""

    dataset: str
    path: str
    frames: np.ndarray
    truth: str
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Story:
    """What a report tells.

    `results`: `{wall_seconds, datasets: {name: {chance, single, cotrained, cotrained_shuffled, cotrained_single_frame, top5,
    mean_class, n_read, n_listed, classes, views, split, step, class_digest, media}}}`, shares between 0 and 1, null or absent
    where not run. `stages`: (title, seconds). `runs`: title -> its `log.jsonl`; a title that holds "co-train", "pre-train" or
    "single" is drawn in that colour. `generated`: whether the data sets come from the sandbox.
    """

    results: dict[str, Any]
    stages: list[tuple[str, float]] = field(default_factory=list)
    runs: dict[str, Path] = field(default_factory=dict)
    strips: list[Strip] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    generated: bool = True

    @property
    def datasets(self) -> dict[str, dict[str, Any]]:
        """The rows of the results."""
        return dict(self.results.get("datasets") or {})


def write_report(folder: Path, story: Story) -> Path:
    """Write `folder/report.html` (beside, then renamed) and return its path. Whatever is missing is said where it would stand."""
    logs = {title: read_log(path) for title, path in story.runs.items()}
    count = len(story.datasets)
    title = f"One video model, {finding.number(count)} data set{'s' * (count != 1)}"
    body = "\n".join([
        _opening(title, story), _main_table(story), _bars(story), _losses(story, logs), _dev(story, logs), _mixture(logs),
        _strips(story), _time(story, logs), _protocol(story), _next(story),
    ])  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    beside = folder / ".report.html.part"
    # A file name that is no valid text must not lose the report.
    beside.write_text(page(title, body), encoding="utf-8", errors="backslashreplace")
    os.replace(beside, path)
    return path


def markdown_table(results: Mapping[str, Any]) -> str:
    """The main table as Markdown, top-1 in per cent; class counts and n read of n listed with it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    for name, row in (results.get("datasets") or {}).items():
        figures = [percent(row.get(key)) for key in MEASURED]
        plain = [name, *figures, _text(row.get("classes")) or "–", _read_of_listed(row) or "–", _text(row.get("views")) or "–"]
        lines.append("| " + " | ".join(" ".join(value.replace("|", "\\|").split()) for value in plain) + " |")
    return "\n".join(lines) + "\n"


def _opening(title: str, story: Story) -> str:
    sets = story.datasets
    said = " ".join(finding.notes(sets))
    extra = f"<p>{escape(said)}</p>" if said else ""
    return (
        f'<header><h1>{escape(title)}</h1><p class="lede">{escape(finding.headline(sets))}</p>{extra}'
        f'<p class="caution">{escape(finding.caution(sets, story.generated))}</p></header>'
    )


def _main_table(story: Story) -> str:
    if not story.datasets:
        return section("The numbers", "", gone("No data set was evaluated."))
    rows = []
    for name, row in story.datasets.items():
        figures = [cell(_figure(row.get(key)), "lead" if key == "cotrained" else "") for key in MEASURED]
        rows.append([row_head(name, _text(row.get("media")) or ""), *figures, *map(cell, _sizes(row))])
    caption = (
        "Top-1 accuracy in per cent. The co-trained columns are one and the same model, shown the clips as they are, "
        "with their frames shuffled, and as one single frame. A model trained alone saw only its own data set, as many samples of it."
    )
    return section("The numbers", caption, table(COLUMNS, rows))


def _sizes(row: Mapping[str, Any]) -> list[str | None]:
    return [_text(row.get("classes")), _read_of_listed(row), _text(row.get("views"))]


def _bars(story: Story) -> str:
    if not story.datasets:
        return ""
    groups = "".join(_bar_group(name, row) for name, row in story.datasets.items())
    caption = (
        "The same numbers as a picture, 0 to 100 %. The upright tick is chance; the thin line spans two standard errors of the samples "
        "read. A gap between co-trained and frames shuffled is what the order of the frames is worth; one frame shows what a still "
        "picture gives away."
    )
    return section("At a glance", caption, f'<div class="grid">{groups}</div>')


def _bar_group(name: str, row: Mapping[str, Any]) -> str:
    bars = []
    for key, (words, tone) in MEASURED.items():
        share = row.get(key)
        if tone and share is not None:
            around = finding.interval(share, row["n_read"]) if row.get("n_read") else None
            bars.append(bar(words, share, f"{percent(share)} %", tone, row.get("chance"), around))
    return f'<div class="panel"><h3>{escape(name)}</h3>{"".join(bars) or gone("Not evaluated.")}</div>'


def _losses(story: Story, logs: Mapping[str, RunLog]) -> str:
    caption = (
        "Training loss against the samples of that data set seen in the run, so that equal positions mean equal experience of the set. "
        "Faint: as logged; bold: running mean. Dashed: guessing evenly among the classes. Lower is better."
    )
    panels = []
    for name in _sets(story, logs):
        lines = [Line(title, _tone(title), log.losses(name)) for title, log in logs.items()]
        classes = story.datasets.get(name, {}).get("classes")
        guess = (math.log(classes), "guessing") if classes and classes > 1 else None
        panels.append(_chart(name, lines, guess, share=False))
    troubled = {title: log.problem or "no train line in its log" for title, log in logs.items() if log.problem or not log.train}
    missing = "".join(gone(f"{title}: {problem}.") for title, problem in troubled.items())
    body = f'<div class="grid">{"".join(panels)}</div>' if any(panels) else gone("No training log to draw.")
    return section("How it learned", caption if any(panels) else "", body + missing)


def _dev(story: Story, logs: Mapping[str, RunLog]) -> str:
    panels = []
    for name in _sets(story, logs):
        lines = [Line(title, _tone(title), log.dev_top1(name), raw=False) for title, log in logs.items()]
        chance = story.datasets.get(name, {}).get("chance")
        panels.append(_chart(name, lines, None if chance is None else (chance, "chance"), share=True))
    if not any(panels):
        return ""
    caption = (
        "Top-1 accuracy during training on the dev split, which is carved out of the training files: "
        "nothing is chosen on the split reported above."
    )
    return section("Accuracy on the way", caption, f'<div class="grid">{"".join(panels)}</div>')


def _chart(name: str, lines: list[Line], reference: tuple[float, str] | None, share: bool) -> str:
    drawn = [line for line in lines if line.points]
    if not drawn:
        return ""
    swatches = "".join(f'<span><i class="{line.tone}"></i>{escape(line.label)}</span>' for line in drawn)
    svg = line_chart(name, drawn, f"samples of {name} seen", reference, share)
    return f'<figure class="panel"><h3>{escape(name)}</h3><div class="key">{swatches}</div>{svg}</figure>'


def _mixture(logs: Mapping[str, RunLog]) -> str:
    parts = [_mixture_of(title, log) for title, log in logs.items() if len(log.sets()) > 1]
    caption = (
        "The share of each data set in the samples drawn, wanted by the recipe and realised, and how often its files were gone through."
    )
    return section("The mixture", caption if parts else "", "".join(parts) or gone("No log of a run on several data sets."))


def _mixture_of(title: str, log: RunLog) -> str:
    last = log.last()
    wanted, realised, epochs, seen = (last.get(key) or {} for key in ("rate_wanted", "rate_realised", "epochs", "seen"))
    rows = []
    for name in log.sets():
        count = seen.get(name)
        figures = [_figure(wanted.get(name), 2), _figure(realised.get(name), 2), _number(epochs.get(name)), _text(count)]
        rows.append([row_head(name), *map(cell, figures)])
    gap = log.largest_rate_gap()
    below = "" if gap is None else f'<p class="caption">Largest gap between wanted and realised at the end: {100 * gap:.3f} points.</p>'
    columns = ["data set", "wanted %", "realised %", "epochs seen", "samples seen"]
    return f"<h3>{escape(title)} <small>after step {last.get('step', '?')}</small></h3>{table(columns, rows)}{below}"


def _strips(story: Story) -> str:
    groups: dict[str, list[Strip]] = {}
    for strip in story.strips:
        groups.setdefault(strip.dataset, []).append(strip)
    body = ""
    for name, strips in groups.items():
        kind = "clips stills" if all(len(strip.frames) == 1 for strip in strips) else "clips"
        body += f'<h3>{escape(name)}</h3><div class="{kind}">{"".join(map(_clip, strips))}</div>'
    caption = (
        "Clips of the reported split, left to right in time, with the co-trained model's first three answers. Green is the true class."
    )
    return section("What it says", caption if groups else "", body or gone("No predicted clips were kept."))


def _clip(strip: Strip) -> str:
    top = "".join(bar(name, prob, f"{100 * prob:.0f} %", "truth" if name == strip.truth else "other") for name, prob in strip.top)
    picture = film_strip(strip.frames, f"frames of {strip.path}") if len(strip.frames) else gone("No frame could be read.")
    said = top or gone("No prediction.")
    if len(strip.frames) == 1:
        return f'<div class="clip still"><div>{picture}</div><div class="said">{_verdict(strip)}{said}</div></div>'
    return f'<div class="clip"><div>{picture}{_verdict(strip)}</div><div class="said">{said}</div></div>'


def _verdict(strip: Strip) -> str:
    right = bool(strip.top) and strip.top[0][0] == strip.truth
    mark = '<b class="yes">✓ right</b>' if right else '<b class="no">✗ wrong</b>'
    return f'<p class="verdict">{mark} · truth: <b>{escape(strip.truth)}</b> <span class="path">{escape(Path(strip.path).name)}</span></p>'


def _time(story: Story, logs: Mapping[str, RunLog]) -> str:
    whole = story.results.get("wall_seconds")
    total = whole or sum(seconds for _, seconds in story.stages) or 1.0
    bars = "".join(bar(title, seconds / total, clock(seconds), _tone(title, "plain")) for title, seconds in story.stages)
    caption = f"{clock(whole)} from start to end, minutes and seconds by stage." if whole is not None else ""
    rows = [[row_head(title), *map(cell, _speed(log))] for title, log in logs.items() if log.train]
    columns = ["training run", "steps", "samples/s", "waiting for data %"]
    speeds = f'<div class="small aside">{table(columns, rows)}</div>' if rows else ""
    return section("Where the time went", caption, (f'<div class="stages">{bars}</div>' if bars else gone("No stage was timed.")) + speeds)


def _speed(log: RunLog) -> list[str | None]:
    return [_text(log.last().get("step")), _number(log.median("samples_per_s")), _figure(log.median("wait_share"))]


def _protocol(story: Story) -> str:
    rows = []
    for name, row in story.datasets.items():
        shares = [_figure(row.get(key)) for key in ("cotrained", "top5", "mean_class")]
        plain = [_text(row.get(key)) for key in ("split", "views", "step", "class_digest")]
        rows.append([row_head(name), *map(cell, shares), cell(_read_of_listed(row)), *map(cell, plain)])
    columns = ["data set", "top-1", "top-5", "mean over classes", "read of listed", "split", "views", "checkpoint step", "class list"]
    numbers = table(columns, rows, "small") if rows else ""
    facts = table([], [[row_head(key), cell(value)] for key, value in story.environment.items()], "small facts")
    caption = (
        "Co-trained model, in per cent; accuracies over the samples read, from integer counts, a tie counts as wrong. Nothing is dropped "
        "or padded. Views are clips in time x crops in space, softmax averaged. The class list is named by the start of its SHA-256."
    )
    return section("Protocol and environment", caption, numbers + (f'<div class="aside">{facts}</div>' if story.environment else ""))


def _next(story: Story) -> str:
    if not story.commands:
        return ""
    return section("How to go on", "", f"<pre>{escape(chr(10).join(story.commands))}</pre>")


def _sets(story: Story, logs: Mapping[str, RunLog]) -> list[str]:
    trained = [name for log in logs.values() for name in log.sets()]
    return [name for name in dict.fromkeys([*story.datasets, *trained]) if name in trained]


def _tone(title: str, other: str = "extra") -> str:
    tones = {"co-train": "cotrained", "pre-train": "pretrained", "single": "single"}
    return next((tone for word, tone in tones.items() if word in title.lower()), other)


def _figure(share: float | None, digits: int = 1) -> str | None:
    return None if share is None else f"{100 * share:.{digits}f}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _text(value: Any) -> str | None:
    return None if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _read_of_listed(row: Mapping[str, Any]) -> str | None:
    read, listed = row.get("n_read"), row.get("n_listed")
    return None if read is None else f"{read:,} of {'?' if listed is None else format(listed, ',')}"
