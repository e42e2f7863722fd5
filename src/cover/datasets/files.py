"""Which files lie in a folder, and which of them are videos or images? Each folder is listed once; no file is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cover.datasets.manifest import Media

_VIDEO = ".mp4 .webm .mkv .avi .mov .m4v .mpg .mpeg .wmv .flv .ts .m2ts .mts .3gp .ogv .ogg .vob .asf .gif .y4m"
_IMAGE = ".jpg .jpeg .png .webp .bmp .tif .tiff .ppm .pgm .jp2 .avif .gif"
VIDEO, IMAGE = frozenset(_VIDEO.split()), frozenset(_IMAGE.split())
ENDINGS: dict[Media, frozenset[str]] = {"video": VIDEO, "image": IMAGE}


def walk(folder: str | Path, media: Media | None, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of all files of a kind (None: of either kind) under `folder`, by their endings, in sorted order; hidden ones and the
    direct subfolders in `skip` are left out. Nothing if the folder does not exist."""
    endings = ENDINGS[media] if media else VIDEO | IMAGE
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name not in skip:
                yield from walk(entry.path, media)
        elif os.path.splitext(entry.name)[1].lower() in endings:
            yield entry.path


def subfolders(folder: str | Path) -> list[str]:
    """Names of the folders directly in `folder`, sorted, without hidden ones. Empty if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def media_of(path: str | Path) -> Media | None:
    """What a file is by its ending, None if that does not say. A gif may be either: it is taken for a video."""
    ending = os.path.splitext(path)[1].lower()
    return "video" if ending in VIDEO else "image" if ending in IMAGE else None
