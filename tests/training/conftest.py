"""Runs of the command line in processes of their own, alone and under torchrun, and what they leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 240  # seconds


@dataclass
class Running:
    """A command that was started."""

    process: subprocess.Popen[str]

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait for something while the command runs."""
        while not ready():
            if self.process.poll() is not None:
                pytest.fail(
                    f"ended too early with "
                    f"{self.process.returncode}:\n{self.process.stderr.read() if self.process.stderr else ''}"
                )
            time.sleep(0.005)

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said

    def ranks(self) -> list[int]:
        """The processes that a torchrun has started, by rank."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        results = {}
        for pid in children.read_text().split():
            settings = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            rank = next((int(value[5:]) for value in settings if value.startswith(b"RANK=")), None)
            if rank is not None:
                results[rank] = int(pid)
        return [results[rank] for rank in sorted(results)]


Launch = Callable[..., Running]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """launch("train", recipe, "--out", folder, ranks=2, restarts=1) -> a `Running`; without `ranks` one plain process.

    `script`: a file to be run in place of `cover`.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: Any, ranks: int = 0, restarts: int = 0, script: Path | None = None, **popen: Any) -> Running:
        command = [sys.executable]
        if ranks:
            command += [
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(ranks),
                "--max-restarts",
                str(restarts),
            ]
        command += [str(script)] if script else ["-m", "cover"]
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            **popen,
        )
        started.append(process)
        return Running(process)

    yield start
    for process in started:
        if process.poll() is None:
            for rank in Running(process).ranks():  # they would outlive a torchrun that is killed
                os.kill(rank, signal.SIGKILL)
            process.kill()
