"""Limits of containers: recorded control groups of both versions, and a real one where this machine allows it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cover.containers import allowed_cores, cores_are_shared, cpu_quota, memory_limit

REAL = Path("/sys/fs/cgroup/cpu")  # version 1


def write_tree(folder: Path, files: dict[str, str], own: str) -> tuple[Path, Path]:
    """The files of control groups below `folder`, and the list of the groups of this process."""
    (folder / "groups").mkdir()
    for name, text in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "own").write_text(own)
    return folder / "groups", folder / "own"


@pytest.mark.parametrize(
    ("files", "own", "quota", "memory"),
    [
        # docker with a name space of its own: the group is the root
        ({"cpu.max": "150000 100000\n", "memory.max": "2147483648\n"}, "0::/\n", 1.5, 2 << 30),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, "0::/\n", None, None),
        # a Kubernetes pod: the limit of the group above is the smaller one
        (
            {
                "pod/cpu.max": "200000 100000",
                "pod/one/cpu.max": "400000 100000",
                "pod/one/memory.max": "max",
                "pod/memory.max": "1000000000",
            },
            "0::/pod/one\n",
            2.0,
            1_000_000_000,
        ),
        # version 1, with two controllers in one tree and its number for no limit
        (
            {
                "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000",
                "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
                "memory/docker/abc/memory.limit_in_bytes": "536870912",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
            0.5,
            512 << 20,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "2:cpu:/\n0::/\n", None, None),
        # the path of the host, which a container does not see: its own group is the root of what it sees
        (
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            "2:cpu:/kubepods/pod1/abc\n",
            3.0,
            None,
        ),
        ({}, "0::/\n", None, None),
    ],
    ids=["docker", "no limit", "pod", "version 1", "version 1, no limit", "host path", "empty"],
)
def test_recorded_groups(
    tmp_path: Path, files: dict[str, str], own: str, quota: float | None, memory: int | None
) -> None:
    tree = write_tree(tmp_path, files, own)
    assert cpu_quota(*tree) == quota
    assert memory_limit(*tree) == memory


def test_another_system(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") is None
    assert memory_limit(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("running", "shared"),
    [("1/200", False), (f"{1 + (os.cpu_count() or 1)}/200", True), ("no number", False)],
    ids=["this process alone", "one more for each core", "another format"],
)
def test_other_processes_that_run(running: str, shared: bool, tmp_path: Path) -> None:
    (tmp_path / "loadavg").write_text(f"0.50 0.40 0.30 {running} 4711\n")
    assert cores_are_shared(tmp_path / "loadavg") is shared
    assert not cores_are_shared(tmp_path / "absent")


def test_at_least_one_core_and_no_more_than_there_are(tmp_path: Path) -> None:
    present = allowed_cores(tmp_path, tmp_path / "none")
    (tmp_path / "half").mkdir()
    assert allowed_cores(*write_tree(tmp_path / "half", {"cpu.max": "50000 100000"}, "0::/\n")) == 1
    (tmp_path / "many").mkdir()
    assert allowed_cores(*write_tree(tmp_path / "many", {"cpu.max": "6400000 100000"}, "0::/\n")) == present


@pytest.fixture
def one_core() -> Iterator[Path]:
    """A real control group with a quota of one core."""
    group = REAL / f"cover_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    yield group
    group.rmdir()


def test_torch_starts_as_many_threads_as_the_container_has_cores(one_core: Path) -> None:
    code = (
        "import os\n"
        f"try:\n  with open({str(one_core / 'cgroup.procs')!r}, 'w') as file: file.write(str(os.getpid()))\n"
        "except OSError as error: raise SystemExit(f'cannot be moved: {error}')\n"
        f"if {one_core.name!r} not in open('/proc/self/cgroup').read(): raise SystemExit('moved back')\n"
        "import cover, torch\nfrom cover.machine import default_workers\n"
        "print(torch.get_num_threads(), default_workers())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if "cannot be moved" in done.stderr or "moved back" in done.stderr:
        pytest.skip(f"this machine keeps processes out of a new control group: {done.stderr.strip()}")
    assert done.stdout.split() == ["1", "1"], done.stderr
