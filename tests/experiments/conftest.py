"""A parser for the pages of reports."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest


class Page(HTMLParser):
    """The text of a page; what is opened must be closed."""

    VOID = frozenset({"meta", "link", "img", "line", "path", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "title"}:
            self.words += data + "\n"


@pytest.fixture(scope="session")
def parse() -> Any:
    """parse(text) -> the page, with its `words`, `tags` and `links`."""
    return Page
