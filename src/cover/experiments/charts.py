"""How are numbers drawn? Line charts as inline SVG, bars as HTML, coloured by the page's style sheet to suit dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]

# The drawing's own units; the page scales it to the column. Chosen so that 12-unit letters stay readable on a phone.
WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 14, 34


@dataclass(frozen=True)
class Line:
    """One curve. `tone` is a colour class of the page; `raw` draws the points faintly behind their running mean."""

    label: str
    tone: str
    points: Sequence[Point]
    raw: bool = True


@dataclass(frozen=True)
class Axes:
    """The data rectangle of a chart: from zero to `right` and `top`, both above zero."""

    right: float
    top: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.right

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, self.top) / self.top


def line_chart(
    name: str, lines: Sequence[Line], x_label: str, reference: tuple[float, str] | None = None, share: bool = False, most: float = 1.0
) -> str:
    """An SVG element. `reference` is a level and its words, drawn dashed; `share` fixes the y axis to 0-100 %, or to `most`.

    Lines without points are left out; at least one line must have some.
    """
    drawn = [line for line in lines if line.points]
    assert drawn, "a chart needs a point"
    axes = _axes(drawn, reference, most if share else None)
    parts = [_grid(axes, x_label, share)]
    if reference:
        parts.append(_reference(axes, *reference))
    parts += [_curve(axes, line) for line in drawn]
    label = f"{name}: {', '.join(line.label for line in drawn)}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _axes(lines: Sequence[Line], reference: tuple[float, str] | None, most: float | None) -> Axes:
    right = max(x for line in lines for x, _ in line.points)
    if most:
        return Axes(right or 1.0, most)
    # One wild step must not flatten the rest of the curve: the axis ends where the running means do, with some air.
    highest = max(y for line in lines for _, y in running_mean(line.points))
    return Axes(right or 1.0, 1.12 * max(highest, reference[0] if reference else 0.0) or 1.0)


def _grid(axes: Axes, x_label: str, share: bool) -> str:
    parts = []
    for value in [axes.top * quarter / 4 for quarter in range(5)] if share else ticks(axes.top):
        y = axes.y(value)
        text = f"{100 * value:.0f} %" if share else f"{value:g}"
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value in ticks(axes.right):
        parts.append(f'<text x="{axes.x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{short_count(value)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    return "".join(parts)


def _reference(axes: Axes, level: float, words: str) -> str:
    y = axes.y(level)
    return (
        f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="halo" x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end">{escape(words)}</text>'
    )


def _curve(axes: Axes, line: Line) -> str:
    tone = escape(line.tone)
    smooth = running_mean(line.points) if line.raw else list(line.points)
    parts = [f'<path class="faint {tone}" d="{_path(axes, line.points)}"/>'] if line.raw else []
    parts.append(f'<path class="curve {tone}" d="{_path(axes, smooth)}"/>')
    end_x, end_y = smooth[-1]
    parts.append(f'<circle class="{tone}" cx="{axes.x(end_x):.1f}" cy="{axes.y(end_y):.1f}" r="3"/>')
    return "".join(parts)


def _path(axes: Axes, points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in thinned(points))


def thinned(points: Sequence[Point], most: int = 400) -> Sequence[Point]:
    """Every n-th point and the last, at most `most`: more than that cannot be told apart on a page."""
    every = math.ceil(len(points) / most)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def running_mean(points: Sequence[Point]) -> list[Point]:
    """Each y replaced by the mean over a centred window of about a twentieth of the curve, cut off at the ends."""
    half = len(points) // 40
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    smooth = []
    for index, (x, _) in enumerate(points):
        first, after = max(0, index - half), min(len(points), index + half + 1)
        smooth.append((x, (sums[after] - sums[first]) / (after - first)))
    return smooth


def ticks(top: float, wanted: int = 4) -> list[float]:
    """Round values from 0 to `top`, about `wanted` intervals of 1, 2 or 5 times a power of ten.

    >>> ticks(2.3)
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    power = 10.0 ** math.floor(math.log10(top / wanted))
    step = next(power * m for m in (1, 2, 5, 10) if top / (power * m) <= wanted + 1)
    return [round(n * step, 12) for n in range(math.floor(top / step + 1e-9) + 1)]


def short_count(value: float) -> str:
    """A count in few letters.

    >>> short_count(1500), short_count(250), short_count(2e6)
    ('1.5k', '250', '2M')
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def bar(label: str, share: float, value: str, tone: str, chance: float | None = None, interval: Point | None = None) -> str:
    """One horizontal bar of `share` (0 to 1) of its track, as an HTML row: words, track, value.

    `chance` is a tick on the track, `interval` a whisker (both shares). `label` and `value` are plain text.
    """
    marks = [f'<i class="fill {escape(tone)}" style="width:{_percent(share)}"></i>']
    if chance is not None:
        marks.append(f'<i class="chance" style="left:{_percent(chance)}"></i>')
    if interval:
        low, high = interval
        marks.append(f'<i class="whisker" style="left:{_percent(low)};width:{_percent(high - low)}"></i>')
    words = f'<span class="words">{escape(label)}</span>'
    return f'<div class="bar">{words}<span class="track">{"".join(marks)}</span><span class="value">{escape(value)}</span></div>'


def _percent(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
