"""The client of the Hugging Face Hub: downloads and uploads. Its errors become one line that says what to do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from cover.errors import UserError

RepoKind = Literal["model", "dataset", "space"]
CARD = "README.md"  # of a repository
LOGIN = "run `hf auth login`, or set HF_TOKEN to a token from https://huggingface.co/settings/tokens"


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/name` of the Hub. The caller has checked that it is no local path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def repo_of(folder: Path) -> str:
    """The repository that a folder of the Hub's cache is from; empty for any other folder."""
    above = folder.parent.parent.name  # as in models--owner--name/snapshots/COMMIT
    kind, *parts = above.split("--")
    return "/".join(parts) if kind == "models" and len(parts) == 2 and folder.parent.name == "snapshots" else ""


def check_hub_id(name: str) -> None:
    """Raises `UserError` if a name has not the form `owner/name`."""
    if not is_hub_id(name):
        raise UserError(f'"{name}": a repository of the Hub is named owner/name: letters, digits, -, _ and .')


def fetch(
    repo: str,
    patterns: Sequence[str],
    revision: str | None = None,
    out: Path | None = None,
    kind: RepoKind = "model",
) -> Path:
    """Download the files of a Hub repository that match `patterns`; returns their folder.

    They go into the Hub's cache, or into the folder `out`. With `out`, `patterns` are names, and a file of such a name
    that the repository lacks is removed from the folder. An interrupted download goes on. If the Hub cannot be reached,
    the files come from the cache; with `out` this is an error, because the folder may have another version.

    Raises `UserError` if the repository or revision does not exist, if access is denied, or if the machine is offline
    and the cache lacks the files.
    """
    here = "no such folder here, and " if kind == "model" and out is None else ""
    if out is not None:
        revision = commit_of(repo, revision, kind)
    with _user_errors(repo, f"{repo}: {here}the Hub does not give it", kind, revision):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = snapshot_download(
                repo,
                repo_type=kind,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=["*/*"] if kind == "model" else None,
                local_dir=out,
            )
        except LocalEntryNotFoundError:
            raise UserError(f"{repo}: {here}it is not in the Hub's cache, nor can the Hub be reached") from None
        if out is not None:
            for name in set(patterns) - set(HfApi().list_repo_files(repo, revision=revision, repo_type=kind)):
                (out / name).unlink(missing_ok=True)
        return Path(folder)


def commit_of(repo: str, revision: str | None = None, kind: RepoKind = "model") -> str:
    """The commit of a branch or tag, by default of the newest version. Raises `UserError` as `fetch`."""
    with _user_errors(repo, f"{repo}: the Hub does not give it", kind, revision):
        from huggingface_hub import HfApi

        return str(HfApi().repo_info(repo, repo_type=kind, revision=revision).sha)


