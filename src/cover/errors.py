"""The error of wrong use, and hints for its message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_KNOWN = 40  # valid words that a message lists; a head may have tens of thousands of classes


class UserError(ValueError):
    """Wrong use or configuration. The command line prints the message in one line and exits with code 2."""


def install(extra: str) -> str:
    """The command that installs an optional part of this package, from the package's folder; no index has it.

    >>> install("serve")
    "pip install -c constraints.txt -e '.[serve]'"
    """
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def similar(word: str, known: Iterable[str]) -> str:
    """A hint that names the valid word closest to `word`, empty if none is close.

    >>> similar("--ot", ["--out", "--seed"])
    '; did you mean "--out"?'
    """
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the valid word closest to `word`. If none is close, it lists the valid words.

    The hint is empty if `known` is empty.

    >>> nearest("kinetcs", ["kinetics", "ssv2"])
    '; did you mean "kinetics"?'
    """
    known = sorted(known)
    if hint := similar(word, known):
        return hint
    more = f" and {len(known) - MOST_KNOWN} more" if len(known) > MOST_KNOWN else ""
    return f"; known: {', '.join(known[:MOST_KNOWN])}{more}" if known else ""
