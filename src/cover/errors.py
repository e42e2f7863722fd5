"""What a user did wrong, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong use or configuration. The command line shows the message as one line and exits with code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the closest valid word, or lists them all when none is close. Empty if nothing is known.

    >>> nearest("kinetcs", ["kinetics", "ssv2"])
    '; did you mean "kinetics"?'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f"; known: {', '.join(known)}" if known else ""
