"""Tar shards with many small samples. Members are named as in WebDataset, and each can be read by its byte range.

`KEY.mp4` or `KEY.jpg` is followed by its label: `KEY.cls` with one number, or `KEY.json` with `{"labels": [...]}` for a
multi-label sample. A sample without a label has neither. The same members give the same bytes, because times and owners
are not stored.
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

_MAX_NAME = 60  # characters of the sample id in a key; names in the oldest tar format have at most 100 bytes


@dataclass(frozen=True)
class ShardEntry:
    """A sample to put into a shard.

    `ending`: such as ".mp4". `source`: the media file, or a byte range of an older shard. `label`, `labels`: as in
    `manifest.Row`.
    """

    key: str
    ending: str
    source: Path | ByteRange
    label: int | None
    labels: Sequence[int] | None

    @property
    def name(self) -> str:
        """The name of the media member."""
        return self.key + self.ending


def key_of(sample_id: str, *further: object) -> str:
    """A name for a sample that is valid in tars, in URLs and on any disk. Other arguments give another name.

    It has no dots, because WebDataset splits names at the first dot.
    """
    digest = sha256(json.dumps([sample_id, *further]).encode()).hexdigest()[:10]
    return f"{re.sub('[^A-Za-z0-9_-]+', '_', sample_id)[:_MAX_NAME]}-{digest}"


def write_shard(stem: Path, members: Sequence[ShardEntry], beside: Path) -> tuple[Path, list[tuple[int, int]]]:
    """Write the shard `STEM-DIGEST.tar`. Returns its path and the `(offset, length)` of each media member, in bytes.

    The file is written as `beside`, read again and renamed, so a shard is never incomplete. DIGEST is a hash of its
    bytes, so other content gets another path, and offsets into an older shard stay valid. Raises OSError, also if the
    data read again differ from the data written.
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
    """Name -> (offset, length) of every member, in bytes."""
    with tarfile.open(path) as tar:
        return {info.name: (info.offset_data, info.size) for info in tar}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()[:16]
