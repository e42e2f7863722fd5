"""What a user did wrong, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_KNOWN = 40  # words listed; a head may have tens of thousands


class UserError(ValueError):
    """Wrong use or configuration. The command line shows the message as one line and exits with code 2."""


def install(extra: str) -> str:
    """The command that brings an optional part of this package, from its own folder: no index has it.

    >>> install("serve")
    "pip install -c constraints.txt -e '.[serve]'"
    """
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest valid word, or lists them when none is close. Empty if nothing is known.

    >>> nearest("kinetcs", ["kinetics", "ssv2"])
    '; did you mean "kinetics"?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    more = f" and {len(known) - MOST_KNOWN} more" if len(known) > MOST_KNOWN else ""
    return f"; known: {', '.join(known[:MOST_KNOWN])}{more}" if known else ""
