"""Counts the cases of the golden files, and those that a test compares.

    COVER_TEST_DATA=data python tests/helpers/golden_coverage.py [FOLDER]

FOLDER: the golden files (default: those in tests/golden). A case counts as compared if pytest collects a test whose
parameters or source name it, in a module that names its file, or a test that goes through all cases of the file.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1] / "model"
ALL_OF = {  # file -> test that goes through all its cases
    "efficientnet_lite0": "test_published_outputs_of_lite0",
}


class Collected:
    """The texts that say which cases a test compares."""

    def __init__(self) -> None:
        self.tests: list[tuple[str, str, str]] = []  # name, its text, its text with that of its module

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            assert isinstance(item, pytest.Function)
            parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
            text = " ".join([*map(str, parameters), inspect.getsource(item.function)])
            self.tests.append((item.originalname, text, text + inspect.getsource(item.module)))

    def compares(self, file: str, case: str) -> bool:
        """Whether a test compares a case."""
        return any(name == ALL_OF.get(file) or (case in text and file in around) for name, text, around in self.tests)


def main() -> None:
    golden = Path(sys.argv[1]) if len(sys.argv) > 1 else TESTS.parent / "golden"
    collected = Collected()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-q", str(TESTS)], plugins=[collected])
    files = missing = total = 0
    print("| file | cases | compared | not compared |\n|---|---:|---:|---|")
    for path in sorted(golden.glob("*.json")):
        facts: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = [case["case"] for case in facts.get("cases", ())]
        if not names:
            continue
        left = [name for name in names if not collected.compares(path.stem, name)]
        files, missing, total = files + 1, missing + len(left), total + len(names)
        print(f"| {path.stem} | {len(names)} | {len(names) - len(left)} | {', '.join(left)} |")
    print(f"\n{total} cases in {files} files, {total - missing} compared, {missing} not")


if __name__ == "__main__":
    main()
