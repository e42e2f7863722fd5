"""Which files are meant? Files, folders, patterns and URLs from the command line, and lists of them on stdin."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from cover.datasets.files import walk
from cover.errors import UserError
from cover.media.source import is_url


def find_inputs(names: Iterable[str], listed: BinaryIO) -> list[str]:
    """Every file that `names` mean, each once, in their order.

    A folder means all videos and images below it, in sorted order; a pattern (`*`, `?`, `[...]`, `**`) the files that match, unless a
    file is called so; `-` the lines of `listed`, read alike. A file that does not exist is kept: it gets its row with the reason, and so
    does a name with brackets alone that matches nothing, as files are called by what downloads them (`title [id].mp4`).
    Raises `UserError` for a folder without videos and images, and where nothing is meant at all.
    """
    found = list(dict.fromkeys(path for name in _spread(names, listed) for path in _expand(name)))
    if not found:
        raise UserError("no files are given: name files, folders or patterns, or - for a list on stdin")
    return found


def _spread(names: Iterable[str], listed: BinaryIO) -> Iterator[str]:
    for name in names:
        if name == "-":
            yield from (os.fsdecode(line) for line in listed.read().splitlines() if line.strip())
        else:
            yield name


def _expand(name: str) -> list[str]:
    if is_url(name) or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        inside = list(walk(name, None))
        if not inside:
            raise UserError(f"{name}: there is no video or image in this folder, by their endings; name the files to have them read anyway")
        return inside
    if glob.has_magic(name):
        matching = sorted(path for path in glob.glob(name, recursive=True) if not os.path.isdir(path))
        if not matching and ("*" in name or "?" in name):
            raise UserError(f"{name}: no file matches")
        return matching or [name]
    return [name]
