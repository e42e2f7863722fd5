"""How every command talks: results on stdout, progress and logs on stderr, plain lines when not a terminal."""

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
    """From now on this process narrates nothing and shows no progress: one of several that do the same speaks for all."""
    global _silent  # noqa: PLW0603
    _silent = True


def say(text: str) -> None:
    """One line of narration on stderr."""
    if _silent:
        return
    print(text, file=sys.stderr, flush=True)


class Meter:
    """A progress display on stderr: a live bar with time left on a terminal, else a plain line every 15 seconds.

    >>> with Meter("index", total=3) as meter:
    ...     for _ in range(3):
    ...         meter.advance()

    `work`: how much the items that are left take together, where they differ much; the time left then goes by what `advance` says of each.
    """

    def __init__(self, label: str, total: int, done: int = 0, work: float | None = None) -> None:
        self.label, self.total, self.done, self.note = label, total, done, ""
        self._work, self._worked = total - done if work is None else work, 0.0
        self._began = self._last_line = self._advanced = time.monotonic()
        self._live: Progress | None = None
        if can_redraw():
            self._live = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _Left(self),
                TextColumn("{task.fields[note]}"), console=_terminal(), transient=Board.shown > 0,
            )  # fmt: skip
            self._task = self._live.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Meter:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
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
        """Count `count` more items done, which took `work`; `note` is free text shown behind the bar."""
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


class _Left(ProgressColumn):
    """A meter's time left. rich's own goes by the last half minute, in which of slow items none is done."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def render(self, task: Task) -> Text:
        return Text(f"{self._meter.left} left" if self._meter.left else "")


class Board:
    """A bar with a table and some lines below it, redrawn in place twice a second on a terminal; elsewhere plain lines, as they come.

    >>> with Board("train", total=3) as board:
    ...     board.show(["", "loss"], [["ssv2", "1.20"]], ["lr 1e-3"], plain="step 1/3  ssv2 1.20")
    ...     board.advance()

    A `Meter` inside leaves nothing behind on the terminal.
    """

    shown = 0  # boards that are being redrawn

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.total, self._first, self._began = total, done, time.monotonic()
        self._live: Live | None = None
        if can_redraw():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("left"),
            )  # fmt: skip
            self._task = self._bar.add_task(label, total=total, completed=done)
            self._live = Live(self._bar, console=_terminal(), refresh_per_second=2)

    def __enter__(self) -> Board:
        if self._live:
            Board.shown += 1
            self._live.start()
            self._live.console.show_cursor(True)  # a process that is killed could not bring it back
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            Board.shown -= 1
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
        """What stands below the bar from now on; `plain` is what is said of it where nothing is redrawn."""
        if self._live:
            self._live.update(Group(self._bar, _table(columns, rows), *(Text(note) for note in notes)))
        else:
            say(plain)


@cache
def _terminal() -> Console:
    """One for the process: displays of one console stand below each other, those of two would overwrite each other."""
    return Console(stderr=True)


def can_redraw() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    return not _silent and sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """`items`, each counted on a `Meter` after its consumer is done with it."""
    with Meter(label, total) as meter:
        for item in items:
            yield item
            meter.advance()


@contextmanager
def writing(stdout: IO[str]) -> Iterator[None]:
    """What is written to `stdout` inside has left this process at the end. Raises `UserError` where it cannot; a reader that has gone
    away is still a `BrokenPipeError`."""
    try:
        yield
        stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # what is held back would fail once more at the process's end
        raise UserError(f"stdout: cannot be written: {error.strerror or error}") from None


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> None:
    """A table on stdout. The first column is text, the others are figures, aligned right."""
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200).print(_table(columns, rows, title))


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def write_json(value: Any, target: str | Path) -> None:
    """`value` as JSON to a file, or to stdout where `target` is `-`. Raises `UserError` where the file cannot be written."""
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
