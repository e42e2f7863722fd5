"""Media files in folders: listing them, and their kind by ending. No file is opened.

Links to folders are followed, but every real folder is listed once: see `FolderLinks`.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from cover.errors import UserError
from cover.media.source import PICTURES

if TYPE_CHECKING:  # the import of pyarrow is slow, and a prediction does not need it
    from cover.media.source import Media

_VIDEO = ".mp4 .webm .mkv .avi .mov .m4v .mpg .mpeg .wmv .flv .ts .m2ts .mts .3gp .ogv .ogg .vob .asf .gif .y4m .swf"
_VIDEO += " .3g2 .divx .dv .f4v .m2t .mxf .qt .rm .264 .265 .h264 .h265 .hevc .ivf .m1v .m2v .mjpeg .mjpg"
VIDEO, IMAGE = frozenset(_VIDEO.split()), PICTURES | {".gif"}
ENDINGS: dict[Media, frozenset[str]] = {"video": VIDEO, "image": IMAGE}
_PACKED = re.compile(
    r".+\.(tar|tgz|tbz2?|txz|zip|7z|rar|part|crdownload|aria2|filepart|z\d\d)(\.(gz|bz2|xz|zst|part|\d+|[a-z]{2}))*"
    r"|20bn-something-something-v2-\d\d",
    re.IGNORECASE,
)
# Folders that operating systems and storage devices add: to an archive, a disk or a share. None holds samples.
_OF_SYSTEMS = frozenset(
    (
        "__MACOSX",
        "lost+found",
        "@eaDir",
        "@__thumb",
        "#recycle",
        "@Recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
    )
)
_SEARCHED = 20  # subfolders in which `unpack_hint` searches for archives
_NAMED = 5  # names in a message


class FolderLinks:
    """Decides which folders the walk through `top` enters, so that it enters every real folder once and ends.

    A link is not followed into `top` itself, because its folders are found under their own names, nor to a folder above
    the link. `left_out`: the links that were not followed, and folders that were found through an earlier link.
    """

    def __init__(self, top: str | Path) -> None:
        self.left_out: list[str] = []
        self._top = os.path.realpath(top)
        self._entered: set[tuple[int, int] | str] = set()

    def folders(self, found: Sequence[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
        """The folders to enter among the entries of a folder, in their order. A real folder comes before a link to it.

        A folder in the result counts as entered.
        """
        inside = [entry for entry in found if _is_folder(entry)]
        entered = {entry.path for entry in sorted(inside, key=lambda entry: entry.is_symlink()) if self._enter(entry)}
        return [entry for entry in inside if entry.path in entered]

    def _enter(self, entry: os.DirEntry[str]) -> bool:
        status = entry.stat()
        # Some file systems have no inode numbers.
        identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(entry.path)
        if identity in self._entered or (entry.is_symlink() and self._leads_back(entry.path)):
            self.left_out.append(entry.path)
            return False
        self._entered.add(identity)
        return True

    def _leads_back(self, link: str) -> bool:
        target = os.path.realpath(link)
        return _is_below(target, self._top) or _is_below(os.path.realpath(os.path.dirname(link)), target)


def _is_below(path: str, folder: str) -> bool:
    """Whether a real path is a folder or inside of it."""
    return path == folder or path.startswith(os.path.join(folder, ""))


def walk(folder: str | Path, media: Media | None, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    """Paths of all media files under `folder`, chosen by ending, in sorted order.

    `media` None: videos and images. Hidden files and the direct subfolders in `skip` are left out. A folder that does
    not exist gives nothing. Raises UserError if a folder cannot be listed.
    """
    endings = ENDINGS[media] if media else VIDEO | IMAGE
    return (path for path in walk_all(folder, skip) if os.path.splitext(path)[1].lower() in endings)


def walk_all(folder: str | Path, skip: frozenset[str] = frozenset(), links: FolderLinks | None = None) -> Iterator[str]:
    """`walk` for files with any ending. `links`: those of a walk that this one is a part of."""
    links = links or FolderLinks(folder)
    found = entries(folder)
    inside = {entry.path for entry in links.folders([entry for entry in found if entry.name not in skip])}
    for entry in found:
        if entry.path in inside:
            yield from walk_all(entry.path, links=links)
        elif not _is_folder(entry):
            yield entry.path


def matching(pattern: str) -> list[str]:
    """Sorted paths of the files that match a pattern with `*`, `?`, `[...]`, and `**` for folders of any depth."""
    parts = pattern.split("/")
    if "**" not in parts:
        return sorted(path for path in glob.glob(pattern) if not os.path.isdir(path))
    first = parts.index("**")
    tops = glob.glob("/".join(parts[:first]) or "/") if first else [""]
    found = ((path if top else os.path.relpath(path), top) for top in tops for path in walk_all(top or "."))
    return sorted(path for path, top in found if _matches(_parts(path)[len(_parts(top)) :], parts[first:]))


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match the parts of a pattern. `**` stands for any number of folders."""
    if not names or not pattern:
        return not names and not pattern
    if pattern[0] != "**":
        return fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])
    if len(pattern) == 1:
        return True
    return any(_matches(names[skipped:], pattern[1:]) for skipped in range(len(names)))


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
    return not entry.name.startswith(".") and entry.name not in _OF_SYSTEMS


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
    links = FolderLinks(folder)

    def search(folder: str | Path) -> None:
        found = entries(folder)
        inside = {entry.path for entry in links.folders(found)}
        for entry in found:
            stem, ending = os.path.splitext(entry.name)
            if entry.path in inside and entry.name not in names:
                search(entry.path)
            elif entry.path in inside:
                frames.setdefault(entry.name, entry.path)
            elif stem in names and ending.lower() in VIDEO and not _is_folder(entry):
                videos.setdefault(stem, entry.path)

    search(folder)
    return frames | videos


def subfolders(folder: str | Path, links: FolderLinks | None = None) -> list[str]:
    """Sorted names of the folders directly in `folder`, without hidden ones. Empty if `folder` does not exist.

    `links`: those of a walk that goes on in these folders. Raises UserError if `folder` cannot be listed.
    """
    return [entry.name for entry in (links or FolderLinks(folder)).folders(entries(folder))]


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
