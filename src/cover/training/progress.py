"""The progress of a run on the terminal: one block that is redrawn in place, elsewhere one plain line per window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cover.console import LiveTable

COLUMNS = ("", "loss", "top-1", "epochs")
GIGA = 1e9
PHASE_NAMES = {
    "start": "starting",
    "data": "waiting for data",
    "compute": "compute",
    "communication": "communication",
    "evaluation": "evaluation on dev",
    "checkpoint": "writing checkpoints",
}
MIN_SHOWN = 0.01  # of the time


class ProgressView:
    """Shows lines of the log. `names`: the data sets; one without a sample in a window keeps its last figures."""

    def __init__(self, label: str, steps: int, first: int, names: Iterable[str]) -> None:
        self._board, self._steps = LiveTable(label, steps, first), steps
        self._loss: dict[str, str] = dict.fromkeys(names, "-")
        self._hits = dict(self._loss)

    def __enter__(self) -> ProgressView:
        self._board.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._board.__exit__(*error)

    def advance(self) -> None:
        """Count one more step."""
        self._board.advance()

    def show(self, line: dict[str, Any]) -> None:
        """Show a train line of the log."""
        self._loss |= {name: _number_text(loss, ".3f") for name, loss in line["loss"].items()}
        self._hits |= {name: f"{hits:.1%}" for name, hits in {**line["top1"], **line.get("hit1", {})}.items()}
        rows = [[name, loss, self._hits[name], f"{line['epochs'][name]:.2f}"] for name, loss in self._loss.items()]
        self._board.show(
            COLUMNS, rows, [throughput_text(line), f"time: {time_line(line['shares'])}"], self._plain(line)
        )

    def _plain(self, line: dict[str, Any]) -> str:
        sets = "  ".join(f"{name} {loss} {self._hits[name]}" for name, loss in self._loss.items())
        place = f"{line['step']:>{len(str(self._steps))}}/{self._steps}"
        left, loss = self._board.left(line["step"]), _number_text(line["step_loss"], ".3f")
        waiting = f"waiting for data {line['wait_share']:.0%}"
        return f"step {place}  left {left:>7}  loss {loss}  {sets}  {throughput_text(line)}  {waiting}"


def throughput_text(line: dict[str, Any]) -> str:
    """Learning rate, gradient, speed and memory of a train line, and how many of its draws were of damaged files."""
    peak = "" if line["mfu"] is None else f"  MFU {line['mfu']:.0%}"
    rate, memory = line["samples_per_s"], line["memory_bytes"] / GIGA
    damaged = f"  {line['files_damaged']} damaged" if "files_damaged" in line else ""
    gradient = _number_text(line["grad_norm"], ".2f")
    return f"lr {line['lr']:.2e}  gradient {gradient}  {rate:.4g} samples/s{peak}  {memory:.1f} GB{damaged}"


def time_line(fractions: Mapping[str, float]) -> str:
    """Where the time went, the largest fraction first; phases below 1 % are left out."""
    largest = sorted(fractions.items(), key=lambda item: -item[1])
    return ", ".join(f"{PHASE_NAMES[phase]} {share:.0%}" for phase, share in largest if share >= MIN_SHOWN)


def _number_text(value: float | None, how: str) -> str:
    return "not finite" if value is None else format(value, how)
