"""Tar shards that hold many small samples, each readable at once; members are named as WebDataset names them.

`KEY.mp4` or `KEY.jpg` is followed by `KEY.cls`, its label in digits, or `KEY.json`, `{"labels": [...]}`, where a sample
has any number of them; neither where it is not labelled. The same members give the same bytes: no times, no owners.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from cover.media.source import ByteRange

_MAX_NAME = 60  # of a sample id inside a key: a name of the oldest tar format holds 100 bytes


@dataclass(frozen=True)
class ShardEntry:
    """A sample to be put into a shard: its `ending` (".mp4"), the file with its picture or the stretch of an older
    shard, and what is known of its class.
    """

    key: str
    ending: str
    source: Path | ByteRange
    label: int | None
    labels: Sequence[int] | None

    @property
    def name(self) -> str:
        return self.key + self.ending


def key_of(sample_id: str, *further: object) -> str:
    """A name for a sample that is safe in tars, URLs and on any disk: no dots, and the same only for the same
    arguments.
    """
    digest = sha256(json.dumps([sample_id, *further]).encode()).hexdigest()[:10]
    return f"{re.sub('[^A-Za-z0-9_-]+', '_', sample_id)[:_MAX_NAME]}-{digest}"


def write_shard(stem: Path, members: Sequence[ShardEntry], beside: Path) -> tuple[Path, list[tuple[int, int]]]:
    """Write a tar `STEM-DIGEST.tar`; give its path and `(offset, length)` of each member's file in it, in bytes.

    It is written as `beside`, read again, and renamed: a path is never half a shard. The digest is that of its bytes,
    so a path never comes to mean another shard either, for whoever still holds the offsets of an older one. Raises
    OSError, also where what is read again is not what was written.
    """
    for folder in (stem.parent, beside.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with beside.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for member in members:
                _add_file(tar, member)
                _add_label(tar, member)
        file.flush()
        os.fsync(file.fileno())
    places = _places(beside)
    if [name for name in places if not name.endswith((".cls", ".json"))] != [member.name for member in members]:
        raise OSError(f"{beside}: what was written is not what is read; is the disk sound?")
    path = stem.with_name(f"{stem.name}-{_digest(beside)}.tar")
    beside.replace(path)
    return path, [places[member.name] for member in members]


def _add_file(tar: tarfile.TarFile, member: ShardEntry) -> None:
    with open(member.source, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if isinstance(member.source, ByteRange):
            file.seek(member.source.offset)
            size = member.source.length
        tar.addfile(_info(member.name, size), file)


def _add_label(tar: tarfile.TarFile, member: ShardEntry) -> None:
    if member.labels is not None:
        text, ending = json.dumps({"labels": list(member.labels)}), ".json"
    elif member.label is not None:
        text, ending = str(member.label), ".cls"
    else:
        return
    tar.addfile(_info(member.key + ending, len(text)), io.BytesIO(text.encode()))


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> offset and length of every member."""
    with tarfile.open(path) as tar:
        return {info.name: (info.offset_data, info.size) for info in tar}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:16]
