"""Output of the commands: results on stdout, progress and logs on stderr.

If stderr is not a terminal, progress is shown as plain lines.
"""

from __future__ import annotations

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
from cover.safe_text import json_text, printable

T = TypeVar("T")
PLAIN_INTERVAL_S = 15.0
_silent = False


def be_silent() -> None:
    """Turn off the logs and the progress of this process, because another process shows them for the same work."""
    global _silent  # noqa: PLW0603
    _silent = True


def say(text: str) -> None:
    """Log one line on stderr, as `printable` gives it."""
    if not _silent:
        print(printable(text), file=sys.stderr, flush=True)


def say_lines(text: str) -> None:
    """Log a text of several lines on stderr."""
    for line in text.rstrip().split("\n"):
        say(line)


def tell(text: str = "") -> None:
    """Print one line of results on stdout, as `printable` gives it."""
    print(printable(text), flush=True)


def tell_path(path: Path) -> None:
    """Print a path on stdout: as it is for another program, as `printable` gives it on a terminal."""
    print(printable(str(path)) if sys.stdout.isatty() else path, flush=True)


class Meter:
    """A progress display on stderr: a bar with the time left on a terminal, else a plain line every 15 seconds.

    >>> with Meter("index", total=3) as meter:
    ...     for _ in range(3):
    ...         meter.advance()

    `total` is the number of items, of which `done` are done at the start. If the items differ much in size, `work` is
    the work of all remaining items, in any unit. Then the time left is estimated from the `work` that `advance`
    reports, not from the number of items.
    """

    def __init__(self, label: str, total: int, done: int = 0, work: float | None = None) -> None:
        self.label, self.total, self.done, self.note = printable(label), total, done, ""
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
            self._task = self._live.add_task(escape(self.label), total=total, completed=done, note="")

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
        """The estimated time left, in the form of `clock`; empty before the first item is done."""
        if not self._worked:
            return ""
        pace = (self._advanced - self._began) / self._worked
        return clock(max(0.0, pace * (self._work - self._worked) - (time.monotonic() - self._advanced)))

    def advance(self, count: int = 1, note: str | None = None, work: float | None = None) -> None:
        """Count `count` more items as done, with their `work`. `note` is shown behind the bar."""
        self.done += count
        self.note = self.note if note is None else printable(note)
        self._worked += count if work is None else work
        self._advanced = time.monotonic()
        if self._live:
            self._live.update(self._task, advance=count, note=escape(self.note))
            return
        if self._advanced - self._last_line >= PLAIN_INTERVAL_S and self.left:
            say(f"{self.label}: {self.done}/{self.total}, {self.left} left  {self.note}".rstrip())
            self._last_line = self._advanced


class _TimeLeft(ProgressColumn):
    """The time left of a meter. The column of rich uses the last 30 seconds only, in which a slow item may not end."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def render(self, task: Task) -> Text:
        return Text(f"{self._meter.left} left" if self._meter.left else "")


class LiveTable:
    """A progress bar with a table and notes below it, redrawn twice a second on a terminal, else plain lines.

    >>> with LiveTable("train", total=3) as table:
    ...     table.show(["", "loss"], [["ssv2", "1.20"]], ["lr 1e-3"], plain="step 1/3  ssv2 1.20")
    ...     table.advance()

    A `Meter` inside the block disappears from the terminal when it ends.
    """

    shown = 0  # number of tables on the terminal now

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
            self._task = self._bar.add_task(printable(label), total=total, completed=done)
            self._live = Live(self._bar, console=_terminal(), refresh_per_second=2)

    def __enter__(self) -> LiveTable:
        if self._live:
            LiveTable.shown += 1
            self._live.start()
            self._live.console.show_cursor(True)  # a killed process could not show it again
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            LiveTable.shown -= 1
            self._live.stop()

    @property
    def live(self) -> bool:
        """Whether the table is redrawn on a terminal."""
        return self._live is not None

    def advance(self) -> None:
        """Count one more item as done."""
        if self._live:
            self._bar.update(self._task, advance=1)

    def left(self, done: int) -> str:
        """The estimated time left after `done` items, in the form of `clock`."""
        return clock((time.monotonic() - self._began) / max(done - self._first, 1) * (self.total - done))

    def show(self, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str], plain: str) -> None:
        """Show a table and the lines of `notes` below the bar. Without a terminal, log the line `plain` instead."""
        if self._live:
            self._live.update(Group(self._bar, _table(columns, rows), *(Text(printable(note)) for note in notes)))
        else:
            say(plain)


@cache
def _terminal() -> Console:
    """The console of this process. All displays share it: displays of two consoles would overwrite each other."""
    return Console(stderr=True)


def _can_redraw() -> bool:
    """Whether stderr is a terminal whose cursor can move."""
    return not _silent and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield `items` and show their progress on a `Meter`."""
    with Meter(label, total) as meter:
        for item in items:
            yield item
            meter.advance()


@contextmanager
def flushed(stdout: IO[str]) -> Iterator[None]:
    """Flush `stdout` at the end of the block.

    Raises `UserError` if `stdout` cannot be written, as on a full disk, and `BrokenPipeError` if its reader has ended.
    """
    try:
        yield
        stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # Otherwise the flush at the end of the process fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        raise UserError(f"stdout: cannot be written: {error.strerror or error}") from None


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """Print a table on stdout. The first column is aligned left, the others right."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    with console.capture() as text:  # written below, because rich ends the process if nobody reads stdout
        console.print(_table(columns, rows, title))
    sys.stdout.write(text.get())


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> Table:
    table = Table(
        title=title and escape(printable(title)), title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for number, column in enumerate(columns):
        table.add_column(escape(printable(column)), justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(printable(str(cell))) for cell in row))
    return table


def write_json(value: Any, target: str | Path) -> None:
    """Write `value` as JSON to the file `target`, or to stdout if `target` is `-`.

    Raises `UserError` if the file cannot be written.
    """
    text = json_text(value, indent=2)
    if str(target) == "-":
        print(text)
        return
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        # A file name may hold bytes that are not valid text. Backslash escapes of such bytes are valid JSON.
        Path(target).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from None
