"""A pool of processes goes on whatever happens to one of them, and leaves none behind."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from cover.errors import UserError
from cover.processes import ProcessPool, WorkerLost, start_method


def double_or_die(number: int) -> int:
    if number < 0:
        os._exit(3)
    return 2 * number


def die_once(marks: Path, number: int) -> int:
    """Killed at the first try of every item, as by a system that is short of memory."""
    try:
        (marks / str(number)).touch(exist_ok=False)
    except FileExistsError:
        return number
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Deadly:
    """What kills its process while it is handed over."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def answer_or_kill(number: int) -> object:
    return Deadly() if number == 1 else number


def whoami(_: object) -> int:
    return os.getpid()


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def refuse(number: int) -> None:
    raise UserError(f"no {number}")


def log_and_double(log: Path, number: int) -> int:
    with log.open("a") as file:
        file.write("x")
    return 2 * number


def dead(pid: int) -> bool:
    """Whether a process has ended with all its threads; one that waits to be collected has."""
    try:
        zombie = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return zombie and len(os.listdir(f"/proc/{pid}/task")) == 1
    except OSError:
        return True


def wait_until(true: Callable[[], bool], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.02)


@pytest.fixture(scope="module", params=[1, 2])
def pool(request: pytest.FixtureRequest) -> Iterator[ProcessPool]:
    with ProcessPool(request.param) as pool:
        yield pool


def test_an_item_that_ends_its_process_costs_itself(pool: ProcessPool) -> None:
    items = [*range(6), -1, *range(6, 12), -2]
    wanted = [1000 + number if number < 0 else 2 * number for number in items]
    assert list(pool.map(double_or_die, items, lambda number: 1000 + number)) == wanted
    chunks = pool.as_completed(double_or_die, items, 4, lambda number: 1000 + number)
    assert sorted(pair for chunk in chunks for pair in chunk) == sorted(zip(items, wanted))
    with pytest.raises(WorkerLost):
        list(pool.map(double_or_die, items))


def test_an_item_whose_process_was_killed_is_tried_again(pool: ProcessPool, tmp_path: Path) -> None:
    for name in ("mapped", "completed"):
        (tmp_path / name).mkdir()
    assert list(pool.map(partial(die_once, tmp_path / "mapped"), range(4), lambda number: -1)) == [0, 1, 2, 3]
    parts = pool.as_completed(partial(die_once, tmp_path / "completed"), range(4), 1, lambda number: -1)
    assert sorted(pair for part in parts for pair in part) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_process_that_dies_while_it_hands_over_its_result_holds_up_no_other(pool: ProcessPool) -> None:
    assert list(pool.map(answer_or_kill, range(6), lambda number: "lost")) == [0, "lost", 2, 3, 4, 5]


def test_a_process_that_dies_with_nothing_to_do_costs_nothing() -> None:
    with ProcessPool(1) as pool:
        (pid,) = pool.map(whoami, [0])
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: dead(pid))
        (other,) = pool.map(whoami, [0])
        assert (other != pid, pool.replaced) == (True, 1)


def test_what_the_work_raises_comes_back(pool: ProcessPool) -> None:
    with pytest.raises(UserError, match="no 5") as caught:
        list(pool.map(refuse, [5]))
    assert "in refuse" in "".join(caught.value.__notes__)
    assert list(pool.map(double_or_die, [1])) == [2]


def test_no_more_is_read_ahead_than_twice_the_processes(tmp_path: Path) -> None:
    chosen: list[int] = []

    def items() -> Iterator[int]:
        for number in range(50):
            chosen.append(number)
            yield number

    with ProcessPool(2) as pool:
        results = pool.map(double_or_die, items())
        assert [next(results) for _ in range(3)] == [0, 2, 4]
        assert len(chosen) <= 3 + 2 * 2
        assert list(results) == [2 * number for number in range(3, 50)]


def test_without_processes_all_is_done_here(tmp_path: Path) -> None:
    with ProcessPool(0) as pool:
        results = pool.map(partial(log_and_double, tmp_path / "log"), [1, 2, 3])
        assert next(results) == 2
        assert (tmp_path / "log").read_text() == "x"  # and nothing ahead
        assert list(pool.as_completed(whoami, ["a", "b"], 2)) == [[("a", os.getpid()), ("b", os.getpid())]]


def test_an_item_that_takes_too_long_is_ended_alone() -> None:
    with ProcessPool(2) as pool, ThreadPoolExecutor(1) as other:
        hung = other.submit(pool.call, sleep, 60.0, 0.5)
        assert pool.call(sleep, 0.01, 30) == 0.01
        with pytest.raises(WorkerLost, match=r"longer than 0.5 s"):
            hung.result(timeout=30)
        assert pool.replaced == 1
        assert pool.call(sleep, 0.01, 30) == 0.01


def test_who_waits_for_a_free_process_waits_until_the_deadline() -> None:
    with ProcessPool(1) as pool:
        pool.start()
        with ThreadPoolExecutor(1) as other:
            other.submit(pool.call, sleep, 60.0)
            wait_until(pool._idle.empty)
            with pytest.raises(queue.Empty):
                pool.call(sleep, 0.0, deadline=time.monotonic() + 0.1)
            pool.close()


def test_a_pool_ends_at_once_with_all_its_processes() -> None:
    with ProcessPool(2) as pool:
        pool.start()
        processes = [worker._process for worker in pool._all]
        results = pool.map(sleep, [60.0, 60.0, 60.0])
        threading.Timer(0.5, pool.close).start()
        began = time.monotonic()
        with pytest.raises(BaseException):  # noqa: B017  # a cancelled or a lost one
            next(results)
        assert time.monotonic() - began < 10
    assert not any(process.is_alive() for process in processes)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no server of forks")
def test_new_processes_come_from_one_that_has_imported_what_they_need() -> None:
    start_method("cover.media.decode")
    with ProcessPool(1, preload="cover.media.decode") as pool:
        (pid,) = pool.map(whoami, [0])
        assert pid != os.getpid()
        assert list(pool.map(double_or_die, [1, -1, 2], lambda number: 0)) == [2, 0, 4]


SCRIPT = """
import os, sys, time
from cover.processes import ProcessPool
from tests.test_processes import sleep, whoami
if __name__ == "__main__":
    with ProcessPool(2, preload=PRELOAD) as pool:
        pool.start()
        print(*[worker._process.pid for worker in pool._all], flush=True)
        list(pool.map(sleep, [60.0] * 9))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked at in /proc")
@pytest.mark.parametrize("preload", [None, "cover.media.decode"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_command_that_is_ended(
    tmp_path: Path, number: signal.Signals, preload: str | None
) -> None:
    """Ctrl-C reaches every process of the terminal; a kill reaches the command alone."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("PRELOAD", repr(preload)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as started:
        assert started.stdout
        workers = list(map(int, started.stdout.readline().split()))
        assert len(workers) == 2
        time.sleep(0.3)
        if number == signal.SIGINT:
            os.killpg(started.pid, number)
        else:
            started.kill()
        _, err = started.communicate(timeout=20)
    wait_until(lambda: all(map(dead, workers)))
    # the command's own KeyboardInterrupt, and no worker's
    assert err.count("Traceback") == (number == signal.SIGINT), err
