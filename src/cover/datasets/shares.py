"""Which files are whose, where several jobs index one catalog? Told by a path's hash, so every job sees the same division."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from cover.errors import UserError


@dataclass(frozen=True)
class Share:
    """Share `number` of `count`, counted from 1 as job arrays do."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """Reads `3/16`. Raises UserError.

        >>> Share.parse("3/16")
        Share(number=3, count=16)
        """
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UserError(f'--shard "{text}": expected NUMBER/COUNT, the number from 1 to the count, as in 3/16')
        return cls(int(found[1]), int(found[2]))

    def of(self, paths: Iterable[str]) -> list[str]:
        """Those of the paths that are in this share. Files that come or go move no other file."""
        return [path for path in paths if zlib.crc32(path.encode()) % self.count == self.number - 1]
