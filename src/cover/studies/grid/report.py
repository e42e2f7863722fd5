"""How is a study shown? One self-contained page, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_study_report(summary: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a study's `summary` (`summary.summarise`) and return its path."""
    path.write_text("", encoding="utf-8")
    return path


def markdown(summary: Mapping[str, Any]) -> str:
    """A study's tables as Markdown."""
    return str(summary["study"])
