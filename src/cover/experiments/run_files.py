"""Files of a run: reading of its log, and reading and writing of its result file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cover.console import write_json
from cover.errors import UserError


@dataclass(frozen=True)
class RunHistory:
    """The train and dev lines of a run's log, in the order of the file.

    `problem`: why some or all lines could not be read; empty if there is no problem.
    """

    train: list[dict[str, Any]] = field(default_factory=list)
    dev: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""

    def sets(self) -> list[str]:
        """The data sets of the run, in the order of the log."""
        return list(dict.fromkeys(name for line in self.train for name in _part(line, "loss")))

    def last(self) -> dict[str, Any]:
        """The last train line; empty if there is none."""
        return self.train[-1] if self.train else {}

    def losses(self, name: str) -> list[tuple[float, float]]:
        """Points (samples of this data set so far, loss) of every logged step with such samples."""
        points = ((_part(line, "seen").get(name), _part(line, "loss").get(name)) for line in self.train)
        return list(_finite(points))

    def dev_top1(self, name: str) -> list[tuple[float, float]]:
        """Points (samples of this data set so far, top-1 on `dev`, 0 to 1) of every evaluation during training."""
        samples = {line.get("step"): _part(line, "seen").get(name) for line in self.train}
        points = [
            (samples.get(line.get("step")), _part(_part(line, "datasets"), name).get("top1")) for line in self.dev
        ]
        return list(_finite(points))

    def largest_rate_gap(self) -> float | None:
        """The largest difference between wanted and realised rate of a data set, at the last logged step."""
        wanted, realised = _part(self.last(), "rate_wanted"), _part(self.last(), "rate_realised")
        gaps = [abs(x - y) for x, y in _finite((wanted.get(name), realised.get(name)) for name in wanted)]
        return max(gaps, default=None)

    def median(self, key: str) -> float | None:
        """The median of a value over all train lines."""
        values = sorted(y for _, y in _finite((0, line.get(key)) for line in self.train))
        return values[len(values) // 2] if values else None


def read_log(path: Path) -> RunHistory:
    """Read a log. Lines that are not JSON, as a killed process may leave one, are left out.

    A missing file gives an empty log.
    """
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return RunHistory(problem=f"{Path(path).name}: {error.strerror or 'not readable'}")
    events: dict[str, list[dict[str, Any]]] = {"train": [], "dev": []}
    torn = 0
    for line in filter(str.strip, text.split("\n")):
        entry = _parsed(line)
        torn += entry is None
        if entry and entry.get("event") in events:
            events[entry["event"]].append(entry)
    problem = f"{torn} unreadable line{'s' * (torn > 1)} left out" if torn else ""
    return RunHistory(events["train"], events["dev"], problem)


def read_result(path: Path) -> dict[str, Any] | None:
    """The JSON object in a result file; None if there is no file. Raises `UserError` if the file is damaged."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, and it will be written again") from None
    return result


def write_result(value: dict[str, Any], path: Path) -> None:
    """Write a result file. It has another name until it is complete. Raises `UserError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write_json(value, temporary)
    temporary.replace(path)


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _part(line: dict[str, Any], key: str) -> dict[str, Any]:
    part = line.get(key)
    return part if isinstance(part, dict) else {}


def _finite(points: Iterable[tuple[Any, Any]]) -> Iterator[tuple[float, float]]:
    for x, y in points:
        if isinstance(x, int | float) and isinstance(y, int | float) and math.isfinite(x) and math.isfinite(y):
            yield x, y
