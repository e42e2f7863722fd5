"""Workers end with the command that started them, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cover.containers import allowed_cores
from cover.machine import default_workers


def test_there_is_at_least_one_worker() -> None:
    assert 1 <= default_workers() <= 16


def test_a_killed_command_leaves_no_worker_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cover", "sandbox", str(tmp_path / "box"), "--size", "0.3", "--workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while not any((tmp_path / "box").rglob("*.mp4")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=60)  # ends only when no worker holds the other end of these pipes
    assert process.returncode < 0


def test_memory_is_reused_where_the_c_library_can() -> None:
    code = "import platform, cover.machine as m; print(m.reuse_memory() or platform.libc_ver()[0] != 'glibc')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


LAUNCHER = """
import subprocess, sys, time
rank = (
    "from cover.machine import end_with_launcher; import time; "
    "end_with_launcher(); print('up', flush=True); time.sleep(600)"
)
subprocess.Popen([sys.executable, "-c", rank])
time.sleep(600)
"""


def test_a_rank_ends_with_its_launcher() -> None:
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate(timeout=60)  # ends only when the rank does not hold the pipe
    assert process.returncode < 0


@pytest.mark.parametrize(
    ("given", "first", "wanted"),
    [
        ({}, "", "100 1000"),  # the first beside other work, such as other tests
        ({"GOMP_SPINCOUNT": "7"}, "", "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "", None),
        ({}, "torch", None),
    ],
    ids=["default", "chosen", "other variable", "torch first"],
)
def test_threads_wait_briefly_unless_the_user_chose(given: dict[str, str], first: str, wanted: str | None) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    code = f"import os{', ' + first if first else ''}; import cover; print(os.environ.get('GOMP_SPINCOUNT'))"
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() in str(wanted).split()


@pytest.mark.skipif(
    sys.platform != "linux" or allowed_cores() < (os.cpu_count() or 1), reason="other cores are left for other work"
)
def test_threads_wait_for_a_shorter_time_beside_a_busy_process() -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    code = "import os, cover; print(os.environ['GOMP_SPINCOUNT'])"
    # One process, not one for each core: they can keep this one from running for minutes.
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            time.sleep(0.2)
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        finally:
            busy.kill()
    assert done.stdout.strip() == "100"
