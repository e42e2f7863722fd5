"""Runs of the command line in processes of their own, alone and under torchrun, and what they leave behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Command

PATIENCE = 240  # seconds


@dataclass
class Running:
    """A command that was started."""

    process: Command

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait for something while the command runs."""
        while not ready():
            if self.process.poll() is not None:
                pytest.fail(f"ended too early with {self.process.returncode}:\n{self.process.stderr.read()}")
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


class Ranks:
    """The processes of one run, as a launcher starts them; they end by themselves."""

    def __init__(self, arguments: tuple[Any, ...], count: int) -> None:
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        self.processes = [
            Command(*arguments, env=environment(**shared, RANK=rank, LOCAL_RANK=rank)) for rank in range(count)
        ]

    def ended(self) -> tuple[int, str]:
        """The exit code, 0 if that of each rank is, and what all ranks said."""
        with ThreadPoolExecutor(len(self.processes)) as threads:
            said = list(threads.map(lambda process: process.communicate(PATIENCE)[1], self.processes))
        return max(abs(process.wait()) for process in self.processes), "".join(said)


def environment(**more: object) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in more.items()}}


Launch = Callable[..., Running | Ranks]


@pytest.fixture(scope="session")
def launch() -> Iterator[Launch]:
    """launch("train", recipe, "--out", folder) -> a `Running`.

    `ranks`: start so many processes that train together. `torchrun`: let torchrun start them, with `restarts`, and with
    `script` in place of `cover`.
    """
    started: list[Running | Ranks] = []

    def start(
        *arguments: Any, ranks: int = 0, torchrun: bool = False, restarts: int = 0, script: Path | None = None
    ) -> Running | Ranks:
        if torchrun:
            options = ["--standalone", "--nproc-per-node", ranks, "--max-restarts", restarts]
            program = [script] if script else ["-m", "cover"]
            launcher = Command(*options, *program, *arguments, module="torch.distributed.run", env=environment())
            started.append(Running(launcher))
        elif ranks:
            started.append(Ranks(arguments, ranks))
        else:
            started.append(Running(Command(*arguments, env=environment())))
        return started[-1]

    yield start
    for each in started:
        for process in each.processes if isinstance(each, Ranks) else [each.process]:
            if process.poll() is None:
                for rank in Running(process).ranks():  # they would outlive a torchrun that is killed
                    os.kill(rank, signal.SIGKILL)
                process.kill()
