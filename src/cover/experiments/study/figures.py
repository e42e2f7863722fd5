"""Which drawings does a study make? Differences, transfers, learning curves, probes and classes, as panels of HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from cover.experiments.charts import Line, bar, line_chart
from cover.experiments.differences import MARKS, Difference, forest, signed_bar, span_of
from cover.experiments.study import protocol
from cover.experiments.study.claims import lead
from cover.experiments.study.tables import most_moved
from cover.experiments.study.words import (
    ARM_TONES,
    ARM_WORDS,
    HOW_WORDS,
    Row,
    by,
    gap,
    percent,
    points,
    setting,
    source_of,
    spread,
    unique,
)  # fmt: skip


def forests(rows: Sequence[Row], study: Row) -> str:
    """A forest plot for every family among `rows`, all on one scale."""
    margin = 100 * study["margin"]
    drawn = {family: [_difference(row) for row in own] for (family,), own in by(rows, "family").items()}
    span = span_of([each for own in drawn.values() for each in own], margin)
    panels = []
    for (family,), own in by(rows, "family").items():
        name = lead(own[0], study)
        svg = forest(name, drawn[family], span, margin, "points of top-1")
        panels.append(f'<figure class="panel"><h3>{escape(name)}</h3>{svg}</figure>')
    return f'<div class="grid">{"".join(panels)}</div>'


def _difference(row: Row) -> Difference:
    label = f"{row['target']} (against {source_of(row['theirs'])[0]})" if row["claim"] == "c" else row["target"]
    words = f"{points(row['difference'])} ({gap(row['low'], row['high'])})"
    return Difference(label, 100 * row["difference"], 100 * row["low"], 100 * row["high"], words, row["verdict"])


def forest_key() -> str:
    """What the marks of a forest plot mean."""
    spans = []
    for verdict, (tone, outline) in MARKS.items():
        mark = f'<svg class="keymark" viewBox="-8 -8 16 16" aria-hidden="true"><path class="mark {tone}" d="{outline}"/></svg>'
        spans.append(f"<span>{mark}{verdict}</span>")
    return f'<div class="key">{"".join(spans)}</div>'


def transfers(summary: Row) -> str:
    """For every target and way of transfer the sources as bars; sources of several data sets in the colour of co-training."""
    mixed = {source_of(row["ours"])[0] for row in summary["comparisons"] if row["claim"] == "c"}
    panels = []
    for (target,), rows in by(summary["transfers"], "dataset").items():
        for how in unique(source_of(row["arm"])[1] for row in rows):
            own = [row for row in rows if source_of(row["arm"])[1] == how]
            bars = [_source(row, summary["study"], mixed) for row in own]
            panels.append(_panel(target, HOW_WORDS[how], "".join(bars) + _measured(own, summary["study"])))
    return f'<div class="grid">{"".join(panels)}</div>'


def _source(row: Row, study: Row, mixed: set[str]) -> str:
    source, _ = source_of(row["arm"])
    own = study["transfer"]["sources"].get(source) == [row["dataset"]]
    tone = "cotrained" if source in mixed else "pretrained" if own else "single"
    return _bar(f"{source} → {row['dataset']}", row, tone)


def _bar(label: str, row: Row, tone: str) -> str:
    value = f"{percent(row['top1'])} ({spread(row['low'], row['high'])})"
    return bar(label, row["top1"], value, tone, row["chance"], (row["low"], row["high"]))


def _measured(rows: Sequence[Row], study: Row) -> str:
    return protocol.lines(rows, study).html()


def _panel(title: str, note: str, body: str) -> str:
    beside = f" <small>{escape(note)}</small>" if note else ""
    return f'<div class="panel wide"><h3>{escape(title)}{beside}</h3>{body}</div>'


def curves(rows: Sequence[Row], study: Row) -> str:
    """For every target and setting: accuracy on dev, and loss in training, by samples of the target seen."""
    most = _rounded_up(max((y for row in rows for _, y in row["dev"]), default=1.0))
    panels = []
    for (target, size, origin), own in by(rows, "target", "size", "origin").items():
        note = setting(study, size, origin)
        for title, kind in (("top-1 on dev", "dev"), ("training loss", "loss")):
            panels.append(_curve(target, own, kind, ", ".join(part for part in (title, note) if part), most))
    return f'<div class="grid">{"".join(panels)}</div>' if any(panels) else ""


def curve_key(rows: Sequence[Row]) -> str:
    """Which line is which arm."""
    arms = unique(row["arm"] for row in rows)
    return f'<div class="key">{"".join(f"""<span><i class="{ARM_TONES[arm]}"></i>{ARM_WORDS[arm]}</span>""" for arm in arms)}</div>'


def _curve(target: str, rows: Iterable[Row], kind: str, note: str, most: float) -> str:
    lines = [
        Line(ARM_WORDS[row["arm"]], ARM_TONES[row["arm"]], [(x, y) for x, y in row[kind]], raw=False) for row in rows if row[kind]
    ]  # fmt: skip
    if not lines:
        return ""
    svg = line_chart(f"{target}, {note}", lines, f"samples of {target} seen", share=kind != "loss", most=most)
    return f'<figure class="panel"><h3>{escape(target)} <small>{escape(note)}</small></h3>{svg}</figure>'


def _rounded_up(share: float) -> float:
    """To the next fifth: the quarters of an axis that ends there are round."""
    return max(1, math.ceil(5 * share - 1e-9)) / 5


def probed(summary: Row) -> list[tuple[str, list[dict[str, Any]]]]:
    """By starting weights (and size) and image set, what is before and what after: rows as of the summary, each with a `label`.

    A model that serves several targets was probed once and stands once.
    """
    groups = []
    for (origin, size, dataset), rows in by(summary["probes"], "origin", "size", "dataset").items():
        before = [row for row in summary["origins"] if (row["origin"], row["dataset"]) == (origin, dataset)]
        found = [{**row, "label": ARM_WORDS["origin"]} for row in before]
        for same in by([{**row, **_identity(row)} for row in rows], "name", "models").values():
            arm, target = same[0]["name"], "" if len(same) > 1 else f", {same[0]['target']}"
            found.append({**same[0], "arm": arm, "label": f"after {ARM_WORDS[arm]}{target}"})
        groups.append((setting(summary["study"], size, origin), found))
    return groups


def _identity(row: Row) -> Row:
    name, _, target = row["arm"].partition(":")
    return {"name": name, "target": target, "models": tuple(row["runs"])}


def probes(note: str, rows: Sequence[Row], study: Row) -> str:
    """One image set as bars, before and after."""
    bars = [_bar(row["label"], row, ARM_TONES[row["arm"]]) for row in rows]
    return _panel(rows[0]["dataset"], note, "".join(bars) + _measured(rows, study))


def classes(rows: Sequence[Row], study: Row) -> str:
    """For every mixture against alone the gain of each class, or of those that gain and lose most."""
    panels = []
    for row in rows:
        shown, left = most_moved(row)
        most = max(abs(own["gain"]) for _, own in shown) or 1.0
        bars = [signed_bar(name, f"{own['items']} clips", own["gain"], most, points(own["gain"])) for name, own in shown]
        if left:
            bars.insert(len(bars) // 2, f'<p class="gone">{left} classes between them are left out.</p>')
        note = ", ".join(part for part in (ARM_WORDS[row["arm"]], setting(study, row["size"], row["origin"])) if part)
        panels.append(_panel(row["target"], note, "".join(bars)))
    return f'<div class="grid">{"".join(panels)}</div>'