def upload(
    folder: Path,
    repo: str,
    private: bool,
    message: str,
    kind: RepoKind = "model",
    keep_card: Callable[[str], bool] = lambda card: False,
    replace: Sequence[str] = (),
) -> str:
    """Upload the files of `folder` into a repository; returns its address. Raises `UserError`.

    The repository is created if it does not exist. A card (README.md) that it has is replaced, unless `keep_card` is
    true of its text. `replace`: patterns of files that are deleted from the repository if `folder` lacks them.
    """
    check_hub_id(repo)
    failed = f"{repo}: cannot be uploaded"
    with _user_errors(repo, failed, kind):
        from huggingface_hub import HfApi, get_token

        if get_token() is None:
            raise UserError(f"{failed}: the Hub needs a token; {LOGIN}")
        api = HfApi()
        sdk = "docker" if kind == "space" else None
        address = api.create_repo(repo, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
        present = _card_of(repo) if kind == "model" else None
        api.upload_folder(
            folder_path=folder,
            repo_id=repo,
            repo_type=kind,
            commit_message=message,
            ignore_patterns=None if present is None or not keep_card(present) else [CARD],
            delete_patterns=list(replace) or None,
        )
        return str(address)


def _card_of(repo: str) -> str | None:
    """The card of a model repository; None if it has none."""
    from huggingface_hub import HfApi, hf_hub_download

    if not HfApi().file_exists(repo, CARD):
        return None
    return Path(hf_hub_download(repo, CARD)).read_text(encoding="utf-8", errors="replace")


@contextmanager
def _user_errors(repo: str, failed: str, kind: RepoKind = "model", revision: str | None = None) -> Iterator[None]:
    """In this block, every exception of the Hub's client becomes a `UserError` that begins with `failed`.

    The client and the libraries below it have no common base of their exceptions. Environment variables of a wrong
    form, such as HF_HUB_ETAG_TIMEOUT=abc, raise ValueError already at the import, and a SOCKS proxy without its package
    raises ImportError.
    """
    try:
        # It reads the environment. If another module of the client imports it, its exception is printed too.
        import huggingface_hub.constants  # noqa: F401

        with _progress_for_people():
            yield
    except UserError:
        raise
    except Exception as error:
        known = _known_reason(error, repo, kind, revision)
        raise UserError(f"{failed}: {known or f'{_first_line(error)}{_cause(error)}'}") from None


@contextmanager
def _progress_for_people() -> Iterator[None]:
    """In this block, the client shows progress bars only on a terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def _known_reason(error: Exception, repo: str, kind: RepoKind, revision: str | None) -> str:
    """The reason and the remedy of an error of the Hub; empty for any other error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    owner = repo.partition("/")[0]
    reasons = {
        "GatedRepoError": f"it is gated; accept its terms at https://huggingface.co/{repo}, then {LOGIN}",
        "RevisionNotFoundError": f'it has no branch, tag or commit "{revision}"',
        "OfflineModeIsEnabled": "the Hub's client is offline; unset HF_HUB_OFFLINE",
    }
    names = [each.__name__ for each in type(error).__mro__]
    if reason := next((reasons[name] for name in names if name in reasons), ""):
        return reason
    if "RepositoryNotFoundError" in names:
        return f"the Hub has no {kind} of this name, or it is private and no token opens it ({LOGIN})"
    if status == 401:
        return f"the Hub does not know the token; {LOGIN}"
    if status == 403:
        return (
            f"the token may not write to {owner}; make one with write access at https://huggingface.co/settings/tokens"
        )
    return ""


def _cause(error: Exception) -> str:
    """A hint at a setting of the environment that can be the cause; empty if there is none."""
    if isinstance(error, ValueError) and "literal" in str(error):
        for name, value in sorted(os.environ.items()):
            if name.startswith(("HF_", "HUGGINGFACE_")) and "TOKEN" not in name and repr(value) in str(error):
                return f" (the environment variable {name} is {value!r})"
    if isinstance(error, ImportError) and "socks" in str(error).lower():
        return " (a proxy in the environment is a SOCKS proxy: pip install socksio)"
    proxies = [name for name in os.environ if name.lower().endswith("_proxy") and name.lower() != "no_proxy"]
    named = isinstance(error, OSError | ValueError) and "proxy" in f"{type(error).__name__} {error}".lower()
    if proxies and named:
        return f" (proxies in the environment: {', '.join(sorted(proxies))})"
    if any(each.__name__ in ("ConnectError", "TimeoutException") for each in type(error).__mro__):
        return f"; the Hub cannot be reached{_endpoint()}"
    return ""


def _endpoint() -> str:
    address = os.environ.get("HF_ENDPOINT")
    return f" (HF_ENDPOINT is {address})" if address else ""


def _first_line(error: Exception) -> str:
    """The first line of an error; with the first point of a list that follows."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines[1:] and lines[1].startswith("- "):
        return f"{lines[0].rstrip('.')}: {lines[1].removeprefix('- ')}"
    return lines[0] if lines else type(error).__name__
