"""What does a result page look like? One HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from cover.experiments.style import STYLE

FRAMES_SHOWN = 8
TALLEST_FRAME = 128
GAP = 3

# The browser itself refuses anything that is not in this file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, body: str) -> str:
    """A whole HTML document around `body` (HTML). `title` is plain text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, caption: str, body: str) -> str:
    """A titled part of the page. `title` and `caption` are plain text, `body` is HTML."""
    below = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{below}\n{body}\n</section>"


def gone(words: str) -> str:
    """What stands where something is missing."""
    return f'<p class="gone">{escape(words)}</p>'


def cell(text: str | None, tone: str = "", note: str = "") -> str:
    """A table cell from plain text, with a small second line; None is drawn as a dash."""
    if text is None:
        return '<td class="none" title="not run">–</td>'
    below = f"<small>{escape(note)}</small>" if note else ""
    return f'<td class="{tone}">{escape(text)}{below}</td>' if tone else f"<td>{escape(text)}{below}</td>"


def row_head(text: str, note: str = "", narrow: str = "") -> str:
    """The first cell of a row, with a small second line, and a third on narrow screens in place of columns of class `text`."""
    below = f"<small>{escape(note)}</small>" if note else ""
    below += f'<small class="narrow">{escape(narrow)}</small>' if narrow else ""
    return f'<th scope="row">{escape(text)}{below}</th>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls sideways where it does not fit. `columns` are plain text, cells come from `row_head` and `cell`."""
    names = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    head = f"<thead><tr>{names}</tr></thead>" if columns else ""
    lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll {kind}"><table>{head}<tbody>\n{lines}\n</tbody></table></div>'


def film_strip(frames: np.ndarray, alt: str) -> str:
    """Up to eight evenly spaced frames side by side as one inline PNG. `frames` uint8 `(T, H, W, 3)`, T at least 1."""
    picked = frames[np.linspace(0, len(frames) - 1, min(FRAMES_SHOWN, len(frames))).round().astype(int)]
    small = [_fitted(frame) for frame in picked]
    width, height = small[0].size
    sheet = Image.new("RGBA", (len(small) * (width + GAP) - GAP, height))
    for number, frame in enumerate(small):
        sheet.paste(frame, (number * (width + GAP), 0))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    # A short clip keeps the frame size of its neighbours; a lone image fills the place it is given.
    share = 100 if len(small) == 1 else 100 * len(small) / FRAMES_SHOWN
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" width="{sheet.width}" height="{height}" style="width:{share:g}%">'


def _fitted(frame: np.ndarray) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(frame))
    scale = TALLEST_FRAME / picture.height
    return picture if scale >= 1 else picture.resize((max(1, round(picture.width * scale)), TALLEST_FRAME), Image.Resampling.LANCZOS)
