"""What is a report made of? Parts of words, tables and figures, each of which is HTML and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Protocol

from cover.experiments import page

MARKS = str.maketrans({**{mark: f"\\{mark}" for mark in "\\|*`["}, "<": "&lt;", "\u00a0": " "})


class Block(Protocol):
    """Something that stands in a part of a report."""

    def html(self) -> str:
        """As part of a page."""

    def markdown(self) -> str:
        """As a paragraph or table of its own; empty where there is nothing to say in words."""


@dataclass(frozen=True)
class Cell:
    """A figure in plain text, what stands small beneath it, and its CSS class. None: not run. `narrow`: of a row's first cell, what
    its cells of class `text` say, for screens too narrow for them."""

    text: str | None
    note: str = ""
    tone: str = ""
    narrow: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns; the first cell of a row names it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    kind: str = ""

    def html(self) -> str:
        """With a title above, where there is one."""
        rows = [
            [page.row_head(head.text or "", head.note, head.narrow), *(page.cell(cell.text, cell.tone, cell.note) for cell in cells)]
            for head, *cells in self.rows
        ]
        above = f"<h3>{escape(self.title)}</h3>" if self.title else ""
        return f'<div class="tabled">{above}{page.table(self.columns, rows, self.kind)}</div>'

    def markdown(self) -> str:
        """Notes in brackets; without columns a list, as no table lacks its head."""
        if not self.columns:
            return "\n".join(f"- {': '.join(plain(_noted(cell)) for cell in row)}" for row in self.rows)
        lines = [_row(self.columns), "|---|" + "---:|" * (len(self.columns) - 1)]
        lines += [_row([_noted(cell) for cell in row]) for row in self.rows]
        return (f"### {plain(self.title)}\n\n" if self.title else "") + "\n".join(lines)


@dataclass(frozen=True)
class Words:
    """A paragraph of plain text; `kind`: its CSS class."""

    text: str
    kind: str = ""

    def html(self) -> str:
        """A paragraph."""
        return f'<p class="{self.kind}">{escape(self.text)}</p>' if self.kind else f"<p>{escape(self.text)}</p>"

    def markdown(self) -> str:
        """A paragraph."""
        return plain(self.text)


@dataclass(frozen=True)
class Items:
    """A list of plain texts."""

    items: Sequence[str]
    kind: str = ""

    def html(self) -> str:
        """A list."""
        return f'<ul class="{self.kind}">{"".join(f"<li>{escape(item)}</li>" for item in self.items)}</ul>'

    def markdown(self) -> str:
        """A list."""
        return "\n".join(f"- {plain(item)}" for item in self.items)


@dataclass(frozen=True)
class Figure:
    """A drawing as HTML, and the table that says the same in Markdown."""

    drawing: str
    said: Block | None = None

    def html(self) -> str:
        """The drawing."""
        return self.drawing

    def markdown(self) -> str:
        """The table in its place."""
        return self.said.markdown() if self.said else ""


@dataclass(frozen=True)
class Heading:
    """A title within a part; `kind`: its CSS class."""

    text: str
    kind: str = ""

    def html(self) -> str:
        """One level below a part's title."""
        return f'<h3 class="{self.kind}">{escape(self.text)}</h3>' if self.kind else f"<h3>{escape(self.text)}</h3>"

    def markdown(self) -> str:
        """One level below a part's title."""
        return f"### {plain(self.text)}"


@dataclass(frozen=True)
class Group:
    """Blocks that stand for one."""

    blocks: Sequence[Block]

    def html(self) -> str:
        """One after the other."""
        return "\n".join(block.html() for block in self.blocks)

    def markdown(self) -> str:
        """One after the other."""
        return "\n\n".join(filter(None, (block.markdown() for block in self.blocks)))


@dataclass(frozen=True)
class Folded:
    """What not everybody reads: behind a line that opens it on the page; printed, and in Markdown, it stands open."""

    name: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """Closed."""
        return f"<details><summary>{escape(self.name)}</summary>{Group(self.blocks).html()}</details>"

    def markdown(self) -> str:
        """Open."""
        return Group(self.blocks).markdown()


@dataclass(frozen=True)
class Commands:
    """Lines for a terminal."""

    lines: Sequence[str]

    def html(self) -> str:
        """As they are typed."""
        return f"<pre>{escape(chr(10).join(self.lines))}</pre>"

    def markdown(self) -> str:
        """An indented block: nothing within it can end it."""
        return "\n".join(f"    {line}" for line in self.lines)


@dataclass(frozen=True)
class Part:
    """A titled part of the report; `caption` says how to read it."""

    title: str
    caption: str
    blocks: Sequence[Block] = field(default_factory=list)

    def html(self) -> str:
        """A section of the page."""
        return page.section(self.title, self.caption, "\n".join(block.html() for block in self.blocks))

    def markdown(self) -> str:
        """A heading and what is below it."""
        said = [f"## {plain(self.title)}", plain(self.caption), *(block.markdown() for block in self.blocks)]
        return "\n\n".join(words for words in said if words)


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    >>> plain("a|b <i>")
    'a\\\\|b &lt;i>'
    """
    return " ".join(text.split()).translate(MARKS)


def absent(text: str) -> Words:
    """What stands where a study has nothing to show."""
    return Words(text, "gone")


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(plain(text) for text in texts) + " |"


def _noted(cell: Cell) -> str:
    return "–" if cell.text is None else f"{cell.text} ({cell.note})" if cell.note else cell.text
