"""Where are the files behind a name, on this machine or on the Hugging Face Hub, and how does a folder get there?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cover.errors import UserError


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file or folder here has the form `owner/name` of the Hub."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def fetch(repo: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """The folder of a Hub repository's files that match `patterns`: downloaded, or from the cache where the Hub cannot be reached.

    Raises `UserError`: no such repository or revision, no access, or offline and not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"]))
    except LocalEntryNotFoundError:
        raise UserError(f"{repo}: no such folder here, and it is not in the Hub's cache, nor can the Hub be reached") from None
    except (EntryNotFoundError, HTTPError, OSError, ValueError) as error:
        raise UserError(f"{repo}: no such folder here, and the Hub does not give it: {_first_line(error)}") from None


def upload(folder: Path, repo: str, private: bool, message: str) -> str:
    """Put the files of `folder` into a model repository, made where it is new; returns its address. Raises `UserError`.

    A card (README.md) that the repository has already is its owner's text and stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        own_card = api.file_exists(repo, "README.md")
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message=message, ignore_patterns=["README.md"] if own_card else None)
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"{repo}: cannot be uploaded: {_first_line(error)}") from None
    return str(address)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
