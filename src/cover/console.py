"""Output of the commands: results on stdout, progress and logs on stderr, plain lines where stderr is not a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cover.errors import UserError

T = TypeVar("T")
PLAIN_INTERVAL_S = 15.0
_silent = False


def be_silent() -> None:
    """From now on this process logs nothing and shows no progress, because another process that does the same work
    does.
    """
    global _silent  # noqa: PLW0603
    _silent = True


def say(text: str) -> None:
    """Log one line on stderr."""
    if not _silent:
        print(text, file=sys.stderr, flush=True)


class Meter:
    """A progress display on stderr: a live bar with time left on a terminal, else a plain line every 15 seconds.

    >>> with Meter("index", total=3) as meter:
    ...     for _ in range(3):
    ...         meter.advance()

    `work`: the total work of the remaining items, in any unit, where it differs much between them. The time left is
    then estimated from the `work` given to `advance` instead of the number of items.
    """

    def __init__(self, label: str, total: int, done: int = 0, work: float | None = None) -> None:
        self.label, self.total, self.done, self.note = label, total, done, ""
        self._work, self._worked = total - done if work is None else work, 0.0
        self._began = self._last_line = self._advanced = time.monotonic()
        self._live: Progress | None = None
        if _can_redraw():
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                _TimeLeft(self),
                TextColumn("{task.fields[note]}"),
                console=_terminal(),
                transient=LiveTable.shown > 0,
            )
            self._task = self._live.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Meter:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        elif kind is None and time.monotonic() - self._began > 2:
            say(f"{self.label}: {self.done}/{self.total} in {clock(time.monotonic() - self._began)}")

    @property
    def left(self) -> str:
        """The time left at the pace so far, as `clock` writes it; empty before the first item."""
        if not self._worked:
            return ""
        pace = (self._advanced - self._began) / self._worked
        return clock(max(0.0, pace * (self._work - self._worked) - (time.monotonic() - self._advanced)))

    def advance(self, count: int = 1, note: str | None = None, work: float | None = None) -> None:
        """Count `count` more items as done, of so much `work`; `note` is shown behind the bar."""
        self.done += count
        self.note = self.note if note is None else note
        self._worked += count if work is None else work
        self._advanced = time.monotonic()
        if self._live:
            self._live.update(self._task, advance=count, note=escape(self.note))
            return
        if self._advanced - self._last_line >= PLAIN_INTERVAL_S and self.left:
            say(f"{self.label}: {self.done}/{self.total}, {self.left} left  {self.note}".rstrip())
            self._last_line = self._advanced


class _TimeLeft(ProgressColumn):
    """The time left of a meter. rich's own column looks at the last 30 seconds, in which no slow item ends."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def render(self, task: Task) -> Text:
        return Text(f"{self._meter.left} left" if self._meter.left else "")


class LiveTable:
    """A progress bar with a table and some lines below it, redrawn in place twice a second on a terminal, else plain
    lines.

    >>> with LiveTable("train", total=3) as table:
    ...     table.show(["", "loss"], [["ssv2", "1.20"]], ["lr 1e-3"], plain="step 1/3  ssv2 1.20")
    ...     table.advance()

    A `Meter` inside leaves nothing behind on the terminal.
    """

    shown = 0  # tables that are being redrawn

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.total, self._first, self._began = total, done, time.monotonic()
        self._live: Live | None = None
        if _can_redraw():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("left"),
            )
            self._task = self._bar.add_task(label, total=total, completed=done)
            self._live = Live(self._bar, console=_terminal(), refresh_per_second=2)

    def __enter__(self) -> LiveTable:
        if self._live:
            LiveTable.shown += 1
            self._live.start()
            self._live.console.show_cursor(True)  # a process that is killed could not bring it back
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            LiveTable.shown -= 1
            self._live.stop()

    @property
    def live(self) -> bool:
        """Whether it is redrawn in place."""
        return self._live is not None

    def advance(self) -> None:
        """Count one more done."""
        if self._live:
            self._bar.update(self._task, advance=1)

    def left(self, done: int) -> str:
        """The time left at the pace so far when `done` are done, as `clock` writes it."""
        return clock((time.monotonic() - self._began) / max(done - self._first, 1) * (self.total - done))

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], plain: str) -> None:
        """Show a table and lines of text below the bar; where nothing is redrawn, log the line `plain` instead."""
        if self._live:
            self._live.update(Group(self._bar, _table(columns, rows), *(Text(note) for note in notes)))
        else:
            say(plain)


@cache
def _terminal() -> Console:
    """One console for the process: the displays of one console are drawn below each other, those of two overwrite each
    other.
    """
    return Console(stderr=True)


def _can_redraw() -> bool:
    """Whether stderr is a terminal with a movable cursor."""
    return not _silent and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """`items`, each counted on a `Meter` when the next one is asked for."""
    with Meter(label, total) as meter:
        for item in items:
            yield item
            meter.advance()


@contextmanager
def flushed(stdout: IO[str]) -> Iterator[None]:
    """Flush `stdout` at the end of the block. Raises `UserError` where it cannot be written, as on a full disk, but
    `BrokenPipeError` where its reader is gone.
    """
    try:
        yield
        stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # else the flush at the end of the process would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        raise UserError(f"stdout: cannot be written: {error.strerror or error}") from None


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout. The first column is aligned left, the others right."""
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(_table(columns, rows, title))


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def write_json(value: Any, target: str | Path) -> None:
    """`value` as JSON to a file, or to stdout where `target` is `-`. Raises `UserError` where the file cannot be
    written.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if str(target) == "-":
        print(text)
        return
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        # A file's name need not be valid text; what stands for its bytes is the escape that JSON knows.
        Path(target).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from None
