"""A walk through folders enters every real folder once, whatever the links in it lead to."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from cover.datasets.files import find_clips, matching, subfolders, walk
from cover.datasets.formats import list_split
from cover.inference.predict import find_inputs


def grow(root: Path, links: dict[str, str]) -> Path:
    for name in ("a/x.mp4", "b/y.mp4"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return root


LINKS = {
    "to its own folder": {"a/self": "."},
    "twice to its own folder": {"a/s1": ".", "a/s2": "."},
    "to the root": {"latest": "."},
    "to the folder above": {"a/up": ".."},
    "far up": {"a/up": "../../../.."},
    "to a sibling": {"a/more": "../b"},
    "to each other": {"a/other": "../b", "b/other": "../a"},
    "absolute": {"a/deep/er/back": "{root}"},
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", LINKS)
def test_links_that_lead_back(tree: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = grow(tree.root / "set", {})
    grow_links = {name: target.format(root=root) for name, target in LINKS[kind].items()}
    for name, target in grow_links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    both = [str(root / "a/x.mp4"), str(root / "b/y.mp4")]
    assert list(walk(root, None)) == both
    assert subfolders(root) == ["a", "b"]
    assert find_clips(root, {"x", "y"}) == {"x": both[0], "y": both[1]}
    assert find_inputs([str(root)], io.BytesIO()) == both
    assert matching(f"{root}/**/*.mp4") == matching(f"{root}/**") == both
    listing = list_split(tree.spec(format="folder", media="video", root="set"), "train")
    assert listing.classes.names == ("a", "b")
    assert [(row.path, row.label) for row in listing.rows] == list(zip(both, (0, 1)))
    assert [text.split(":")[0] for text in listing.warnings] == [
        "links not followed, because the folders they lead to are read anyway"
    ]


@pytest.mark.timeout(30)
def test_links_that_lead_back_in_published_formats(tree: Any) -> None:
    root = tree.root
    tree.touch("train/n01440764/x.JPEG", "val/n01440764/y.JPEG", "k400/abcdefghijk_000001_000011.mp4")
    (root / "train/latest").symlink_to(".")
    (root / "train/n01440764/s1").symlink_to("..")
    (root / "train/n01440764/s2").symlink_to(".")
    listing = list_split(tree.spec(format="imagenet"), "train")
    assert tree.below(listing) == ["train/n01440764/x.JPEG"]
    tree.write_csv(
        "train.csv",
        [["label", "youtube_id", "time_start", "time_end", "split"], ["run", "abcdefghijk", "1", "11", "train"]],
    )
    (root / "k400/s1").symlink_to("..")
    (root / "k400/s2").symlink_to(".")
    listing = list_split(tree.spec(format="kinetics", annotations={"train": "train.csv"}), "train")
    assert tree.below(listing) == ["k400/abcdefghijk_000001_000011.mp4"]


def test_links_that_lead_out_are_followed_once(tmp_path: Path) -> None:
    grow(tmp_path / "store", {})
    top = tmp_path / "set"
    top.mkdir()
    (top / "one").symlink_to(tmp_path / "store/a")
    (top / "two").symlink_to(tmp_path / "store")
    assert [os.path.relpath(path, top) for path in walk(top, "video")] == ["one/x.mp4", "two/b/y.mp4"]


def test_a_link_to_a_folder_is_walked_as_the_folder(tmp_path: Path) -> None:
    root = grow(tmp_path / "set", {"a/self": "."})
    (tmp_path / "link").symlink_to(root)
    assert [os.path.relpath(path, tmp_path) for path in walk(tmp_path / "link", None)] == [
        "link/a/x.mp4",
        "link/b/y.mp4",
    ]


def test_folders_of_operating_systems_are_no_classes(tree: Any) -> None:
    tree.touch(
        "a/x.mp4", "__MACOSX/a/._x.mp4", "__MACOSX/y.mp4", ".DS_Store", ".cache/z.mp4", "@eaDir/x.mp4", "a/@eaDir/x.mp4"
    )
    listing = list_split(tree.spec(format="folder", media="video"), "train")
    assert (listing.classes.names, tree.below(listing)) == (("a",), ["a/x.mp4"])


def test_a_folder_of_both_kinds_says_what_was_left_out(tree: Any) -> None:
    tree.touch("a/1.jpg", "a/2.mp4", "b/3.mp4", "b/4.jpg", "b/notes.txt")
    spec = tree.spec(format="folder")
    (left_out, mixed) = list_split(spec, "train").warnings
    assert spec.media == "image"
    assert left_out.endswith("3 files in class folders, the first a/2.mp4")
    assert mixed.startswith("2 files")
    assert "media: video" in mixed
    assert len(list_split(tree.spec(format="folder", media="video"), "train").rows) == 2


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/x.mp4", "a/b/x.mp4", "a/b/c/y.mp4", ".hidden/x.mp4", "x.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert matching("**/x.mp4") == ["a/b/x.mp4", "a/x.mp4", "x.mp4"]
    assert matching("a/**/*.mp4") == ["a/b/c/y.mp4", "a/b/x.mp4", "a/x.mp4"]
    assert matching("a/**/c/*") == ["a/b/c/y.mp4"]
    assert matching("*/?.mp4") == ["a/x.mp4"]
    assert matching(f"{tmp_path}/a/**") == [str(tmp_path / name) for name in ("a/b/c/y.mp4", "a/b/x.mp4", "a/x.mp4")]
    assert matching("nothing/**/x.mp4") == []
