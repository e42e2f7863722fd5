"""What of a run is shown while it runs? One calm block on a terminal, else one plain line per window."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cover.console import LiveTable, say
from cover.training.verdict import Verdict

COLUMNS = ("", "loss", "top-1", "epochs")
GIGA = 1e9


class LiveView:
    """Shows lines of the log. `names`: the data sets; one that a window held no sample of keeps the figures it had."""

    def __init__(self, label: str, steps: int, first: int, names: Iterable[str]) -> None:
        self._board, self._steps = LiveTable(label, steps, first), steps
        self._loss: dict[str, str] = dict.fromkeys(names, "-")
        self._hits = dict(self._loss)
        self._limit = ""

    def __enter__(self) -> LiveView:
        self._board.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._board.__exit__(*error)

    def advance(self) -> None:
        """Count one more step."""
        self._board.advance()

    def show(self, line: dict[str, Any], verdict: Verdict) -> None:
        """A train line and what to think of it; among plain lines the verdict is repeated only when it is another."""
        self._loss |= {name: _figure(loss, ".3f") for name, loss in line["loss"].items()}
        self._hits |= {name: f"{hits:.1%}" for name, hits in {**line["top1"], **line.get("hit1", {})}.items()}
        rows = [[name, loss, self._hits[name], f"{line['epochs'][name]:.2f}"] for name, loss in self._loss.items()]
        self._board.show(COLUMNS, rows, [pace(line), verdict.text], self._plain(line))
        if verdict.limit != self._limit and not self._board.live:
            say(verdict.text)
        self._limit = verdict.limit

    def _plain(self, line: dict[str, Any]) -> str:
        sets = "  ".join(f"{name} {loss} {self._hits[name]}" for name, loss in self._loss.items())
        place = f"{line['step']:>{len(str(self._steps))}}/{self._steps}"
        return f"step {place}  left {self._board.left(line['step']):>7}  loss {_figure(line['step_loss'], '.3f')}  {sets}  {pace(line)}"


def pace(line: dict[str, Any]) -> str:
    """Learning rate, gradient, speed and memory of a train line, and how many of its draws were of damaged files."""
    peak = "" if line["mfu"] is None else f"  MFU {line['mfu']:.0%}"
    rate, memory = line["samples_per_s"], line["memory_bytes"] / GIGA
    damaged = f"  {line['files_damaged']} damaged" if "files_damaged" in line else ""
    return f"lr {line['lr']:.2e}  gradient {_figure(line['grad_norm'], '.2f')}  {rate:.4g} samples/s{peak}  {memory:.1f} GB{damaged}"


def _figure(value: float | None, how: str) -> str:
    return "not finite" if value is None else format(value, how)
