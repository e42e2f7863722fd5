"""Media files in folders: listing them, and their kind by ending. No file is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from cover.errors import UserError

if TYPE_CHECKING:  # the import of pyarrow is slow, and a prediction does not need it
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
_SEARCHED = 20  # subfolders in which `unpack_hint` searches for archives
_NAMED = 5  # names in a message


def walk(folder: str | Path, media: Media | None, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of all media files under `folder`, chosen by ending, in sorted order.

    `media` None: videos and images. Hidden files and the direct subfolders in `skip` are left out. A folder that does
    not exist gives nothing. Raises UserError if a folder cannot be listed.
    """
    endings = ENDINGS[media] if media else VIDEO | IMAGE
    return (path for path in walk_all(folder, skip) if os.path.splitext(path)[1].lower() in endings)


def walk_all(folder: str | Path, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    """`walk` for files with any ending."""
    for entry in entries(folder):
        if not _is_folder(entry):
            yield entry.path
        elif entry.name not in skip:
            yield from walk_all(entry.path)


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name, without hidden ones. Empty if the folder does not exist.

    Raises UserError if the folder cannot be listed: without the error its samples would be missing unnoticed.
    """
    try:
        with os.scandir(folder) as listing:
            return sorted((entry for entry in listing if _is_visible(entry)), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(
            f"{folder}: this folder cannot be listed: {error.strerror}; make it readable or move it out of the data"
        ) from None


def _is_visible(entry: os.DirEntry[str]) -> bool:
    # `lost+found` is at the top of a disk, and only root can list it
    return not entry.name.startswith(".") and entry.name != "lost+found"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; as a file it is later counted as unreadable
        return False


def find_clips(folder: str | Path, names: set[str]) -> dict[str, str]:
    """Name -> path of its video (`<name>.webm`, `.mp4`, ...) or of its folder of frames, anywhere under `folder`.

    A video comes before a folder of frames. Folders of frames are not listed, because there may be one per clip. Raises
    UserError if a folder cannot be listed.
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
    """Sorted names of the folders directly in `folder`, without hidden ones. Empty if `folder` does not exist.

    Raises UserError if it cannot be listed.
    """
    return [entry.name for entry in entries(folder) if _is_folder(entry)]


def unpack_hint(folder: str | Path) -> str:
    """A hint for messages about missing files: `FOLDER holds a.tar, train/b.zip: ...`. Empty if there is no archive.

    It names archives and unfinished downloads in a folder and in its first 20 subfolders. Folders that cannot be listed
    are ignored.
    """
    archives = sorted(name for name in _names_below(folder) if _PACKED.fullmatch(os.path.basename(name)))
    return f"{folder} holds {few(archives)}: fetch them whole and unpack them" if archives else ""


def _names_below(folder: str | Path) -> Iterator[str]:
    """The names in a folder, and `SUBFOLDER/NAME` in its first subfolders."""
    subfolders = (name for name in _names(folder) if os.path.isdir(os.path.join(folder, name)))
    first = islice(subfolders, _SEARCHED)
    return chain(_names(folder), (os.path.join(name, item) for name in first for item in _names(f"{folder}/{name}")))


def _names(folder: str | Path) -> Iterator[str]:
    """The names in a folder, one by one and unsorted, because there may be a million."""
    with suppress(OSError), os.scandir(folder) as listing:
        yield from (entry.name for entry in listing if _is_visible(entry))


def few(names: Sequence[str]) -> str:
    """The first names as text, and the number of all. Bytes that are not UTF-8 are escaped."""
    more = f", ... ({len(names)} in all)" if len(names) > _NAMED else ""
    return ", ".join(name.encode(errors="backslashreplace").decode() for name in names[:_NAMED]) + more


def is_text(name: str) -> bool:
    """Whether a name on disk is valid UTF-8. A manifest cannot store other names."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def media_files(folder: str | Path, media: Media) -> list[str]:
    """Sorted paths of the files of one kind directly in a folder. Raises UserError as `entries`."""
    return [
        entry.path
        for entry in entries(folder)
        if os.path.splitext(entry.name)[1].lower() in ENDINGS[media] and not _is_folder(entry)
    ]


def media_of(path: str | Path) -> Media | None:
    """The kind of a file by its ending, None for other endings. A gif counts as a video."""
    ending = os.path.splitext(path)[1].lower()
    return "video" if ending in VIDEO else "image" if ending in IMAGE else None
