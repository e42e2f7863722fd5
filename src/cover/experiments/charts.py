"""Charts of the reports: line charts, forest plots and bars, as shapes for `templates/charts.html`.

A drawing has its own units, and the page scales it to the width of its column. Letters of 12 units are readable on a
phone. Colours are classes of the style sheet, which has a light and a dark set.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 14, 34  # margins of a line chart
EDGE, FOREST_TOP, ROW, FOREST_BOTTOM = 10, 20, 44, 40  # margins of a forest plot, and the height of a row
LETTER = 6.4  # mean width of a letter
MARK = 5.0  # half the width of a mark

# By verdict: the classes of the mark at the value, and its outline around (0, 0).
MARKS = {
    "better": ("cotrained solid", f"M{-MARK} {MARK}L0 {-MARK - 1}L{MARK} {MARK}Z"),
    "worse": ("single solid", f"M{-MARK} {-MARK}L0 {MARK + 1}L{MARK} {-MARK}Z"),
    "not worse": ("pretrained solid", f"M{-MARK} 0L0 {-MARK}L{MARK} 0L0 {MARK}Z"),
    "no difference shown": ("plain hollow", f"M{-MARK + 1} {-MARK + 1}H{MARK - 1}V{MARK - 1}H{-MARK + 1}Z"),
}


@dataclass(frozen=True)
class ChartShape:
    """An SVG element. A pointer over it shows `title`."""

    tag: str
    attributes: dict[str, str | float]
    text: str = ""
    title: str = ""


@dataclass(frozen=True)
class Drawing:
    """An SVG drawing of `WIDTH` x `height`. `label` describes it for readers who cannot see it."""

    label: str
    height: float
    shapes: list[ChartShape]


def _line(style: str, x1: float, x2: float, y1: float, y2: float) -> ChartShape:
    ends = {"x1": round(x1, 1), "x2": round(x2, 1), "y1": round(y1, 1), "y2": round(y2, 1)}
    return ChartShape("line", {"class": style, **ends})


def _text(text: str, x: float, y: float, anchor: str = "start", style: str = "", title: str = "") -> ChartShape:
    classes: dict[str, str | float] = {"class": style} if style else {}
    return ChartShape("text", {**classes, "x": round(x, 1), "y": round(y, 1), "text-anchor": anchor}, text, title)


# --- line charts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One curve. `tone`: its colour class. `smooth`: draw its running mean, and the points faintly behind it."""

    label: str
    tone: str
    points: Sequence[Point]
    smooth: bool = True


