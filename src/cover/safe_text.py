"""Texts of others (names of classes, heads, data sets, files) as they are printed, written as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from typing import Any

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
# A leading tab or line break is skipped by some programs. The wide forms count as formulas in some languages.
_FORMULA = re.compile(r"[\s\x00]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n\x00]")
_GUARDED = re.compile(rf"'+(?:{_FORMULA.pattern})")


def printable(text: str) -> str:
    """A text in one line, in which every character that a terminal would obey is an escape such as `\\x1b`.

    Names of classes, heads, data sets and files come from others. Control characters, line breaks, and characters that
    are invisible or change the direction of the text are replaced.
    """
    return _UNSAFE.sub(lambda match: _ESCAPES.get(match[0]) or _escaped(match[0]), text)


def _escaped(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON. Characters that `printable` would replace are JSON's own escapes in it, as `\\u009b`."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else json.dumps(match[0])[1:-1], text)


def csv_line(cells: Iterable[object]) -> str:
    """One row as CSV, with its line feed. None is an empty cell.

    A text that a spreadsheet would run as a formula (`=`, `+`, `-` or `@` first) gets an apostrophe in front, which
    `read_cell` removes again. Numbers do not change.
    """
    out = io.StringIO()
    # With these two characters at the end of a line, the writer quotes cells that hold either of them.
    csv.writer(out, lineterminator="\r\n").writerow([_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return out.getvalue().removesuffix("\r\n") + "\n"


def read_cell(text: str) -> str:
    """The text that `csv_line` wrote into a cell."""
    return text[1:] if _GUARDED.match(text) else text


def _cell(text: str) -> str:
    # Apostrophes before a formula get another one, so that `read_cell` returns the same text.
    return f"'{text}" if _FORMULA.match(text) or _GUARDED.match(text) else text
