"""A probe cache gives back what was written whole, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cover.datasets.probe import Facts
from cover.datasets.probe_cache import ProbeCache, ProbedFile, cache_path, caches, read_cache
from cover.errors import UserError

ENTRIES = [
    ProbedFile(
        "/videos/gøød, \u2028one.mp4",
        (10, 1_700_000_000_123_456_789),
        Facts("ok", "", 20, 30000 / 1001, 64, 48, "h264"),
    ),
    ProbedFile("/videos/damaged.mp4", (11, 5), Facts("ok", "", 2, 10.0, 64, 48, "vp9", True, "damage, 2 of 9 frames")),
    ProbedFile("/videos/text.mp4", (12, -5), Facts("unreadable", 'not a video: "quoted"\nand more')),
]


def write(file: Path, entries: list[ProbedFile], forced: bool = False) -> None:
    with ProbeCache(file, "video", forced) as cache:
        cache.add(entries)


def test_entries_come_back(tmp_path: Path) -> None:
    file = cache_path(tmp_path, "mine")
    write(file, ENTRIES[:1])
    write(file, ENTRIES[1:])
    assert list(read_cache(file, "video")) == ENTRIES
    assert list(read_cache(file, "image")) == []
    write(file, ENTRIES[:1], forced=True)
    assert list(read_cache(file, "video")) == ENTRIES[:1]


def test_nothing_is_written_without_an_entry(tmp_path: Path) -> None:
    with ProbeCache(tmp_path / "none.jsonl", "video", forced=True):
        pass
    assert not (tmp_path / "none.jsonl").exists()


def test_every_torn_end_costs_one_entry(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    write(whole, ENTRIES)
    data = whole.read_bytes()
    begin = data.rindex(b"\n", 0, -1) + 1  # of the last entry
    for end in range(begin, len(data) - 1):
        torn.write_bytes(data[:end])
        assert list(read_cache(torn, "video")) == ENTRIES[:2]
        write(torn, ENTRIES[2:])
        assert list(read_cache(torn, "video")) == ENTRIES


def test_what_a_dead_machine_leaves_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "cache"
    write(file, ENTRIES)
    with file.open("ab") as cache:
        cache.write(
            b'\0\0\0\0\n\xff\xfe\n[2, "video", "/a", 1]\n[1, "video", "/a", 1, '
            b'2, ["ok"]]\n17\n[2, "video", "/a", 1, 2, 3]\n'
        )
    write(file, ENTRIES[:1])
    assert list(read_cache(file, "video")) == [*ENTRIES, ENTRIES[0]]


def test_journals_of_one_data_set(tmp_path: Path) -> None:
    for name, who in (("mine", "all"), ("mine", "1-of-2"), ("mine-too", "all"), ("min", "all")):
        write(cache_path(tmp_path, name, who), ENTRIES)
    assert [file.name for file in caches(tmp_path, "mine")] == [".mine.found.1-of-2.jsonl", ".mine.found.all.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk_is_told(tmp_path: Path) -> None:
    file = cache_path(tmp_path, "mine")
    file.symlink_to("/dev/full")
    with pytest.raises(
        UserError, match=r"\.mine\.found\.all\.jsonl: cannot be written: No space left on device; run .* again"
    ):
        write(file, ENTRIES)