@dataclass(frozen=True)
class Axes:
    """The data rectangle of a line chart: from zero to `right` and `top`, both above zero."""

    right: float
    top: float

    def x(self, value: float) -> float:
        """The x coordinate of a value."""
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.right

    def y(self, value: float) -> float:
        """The y coordinate of a value. Values above `top` are at the upper edge."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, self.top) / self.top


def line_chart(
    name: str,
    lines: Sequence[Line],
    x_label: str,
    reference: tuple[float, str] | None = None,
    percent: bool = False,
    most: float = 1.0,
) -> Drawing:
    """Curves over a common x axis.

    `reference`: a level, drawn as a dashed line, and its label. `percent`: whether the y axis is from 0 to `most` in
    per cent. Lines without points are left out. At least one line must have points.
    """
    lines = [line for line in lines if line.points]
    assert lines, "a chart needs a point"
    axes = _axes(lines, reference, most if percent else None)
    shapes = _grid(axes, x_label, percent)
    if reference:
        y = axes.y(reference[0])
        shapes.append(_line("reference", LEFT, WIDTH - RIGHT, y, y))
        shapes.append(_text(reference[1], WIDTH - RIGHT, y - 5, "end", "halo"))
    for line in lines:
        shapes += _curve(axes, line)
    return Drawing(f"{name}: {', '.join(line.label for line in lines)}", HEIGHT, shapes)


def _axes(lines: Sequence[Line], reference: tuple[float, str] | None, most: float | None) -> Axes:
    right = max(x for line in lines for x, _ in line.points) or 1.0
    if most:
        return Axes(right, most)
    # The axis ends a little above the running means, not above the points, so that one outlier does not flatten the
    # curves.
    highest = max(y for line in lines for _, y in running_mean(line.points))
    return Axes(right, 1.12 * max(highest, reference[0] if reference else 0.0) or 1.0)


def _grid(axes: Axes, x_label: str, percent: bool) -> list[ChartShape]:
    shapes = []
    for value in [axes.top * quarter / 4 for quarter in range(5)] if percent else ticks(axes.top):
        y = axes.y(value)
        shapes.append(_line("level", LEFT, WIDTH - RIGHT, y, y))
        shapes.append(_text(f"{100 * value:.0f} %" if percent else f"{value:g}", LEFT - 6, y + 4, "end"))
    bottom = HEIGHT - BOTTOM + 16
    shapes += [_text(short_count(value), axes.x(value), bottom, "middle") for value in ticks(axes.right)]
    return [*shapes, _text(x_label, WIDTH - RIGHT, HEIGHT - 3, "end")]


def _curve(axes: Axes, line: Line) -> list[ChartShape]:
    curve = running_mean(line.points) if line.smooth else line.points
    faint = [ChartShape("path", {"class": f"faint {line.tone}", "d": _path(axes, line.points)})] if line.smooth else []
    x, y = curve[-1]
    end = ChartShape("circle", {"class": line.tone, "cx": round(axes.x(x), 1), "cy": round(axes.y(y), 1), "r": 3})
    return [*faint, ChartShape("path", {"class": f"curve {line.tone}", "d": _path(axes, curve)}), end]


def _path(axes: Axes, points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in thinned(points))


def thinned(points: Sequence[Point], most: int = 400) -> Sequence[Point]:
    """Every n-th point and the last point, so that there are about `most` at the most."""
    every = math.ceil(len(points) / most)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def running_mean(points: Sequence[Point]) -> list[Point]:
    """The points with each y replaced by the mean over a centred window.

    The window is about a twentieth of the curve. It is shorter at the ends.
    """
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
    """Round values from 0 to `top` in about `wanted` intervals. An interval is 1, 2 or 5 times a power of ten.

    >>> ticks(2.3)
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    return signed_ticks(0.0, top, wanted + 1)


def signed_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round values between `low` and `high` in at most `most` intervals. Zero is among them if it is in the range.

    >>> signed_ticks(-2.5, 7.0)
    [-2.0, 0.0, 2.0, 4.0, 6.0]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) + 0.0 for number in range(first, last + 1)]


def short_count(value: float) -> str:
    """A count in short form.

    >>> short_count(1500), short_count(250), short_count(2e6)
    ('1.5k', '250', '2M')
    """
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


# --- forest plots -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """One row of a forest plot: a value with its interval, both as text, and its verdict (a key of `MARKS`).

    `low`, `high`: None if there is no interval.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    text: str
    verdict: str


@dataclass(frozen=True)
class AxisRange:
    """The range of an axis, `low` < `high`."""

    low: float
    high: float

    def x(self, value: float) -> float:
        """The x coordinate of a value. Values outside the range are at its edge."""
        fraction = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return EDGE + (WIDTH - 2 * EDGE) * fraction


def span_of(rows: Iterable[Interval], margin: float) -> AxisRange:
    """A common range for several forest plots, so that they can be compared.

    It contains all intervals, zero and the margin, with some space at both ends.
    """
    ends = [0.0, -margin, *(end for each in rows for end in (each.low, each.high, each.value) if end is not None)]
    space = 0.05 * (max(ends) - min(ends)) or 1.0
    return AxisRange(min(ends) - space, max(ends) + space)


def forest(name: str, rows: Sequence[Interval], span: AxisRange, margin: float, unit: str) -> Drawing:
    """Intervals, one below the other. The solid line is at no difference, the dashed one at a loss of `margin`.

    With a margin of 0 there is no dashed line.
    """
    assert rows, "a forest plot needs a row"
    height = FOREST_TOP + ROW * len(rows) + FOREST_BOTTOM
    shapes = _scale(span, height, margin, unit)
    for number, each in enumerate(rows):
        shapes += _interval(span, each, FOREST_TOP + ROW * number)
    text = "; ".join(f"{each.label}: {each.text}, {each.verdict}" for each in rows)
    return Drawing(f"{name}: {text}", height, shapes)


