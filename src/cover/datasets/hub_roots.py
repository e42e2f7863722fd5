"""Data sets on the Hugging Face Hub: an entry of a catalog with `root: hf://datasets/OWNER/NAME@REVISION/FOLDER`.

`cover index` downloads the files into the Hub's cache, and notes the commit in `manifests/hub.json` beside the catalog.
All commands, and later runs of `cover index`, use this commit. So a data set does not change under a run.
"""

from __future__ import annotations

import glob
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cover.errors import UserError
from cover.hub import commit_of, fetch

SCHEME = "hf://"
PINS = Path("manifests") / "hub.json"  # beside the catalog: root -> {commit, folder}
COMMIT = re.compile(r"[0-9a-f]{40}")
_ROOT = re.compile(r"hf://datasets/(?P<repo>\w[\w.-]*/\w[\w.-]*?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<folder>.*?))?/?")


@dataclass(frozen=True)
class HubRoot:
    """A root on the Hub. `revision`: a branch, tag or commit; None for the newest. `folder`: below the repository."""

    text: str
    repo: str
    revision: str | None
    folder: str

    @classmethod
    def parse(cls, text: str) -> HubRoot:
        """Parse a root. Raises `UserError`.

        >>> HubRoot.parse("hf://datasets/me/clips@v1/small").folder
        'small'
        """
        match = _ROOT.fullmatch(text)
        folder = match["folder"] or "" if match else ""
        if not match or (folder and {"", ".", ".."} & set(folder.split("/"))):
            raise UserError(f"{text}: expected hf://datasets/OWNER/NAME, with @REVISION and /FOLDER where wanted")
        return cls(text, match["repo"], match["revision"], folder)


def is_hub_root(root: Any) -> bool:
    """Whether the key `root` of an entry names a data set on the Hub."""
    return isinstance(root, str) and root.startswith(SCHEME)


def local_folder(catalog: Path, text: str) -> Path | None:
    """The folder into which a root was downloaded for the catalog file `catalog`; None if it was not, or is gone.

    Raises `UserError` if `text` is no such root, or if the pins are damaged.
    """
    HubRoot.parse(text)
    pin = read_pins(catalog).get(text)
    folder = Path(pin["folder"]) if pin else None
    return folder if folder and folder.is_dir() else None


def read_pins(catalog: Path) -> dict[str, dict[str, str]]:
    """Root -> its commit and the folder of its files. Raises `UserError` if the file is damaged."""
    path = catalog.parent / PINS
    try:
        pins: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
        if not all({"commit", "folder"} <= pin.keys() for pin in pins.values()):
            raise ValueError("a root has no commit")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it, and run cover index again") from None
    return pins


def download(catalog: Path, text: str, update: bool = False) -> Path:
    """Download the files of a root, and pin its commit; returns their folder. What is there already is not loaded.

    `update`: take the newest commit of the branch. An interrupted download goes on. Raises `UserError`.
    """
    root = HubRoot.parse(text)
    pinned = read_pins(catalog).get(text, {}).get("commit")
    commit = pinned if pinned and not update else root.revision
    if not commit or not COMMIT.fullmatch(commit):
        commit = commit_of(root.repo, commit, "dataset")
    patterns = [f"{glob.escape(root.folder)}/*"] if root.folder else ["*"]
    folder = Path(os.path.normpath(fetch(root.repo, patterns, commit, kind="dataset") / root.folder))
    if not folder.is_dir():
        raise UserError(f"{text}: {root.repo} has no files below {root.folder} at {commit[:12]}")
    # The download may take hours, in which another process may have pinned another root.
    _write_pins(catalog, {**read_pins(catalog), text: {"commit": commit, "folder": str(folder)}})
    return folder


def _write_pins(catalog: Path, pins: dict[str, dict[str, str]]) -> None:
    path = catalog.parent / PINS
    try:
        path.parent.mkdir(exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps(pins, indent=2) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
