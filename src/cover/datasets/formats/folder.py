"""The format `folder`: one folder per class, `<root>/<split>/<class>/...`, or `<root>/<class>/...` for train alone.

The class order is that of the sorted folder names. A class folder may have subfolders. The catalog's `group` is a
pattern that is searched in the path below the root. Files with an ending of another kind are left out, and a warning
gives their number; with the catalog's `stills`, a set of videos has pictures too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cover.datasets.annotations import Labels, ListedSample, Listing, classes_from_catalog, naming_splits
from cover.datasets.catalog import DatasetSpec
from cover.datasets.files import ENDINGS, FolderLinks, few, is_text, media_files, subfolders, unpack_hint, walk_all
from cover.datasets.manifest import ClassList
from cover.errors import UserError
from cover.media.source import Media


def folder(spec: DatasetSpec, split: str) -> Listing:
    """The samples of one split. Raises UserError for a class folder outside the class list."""
    classes = classes_from_catalog(spec) or _folder_names(spec)
    labels = Labels(classes)
    top = spec.annotations[split]
    rows, left_out, links = [], [], FolderLinks(top)
    endings = ENDINGS[spec.media] | (ENDINGS["image"] if spec.stills else frozenset())
    for name in _class_folders(top, links):
        label = labels.of(name, top)
        for path in walk_all(os.path.join(top, name), links=links):
            sample = os.path.relpath(path, spec.root)
            if os.path.splitext(path)[1].lower() in endings:
                group = spec.group.of_path(sample, str(spec.root), spec.name) if spec.group else None
                rows.append(ListedSample(sample, sample, path, label, group=group))
            else:
                left_out.append(sample)
    stray = [os.path.relpath(path, spec.root) for path in media_files(top, spec.media)]
    return Listing(classes, rows, tuple(stray_warnings(spec.media, left_out, stray, links)))


def stray_warnings(media: Media, others: Sequence[str], stray: Sequence[str], links: FolderLinks) -> Iterator[str]:
    """Warnings about files with another ending in class folders, media files outside class folders, and links."""
    if others:
        count = f"{len(others)} files in class folders, the first {few(others[:1])}"
        yield f"left out, because their ending is not one of {media} files: {count}"
    yield from _other_media(media, others)
    if links.left_out:
        count = f"{len(links.left_out)} folders, the first {few(links.left_out[:1])}"
        yield f"links not followed, because the folders they lead to are read anyway: {count}"
    if stray:
        yield f"left out, because they lie in no class folder: {len(stray)} files, the first {few(stray[:1])}"


def _other_media(media: Media, others: Sequence[str]) -> Iterator[str]:
    """A warning if some of the files left out are of the other kind of media."""
    other: Media = "image" if media == "video" else "video"
    if count := sum(os.path.splitext(path)[1].lower() in ENDINGS[other] for path in others):
        yield (
            f"{count} files left out have the ending of another kind of media; a data set has one kind:"
            f" `media: {other}` in this entry, or in one of its own, reads them"
            + ", and stills: true takes them as clips of one frame"
            * (media == "video")
        )


def _class_folders(top: str, links: FolderLinks | None = None) -> list[str]:
    names = subfolders(top, links)
    for name in names:
        if not is_text(name):
            raise UserError(f"{os.path.join(top, name)!a}: the folder's name is not valid UTF-8; rename the folder")
    return names


def _folder_names(spec: DatasetSpec) -> ClassList:
    splits = naming_splits(spec)
    names = {name for split in splits for name in _class_folders(spec.annotations[split])}
    if not names:
        place = spec.annotations[splits[0]]
        hint = unpack_hint(place) if os.path.isdir(place) else f"{place} is no folder"
        raise UserError(f"{spec.name}: no class folder in {place}{hint and f'; {hint}'}")
    return ClassList.of(
        sorted(names), f"folders of {', '.join(Path(spec.annotations[split]).name for split in splits)}"
    )
