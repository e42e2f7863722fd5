"""How are differences drawn? Forest plots as inline SVG, gains and losses as HTML bars, told apart by shape as well as colour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

# The drawing's own units, as in `charts`: 12-unit letters stay readable on a phone.
WIDTH, EDGE = 420, 10
TOP, ROW, BOTTOM = 20, 44, 40
LETTER = 6.4  # of a 12-unit letter, on average
MARK = 5.0

# How the middle of an interval is marked, by verdict: its colour and outline around (0, 0).
MARKS = {
    "better": ("cotrained solid", f"M{-MARK} {MARK}L0 {-MARK - 1}L{MARK} {MARK}Z"),
    "worse": ("single solid", f"M{-MARK} {-MARK}L0 {MARK + 1}L{MARK} {-MARK}Z"),
    "not worse": ("pretrained solid", f"M{-MARK} 0L0 {-MARK}L{MARK} 0L0 {MARK}Z"),
    "no difference shown": ("plain hollow", f"M{-MARK + 1} {-MARK + 1}H{MARK - 1}V{MARK - 1}H{-MARK + 1}Z"),
}


@dataclass(frozen=True)
class Difference:
    """One row: what it is of, the difference and its interval, the same in words, and its verdict (a key of `MARKS`)."""

    label: str
    value: float
    low: float
    high: float
    words: str
    verdict: str


@dataclass(frozen=True)
class Span:
    """The part of the number line that is drawn, `low` < `high`."""

    low: float
    high: float

    def x(self, value: float) -> float:
        """Where a value stands; outside the span, at its edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return EDGE + (WIDTH - 2 * EDGE) * share


def span_of(differences: Iterable[Difference], margin: float) -> Span:
    """What several forest plots are drawn on, so that they can be compared: every interval, zero and the margin, with some air."""
    ends = [0.0, -margin]
    for each in differences:
        ends += [each.low, each.high, each.value]
    air = 0.05 * (max(ends) - min(ends)) or 1.0
    return Span(min(ends) - air, max(ends) + air)


def forest(name: str, differences: Sequence[Difference], span: Span, margin: float, unit: str) -> str:
    """An SVG element: one interval below the other. The solid line is no difference, the dashed one a loss of `margin` (0: none)."""
    assert differences, "a forest plot needs a row"
    height = TOP + ROW * len(differences) + BOTTOM
    parts = [_ground(span, height, margin, unit)]
    parts += [_row(span, each, TOP + ROW * number) for number, each in enumerate(differences)]
    told = "; ".join(f"{each.label}: {each.words}, {each.verdict}" for each in differences)
    return f'<svg class="forest" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(f"{name}: {told}")}">{"".join(parts)}</svg>'


def signed_ticks(low: float, high: float, wanted: int = 7) -> list[float]:
    """Round values between `low` and `high`, zero among them where it lies between.

    >>> signed_ticks(-2.5, 7.0)
    [-2.0, 0.0, 2.0, 4.0, 6.0]
    """
    power = 10.0 ** math.floor(math.log10((high - low) / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= wanted)
    return [round(number * step, 12) + 0.0 for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def signed_bar(label: str, note: str, value: float, most: float, words: str) -> str:
    """A bar from the middle of its track: to the right a gain, to the left a loss, `most` (above 0) filling its half."""
    width = 50 * min(abs(value) / most, 1.0)
    left = 50 - (width if value < 0 else 0)
    tone = "cotrained" if value > 0 else "single"
    fill = f'<i class="fill {tone}" style="left:{left:.2f}%;width:{width:.2f}%"></i><i class="middle"></i>'
    name = f'<span class="words">{escape(label)} <small>{escape(note)}</small></span>'
    return f'<div class="bar signed">{name}<span class="track">{fill}</span><span class="value">{escape(words)}</span></div>'


def _ground(span: Span, height: int, margin: float, unit: str) -> str:
    bottom = height - BOTTOM
    parts = []
    for value in signed_ticks(span.low, span.high):
        x = span.x(value)
        parts.append(f'<line class="level" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:+g}</text>' if value else _zero(x, bottom))
    if margin:
        x = span.x(-margin)
        parts.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{bottom}"/>')
        anchor = "start" if x < WIDTH / 3 else "end" if x > 2 * WIDTH / 3 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{TOP - 8}" text-anchor="{anchor}">margin {-margin:g}</text>')
    parts.append(f'<text x="{WIDTH - EDGE}" y="{height - 4}" text-anchor="end">{escape(unit)}</text>')
    return "".join(parts)


def _zero(x: float, bottom: int) -> str:
    return (
        f'<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{bottom}"/>'
        f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">0</text>'
    )


def _row(span: Span, each: Difference, top: int) -> str:
    tone, outline = MARKS[each.verdict]
    y, x = top + 26, span.x(each.value)
    label = _fitted(each.label, WIDTH - 2 * EDGE - LETTER * (len(each.words) + 2))
    return (
        f'<text class="name halo" x="{EDGE}" y="{top + 15}">{escape(label)}<title>{escape(each.label)}</title></text>'
        f'<text class="halo" x="{WIDTH - EDGE}" y="{top + 15}" text-anchor="end">{escape(each.words)}</text>'
        f'<path class="whisker {tone}" d="M{span.x(each.low):.1f} {y}H{span.x(each.high):.1f}"/>'
        f'<path class="mark {tone}" transform="translate({x:.1f} {y})" d="{outline}"/>'
    )


def _fitted(label: str, room: float) -> str:
    letters = max(6, int(room / LETTER))
    return label if len(label) <= letters else f"{label[: letters - 1]}…"
