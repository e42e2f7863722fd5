"""Listing media files in folders. Each folder is listed once, and no file is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from cover.errors import UserError

if TYPE_CHECKING:  # pyarrow takes its time, and a prediction needs none of it
    from cover.media.source import Media

_VIDEO = ".mp4 .webm .mkv .avi .mov .m4v .mpg .mpeg .wmv .flv .ts .m2ts .mts .3gp .ogv .ogg .vob .asf .gif .y4m .swf"
_IMAGE = ".jpg .jpeg .png .webp .bmp .tif .tiff .ppm .pgm .jp2 .avif .gif"
VIDEO, IMAGE = frozenset(_VIDEO.split()), frozenset(_IMAGE.split())
ENDINGS: dict[Media, frozenset[str]] = {"video": VIDEO, "image": IMAGE}
_PACKED = re.compile(
    r".+\.(tar|tgz|tbz2?|txz|zip|7z|rar|part|crdownload|aria2|filepart|z\d\d)(\.(gz|bz2|xz|zst|part|\d+|[a-z]{2}))*"
    r"|20bn-something-something-v2-\d\d",
    re.IGNORECASE,
)
_LOOKED_INTO = 20  # folders below the one in which archives are looked for
_NAMED = 5


def walk(folder: str | Path, media: Media | None, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of all files of a kind (None: of either kind) under `folder`, by their endings, in sorted order; hidden
    ones and the direct subfolders in `skip` are left out. Nothing if the folder does not exist; raises UserError where
    one cannot be listed.
    """
    endings = ENDINGS[media] if media else VIDEO | IMAGE
    return (path for path in walk_all(folder, skip) if os.path.splitext(path)[1].lower() in endings)


def walk_all(folder: str | Path, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    """As `walk`, whatever the files' endings."""
    for entry in entries(folder):
        if not _is_folder(entry):
            yield entry.path
        elif entry.name not in skip:
            yield from walk_all(entry.path)


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without what is hidden. Empty if it does not exist; raises UserError where
    it cannot be listed, for its samples would vanish unseen.
    """
    try:
        with os.scandir(folder) as listing:
            return sorted((entry for entry in listing if _is_ours(entry)), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: this folder cannot be listed: {error.strerror}; make it readable or move it out of the data"
        ) from None


def _is_ours(entry: os.DirEntry[str]) -> bool:
    # which only root may list, at the top of a disk
    return not entry.name.startswith(".") and entry.name != "lost+found"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: as a file it is found to be unreadable, and counted
        return False


def find_clips(folder: str | Path, names: set[str]) -> dict[str, str]:
    """Name -> path of its video (`<name>.webm`, `.mp4`, ...), or else of the folder of frames called so, wherever they
    lie. A folder of frames is not listed: there may be as many as clips. Raises UserError for a folder that cannot be
    listed.
    """
    videos: dict[str, str] = {}
    frames: dict[str, str] = {}

    def search(folder: str | Path) -> None:
        for entry in entries(folder):
            stem, ending = os.path.splitext(entry.name)
            if not _is_folder(entry):
                if stem in names and ending.lower() in VIDEO:
                    videos.setdefault(stem, entry.path)
            elif entry.name in names:
                frames.setdefault(entry.name, entry.path)
            else:
                search(entry.path)

    search(folder)
    return frames | videos


def subfolders(folder: str | Path) -> list[str]:
    """Names of the folders directly in `folder`, sorted, without hidden ones. Empty if it does not exist; raises
    UserError where it cannot be listed.
    """
    return [entry.name for entry in entries(folder) if _is_folder(entry)]


def unpack_hint(folder: str | Path) -> str:
    """`FOLDER holds a.tar, train/b.zip: ...` where archives or unfinished downloads lie in a folder or in the first 20
    below it, else nothing. For messages, once something is missing; what cannot be listed is passed over.
    """
    match = sorted(name for name in _names_below(folder) if _PACKED.fullmatch(os.path.basename(name)))
    return f"{folder} holds {few(match)}: fetch them whole and unpack them" if match else ""


def _names_below(folder: str | Path) -> Iterator[str]:
    below = (name for name in _names(folder) if os.path.isdir(os.path.join(folder, name)))
    deeper = (
        os.path.join(name, item) for name in islice(below, _LOOKED_INTO) for item in _names(os.path.join(folder, name))
    )
    return chain(_names(folder), deeper)


def _names(folder: str | Path) -> Iterator[str]:
    """Unsorted and unlisted, for there may be a million."""
    with suppress(OSError), os.scandir(folder) as result:
        yield from (entry.name for entry in result if _is_ours(entry))


def few(names: Sequence[str]) -> str:
    """The first names, and how many there are; bytes that are no text are written out."""
    more = f", ... ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(name.encode(errors="backslashreplace").decode() for name in names[:_NAMED]) + more


def is_text(name: str) -> bool:
    """Whether a name on disk is valid UTF-8: else it cannot be written into a manifest."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def media_files(folder: str | Path, media: Media) -> list[str]:
    """Paths of the files of a kind directly in a folder, sorted; as `entries`."""
    return [
        entry.path
        for entry in entries(folder)
        if os.path.splitext(entry.name)[1].lower() in ENDINGS[media] and not _is_folder(entry)
    ]


def media_of(path: str | Path) -> Media | None:
    """What a file is by its ending, None if that does not say. A gif may be either: it is taken for a video."""
    ending = os.path.splitext(path)[1].lower()
    return "video" if ending in VIDEO else "image" if ending in IMAGE else None