def _scale(span: AxisRange, height: int, margin: float, unit: str) -> list[ChartShape]:
    bottom, shapes = height - FOREST_BOTTOM, []
    for value in signed_ticks(span.low, span.high):
        x = span.x(value)
        shapes.append(_line("level" if value else "zero", x, x, FOREST_TOP - (0 if value else 4), bottom))
        shapes.append(_text(f"{value:+g}" if value else "0", x, bottom + 16, "middle"))
    if margin:
        x = span.x(-margin)
        anchor = "start" if x < WIDTH / 3 else "end" if x > 2 * WIDTH / 3 else "middle"
        shapes.append(_line("reference", x, x, FOREST_TOP - 4, bottom))
        shapes.append(_text(f"margin {-margin:g}", x, FOREST_TOP - 8, anchor))
    return [*shapes, _text(unit, WIDTH - EDGE, height - 4, "end")]


def _interval(span: AxisRange, each: Interval, top: int) -> list[ChartShape]:
    tone, outline = MARKS[each.verdict]
    y, room = top + 26, WIDTH - 2 * EDGE - LETTER * (len(each.text) + 2)
    low, high = (each.value if end is None else end for end in (each.low, each.high))
    whisker = f"M{span.x(low):.1f} {y}H{span.x(high):.1f}"
    place = f"translate({span.x(each.value):.1f} {y})"
    return [
        _text(_fitted(each.label, room), EDGE, top + 15, style="name halo", title=each.label),
        _text(each.text, WIDTH - EDGE, top + 15, "end", "halo"),
        ChartShape("path", {"class": f"whisker {tone}", "d": whisker}),
        ChartShape("path", {"class": f"mark {tone}", "transform": place, "d": outline}),
    ]


def _fitted(label: str, room: float) -> str:
    letters = max(6, int(room / LETTER))
    return label if len(label) <= letters else f"{label[: letters - 1]}…"


# --- bars -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A horizontal bar: a label, a track and a value.

    `marks`: classes and CSS of each element on the track. `signed`: whether the bar starts in the middle of the track.
    """

    label: str
    value: str
    marks: list[tuple[str, str]]
    note: str = ""
    signed: bool = False


def bar(
    label: str, fraction: float, value: str, tone: str, chance: float | None = None, interval: Point | None = None
) -> Bar:
    """A bar of `fraction` (0 to 1) of its track, with a tick at `chance` and a whisker over `interval`."""
    marks = [(f"fill {tone}", f"width:{_percent(fraction)}")]
    if chance is not None:
        marks.append(("chance", f"left:{_percent(chance)}"))
    if interval:
        low, high = interval
        marks.append(("whisker", f"left:{_percent(low)};width:{_percent(high - low)}"))
    return Bar(label, value, marks)


def signed_bar(label: str, note: str, gain: float, most: float, value: str, interval: Point | None = None) -> Bar:
    """A bar from the middle of its track, to the right for a gain and to the left for a loss.

    A gain of `most` (above 0) fills the half of the track. `interval`: the ends of a whisker.
    """
    width = 50 * min(abs(gain) / most, 1.0)
    left = 50 - (width if gain < 0 else 0)
    fill = (f"fill {'cotrained' if gain > 0 else 'single'}", f"left:{left:.2f}%;width:{width:.2f}%")
    marks = [fill, ("middle", "")]
    if interval:
        low, high = (50 + 50 * min(max(end / most, -1.0), 1.0) for end in interval)
        marks.append(("whisker", f"left:{low:.2f}%;width:{high - low:.2f}%"))
    return Bar(label, value, marks, note, signed=True)


def _percent(fraction: float) -> str:
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}%"


@dataclass(frozen=True)
class Panel:
    """A chart of a report with a title: bars or a drawing.

    `key`: colour class and label of each curve. `protocol`: lines of text below the chart. `left_out`: the number of
    bars that are left out in the middle.
    """

    title: str
    note: str = ""
    bars: Sequence[Bar] = ()
    drawing: Drawing | None = None
    key: Sequence[tuple[str, str]] = ()
    protocol: Sequence[str] = ()
    left_out: int = 0
